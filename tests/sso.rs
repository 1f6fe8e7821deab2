//! The owner's sign-on: links that are good once, and the path that no app has. On the real engine,
//! database and proxy.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use support::echo::echo_image;
use support::eventually;
use support::hoodie::Hoodie;
use support::image::Image;
use support::installation::Installation;
use support::sign_on::{asked_for, assert_strict, is_admin, link, open, opening, refusal, session, signed_on};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_mins(1);

#[tokio::test]
async fn a_known_party_gets_a_link_and_nobody_else_does() {
    let haas = Installation::up().await;
    let provisioned = haas.post("/provision", &haas.request("alice", "notes")).await.unwrap();
    assert_eq!(provisioned.status(), 201);
    let origin = format!("http://haas.localhost:{}", haas.ports.http);
    let sso_url = provisioned.json::<Value>().await.unwrap()["sso_url"].clone();
    assert_eq!(sso_url, format!("{origin}/sso"));
    let again: Value = haas.post("/provision", &haas.request("alice", "notes")).await.unwrap().json().await.unwrap();
    assert_eq!(again["sso_url"], sso_url);
    haas.provision("bob", "notes").await;
    haas.deprovision("bob", "notes").await;

    let before = chrono::Utc::now();
    let answer = haas.post("/sso", &asked_for(&haas, "alice", "notes")).await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["cache-control"]),
        (StatusCode::CREATED, &"no-store".parse().unwrap())
    );
    let body: Value = answer.json().await.unwrap();
    let (url, expires_at) = (body["url"].as_str().unwrap(), body["expires_at"].as_str().unwrap());
    assert_eq!(body.as_object().unwrap().len(), 2);
    let token = url.strip_prefix(&format!(
        "http://notes.{}.haas.localhost:{}/.haas/sso?token=",
        haas.user("alice"),
        haas.ports.http
    ));
    let token = token.unwrap();
    assert!(token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "256 bits");
    let left = chrono::DateTime::parse_from_rfc3339(expires_at).unwrap().to_utc() - before;
    assert!((55..=65).contains(&left.num_seconds()), "{left}");

    // Forms do as well; two links are two tokens.
    let form = format!("secret={}&username={}&appname=Notes", haas.secret(), haas.user("ALICE"));
    let url = format!("http://127.0.0.1:{}/sso", haas.ports.http);
    let post = || haas.client.post(&url).header("host", "haas.localhost");
    let answer = post().header("content-type", "application/x-www-form-urlencoded").body(form).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    assert!(!answer.text().await.unwrap().contains(token));

    let issued = "SELECT count(*) FROM sign_on_tokens";
    assert_eq!(haas.sql(issued).await, "2");
    let refused = async |change: Value, status: u16, kind: &str| {
        let mut body = asked_for(&haas, "alice", "notes");
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let answer = haas.post("/sso", &body).await.unwrap();
        assert_eq!(answer.status(), status, "{change}");
        assert_eq!(answer.json::<Value>().await.unwrap()["type"], format!("urn:haas:problem:{kind}"), "{change}");
    };
    refused(json!({ "secret": "wrong" }), 401, "invalid-secret").await;
    refused(json!({ "secret": null, "username": "-" }), 401, "invalid-secret").await;
    refused(json!({ "username": haas.user("nobody") }), 404, "no-such-instance").await;
    refused(json!({ "username": haas.user("bob") }), 404, "no-such-instance").await;
    refused(json!({ "username": "-", "appname": 7 }), 422, "invalid-fields").await;
    refused(json!({ "redirect": "/" }), 400, "unknown-field").await;
    assert_eq!(post().body("x").send().await.unwrap().status(), 415);
    let answer = haas.control("/sso").await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["allow"]),
        (StatusCode::METHOD_NOT_ALLOWED, &"POST".parse().unwrap())
    );
    assert_eq!(haas.sql(issued).await, "2", "whatever is refused makes none");

    // The command prints the link alone, for a pipe.
    let (code, out, errors) = haas.haas(&["sso", &haas.user("alice"), "notes"]).await;
    assert_eq!((code, errors.as_str()), (0, ""));
    let printed = out.strip_suffix('\n').unwrap().to_owned();
    assert!(printed.starts_with("http://notes.") && !printed.contains(char::is_whitespace), "{out:?}");
    for (user, expected) in [("nobody", 4), ("bob", 5)] {
        for command in ["sso", "rotate"] {
            let (code, out, errors) = haas.haas(&[command, &haas.user(user), "notes"]).await;
            assert_eq!((code, out.as_str()), (expected, ""), "{command} {user}: {errors}");
        }
    }
    let (code, _, errors) = haas.haas(&["sso", "-", "notes"]).await;
    assert_eq!(code, 5, "{errors}");

    // Nowhere but in the link: not in the database, nor in any log, also once it was opened.
    let hoodie = haas.hoodie("alice", "notes");
    assert!(is_admin(&hoodie, &session(open(&hoodie, &printed).await).await).await);
    open(&hoodie, &printed).await;
    let printed = printed.rsplit_once('=').unwrap().1.to_owned();
    let everything = haas.sql("SELECT string_agg(t::text, ' ') FROM sign_on_tokens AS t").await
        + &haas.sql("SELECT string_agg(e::text, ' ') FROM events AS e").await
        + &haas.log()
        + &std::fs::read_to_string(haas.layout.log_dir().join("haproxy.log")).unwrap();
    assert!(everything.contains("sign-on issued") && everything.contains("sign-on redeemed"));
    assert!(everything.contains("/readyz"), "our own log is there");
    assert!(!everything.contains(token) && !everything.contains(&printed) && !everything.contains("token="));
    assert!(!everything.contains(&haas.secret()));
}

