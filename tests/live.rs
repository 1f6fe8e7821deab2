//! The live lane on a real HAProxy: a change is in force at once, in every living worker, and
//! whatever disturbs it is repaired.

#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

#[path = "support/haproxy.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use haas::failpoint::{Boundary, Faults};
use haas::haproxy::{Haproxy, Moment, Proxy, RouteChange, Routes, Standing};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Client, Rig, Stub, eventually, host, route, routes};
use tokio::time::Instant;

const NOTES: &str = "notes.alice.haas.localhost";
const TODO: &str = "todo.alice.haas.localhost";

/// A HAProxy that serves these, and a publisher that knows it.
async fn serving(rig: &mut Rig, of: &Routes) -> Haproxy {
    let haproxy = rig.haproxy();
    haproxy.publish_alone(of).await.unwrap();
    rig.start().await;
    assert_eq!(haproxy.publish_alone(of).await.unwrap().standing, Standing::Live);
    haproxy
}

async fn pids(haproxy: &Haproxy) -> Vec<i32> {
    // While the master replaces itself, connections are cut.
    haproxy.workers().await.unwrap_or_default().iter().map(|worker| worker.pid).collect()
}

/// A worker that stays for a stream, and is not the current one.
async fn with_an_old_worker(rig: &mut Rig, of: &Routes) -> (Haproxy, Client, Client) {
    let haproxy = serving(rig, of).await;
    let mut kept = Client::connect(rig.port).await;
    assert_eq!(kept.get(NOTES, "/").await.status, 200);
    let mut stream = Client::connect(rig.port).await;
    stream.send(&format!("GET /stream HTTP/1.1\r\nHost: {NOTES}\r\n\r\n")).await;
    stream.head().await;
    rig.template("retries 8", "retries 7");
    let haproxy_anew = rig.haproxy();
    assert_eq!(haproxy_anew.publish_alone(of).await.unwrap().standing, Standing::Live);
    assert_eq!(haproxy.workers().await.unwrap().len(), 2);
    (haproxy_anew, kept, stream)
}

#[tokio::test]
async fn a_change_is_in_force_at_once_and_its_section_comes_later() {
    let mut rig = Rig::new(true);
    rig.settings.reload_min_interval = Duration::from_millis(1500);
    let (notes, todo, control) = (Stub::new("notes").await, Stub::new("todo").await, Stub::new("control").await);
    rig.settings.control = vec![format!("127.0.0.1:{}", control.port)];
    let haproxy = serving(&mut rig, &routes(&[("notes", notes.port)])).await;
    let before = pids(&haproxy).await;

    assert!(haproxy.change(&RouteChange::Set(route("todo", todo.port))).await.unwrap());
    assert_eq!(rig.get(TODO, "/").await.by(), "todo");
    assert!(rig.read("routes.map").contains(&format!("{TODO} {TODO}:{}", todo.port)));
    // The app moves, and the old port is nobody's any more.
    let moved = Stub::new("moved").await;
    assert!(haproxy.change(&RouteChange::Set(route("todo", moved.port))).await.unwrap());
    assert_eq!(rig.get(TODO, "/").await.by(), "moved");
    let both = routes(&[("notes", notes.port), ("todo", moved.port)]);
    let published = haproxy.publish_alone(&both).await.unwrap();
    assert_eq!(published.standing, Standing::Live);
    let due = published.reload_due.expect("its section is put off");
    assert_eq!(pids(&haproxy).await, before, "no reload so far");
    assert!(!rig.read("haproxy.cfg").contains(TODO));

    tokio::time::sleep_until(due).await;
    let published = haproxy.publish_alone(&both).await.unwrap();
    assert_eq!(published.reload_due, None);
    assert_eq!(haproxy.running_generation().await.unwrap(), Some(published.generation));
    assert!(rig.read("haproxy.cfg").contains(&format!("backend {TODO}:{}", moved.port)));
    assert_eq!(rig.get(TODO, "/").await.by(), "moved");

    assert!(haproxy.change(&RouteChange::Unset(vec![host("todo")])).await.unwrap());
    assert_eq!(rig.get(TODO, "/").await.by(), "control");
    assert_eq!(rig.get(NOTES, "/").await.by(), "notes");
}

#[tokio::test]
async fn an_old_worker_hears_of_a_removal_too_and_its_streams_live_on() {
    let mut rig = Rig::new(true);
    let (notes, control) = (Stub::new("notes").await, Stub::new("control").await);
    rig.settings.control = vec![format!("127.0.0.1:{}", control.port)];
    let (haproxy, mut kept, mut stream) = with_an_old_worker(&mut rig, &routes(&[("notes", notes.port)])).await;
    assert!(haproxy.change(&RouteChange::Unset(vec![host("notes")])).await.unwrap());
    // The connection was kept alive by the old worker.
    assert_eq!(kept.get(NOTES, "/").await.by(), "control");
    assert_eq!(rig.get(NOTES, "/").await.by(), "control");
    assert!(stream.bytes().await > 0);
}

