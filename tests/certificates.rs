//! Certificates on a real HAProxy: they come, change and go while it runs, and nothing that is
//! wrong with one of them reaches it.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

#[path = "support/https.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod https;
#[path = "support/haproxy.rs"]
mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use haas::config::Public;
use haas::haproxy::{Haproxy, Proxy, RouteChange, Routes, Standing};
use haas::instance::name::Hostname;
use https::{Elsewhere, Made, client_of, given, shown};
use support::{Rig, Stub, free_port, host, route, routes};

fn rig(local_ca: bool) -> Rig {
    let mut rig = Rig::new(true);
    let port = free_port();
    rig.settings.https_bind = format!("127.0.0.1:{port}");
    rig.settings.public = Public { https: true, port };
    rig.settings.tls.local_ca = local_ca;
    rig
}

fn tls(rig: &Rig) -> PathBuf {
    rig.settings.tls.dir.clone()
}

async fn publish(haproxy: &Haproxy, of: &Routes) {
    let published = haproxy.publish_alone(of).await.unwrap();
    assert_eq!((published.standing, published.trouble), (Standing::Live, None));
}

async fn started(rig: &mut Rig, of: &Routes) -> Haproxy {
    let haproxy = rig.haproxy();
    haproxy.publish_alone(of).await.unwrap();
    rig.start().await;
    publish(&haproxy, of).await;
    haproxy
}

async fn current(haproxy: &Haproxy) -> i32 {
    haproxy.workers().await.unwrap()[0].pid
}

async fn reasons(haproxy: &Haproxy) -> String {
    let refused = haproxy.certificates().await.unwrap().refused;
    refused
        .into_iter()
        .map(|refusal| [refusal.file, ": ".to_owned(), refusal.reason, "\n".to_owned()].concat())
        .collect()
}

#[tokio::test]
async fn an_operators_certificates_come_change_and_go_without_a_reload() {
    let mut rig = rig(false);
    let notes = Stub::new("notes").await;
    let port = rig.settings.public.port;
    let of = routes(&[("notes", notes.port)]);
    let haproxy = started(&mut rig, &of).await;
    let worker = current(&haproxy).await;
    let name = "notes.alice.haas.localhost";
    assert_eq!(shown(port, name).await, None, "no certificate, no connection");

    let first = Made::new(&["*.alice.haas.localhost"]);
    fs::write(given(&tls(&rig), "a.pem"), first.pem()).unwrap();
    publish(&haproxy, &of).await;
    assert_eq!(shown(port, name).await, Some(first.fingerprint));
    assert_eq!(shown(port, "x.notes.alice.haas.localhost").await, None);

    // It trusts this one alone, and has a stream open while the certificate changes.
    let ca = rig.path("first.pem");
    fs::write(&ca, &first.certificate).unwrap();
    let client = client_of(&ca);
    let mut stream = client.get(format!("https://{name}:{port}/stream")).send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());

    let second = Made::new(&["*.alice.haas.localhost", "haas.localhost"]);
    fs::write(given(&tls(&rig), "a.pem"), second.pem()).unwrap();
    let other = Made::new(&["www.example.org"]);
    fs::write(given(&tls(&rig), "b.pem"), other.pem()).unwrap();
    publish(&haproxy, &of).await;
    assert_eq!(shown(port, name).await.as_ref(), Some(&second.fingerprint));
    assert_eq!(shown(port, "haas.localhost").await.as_ref(), Some(&second.fingerprint));
    assert_eq!(shown(port, "www.example.org").await, Some(other.fingerprint));

    fs::remove_file(given(&tls(&rig), "b.pem")).unwrap();
    publish(&haproxy, &of).await;
    assert_eq!(shown(port, "www.example.org").await, None);
    assert_eq!(shown(port, name).await, Some(second.fingerprint));

    for _ in 0..5 {
        assert!(stream.chunk().await.unwrap().is_some(), "the stream goes on");
    }
    assert_eq!(current(&haproxy).await, worker, "nothing was reloaded");
}