#[tokio::test]
async fn a_link_is_good_once_in_time_and_at_its_own_app() {
    let haas = Installation::up().await;
    let (hoodie, other) = (haas.provision("alice", "notes").await, haas.provision("bob", "notes").await);
    let refused = async |hoodie: &Hoodie, link: &str| {
        let seen = refusal(open(hoodie, link).await).await;
        assert_eq!(seen.0, StatusCode::FORBIDDEN);
        assert!(seen.2.contains("Ask for a new one"), "{}", seen.2);
        seen
    };

    // Another app's owner can't use it, nor use it up; nor can whoever only looks at it.
    let good = link(&haas, "alice", "notes").await;
    let foreign = refused(&other, &good).await;
    for (method, expected) in [("HEAD", 405), ("POST", 405), ("PUT", 405), ("OPTIONS", 405), ("PROPFIND", 405)] {
        let answer = opening(&hoodie, Method::from_bytes(method.as_bytes()).unwrap(), &good).send().await.unwrap();
        assert_strict(&answer);
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["allow"]),
            (expected, &"GET".parse().unwrap()),
            "{method}"
        );
    }
    for (name, value) in [("sec-purpose", "prefetch;prerender"), ("purpose", "Prefetch"), ("x-moz", "prefetch")] {
        let answer = opening(&hoodie, Method::GET, &good).header(name, value).send().await.unwrap();
        assert_strict(&answer);
        assert_eq!(answer.status(), 503, "{name}");
    }
    assert!(is_admin(&hoodie, &session(open(&hoodie, &good).await).await).await, "it is still good");
    let used = refused(&hoodie, &good).await;

    let late = link(&haas, "alice", "notes").await;
    haas.sql("UPDATE sign_on_tokens SET expires_at = now()").await;
    let expired = refused(&hoodie, &late).await;
    let forged = refused(&hoodie, &format!("http://x/.haas/sso?token={}", "0".repeat(64))).await;
    let mut seen = vec![foreign, used, expired, forged];
    for query in
        ["token=", "token=x", "t=1", &format!("token={}'--", "0".repeat(61)), &format!("token={}", "0".repeat(4000))]
    {
        seen.push(refused(&hoodie, &format!("http://x/.haas/sso?{query}")).await);
    }
    seen.dedup();
    assert_eq!(seen.len(), 1, "nobody learns what is wrong with a link: {seen:?}");
    // Those that nobody opened are gone with the next one.
    let good = link(&haas, "alice", "notes").await;
    assert_eq!(haas.sql("SELECT count(*) FROM sign_on_tokens").await, "1");

    // Whoever comes first, and nobody else.
    let answers = futures_util::future::join_all((0..8).map(|_| open(&hoodie, &good))).await;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status().as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 403, 403, 403, 403, 403, 403, 403]);

    // At a custom domain of the app as well; the session is of that origin then.
    let custom = format!("www.{}.example", haas.word);
    let (code, _, errors) = haas.haas(&["host", "add", &haas.user("alice"), "notes", &custom]).await;
    assert_eq!(code, 0, "{errors}");
    let at_custom = Hoodie { host: custom, ..hoodie.clone() };
    eventually("its domain leads to it", LIMIT, || async { at_custom.answers().await.then_some(()) }).await;
    let good = link(&haas, "alice", "notes").await;
    assert!(is_admin(&at_custom, &session(open(&at_custom, &good).await).await).await);

    // With its app it ends; and the app that comes back is not the one that it was made for.
    let good = link(&haas, "alice", "notes").await;
    assert_eq!(haas.deprovision("alice", "notes").await.0, 200);
    assert_eq!(refused(&hoodie, &good).await.2, seen[0].2);
    haas.provision("alice", "notes").await;
    refused(&hoodie, &good).await;
    let nobody = haas.hoodie("nobody", "nothing");
    refused(&nobody, &good).await;
    let redeemed = "SELECT count(*) FROM events WHERE kind = 'sign-on redeemed'";
    assert_eq!(haas.sql(redeemed).await, "3", "each success is told of, and no refusal took a link");
}

