//! What it costs to see who is idle: HAProxy's table with an entry for each app, read and taken
//! down as the reconciler does it, and the decision over all rows. Real Postgres, real HAProxy; one
//! stub answers for all apps.
//!
//! `cargo bench --bench usage -- [--full]`
#![allow(clippy::unwrap_used, reason = "what it shares with the tests does")]

mod common;
#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use common::{Figures, Verdict, full, heading, ports};
use futures_util::future::try_join_all;
use haas::haproxy::{Haproxy, Proxy, Settings};
use haas::instance::Instance;
use haas::instance::policy::Descent;
use haas::reconcile::{Held, Outlook, Uses, decide};
use support::cluster::{Cluster, RunningHaproxy};
use support::tenants::Server;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The apps' ports by the manifest. Nobody listens there.
const FIRST_PORT: u16 = 5521;
/// Connections that the apps are asked on.
const CLIENTS: usize = 8;
/// The parts of the template that lead to the apps' ports: without the first, the second is where they lead.
const TO_THE_APPS: [&str; 2] = ["    http-request set-dst-port var(txn.app),field(2,:)\n", "server any 127.0.0.1:0"];
/// CPU time is counted in so many a second (proc(5); `getconf CLK_TCK`, the same on every Linux that matters).
const TICKS: u32 = 100;

fn main() -> Result<()> {
    let (apps, polls) = if full() { (10_000, 100) } else { (300, 100) };
    tokio::runtime::Runtime::new()?.block_on(measure(apps, polls))
}

async fn measure(apps: u16, polls: u32) -> Result<()> {
    let first = ports(3)?;
    let ports = support::Ports { first, last: first, http: first + 1, spare: first + 2 };
    let mut cluster = Cluster::start(ports, &[]).await;
    cluster.settled(apps, FIRST_PORT).await;
    // As with ten thousand: no app has a section of its own. All lead to one stub.
    cluster.config.haproxy.sections_max = 0;
    cluster.config.haproxy.template = cluster.dir.path().join("template");
    let mut template = include_str!("../templates/haproxy.cfg.tera").to_owned();
    for (part, stub) in TO_THE_APPS.into_iter().zip([String::new(), format!("server any 127.0.0.1:{}", ports.spare)]) {
        ensure!(template.matches(part).count() == 2, "the template leads to the apps in another way");
        template = template.replace(part, &stub);
    }
    std::fs::write(&cluster.config.haproxy.template, template)?;
    let _stub = Server::at(ports.spare, 200, "stub").await?;
    let _running = RunningHaproxy::start(&cluster).await;
    let haproxy = Haproxy::new(Settings::from_config(&cluster.config));
    let manifest = cluster.manifest();
    let (live, corrupt) = manifest.live().await?;
    ensure!(live.len() == usize::from(apps) && corrupt.is_empty(), "{} rows, {corrupt:?}", live.len());

    let settings = haas::reconcile::Settings::from_config(&cluster.config);
    let uses = Uses::new(Held::default(), settings.stream_keeps_awake_for);
    let began = Utc::now();
    // Somebody has watched all the time: what is not in the table was not used.
    uses.begin(Some(began), began);
    uses.read(&haproxy).await?;
    ensure!(live.iter().all(|row| uses.last_used(row).is_none()), "nobody was asked yet");
    let asking = Instant::now();
    ask_all(ports.http, &live).await?;
    println!("{apps} apps asked once each in {:.2} s", asking.elapsed().as_secs_f64());
    let usage = haproxy.usage().await?.context("HAProxy is down")?;
    ensure!(usage.len() == live.len(), "{} entries in the table", usage.len());
    ensure!(usage.values().all(|of| of.requests == 1), "each was asked once");

    let poll = Polls::make(&haproxy, &uses, polls).await?;
    let noticed = |row: &&Instance| uses.last_used(row).is_some_and(|used| used >= began);
    let seen = live.iter().filter(noticed).count();
    ensure!(seen == live.len(), "the use of {seen} was seen");
    // HAProxy forgets after a minute. While it was polled it had all of them.
    let usage = haproxy.usage().await?.context("HAProxy is down")?;
    ensure!(usage.len() == live.len(), "{} entries in the table are left", usage.len());

    let announced = manifest.announced().await?;
    let outlook = Outlook { live: &live, tombstones: &[], uses: &uses, announced: &announced, tells: false };
    let mut decision = Figures::default();
    for _ in 0..polls {
        let now = Utc::now();
        let looked = Instant::now();
        let decisions = black_box(decide(black_box(&outlook), &settings, now));
        decision.take_time(looked.elapsed());
        ensure!(decisions.len() == live.len(), "{} decisions", decisions.len());
        let right = decisions.iter().all(|decision| {
            let next = &decision.next;
            next.step == Descent::Sleep
                && Some(next.since) == uses.last_used(decision.instance)
                && !decision.is_due(now)
        });
        ensure!(right, "each sleeps when it was not used for a while");
    }

    heading(&format!("Who is idle, of {apps} apps that were all used, {polls} polls"), "ms");
    poll.wall.row("a poll, wall time", 2);
    decision.row("the decision over all rows", 2);
    println!("\n| CPU time of a poll | ms |\n|---|---|");
    println!("| this process | {:.2} |", poll.ours);
    println!("| HAProxy's worker | {:.2} |", poll.worker);
    println!("| HAProxy's master, which passes it on | {:.2} |", poll.master);
    let all = poll.ours + poll.worker + poll.master;
    println!("| **all of them** | **{all:.2}** |");
    println!("\nOne poll each 30 s, as idle_after has it from 2 m on: {:.3} % of a CPU.", all / 300.0);
    let mut verdict = Verdict::new();
    verdict.at_most("CPU time of a poll, in ms", all, 100.0);
    verdict.end()
}

