//! What a victim's users notice of a neighbour that takes all it can get: the latency of a cheap request
//! and of a stored document, of real Hoodies through HAProxy, with quiet neighbours and with one that
//! is a fork bomb, a memory hog, a disk filler, a CPU burner or a log flood. Each is measured in turns
//! with the quiet, so that what else the machine does falls on both.
//!
//! `cargo bench --bench neighbours -- [--full] [NEIGHBOUR...]`, of all kinds when none is named
#![allow(clippy::unwrap_used, reason = "what it shares with the tests does")]

mod common;
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use common::{Figures, Verdict, full, ports};
use reqwest::{Client, StatusCode};
use serde_json::json;
use support::eventually;
use support::hoodie::Hoodie;
use support::installation::{Installation, docker};

/// What a neighbour's p99 may do to a victim's.
const TARGET: f64 = 2.0;
const VICTIMS: usize = 2;
const PORTS: u16 = 10;
/// Between two requests of one client: users who think, not a load test. What a busy CPU costs a request is seen all the
/// same, since each one has to be scheduled anew.
const THINK: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_mins(2);

/// What runs in the neighbour's container, until it is ended.
const KINDS: [(&str, &str); 5] = [
    (
        "fork bomb",
        "const { spawn } = require('child_process');
         const more = () => {
           try {
             const child = spawn(process.execPath, ['-e', 'for (;;) {}'], { stdio: 'ignore' });
             child.once('error', () => setTimeout(more, 1));
             child.once('spawn', () => setImmediate(more));
           } catch { setTimeout(more, 1); }
         };
         more();",
    ),
    (
        "memory hog",
        // Killed again and again: each time by the kernel, for its memory.
        "const { spawn } = require('child_process');
         const grow = 'const all = []; for (;;) all.push(Buffer.alloc(4 * 1024 * 1024, 1));';
         const again = () => {
           const child = spawn(process.execPath, ['-e', grow], { stdio: 'ignore' });
           child.once('exit', again).once('error', () => setTimeout(again, 10));
         };
         again();",
    ),
    (
        "disk filler",
        "const fs = require('fs'), block = Buffer.alloc(1024 * 1024, 1);
         for (let n = 0; ; n++) {
           const file = fs.openSync('/app/data/filler-' + n, 'w');
           for (let blocks = 0; blocks < 64; blocks++) fs.writeSync(file, block);
           fs.fsyncSync(file);
           fs.closeSync(file);
         }",
    ),
    (
        "CPU burner",
        "const { Worker } = require('worker_threads');
         for (let n = 0; n < 4; n++) new Worker('for (;;) {}', { eval: true });",
    ),
    (
        "log flood",
        // As whoever writes to its standard output: the engine reads that.
        "const fs = require('fs'), out = fs.openSync('/proc/1/fd/1', 'w'), lines = ('x'.repeat(200) + '\\n').repeat(300);
         for (;;) fs.writeSync(out, lines);",
    ),
];

fn main() -> Result<()> {
    let (rounds, time) = if full() { (6, Duration::from_secs(10)) } else { (1, Duration::from_secs(3)) };
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(measure(rounds, time))
}

/// Whether this kind is measured.
fn asked(kind: &str) -> bool {
    let mut named = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).peekable();
    named.peek().is_none() || named.any(|name| name == kind)
}

async fn measure(rounds: usize, time: Duration) -> Result<()> {
    let settings = "[tenant]\ndisk_mib = 512\ndisk_period = \"5s\"\nstop_timeout = \"1s\"\ndrain_timeout = \"1s\"\n\
                    [haproxy]\napp_request_rate = 100000";
    let first = ports(PORTS)?;
    let mut installation = Installation::prepared(settings);
    installation.ports =
        support::Ports { first, last: first + PORTS - 3, http: first + PORTS - 2, spare: first + PORTS - 1 };
    installation.word = format!("bench-{}", support::unique());
    installation.start().await;
    let mut victims = Vec::new();
    for number in 0..VICTIMS {
        let user = format!("victim{number}");
        let hoodie = installation.provision(&user, "notes").await;
        victims.push(Victim::new(hoodie).await?);
    }
    installation.provision("neighbour", "notes").await;
    // Code is compiled, and connections are open.
    for _ in 0..2 {
        sample(&victims, time.min(Duration::from_secs(5))).await?;
    }
    println!(
        "\n### A neighbour that takes what it can get, {rounds} rounds of {} s\n\n\
         | neighbour | request | quiet p50 | p99 | with it p50 | p99 | requests | p99/p99 |\n|---|---|---|---|---|---|---|---|",
        time.as_secs()
    );
    let mut worst = Vec::new();
    for (kind, program) in KINDS.into_iter().filter(|(kind, _)| asked(kind)) {
        let (mut quiet, mut loud) = (Latencies::default(), Latencies::default());
        for round in 0..rounds {
            // In turns, so that neither is always the first.
            for turn in [round % 2 == 0, round % 2 != 0] {
                if turn {
                    quiet.take(sample(&victims, time).await?);
                } else {
                    let neighbour = Neighbour::start(&installation, program).await?;
                    loud.take(sample(&victims, time).await?);
                    neighbour.end(kind).await?;
                }
            }
        }
        for (request, quiet, loud) in [("page", &quiet.page, &loud.page), ("document", &quiet.document, &loud.document)]
        {
            let ratio = loud.percentile(99.0) / quiet.percentile(99.0);
            println!(
                "| {kind} | {request} | {:.1} ms | {:.1} ms | {:.1} ms | {:.1} ms | {} | **{ratio:.2}** |",
                quiet.median(),
                quiet.percentile(99.0),
                loud.median(),
                loud.percentile(99.0),
                loud.count(),
            );
            // That work is the engine's, which nothing bounds by tenant: told, and not promised.
            if kind == "log flood" {
                continue;
            }
            worst.push((format!("{kind}, {request}, p99 against quiet neighbours"), ratio));
        }
    }
    let mut verdict = Verdict::new();
    for (what, ratio) in worst {
        verdict.at_most(&what, ratio, TARGET);
    }
    verdict.end()
}