#[tokio::test]
async fn an_app_that_rests_wakes_up_for_its_owner_alone() {
    let haas = Installation::up().await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    let good = link(&haas, "alice", "notes").await;
    let began = Instant::now();
    session(open(&hoodie, &good).await).await;
    println!("signed on to one that is awake in {:?}", began.elapsed());
    for (order, state) in [("sleep", "asleep"), ("archive", "archived")] {
        haas.order(order, "alice", "notes").await;
        let good = link(&haas, "alice", "notes").await;
        let forged = format!("http://x/.haas/sso?token={}", "0".repeat(64));
        assert_eq!(open(&hoodie, &forged).await.status(), 403);
        assert_eq!(opening(&hoodie, Method::HEAD, &good).send().await.unwrap().status(), 405);
        assert_eq!(haas.instance("alice", "notes").await["state"], state, "nobody but its owner wakes it");
        let began = Instant::now();
        let session = session(open(&hoodie, &good).await).await;
        println!("signed on from {state} in {:?}", began.elapsed());
        assert!(is_admin(&hoodie, &session).await && hoodie.knows("carol").await);
    }
    let (code, _, errors) = haas.haas(&["policy", &haas.user("alice"), "notes", "--pause-after", "1s"]).await;
    assert_eq!(code, 0, "{errors}");
    haas.comes_to_be("alice", "notes", "paused").await;
    signed_on(&haas, "alice").await;
}

/// What is answered to a request as it stands here.
async fn raw(haas: &Installation, host: &str, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", haas.ports.http)).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn below_haas_no_request_reaches_the_app_in_any_spelling() {
    let image = echo_image(0).await;
    let haas = Installation::up_with(&format!("[tenant]\nimage = \"{}\"\nstop_timeout = \"1s\"", image.0)).await;
    let app = haas.provision("alice", "notes").await;
    let ours = [
        "/.haas",
        "/.haas/",
        "/.haas/x",
        "/.haas/sso/x",
        "/.haas/sso/",
        "/%2ehaas/x",
        "/%2E%68%61%61%73/sso?token=x",
        "/.haas%2Fsso?token=x",
        "//.haas/x",
        "/./.haas/x",
        "/x/../.haas/x",
        "/x/%2e%2e/%2ehaas/x",
        "/.haas/../hoodie/",
        "/\\.haas\\x",
        "/.HAAS/x",
        "/.haas;a=b/x",
        "/.haas/%zz",
        "/%2e%68aas/%",
        "/.ha%61s/%x1",
    ];
    let theirs = ["/", "/x?y=/.haas/", "/.haasx/", "/haas/x", "/a/.haas/x", "/a/b/../.haas/x", "/%252ehaas/x", "/100%"];
    for order in ["wake", "sleep"] {
        for path in ours {
            haas.order(order, "alice", "notes").await;
            for method in ["GET", "PUT", "OPTIONS"] {
                let answer = raw(&haas, &app.host, method, path).await;
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                assert!(head.starts_with("HTTP/1.1 404 ") && body == "not found\n", "{method} {path}: {answer}");
                assert!(head.contains("x-content-type-options: nosniff"), "{answer}");
            }
        }
        let state = if order == "wake" { "running" } else { "asleep" };
        assert_eq!(haas.instance("alice", "notes").await["state"], state, "nothing has woken it");
    }
    for path in theirs {
        let answer = raw(&haas, &app.host, "GET", path).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("x-sha256: "), "{path}: {answer}");
        assert!(answer.contains(&json!(path).to_string()), "as it was sent: {answer}");
    }
    // The control API has no such path.
    assert_eq!(haas.control("/.haas/sso").await.unwrap().status(), 404);
}

