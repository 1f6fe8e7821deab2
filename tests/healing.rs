//! What breaks around the server heals without a request, and the apps that were not touched
//! answer throughout.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::eventually;
use support::hoodie::Hoodie;
use support::installation::{Installation, docker};

const LIMIT: Duration = Duration::from_mins(1);

/// Asks an app all the time, and counts what went wrong.
struct Prober {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(u32, Vec<String>)>,
    asked: Arc<AtomicU32>,
}

impl Prober {
    fn start(hoodie: Hoodie) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                match hoodie.get("/hoodie/").await {
                    Ok(answer) if answer.status() == 200 => {}
                    Ok(answer) => failures.push(answer.status().to_string()),
                    Err(error) => failures.push(format!("{error:?}")),
                }
                count.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (count.load(Ordering::SeqCst), failures)
        });
        Self { stop, task, asked }
    }

    async fn none_failed(self) {
        let before = self.asked.load(Ordering::SeqCst);
        eventually("some more requests", LIMIT, || async {
            (self.asked.load(Ordering::SeqCst) > before + 5).then_some(())
        })
        .await;
        self.stop.store(true, Ordering::SeqCst);
        let (asked, failures) = self.task.await.unwrap();
        assert!(failures.is_empty(), "{} of {asked} requests failed: {failures:?}", failures.len());
    }
}

async fn pids(pattern: &str) -> Vec<i32> {
    let output = tokio::process::Command::new("pgrep").args(["-f", pattern]).output().await.unwrap();
    String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.parse().ok()).collect()
}

#[tokio::test]
async fn a_container_that_is_removed_killed_or_stopped_by_hand_is_back_with_its_data() {
    let haas = Installation::up_with("[reconcile]\nperiod = \"10m\"").await;
    let alice = haas.provision("alice", "notes").await;
    let bob = haas.provision("bob", "notes").await;
    alice.sign_up("carol").await;
    let prober = Prober::start(bob);
    let name = haas.container("alice", "notes");
    for command in [&["rm", "-f"][..], &["kill"], &["stop", "-t", "1"], &["pause"]] {
        let before = docker(&["inspect", "-f", "{{.Id}} {{.State.StartedAt}} {{.State.Paused}}", &name]).await;
        docker(&[command, &[name.as_str()]].concat()).await;
        eventually(&format!("back after docker {command:?}"), LIMIT, || async {
            let answers = alice.answers().await && haas.instance("alice", "notes").await["state"] == "running";
            let mut paused = tokio::process::Command::new("docker");
            let paused = paused.args(["inspect", "-f", "{{.State.Paused}}", &name]).output().await.unwrap();
            (answers && paused.stdout == b"false\n").then_some(())
        })
        .await;
        assert!(alice.knows("carol").await, "after docker {command:?}; before: {before}");
        assert_eq!(haas.containers().await.len(), 2);
    }
    prober.none_failed().await;
}

#[tokio::test]
async fn a_hoodie_that_crashes_is_back_without_a_reload() {
    let haas = Installation::up().await;
    let alice = haas.provision("alice", "notes").await;
    alice.sign_up("carol").await;
    // Its section comes with a reload of its own.
    eventually("it has its section", LIMIT, || async { (haas.haas(&["config", "--diff"]).await.0 == 0).then_some(()) })
        .await;
    let generation = |text: &str| text.lines().find(|line| line.contains("haas_generation")).map(str::to_owned);
    let before = generation(&haas.haas(&["config"]).await.1);
    let pid = docker(&["inspect", "-f", "{{.State.Pid}}", &haas.container("alice", "notes")]).await;
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    eventually("back", LIMIT, || async {
        (alice.answers().await && haas.instance("alice", "notes").await["phase"] == "running").then_some(())
    })
    .await;
    assert!(alice.knows("carol").await);
    assert_eq!(generation(&haas.haas(&["config"]).await.1), before);
}

