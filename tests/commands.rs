//! The commands, as an administrator and his scripts use them.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::cluster::Cluster;
use support::installation::Installation;
use support::{eventually, hoodie};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_life_of_an_app_by_commands_alone() {
    let haas = Installation::up().await;
    let user = haas.user("alice");
    let (code, out, errors) = haas.haas(&["provision", &user, "notes", "alice@example.com"]).await;
    assert_eq!(code, 0, "{errors}");
    assert_eq!(
        out.trim(),
        format!("{user}-notes answers at http://notes.{user}.haas.localhost:{}/hoodie/", haas.ports.http)
    );
    assert!(haas.hoodie("alice", "notes").answers().await);
    let (code, out, _) = haas.haas(&["provision", &user, "notes", "alice@example.com", "--json"]).await;
    assert_eq!((code, &serde_json::from_str::<Value>(&out).unwrap()["state"]), (0, &Value::from("running")));
    let (code, out, _) = haas.haas(&["list", "--json"]).await;
    let listed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, listed.as_array().unwrap().len(), &listed[0]["state"]), (0, 1, &Value::from("running")));
    let (code, out, _) = haas.haas(&["show", &user, "notes", "--json"]).await;
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &shown["events"][0]["kind"]), (0, &Value::from("running")));
    let (code, out, _) = haas.haas(&["routes", "--json"]).await;
    assert_eq!((code, &serde_json::from_str::<Value>(&out).unwrap()[0]["standing"]), (0, &Value::from("live")));
    let (code, out, _) = haas.haas(&["doctor", "--json"]).await;
    let findings: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 0, "{findings}");
    // The server is the one actor.
    assert_eq!(haas.haas(&["reconcile", "--once"]).await.0, 3);

    // What won't do, and what isn't there.
    let (code, _, errors) = haas.haas(&["provision", "..", "a--b", "nobody"]).await;
    assert_eq!((code, errors.lines().count()), (5, 3), "{errors}");
    assert_eq!(haas.haas(&["show", &user, "other"]).await.0, 4);
    assert_eq!(haas.haas(&["deprovision", &user, "other"]).await.0, 4);
    assert_eq!(haas.haas(&["lst"]).await.0, 2);

    let (code, out, errors) = haas.haas(&["deprovision", &user, "notes"]).await;
    assert_eq!(code, 0, "{errors}");
    assert!(out.contains("is gone; it can be restored until "), "{out}");
    assert_eq!(haas.haas(&["list"]).await.1.trim(), "no instances");
    assert_eq!(haas.haas(&["list", "--all"]).await.1.matches(" deleted ").count(), 1);
}

#[tokio::test]
async fn killed_with_all_its_parts_and_started_again_nothing_is_lost() {
    let mut haas = Installation::up().await;
    let alice = haas.provision("alice", "notes").await;
    alice.sign_up("carol").await;
    haas.kill();
    let pgrep = |pattern: String| async move {
        let output = tokio::process::Command::new("pgrep").args(["-f", &pattern]).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter_map(|line| line.parse::<i32>().ok()).collect::<Vec<_>>()
    };
    let dir = haas.layout.dir().display().to_string();
    let parts = pgrep(format!("(haproxy|postgres).*{dir}")).await;
    assert!(parts.len() >= 2, "both outlive it: {parts:?}");
    for pid in parts {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).ok();
    }
    support::installation::docker(&["kill", &haas.container("alice", "notes")]).await;
    haas.start().await;
    haas.running_again("alice", "notes", LIMIT).await;
    assert!(haas.hoodie("alice", "notes").knows("carol").await);
    // Once more, this time adopting what runs.
    haas.kill();
    haas.start().await;
    assert_eq!(haas.log().matches("HAProxy: Adopted").count(), 1, "{}", haas.log());
    assert_eq!(haas.log().matches("Postgres: Adopted").count(), 1);
    assert!(haas.hoodie("alice", "notes").knows("carol").await);
}

#[tokio::test]
async fn asked_to_stop_it_stops_its_parts_and_leaves_the_tenants() {
    let mut haas = Installation::up().await;
    haas.provision("alice", "notes").await;
    // A second one in the same folder is refused, and harms nothing.
    let (code, _, errors) = haas.haas(&["up"]).await;
    assert_eq!(code, 1);
    assert!(errors.contains("haas up"), "{errors}");
    assert!(haas.hoodie("alice", "notes").answers().await);
    assert_eq!(haas.stop().await, Some(0));
    assert!(haas.log().contains("haas down --remove"));
    let state =
        support::installation::docker(&["inspect", "-f", "{{.State.Running}}", &haas.container("alice", "notes")])
            .await;
    assert_eq!(state, "true");
    let dir = haas.layout.dir().display().to_string();
    let left = Command::new("pgrep").args(["-f", &format!("(haproxy|postgres).*{dir}")]).output().unwrap();
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
    let (code, _, errors) = haas.haas(&["list"]).await;
    assert_eq!(code, 1);
    assert!(errors.contains("unavailable"), "{errors}");
    let (code, out, _) = haas.haas(&["doctor"]).await;
    assert_eq!(code, 3);
    assert!(out.contains("BROKEN   postgres"), "{out}");
    let (code, out, errors) = haas.haas(&["down", "--remove"]).await;
    assert_eq!(code, 0, "{errors}");
    assert!(out.contains("1 container(s) removed"), "{out}");
    haas.start().await;
    haas.running_again("alice", "notes", LIMIT).await;
}

