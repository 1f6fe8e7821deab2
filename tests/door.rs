//! The door on a real HAProxy: fair shares, bounded bodies, and names that nobody can forge.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

#[path = "support/haproxy.rs"]
mod support;

use std::time::Duration;

use haas::haproxy::{Proxy, Standing};
use support::{Client, Rig, Stub, eventually, routes};

const NOTES: &str = "notes.alice.haas.localhost";
const TODO: &str = "todo.alice.haas.localhost";
const MIB: usize = 1024 * 1024;

struct Door {
    rig: Rig,
    _apps: [Stub; 3],
}

/// Two apps and a control API behind a HAProxy with these settings.
async fn door(sections_max: usize, set: impl FnOnce(&mut haas::haproxy::Settings)) -> Door {
    let mut rig = Rig::new(true);
    let apps = [Stub::new("notes").await, Stub::new("todo").await, Stub::new("control").await];
    rig.settings.control = vec![format!("127.0.0.1:{}", apps[2].port)];
    rig.settings.sections_max = sections_max;
    set(&mut rig.settings);
    let of = routes(&[("notes", apps[0].port), ("todo", apps[1].port)]);
    let haproxy = rig.haproxy();
    haproxy.publish_alone(&of).await.unwrap();
    rig.start().await;
    assert_eq!(haproxy.publish_alone(&of).await.unwrap().standing, Standing::Live);
    Door { rig, _apps: apps }
}

/// What pages of other origins, and programs, need to make sense of a refusal.
fn assert_readable(answer: &support::Answer, status: u16, kind: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let problem: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(problem["type"], format!("urn:haas:problem:{kind}"));
    if status == 429 {
        assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
        assert_eq!(answer.header("access-control-expose-headers"), Some("Retry-After"));
    }
}

async fn too_many_at_a_time(sections_max: usize) {
    let door = door(sections_max, |settings| settings.app_maxconn = 5).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut stream = Client::connect(door.rig.port).await;
        stream.send(&format!("GET /stream HTTP/1.1\r\nHost: {NOTES}\r\n\r\n")).await;
        assert!(stream.head().await.starts_with("HTTP/1.1 200"));
        streams.push(stream);
    }
    assert_readable(&door.rig.get(NOTES, "/").await, 429, "too-many-requests");
    assert_eq!(door.rig.get(TODO, "/").await.by(), "todo", "another app feels nothing");
    assert_eq!(door.rig.get("haas.localhost", "/").await.by(), "control");
    // A connection that only waits is no request.
    let mut idle = Vec::new();
    for _ in 0..10 {
        let mut client = Client::connect(door.rig.port).await;
        assert_eq!(client.get(TODO, "/").await.by(), "todo");
        idle.push(client);
    }
    drop(streams);
    eventually("it is let in again", async || door.rig.get(NOTES, "/").await.status == 200).await;
}

#[tokio::test]
async fn requests_at_a_time_are_bounded_for_each_app() {
    too_many_at_a_time(2000).await;
}

#[tokio::test]
async fn requests_at_a_time_are_bounded_without_sections_too() {
    too_many_at_a_time(0).await;
}

#[tokio::test]
async fn requests_a_second_are_bounded_for_each_app() {
    let door = door(2000, |settings| settings.app_request_rate = 5).await;
    let mut client = Client::connect(door.rig.port).await;
    let mut statuses = Vec::new();
    for n in 0..80 {
        // Its other names count with it.
        let host = if n % 2 == 0 { NOTES.to_owned() } else { NOTES.to_uppercase() };
        statuses.push(client.get(&host, "/").await.status);
    }
    let let_in = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(let_in, 50, "5 a second over ten seconds");
    assert!(statuses[50..].iter().all(|status| *status == 429));
    assert_readable(&client.get(NOTES, "/").await, 429, "too-many-requests");
    assert_eq!(client.get(TODO, "/").await.by(), "todo", "on the same connection");
    // A page's preflight is answered so that it sends the request, and can read its refusal.
    client.send(&format!("OPTIONS / HTTP/1.1\r\nHost: {NOTES}\r\nOrigin: http://elsewhere.example\r\n\r\n")).await;
    let preflight = client.answer().await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (200, Some("*")));
    assert!(preflight.header("access-control-allow-headers").unwrap().contains("Authorization"));
    // Refusals don't count: whoever goes on asking is let in again, as often as before.
    eventually("it is let in again", async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.get(NOTES, "/").await.status == 200
    })
    .await;
}