#[tokio::test]
async fn an_old_worker_hears_of_a_publication_too() {
    let mut rig = Rig::new(true);
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let (haproxy, mut kept, _stream) = with_an_old_worker(&mut rig, &routes(&[("notes", notes.port)])).await;
    // The app's host now leads elsewhere; whoever had the old port must not be reached.
    let published = haproxy.publish_alone(&routes(&[("notes", todo.port)])).await.unwrap();
    assert_eq!(published.standing, Standing::Live);
    assert_eq!(kept.get(NOTES, "/").await.by(), "todo");
}

#[tokio::test]
async fn what_was_changed_since_the_routes_were_read_is_newer() {
    let mut rig = Rig::new(true);
    rig.settings.reload_min_interval = Duration::from_secs(3600);
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let old = routes(&[("notes", notes.port)]);
    let haproxy = serving(&mut rig, &old).await;
    let read = haproxy.now().await;
    assert!(haproxy.change(&RouteChange::Set(route("todo", todo.port))).await.unwrap());
    haproxy.publish(&old, read).await.unwrap();
    assert_eq!(rig.get(TODO, "/").await.by(), "todo", "a publication of older routes leaves it alone");
    // Read again, they are what counts.
    let read = haproxy.now().await;
    assert!(read > Moment::default());
    haproxy.publish(&old, read).await.unwrap();
    assert_eq!(rig.get(TODO, "/").await.status, 503);
}

#[tokio::test]
async fn a_map_that_somebody_changed_in_the_running_haproxy_is_repaired() {
    let mut rig = Rig::new(true);
    rig.settings.sections_max = 0;
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let of = routes(&[("notes", notes.port), ("todo", todo.port)]);
    let haproxy = serving(&mut rig, &of).await;
    let before = pids(&haproxy).await;
    rig.tell(&format!("del map routes.map {NOTES}")).await;
    rig.tell(&format!("set map routes.map {TODO} {TODO}:{}", notes.port)).await;
    rig.tell(&format!("add map routes.map evil.example {NOTES}:{}", notes.port)).await;
    rig.tell(&format!("add map routes.map {TODO} {TODO}:1")).await;
    assert_eq!(rig.get(NOTES, "/").await.status, 503);
    // One who has not seen it right before compares.
    assert_eq!(rig.haproxy().publish_alone(&of).await.unwrap().standing, Standing::Live);
    assert_eq!(rig.get(NOTES, "/").await.by(), "notes");
    assert_eq!(rig.get(TODO, "/").await.by(), "todo");
    assert_eq!(rig.get("evil.example", "/").await.status, 503);
    assert_eq!(pids(&haproxy).await, before, "without a reload");
    // A change of an app whose entry is gone is seen not to have come through.
    rig.tell(&format!("del map routes.map {NOTES}")).await;
    assert!(!haproxy.change(&RouteChange::Set(route("notes", todo.port))).await.unwrap());
    let of = routes(&[("notes", todo.port), ("todo", todo.port)]);
    assert_eq!(haproxy.publish_alone(&of).await.unwrap().standing, Standing::Live);
    assert_eq!(rig.get(NOTES, "/").await.by(), "todo");
}

#[tokio::test]
async fn without_its_socket_the_lane_has_a_floor() {
    let mut rig = Rig::new(true);
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let haproxy = serving(&mut rig, &routes(&[("notes", notes.port)])).await;
    std::fs::remove_file(&rig.settings.stats_socket).unwrap();
    assert!(!haproxy.change(&RouteChange::Set(route("todo", todo.port))).await.unwrap());
    let published = haproxy.publish_alone(&routes(&[("notes", notes.port), ("todo", todo.port)])).await.unwrap();
    assert_eq!(published.standing, Standing::Live);
    assert_eq!(rig.get(TODO, "/").await.by(), "todo");
    // Somebody else at the socket is not believed.
    drop(std::fs::remove_file(&rig.settings.stats_socket));
    let stranger = tokio::net::UnixListener::bind(&rig.settings.stats_socket).unwrap();
    let answering = tokio::spawn(async move {
        loop {
            let (mut stream, _) = stranger.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"Pid: 1\ntype=str, found=no\n").await.ok();
        }
    });
    assert!(!haproxy.change(&RouteChange::Unset(vec![host("todo")])).await.unwrap());
    answering.abort();
    assert_eq!(haproxy.publish_alone(&routes(&[("notes", notes.port)])).await.unwrap().standing, Standing::Live);
    assert_eq!(rig.get(TODO, "/").await.status, 503);
}

