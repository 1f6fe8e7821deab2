//! A cold start: POST /provision and then the first 200 through HAProxy, against `docker run` of
//! the same image with the same flags and then the first 200 on its port.
//!
//! `cargo bench --bench provision -- [--full]`
#![allow(clippy::unwrap_used, reason = "what it shares with the tests does")]

mod common;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use common::{Figures, Pairs, Phases, Verdict, full, heading, ports};
use haas::config::{Config, Tenant};
use reqwest::{Client, StatusCode};
use serde_json::Value;
use support::installation::{Installation, docker};

/// Between two looks whether a Hoodie answers; the same for both.
const POLL: Duration = Duration::from_millis(5);
/// Ports for each side.
const COUNT: u16 = 50;

fn main() -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(measure(if full() { 20 } else { 3 }))
}

async fn measure(count: u16) -> Result<()> {
    let first = ports(2 * COUNT)?;
    let mut installation = Installation::prepared("");
    installation.ports =
        support::Ports { first, last: first + COUNT - 3, http: first + COUNT - 2, spare: first + COUNT - 1 };
    installation.word = format!("bench-{}", support::unique());
    installation.start().await;
    let outcome = compare(&installation, first + COUNT, count).await;
    if outcome.is_err() {
        let log = std::fs::read_to_string(installation.layout.log_dir().join("haproxy.log"));
        eprintln!("--- the server's log\n{}\n--- HAProxy's\n{}", installation.log(), log.unwrap_or_default());
    }
    let ratio = outcome?;
    let mut verdict = Verdict::new();
    verdict.at_most("cold start, median ratio", ratio, 1.15);
    verdict.end()
}

async fn compare(installation: &Installation, first_port: u16, count: u16) -> Result<f64> {
    let baseline = Baseline::start(&installation.word, first_port).await?;
    haas::tls::use_ring();
    let client = Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(Duration::from_secs(2)).build()?;

    let (mut pairs, mut phases) = (Pairs::default(), Phases::default());
    let (mut started, mut answered) = (Figures::default(), Figures::default());
    // Not counted: this one warms the caches, and makes the installation's network.
    let run = provision(installation, &client, 0).await?;
    baseline.run(&client, 0).await?;
    baseline.assert_same_flags(&installation.container(&user(0), "notes"), 0).await?;
    take_away(installation, 0, &run.volume).await?;
    baseline.remove(0).await;

    for number in 1..=count {
        let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
        for turn in [number % 2 == 0, number % 2 != 0] {
            // What the one before has left to the kernel and the engine is cleaned up.
            tokio::time::sleep(Duration::from_millis(500)).await;
            if turn {
                let run = provision(installation, &client, number).await?;
                ours = run.whole;
                phases.take(&run.over);
                take_away(installation, number, &run.volume).await?;
            } else {
                let returned;
                (returned, theirs) = baseline.run(&client, number).await?;
                started.take_time(returned);
                answered.take_time(theirs.saturating_sub(returned));
                baseline.remove(number).await;
            }
        }
        pairs.take(ours, theirs);
    }
    heading(&format!("A cold start, {count} pairs"), "ms");
    pairs.ours.row("POST /provision → first 200 through HAProxy", 0);
    pairs.baseline.row("docker run → first 200 on its port", 0);
    pairs.ratio.row("**ratio**", 3);
    heading("Where the time goes", "ms");
    phases.print(0, phase);
    started.row("(alone: docker run returns)", 0);
    answered.row("(alone: → first 200)", 0);
    Ok(pairs.ratio.median())
}

fn user(number: u16) -> String {
    format!("user-{number}")
}

/// One cold start of ours.
struct Run {
    whole: Duration,
    /// When each phase was over, in milliseconds after the request was sent.
    over: Vec<(String, f64)>,
    volume: String,
}

async fn provision(installation: &Installation, client: &Client, number: u16) -> Result<Run> {
    let user = user(number);
    let request = installation.request(&user, "notes");
    let sent = SystemTime::now();
    let began = Instant::now();
    let answer = installation.post("/provision", &request).await?;
    let answered = began.elapsed();
    ensure!(answer.status() == StatusCode::CREATED, "{}: {}", answer.status(), answer.text().await?);
    let url = format!("http://127.0.0.1:{}/hoodie/", installation.ports.http);
    let host = installation.hoodie(&user, "notes").host;
    first_200(client, &url, Some(&host)).await?;
    let whole = began.elapsed();

    let (code, out, err) = installation.haas(&["show", &installation.user(&user), "notes", "--json"]).await;
    ensure!(code == 0, "{err}");
    let shown: Value = serde_json::from_str(&out)?;
    let mut over = Vec::new();
    for event in shown["events"].as_array().context("no events")? {
        let at: DateTime<Utc> = event["at"].as_str().context("an event without a time")?.parse()?;
        let since = SystemTime::from(at).duration_since(sent).unwrap_or_default();
        over.push((event["kind"].as_str().unwrap_or_default().to_owned(), since.as_secs_f64() * 1000.0));
    }
    over.sort_by(|one, other| one.1.total_cmp(&other.1));
    over.push(("answered".to_owned(), answered.as_secs_f64() * 1000.0));
    over.push(("first 200".to_owned(), whole.as_secs_f64() * 1000.0));
    let volume = shown["volume"].as_str().context("no volume")?.to_owned();
    Ok(Run { whole, over, volume })
}

