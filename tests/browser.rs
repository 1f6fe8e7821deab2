//! A page in a real browser uses a provisioned Hoodie. What the page does is in `browser/`.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::installation::{Installation, docker};

/// The script gives up by itself before that, and says where it was.
const LIMIT: Duration = Duration::from_mins(3);

/// A tag of this test's own, which can be moved to another image.
struct Image(String);

impl Image {
    async fn tag(name: String) -> Self {
        docker(&["tag", "haas/hoodie:28.2.10", &name]).await;
        Self(name)
    }

    /// From now on it is an image whose program never answers.
    async fn silence(&self) {
        let context = tempfile::tempdir().unwrap();
        let dockerfile = "FROM haas/hoodie:28.2.10\nENTRYPOINT [\"node\", \"-e\", \"setInterval(() => {}, 1000)\"]\n";
        std::fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
        docker(&["build", "-q", "-t", &self.0, &context.path().display().to_string()]).await;
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        std::process::Command::new("docker").args(["rmi", "-f", &self.0]).output().ok();
    }
}

/// Runs the script. Its browsers end with it, also when it is killed because this is dropped.
async fn page(arguments: &[&str]) -> Output {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    assert!(folder.join("node_modules").exists(), "first: npm ci --prefix tests/browser (scripts/test does it)");
    let mut command = tokio::process::Command::new("node");
    command.arg(folder.join("run.mjs")).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    tokio::time::timeout(LIMIT, command.output()).await.expect("the script ends in time").unwrap()
}

#[tokio::test]
async fn a_page_signs_up_stores_and_syncs_from_its_own_origin_and_from_another() {
    let image = Image::tag(format!("{}-hoodie", support::unique())).await;
    // Above what the page itself asks for, and soon reached by a loop.
    let settings = format!(
        "[tenant]\nimage = \"{}\"\n[haproxy]\napp_request_rate = 40\n[lifecycle]\nwake_timeout = \"5s\"",
        image.0
    );
    let mut haas = Installation::prepared(&settings);
    haas.https = Some(haas.ports.spare);
    haas.start().await;

    haas.provision("alice", "notes").await;
    haas.provision("alice", "busy").await;
    haas.provision("alice", "sleeper").await;
    haas.order("sleep", "alice", "sleeper").await;
    image.silence().await;
    let url = format!("http://127.0.0.1:{}/provision", haas.ports.http);
    let request = haas.client.post(url).header("host", "haas.localhost").header("prefer", "respond-async");
    let answer = request.json(&haas.request("alice", "late")).send().await.unwrap();
    assert_eq!(answer.status(), 202);

    let endpoint = haas.instance("alice", "notes").await["endpoint"].as_str().unwrap().to_owned();
    let at = |app: &str| endpoint.replacen("://notes.", &format!("://{app}."), 1);
    let (missing, late) = (format!("404={}", at("nobody")), format!("503={}", at("late")));
    let busy = format!("429={}", at("busy"));
    let sleeper = format!("401={}account/api/session", at("sleeper"));
    let work = haas.dir.path().join("browser").display().to_string();
    let ca = haas.layout.dir().join("tls/ca.pem").display().to_string();
    let mut arguments = vec!["--endpoint", &endpoint, "--work", &work, "--screenshots", env!("CARGO_TARGET_TMPDIR")];
    arguments.extend(["--wake", &sleeper, "--answer", &missing, "--answer", &late, "--hammer", &busy]);
    assert!(endpoint.starts_with("https://"), "{endpoint}");
    arguments.extend(["--ca", &ca]);
    let output = page(&arguments).await;
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}\n{told}", String::from_utf8_lossy(&output.stderr));
    let seen: Value = serde_json::from_str(&told).unwrap();

    assert_eq!(seen["untrusted"], "net::ERR_CERT_AUTHORITY_INVALID", "a browser that was not told to trust the CA");
    let origin = |url: &Value| url::Url::parse(url.as_str().unwrap()).unwrap().origin();
    for from in ["own", "other"] {
        let flow = &seen[from];
        assert_eq!(origin(&flow["page"]) == origin(&endpoint.as_str().into()), from == "own", "{flow}");
        assert_eq!(origin(&flow["hoodie"]), origin(&endpoint.as_str().into()), "{flow}");
        assert_eq!(flow["signedUp"]["id"], flow["signedIn"]["id"], "{flow}");
        assert_eq!(flow["synced"]["_id"], flow["stored"]["_id"], "{flow}");
        assert_eq!(flow["synced"]["_rev"], flow["stored"]["_rev"], "{flow}");
        assert_eq!(flow["syncedBack"]["text"], format!("from {from}, second profile"), "{flow}");
    }
    let kinds = ["no-such-app", "not-ready", "too-many-requests"];
    let (woken, refused) = seen["answers"].as_array().unwrap().split_first().unwrap();
    assert_eq!(woken["status"], 401, "its Hoodie has answered, slowly");
    assert_eq!(haas.instance("alice", "sleeper").await["state"], "running");
    assert_eq!(refused.len(), kinds.len());
    for (answer, kind) in refused.iter().zip(kinds) {
        for way in ["plain", "preflighted"] {
            assert_eq!(answer[way]["problem"]["type"], format!("urn:haas:problem:{kind}"), "{answer}");
        }
    }
}

#[tokio::test]
async fn an_owner_opens_a_link_and_is_on_the_dashboard_signed_in() {
    let mut haas = Installation::prepared("");
    haas.https = Some(haas.ports.spare);
    haas.start().await;
    haas.provision("alice", "notes").await;
    haas.order("sleep", "alice", "notes").await;
    let endpoint = haas.instance("alice", "notes").await["endpoint"].as_str().unwrap().to_owned();
    let (code, link, errors) = haas.haas(&["sso", &haas.user("alice"), "notes"]).await;
    assert_eq!(code, 0, "{errors}");
    let work = haas.dir.path().join("browser").display().to_string();
    let ca = haas.layout.dir().join("tls/ca.pem").display().to_string();
    let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join("admin-dashboard.png");
    std::fs::remove_file(&picture).ok();
    let mut arguments = vec!["--endpoint", &endpoint, "--work", &work, "--screenshots", env!("CARGO_TARGET_TMPDIR")];
    let shown = picture.display().to_string();
    arguments.extend(["--ca", &ca, "--sign-on", link.trim(), "--picture", &shown]);
    let output = page(&arguments).await;
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}\n{told}", String::from_utf8_lossy(&output.stderr));
    let seen: Value = serde_json::from_str(&told).unwrap();
    let owner = &seen["owner"];
    let text = owner["text"].as_str().unwrap();
    assert!(
        text.contains("Hello, admin!") && text.contains("Sign out") && text.contains("Here are the accounts"),
        "{text}"
    );
    assert_eq!(owner["url"], endpoint.replace("/hoodie/", "/hoodie/admin/"));
    assert_eq!(owner["kept"]["username"], "admin");
    let users = &owner["accounts"];
    assert_eq!((&users["status"], &users["usernames"][0]), (&200.into(), &"carol@example.com".into()), "{users}");
    assert_eq!(owner["history"], 2, "the empty page and the dashboard: the link is not left behind");
    assert_eq!(
        (&owner["referrer"], &owner["leaks"]),
        (&"".into(), &serde_json::json!([])),
        "nothing learns of the token"
    );
    assert_eq!(owner["again"]["status"], 403);
    assert!(owner["again"]["text"].as_str().unwrap().starts_with("This link does not sign you on"), "{owner}");
    assert!(std::fs::metadata(&picture).unwrap().len() > 1000);
}