#[tokio::test]
async fn haproxy_killed_is_back_with_every_route() {
    let haas = Installation::up().await;
    let alice = haas.provision("alice", "notes").await;
    alice.sign_up("carol").await;
    let masters = pids(&format!("haproxy -W -S {}", haas.layout.master_socket().display())).await;
    assert!(!masters.is_empty());
    for pid in masters {
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    eventually("back", LIMIT, || async { alice.answers().await.then_some(()) }).await;
    assert!(alice.knows("carol").await);
    haas.provision("bob", "notes").await;
    assert_eq!(haas.haas(&["doctor"]).await.0, 0);
}

#[tokio::test]
async fn postgres_killed_is_answered_503_and_heals_while_every_app_answers() {
    let haas = Installation::up_with("[reconcile]\nperiod = \"1s\"").await;
    let alice = haas.provision("alice", "notes").await;
    let prober = Prober::start(alice.clone());
    // Frozen first: nobody gets an answer, and the server must not hang with it.
    let all = pids(&format!("postgres.*{}", haas.layout.postgres_data().display())).await;
    let postmaster: i32 = std::fs::read_to_string(haas.layout.postgres_data().join("postmaster.pid"))
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(all.contains(&postmaster));
    let backends = pids("^postgres: haas").await;
    let own: Vec<i32> = backends.into_iter().filter(|pid| parent(*pid) == Some(postmaster)).collect();
    for pid in own.iter().chain([&postmaster]) {
        kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap();
    }
    let began = std::time::Instant::now();
    let answer = haas.post("/provision", &haas.request("bob", "notes")).await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(answer.headers().contains_key("retry-after"));
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["type"], "urn:haas:problem:unavailable");
    assert_eq!(body.as_object().unwrap().len(), 3, "no cause in it: {body}");
    eventually("readyz names it", LIMIT, || async {
        let answer = haas.control("/readyz").await.ok()?;
        let (status, body) = (answer.status(), answer.json::<Value>().await.ok()?);
        (status == 503 && body["postgres"]["ok"] == false).then_some(())
    })
    .await;
    kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
    for pid in own {
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    eventually("provisioning works again", LIMIT, || async {
        let answer = haas.post("/provision", &haas.request("bob", "notes")).await.ok()?;
        (answer.status().is_success() && answer.status() != 202).then_some(())
    })
    .await;
    prober.none_failed().await;
    assert_eq!(haas.sql("SELECT count(*) FROM instances").await, "2");
    assert_eq!(haas.containers().await.len(), 2);
}

fn parent(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

#[tokio::test]
async fn a_hoodie_that_never_answers_fails_with_its_last_words_and_harms_nobody() {
    // An image whose program only talks.
    let image = format!("{}-mute", support::unique());
    let dockerfile = "FROM haas/hoodie:28.2.10\nENTRYPOINT [\"node\", \"-e\", \"console.log('no reason to live'); setInterval(() => {}, 1000)\"]\nCMD []\n";
    let context = tempfile::tempdir().unwrap();
    std::fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
    docker(&["build", "-q", "-t", &image, &context.path().display().to_string()]).await;
    let settings = format!(
        "[tenant]\nimage = \"{image}\"\nready_timeout = \"2s\"\nstop_timeout = \"1s\"\n[reconcile]\nbackoff_base = \"1s\"\n[http]\nwait = \"8s\""
    );
    let haas = Installation::up_with(&settings).await;
    let answer = haas.post("/provision", &haas.request("alice", "notes")).await.unwrap();
    assert_eq!(answer.status(), 202);
    let row = eventually("it has failed", LIMIT, || async {
        let row = haas.instance("alice", "notes").await;
        (row["state"] == "failed").then_some(row)
    })
    .await;
    assert!(row["last_error"].as_str().unwrap().contains("did not answer"), "{row}");
    let user = haas.user("alice");
    let (code, shown, _) = haas.haas(&["show", &user, "notes"]).await;
    assert_eq!(code, 0);
    assert!(shown.contains("no reason to live"), "{shown}");
    let (code, doctor, _) = haas.haas(&["doctor"]).await;
    assert_eq!(code, 3);
    assert!(doctor.contains("did not answer"), "{doctor}");
    assert_eq!(haas.hoodie("alice", "notes").get("/hoodie/").await.unwrap().status(), 503);
    eventually("it is tried again", LIMIT, || async {
        let attempts: u32 = haas.sql("SELECT attempts FROM instances").await.parse().unwrap();
        (attempts >= 2).then_some(())
    })
    .await;
    let (status, body) = haas.deprovision("alice", "notes").await;
    assert!(status == 200 || status == 202, "{body}");
    eventually("nothing is leaked", LIMIT, || async { haas.containers().await.is_empty().then_some(()) }).await;
    docker(&["rmi", "-f", &image]).await;
}

#[tokio::test]
async fn a_port_that_something_else_holds_is_skipped_and_remembered() {
    let haas = Installation::up().await;
    let held = std::net::TcpListener::bind(("127.0.0.1", haas.ports.first)).unwrap();
    let alice = haas.provision("alice", "notes").await;
    assert!(alice.answers().await);
    let row = haas.instance("alice", "notes").await;
    assert_eq!(row["port"], haas.ports.first + 1);
    haas.provision("bob", "notes").await;
    assert_eq!(haas.instance("bob", "notes").await["port"], haas.ports.first + 2);
    assert_eq!(haas.sql("SELECT count(*) FROM events WHERE kind = 'port moved'").await, "1", "not tried again");
    let (_, doctor, _) = haas.haas(&["doctor"]).await;
    assert!(doctor.contains(&format!("something else on this host held {}", haas.ports.first)), "{doctor}");
    drop(held);
}

#[tokio::test]
async fn an_edited_template_is_put_in_force_or_refused_with_the_reason() {
    let mut haas = Installation::prepared("");
    let template = haas.dir.path().join("haproxy.cfg.tera");
    let original = include_str!("../templates/haproxy.cfg.tera");
    std::fs::write(&template, original).unwrap();
    haas.set_environment("HAAS_HAPROXY_TEMPLATE", template.to_str().unwrap());
    haas.start().await;
    let alice = haas.provision("alice", "notes").await;
    let prober = Prober::start(alice.clone());

    std::fs::write(&template, format!("{original}\n# edited by hand\n")).unwrap();
    eventually("the edit is in force", LIMIT, || async {
        let (_, config, _) = haas.haas(&["config"]).await;
        config.contains("# edited by hand").then_some(())
    })
    .await;
    std::fs::write(&template, format!("{original}\nfrontend broken\n    no-such-keyword\n")).unwrap();
    let readiness = eventually("the refusal is told", LIMIT, || async {
        let answer = haas.control("/readyz").await.ok()?;
        let body: Value = answer.json().await.ok()?;
        (body["haproxy"]["ok"] == false).then_some(body)
    })
    .await;
    assert!(readiness["haproxy"]["detail"].as_str().unwrap().contains("no-such-keyword"), "{readiness}");
    assert!(!haas.haas(&["config"]).await.1.contains("no-such-keyword"));
    // The editor of a template is told too, with the same settings.
    let mut command = haas.command(&["doctor"]);
    command.env("HAAS_HAPROXY_TEMPLATE", &template);
    let doctor = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(doctor.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("no-such-keyword"));
    std::fs::write(&template, original).unwrap();
    eventually("well again", LIMIT, || async {
        let answer = haas.control("/readyz").await.ok()?;
        (answer.status() == 200).then_some(())
    })
    .await;
    prober.none_failed().await;
}

#[tokio::test]
async fn orphans_go_after_their_time_and_strangers_stay() {
    let haas = Installation::up_with("[reconcile]\norphan_grace = \"2s\"\nperiod = \"1s\"").await;
    haas.provision("alice", "notes").await;
    let id = haas.sql("SELECT id FROM installation").await;
    let (orphan, stranger) = (format!("{}-orphan", haas.word), format!("{}-stranger", haas.word));
    let label = format!("haas.installation={id}");
    docker(&["create", "--name", &orphan, "--label", &label, "haas/hoodie:28.2.10"]).await;
    docker(&["create", "--name", &stranger, "--label", "haas.installation=another", "haas/hoodie:28.2.10"]).await;
    eventually("the orphan is gone", LIMIT, || async {
        (haas.containers().await == [haas.container("alice", "notes")]).then_some(())
    })
    .await;
    docker(&["rm", "-v", &stranger]).await;
}

#[tokio::test]
async fn an_app_that_streams_is_drained_before_it_goes() {
    let haas = Installation::up().await;
    let alice = haas.provision("alice", "notes").await;
    // A request that is still under way when its app is deprovisioned: a body that comes slowly.
    let slow = {
        let alice = alice.clone();
        tokio::spawn(async move {
            let chunks = futures_util::stream::unfold(0, |n| async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                let text = if n < 9 { " " } else { "{}" };
                (n < 10).then_some((Ok::<_, std::io::Error>(text), n + 1))
            });
            let request = alice.client.put(alice.url("/hoodie/account/api/session")).header("host", &alice.host);
            let request = request.header("content-type", "application/vnd.api+json");
            request.body(reqwest::Body::wrap_stream(chunks)).send().await.unwrap().status()
        })
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (status, body) = haas.deprovision("alice", "notes").await;
    assert_eq!(status, 200, "{body}");
    let answered = slow.await.unwrap();
    assert!(answered.as_u16() < 500, "Hoodie itself has answered: {answered}");
}

#[tokio::test]
async fn two_installations_side_by_side_leave_each_other_alone() {
    let (one, two) = tokio::join!(Installation::up(), Installation::up());
    one.provision("alice", "notes").await;
    // The other wants a name that this one holds.
    let request = json!({ "secret": two.secret(), "username": one.user("alice"),
        "emailaddress": "x@example.com", "appname": "notes" });
    let answer = two.post("/provision", &request).await.unwrap();
    assert_eq!(answer.status(), 409);
    assert!(one.hoodie("alice", "notes").answers().await);
    two.provision("bob", "notes").await;
    let (code, _, errors) = two.haas(&["down", "--remove"]).await;
    assert_eq!(code, 0, "{errors}");
    assert!(two.containers().await.is_empty());
    assert!(one.hoodie("alice", "notes").answers().await);
}
