//! Known parties, on a whole installation: the three ways in, rights, rotation, and guessing.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use support::eventually;
use support::installation::{Installation, printed};

const KEY: &str = "0123456789abcdef0123456789abcdef";

/// Writes a file of the secrets' folder, as an administrator does.
fn put(haas: &Installation, name: &str, text: &str) {
    let dir = haas.layout.secrets_dir();
    // Whole at once, since the server looks whenever something changes.
    let temporary = dir.join(format!(".{name}"));
    std::fs::write(&temporary, text).unwrap();
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(temporary, dir.join(name)).unwrap();
}

fn url(haas: &Installation, path: &str) -> String {
    format!("http://haas.localhost:{}{path}", haas.ports.http)
}

async fn ask(haas: &Installation, method: Method, path: &str, key: Option<&str>, body: Option<&Value>) -> Response {
    let request = haas.client.request(method, format!("http://127.0.0.1:{}{path}", haas.ports.http));
    let mut request = request.header("host", "haas.localhost");
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    request.send().await.unwrap()
}

/// The status, and the last part of the problem's type.
async fn problem(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    (status, body["type"].as_str().unwrap_or_default().replace("urn:haas:problem:", ""))
}

/// The example that docs/api.md marks with these words.
fn example(what: &str) -> String {
    let docs = include_str!("../docs/api.md");
    let marked = docs.split(&format!("<!-- {what} -->")).nth(1).unwrap();
    marked.split("```").nth(1).unwrap().split_once('\n').unwrap().1.to_owned()
}

async fn run(program: &str, arguments: &[&str], dir: &Path, environment: &[(&str, &str)]) -> String {
    let mut command = tokio::process::Command::new(program);
    printed(command.args(arguments).current_dir(dir).envs(environment.iter().copied())).await
}

#[tokio::test]
async fn the_signed_request_of_the_docs_provisions_with_curl_and_the_same_bytes_again_do_not() {
    let haas = Installation::up().await;
    let user = haas.user("alice");
    // The same bytes once more, and once more with another body.
    let script = format!(
        "{}\necho; curl -sS -i \"$url/provision\" -H 'content-type: application/json' --data-binary \"$body\" \
             -H \"content-digest: $digest\" -H \"signature-input: haas=$params\" -H \"signature: haas=:$signature:\"\n\
         echo; curl -sS -i \"$url/provision\" -H 'content-type: application/json' --data-binary \"${{body/notes/other}}\" \
             -H \"content-digest: $digest\" -H \"signature-input: haas=$params\" -H \"signature: haas=:$signature:\"\n",
        example("signed-request: curl").replace("alice\"", &format!("{user}\""))
    );
    let file = haas.dir.path().join("signed.sh");
    std::fs::write(&file, script).unwrap();
    let output = run("bash", &["-eu", file.to_str().unwrap()], haas.dir.path(), &[("url", &url(&haas, ""))]).await;
    let statuses: Vec<&str> = output.lines().filter(|line| line.starts_with("HTTP/")).collect();
    assert!(statuses[0].contains(" 201"), "{output}\n{}", haas.log());
    assert!(statuses[1].contains(" 401") && statuses[2].contains(" 401"), "{output}");
    assert!(
        output.contains("the nonce was used before") && output.contains("does not match its Content-Digest"),
        "{output}"
    );
    assert_eq!(haas.sql("SELECT count(*) FROM instances").await, "1");
    assert_eq!(haas.sql("SELECT count(*) FROM request_nonces").await, "1");
    assert!(!haas.log().contains(&haas.secret()));
}

#[tokio::test]
async fn the_signed_request_of_the_docs_provisions_with_javascript() {
    let haas = Installation::up().await;
    let dir = haas.dir.path();
    std::fs::write(dir.join("signed.mjs"), example("signed-request: javascript")).unwrap();
    // Not every resolver knows *.localhost.
    std::fs::write(
        dir.join("localhost.cjs"),
        "const dns = require('dns'); const lookup = dns.lookup
         dns.lookup = (name, ...rest) => lookup(name.endsWith('.localhost') ? '127.0.0.1' : name, ...rest)",
    )
    .unwrap();
    std::fs::write(
        dir.join("main.mjs"),
        "import { provision } from './signed.mjs'
         const { URL: url, KEY: key, APP_USER: username } = process.env
         const answer = await provision(url, 'provision', key, { username, appname: 'notes', emailaddress: 'a@example.com' })
         console.log(answer.status, await answer.text())",
    )
    .unwrap();
    let environment = [("URL", &*url(&haas, "")), ("KEY", &haas.secret()), ("APP_USER", &haas.user("bob"))];
    let output = run("node", &["-r", "./localhost.cjs", "main.mjs"], dir, &environment).await;
    assert!(output.starts_with("201 "), "{output}\n{}", haas.log());
    assert!(haas.hoodie("bob", "notes").answers().await);
}

