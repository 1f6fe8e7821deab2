//! An app that nobody uses goes to sleep, and the first request wakes it: held, not failed,
//! whatever it is. On the real engine, database and proxy.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use sha2::{Digest, Sha256};
use support::echo::echo_image;
use support::eventually;
use support::hoodie::Hoodie;
use support::image::Image;
use support::installation::{Installation, docker};

/// One that is put to sleep only by hand, made of an image that tells what it was sent.
fn settings(image: &Image, more: &str) -> String {
    format!("[tenant]\nimage = \"{}\"\nstop_timeout = \"1s\"\n[lifecycle]\n{more}", image.0)
}

async fn runs(container: &str) -> bool {
    docker(&["ps", "--format", "{{.Names}}"]).await.lines().any(|name| name == container)
}

#[tokio::test]
async fn it_falls_asleep_by_itself_and_a_request_wakes_it_with_its_data() {
    let haas = Installation::up_with("[lifecycle]\nidle_after = \"2s\"").await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    haas.comes_to_be("alice", "notes", "asleep").await;
    let container = haas.container("alice", "notes");
    assert!(!runs(&container).await, "its process is gone");
    let (_, list, _) = haas.haas(&["list", "--json"]).await;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list[0]["state"], "asleep");
    assert_eq!(haas.haas(&["doctor"]).await.0, 0, "a sleeping app is no trouble");
    let id = docker(&["inspect", "-f", "{{.Id}}", &container]).await;

    let began = Instant::now();
    assert!(hoodie.knows("carol").await);
    println!("woken and answered in {:?}", began.elapsed());
    assert_eq!(docker(&["inspect", "-f", "{{.Id}}", &container]).await, id, "the same container");
    haas.comes_to_be("alice", "notes", "running").await;
    // HAProxy has its route again: nothing passes through the server any more.
    let before = haas.log().matches("\"/hoodie/\"").count();
    assert!(hoodie.answers().await && hoodie.answers().await);
    assert_eq!(haas.log().matches("\"/hoodie/\"").count(), before);
    haas.comes_to_be("alice", "notes", "asleep").await;
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE kind = 'wake'").await, "1");
}

#[tokio::test]
async fn any_method_with_a_large_body_reaches_a_sleeping_app_whole() {
    let image = echo_image(0).await;
    let haas = Installation::up_with(&settings(&image, "")).await;
    let app = haas.provision("alice", "notes").await;
    let body: Vec<u8> = (0..10 * 1024 * 1024_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sha256 = hex::encode(Sha256::digest(&body));
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"] {
        for chunked in [false, true] {
            haas.order("sleep", "alice", "notes").await;
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let request =
                app.client.request(method.clone(), app.url("/odd%2Fpath//?q=%20a&b")).header("host", &app.host);
            let request = if chunked {
                let chunks = body.chunks(64 * 1024).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()));
                let chunks = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks.collect::<Vec<_>>()));
                // Without it hyper would leave out a body that a GET should not have.
                request.header("transfer-encoding", "chunked").body(chunks)
            } else {
                request.body(body.clone())
            };
            let answer = request.header("x-own", "kept").send().await.unwrap();
            let what = format!("{method}, chunked: {chunked}");
            assert_eq!(answer.status(), 200, "{what}");
            assert_eq!(answer.headers()["x-sha256"], sha256.as_str(), "{what}");
            assert_eq!(answer.headers()["x-length"], body.len().to_string().as_str());
            if method != Method::HEAD {
                let told: Value = answer.json().await.unwrap();
                assert_eq!(
                    (&told["method"], &told["url"]),
                    (&method.as_str().into(), &"/odd%2Fpath//?q=%20a&b".into())
                );
                assert_eq!(
                    (&told["headers"]["host"], &told["headers"]["x-own"]),
                    (&app.host.as_str().into(), &"kept".into())
                );
                assert_eq!(told["headers"]["x-forwarded-for"], "127.0.0.1");
            }
        }
    }
    // A body that is too long is refused as it is by HAProxy for one that is awake.
    haas.order("sleep", "alice", "notes").await;
    let chunks = (0..17).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 1024 * 1024]));
    let long = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks.collect::<Vec<_>>()));
    let answer = app.client.put(app.url("/")).header("host", &app.host).body(long).send().await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 413));
}

