//! The engine is restarted under running tenants. It is the machine's own engine, so this runs
//! only where `HAAS_TEST_MAY_RESTART_DOCKER=1` says that nobody else depends on it; scripts/test
//! does, where no init system runs the engine. A binary of its own, since others use the engine.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::eventually;
use support::installation::Installation;

const LIMIT: Duration = Duration::from_secs(90);
const PID_FILE: &str = "/var/run/docker.pid";

fn engine() -> Option<(i32, Vec<String>)> {
    let pid: i32 = std::fs::read_to_string(PID_FILE).ok()?.trim().parse().ok()?;
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let command: Vec<String> = command.split_terminator('\0').map(str::to_owned).collect();
    command.first()?.ends_with("dockerd").then_some((pid, command))
}

async fn end_engine(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    eventually("dockerd has ended", LIMIT, || async {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie is gone, too: in a bare container nobody may reap it.
        (stat.is_empty() || stat.rsplit(')').next().unwrap().trim_start().starts_with('Z')).then_some(())
    })
    .await;
}

fn start_engine(command: &[String]) {
    let log = std::fs::OpenOptions::new().create(true).append(true).open("/var/log/haas-dockerd.log").unwrap();
    let mut started = std::process::Command::new("setsid");
    started.args(["--fork"]).args(command).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    assert!(started.status().unwrap().success());
}

#[tokio::test]
async fn the_engine_restarted_heals_and_no_app_misses_a_request() {
    if std::env::var("HAAS_TEST_MAY_RESTART_DOCKER").as_deref() != Ok("1") {
        eprintln!("left out: HAAS_TEST_MAY_RESTART_DOCKER is not 1");
        return;
    }
    let (pid, command) = engine().expect("dockerd is the engine");
    let haas = Installation::up_with("[http]\nwait = \"3s\"\n[reconcile]\nperiod = \"2s\"").await;
    let alice = haas.provision("alice", "notes").await;
    alice.sign_up("carol").await;
    let sleeper = haas.provision("sleeper", "notes").await;
    sleeper.sign_up("dave").await;
    haas.order("sleep", "sleeper", "notes").await;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let probing = tokio::spawn({
        let alice = alice.clone();
        async move {
            let (mut asked, mut failed) = (0, Vec::new());
            while !*stopped.borrow_and_update() {
                match alice.get("/hoodie/").await {
                    Ok(answer) if answer.status() == 200 => {}
                    other => failed.push(format!("{other:?}")),
                }
                asked += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (asked, failed)
        }
    });

    end_engine(pid).await;
    // While it is down, an intent is kept, and the part is named.
    let answer = haas.post("/provision", &haas.request("bob", "notes")).await.unwrap();
    let status = answer.status();
    let seen = eventually("readyz names it", LIMIT, || async {
        let body: Value = haas.control("/readyz").await.ok()?.json().await.ok()?;
        (body["docker"]["ok"] == false).then_some(body)
    })
    .await;
    start_engine(&command);
    assert_eq!(status, 202);
    assert_eq!(seen["postgres"]["ok"], true);
    haas.running_again("bob", "notes", LIMIT).await;
    haas.running_again("alice", "notes", LIMIT).await;
    stop.send(true).unwrap();
    let (asked, failed) = probing.await.unwrap();
    assert!(asked > 20 && failed.is_empty(), "{} of {asked} failed: {failed:?}", failed.len());
    assert!(alice.knows("carol").await);
    assert_eq!(haas.containers().await.len(), 3);
    // Who slept, sleeps on.
    assert_eq!(haas.instance("sleeper", "notes").await["state"], "asleep");
    assert!(sleeper.knows("dave").await);
}