#[tokio::test]
async fn two_servers_agree_on_which_nonce_was_used() {
    let cluster = support::cluster::Cluster::start(support::ports(), &[]).await;
    let (one, two) = (cluster.manifest(), cluster.manifest());
    let attempts = (0..16).map(|n| {
        let manifest = if n % 2 == 0 { one.clone() } else { two.clone() };
        async move { manifest.use_nonce("appmaker", "the same one").await.unwrap() }
    });
    let taken = futures_util::future::join_all(attempts).await;
    assert_eq!(taken.iter().filter(|taken| **taken).count(), 1);
    assert!(one.use_nonce("another", "the same one").await.unwrap(), "each client has its own");
    // What is out of time is forgotten.
    assert!(one.use_nonce("appmaker", "old").await.unwrap());
    cluster.sql("UPDATE request_nonces SET expires_at = now() - interval '1 s' WHERE nonce = 'old'").await.unwrap();
    assert!(two.use_nonce("appmaker", "new").await.unwrap());
    assert_eq!(cluster.sql("SELECT count(*) FROM request_nonces WHERE nonce = 'old'").await.unwrap(), "0");
}

#[tokio::test]
async fn a_client_does_what_it_has_the_right_to_and_for_whom() {
    let haas = Installation::up().await;
    let (mine, other) = (haas.user("mine"), haas.user("other"));
    put(&haas, "partner.toml", &format!("rights = [\"read\", \"provision\"]\nusernames = [\"{mine}*\"]\n"));
    put(&haas, "partner.secret", KEY);
    haas.provision("mine", "notes").await;
    haas.provision("other", "notes").await;
    eventually("the new client is known", Duration::from_secs(10), || async {
        (ask(&haas, Method::GET, "/instances", Some(KEY), None).await.status() == 200).then_some(())
    })
    .await;

    let list: Value = ask(&haas, Method::GET, "/instances", Some(KEY), None).await.json().await.unwrap();
    let names: Vec<_> = list["instances"].as_array().unwrap().iter().map(|row| row["username"].clone()).collect();
    assert_eq!(names, [json!(mine)], "others' apps are not there for it");
    let show = async |user: &str| {
        problem(ask(&haas, Method::GET, &format!("/instances/{user}/notes"), Some(KEY), None).await).await
    };
    assert_eq!(show(&mine).await.0, 200);
    assert_eq!(show(&other).await, (403, "forbidden".to_owned()));
    assert_eq!(show("nobody").await, (403, "forbidden".to_owned()), "nor does it learn who there is");

    // By each of the ways in it is the same client.
    let body = json!({ "username": mine, "appname": "notes" });
    let with_secret = json!({ "secret": KEY, "username": mine, "appname": "notes" });
    let take = async |key, body| problem(ask(&haas, Method::POST, "/deprovision", key, Some(body)).await).await;
    assert_eq!(take(Some(KEY), &body).await, (403, "forbidden".to_owned()));
    assert_eq!(take(None, &with_secret).await, (403, "forbidden".to_owned()));
    let theirs = json!({ "username": other, "appname": "x", "emailaddress": "a@example.com" });
    let answer = ask(&haas, Method::POST, "/provision", Some(KEY), Some(&theirs)).await;
    assert_eq!(problem(answer).await, (403, "forbidden".to_owned()));
    assert_eq!(haas.instance("mine", "notes").await["state"], "running");
    // Whoever has shown a key is told of a secret beside it that is none.
    let odd = json!({ "secret": ["x"], "username": mine, "appname": "notes", "emailaddress": "a@example.com" });
    let answer = ask(&haas, Method::POST, "/provision", Some(KEY), Some(&odd)).await;
    assert_eq!(problem(answer).await, (422, "invalid-fields".to_owned()));

    // That it tried is an event; so is what it did.
    let hosts = json!({ "hosts": ["www.example.org"] });
    let path = format!("/instances/{mine}/notes/hosts");
    let answer = ask(&haas, Method::PUT, &path, Some(KEY), Some(&hosts)).await;
    let request = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(answer.status(), 200);
    let (code, events, _) = haas.haas(&["events", &other, "x", "--json"]).await;
    let event: Value = serde_json::from_str(events.lines().next().unwrap()).unwrap();
    assert_eq!((code, &event["outcome"], &event["client_id"]), (0, &json!("refused"), &json!("partner")));
    let (_, events, _) = haas.haas(&["events", &mine, "notes", "--since", "1h", "--json"]).await;
    let added: Value = events
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .find(|e: &Value| e["kind"] == "host added")
        .unwrap();
    assert_eq!(
        (&added["client_id"], &added["key_id"], &added["source"]),
        (&json!("partner"), &json!("partner"), &json!("127.0.0.1"))
    );
    assert_eq!(added["request_id"], json!(request));
    // One id everywhere.
    assert!(haas.log().contains(&request), "{request}\n{}", haas.log());
    let proxy_log = std::fs::read_to_string(haas.layout.log_dir().join("haproxy.log")).unwrap_or_default();
    assert!(proxy_log.contains(&request), "{proxy_log}");
    assert!(!events.contains("@example.com"), "{events}");

    // A policy that can't be read lets nobody in, and tells the operator.
    put(&haas, "partner.toml", "rights = [\"everything\"]\n");
    eventually("the client is not known any more", Duration::from_secs(10), || async {
        (ask(&haas, Method::GET, "/instances", Some(KEY), None).await.status() == 401).then_some(())
    })
    .await;
    assert_eq!(haas.control("/instances").await.unwrap().status(), 200, "others are");
    let (_, doctor, _) = haas.haas(&["doctor"]).await;
    assert!(doctor.contains("partner.toml"), "{doctor}");
}