async fn take_away(installation: &Installation, number: u16, volume: &str) -> Result<()> {
    let (status, body) = installation.deprovision(&user(number), "notes").await;
    ensure!(status == 200, "{status}: {body}");
    docker(&["volume", "rm", volume]).await;
    Ok(())
}

/// Asks until a Hoodie answers.
async fn first_200(client: &Client, url: &str, host: Option<&str>) -> Result<()> {
    let began = Instant::now();
    loop {
        let mut request = client.get(url);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        if request.send().await.is_ok_and(|answer| answer.status() == StatusCode::OK) {
            return Ok(());
        }
        ensure!(began.elapsed() < Duration::from_secs(60), "no answer at {url}");
        tokio::time::sleep(POLL).await;
    }
}

/// What ends with an event.
fn phase(event: &str) -> String {
    match event {
        "provisioned" => "POST → intent written",
        "starting" => "→ container created and started",
        "ready" => "→ its Hoodie answers",
        "running" => "→ published, and it answers through HAProxy",
        "answered" => "→ the POST is answered 201",
        "first 200" => "→ first 200 seen by the caller",
        other => other,
    }
    .to_owned()
}

/// The same containers, without us. Its network and whatever is left go when it is dropped.
struct Baseline {
    name: String,
    first_port: u16,
    tenant: Tenant,
}

impl Baseline {
    async fn start(word: &str, first_port: u16) -> Result<Self> {
        let tenant = Config::load(None, [], BTreeMap::new())?.tenant;
        let baseline = Self { name: format!("{word}-alone"), first_port, tenant };
        docker(&["network", "create", "-o", "com.docker.network.bridge.enable_icc=false", &baseline.name]).await;
        Ok(baseline)
    }

    fn container(&self, number: u16) -> String {
        format!("{}-{number}", self.name)
    }

    /// How long until `docker run` returned, and until the first 200.
    async fn run(&self, client: &Client, number: u16) -> Result<(Duration, Duration)> {
        let (name, port, tenant) = (self.container(number), self.first_port + number, &self.tenant);
        let command = format!(
            "run -d --name {name} --label haas.bench={word} --init --cap-drop ALL --security-opt no-new-privileges \
             --read-only --tmpfs /tmp:rw,noexec,nosuid,nodev,size=16m --memory {memory}m --memory-swap {memory}m \
             --cpus {cpus} --cpu-shares 256 --pids-limit {pids} --oom-score-adj 500 --ulimit nofile=16384:16384 --ipc none \
             --dns 127.0.0.1 --dns-option timeout:1 --dns-option attempts:1 --restart unless-stopped --log-driver json-file \
             --log-opt max-size={log}m --log-opt max-file=2 --network {word} -p 127.0.0.1:{port}:80 \
             --mount type=volume,source={name},target=/app/data -e hoodie_adminPassword={password} {image}",
            word = self.name,
            memory = tenant.memory_mib,
            cpus = tenant.cpus,
            pids = tenant.pids,
            log = tenant.log_mib,
            password = "0".repeat(64),
            image = tenant.image,
        );
        let words: Vec<&str> = command.split_whitespace().collect();
        let began = Instant::now();
        docker(&words).await;
        let returned = began.elapsed();
        first_200(client, &format!("http://127.0.0.1:{port}/hoodie/"), None).await?;
        Ok((returned, began.elapsed()))
    }

    /// Both containers differ in nothing but names and ports.
    async fn assert_same_flags(&self, ours: &str, number: u16) -> Result<()> {
        let theirs = self.container(number);
        let mut settings = Vec::new();
        for name in [ours, &theirs] {
            let text = docker(&["inspect", "--format", "{{json .HostConfig}}", name]).await;
            let mut settings_of: BTreeMap<String, Value> = serde_json::from_str(&text)?;
            for own in ["PortBindings", "NetworkMode", "Mounts"] {
                settings_of.remove(own);
            }
            // The command line says "none" with an empty list where the engine's API has null.
            settings_of.retain(|_, value| *value != Value::Null && *value != serde_json::json!([]));
            settings.push(settings_of);
        }
        ensure!(settings[0] == settings[1], "the flags differ: {settings:#?}");
        Ok(())
    }

    async fn remove(&self, number: u16) {
        let name = self.container(number);
        docker(&["rm", "-f", &name]).await;
        docker(&["volume", "rm", &name]).await;
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        let docker = |arguments: &[&str]| std::process::Command::new("docker").args(arguments).output();
        let left =
            docker(&["ps", "-a", "--filter", &format!("label=haas.bench={}", self.name), "--format", "{{.Names}}"]);
        if let Ok(left) = left {
            for name in String::from_utf8_lossy(&left.stdout).split_whitespace() {
                drop(docker(&["rm", "-f", name]));
                drop(docker(&["volume", "rm", name]));
            }
        }
        drop(docker(&["network", "rm", &self.name]));
    }
}
