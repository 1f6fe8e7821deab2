//! The first request to an app that rests, to the end of its answer: to one that is stopped, against
//! `docker start` of the same container and then the first 200 on its port; to one that is paused;
//! and to one that is archived.
//!
//! `cargo bench --bench wake -- [--full]`
#![allow(clippy::unwrap_used, reason = "what it shares with the tests does")]

mod common;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use common::{Figures, Pairs, Phases, Verdict, full, heading, ports};
use haas::config::{Config, Tenant};
use reqwest::{Client, StatusCode};
use serde_json::Value;
use support::hoodie::Hoodie;
use support::installation::{Installation, docker};

/// Between two looks whether the twin answers.
const POLL: Duration = Duration::from_millis(5);
/// What the one before has left to the kernel and the engine is cleaned up in this time.
const REST: Duration = Duration::from_millis(500);
const COUNT: u16 = 10;
const USER: &str = "sleeper";
const APP: &str = "notes";

/// How often each is measured.
struct Size {
    stopped: usize,
    paused: usize,
    archived: usize,
}

fn main() -> Result<()> {
    let size = if full() {
        Size { stopped: 20, paused: 20, archived: 5 }
    } else {
        Size { stopped: 2, paused: 2, archived: 1 }
    };
    tokio::runtime::Runtime::new()?.block_on(measure(&size))
}

async fn measure(size: &Size) -> Result<()> {
    let first = ports(COUNT)?;
    // Nothing sleeps or is archived but by an order, or by a policy of its own.
    let mut installation = Installation::prepared("[lifecycle]\nidle_after = \"never\"\narchive_after = \"never\"");
    installation.ports =
        support::Ports { first, last: first + COUNT - 4, http: first + COUNT - 3, spare: first + COUNT - 2 };
    installation.word = format!("bench-{}", support::unique());
    installation.start().await;
    let outcome = compare(&installation, first + COUNT - 1, size).await;
    if outcome.is_err() {
        let log = std::fs::read_to_string(installation.layout.log_dir().join("haproxy.log"));
        eprintln!("--- the server's log\n{}\n--- HAProxy's\n{}", installation.log(), log.unwrap_or_default());
    }
    let (ratio, paused) = outcome?;
    let mut verdict = Verdict::new();
    verdict.at_most("waking a stopped one, median ratio", ratio, 1.15);
    verdict.at_most("waking a paused one, median, in seconds", paused / 1000.0, 0.25);
    verdict.end()
}

/// The median ratio for a stopped one, and the median time for a paused one.
async fn compare(installation: &Installation, twins_port: u16, size: &Size) -> Result<(f64, f64)> {
    haas::tls::use_ring();
    // A connection for each request.
    let client = Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(Duration::from_secs(60)).build()?;
    let hoodie = Hoodie { client, ..installation.provision(USER, APP).await };
    let id = installation.instance(USER, APP).await["id"].as_str().context("no id")?.to_owned();
    let ours = Ours { installation, hoodie, container: installation.container(USER, APP), id };
    let twin = Twin::create(installation, twins_port).await?;

    let ratio = stopped(&ours, &twin, size.stopped).await?;
    let paused = paused(&ours, size.paused).await?;
    archived(&ours, size.archived).await?;
    Ok((ratio, paused))
}

async fn stopped(ours: &Ours<'_>, twin: &Twin, count: usize) -> Result<f64> {
    let (mut pairs, mut phases) = (Pairs::default(), Phases::default());
    let (mut returned, mut answered) = (Figures::default(), Figures::default());
    // The first pair is not counted: it warms the caches.
    for number in 0..=count {
        let (mut woken, mut started) = (Duration::ZERO, Duration::ZERO);
        for turn in [number % 2 == 0, number % 2 != 0] {
            if turn {
                ours.installation.order("sleep", USER, APP).await;
                ensure!(state(&ours.container).await == "exited", "{} runs", ours.container);
                tokio::time::sleep(REST).await;
                let wake = ours.wake().await?;
                woken = wake.whole;
                if number > 0 {
                    phases.take(&wake.over);
                }
            } else {
                docker(&["stop", &twin.name]).await;
                ensure!(state(&twin.name).await == "exited", "{} runs", twin.name);
                tokio::time::sleep(REST).await;
                let (start, whole) = twin.start(&ours.hoodie.client).await?;
                started = whole;
                if number > 0 {
                    returned.take_time(start);
                    answered.take_time(whole.saturating_sub(start));
                }
            }
        }
        if number > 0 {
            pairs.take(woken, started);
        }
    }
    heading(&format!("Waking one that is stopped, {count} pairs"), "ms");
    pairs.ours.row("request → whole answer through HAProxy", 0);
    pairs.baseline.row("docker start → first 200 on its port", 0);
    pairs.ratio.row("**ratio**", 3);
    heading("Where the time goes", "ms");
    phases.print(1, phase);
    returned.row("(alone: docker start returns)", 0);
    answered.row("(alone: → first 200)", 0);
    Ok(pairs.ratio.median())
}