#[tokio::test]
async fn one_connection_too_many_is_answered_and_no_other_feels_it() {
    let door = door(2000, |settings| (settings.maxconn, settings.app_maxconn) = (20, 20)).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(door.rig.port).await;
        assert_eq!(client.get(NOTES, "/").await.status, 200);
        clients.push(client);
    }
    let mut late = Client::connect(door.rig.port).await;
    assert_readable(&late.get(TODO, "/").await, 429, "too-many-requests");
    // Each thread of HAProxy counts a connection before it has accepted it: one of the last may have
    // been taken for one too many.
    for client in clients.iter_mut().take(10) {
        assert_eq!(client.get(TODO, "/").await.status, 200, "who was there before is served");
    }
    clients.truncate(10);
    eventually("there is room again", async || door.rig.get(TODO, "/").await.status == 200).await;
    assert_eq!(late.get(TODO, "/").await.status, 200);
}

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let door = door(2000, |settings| settings.head_timeout = Duration::from_millis(300)).await;
    let mut slow = Client::connect(door.rig.port).await;
    slow.send(&format!("GET / HTTP/1.1\r\nHost: {NOTES}\r\n")).await;
    assert_eq!(slow.answer().await.status, 408);
    // One byte now and then does not help.
    let mut slower = Client::connect(door.rig.port).await;
    slower.send("GET / HTTP/1.1\r\n").await;
    let dripping = async {
        for byte in "X-Slow: yes".chars().cycle().take(40) {
            if !slower.try_send(&byte.to_string()).await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    };
    assert!(dripping.await, "it was cut off while it dripped");
    assert_eq!(door.rig.get(NOTES, "/").await.status, 200);
}

/// A request with a chunked body of so many bytes; the status.
async fn chunked(door: &Door, host: &str, method: &str, bytes: usize) -> u16 {
    let mut client = Client::connect(door.rig.port).await;
    client.send(&format!("{method} /count HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n")).await;
    let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
    let mut sent = 0;
    while sent < bytes {
        if !client.try_send(&chunk).await {
            break;
        }
        sent += 0x4000;
    }
    client.try_send("0\r\n\r\n").await;
    client.answer().await.status
}

