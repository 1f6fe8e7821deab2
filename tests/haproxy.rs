//! The room `haproxy` on a real HAProxy: what is published is what is served, and nothing that
//! goes wrong on the way takes away what was served before.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

#[path = "haproxy/signal.rs"]
mod signal;
#[path = "support/haproxy.rs"]
mod support;

use std::path::PathBuf;
use std::time::Duration;

use chrono::Utc;
use haas::haproxy::{HaproxyError, Proxy, Routes, Standing};
use support::{Client, Rig, Stub, eventually, free_port, host, routes, trace};
use tokio::time::Instant;

/// HAProxy serving these, and the generation.
async fn serving(rig: &mut Rig, of: &Routes) -> String {
    let haproxy = rig.haproxy();
    let published = haproxy.publish_alone(of).await.unwrap();
    assert_eq!(published.standing, Standing::Down);
    rig.start().await;
    assert_eq!(haproxy.publish_alone(of).await.unwrap().standing, Standing::Live);
    published.generation
}

async fn every_host_reaches_its_own(live: bool, sections_max: usize) {
    let mut rig = Rig::new(live);
    rig.settings.sections_max = sections_max;
    let (notes, todo, control) = (Stub::new("notes").await, Stub::new("todo").await, Stub::new("control").await);
    rig.settings.control = vec![format!("127.0.0.1:{}", control.port)];
    serving(&mut rig, &routes(&[("notes", notes.port), ("todo", todo.port)])).await;

    for (host, expected) in [
        ("notes.alice.haas.localhost", "notes"),
        ("NOTES.Alice.haas.LOCALHOST", "notes"),
        ("notes.alice.haas.localhost:8080", "notes"),
        ("notes.alice.haas.localhost.", "notes"),
        ("notes.alice.haas.localhost.:8080", "notes"),
        ("todo.alice.haas.localhost", "todo"),
        ("haas.localhost", "control"),
        ("other.alice.haas.localhost", "control"),
        ("xnotes.alice.haas.localhost", "control"),
        ("127.0.0.1", "control"),
        ("[::1]:8080", "control"),
        ("", "control"),
    ] {
        let answer = rig.get(host, "/").await;
        assert_eq!((answer.status, answer.by()), (200, expected), "{host:?}");
    }
    // What never had a host goes to Haas as well, and what has two is nobody's.
    let mut client = Client::connect(rig.port).await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(client.answer().await.by(), "control");
    let mut client = Client::connect(rig.port).await;
    client.send("GET / HTTP/1.1\r\nHost: notes.alice.haas.localhost\r\nHost: haas.localhost\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 400);
    let log = rig.log();
    assert!(log.contains(&format!(" {}:{} ", host("notes"), notes.port)), "{log}");
    assert!(log.contains(" other.alice.haas.localhost "), "the host as it was asked for: {log}");
    let section = rig.read("haproxy.cfg").contains(&format!("backend {}:{}", host("notes"), notes.port));
    assert_eq!(section, sections_max > 0);
}

async fn every_host_reaches_its_own_app_by_its_section(live: bool) {
    every_host_reaches_its_own(live, 2000).await;
}

async fn every_host_reaches_its_own_app_without_sections(live: bool) {
    every_host_reaches_its_own(live, 0).await;
}

async fn what_only_a_proxy_may_say_is_never_taken_from_a_client(live: bool) {
    let mut rig = Rig::new(live);
    let notes = Stub::new("notes").await;
    serving(&mut rig, &routes(&[("notes", notes.port)])).await;
    let mut client = Client::connect(rig.port).await;
    client
        .send(
            "GET / HTTP/1.1\r\nHost: notes.alice.haas.localhost\r\nX-Forwarded-For: 9.9.9.9\r\n\
             x-forwarded-for: 8.8.8.8\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n\
             X-Forwarded-Port: 1\r\nX-Forwarded-Server: evil\r\nX-Real-IP: 9.9.9.9\r\nForwarded: for=9.9.9.9\r\n\r\n",
        )
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.seen("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(answer.seen("x-forwarded-proto"), Some("http"));
    assert_eq!(answer.seen("x-forwarded-host"), Some("notes.alice.haas.localhost"));
    assert_eq!(answer.seen("x-forwarded-port"), None, "the host tells the port");
    assert!(!answer.body.contains("9.9.9.9") && !answer.body.contains("8.8.8.8") && !answer.body.contains("evil"));
}

async fn when_nobody_answers_haproxy_does_in_a_form_that_pages_of_other_origins_can_read(live: bool) {
    let mut rig = Rig::new(live);
    rig.template("retries 8", "retries 1");
    serving(&mut rig, &routes(&[("notes", free_port())])).await;
    for (host, kind) in [("haas.localhost", "unavailable"), ("notes.alice.haas.localhost", "not-ready")] {
        let answer = rig.get(host, "/").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert_eq!(answer.header("access-control-expose-headers"), Some("Retry-After"));
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
        let problem: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(problem["type"], format!("urn:haas:problem:{kind}"));
        assert_eq!(problem["status"], 503);
    }
}

async fn of_several_control_servers_one_that_lives_answers(live: bool) {
    let mut rig = Rig::new(live);
    let living = Stub::new("living").await;
    rig.settings.control = vec![format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", living.port)];
    serving(&mut rig, &routes(&[])).await;
    for _ in 0..6 {
        let answer = rig.get("haas.localhost", "/").await;
        assert_eq!((answer.status, answer.by()), (200, "living"));
    }
}

async fn what_is_there_already_is_neither_written_nor_signalled(live: bool) {
    let mut rig = Rig::new(live);
    let of = routes(&[("notes", 5521)]);
    let generation = serving(&mut rig, &of).await;
    let files = ["haproxy.cfg", "routes.map", "errors/503.http"];
    let before = files.map(|name| trace(&rig.path(name)));
    let workers = rig.haproxy().workers().await.unwrap();
    for haproxy in [rig.haproxy(), rig.haproxy()] {
        for _ in 0..3 {
            assert_eq!(haproxy.publish_alone(&of).await.unwrap().generation, generation);
        }
    }
    assert_eq!(files.map(|name| trace(&rig.path(name))), before);
    let after = rig.haproxy().workers().await.unwrap();
    assert_eq!((after.len(), after[0].pid), (1, workers[0].pid));
}

async fn a_broken_template_is_refused_in_haproxys_words_and_the_old_file_serves(live: bool) {
    let mut rig = Rig::new(live);
    let notes = Stub::new("notes").await;
    let of = routes(&[("notes", notes.port)]);
    let generation = serving(&mut rig, &of).await;

    // What is wrong: with the lane the routes are in force all the same.
    let refused = async |rig: &Rig| match rig.haproxy().publish_alone(&of).await {
        Ok(published) if live => {
            assert_eq!(published.standing, Standing::Live);
            published.trouble.expect("a word on what is wrong")
        }
        Err(error @ (HaproxyError::Rejected { .. } | HaproxyError::Template { .. })) if !live => error.to_string(),
        other => panic!("{other:?}"),
    };
    rig.template("    retries 8", "    retris 8");
    let message = refused(&rig).await;
    assert!(message.contains("retris") && message.contains("rejected/haproxy.cfg"), "{message}");
    assert!(rig.read("rejected/haproxy.cfg").contains("retris"));
    assert!(!rig.read("haproxy.cfg").contains("retris"));
    assert_eq!(rig.haproxy().running_generation().await.unwrap(), Some(generation.clone()));
    assert_eq!(rig.get("notes.alice.haas.localhost", "/").await.by(), "notes");

    rig.template("set-var proc.haas_generation str({{ generation }})", "# nothing");
    assert!(refused(&rig).await.contains("{{ generation }}"));
    rig.template("{{ body_max }}", "{{ body_maxi }}");
    assert!(refused(&rig).await.contains("body_maxi"));

    // A template that is right again is taken without a restart of anything.
    rig.template("retries 8", "retries 7");
    let published = rig.haproxy().publish_alone(&of).await.unwrap();
    assert_eq!(published.standing, Standing::Live);
    assert_ne!(published.generation, generation);
}

async fn a_client_that_was_kept_alive_is_answered_across_a_reload(live: bool) {
    let mut rig = Rig::new(live);
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    serving(&mut rig, &routes(&[("notes", notes.port)])).await;
    let mut kept = Client::connect(rig.port).await;
    assert_eq!(kept.get("notes.alice.haas.localhost", "/").await.by(), "notes");

    let published = rig.haproxy().publish_alone(&routes(&[("notes", notes.port), ("todo", todo.port)])).await.unwrap();
    assert_eq!(published.standing, Standing::Live);
    assert_eq!(rig.get("todo.alice.haas.localhost", "/").await.by(), "todo");
    let last = kept.get("notes.alice.haas.localhost", "/").await;
    assert_eq!((last.by(), last.header("connection")), ("notes", Some("close")));
}

async fn an_open_stream_is_seen(live: bool, sections_max: usize) {
    let mut rig = Rig::new(live);
    rig.settings.sections_max = sections_max;
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let before = Utc::now();
    serving(&mut rig, &routes(&[("notes", notes.port), ("todo", todo.port)])).await;
    let haproxy = rig.haproxy();
    let busy = async |port| haproxy.busy(port).await.unwrap();
    let first = haproxy.workers().await.unwrap()[0].started;
    assert_eq!(haproxy.oldest_leaving_worker().await.unwrap(), None);
    assert!(first > before - chrono::TimeDelta::milliseconds(50) && first <= Utc::now(), "{before} {first}");

    // A connection that only waits is not busy, on neither side.
    let mut idle = Client::connect(rig.port).await;
    idle.get("notes.alice.haas.localhost", "/").await;
    eventually("the answered request is over", async || !busy(notes.port).await).await;

    let slow = rig.get("notes.alice.haas.localhost", "/slow");
    let seen = eventually("the slow request is seen", async || busy(notes.port).await);
    let (answer, ()) = tokio::join!(slow, seen);
    assert_eq!(answer.by(), "notes");
    eventually("the slow request is over", async || !busy(notes.port).await).await;

    let mut stream = Client::connect(rig.port).await;
    stream.send("GET /stream HTTP/1.1\r\nHost: notes.alice.haas.localhost\r\n\r\n").await;
    stream.head().await;
    haproxy.publish_alone(&routes(&[("todo", todo.port)])).await.unwrap();
    if live && sections_max == 0 {
        // There is nothing in haproxy.cfg that a reload would change.
        assert_eq!(haproxy.workers().await.unwrap().len(), 1);
        rig.template("retries 8", "retries 7");
        rig.haproxy().publish_alone(&routes(&[("todo", todo.port)])).await.unwrap();
    }
    let workers = haproxy.workers().await.unwrap();
    assert_eq!(workers.iter().map(|worker| worker.current).collect::<Vec<_>>(), [true, false]);
    assert!(workers[0].started > workers[1].started);
    assert!(workers[1].started < first + chrono::TimeDelta::milliseconds(50));
    let leaving = haproxy.oldest_leaving_worker().await.unwrap().unwrap();
    assert!((leaving - first).abs() < chrono::TimeDelta::milliseconds(50), "{first} {leaving}");
    for _ in 0..5 {
        assert!(stream.bytes().await > 0);
    }
    assert!(busy(notes.port).await);
    assert!(!busy(todo.port).await);

    drop((stream, idle));
    eventually("the stream is over", async || !busy(notes.port).await).await;
    eventually("the old worker has left", async || haproxy.workers().await.unwrap().len() == 1).await;
    assert_eq!(haproxy.oldest_leaving_worker().await.unwrap(), None);
}

async fn an_open_stream_survives_a_reload_and_is_seen(live: bool) {
    an_open_stream_is_seen(live, 2000).await;
}

async fn an_open_stream_survives_a_reload_and_is_seen_without_sections(live: bool) {
    an_open_stream_is_seen(live, 0).await;
}

async fn a_generation_that_does_not_come_up_makes_way_for_the_last_good_one(live: bool) {
    let mut rig = Rig::new(live);
    let notes = Stub::new("notes").await;
    let generation = serving(&mut rig, &routes(&[("notes", notes.port)])).await;
    let good = (rig.read("haproxy.cfg"), rig.read("routes.map"));

    // It passes the check, and no worker can start with it: somebody holds the port.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = "    bind {{ http_bind }}";
    rig.template(bind, &format!("{bind}\n    bind {}", taken.local_addr().unwrap()));
    let haproxy = rig.haproxy();
    for attempt in 0..2 {
        let published = haproxy.publish_alone(&routes(&[("notes", notes.port), ("todo", 5522)])).await;
        let reason = match published {
            Err(error @ HaproxyError::Unconfirmed { restored: true, .. }) if !live => error.to_string(),
            // The routes are in force; the next reload waits longer, and the reason stays.
            Ok(published) if live => {
                assert_eq!((published.standing, published.reload_due.is_some()), (Standing::Live, attempt > 0));
                published.trouble.expect("a word on what is wrong")
            }
            other => panic!("{other:?}"),
        };
        assert!(reason.contains("did not take generation"), "{reason}");
        assert_eq!(rig.read("haproxy.cfg"), good.0);
        // The lane's routes don't depend on what was refused.
        assert_eq!(rig.read("routes.map") == good.1, !live);
        assert_eq!(rig.get("notes.alice.haas.localhost", "/").await.by(), "notes");
    }
    assert_eq!(haproxy.running_generation().await.unwrap(), Some(generation));
    eventually("the one that serves is the current one", async || {
        haproxy.workers().await.is_ok_and(|workers| workers.len() == 1 && workers[0].current)
    })
    .await;
    // So that a restart serves.
    rig.stop();
    rig.start().await;
    assert_eq!(rig.get("notes.alice.haas.localhost", "/").await.by(), "notes");
    // And once the port is free, the same publication goes through.
    drop(taken);
    let haproxy = rig.haproxy();
    let published = haproxy.publish_alone(&routes(&[("notes", notes.port), ("todo", 5522)])).await.unwrap();
    assert_eq!(published.standing, Standing::Live);
}

async fn a_haproxy_that_is_down_gets_its_files_and_is_picked_up_when_it_comes(live: bool) {
    let mut rig = Rig::new(live);
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let haproxy = rig.haproxy();
    assert_eq!(haproxy.oldest_leaving_worker().await.unwrap(), None);
    assert!(haproxy.health().await.is_err());
    assert!(!haproxy.busy(1).await.unwrap());
    serving(&mut rig, &routes(&[("notes", notes.port)])).await;

    // The socket's file of a HAProxy that was killed is nobody's socket.
    rig.stop();
    if !rig.settings.master_socket.exists() {
        drop(std::os::unix::net::UnixListener::bind(&rig.settings.master_socket).unwrap());
    }
    assert_eq!(haproxy.running_generation().await.unwrap(), None);
    let of = routes(&[("notes", notes.port), ("todo", todo.port)]);
    let down = haproxy.publish_alone(&of).await.unwrap();
    assert_eq!(down.standing, Standing::Down);
    let files = ["haproxy.cfg", "routes.map"].map(|name| trace(&rig.path(name)));

    rig.start().await;
    assert_eq!(rig.get("todo.alice.haas.localhost", "/").await.by(), "todo");
    let live = haproxy.publish_alone(&of).await.unwrap();
    assert_eq!((live.generation, live.standing), (down.generation, Standing::Live));
    assert_eq!(["haproxy.cfg", "routes.map"].map(|name| trace(&rig.path(name))), files);
}

async fn a_worker_that_runs_something_else_is_told_even_if_the_files_are_right(live: bool) {
    let mut rig = Rig::new(live);
    let haproxy = rig.haproxy();
    serving(&mut rig, &routes(&[("notes", 5521)])).await;
    let old = (rig.read("haproxy.cfg"), rig.read("routes.map"));
    haproxy.publish_alone(&routes(&[("todo", 5522)])).await.unwrap();
    let new = (rig.read("haproxy.cfg"), rig.read("routes.map"));
    // As if we had died between the swap and the signal.
    std::fs::write(rig.path("haproxy.cfg"), &old.0).unwrap();
    std::fs::write(rig.path("routes.map"), &old.1).unwrap();
    haproxy.publish_alone(&routes(&[("notes", 5521)])).await.unwrap();
    std::fs::write(rig.path("haproxy.cfg"), &new.0).unwrap();
    std::fs::write(rig.path("routes.map"), &new.1).unwrap();
    let files = ["haproxy.cfg", "routes.map"].map(|name| trace(&rig.path(name)));
    let published = haproxy.publish_alone(&routes(&[("todo", 5522)])).await.unwrap();
    assert_eq!(haproxy.running_generation().await.unwrap(), Some(published.generation));
    assert_eq!(["haproxy.cfg", "routes.map"].map(|name| trace(&rig.path(name))), files);
}

async fn files_that_are_torn_tampered_with_or_gone_are_written_anew(live: bool) {
    let mut rig = Rig::new(live);
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let of = routes(&[("notes", notes.port)]);
    let generation = serving(&mut rig, &of).await;
    let (cfg, map) = (rig.read("haproxy.cfg"), rig.read("routes.map"));

    let damages: [&dyn Fn(); 4] = [
        // Died between the two renames of another publication.
        &|| std::fs::write(rig.path("routes.map"), format!("{0} {0}:{1}\n", host("todo"), todo.port)).unwrap(),
        &|| std::fs::write(rig.path("haproxy.cfg"), format!("{cfg}\n# mine\n")).unwrap(),
        &|| std::fs::remove_file(rig.path("haproxy.cfg")).unwrap(),
        &|| std::fs::remove_dir_all(rig.path("errors")).unwrap(),
    ];
    for damage in damages {
        damage();
        let published = rig.haproxy().publish_alone(&of).await.unwrap();
        assert_eq!((&published.generation, published.standing), (&generation, Standing::Live));
        assert_eq!((rig.read("haproxy.cfg"), rig.read("routes.map")), (cfg.clone(), map.clone()));
        assert!(rig.path("errors/503.http").exists());
    }

    // A HAProxy that is started between the two renames serves what both files agree on.
    std::fs::write(rig.path("routes.map"), format!("{map}{0} {0}:{1}\n", host("todo"), todo.port)).unwrap();
    rig.stop();
    rig.start().await;
    assert_eq!(rig.get("notes.alice.haas.localhost", "/").await.by(), "notes");
    assert_eq!(rig.get("todo.alice.haas.localhost", "/").await.by(), "todo");
}

async fn a_hoodie_that_restarts_is_only_slow(live: bool) {
    let mut rig = Rig::new(live);
    let notes = Stub::new("notes").await;
    let port = notes.port;
    serving(&mut rig, &routes(&[("notes", port)])).await;
    assert_eq!(rig.get("notes.alice.haas.localhost", "/").await.by(), "notes");
    drop(notes);
    let started = Instant::now();
    let (answer, _again) = tokio::join!(rig.get("notes.alice.haas.localhost", "/"), async {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        Stub::at("again", port).await
    });
    assert_eq!((answer.status, answer.by()), (200, "again"));
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
}

async fn heartbeats_keep_a_stream_alive_and_slow_heads_are_cut_off(live: bool) {
    let mut rig = Rig::new(live);
    let notes = Stub::new("notes").await;
    // The same file with shorter times: a heartbeat comes each tenth of a second here.
    rig.template("0s\n", "00ms\n");
    rig.settings.head_timeout = Duration::from_millis(100);
    let of = routes(&[("notes", notes.port)]);
    serving(&mut rig, &of).await;
    let cfg = rig.read("haproxy.cfg");
    for line in ["timeout client 1800ms", "timeout server 1800ms", "timeout http-request 100ms"] {
        assert!(cfg.contains(line), "{line}");
    }
    let mut slow = Client::connect(rig.port).await;
    slow.send("GET / HTTP/1.1\r\nHost: notes.alice.haas.localhost\r\n").await;
    assert_eq!(slow.answer().await.status, 408);

    let mut stream = Client::connect(rig.port).await;
    stream.send("GET /stream HTTP/1.1\r\nHost: notes.alice.haas.localhost\r\n\r\n").await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(4) {
        assert!(stream.bytes().await > 0, "cut off after {:?}", started.elapsed());
    }
}

async fn publications_at_the_same_time_come_one_after_the_other(live: bool) {
    let mut rig = Rig::new(live);
    serving(&mut rig, &routes(&[])).await;
    let haproxy = rig.haproxy();
    let sets: Vec<Routes> = (5521..5526).map(|port| routes(&[("notes", port)])).collect();
    let published = futures_util::future::join_all(sets.iter().map(|of| haproxy.publish_alone(of))).await;
    for one in &published {
        assert_eq!(one.as_ref().unwrap().standing, Standing::Live);
    }
    let running = haproxy.running_generation().await.unwrap().unwrap();
    let last = published.iter().flatten().position(|one| one.generation == running).unwrap();
    assert_eq!(rig.read("routes.map"), format!("{0} {0}:{1}\n", host("notes"), 5521 + last));
}

async fn a_missing_program_is_called_missing(live: bool) {
    let mut rig = Rig::new(live);
    rig.settings.binary = PathBuf::from("/nowhere/haproxy");
    let result = rig.haproxy().publish_alone(&routes(&[])).await;
    assert!(matches!(result, Err(HaproxyError::Missing { .. })), "{result:?}");
    assert!(!rig.path("haproxy.cfg").exists());
}

async fn a_candidate_can_be_looked_at_without_being_used(live: bool) {
    let rig = Rig::new(live);
    let haproxy = rig.haproxy();
    let candidate = haproxy.render_candidate(&routes(&[("notes", 5521)])).await.unwrap();
    assert_eq!(haproxy.check(&candidate).await.unwrap().candidate(), &candidate);
    assert!(!rig.path("haproxy.cfg").exists());
    let published = haproxy.publish_alone(&routes(&[("notes", 5521)])).await.unwrap();
    assert_eq!(published.generation, candidate.generation());
    assert_eq!(rig.read("haproxy.cfg"), candidate.cfg());
}

macro_rules! both_ways {
    ($($test:ident),+ $(,)?) => {
        mod with_the_live_lane {
            $(#[tokio::test]
            async fn $test() {
                super::$test(true).await;
            })+
        }
        mod by_reloads_alone {
            $(#[tokio::test]
            async fn $test() {
                super::$test(false).await;
            })+
        }
    };
}

both_ways! {
    every_host_reaches_its_own_app_by_its_section,
    every_host_reaches_its_own_app_without_sections,
    what_only_a_proxy_may_say_is_never_taken_from_a_client,
    when_nobody_answers_haproxy_does_in_a_form_that_pages_of_other_origins_can_read,
    of_several_control_servers_one_that_lives_answers,
    what_is_there_already_is_neither_written_nor_signalled,
    a_broken_template_is_refused_in_haproxys_words_and_the_old_file_serves,
    a_client_that_was_kept_alive_is_answered_across_a_reload,
    an_open_stream_survives_a_reload_and_is_seen,
    an_open_stream_survives_a_reload_and_is_seen_without_sections,
    a_generation_that_does_not_come_up_makes_way_for_the_last_good_one,
    a_haproxy_that_is_down_gets_its_files_and_is_picked_up_when_it_comes,
    a_worker_that_runs_something_else_is_told_even_if_the_files_are_right,
    files_that_are_torn_tampered_with_or_gone_are_written_anew,
    a_hoodie_that_restarts_is_only_slow,
    heartbeats_keep_a_stream_alive_and_slow_heads_are_cut_off,
    publications_at_the_same_time_come_one_after_the_other,
    a_missing_program_is_called_missing,
    a_candidate_can_be_looked_at_without_being_used,
}