#[tokio::test]
async fn keys_are_rotated_without_a_restart_and_the_old_one_is_refused() {
    let haas = Installation::up().await;
    put(&haas, "appmaker.secret", KEY);
    let next = KEY.replace('0', "f");
    let status = async |key: &str| ask(&haas, Method::GET, "/instances", Some(key), None).await.status().as_u16();
    let becomes = async |key: &str, wanted: u16| {
        eventually("the keys are read again", Duration::from_secs(10), || async {
            (status(key).await == wanted).then_some(())
        })
        .await;
    };
    becomes(KEY, 200).await;
    put(&haas, "appmaker.next.secret", &next);
    becomes(&next, 200).await;
    assert_eq!(status(KEY).await, 200, "both count while one is rotated");
    std::fs::remove_file(haas.layout.secrets_dir().join("appmaker.secret")).unwrap();
    becomes(KEY, 401).await;
    assert_eq!(status(&next).await, 200);
}

#[tokio::test]
async fn a_token_lets_in_for_its_user_alone() {
    let haas = Installation::up_with("[http]\nfailures_per_minute = 60\n").await;
    let dir = haas.dir.path();
    // As docs/api.md says: its keys, and its tokens.
    std::fs::write(dir.join("keys.sh"), example("token: keys")).unwrap();
    run("bash", &["-eu", "keys.sh"], dir, &[]).await;
    std::fs::write(dir.join("token.mjs"), example("token: javascript")).unwrap();
    std::fs::write(
        dir.join("main.mjs"),
        "import { readFileSync } from 'node:fs'
         import { token } from './token.mjs'
         const [client, url, username] = process.argv.slice(2)
         console.log(token(readFileSync('appmaker.pem'), '2026-11', client, url, username))",
    )
    .unwrap();
    let (alice, bob, api) = (haas.user("alice"), haas.user("bob"), url(&haas, ""));
    let token = async |client: &str, url: &str, user: &str| {
        run("node", &["main.mjs", client, url, user], dir, &[]).await.trim().to_owned()
    };
    let jwks = dir.join("appmaker.jwks");
    let add = ["client", "add", "appmaker", "--jwks", jwks.to_str().unwrap()];
    let rights = ["--right", "provision", "--right", "read", "--user", &format!("{alice}*"), "--user", &bob];
    let (code, out, errors) = haas.haas(&[&add[..], &rights[..]].concat()).await;
    assert_eq!(code, 0, "{errors}");
    assert!(out.trim().ends_with("appmaker.jwks"), "{out}");
    let (_, list, _) = haas.haas(&["client", "list"]).await;
    assert!(list.lines().any(|line| line.split_whitespace().take(2).eq(["appmaker", "appmaker#2026-11"])), "{list}");

    let of_alice = token("appmaker", &api, &alice).await;
    eventually("its keys are known", Duration::from_secs(10), || async {
        (ask(&haas, Method::GET, "/instances", Some(&of_alice), None).await.status() == 200).then_some(())
    })
    .await;
    // In the header, and in the body.
    let body = |user: &str, app: &str| json!({ "username": user, "appname": app, "emailaddress": "a@example.com" });
    let answer = ask(&haas, Method::POST, "/provision", Some(&of_alice), Some(&body(&alice, "notes"))).await;
    assert_eq!(answer.status(), 201);
    let mut in_the_body = body(&alice, "todo");
    in_the_body["secret"] = json!(of_alice);
    assert_eq!(ask(&haas, Method::POST, "/provision", None, Some(&in_the_body)).await.status(), 201);

    // Her client may act for Bob. She may not, nor for whoever her client may not act for.
    let tried = async |token: &str, user: &str| {
        problem(ask(&haas, Method::POST, "/provision", Some(token), Some(&body(user, "x"))).await).await
    };
    let forbidden = (403, "forbidden".to_owned());
    assert_eq!(tried(&of_alice, &bob).await, forbidden);
    assert_eq!(tried(&of_alice, &format!("{alice}2")).await, forbidden);
    let of_eve = token("appmaker", &api, "eve").await;
    assert_eq!(tried(&of_eve, "eve").await, forbidden);
    haas.provision("bob", "notes").await;
    let names = async |token: &str| -> Vec<String> {
        let list: Value = ask(&haas, Method::GET, "/instances", Some(token), None).await.json().await.unwrap();
        let rows = list["instances"].as_array().unwrap().clone();
        rows.iter()
            .map(|row| format!("{} {}", row["username"].as_str().unwrap(), row["appname"].as_str().unwrap()))
            .collect()
    };
    assert_eq!(names(&of_alice).await, [format!("{alice} notes"), format!("{alice} todo")]);
    assert_eq!(names(&of_eve).await, Vec::<String>::new());
    assert_eq!(names(&token("appmaker", &api, &bob).await).await, [format!("{bob} notes")]);
    let path = format!("/instances/{bob}/notes");
    assert_eq!(problem(ask(&haas, Method::GET, &path, Some(&of_alice), None).await).await, forbidden);
    let link = json!({ "username": alice, "appname": "notes" });
    let answer = ask(&haas, Method::POST, "/sso", Some(&of_alice), Some(&link)).await;
    assert_eq!(problem(answer).await, forbidden, "a right that its client lacks");

    // For elsewhere, or in another's name.
    for (client, url) in [("appmaker", "https://elsewhere.example"), ("provision", &api)] {
        let answer = ask(&haas, Method::GET, "/instances", Some(&token(client, url, &alice).await), None).await;
        assert_eq!(answer.headers()["www-authenticate"], "Bearer error=\"invalid_token\"");
        assert_eq!(problem(answer).await, (401, "invalid-token".to_owned()));
    }
    let changed = format!("{of_alice}A");
    assert_eq!(problem(ask(&haas, Method::GET, "/instances", Some(&changed), None).await).await.1, "invalid-token");
    assert!(haas.log().contains("a wrong key"), "{}", haas.log());
    // Refusals of tokens are in the log, and no events.
    let (_, events, _) = haas.haas(&["events", "--json"]).await;
    assert!(!events.contains("\"refused\""), "{events}");
    assert!(haas.log().contains(&format!("{alice}, by a token of the client appmaker: sso is refused: forbidden")));

    // Who it was stands in the event; the token stands nowhere.
    let (_, events, _) = haas.haas(&["events", &alice, "notes", "--json"]).await;
    let first: Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    let known = events.lines().any(|line| line.contains("\"key_id\":\"appmaker#2026-11\""));
    assert!(known, "{first}");
    let signature = of_alice.rsplit_once('.').unwrap().1;
    let proxy_log = std::fs::read_to_string(haas.layout.log_dir().join("haproxy.log")).unwrap();
    assert!(!(events + &haas.log() + &proxy_log).contains(signature));

    // Whoever has one may not guess at her client's own key for that, where he was let in.
    put(&haas, "appmaker.own.secret", KEY);
    eventually("it is known", Duration::from_secs(10), || async {
        haas.log().contains("read again: appmaker#2026-11 appmaker.own ").then_some(())
    })
    .await;
    eventually("guesses are refused", Duration::from_mins(1), || async {
        (ask(&haas, Method::GET, "/instances", Some("a guess"), None).await.status() == 429).then_some(())
    })
    .await;
    assert_eq!(ask(&haas, Method::GET, "/instances", Some(&of_alice), None).await.status(), 200);
    assert_eq!(ask(&haas, Method::GET, "/instances", Some(KEY), None).await.status(), 429);
}