/// `haas serve` on a cluster of the test's own.
struct Server(Child);

impl Server {
    fn start(cluster: &Cluster, port: u16) -> Self {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(cluster.dir.path().join("serve.log")).unwrap();
        let config = &cluster.config;
        let child = Command::new(env!("CARGO_BIN_EXE_haas"))
            .arg("serve")
            .env("DATABASE_URL", &config.manifest.database_url)
            .env("HAAS_HTTP_LISTEN", format!("127.0.0.1:{port}"))
            .env("HAAS_HTTP_WAIT", "2s")
            .env("HAAS_HAPROXY_DIR", &config.haproxy.dir)
            .env("HAAS_HAPROXY_HTTP_BIND", &config.haproxy.http_bind)
            .env("HAAS_HAPROXY_MASTER_SOCKET", &config.haproxy.master_socket)
            .env("HAAS_HAPROXY_STATS_SOCKET", &config.haproxy.stats_socket)
            .env("HAAS_SECRETS_DIR", &config.secrets.dir)
            .env("HAAS_TENANT_PORTS", config.tenant.ports.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

async fn readiness(port: u16) -> Option<Value> {
    let url = format!("http://127.0.0.1:{port}/readyz");
    let answer = hoodie::client().get(url).header("host", "haas.localhost").send().await.ok()?;
    answer.json().await.ok()
}

#[tokio::test]
async fn a_second_server_stands_by_and_takes_over() {
    let ports = support::ports();
    let cluster = Cluster::start(ports, &[]).await;
    let secrets = &cluster.config.secrets.dir;
    std::fs::write(secrets.join("provision.secret"), "secret\n").unwrap();
    std::fs::write(secrets.join("instance.key"), "07".repeat(32)).unwrap();
    let first = Server::start(&cluster, ports.spare);
    eventually("the first one acts", LIMIT, || async {
        (readiness(ports.spare).await?["leader"] == true).then_some(())
    })
    .await;
    let second = Server::start(&cluster, ports.spare - 2);
    let standing_by = eventually("the second one stands by", LIMIT, || async {
        let seen = readiness(ports.spare - 2).await?;
        (seen["postgres"]["ok"] == true && seen["docker"]["ok"] == true).then_some(seen)
    })
    .await;
    assert_eq!(standing_by["leader"], false);
    // No HAProxy runs here, and both say so.
    assert_eq!(standing_by["haproxy"]["ok"], false);
    // It takes requests all the same; the first one carries them out.
    let url = format!("http://127.0.0.1:{}/provision", ports.spare - 2);
    let user = support::unique();
    let body =
        serde_json::json!({ "secret": "secret", "username": user, "emailaddress": "x@example.com", "appname": "app" });
    let post = hoodie::client().post(&url).header("host", "haas.localhost").json(&body);
    let answer = post.send().await.unwrap();
    assert_eq!(answer.status(), 202, "its Hoodie can't be reached without HAProxy");
    drop(first);
    eventually("the second one acts", LIMIT, || async {
        (readiness(ports.spare - 2).await?["leader"] == true).then_some(())
    })
    .await;
    let username = haas::instance::name::Username::parse(&user).unwrap();
    let appname = haas::instance::name::AppName::parse("app").unwrap();
    let manifest = cluster.manifest();
    eventually("its Hoodie is ready", LIMIT, || async {
        let row = manifest.find(&username, &appname).await.unwrap().unwrap();
        (row.phase == haas::instance::Phase::Ready).then_some(())
    })
    .await;
    // Without HAProxy there is nothing to be unrouted from.
    manifest.deprovision(&username, &appname, false).await.unwrap();
    eventually("it is gone", LIMIT, || async {
        let row = manifest.find(&username, &appname).await.unwrap().unwrap();
        (row.phase == haas::instance::Phase::Deleted).then_some(())
    })
    .await;
    drop(second);
    let id = cluster.sql("SELECT id FROM installation").await.unwrap().replace('-', "");
    let volume = cluster.sql("SELECT 'haas-' || replace(id::text, '-', '') FROM instances").await.unwrap();
    support::installation::docker(&["volume", "rm", &volume]).await;
    support::installation::docker(&["network", "rm", &format!("haas-{id}")]).await;
}

#[test]
fn wrong_settings_are_named_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("haas.toml");
    std::fs::write(&path, "[tenant]\nmemory_mb = 1\ncpus = \"many\"\n[http]\nwait = \"soon\"\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_haas"))
        .args(["up", "--dir"])
        .arg(dir.path().join("var"))
        .arg("--config")
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    for mistake in ["3 mistake(s)", "tenant.memory_mb", "tenant.cpus", "http.wait"] {
        assert!(errors.contains(mistake), "{errors}");
    }
    assert!(!dir.path().join("var").exists(), "nothing is made");
}

#[test]
fn the_example_in_the_docs_is_the_one_that_the_command_prints() {
    let example = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/haas.example.toml")).unwrap();
    assert_eq!(
        example,
        haas::config::Config::example(),
        "make it anew: haas config --example > docs/haas.example.toml"
    );
}