/// Milliseconds of each request.
#[derive(Default)]
struct Latencies {
    page: Figures,
    document: Figures,
}

impl Latencies {
    fn take(&mut self, seen: Vec<(Duration, Duration)>) {
        for (page, document) in seen {
            self.page.take_time(page);
            self.document.take_time(document);
        }
    }
}

/// A Hoodie with somebody who is signed in.
struct Victim {
    hoodie: Hoodie,
    client: Client,
    session: String,
    database: String,
}

impl Victim {
    async fn new(hoodie: Hoodie) -> Result<Self> {
        hoodie.sign_up("carol").await;
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?;
        let body = json!({ "data": { "type": "session",
            "attributes": { "username": "carol", "password": "password of carol" } } });
        let request =
            client.put(hoodie.url("/hoodie/account/api/session?include=account")).header("host", &hoodie.host);
        let answer = request.header("content-type", "application/vnd.api+json").body(body.to_string()).send().await?;
        ensure!(answer.status() == StatusCode::CREATED, "{}", answer.status());
        let session: serde_json::Value = answer.json().await?;
        let id = session["data"]["relationships"]["account"]["data"]["id"].as_str().unwrap_or_default();
        ensure!(!id.is_empty(), "no account in {session}");
        let session = session["data"]["id"].as_str().unwrap_or_default().to_owned();
        let victim = Self { database: hoodie.url(&format!("/hoodie/store/api/user%2F{id}")), hoodie, client, session };
        // As Hoodie's own client begins. Whose the database is, is known a moment after the sign-up.
        let made =
            async || (victim.put(&victim.database, &json!({})).await.ok()?.0 == StatusCode::CREATED).then_some(());
        eventually("its database is there", LIMIT, made).await;
        Ok(victim)
    }

    async fn put(&self, url: &str, body: &serde_json::Value) -> Result<(StatusCode, String)> {
        let request = self.client.put(url).header("host", &self.hoodie.host);
        let answer = request.header("authorization", format!("Session {}", self.session)).json(body).send().await?;
        Ok((answer.status(), answer.text().await?))
    }

    /// One page, and one document that is on the disk when it is answered.
    async fn once(&self) -> Result<(Duration, Duration)> {
        let began = Instant::now();
        let page = self.client.get(self.hoodie.url("/hoodie/")).header("host", &self.hoodie.host).send().await?;
        ensure!(page.status() == StatusCode::OK, "page: {}", page.status());
        page.bytes().await?;
        let page = began.elapsed();
        let url = format!("{}/{}", self.database, uuid::Uuid::new_v4());
        let began = Instant::now();
        let (status, text) = self.put(&url, &json!({ "title": "a note", "text": "x".repeat(500) })).await?;
        ensure!(status == StatusCode::CREATED, "document: {status}: {text}");
        Ok((page, began.elapsed()))
    }
}

/// Each victim's user asks, thinks, and asks again.
async fn sample(victims: &[Victim], time: Duration) -> Result<Vec<(Duration, Duration)>> {
    let until = Instant::now() + time;
    let users = victims.iter().map(async |victim| {
        let mut seen = Vec::new();
        while Instant::now() < until {
            seen.push(victim.once().await?);
            tokio::time::sleep(THINK).await;
        }
        Ok::<_, anyhow::Error>(seen)
    });
    let all = futures_util::future::try_join_all(users).await?;
    Ok(all.concat())
}

/// The neighbour while it is at it.
struct Neighbour<'a> {
    installation: &'a Installation,
    container: String,
    process: tokio::process::Child,
}

impl<'a> Neighbour<'a> {
    async fn start(installation: &'a Installation, program: &str) -> Result<Self> {
        let container = installation.container("neighbour", "notes");
        let mut command = tokio::process::Command::new("docker");
        command.args(["exec", &container, "node", "-e", program]).kill_on_drop(true);
        let process = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?;
        // Its beginning is the engine's work, not its own.
        tokio::time::sleep(Duration::from_millis(700)).await;
        Ok(Self { installation, container, process })
    }

    /// Ends it, and sees that it was what it should have been.
    async fn end(mut self, kind: &str) -> Result<()> {
        let (installation, user) = (self.installation, self.installation.user("neighbour"));
        if kind == "disk filler" {
            eventually("the watch stops the disk filler", LIMIT, || async {
                installation.instance("neighbour", "notes").await["storage_full"].is_object().then_some(())
            })
            .await;
            // Begun anew, with an empty volume.
            let (code, out, errors) = installation.haas(&["purge", &user, "notes"]).await;
            ensure!(code == 0, "haas purge: {out}{errors}");
            self.process.wait().await?;
            installation.provision("neighbour", "notes").await;
            return Ok(());
        }
        ensure!(self.process.try_wait()?.is_none(), "{kind}: it ended by itself");
        docker(&["restart", "-t", "0", &self.container]).await;
        self.process.wait().await?;
        installation.running_again("neighbour", "notes", LIMIT).await;
        Ok(())
    }
}