#[tokio::test]
async fn a_haproxy_that_was_restarted_or_reloaded_behind_our_back_says_the_same() {
    let mut rig = Rig::new(true);
    rig.settings.reload_min_interval = Duration::from_secs(3600);
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let haproxy = serving(&mut rig, &routes(&[("notes", notes.port)])).await;
    assert!(haproxy.change(&RouteChange::Set(route("todo", todo.port))).await.unwrap());
    rig.stop();
    rig.start().await;
    assert_eq!(rig.get(TODO, "/").await.by(), "todo", "the file was written first");
    assert!(!haproxy.change(&RouteChange::Unset(vec![host("todo")])).await.unwrap(), "a worker that nobody knows");
    assert_eq!(rig.get(TODO, "/").await.status, 503, "it was told all the same");
    let of = routes(&[("notes", notes.port)]);
    assert_eq!(haproxy.publish_alone(&of).await.unwrap().standing, Standing::Live);
    let before = pids(&haproxy).await;
    kill(Pid::from_raw(rig.master()), Signal::SIGUSR2).unwrap();
    eventually("a new worker", async || pids(&haproxy).await.first().is_some_and(|pid| *pid != before[0])).await;
    assert_eq!(haproxy.publish_alone(&of).await.unwrap().standing, Standing::Live);
    assert!(haproxy.change(&RouteChange::Set(route("todo", todo.port))).await.unwrap());
    assert_eq!(rig.get(TODO, "/").await.by(), "todo");
}