#[tokio::test]
async fn a_broken_certificate_is_refused_and_the_one_before_it_serves_on() {
    let mut rig = rig(false);
    let notes = Stub::new("notes").await;
    let (port, name) = (rig.settings.public.port, "notes.alice.haas.localhost");
    let of = routes(&[("notes", notes.port)]);
    let good = Made::new(&["*.alice.haas.localhost"]);
    fs::write(given(&tls(&rig), "a.pem"), good.pem()).unwrap();
    let haproxy = started(&mut rig, &of).await;
    let serves = async || shown(port, name).await.as_ref() == Some(&good.fingerprint);
    assert!(serves().await);

    let stranger = Made::new(&["*.alice.haas.localhost"]);
    let expired = Made::with(&["*.alice.haas.localhost"], |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 2, 2);
    });
    for (text, reason) in [
        ("garbage".to_owned(), "it has no certificate"),
        (good.certificate.clone(), "it has no private key"),
        (format!("{}{}", good.certificate, stranger.key), "does not belong"),
        (expired.pem(), "it expired on 2020-02-02"),
        (stranger.with_weak_chain(), "HAProxy refused it: unable to load chain"),
    ] {
        for file in ["a.pem", "new.pem"] {
            fs::write(given(&tls(&rig), file), &text).unwrap();
        }
        publish(&haproxy, &of).await;
        assert!(serves().await, "{reason}");
        let told = reasons(&haproxy).await;
        for file in ["a.pem: ", "new.pem: "] {
            let line = told.lines().find(|line| line.starts_with(file)).unwrap_or_default();
            assert!(line.contains(reason), "{told}");
        }
    }
    // Nothing of it stands in the way of a start.
    rig.stop();
    rig.start().await;
    assert!(serves().await);
    let right = Made::new(&["www.example.org"]);
    fs::write(given(&tls(&rig), "new.pem"), right.pem()).unwrap();
    fs::remove_file(given(&tls(&rig), "a.pem")).unwrap();
    publish(&haproxy, &of).await;
    assert_eq!(shown(port, "www.example.org").await, Some(right.fingerprint));
    assert!(!serves().await);
    assert_eq!(reasons(&haproxy).await, "");
}

#[tokio::test]
async fn the_local_ca_covers_an_app_before_its_route_is_told() {
    let mut rig = rig(true);
    let (notes, todo) = (Stub::new("notes").await, Stub::new("todo").await);
    let port = rig.settings.public.port;
    let of = routes(&[("notes", notes.port)]);
    let haproxy = started(&mut rig, &of).await;
    let client = client_of(&tls(&rig).join("ca.pem"));
    let by = async |host: &str| {
        let answer = client.get(format!("https://{host}:{port}/")).send().await.ok()?;
        Some(answer.text().await.unwrap().lines().next().unwrap_or_default().to_owned())
    };
    assert_eq!(by("notes.alice.haas.localhost").await.as_deref(), Some("notes"));
    let mut stream = client.get(format!("https://{}:{port}/stream", host("notes"))).send().await.unwrap();
    let worker = current(&haproxy).await;

    // Another user, and a host elsewhere.
    let mut bobs = route("todo", todo.port);
    bobs.host = Hostname::parse("todo.bob.haas.localhost").unwrap();
    bobs.extra_hosts = vec![Hostname::parse("todo.example.org").unwrap()];
    assert!(haproxy.change(&RouteChange::Set(bobs.clone())).await.unwrap());
    for host in bobs.hosts() {
        assert_eq!(by(host.as_str()).await.as_deref(), Some("todo"), "{host}");
    }
    assert_eq!(by("other.example.org").await, None);
    let files = fs::read_dir(tls(&rig).join("live")).unwrap().count();
    assert_eq!(files, 2, "the domain's leaf, and one that both users share");
    // An app more of theirs needs no certificate more.
    let before = shown(port, "todo.bob.haas.localhost").await;
    let mut more = bobs.clone();
    (more.host, more.extra_hosts) = (Hostname::parse("more.bob.haas.localhost").unwrap(), Vec::new());
    assert!(haproxy.change(&RouteChange::Set(more)).await.unwrap());
    assert_eq!(by("more.bob.haas.localhost").await.as_deref(), Some("todo"));
    assert_eq!(shown(port, "todo.bob.haas.localhost").await, before);
    assert!(stream.chunk().await.unwrap().is_some(), "the stream goes on");
    assert_eq!(current(&haproxy).await, worker, "nothing was reloaded");
    // Who is gone is told so, by HTTPS.
    assert!(haproxy.change(&RouteChange::Unset(vec![bobs.host.clone()])).await.unwrap());
    let gone = client.get("https://todo.bob.haas.localhost:".to_owned() + &port.to_string()).send().await.unwrap();
    assert_eq!(gone.status(), 503, "the control API's to answer, which does not run here");
}

