//! No secret, and no owner's address, where it has no business: in logs, events, labels, what commands
//! print, errors, arguments of processes, and what `{:?}` shows.
#![allow(clippy::unwrap_used)]

mod support;
#[path = "support/webhook.rs"]
mod webhook;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use haas::config::Config;
use haas::containers::DockerSettings;
use haas::credentials::InstanceKey;
use haas::http::signature::content_digest;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::Sha256;
use support::eventually;
use support::installation::{Installation, docker};
use webhook::Receiver;

const LIMIT: Duration = Duration::from_secs(60);
const KEY: &str = "5eCr3t-of-appmaker-0123456789";
/// What somebody guesses; it may be nearly right.
const WRONG: &str = "wr0ng-but-almost-0123456789";
const PASSWORD: &str = "hunter2-of-the-database";
const TOKEN: &str = "t0ken-of-the-webhook";

/// Everything that was seen, each with a word for where.
#[derive(Default)]
struct Seen(Vec<(String, String)>);

impl Seen {
    fn add(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.0.push((place.into(), text.into()));
    }

    fn has_none_of<'a>(&self, words: impl IntoIterator<Item = &'a str>) {
        for word in words {
            assert!(word.len() >= 12, "{word:?} may be there by chance");
            for (place, text) in &self.0 {
                let at = text.find(word);
                let around =
                    at.map(|at| String::from_utf8_lossy(&text.as_bytes()[at.saturating_sub(80)..at]).into_owned());
                assert!(at.is_none(), "{place} has {word:?} after {around:?}");
            }
        }
    }
}

struct Party {
    haas: Installation,
    /// Errors, and all else that no known party got.
    refused: Seen,
}

impl Party {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("http://127.0.0.1:{}{path}", self.haas.ports.http);
        self.haas.client.request(method, url).header("host", "haas.localhost")
    }

    /// Sends it, and keeps what is answered if it is an error.
    async fn send(&mut self, request: RequestBuilder, status: u16) -> Value {
        let answer = request.send().await.unwrap();
        let (actual, head) = (answer.status().as_u16(), format!("{:?}", answer.headers()));
        let body = answer.text().await.unwrap();
        assert_eq!(actual, status, "{body}\n{}", self.haas.log());
        if status >= 400 {
            self.refused.add(format!("the head of an answer {status}"), head);
            self.refused.add(format!("an answer {status}"), &body);
        }
        serde_json::from_str(&body).unwrap_or_default()
    }

    fn body(&self, user: &str) -> Value {
        let username = self.haas.user(user);
        json!({ "username": username, "appname": "notes", "emailaddress": email(&username) })
    }

    /// Signs as docs/api.md says; returns the signature, too.
    fn signed(&self, path: &str, body: &Value, key: &str, nonce: &str) -> (RequestBuilder, String) {
        let body = body.to_string();
        let digest = content_digest(body.as_bytes());
        let params = format!(
            r#"("@method" "@path" "@authority" "content-digest");created={};keyid="appmaker";nonce="{nonce}""#,
            chrono::Utc::now().timestamp()
        );
        let base = format!(
            "\"@method\": POST\n\"@path\": {path}\n\"@authority\": haas.localhost\n\"content-digest\": {digest}\n\
             \"@signature-params\": {params}"
        );
        let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
        mac.update(base.as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        let request = self
            .request(Method::POST, path)
            .header("content-type", "application/json")
            .header("content-digest", digest)
            .header("signature-input", format!("haas={params}"))
            .header("signature", format!("haas=:{signature}:"))
            .body(body);
        (request, signature)
    }
}

fn email(username: &str) -> String {
    format!("owner-{username}@example.com")
}

fn put(haas: &Installation, name: &str, text: &str) {
    let (dir, temporary) = (haas.layout.secrets_dir(), haas.layout.secrets_dir().join(format!(".{name}")));
    std::fs::write(&temporary, text).unwrap();
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(temporary, dir.join(name)).unwrap();
}