async fn bodies(sections_max: usize) {
    let door = door(sections_max, |settings| settings.body_max = MIB as u64).await;
    let post = async |length: &str, body: &str| {
        let mut client = Client::connect(door.rig.port).await;
        client.send(&format!("POST /count HTTP/1.1\r\nHost: {NOTES}\r\nContent-Length: {length}\r\n\r\n")).await;
        client.try_send(body).await;
        client.answer().await
    };
    let whole = post(&MIB.to_string(), &"x".repeat(MIB)).await;
    assert_eq!((whole.status, whole.by()), (200, &*format!("notes took {MIB}")));
    assert_readable(&post(&(MIB + 1).to_string(), "").await, 413, "too-large");
    // Lengths that would be short if they were cut to 32 or 64 bits.
    for length in ["4294967297", "18446744073709551617", "99999999999999999999999999"] {
        let answer = post(length, "x").await;
        assert!([400, 413].contains(&answer.status), "{length}: {answer:?}");
    }
    for method in ["POST", "PUT", "GET"] {
        assert_eq!(chunked(&door, NOTES, method, MIB).await, 200, "{method}");
        assert_eq!(chunked(&door, NOTES, method, MIB + 0x8000).await, 413, "{method}");
    }
    // And with both kinds of length, the chunks count, which is what the app goes by.
    let mut client = Client::connect(door.rig.port).await;
    let head =
        format!("POST /count HTTP/1.1\r\nHost: {NOTES}\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(&format!("{head}5\r\nabcde\r\n0\r\n\r\n")).await;
    let answer = client.answer().await;
    assert!(answer.status == 400 || answer.by() == "notes took 5", "{answer:?}");
    assert_eq!(door.rig.get(NOTES, "/").await.status, 200);
}

#[tokio::test]
async fn bodies_are_bounded_with_and_without_a_length() {
    bodies(2000).await;
}

#[tokio::test]
async fn bodies_are_bounded_without_sections_too() {
    bodies(0).await;
}

/// Who answers, if anybody: an app by its name.
async fn who(door: &Door, request: &str) -> String {
    let mut client = Client::connect(door.rig.port).await;
    client.send(request).await;
    let answer = client.answer().await;
    if answer.status == 200 { answer.by().to_owned() } else { answer.status.to_string() }
}

#[tokio::test]
async fn host_tricks_reach_the_app_itself_or_nobody() {
    let door = door(2000, |_| {}).await;
    let get = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    for host in [
        NOTES.to_owned(),
        NOTES.to_uppercase(),
        format!("{NOTES}."),
        format!("{NOTES}:8080"),
        format!("{NOTES}.:8080"),
        format!("{NOTES}:1:2"),
        format!("\t{NOTES}  "),
    ] {
        assert_eq!(who(&door, &get(&host)).await, "notes", "{host:?}");
    }
    for host in [
        format!("x@{NOTES}"),
        format!("{NOTES}/"),
        format!("{NOTES}#.haas.localhost"),
        format!("{NOTES},{TODO}"),
        format!("{NOTES} {TODO}"),
        format!("{NOTES}%00"),
        format!("{NOTES}:{}", "9".repeat(300)).replacen(':', "::", 1).replacen("notes", "nots", 1),
        "localhost".to_owned(),
        "limits".to_owned(),
        "apps".to_owned(),
        format!("{NOTES}:5521").replacen("notes", "", 1),
    ] {
        let by = who(&door, &get(&host)).await;
        assert!(by == "control" || by == "400", "{host:?} reached {by}");
    }
    // A section's very name is no host: it has a port, which is cut off.
    let section = std::fs::read_to_string(door.rig.path("routes.map")).unwrap();
    let section = section.split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(who(&door, &get(&section)).await, "notes");
    // The name decides, wherever it stands; where two disagree, nobody answers.
    let absolute = |target: &str, host: &str| format!("GET http://{target}/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
    assert_eq!(who(&door, &absolute(NOTES, NOTES)).await, "notes");
    assert_eq!(who(&door, &absolute(TODO, NOTES)).await, "400");
    assert_eq!(who(&door, &absolute("haas.localhost", NOTES)).await, "400");
    let two = |first: &str, second: &str| format!("GET / HTTP/1.1\r\nHost: {first}\r\nHost: {second}\r\n\r\n");
    assert_eq!(who(&door, &two(NOTES, TODO)).await, "400");
    assert_eq!(who(&door, &two(NOTES, "haas.localhost")).await, "400");
    // With a zero byte it is the app's own name, and the app's to refuse: never another's.
    let by = who(&door, &get(&format!("{NOTES}\0.{TODO}"))).await;
    assert!(["notes", "control", "400"].contains(&&*by), "{by}");
    // The control API's paths on an app's host are the app's.
    assert_eq!(
        who(&door, &format!("POST /provision HTTP/1.1\r\nHost: {NOTES}\r\nContent-Length: 0\r\n\r\n")).await,
        "notes"
    );
}

async fn ours_below_haas(sections_max: usize) {
    let door = door(sections_max, |_| {}).await;
    // What is a tenant's server's to decode, Haas looks at first: it knows what is not ours after all.
    for path in [
        "/.haas",
        "/.haas/",
        "/.haas/sso?token=x",
        "/%2ehaas/sso",
        "/%2E%68%61%61%73%2Fsso",
        "//.haas/x",
        "/./.haas/x",
        "/x/../.haas/x",
        "/x/%2e%2e/.haas/x",
        "/.HAAS/x",
        "\\.haas",
        "/\\.haas\\x",
        "/.haas;a=b",
        "/.haas/%zz",
        "/%2eh%61as/%",
        "/%2E%48%41%41%53/%4",
        &format!("{}/.haas/x", "/.".repeat(3000)),
    ] {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/x{path}") };
        assert_eq!(door.rig.get(NOTES, &path).await.by(), "control", "{path}");
    }
    for path in [
        "/",
        "/hoodie/",
        "/haas/",
        "/.hass/",
        "/x?y=/.haas/",
        "/x.haas",
        "/%252ehaas/",
        "/100%",
        "/%zz",
        "/%F0%9F%90%B6",
    ] {
        assert_eq!(door.rig.get(NOTES, path).await.by(), "notes", "{path}");
    }
    // Fair shares count all the same, by the app; the log has the host, and no query.
    let log = door.rig.log();
    assert!(log.contains(&format!(" {NOTES} ")) && !log.contains("token"), "{log}");
    let table = door.rig.tell("show table limits").await;
    assert!(table.contains(&format!("key={NOTES}:")), "{table}");
}

#[tokio::test]
async fn the_path_below_haas_is_no_apps_in_any_spelling() {
    ours_below_haas(2000).await;
}

#[tokio::test]
async fn the_path_below_haas_is_no_apps_without_sections_either() {
    ours_below_haas(0).await;
}