#[tokio::test]
async fn custom_domains_that_come_and_go_leave_few_files_and_no_moment_without_a_certificate() {
    let mut rig = rig(true);
    let (notes, todo, control) = (Stub::new("notes").await, Stub::new("todo").await, Stub::new("control").await);
    rig.settings.control = vec![format!("127.0.0.1:{}", control.port)];
    // Sections can wait: a worker that is new has no certificate to lose.
    rig.settings.reload_min_interval = Duration::from_hours(1);
    let port = rig.settings.public.port;
    let sleeper = Hostname::parse("sleeper.example.net").unwrap();
    let haproxy = started(&mut rig, &routes(&[("notes", notes.port)])).await;
    let mut slept = route("todo", todo.port);
    slept.host = sleeper.clone();
    assert!(haproxy.change(&RouteChange::Set(slept)).await.unwrap());
    let worker = current(&haproxy).await;
    let live = tls(&rig).join("live");
    let files = || fs::read_dir(&live).unwrap().count();

    // A browser that comes to both all the while.
    let over = Arc::new(AtomicBool::new(false));
    let comes = |host: &'static str| {
        let over = Arc::clone(&over);
        tokio::spawn(async move {
            let (mut times, mut refused) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                times += 1;
                refused += u32::from(shown(port, host).await.is_none());
            }
            (times, refused)
        })
    };
    let visitors = [comes("notes.alice.haas.localhost"), comes("sleeper.example.net")];
    let (mut most, mut packed, mut last) = (0, 0, Vec::new());
    for round in 0..50 {
        let mut with = route("notes", notes.port);
        last = (0..16).map(|at| Hostname::parse(&format!("h{at}.r{round}.example.org")).unwrap()).collect();
        with.extra_hosts.clone_from(&last);
        // By the lane, and by the publication after it. The other app sleeps by now: it has no route.
        assert!(haproxy.change(&RouteChange::Set(with.clone())).await.unwrap());
        let before = files();
        publish(&haproxy, &Routes::new([with]).with_unrouted(vec![sleeper.clone()])).await;
        packed += u32::from(files() < before);
        most = most.max(files());
    }
    over.store(true, Ordering::Relaxed);
    for visitor in visitors {
        let (times, refused) = visitor.await.unwrap();
        assert!(times > 20 && refused == 0, "{refused} of {times} had no certificate");
    }
    assert!(packed > 0 && most <= 6, "{most} files, packed {packed} times");
    for host in last.iter().chain([&sleeper, &host("notes")]) {
        assert!(shown(port, host.as_str()).await.is_some(), "{host}");
    }
    assert!(shown(port, "haas.localhost").await.is_some());
    assert_eq!(shown(port, "h0.r0.example.org").await, None, "forgotten by now");
    assert_eq!(current(&haproxy).await, worker, "nothing was reloaded");
    assert!(haproxy.certificates().await.unwrap().amiss.is_empty());
    let cfg = rig.settings.dir.join("haproxy.cfg");
    let check = Command::new(&rig.settings.binary).arg("-c").arg("-f").arg(&cfg).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    // A worker that loads the folder has them all.
    rig.stop();
    rig.start().await;
    for host in last.iter().chain([&sleeper, &host("notes")]) {
        assert!(shown(port, host.as_str()).await.is_some(), "{host}");
    }
}