fn read_all(dir: &Path, seen: &mut Seen) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, seen);
        } else if let Ok(bytes) = std::fs::read(&path) {
            seen.add(path.display().to_string(), String::from_utf8_lossy(&bytes));
        }
    }
}

/// The arguments of every process that is about this folder: anybody on the machine may read them (proc(5)).
fn arguments_of_processes(dir: &Path, seen: &mut Seen) {
    for entry in std::fs::read_dir("/proc").unwrap() {
        let line = std::fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(dir.to_str().unwrap()) {
            seen.add("the arguments of a process", line);
        }
    }
}

/// In by each way, and what is refused of each; returns what was shown on the way.
async fn ways_in(party: &mut Party) -> Vec<String> {
    let sleeper = party.haas.user("alice");
    let mut body = party.body("alice");
    body["secret"] = KEY.into();
    let request = party.request(Method::POST, "/provision").json(&body);
    party.send(request, 201).await;
    let form = [("secret", KEY), ("username", &sleeper), ("appname", "notes"), ("emailaddress", &email(&sleeper))];
    let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let request = party.request(Method::POST, "/provision");
    party.send(request.header("content-type", "application/x-www-form-urlencoded").body(form.clone()), 200).await;
    let request = party.request(Method::POST, "/provision").bearer_auth(KEY).json(&party.body("bob"));
    party.send(request, 201).await;
    let (request, signature) = party.signed("/provision", &party.body("carol"), KEY, "0123456789ab-1");
    let again = request.try_clone().unwrap();
    party.send(request, 201).await;
    party.send(again, 401).await;
    let (request, wrong_signature) = party.signed("/provision", &party.body("carol"), WRONG, "0123456789ab-2");
    party.send(request, 401).await;
    let request = party.request(Method::GET, "/instances").bearer_auth(WRONG);
    party.send(request, 401).await;
    for (secret, status, content_type, text) in [
        (WRONG, 401, "application/json", r#"{"secret":"SECRET","emailaddress":"EMAIL"}"#),
        (KEY, 400, "application/json", r#"{"secret":"SECRET","username":"EMAIL""#),
        (KEY, 400, "application/json", r#"{"secret":"SECRET","secret":"SECRET","emailaddress":"EMAIL"}"#),
        (KEY, 400, "application/json", r#"{"secret":"SECRET","mail":"EMAIL"}"#),
        (
            KEY,
            422,
            "application/json",
            r#"{"secret":"SECRET","username":"EMAIL","appname":"SECRET","emailaddress":"EMAIL@"}"#,
        ),
        (KEY, 400, "application/x-www-form-urlencoded", "secret=SECRET&x=EMAIL"),
        (KEY, 422, "application/x-www-form-urlencoded", "secret=SECRET&username=EMAIL"),
        (KEY, 415, "text/plain", "secret=SECRET&username=EMAIL"),
    ] {
        let text = text.replace("SECRET", secret).replace("EMAIL", &email(&sleeper));
        let request = party.request(Method::POST, "/provision").header("content-type", content_type).body(text);
        party.send(request, status).await;
    }
    let request = party.request(Method::POST, "/provision").body("x".repeat(20_000)).bearer_auth(KEY);
    party.send(request.header("content-type", "application/json"), 413).await;
    let request = party.request(Method::GET, &format!("/instances?secret={WRONG}")).bearer_auth(KEY);
    party.send(request, 400).await;
    vec![KEY.to_owned(), WRONG.to_owned(), signature, wrong_signature, TOKEN.to_owned()]
}

/// The owner's way in, by a command's link and by the API's; returns what was handed out.
async fn sign_on(party: &mut Party) -> Vec<String> {
    let username = party.haas.user("carol");
    let (code, link, errors) = party.haas.haas(&["sso", &username, "notes"]).await;
    assert_eq!(code, 0, "{errors}");
    let request = party.request(Method::POST, "/sso").bearer_auth(KEY);
    let issued = party.send(request.json(&json!({ "username": username, "appname": "notes" })), 201).await;
    let mut handed_out = Vec::new();
    for link in [link.trim(), issued["url"].as_str().unwrap()] {
        let token = link.rsplit_once("token=").unwrap().1.to_owned();
        let hoodie = party.haas.hoodie("carol", "notes");
        let page = hoodie.get(&format!("/.haas/sso?token={token}")).await.unwrap().text().await.unwrap();
        handed_out.push(page.split_once("\"id\":\"").unwrap().1.split_once('"').unwrap().0.to_owned());
        // Once more, and nearly.
        for token in [token.clone(), token.replace(['0', '1', '2'], "3")] {
            let answer = hoodie.get(&format!("/.haas/sso?token={token}")).await.unwrap();
            assert_eq!(answer.status(), 403);
            party.refused.add("a page that says no", answer.text().await.unwrap());
            handed_out.push(token);
        }
    }
    handed_out
}

async fn commands(party: &mut Party, seen: &mut Seen) {
    let sleeper = party.haas.user("alice");
    for (arguments, shows_owner) in [
        (vec!["sleep", &sleeper, "notes"], false),
        (vec!["wake", &sleeper, "notes"], false),
        (vec!["sleep", &sleeper, "notes"], false),
        (vec!["host", "add", &sleeper, "notes", "www.example.org"], false),
        (vec!["policy", &sleeper, "notes"], false),
        (vec!["rotate", &sleeper, "notes"], false),
        (vec!["list"], false),
        (vec!["list", "--json"], true),
        (vec!["show", &sleeper, "notes"], true),
        (vec!["show", &sleeper, "notes", "--json"], true),
        (vec!["events", &sleeper, "notes"], false),
        (vec!["events", "--json"], false),
        (vec!["routes"], false),
        (vec!["config"], false),
        (vec!["config", "--diff"], false),
        (vec!["gc"], false),
        (vec!["roll"], false),
        (vec!["doctor"], false),
    ] {
        let (code, out, errors) = party.haas.haas(&arguments).await;
        assert!(!errors.contains("Usage:"), "haas {arguments:?}: {errors}");
        let text = format!("exit code {code}\n{out}{errors}");
        let place = format!("haas {}", arguments.join(" "));
        if shows_owner {
            // On purpose: to whoever has the folder.
            party.refused.add(place, text.replace(&email(&sleeper), "").replace("@example.com", ""));
        } else {
            seen.add(place, text);
        }
    }
}

const ROWS: &str = "SELECT id || ' ' || generation FROM instances";

/// What lies in the folder, and what is derived for these rows.
fn secrets_of(haas: &Installation, rows: &str) -> Vec<String> {
    let key = InstanceKey::read(&haas.layout.secrets_dir().join("instance.key")).unwrap();
    let mut secrets = Vec::new();
    for entry in std::fs::read_dir(haas.layout.secrets_dir()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        secrets.push(std::fs::read_to_string(&path).unwrap().trim().to_owned());
    }
    let mut passwords = 0;
    for (id, generation) in rows.lines().filter_map(|row| row.split_once(' ')) {
        let (id, last): (uuid::Uuid, i64) = (id.parse().unwrap(), generation.parse().unwrap());
        for generation in 1..=last {
            secrets.extend([key.admin_password(id, generation), key.session_salt(id, generation)]);
        }
        passwords += last;
    }
    assert!(passwords >= 5 && secrets.len() >= 8, "{rows}");
    secrets
}

/// Everything that others may read; returns the tables, in which an address has its place.
async fn look_around(haas: &Installation, secrets: &[String], seen: &mut Seen) -> Seen {
    arguments_of_processes(haas.layout.dir(), seen);
    for container in haas.containers().await {
        seen.add("docker inspect", docker(&["inspect", "--format", "{{json .Config.Labels}}", &container]).await);
        // The container has it, or it could not ask its administrators for it.
        let environment = docker(&["inspect", "--format", "{{json .Config.Env}}", &container]).await;
        assert!(
            secrets.iter().any(|secret| environment.contains(secret.as_str())),
            "a derived password is the real one"
        );
    }
    seen.add("haas.log", haas.log());
    read_all(&haas.layout.log_dir(), seen);
    read_all(&haas.layout.haproxy_dir(), seen);
    seen.add("the events", haas.sql("SELECT events FROM events").await);
    // An address has its place in the row; a secret has none in any.
    let mut tables = Seen::default();
    for table in haas.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").await.lines() {
        tables.add(format!("the table {table}"), haas.sql(&format!("SELECT t FROM {table} AS t")).await);
    }
    assert!(tables.0.len() >= 5 && tables.0.iter().any(|(_, text)| text.contains(&email(&haas.user("alice")))));
    let log = haas.log();
    for word in ["a wrong key", "DEBUG", "was answered with status 500"] {
        assert!(log.contains(word), "the log was to be looked through: no {word} in\n{log}");
    }
    tables
}

#[tokio::test]
async fn no_secret_is_where_others_look() {
    let receiver = Receiver::start().await;
    let settings = format!(
        "[tenant]\nstop_timeout = \"1s\"\n[reconcile]\nperiod = \"1s\"\n[lifecycle]\narchive_after = \"1h\"\n\
         notice_before = \"1h\"\nwebhook_url = \"{}&token={TOKEN}\"",
        receiver.url
    );
    let mut haas = Installation::prepared(&settings);
    haas.set_environment("HAAS_LOG", "trace");
    haas.start().await;
    put(&haas, "appmaker.secret", KEY);
    let mut party = Party { haas, refused: Seen::default() };
    eventually("the key is known", LIMIT, || async {
        let answer = party.request(Method::GET, "/instances").bearer_auth(KEY).send().await.ok()?;
        (answer.status() == 200).then_some(())
    })
    .await;
    let sleeper = party.haas.user("alice");
    receiver.refuse(&sleeper, 500);

    let mut secrets = ways_in(&mut party).await;
    secrets.extend(sign_on(&mut party).await);

    // What becomes of them.
    let mut seen = Seen::default();
    commands(&mut party, &mut seen).await;
    eventually("a notice was refused", LIMIT, || async { receiver.about(&sleeper).pop() }).await;
    let mut rows = party.haas.sql(ROWS).await;
    let mut gone = party.body("bob");
    gone.as_object_mut().unwrap().remove("emailaddress");
    gone["purge"] = true.into();
    gone["secret"] = KEY.into();
    let request = party.request(Method::POST, "/deprovision").json(&gone);
    party.send(request, 200).await;
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        let text = party.request(Method::GET, path).send().await.unwrap().text().await.unwrap();
        seen.add(path, text);
    }
    let answer = party.haas.hoodie("alice", "notes").get("/").await;
    assert!(answer.is_ok(), "the first request wakes it: {answer:?}");

    let Party { haas, refused } = party;
    rows += "\n";
    rows += &haas.sql(ROWS).await;
    secrets.extend(secrets_of(&haas, &rows));
    let tables = look_around(&haas, &secrets, &mut seen).await;

    for places in [&seen, &refused, &tables] {
        places.has_none_of(secrets.iter().map(String::as_str));
    }
    for user in ["alice", "bob", "carol"] {
        let owner = email(&haas.user(user));
        for places in [&seen, &refused] {
            places.has_none_of([owner.as_str(), owner.replace('@', "%40").as_str()]);
        }
    }
}

#[tokio::test]
async fn what_debug_shows_tells_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("appmaker.secret");
    std::fs::write(&path, KEY).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    // Nobody listens there.
    let url = format!("postgres://haas:{PASSWORD}@127.0.0.1:9/haas?connect_timeout=1");
    let settings = [
        ("manifest.database_url", url.as_str()),
        ("manifest.owner_url", url.as_str()),
        ("lifecycle.webhook_url", &format!("https://haas:{PASSWORD}@example.com/?token={TOKEN}")),
        ("secrets.dir", dir.path().to_str().unwrap()),
    ];
    let overrides = settings.map(|(name, value)| (name.to_owned(), toml::Value::String(value.to_owned())));
    let config = Config::load(None, [], BTreeMap::from(overrides)).unwrap();
    let mut seen = Seen::default();
    seen.add("Config", format!("{config:?} {config:#?}"));
    seen.add("http::Settings", format!("{:?}", haas::http::Settings::from_config(&config)));
    seen.add("haproxy::Settings", format!("{:?}", haas::haproxy::Settings::from_config(&config)));
    seen.add("reconcile::Settings", format!("{:?}", haas::reconcile::Settings::from_config(&config)));
    let bytes: [u8; 32] = *b"0123456789abcdef-of-the-instance";
    let key = InstanceKey::new(bytes);
    let password = key.admin_password(uuid::Uuid::nil(), 1);
    let docker = DockerSettings { installation: uuid::Uuid::nil(), tenant: config.tenant.clone(), key: key.clone() };
    seen.add("InstanceKey, DockerSettings", format!("{key:?} {docker:?}"));
    let clients = haas::clients::Clients::read(dir.path()).unwrap();
    let known = clients.key("appmaker").unwrap();
    seen.add("Key, Client", format!("{known:?} {:?} {:?}", known.client, clients.mistakes()));
    let message = haas::http::signature::Message {
        method: "POST",
        scheme: "https",
        host: "haas.example",
        target: "/provision",
        fields: vec![("authorization", KEY.as_bytes())],
        body: KEY.as_bytes(),
    };
    seen.add("signature::Message", format!("{message:?}"));
    // What can't be connected to says so without the password.
    let manifest = haas::manifest::Manifest::new(&config);
    let error = manifest.live().await.unwrap_err();
    seen.add("ManifestError", format!("{error:?} {error}"));
    let error = haas::manifest::migrate(&url, None).await.unwrap_err();
    seen.add("ManifestError of migrate", format!("{error:?} {error}"));
    let broken = format!("postgres://haas:{PASSWORD}@127.0.0.1:port/haas");
    let error = haas::manifest::migrate(&broken, None).await.unwrap_err();
    seen.add("ManifestError of no connection string", format!("{error:?} {error}"));
    let error = haas::manifest::role_of(&broken).err();
    seen.add("ManifestError of role_of", format!("{error:?}"));
    for (name, value) in [
        ("manifest.database_url", toml::Value::Array(vec![url.as_str().into()])),
        ("lifecycle.webhook_url", toml::Value::String(format!("ftp://haas:{PASSWORD}@example.com/{TOKEN}"))),
    ] {
        let error = Config::load(None, [], BTreeMap::from([(name.to_owned(), value)])).unwrap_err();
        seen.add("ConfigError", format!("{error:?} {error}"));
    }
    let owner = haas::instance::name::Email::parse(&email("alice")).unwrap();
    let new = haas::manifest::NewInstance {
        username: haas::instance::name::Username::parse("alice").unwrap(),
        appname: haas::instance::name::AppName::parse("notes").unwrap(),
        email: owner.clone(),
    };
    seen.add("Email, NewInstance", format!("{owner:?} {new:?}"));
    let text = json!({ "id": uuid::Uuid::nil(), "type": "instance.purge", "emailaddress": owner });
    assert!(text.to_string().contains(&email("alice")), "it is said where it is meant to be");
    seen.has_none_of([KEY, PASSWORD, TOKEN, std::str::from_utf8(&bytes).unwrap(), &hex::encode(bytes), &password]);
    seen.has_none_of([email("alice").as_str()]);
}