/// Its `PUT /hoodie/account/api/session` answers as it was last told to.
const HOSTILE: &str = r#"
const net = require('net');
let mode = '', open = 0;
net.createServer((socket) => {
  socket.on('error', () => {});
  socket.once('data', (data) => {
    const [method, target] = data.toString().split(' ');
    const plain = (status, body) => socket.end(`HTTP/1.1 ${status} X\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`);
    if (target.startsWith('/mode/')) { mode = target.slice(6); return plain(200, mode); }
    if (target === '/open') return plain(200, String(open));
    if (method !== 'PUT') return plain(200, 'hello');
    open++;
    socket.on('close', () => open--);
    const flood = (head, chunk) => { socket.write(head); const more = () => { while (socket.writable && socket.write(chunk)); socket.once('drain', more); }; more(); };
    switch (mode) {
      case 'garbage': return socket.end('\0\x01SSH-2.0 nonsense\r\n\r\n');
      case 'never': return;
      case 'hangs-up': return socket.destroy();
      case 'refuses': return plain(401, '{}');
      case 'redirects': return socket.end('HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n');
      case 'no-json': return plain(201, '<html>');
      case 'no-session': return plain(201, '{"data":{}}');
      case 'script': return plain(201, JSON.stringify({ data: { id: "'</script><script>alert(1)//" } }));
      case 'endless-head': return flood('HTTP/1.1 201 X\r\n', 'x-more: ' + 'x'.repeat(900) + '\r\n');
      case 'endless-body': return flood('HTTP/1.1 201 X\r\n\r\n', ' '.repeat(65536));
      case 'endless-interim': return flood('', 'HTTP/1.1 103 Early\r\n\r\n'.repeat(100));
      case 'drip': socket.write('HTTP/1.1 201 X\r\n\r\n'); return setInterval(() => socket.write(' '), 100);
    }
  });
}).listen(80);
"#;

#[tokio::test]
async fn an_app_that_answers_badly_gets_its_owner_a_clear_page_and_harms_nobody() {
    let image = Image::that_runs("hostile", HOSTILE).await;
    let haas = Installation::up_with(&format!("[tenant]\nimage = \"{}\"\nstop_timeout = \"1s\"", image.0)).await;
    let app = haas.provision("eve", "notes").await;
    let modes = [
        "garbage",
        "never",
        "hangs-up",
        "refuses",
        "redirects",
        "no-json",
        "no-session",
        "script",
        "endless-head",
        "endless-body",
        "endless-interim",
        "drip",
    ];
    for mode in modes {
        assert_eq!(app.get(&format!("/mode/{mode}")).await.unwrap().text().await.unwrap(), mode);
        let good = link(&haas, "eve", "notes").await;
        let began = Instant::now();
        let answer = open(&app, &good).await;
        assert!(began.elapsed() < Duration::from_secs(15), "{mode}: {:?}", began.elapsed());
        let (status, headers, page) = refusal(answer).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{mode}: {page}");
        assert!(headers.iter().any(|header| header.contains("text/html")), "{headers:?}");
        assert!(page.contains("This app gave no answer") && page.contains("Ask for a new link"), "{mode}: {page}");
        assert!(!page.contains("script"), "{mode}: {page}");
        assert_eq!(open(&app, &good).await.status(), 403, "{mode}: it is used up");
        assert_eq!(haas.control("/healthz").await.unwrap().status(), 200);
    }
    eventually("no connection to it is left", LIMIT, || async {
        (app.get("/open").await.ok()?.text().await.ok()? == "0").then_some(())
    })
    .await;
    let (pid, mut most) = (haas.pid(), 0);
    for line in std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap().lines() {
        if let Some(rest) = line.strip_prefix("VmHWM:") {
            most = rest.trim().trim_end_matches(" kB").parse().unwrap();
        }
    }
    println!("the server's memory was at most {} MiB", most / 1024);
    let told = haas.log();
    assert_eq!(told.matches("its owner could not sign on").count(), modes.len(), "{told}");
}