async fn paused(ours: &Ours<'_>, count: usize) -> Result<f64> {
    ours.policy("--pause-after", "1s").await?;
    let (mut times, mut phases) = (Figures::default(), Phases::default());
    for _ in 0..count {
        ours.installation.comes_to_be(USER, APP, "paused").await;
        ensure!(state(&ours.container).await == "paused", "{} is not frozen", ours.container);
        tokio::time::sleep(REST).await;
        let wake = ours.wake().await?;
        times.take_time(wake.whole);
        phases.take(&wake.over);
    }
    // So that it stays awake until it is told to rest.
    ours.policy("--pause-after", "default").await?;
    heading(&format!("Waking one that is paused, {count} times"), "ms");
    times.row("request → whole answer through HAProxy", 1);
    println!("\np50 {:.1} ms, max {:.1} ms", times.percentile(50.0), times.percentile(100.0));
    heading("Where the time goes", "ms");
    phases.print(1, phase);
    Ok(times.median())
}

async fn archived(ours: &Ours<'_>, count: usize) -> Result<()> {
    let (mut times, mut phases) = (Figures::default(), Phases::default());
    for _ in 0..count {
        ours.installation.order("archive", USER, APP).await;
        ensure!(!ours.installation.containers().await.contains(&ours.container), "{} is there", ours.container);
        tokio::time::sleep(REST).await;
        let wake = ours.wake().await?;
        times.take_time(wake.whole);
        phases.take(&wake.over);
    }
    heading(&format!("Waking one that is archived, {count} times (for information)"), "ms");
    times.row("request → whole answer through HAProxy", 0);
    heading("Where the time goes", "ms");
    phases.print(1, phase);
    Ok(())
}

/// The app, and the way to it.
struct Ours<'a> {
    installation: &'a Installation,
    hoodie: Hoodie,
    container: String,
    id: String,
}

/// One request that has woken it.
struct Wake {
    whole: Duration,
    /// When each phase was over, in milliseconds after the request was sent.
    over: Vec<(String, f64)>,
}

impl Ours<'_> {
    async fn policy(&self, time: &str, limit: &str) -> Result<()> {
        let user = self.installation.user(USER);
        let (code, _, errors) = self.installation.haas(&["policy", &user, APP, time, limit]).await;
        ensure!(code == 0, "haas policy: {errors}");
        Ok(())
    }

    /// One request, which has to wake it, once.
    async fn wake(&self) -> Result<Wake> {
        let last = format!("SELECT max(id) FROM events WHERE instance_id = '{}'", self.id);
        let last = self.installation.sql(&last).await;
        let sent = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
        let began = Instant::now();
        let answer = self.hoodie.get("/hoodie/").await?;
        let status = answer.status();
        let body = answer.bytes().await?;
        let whole = began.elapsed();
        ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&body));
        ensure!(body.starts_with(b"<!DOCTYPE html>") && body.ends_with(b"</html>\n"), "not Hoodie's page: {body:?}");
        // What comes after the answer is not to fall into what is measured next.
        self.installation.comes_to_be(USER, APP, "running").await;

        let events = format!(
            "SELECT kind, extract(epoch FROM at) FROM events WHERE instance_id = '{}' AND id > {last} ORDER BY id",
            self.id
        );
        let events = self.installation.sql(&events).await;
        let mut over = Vec::new();
        for line in events.lines() {
            let (kind, at) = line.split_once('|').context("an event without a time")?;
            // Nobody waits for that: it may come after the answer.
            if kind != "running" {
                over.push((kind.to_owned(), (at.parse::<f64>()? - sent) * 1000.0));
            }
        }
        ensure!(over.first().is_some_and(|(kind, _)| kind == "wake"), "it was not the request that woke it: {events}");
        ensure!(over.iter().filter(|(kind, _)| kind == "wake").count() == 1, "woken more than once: {events}");
        over.push(("answered".to_owned(), whole.as_secs_f64() * 1000.0));
        over.sort_by(|one, other| one.1.total_cmp(&other.1));
        Ok(Wake { whole, over })
    }
}