#[tokio::test]
async fn keys_of_tokens_are_of_either_kind_and_come_and_go_without_a_restart() {
    let haas = Installation::up().await;
    let (dir, api, user) = (haas.dir.path(), url(&haas, ""), haas.user("alice"));
    let program = "import { generateKeyPairSync, sign } from 'node:crypto'
        import { writeFileSync } from 'node:fs'
        const [kind, aud, sub] = process.argv.slice(2)
        const { publicKey, privateKey } = generateKeyPairSync(kind, { modulusLength: 2048 })
        writeFileSync(`${kind}.jwks`, JSON.stringify({ keys: [{ ...publicKey.export({ format: 'jwk' }), kid: kind }] }))
        const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url')
        const now = Math.floor(Date.now() / 1000)
        const [alg, hash] = kind === 'rsa' ? ['RS256', 'RSA-SHA256'] : ['EdDSA', null]
        const claims = { iss: 'appmaker', aud: [aud], sub, iat: now, exp: now + 300 }
        const text = `${part({ alg, kid: kind })}.${part(claims)}`
        console.log(`${text}.${sign(hash, Buffer.from(text), privateKey).toString('base64url')}`)";
    std::fs::write(dir.join("token.mjs"), program).unwrap();
    let add = async |name: &str, file: &str| {
        let path = dir.join(file);
        haas.haas(&["client", "add", "appmaker", "--key", name, "--jwks", path.to_str().unwrap()]).await
    };
    let status = async |token: &str| ask(&haas, Method::GET, "/instances", Some(token), None).await.status().as_u16();
    let becomes = async |token: &str, wanted: u16| {
        eventually("the keys are read again", Duration::from_secs(10), || async {
            (status(token).await == wanted).then_some(())
        })
        .await;
    };
    let mut tokens = Vec::new();
    for kind in ["rsa", "ed25519"] {
        let token = run("node", &["token.mjs", kind, &api, &user], dir, &[]).await.trim().to_owned();
        let (code, _, errors) = add(kind, &format!("{kind}.jwks")).await;
        assert_eq!(code, 0, "{errors}");
        becomes(&token, 200).await;
        tokens.push(token);
    }
    assert_eq!(status(&tokens[0]).await, 200, "both count");
    let private = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": "AAAA", "d": "AAAA", "kid": "p" }] });
    std::fs::write(dir.join("private.jwks"), private.to_string()).unwrap();
    let (code, _, errors) = add("private", "private.jwks").await;
    assert!(code == 5 && errors.contains("is a private one"), "{code} {errors}");
    assert_eq!(add("rsa", "ed25519.jwks").await.0, 5, "what is there is left as it is");
    assert_ne!(add("more", "nowhere.jwks").await.0, 0);

    assert_eq!(haas.haas(&["client", "remove", "appmaker", "--key", "rsa"]).await.0, 0);
    becomes(&tokens[0], 401).await;
    assert_eq!(status(&tokens[1]).await, 200);
    // Also by hand; and one that the log and `doctor` tell of, once it can't be read.
    put(&haas, "appmaker.ed25519.jwks", "{");
    becomes(&tokens[1], 401).await;
    let (_, doctor, _) = haas.haas(&["doctor"]).await;
    assert!(doctor.contains("appmaker.ed25519.jwks: is no JWK set"), "{doctor}");
    // A secret beside them is another kind, and stays.
    assert_eq!(haas.haas(&["client", "add", "appmaker", "--key", "ed25519"]).await.0, 0);
    assert_eq!(haas.haas(&["client", "remove", "appmaker", "--jwks"]).await.0, 0);
    assert!(!haas.layout.secrets_dir().join("appmaker.ed25519.jwks").exists());
    assert!(haas.layout.secrets_dir().join("appmaker.ed25519.secret").exists());
}

