//! Bounds on changes, on a whole installation: no client and no bearer of a token fills the events,
//! and none keeps another from its own changes.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use reqwest::{Method, Response};
use serde_json::{Value, json};
use support::eventually;
use support::installation::{Installation, printed};

/// Of one app, and of one client.
const PER_APP: u32 = 6;
const PER_MINUTE: u32 = 30;

async fn ask(haas: &Installation, method: Method, path: &str, key: &str, body: &Value) -> Response {
    let request = haas.client.request(method, format!("http://127.0.0.1:{}{path}", haas.ports.http));
    request.header("host", "haas.localhost").bearer_auth(key).json(body).send().await.unwrap()
}

/// The example that docs/api.md marks with these words.
fn example(what: &str) -> String {
    let docs = include_str!("../docs/api.md");
    let marked = docs.split(&format!("<!-- {what} -->")).nth(1).unwrap();
    marked.split("```").nth(1).unwrap().split_once('\n').unwrap().1.to_owned()
}

/// A client with a key and the keys for tokens, and a token of its for this user.
async fn client_and_token(haas: &Installation, user: &str) -> (String, String) {
    let dir = haas.dir.path();
    std::fs::write(dir.join("keys.sh"), example("token: keys")).unwrap();
    std::fs::write(dir.join("token.mjs"), example("token: javascript")).unwrap();
    std::fs::write(
        dir.join("main.mjs"),
        "import { readFileSync } from 'node:fs'
         import { token } from './token.mjs'
         const [url, username] = process.argv.slice(2)
         console.log(token(readFileSync('appmaker.pem'), '2026-11', 'appmaker', url, username))",
    )
    .unwrap();
    printed(tokio::process::Command::new("bash").args(["-eu", "keys.sh"]).current_dir(dir)).await;
    let (code, path, errors) = haas.haas(&["client", "add", "appmaker"]).await;
    assert_eq!(code, 0, "{errors}");
    let key = std::fs::read_to_string(path.trim()).unwrap().trim().to_owned();
    let jwks = dir.join("appmaker.jwks");
    let (code, _, errors) = haas.haas(&["client", "add", "appmaker", "--jwks", jwks.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{errors}");
    let url = format!("http://haas.localhost:{}", haas.ports.http);
    let token = printed(tokio::process::Command::new("node").args(["main.mjs", &url, user]).current_dir(dir)).await;
    let token = token.trim().to_owned();
    for shown in [&key, &token] {
        eventually("its keys are known", Duration::from_secs(10), || async {
            (ask(haas, Method::GET, "/instances", shown, &json!({})).await.status() == 200).then_some(())
        })
        .await;
    }
    (key, token)
}

/// Events of one client, or of one client's about one app.
async fn events(haas: &Installation, client: &str, of: &str) -> u32 {
    let statement = format!("SELECT count(*) FROM events WHERE client_id = '{client}' AND {of}");
    haas.sql(&statement).await.parse().unwrap()
}

/// So many may have been written: what is allowed at once, and what has become possible since.
fn most(bound: u32, began: Instant) -> u32 {
    bound + u32::try_from(began.elapsed().as_millis()).unwrap() * bound / 60_000 + 1
}

#[tokio::test]
async fn a_tokens_bearer_writes_so_many_events_and_its_client_goes_on() {
    let settings = format!("[http]\nchanges_per_app = {PER_APP}\nchanges_per_minute = {PER_MINUTE}\n");
    let haas = Installation::up_with(&settings).await;
    let user = haas.user("alice");
    let (key, token) = client_and_token(&haas, &user).await;
    let body = |app: &str, email: &str| json!({ "username": user, "appname": app, "emailaddress": email });
    let of_notes = format!("username = '{user}' AND appname = 'notes'");
    let began = Instant::now();
    assert_eq!(ask(&haas, Method::POST, "/provision", &token, &body("notes", "a0@example.com")).await.status(), 201);

    let (mut statuses, mut email) = (Vec::new(), "a0@example.com".to_owned());
    for n in 1..=40 {
        let next = format!("a{n}@example.com");
        let answer = ask(&haas, Method::POST, "/provision", &token, &body("notes", &next)).await;
        statuses.push(answer.status().as_u16());
        if answer.status() == 200 {
            email = next;
            continue;
        }
        assert_eq!(answer.status(), 429);
        let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=11).contains(&wait), "{wait}");
        let document: Value = answer.json().await.unwrap();
        assert_eq!(document["type"], "urn:haas:problem:too-many-changes");
        let words = format!("one app may be changed {PER_APP} times a minute; the next one is possible in {wait} s");
        assert_eq!(document["detail"], words);
    }
    assert_eq!(statuses[0], 200, "{statuses:?}");
    let written = events(&haas, "appmaker", &of_notes).await;
    assert!((PER_APP..=most(PER_APP, began)).contains(&written), "{written} events: {statuses:?}");

    // What changes nothing is never refused; bad input gets its 422 as ever.
    for _ in 0..20 {
        let answer = ask(&haas, Method::POST, "/provision", &token, &body("notes", &email)).await;
        assert_eq!(answer.status(), 200);
    }
    let wrong = ask(&haas, Method::POST, "/provision", &token, &body("notes", "no address")).await;
    assert_eq!(wrong.status(), 422);
    // Every way to change it has the one bound; a change is whole or not at all.
    for n in 0..PER_APP {
        let hosts = json!({ "hosts": (0..16).map(|at| format!("h{at}.n{n}.example.org")).collect::<Vec<_>>() });
        ask(&haas, Method::PUT, &format!("/instances/{user}/notes/hosts"), &token, &hosts).await;
        ask(&haas, Method::POST, "/sso", &token, &json!({ "username": user, "appname": "notes" })).await;
    }
    let hosts = haas.instance("alice", "notes").await["extra_hosts"].as_array().map_or(0, Vec::len);
    assert!(hosts == 0 || hosts == 16, "{hosts}");
    let written = events(&haas, "appmaker", &of_notes).await;
    assert!(written <= most(PER_APP, began) + 15, "{written} events");
    // Another app of hers has its own bound, up to what she may change in all.
    for n in 0..PER_APP * 4 {
        let body = body("todo", &format!("a{n}@example.com"));
        let request = haas.client.post(format!("http://127.0.0.1:{}/provision", haas.ports.http));
        let request = request.header("host", "haas.localhost").header("prefer", "respond-async");
        let answer = request.bearer_auth(&token).json(&body).send().await.unwrap();
        assert!([200, 202, 429].contains(&answer.status().as_u16()), "{}", answer.status());
    }
    let written = events(&haas, "appmaker", "true").await;
    assert!(written <= most(2 * PER_APP, began) + 15, "{written} events");

    // None of that is her client's, nor another one's.
    haas.provision("bob", "notes").await;
    let answer = ask(&haas, Method::POST, "/deprovision", &key, &json!({ "username": user, "appname": "notes" })).await;
    assert_eq!(answer.status(), 200, "{}", haas.log());
}

#[tokio::test]
async fn refusals_are_events_up_to_the_bound_and_then_in_the_log() {
    let haas = Installation::up_with(&format!("[http]\nchanges_per_minute = {PER_MINUTE}\n")).await;
    let (code, path, errors) = haas.haas(&["client", "add", "reader", "--right", "read"]).await;
    assert_eq!(code, 0, "{errors}");
    let key = std::fs::read_to_string(path.trim()).unwrap().trim().to_owned();
    eventually("its key is known", Duration::from_secs(10), || async {
        (ask(&haas, Method::GET, "/instances", &key, &json!({})).await.status() == 200).then_some(())
    })
    .await;
    let body = json!({ "username": haas.user("alice"), "appname": "notes", "emailaddress": "a@example.com" });
    let began = Instant::now();
    for _ in 0..3 * PER_MINUTE {
        assert_eq!(ask(&haas, Method::POST, "/provision", &key, &body).await.status(), 403);
    }
    let written = events(&haas, "reader", "outcome = 'refused'").await;
    assert!((PER_MINUTE..=most(PER_MINUTE, began)).contains(&written), "{written}");
    let logged = "the client reader: provision is refused: forbidden; that is not written: a client may make";
    assert!(haas.log().contains(logged), "{}", haas.log());
}