/// Times of one poll; those of CPUs are means.
struct Polls {
    wall: Figures,
    ours: f64,
    worker: f64,
    master: f64,
}

impl Polls {
    async fn make(haproxy: &Haproxy, uses: &Uses, count: u32) -> Result<Self> {
        let workers = haproxy.workers().await?;
        let [worker] = &workers[..] else { anyhow::bail!("{} workers", workers.len()) };
        let pids = [std::process::id().cast_signed(), worker.pid, parent(worker.pid)?];
        let cpu = || pids.iter().map(|pid| cpu(*pid)).collect::<Result<Vec<_>>>();
        let mut wall = Figures::default();
        let before = cpu()?;
        for _ in 0..count {
            let began = Instant::now();
            uses.read(haproxy).await?;
            wall.take_time(began.elapsed());
        }
        let after = cpu()?;
        let mean = |at: usize| f64::from(after[at] - before[at]) * 1000.0 / f64::from(TICKS) / f64::from(count);
        Ok(Self { wall, ours: mean(0), worker: mean(1), master: mean(2) })
    }
}

/// The fields of a process's `stat` after its name (proc(5)), that is from the third on.
fn stat(pid: i32) -> Result<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

fn parent(pid: i32) -> Result<i32> {
    Ok(stat(pid)?[1].parse()?)
}

/// CPU time of all its threads so far, in ticks.
fn cpu(pid: i32) -> Result<u32> {
    let fields = stat(pid)?;
    Ok(fields[11].parse::<u32>()? + fields[12].parse::<u32>()?)
}

/// Asks each app once.
async fn ask_all(port: u16, live: &[Instance]) -> Result<()> {
    let share = live.len().div_ceil(CLIENTS);
    try_join_all(live.chunks(share).map(|rows| ask_each(port, rows))).await?;
    Ok(())
}

/// Asks some of them on one connection.
async fn ask_each(port: u16, rows: &[Instance]) -> Result<()> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    for row in rows {
        let request = format!("GET /hoodie/ HTTP/1.1\r\nHost: {}\r\n\r\n", row.host);
        stream.write_all(request.as_bytes()).await?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(stream.read_line(&mut head).await? > 0, "closed at {}", row.host);
        }
        head.make_ascii_lowercase();
        ensure!(head.starts_with("http/1.1 200 "), "{}: {head}", row.host);
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
        let mut body = vec![0; length.trim().parse()?];
        stream.read_exact(&mut body).await?;
        ensure!(body == b"stub", "{}: {}", row.host, String::from_utf8_lossy(&body));
    }
    Ok(())
}