#[tokio::test]
async fn guessing_is_slowed_and_the_good_client_goes_on() {
    let haas = Installation::up_with("[http]\nfailures_per_minute = 5\n").await;
    put(&haas, "appmaker.secret", KEY);
    eventually("the key is known", Duration::from_secs(10), || async {
        (ask(&haas, Method::GET, "/instances", Some(KEY), None).await.status() == 200).then_some(())
    })
    .await;
    let guess = async |n: u32| ask(&haas, Method::GET, "/instances", Some(&format!("guess {n}")), None).await;
    let mut statuses = Vec::new();
    for n in 0..12 {
        let answer = guess(n).await;
        statuses.push(answer.status().as_u16());
        if answer.status() == 429 {
            let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((1..=13).contains(&wait), "{wait}");
            assert_eq!(problem(answer).await.1, "too-many-failures");
        }
    }
    // Some of the five were spent while the key was not known yet.
    assert_eq!(statuses[..2], [401; 2]);
    assert!(statuses[5..].iter().filter(|status| **status == 429).count() >= 6, "{statuses:?}");
    // It was let in from here before.
    assert_eq!(ask(&haas, Method::GET, "/instances", Some(KEY), None).await.status(), 200);
    // Another's right key, from the same place, is not told from a guess; without any, nothing is counted.
    assert_eq!(ask(&haas, Method::GET, "/instances", Some(&haas.secret()), None).await.status(), 429);
    assert_eq!(ask(&haas, Method::GET, "/instances", None, None).await.status(), 401);
    // What a client says of its address does not count: HAProxy's word does.
    let lied =
        haas.client.get(format!("http://127.0.0.1:{}/instances", haas.ports.http)).header("host", "haas.localhost");
    let lied = lied.header("x-forwarded-for", "192.0.2.77").bearer_auth("a guess").send().await.unwrap();
    assert_eq!(lied.status(), 429);
    assert!(haas.log().contains("a wrong key"), "{}", haas.log());
}