#[tokio::test]
async fn whatever_made_haproxy_differ_is_repaired() {
    let mut rig = rig(true);
    let notes = Stub::new("notes").await;
    let (port, name) = (rig.settings.public.port, "notes.alice.haas.localhost");
    let of = routes(&[("notes", notes.port)]);
    started(&mut rig, &of).await;
    let live = tls(&rig).join("live");
    let leaf = live.join("haas-0001.pem");
    let first = shown(port, name).await.unwrap();
    let tell = |rig: &Rig, commands: &str| {
        let socket = rig.settings.stats_socket.clone();
        let commands = commands.to_owned();
        async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
            stream.write_all(commands.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }
    };
    // Somebody takes it away by hand.
    let (folder, path) = (live.display(), leaf.display());
    let answer = tell(&rig, &format!("del ssl crt-list {folder}/ {path};del ssl cert {path}\n")).await;
    assert!(answer.contains(&format!("Certificate '{path}' deleted!")), "{answer}");
    assert_eq!(shown(port, name).await, None);
    publish(&rig.haproxy(), &of).await;
    assert_eq!(shown(port, name).await.as_ref(), Some(&first));
    // Another one is in its place, and a transaction was begun and left.
    let other = Made::new(&["*.alice.haas.localhost"]);
    tell(&rig, &format!("set ssl cert {path} <<\n{}\n", other.pem())).await;
    tell(&rig, &format!("commit ssl cert {path}\n")).await;
    assert_eq!(shown(port, name).await, Some(other.fingerprint.clone()));
    let own = live.join("haas-0000.pem");
    let answer = tell(&rig, &format!("set ssl cert {} <<\n{}\n", own.display(), other.pem())).await;
    assert!(answer.contains("Transaction created"), "{answer}");
    publish(&rig.haproxy(), &of).await;
    assert_eq!(shown(port, name).await.as_ref(), Some(&first));
    // A stranger among them, and a file that a crash has torn: the folder is put right, too.
    fs::write(live.join("zzz.pem"), "torn").unwrap();
    fs::write(&leaf, "torn").unwrap();
    publish(&rig.haproxy(), &of).await;
    let second = shown(port, name).await.unwrap();
    assert_ne!(second, first);
    let haproxy = rig.haproxy();
    assert!(haproxy.certificates().await.unwrap().amiss.is_empty());
    // HAProxy ends and comes back behind our back, and has them all.
    rig.stop();
    rig.start().await;
    assert_eq!(shown(port, name).await.as_ref(), Some(&second));
    assert!(shown(port, "haas.localhost").await.is_some());
}

#[tokio::test]
async fn what_is_too_long_for_the_socket_comes_by_a_reload() {
    let mut rig = rig(false);
    let notes = Stub::new("notes").await;
    let port = rig.settings.public.port;
    let of = routes(&[("notes", notes.port)]);
    let haproxy = started(&mut rig, &of).await;
    let worker = current(&haproxy).await;
    let long = Made::new(&["*.alice.haas.localhost"]);
    let chain: String = (0..30).map(|_| Made::new(&["ca.example"]).certificate).collect();
    fs::write(given(&tls(&rig), "long.pem"), format!("{}{chain}{}", long.certificate, long.key)).unwrap();
    publish(&haproxy, &of).await;
    assert_eq!(shown(port, "notes.alice.haas.localhost").await, Some(long.fingerprint));
    assert_ne!(current(&haproxy).await, worker);
    let worker = current(&haproxy).await;
    publish(&haproxy, &of).await;
    assert_eq!(current(&haproxy).await, worker, "once is enough");
}

#[tokio::test]
async fn a_ca_that_can_not_be_used_stops_no_route() {
    let mut rig = rig(true);
    let notes = Stub::new("notes").await;
    started(&mut rig, &routes(&[("notes", notes.port)])).await;
    fs::remove_file(tls(&rig).join("ca.key")).unwrap();
    let haproxy = rig.haproxy();
    let mut bobs = route("todo", notes.port);
    bobs.host = Hostname::parse("todo.bob.haas.localhost").unwrap();
    let more = Routes::new([route("notes", notes.port), route("more", notes.port), bobs.clone()]);
    let published = haproxy.publish_alone(&more).await.unwrap();
    assert_eq!(published.standing, Standing::Live);
    let trouble = published.trouble.unwrap();
    assert!(trouble.starts_with("certificates: ca.key does not belong to ca.pem"), "{trouble}");
    assert!(!haproxy.change(&RouteChange::Set(bobs)).await.unwrap(), "nobody is told that it is there");
    let port = rig.settings.public.port;
    for host in ["notes.alice.haas.localhost", "more.alice.haas.localhost"] {
        assert!(shown(port, host).await.is_some(), "{host}");
    }
    assert_eq!(shown(port, "todo.bob.haas.localhost").await, None);
}