#[tokio::test]
async fn an_event_stream_begins_at_once_and_keeps_its_app_awake() {
    let image = echo_image(0).await;
    let haas = Installation::up_with(&settings(&image, "idle_after = \"1s\"")).await;
    let app = haas.provision("alice", "notes").await;
    haas.comes_to_be("alice", "notes", "asleep").await;
    let answer = app.get("/events").await.unwrap();
    let mut events = answer.bytes_stream();
    assert_eq!(events.next().await.unwrap().unwrap(), "data: 0\n\n");
    // Past idle_after, and whichever way its events go.
    for _ in 0..30 {
        events.next().await.unwrap().unwrap();
    }
    assert_eq!(haas.instance("alice", "notes").await["state"], "running");
    let second = app.get("/events").await.unwrap();
    drop(events);
    eventually("the app has seen its client leave", Duration::from_secs(5), || async {
        (app.get("/closed").await.ok()?.text().await.ok()? == "1").then_some(())
    })
    .await;
    // The other one goes through HAProxy alone, and counts as well.
    let mut events = second.bytes_stream();
    for _ in 0..30 {
        events.next().await.unwrap().unwrap();
    }
    assert_eq!(haas.instance("alice", "notes").await["state"], "running");
    drop(events);
    haas.comes_to_be("alice", "notes", "asleep").await;
}

