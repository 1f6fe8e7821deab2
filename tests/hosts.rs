//! Custom domains, and a change of the host pattern, on the real parts.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use reqwest::Response;
use serde_json::{Value, json};
use support::eventually;
use support::hoodie::{Hoodie, client};
use support::installation::Installation;

/// A reload that is under way comes first.
const MOMENT: Duration = Duration::from_secs(5);

async fn put(haas: &Installation, path: &str, body: &Value) -> (u16, Value) {
    let answer = send(haas, path, &haas.secret(), body).await;
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn send(haas: &Installation, path: &str, secret: &str, body: &Value) -> Response {
    let url = format!("http://127.0.0.1:{}/instances/{path}/hosts", haas.ports.http);
    let request = haas.client.put(url).header("host", "haas.localhost").bearer_auth(secret);
    request.json(body).send().await.unwrap()
}

fn at(haas: &Installation, host: &str) -> Hoodie {
    Hoodie { client: client(), host: host.to_owned(), port: haas.ports.http }
}

async fn answers(hoodie: &Hoodie, status: u16) {
    eventually(&format!("{} answers {status}", hoodie.host), MOMENT, || async {
        (hoodie.get("/hoodie/").await.unwrap().status() == status).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_custom_domain_reaches_its_app_and_no_other() {
    let haas = Installation::up().await;
    let (alice, bob) = (haas.provision("alice", "notes").await, haas.provision("bob", "notes").await);
    alice.sign_up("alice").await;
    bob.sign_up("bob").await;
    let of = |user: &str| format!("{}/notes", haas.user(user));
    let extra = at(&haas, "www.example.localhost");
    answers(&extra, 404).await;

    let (status, body) = put(&haas, &of("alice"), &json!({ "hosts": ["WWW.example.localhost"] })).await;
    let answered = Instant::now();
    assert_eq!((status, &body["extra_hosts"]), (200, &json!(["www.example.localhost"])), "{body}");
    answers(&extra, 200).await;
    eprintln!("live {:?} after the answer", answered.elapsed());
    assert!(extra.knows("alice").await && !extra.knows("bob").await);
    for host in ["WWW.Example.localhost", "www.example.localhost.", "www.example.localhost:1"] {
        assert!(at(&haas, host).knows("alice").await, "{host}");
    }
    assert!(alice.knows("alice").await);
    assert_eq!(haas.instance("alice", "notes").await["extra_hosts"], json!(["www.example.localhost"]));

    // What won't do changes nothing.
    let (status, body) =
        put(&haas, &of("bob"), &json!({ "hosts": ["blog.example.org", "www.example.localhost"] })).await;
    assert_eq!((status, &body["type"]), (409, &json!("urn:haas:problem:name-taken")));
    let bad = json!({ "hosts": ["blog.example.org", "*.example.org", 7, "haas.localhost", "x.haas.localhost", "::1"] });
    let (status, body) = put(&haas, &of("bob"), &bad).await;
    let fields: Vec<&str> = body["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap()).collect();
    assert_eq!((status, fields), (422, vec!["hosts[1]", "hosts[2]", "hosts[3]", "hosts[4]", "hosts[5]"]));
    for (body, expected) in [
        (json!({}), 422),
        (json!({ "hosts": "www.example.org" }), 422),
        (json!({ "hosts": vec!["x.example"; 17] }), 422),
        (json!({ "hosts": [], "host": "x" }), 400),
        (json!([]), 400),
    ] {
        assert_eq!(put(&haas, &of("bob"), &body).await.0, expected, "{body}");
    }
    assert_eq!(put(&haas, "nobody/notes", &json!({ "hosts": [] })).await.0, 404);
    assert_eq!(put(&haas, "-/notes", &json!({ "hosts": [] })).await.0, 404);
    assert_eq!(send(&haas, &of("bob"), "wrong", &json!({ "hosts": [] })).await.status(), 401);
    let answer = haas.control(&format!("/instances/{}/hosts", of("bob"))).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["allow"]), (405, &"PUT".parse().unwrap()));
    assert_eq!(haas.instance("bob", "notes").await["extra_hosts"], json!([]));

    // By commands; a connection that was kept alive learns of it, too.
    let (alice_name, bob_name) = (haas.user("alice"), haas.user("bob"));
    let host = async |verb: &str, user: &str, host: &str| haas.haas(&["host", verb, user, "notes", host]).await;
    assert_eq!(host("add", &bob_name, "www.example.localhost").await.0, 5);
    assert_eq!(host("add", &bob_name, "x.haas.localhost").await.0, 5);
    assert_eq!(host("add", "nobody", "x.example.org").await.0, 4);
    let (code, out, _) = host("remove", &alice_name, "www.example.localhost").await;
    assert_eq!((code, out.matches("www").count()), (0, 0), "{out}");
    answers(&extra, 404).await;
    assert!(alice.answers().await);
    let (code, out, _) = host("add", &bob_name, "www.example.localhost").await;
    assert!(code == 0 && out.contains(", www.example.localhost"), "{out}");
    answers(&extra, 200).await;
    assert!(extra.knows("bob").await && !extra.knows("alice").await);
    let (_, out, _) = haas.haas(&["show", &bob_name, "notes"]).await;
    assert!(out.contains("extra hosts www.example.localhost"), "{out}");
    let (_, out, _) = haas.haas(&["routes", "--json"]).await;
    let routes: Value = serde_json::from_str(&out).unwrap();
    let live: Vec<&Value> = routes.as_array().unwrap().iter().filter(|row| row["standing"] == "live").collect();
    assert_eq!(live.len(), 3, "{out}");

    // It goes with its app, to whoever comes first.
    assert_eq!(haas.deprovision("bob", "notes").await.0, 200);
    answers(&extra, 404).await;
    assert_eq!(host("add", &alice_name, "www.example.localhost").await.0, 0);
    let bob = haas.provision("bob", "notes").await;
    assert!(bob.knows("bob").await, "its data is there");
    assert_eq!(haas.instance("bob", "notes").await["extra_hosts"], json!([]));
    assert!(extra.knows("alice").await && !extra.knows("bob").await);
}

#[tokio::test]
async fn a_new_pattern_moves_every_host_in_one_step() {
    let pattern = |pattern: &str| format!("[installation]\nhost_pattern = \"{pattern}\"\n");
    let mut haas = Installation::up_with(&pattern("{app}.{user}.{domain}")).await;
    let nested = haas.provision("alice", "notes").await;
    nested.sign_up("carol").await;
    haas.provision("bob", "todo").await;
    let containers = haas.containers().await;
    let extra = at(&haas, "www.example.localhost");
    let name = haas.user("alice");
    assert_eq!(haas.haas(&["host", "add", &name, "notes", &extra.host]).await.0, 0);
    assert_eq!(haas.haas(&["rehost"]).await.1.trim(), "every host is as the domain and the pattern have it");

    haas.stop().await;
    std::fs::write(haas.dir.path().join("haas.toml"), pattern("{app}--{user}.{domain}")).unwrap();
    haas.start().await;
    answers(&nested, 200).await;
    let flat = at(&haas, &format!("notes--{name}.haas.localhost"));
    let (code, out, _) = haas.haas(&["doctor"]).await;
    assert!(code == 0 && out.contains("WARNING  hosts") && out.contains("haas rehost"), "{out}");
    let (code, out, errors) = haas.haas(&["rehost", "--dry-run"]).await;
    assert_eq!(code, 0, "{errors}");
    assert!(out.contains(&nested.host) && out.contains(&flat.host) && out.contains("2 host(s) would be"), "{out}");
    answers(&flat, 404).await;
    assert!(nested.knows("carol").await);

    let (code, out, errors) = haas.haas(&["rehost"]).await;
    assert!(code == 0 && out.contains("2 host(s) changed"), "{out}{errors}");
    let changed = Instant::now();
    answers(&flat, 200).await;
    eprintln!("live {:?} after the command", changed.elapsed());
    answers(&nested, 404).await;
    assert!(flat.knows("carol").await && extra.knows("carol").await);
    assert_eq!(haas.containers().await, containers, "no container was made anew");
    let shown = haas.instance("alice", "notes").await;
    assert_eq!((&shown["host"], &shown["state"]), (&json!(flat.host), &json!("running")));
    assert_eq!(haas.haas(&["deprovision", &name, "notes"]).await.0, 0);
    answers(&flat, 404).await;
    answers(&extra, 404).await;
    let (code, out, _) = haas.haas(&["doctor"]).await;
    assert!(code == 0 && !out.contains("hosts "), "{out}");
}

#[tokio::test]
async fn a_domain_that_was_an_apps_own_is_the_control_apis_at_once() {
    let domain = |domain: &str| format!("[installation]\ndomain = \"{domain}\"\n");
    let mut haas = Installation::up_with(&domain("haas.localhost")).await;
    let old = haas.provision("alice", "notes").await;
    old.sign_up("carol").await;
    let (name, extra) = (haas.user("alice"), at(&haas, "example.localhost"));
    assert_eq!(haas.haas(&["host", "add", &name, "notes", &extra.host]).await.0, 0);
    answers(&extra, 200).await;

    haas.stop().await;
    std::fs::write(haas.dir.path().join("haas.toml"), domain("example.localhost")).unwrap();
    haas.spawn();
    eventually("the control API has moved", Duration::from_secs(60), || async {
        let answer = extra.get("/readyz").await.ok()?;
        (answer.status() == 200).then_some(())
    })
    .await;
    for _ in 0..20 {
        let answer = extra.get("/hoodie/").await.unwrap();
        assert_eq!(answer.json::<Value>().await.unwrap()["type"], "urn:haas:problem:no-such-path");
    }
    assert!(old.knows("carol").await, "the old hosts go on");
    let (code, _, errors) = haas.haas(&["rehost"]).await;
    assert!(code == 5 && errors.contains("nothing was changed"), "{errors}");
    let (code, out, _) = haas.haas(&["doctor"]).await;
    assert!(code == 0 && out.contains(&format!("haas host remove {name} notes {}", extra.host)), "{out}");
    assert_eq!(haas.haas(&["host", "remove", &name, "notes", &extra.host]).await.0, 0);
    assert_eq!(haas.haas(&["rehost"]).await.0, 0);
    let new = at(&haas, &format!("notes.{name}.example.localhost"));
    answers(&new, 200).await;
    assert!(new.knows("carol").await);
    answers(&old, 404).await;
}