#[tokio::test]
async fn changes_during_reloads_are_never_lost() {
    let mut rig = Rig::new(true);
    let (notes, todo, control) = (Stub::new("notes").await, Stub::new("todo").await, Stub::new("control").await);
    rig.settings.control = vec![format!("127.0.0.1:{}", control.port)];
    let apps: Vec<(String, u16)> = (0..200).map(|n| (format!("app-{n}"), notes.port)).collect();
    let all =
        |with: &[(String, u16)]| routes(&with.iter().map(|(app, port)| (app.as_str(), *port)).collect::<Vec<_>>());
    let haproxy = serving(&mut rig, &all(&apps)).await;
    // Each publication differs in a section, so each of them reloads.
    let reloading = async {
        for n in 0..6 {
            let mut now = apps.clone();
            now.push((format!("extra-{n}"), todo.port));
            let read = Moment::default();
            haproxy.publish(&all(&now), read).await.unwrap();
        }
    };
    let changing = async {
        let mut sure = 0;
        for n in 0..200 {
            let change = match n % 2 {
                0 => RouteChange::Set(route(&format!("app-{n}"), todo.port)),
                _ => RouteChange::Unset(vec![host(&format!("app-{n}"))]),
            };
            sure += u32::from(haproxy.change(&change).await.unwrap());
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        sure
    };
    let ((), sure) = tokio::join!(reloading, changing);
    println!("{sure} of 200 changes were sure at once");
    // What was changed is newer than what any of those publications said.
    let last: Vec<(String, u16)> = apps.iter().cloned().chain([("extra-5".to_owned(), todo.port)]).collect();
    assert_eq!(haproxy.publish(&all(&last), Moment::default()).await.unwrap().standing, Standing::Live);
    for n in 0..200 {
        let answer = rig.get(&format!("app-{n}.alice.haas.localhost"), "/").await;
        assert_eq!(answer.by(), if n % 2 == 0 { "todo" } else { "control" }, "app-{n}");
    }
}

#[tokio::test]
async fn ten_thousand_routes_at_once() {
    let mut rig = Rig::new(true);
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let many = |port: u16| {
        let of: Vec<(String, u16)> = (0..10_000).map(|n| (format!("app-{n}"), port)).collect();
        routes(&of.iter().map(|(app, port)| (app.as_str(), *port)).collect::<Vec<_>>())
    };
    let haproxy = serving(&mut rig, &many(notes.port)).await;
    let before = pids(&haproxy).await;
    let began = Instant::now();
    assert_eq!(haproxy.publish_alone(&many(todo.port)).await.unwrap().standing, Standing::Live);
    println!("10,000 routes moved in {:?}", began.elapsed());
    for app in ["app-0", "app-5000", "app-9999"] {
        assert_eq!(rig.get(&format!("{app}.alice.haas.localhost"), "/").await.by(), "todo");
    }
    assert_eq!(pids(&haproxy).await, before, "past the sections no route needs a reload");
}

#[tokio::test]
async fn sections_wait_while_too_many_old_workers_live() {
    let mut rig = Rig::new(true);
    rig.settings.old_workers_max = 1;
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let (haproxy, kept, stream) = with_an_old_worker(&mut rig, &routes(&[("notes", notes.port)])).await;
    let both = routes(&[("notes", notes.port), ("todo", todo.port)]);
    let published = haproxy.publish_alone(&both).await.unwrap();
    assert!(published.reload_due.is_some());
    assert_eq!(haproxy.workers().await.unwrap().len(), 2);
    assert_eq!(rig.get(TODO, "/").await.by(), "todo", "its route does not wait");
    drop((stream, kept));
    eventually("the old worker has left", async || haproxy.workers().await.unwrap().len() == 1).await;
    tokio::time::sleep_until(published.reload_due.unwrap()).await;
    assert_eq!(haproxy.publish_alone(&both).await.unwrap().reload_due, None);
    assert!(rig.read("haproxy.cfg").contains(TODO));
}

/// A publisher that can be stopped at a boundary, to be dropped there.
fn freezing(rig: &Rig, at: Boundary) -> (Haproxy, Arc<AtomicBool>) {
    let frozen = Arc::new(AtomicBool::new(false));
    let freeze = Arc::clone(&frozen);
    let faults = Faults::freezing(move |boundary| boundary == at && freeze.load(Ordering::SeqCst));
    (rig.haproxy().with_faults(faults), frozen)
}

async fn dropped<T>(frozen: &AtomicBool, work: impl Future<Output = T>) {
    frozen.store(true, Ordering::SeqCst);
    assert!(tokio::time::timeout(Duration::from_millis(700), work).await.is_err(), "it was frozen");
    frozen.store(false, Ordering::SeqCst);
}

#[tokio::test]
async fn a_change_that_was_dropped_between_the_file_and_the_workers_is_made_good() {
    let mut rig = Rig::new(true);
    rig.settings.sections_max = 0;
    let (notes, todo, control) = (Stub::new("notes").await, Stub::new("todo").await, Stub::new("control").await);
    rig.settings.control = vec![format!("127.0.0.1:{}", control.port)];
    let (haproxy, frozen) = freezing(&rig, Boundary::MapSwapped);
    let both = routes(&[("notes", notes.port), ("todo", todo.port)]);
    haproxy.publish_alone(&both).await.unwrap();
    rig.start().await;
    haproxy.publish_alone(&both).await.unwrap();
    dropped(&frozen, haproxy.change(&RouteChange::Unset(vec![host("todo")]))).await;
    assert_eq!(rig.get(TODO, "/").await.by(), "todo", "nobody was told");
    let without = routes(&[("notes", notes.port)]);
    assert_eq!(haproxy.publish_alone(&without).await.unwrap().standing, Standing::Live);
    assert_eq!(rig.get(TODO, "/").await.by(), "control");
    assert_eq!(haproxy.map_differences(&without).await.unwrap(), Some(0));
}

#[tokio::test]
async fn a_publication_that_was_dropped_while_it_reloads_is_no_doubt_for_ever() {
    let mut rig = Rig::new(true);
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let (haproxy, frozen) = freezing(&rig, Boundary::HaproxySignalled);
    let of = routes(&[("notes", notes.port)]);
    haproxy.publish_alone(&of).await.unwrap();
    rig.start().await;
    haproxy.publish_alone(&of).await.unwrap();
    let more = routes(&[("notes", notes.port), ("todo", todo.port)]);
    dropped(&frozen, haproxy.publish_alone(&more)).await;
    assert_eq!(haproxy.publish_alone(&more).await.unwrap().standing, Standing::Live);
    assert!(haproxy.change(&RouteChange::Set(route("new", todo.port))).await.unwrap());
    assert_eq!(rig.get("new.alice.haas.localhost", "/").await.by(), "todo");
}

#[tokio::test]
async fn a_worker_from_before_that_ran_something_else_costs_one_reload_and_no_more() {
    let mut rig = Rig::new(true);
    let notes = Stub::new("notes").await;
    let before = format!(
        "global\n set-var proc.haas_generation str(x)\n stats socket {} mode 600 level admin\n\
         defaults\n mode http\n timeout connect 1s\n timeout client 1m\n timeout server 1m\n\
         frontend f\n bind 127.0.0.1:{}\n default_backend b\nbackend b\n server s 127.0.0.1:{}\n",
        rig.settings.stats_socket.display(),
        rig.port,
        notes.port
    );
    std::fs::create_dir_all(&rig.settings.dir).unwrap();
    std::fs::write(rig.path("haproxy.cfg"), before).unwrap();
    rig.start().await;
    let mut stream = Client::connect(rig.port).await;
    stream.send(&format!("GET /stream HTTP/1.1\r\nHost: {NOTES}\r\n\r\n")).await;
    stream.head().await;
    let haproxy = rig.haproxy();
    for _ in 0..3 {
        let published = haproxy.publish_alone(&routes(&[("notes", notes.port)])).await.unwrap();
        assert_eq!(published.standing, Standing::Live);
    }
    assert_eq!(haproxy.workers().await.unwrap().len(), 2);
    assert!(stream.bytes().await > 0);
}