#[tokio::test]
async fn an_answer_counts_only_by_https_with_a_certificate_for_the_host() {
    let mut rig = rig(true);
    let notes = Stub::new("notes").await;
    let haproxy = started(&mut rig, &routes(&[("notes", notes.port)])).await;
    assert!(haproxy.answers(&host("notes")).await);
    assert!(!haproxy.answers(&Hostname::parse("notes.bob.haas.localhost").unwrap()).await);
    // The operator's own is for the operator's users to trust, also beside a local CA.
    let other = Made::new(&["*.haas.localhost"]);
    fs::write(given(&tls(&rig), "other.pem"), other.pem()).unwrap();
    let mut flat = route("notes", notes.port);
    flat.host = Hostname::parse("notes--alice.haas.localhost").unwrap();
    rig.settings.tls.local_ca = false;
    let without = rig.haproxy();
    publish(&without, &Routes::new([flat.clone()])).await;
    assert!(without.answers(&flat.host).await, "without one, any that is for the host");
    assert!(haproxy.answers(&flat.host).await, "beside one, too");
    fs::remove_file(given(&tls(&rig), "other.pem")).unwrap();
    assert!(!haproxy.answers(&flat.host).await, "what the local CA does not vouch for, where it is alone");
}

#[tokio::test]
async fn in_the_clear_only_this_machine_reaches_the_control_api() {
    let elsewhere = Elsewhere::new();
    let mut rig = rig(true);
    let (notes, control) = (Stub::new("notes").await, Stub::new("control").await);
    rig.settings.control = vec![format!("127.0.0.1:{}", control.port)];
    rig.settings.http_bind = format!("{}:{},127.0.0.1:{}", elsewhere.address, rig.port, rig.port);
    let of = routes(&[("notes", notes.port)]);
    started(&mut rig, &of).await;
    let (http, https) = (rig.port, rig.settings.public.port);
    let there = async |path: &str| elsewhere.status(http, "haas.localhost", path).await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(there(path).await, "200");
    }
    for path in ["/provision", "/instances", "/", "//healthz", "/healthz/", "/readyzz"] {
        assert_eq!(there(path).await, "403", "{path}");
    }
    for host in ["haas.localhost:8080", "HAAS.localhost."] {
        assert_eq!(elsewhere.status(http, host, "/provision").await, "403", "{host}");
    }
    let app = elsewhere.status(http, "notes.alice.haas.localhost", "/hoodie/?a=b").await;
    assert_eq!(app, format!("308 https://notes.alice.haas.localhost:{https}/hoodie/?a=b"));
    for path in ["/healthz", "/provision"] {
        let here = rig.get("haas.localhost", path).await;
        assert_eq!((here.status, here.by()), (200, "control"), "{path}");
    }
    rig.settings.allow_insecure = true;
    publish(&rig.haproxy(), &of).await;
    assert_eq!(there("/provision").await, "200");
}

#[tokio::test]
async fn only_modern_tls_is_spoken() {
    let mut rig = rig(true);
    let notes = Stub::new("notes").await;
    started(&mut rig, &routes(&[("notes", notes.port)])).await;
    let (ca, port) = (tls(&rig).join("ca.pem"), rig.settings.public.port);
    let spoken = |version: &str| {
        let output = Command::new("openssl")
            .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", "haas.localhost"])
            .args([version, "-cipher", "ALL:@SECLEVEL=0", "-alpn", "h2,http/1.1", "-verify_return_error", "-CAfile"])
            .arg(&ca)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("CONNECTED"), "{said}");
        said.contains("ALPN protocol: h2")
    };
    assert!(spoken("-tls1_3") && spoken("-tls1_2"));
    assert!(!spoken("-tls1_1") && !spoken("-tls1"));
}

#[tokio::test]
async fn slow_heads_on_plain_http_take_no_room_from_https() {
    let mut rig = rig(true);
    rig.settings.maxconn = 20;
    rig.settings.app_maxconn = 20;
    let notes = Stub::new("notes").await;
    started(&mut rig, &routes(&[("notes", notes.port)])).await;
    let mut slow = Vec::new();
    for _ in 0..150 {
        let mut client = support::Client::connect(rig.port).await;
        client.try_send("GET / HTTP/1.1\r\nHost: ").await;
        slow.push(client);
    }
    let client = client_of(&tls(&rig).join("ca.pem"));
    let url = format!("https://notes.alice.haas.localhost:{}/", rig.settings.public.port);
    assert_eq!(client.get(url).send().await.unwrap().status(), 200);
}