#[tokio::test]
async fn a_stream_counts_as_use_only_so_long() {
    let image = echo_image(0).await;
    let more = "idle_after = \"1s\"\nstream_keeps_awake_for = \"3s\"";
    let text = settings(&image, more).replace("[lifecycle]", "drain_timeout = \"1s\"\n[lifecycle]");
    let haas = Installation::up_with(&text).await;
    let app = haas.provision("alice", "notes").await;
    let mut events = app.get("/events").await.unwrap().bytes_stream();
    events.next().await.unwrap().unwrap();
    let began = Instant::now();
    haas.comes_to_be("alice", "notes", "asleep").await;
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_hundred_requests_at_once_are_one_start() {
    let haas = Installation::up().await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    haas.order("sleep", "alice", "notes").await;
    let answers = futures_util::future::join_all((0..100).map(|_| hoodie.get("/hoodie/"))).await;
    for answer in answers {
        assert_eq!(answer.unwrap().status(), 200);
    }
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE kind = 'wake'").await, "1");
    let starts = "SELECT count(*) FROM events WHERE kind = 'starting'";
    assert_eq!(haas.sql(starts).await, "2", "one when it was made, one now");
    assert!(hoodie.knows("carol").await);
}

#[tokio::test]
async fn a_preflight_is_held_too_and_answered_by_the_app() {
    let image = echo_image(300).await;
    let haas = Installation::up_with(&settings(&image, "")).await;
    let app = haas.provision("alice", "notes").await;
    haas.order("sleep", "alice", "notes").await;
    let preflight = app.client.request(Method::OPTIONS, app.url("/")).header("host", &app.host);
    let preflight =
        preflight.header("origin", "http://elsewhere.example").header("access-control-request-method", "PUT");
    let answer = preflight.send().await.unwrap();
    assert_eq!((answer.status(), &answer.headers()["x-answered-by"]), (StatusCode::OK, &"the app".parse().unwrap()));
    assert_eq!(answer.headers()["access-control-allow-origin"], "http://elsewhere.example");
}

#[tokio::test]
async fn one_that_does_not_come_up_in_time_is_told_to_whoever_waits() {
    let image = echo_image(4000).await;
    let haas = Installation::up_with(&settings(&image, "wake_timeout = \"1s\"")).await;
    let app = haas.provision("alice", "notes").await;
    haas.order("sleep", "alice", "notes").await;
    let began = Instant::now();
    let program = app.get("/").await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1) && began.elapsed() < Duration::from_secs(3));
    assert_eq!(
        (program.status(), &program.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"2".parse().unwrap())
    );
    assert_eq!(program.headers()["access-control-allow-origin"], "*");
    let problem: Value = program.json().await.unwrap();
    assert_eq!(problem["type"], "urn:haas:problem:not-ready");
    let page =
        app.client.get(app.url("/")).header("host", &app.host).header("accept", "text/html").send().await.unwrap();
    assert_eq!(
        (page.status(), &page.headers()["content-type"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"text/html; charset=utf-8".parse().unwrap())
    );
    assert!(page.text().await.unwrap().contains("http-equiv=\"refresh\""), "it tries again by itself");
    // It goes on coming up meanwhile.
    eventually("it answers", Duration::from_secs(20), || async {
        (app.get("/").await.ok()?.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_longest_idle_one_makes_room_and_those_in_use_do_not() {
    let image = echo_image(0).await;
    let haas = Installation::up_with(&settings(&image, "max_awake = 2")).await;
    let mut apps: Vec<Hoodie> = Vec::new();
    for user in ["one", "two", "three"] {
        apps.push(haas.provision(user, "app").await);
    }
    haas.comes_to_be("one", "app", "asleep").await;
    // The third was used last, the second is in use.
    let stream = apps[1].get("/events").await.unwrap();
    assert_eq!(apps[0].get("/").await.unwrap().status(), 200);
    haas.comes_to_be("three", "app", "asleep").await;
    assert_eq!(haas.instance("two", "app").await["state"], "running");
    // Both are in use: the third has to wait for one of them, and not for long.
    let other = apps[0].get("/events").await.unwrap();
    let began = Instant::now();
    let refused = apps[2].get("/").await.unwrap();
    assert_eq!(
        (refused.status(), &refused.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"10".parse().unwrap())
    );
    assert_eq!(refused.json::<Value>().await.unwrap()["type"], "urn:haas:problem:all-busy");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    haas.comes_to_be("three", "app", "asleep").await;
    drop(stream);
    eventually("there is room again", Duration::from_secs(10), || async {
        (apps[2].get("/").await.ok()?.status() == 200).then_some(())
    })
    .await;
    assert_eq!(haas.instance("one", "app").await["state"], "running", "it is still in use");
    drop(other);
}

#[tokio::test]
async fn a_paused_one_keeps_its_memory_and_wakes_in_a_moment() {
    let haas = Installation::up_with("[lifecycle]\npause_after = \"1s\"").await;
    let hoodie = haas.provision("alice", "notes").await;
    hoodie.sign_up("carol").await;
    haas.comes_to_be("alice", "notes", "paused").await;
    let paused = docker(&["inspect", "-f", "{{.State.Paused}}", &haas.container("alice", "notes")]).await;
    assert_eq!(paused, "true");
    let began = Instant::now();
    assert!(hoodie.knows("carol").await);
    println!("unpaused and answered in {:?}", began.elapsed());
    haas.comes_to_be("alice", "notes", "paused").await;
    // From there it can go further down.
    haas.order("sleep", "alice", "notes").await;
    assert!(!runs(&haas.container("alice", "notes")).await);
    assert!(hoodie.knows("carol").await);
}

#[tokio::test]
async fn after_a_restart_whoever_slept_sleeps_and_whoever_was_awake_is() {
    let mut haas = Installation::up().await;
    let (sleeper, awake) = (haas.provision("sleeper", "app").await, haas.provision("awake", "app").await);
    sleeper.sign_up("carol").await;
    haas.order("sleep", "sleeper", "app").await;
    let started = docker(&["inspect", "-f", "{{.State.StartedAt}}", &haas.container("awake", "app")]).await;
    haas.kill();
    haas.start().await;
    // Its HAProxy, too.
    assert_eq!(haas.stop().await, Some(0));
    haas.start().await;
    assert!(awake.answers().await);
    assert_eq!(docker(&["inspect", "-f", "{{.State.StartedAt}}", &haas.container("awake", "app")]).await, started);
    assert!(!runs(&haas.container("sleeper", "app")).await);
    assert_eq!(haas.instance("sleeper", "app").await["state"], "asleep");
    // Nor is one awake that somebody starts behind its back: nothing would lead to it.
    docker(&["start", &haas.container("sleeper", "app")]).await;
    eventually("it sleeps again", Duration::from_secs(20), || async {
        (!runs(&haas.container("sleeper", "app")).await).then_some(())
    })
    .await;
    assert!(sleeper.knows("carol").await);
}

#[tokio::test]
async fn a_storm_of_wakes_is_taken_in_turns_and_keeps_nobody_from_being_provisioned() {
    let image = echo_image(800).await;
    let haas = Installation::up_with(&settings(&image, "wake_concurrency = 1")).await;
    let users = ["u1", "u2", "u3", "u4", "u5", "u6"];
    let mut apps = Vec::new();
    for user in users {
        apps.push(haas.provision(user, "app").await);
        haas.order("sleep", user, "app").await;
    }
    let began = Instant::now();
    let storm = async {
        let answers = futures_util::future::join_all(apps.iter().map(|app| app.get("/"))).await;
        for answer in answers {
            assert_eq!(answer.unwrap().status(), 200);
        }
        began.elapsed()
    };
    let newcomer = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        haas.provision("newcomer", "app").await;
        began.elapsed()
    };
    let (all_awake, provisioned) = tokio::join!(storm, newcomer);
    println!("six woke one by one in {all_awake:?}, a new one was there after {provisioned:?}");
    assert!(all_awake >= Duration::from_millis(6 * 800), "{all_awake:?}");
    assert!(provisioned < all_awake, "it did not stand in their line: {provisioned:?} of {all_awake:?}");
}