#[tokio::test]
async fn clients_are_made_and_removed_by_command() {
    let haas = Installation::up().await;
    let team = haas.user("team");
    let add = ["client", "add", "partner", "--right", "read", "--user", &format!("{team}*")];
    let (code, path, errors) = haas.haas(&add).await;
    assert_eq!(code, 0, "{errors}");
    let path = std::path::PathBuf::from(path.trim());
    let key = std::fs::read_to_string(&path).unwrap().trim().to_owned();
    for file in [path, haas.layout.secrets_dir().join("partner.toml")] {
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    let status = async || ask(&haas, Method::GET, "/instances", Some(&key), None).await.status().as_u16();
    eventually("the client is let in", Duration::from_secs(10), || async { (status().await == 200).then_some(()) })
        .await;
    let body = json!({ "username": team, "appname": "notes", "emailaddress": "a@example.com" });
    assert_eq!(ask(&haas, Method::POST, "/provision", Some(&key), Some(&body)).await.status(), 403);
    assert_eq!(haas.haas(&add).await.0, 5, "what is there is left as it is");
    assert_eq!(haas.haas(&["client", "add", "partner", "--key", "second"]).await.0, 0);
    let (_, list, _) = haas.haas(&["client", "list"]).await;
    assert!(
        list.lines().any(|line| line.split_whitespace().eq(["partner", "partner.second", "read", &format!("{team}*")])),
        "{list}"
    );
    assert!(!list.contains(&key));
    for wrong in ["../x", "a.b", "", "a b"] {
        assert_ne!(haas.haas(&["client", "add", wrong]).await.0, 0, "{wrong:?}");
    }
    assert_eq!(haas.haas(&["client", "add", "x", "--right", "fly"]).await.0, 2);
    assert_eq!(haas.haas(&["client", "remove", "partner", "--key", "second"]).await.0, 0);
    assert_eq!(haas.haas(&["client", "remove", "nobody"]).await.0, 4);
    assert_eq!(haas.haas(&["client", "remove", "partner"]).await.0, 0);
    eventually("the client is let in no more", Duration::from_secs(10), || async {
        (status().await == 401).then_some(())
    })
    .await;
    let (_, events, _) = haas.haas(&["events", "--json"]).await;
    assert!(events.contains("client added") && events.contains("client removed") && !events.contains(&key), "{events}");
}
