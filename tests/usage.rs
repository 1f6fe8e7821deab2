//! Who is used, as a real HAProxy counts it: in every worker, over reloads.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

#[path = "support/haproxy.rs"]
mod support;

use std::time::{Duration, Instant};

use haas::haproxy::{AppUsage, Haproxy, Proxy};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Client, Rig, Stub, eventually, routes};

const NOTES: &str = "notes.alice.haas.localhost";
const TODO: &str = "todo.alice.haas.localhost";

async fn usage(haproxy: &Haproxy, port: u16) -> Option<AppUsage> {
    haproxy.usage().await.unwrap().unwrap().get(&port).copied()
}

#[tokio::test]
async fn requests_and_streams_are_use_in_every_worker() {
    let mut rig = Rig::new(true);
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let of = routes(&[("notes", notes.port), ("todo", todo.port)]);
    let haproxy = rig.haproxy();
    assert_eq!(haproxy.usage().await.unwrap(), None, "nobody is there to be asked");
    haproxy.publish_alone(&of).await.unwrap();
    rig.start().await;
    haproxy.publish_alone(&of).await.unwrap();
    assert_eq!(usage(&haproxy, notes.port).await, None, "nobody has asked for it");

    for _ in 0..3 {
        assert_eq!(rig.get(NOTES, "/").await.by(), "notes");
    }
    let used = usage(&haproxy, notes.port).await.unwrap();
    assert_eq!((used.open, used.requests), (0, 3));
    assert!(used.idle < Duration::from_secs(5), "{used:?}");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let later = usage(&haproxy, notes.port).await.unwrap();
    assert!(later.idle >= Duration::from_secs(1) && later.idle < Duration::from_secs(6), "{later:?}");
    // A connection that is merely kept is no use, one with a stream is.
    let mut kept = Client::connect(rig.port).await;
    assert_eq!(kept.get(NOTES, "/").await.by(), "notes");
    assert_eq!(usage(&haproxy, notes.port).await.unwrap().open, 0);
    let mut stream = Client::connect(rig.port).await;
    stream.send(&format!("GET /stream HTTP/1.1\r\nHost: {TODO}\r\n\r\n")).await;
    stream.head().await;
    let streaming = usage(&haproxy, todo.port).await.unwrap();
    assert_eq!((streaming.open, streaming.requests, streaming.idle), (1, 1, Duration::ZERO));

    // After a reload of ours the new worker knows nothing, and what was known is known still.
    rig.template("retries 8", "retries 7");
    let haproxy = rig.haproxy();
    haproxy.publish_alone(&of).await.unwrap();
    assert_eq!(haproxy.workers().await.unwrap().len(), 2, "the old one has the stream");
    assert_eq!(usage(&haproxy, todo.port).await.unwrap().open, 1);
    assert!(usage(&haproxy, notes.port).await.unwrap().idle < Duration::from_secs(10));
    assert_eq!(rig.get(NOTES, "/").await.by(), "notes");
    assert!(usage(&haproxy, notes.port).await.unwrap().idle < Duration::from_secs(1), "the newest use counts");
    // And after somebody else's, its stream does.
    kill(Pid::from_raw(rig.master()), Signal::SIGUSR2).unwrap();
    eventually("a third worker", async || haproxy.workers().await.is_ok_and(|workers| workers.len() >= 2)).await;
    assert_eq!(usage(&haproxy, todo.port).await.unwrap().open, 1);
    drop(stream);
    eventually("its stream is over", async || {
        haproxy.usage().await.is_ok_and(|usage| usage.unwrap()[&todo.port].open == 0)
    })
    .await;
}

#[tokio::test]
async fn a_stream_is_seen_at_any_moment_of_a_reload() {
    let mut rig = Rig::new(true);
    let notes = Stub::new("notes").await;
    let haproxy = rig.haproxy();
    haproxy.publish_alone(&routes(&[("notes", notes.port)])).await.unwrap();
    rig.start().await;
    let mut stream = Client::connect(rig.port).await;
    stream.send(&format!("GET /stream HTTP/1.1\r\nHost: {NOTES}\r\n\r\n")).await;
    stream.head().await;

    // Somebody else's: this publisher does not know of them.
    let (mut reloads, mut asked) = (0, 0);
    let began = Instant::now();
    while reloads < 12 || asked < 12 {
        if began.elapsed() > Duration::from_millis(200) * reloads {
            kill(Pid::from_raw(rig.master()), Signal::SIGUSR2).unwrap();
            reloads += 1;
        }
        assert_eq!(usage(&haproxy, notes.port).await.map(|used| used.open), Some(1), "question {asked}");
        assert!(haproxy.busy(notes.port).await.unwrap(), "question {asked}");
        // Who has just begun to ask is told the same, or that it can't be said.
        if let Ok(busy) = rig.haproxy().busy(notes.port).await {
            assert!(busy, "question {asked}");
        }
        haproxy.health().await.unwrap();
        asked += 1;
    }
    // Nobody is waited for who does not live.
    rig.stop();
    let ended = Instant::now();
    assert_eq!(haproxy.usage().await.unwrap(), None);
    assert!(ended.elapsed() < Duration::from_secs(1), "{:?}", ended.elapsed());
    // Who has never met it can't say so, where its socket is left over: somebody may still be served.
    drop(std::os::unix::net::UnixListener::bind(&rig.settings.master_socket));
    let stranger = rig.haproxy();
    for _ in 0..2 {
        assert!(stranger.usage().await.is_err() && stranger.busy(notes.port).await.is_err());
        assert_eq!(stranger.running_generation().await.unwrap(), None);
    }
}

#[tokio::test]
async fn an_old_worker_that_hangs_keeps_nobody_from_being_seen() {
    let mut rig = Rig::new(true);
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let of = routes(&[("notes", notes.port), ("todo", todo.port)]);
    rig.haproxy().publish_alone(&of).await.unwrap();
    rig.start().await;
    let mut stream = Client::connect(rig.port).await;
    stream.send(&format!("GET /stream HTTP/1.1\r\nHost: {NOTES}\r\n\r\n")).await;
    stream.head().await;
    rig.template("retries 8", "retries 7");
    let haproxy = rig.haproxy();
    haproxy.publish_alone(&of).await.unwrap();
    let old = Pid::from_raw(haproxy.workers().await.unwrap()[1].pid);
    assert_eq!(usage(&haproxy, notes.port).await.unwrap().open, 1);

    kill(old, Signal::SIGSTOP).unwrap();
    assert_eq!(rig.get(TODO, "/").await.by(), "todo");
    let began = Instant::now();
    // Many more than HAProxy's master would keep.
    for _ in 0..25 {
        assert_eq!(usage(&haproxy, todo.port).await.unwrap().requests, 1);
        assert!(!haproxy.busy(todo.port).await.unwrap());
        assert_eq!(haproxy.workers().await.unwrap().len(), 2);
    }
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    // Once it goes on, it is asked again.
    kill(old, Signal::SIGCONT).unwrap();
    eventually("its stream is seen", async || {
        haproxy.usage().await.is_ok_and(|usage| usage.unwrap().get(&notes.port).is_some_and(|of| of.open == 1))
    })
    .await;
}