/// What the engine says a container does.
async fn state(container: &str) -> String {
    docker(&["inspect", "--format", "{{.State.Status}}", container]).await
}

/// What ends with an event.
fn phase(event: &str) -> String {
    match event {
        "wake" => "request → intent written",
        "pending" => "→ the reconciler has begun",
        "restored" | "data restored" => "→ its data is unpacked",
        "starting" => "→ its container runs",
        "ready" => "→ its Hoodie answers",
        "answered" => "→ passed on, and answered whole",
        other => return format!("→ {other}"),
    }
    .to_owned()
}

/// The same container, without us. It goes, with its network and its volume, when it is dropped.
struct Twin {
    name: String,
    port: u16,
}

impl Twin {
    /// Makes it with the same flags, and lets it make its data.
    async fn create(installation: &Installation, port: u16) -> Result<Self> {
        let Tenant { memory_mib: memory, cpus, pids, log_mib: log, image, .. } =
            Config::load(None, [], BTreeMap::new())?.tenant;
        let twin = Self { name: format!("{}-alone", installation.word), port };
        let name = &twin.name;
        docker(&["network", "create", "-o", "com.docker.network.bridge.enable_icc=false", name]).await;
        let command = format!(
            "create --name {name} --init --cap-drop ALL --security-opt no-new-privileges --read-only \
             --tmpfs /tmp:rw,noexec,nosuid,nodev,size=16m --memory {memory}m --memory-swap {memory}m --cpus {cpus} \
             --cpu-shares 256 --pids-limit {pids} --oom-score-adj 500 --ulimit nofile=16384:16384 --ipc none \
             --dns 127.0.0.1 --dns-option timeout:1 --dns-option attempts:1 --restart unless-stopped --log-driver json-file \
             --log-opt max-size={log}m --log-opt max-file=2 --network {name} -p 127.0.0.1:{port}:80 \
             --mount type=volume,source={name},target=/app/data -e hoodie_adminPassword={password} {image}",
            password = "0".repeat(64),
        );
        docker(&command.split_whitespace().collect::<Vec<_>>()).await;
        twin.assert_same_flags(&installation.container(USER, APP)).await?;
        let client = Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(Duration::from_secs(2)).build()?;
        twin.start(&client).await?;
        Ok(twin)
    }

    /// Both containers differ in nothing but names and ports.
    async fn assert_same_flags(&self, ours: &str) -> Result<()> {
        let mut settings = Vec::new();
        for name in [ours, &self.name] {
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

    /// How long until `docker start` returned, and until the first 200, whole.
    async fn start(&self, client: &Client) -> Result<(Duration, Duration)> {
        let url = format!("http://127.0.0.1:{}/hoodie/", self.port);
        let began = Instant::now();
        docker(&["start", &self.name]).await;
        let returned = began.elapsed();
        loop {
            let answered = match client.get(&url).send().await {
                Ok(answer) if answer.status() == StatusCode::OK => answer.bytes().await.is_ok(),
                _ => false,
            };
            if answered {
                return Ok((returned, began.elapsed()));
            }
            ensure!(began.elapsed() < Duration::from_secs(60), "no answer at {url}");
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        for arguments in [["rm", "-f"].as_slice(), &["volume", "rm", "-f"], &["network", "rm"]] {
            drop(std::process::Command::new("docker").args(arguments).arg(&self.name).output());
        }
    }
}
