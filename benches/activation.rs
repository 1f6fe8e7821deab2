//! From the manifest's commit that an app is ready to the first 200 at its host: real Postgres,
//! real HAProxy, the real reconciler. The containers are a stub's (`tests/support/tenants.rs`),
//! since ten thousand Hoodies fit on no small machine.
//!
//! `cargo bench --bench activation -- [--full]`
#![allow(clippy::unwrap_used, reason = "what it shares with the tests does")]

mod common;
#[path = "../tests/support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use common::{Figures, Verdict, full, ports, until};
use haas::instance::Phase;
use support::house::House;
use uuid::Uuid;

/// Between two looks of the client.
const LOOK: Duration = Duration::from_micros(500);

fn main() -> Result<()> {
    let (sizes, samples): (&[u16], u16) = if full() { (&[100, 1000, 10_000], 200) } else { (&[100, 1000], 12) };
    let runtime = tokio::runtime::Runtime::new()?;
    let mut measured = Vec::new();
    for &routes in sizes {
        measured.push((routes, runtime.block_on(measure(routes, samples))?));
    }
    println!("\n### Activation, {samples} apps each\n\n| ms | p50 | p99 | max |\n|---|---|---|---|");
    for (routes, times) in &measured {
        row(&format!("**{routes} routes in place**"), &times.all);
        row("of these, nothing else under way", &times.quiet);
        row("of these, while HAProxy reloads", &times.reloading);
        row("(of which until the commit was made known)", &times.commit);
        row("(of which from then on)", &times.route);
    }
    let mut verdict = Verdict::new();
    for (routes, times) in &measured {
        verdict.at_most(&format!("p50 with {routes} routes in place, in ms"), times.all.percentile(50.0), 5.0);
        verdict.at_most(&format!("p99 with {routes} routes in place, in ms"), times.all.percentile(99.0), 25.0);
    }
    verdict.end()
}

fn row(name: &str, figures: &Figures) {
    if figures.count() > 0 {
        let [p50, p99, max] = [50.0, 99.0, 100.0].map(|percent| figures.percentile(percent));
        println!("| {name} ({}) | {p50:.2} | {p99:.2} | {max:.2} |", figures.count());
    }
}

#[derive(Default)]
struct Times {
    all: Figures,
    quiet: Figures,
    reloading: Figures,
    commit: Figures,
    route: Figures,
}

/// One app on its way.
struct Activation {
    /// By the event in the transaction: just before its commit.
    written: DateTime<Utc>,
    /// When the commit's notification was heard.
    known: DateTime<Utc>,
    answered: DateTime<Utc>,
    /// Whether HAProxy reloaded meanwhile.
    reloading: bool,
}

async fn measure(routes: u16, samples: u16) -> Result<Times> {
    let first = ports(samples + 2)?;
    let ports = support::Ports { first, last: first + samples - 1, http: first + samples, spare: first + samples + 1 };
    // Sections come soon after their apps, so that there is a reload under way now and then.
    let house = House::start(ports, &[("haproxy.reload_min_interval", "500ms")], routes).await;
    let mut times = Times::default();
    for number in 0..samples {
        let Activation { written, known, answered, reloading } = activate(&house, number).await?;
        let time = (answered - written).to_std()?;
        times.all.take_time(time);
        if reloading {
            times.reloading.take_time(time);
        } else {
            times.quiet.take_time(time);
        }
        times.commit.take_time((known - written).to_std()?);
        // The client may see the answer before the news are here.
        times.route.take_time((answered - known).to_std().unwrap_or_default());
    }
    Ok(times)
}

async fn activate(house: &House, number: u16) -> Result<Activation> {
    let mut changes = house.nudges.subscribe();
    let heard = RefCell::new(Vec::new());
    let hearing = async {
        while let Ok(changed) = changes.recv().await {
            heard.borrow_mut().push((changed, Utc::now()));
        }
    };
    let activated = async {
        let (id, answered, reloading) = provision(house, number).await?;
        let ready = house.manifest.events(id, 10).await?.into_iter().find(|event| event.kind == "ready");
        let written = ready.context("it never became ready")?.at;
        // News come on a connection of their own: they may be later than all of this.
        let known = until("the commit is known", Duration::from_secs(5), async || {
            heard.borrow().iter().find(|(changed, at)| *changed == id && *at >= written).map(|(_, at)| *at)
        })
        .await?;
        let reloading = reloading.is_some_and(|(from, to)| from < answered && written < to);
        Ok(Activation { written, known, answered, reloading })
    };
    tokio::select! {
        activation = activated => activation,
        () = hearing => bail!("no news of changes"),
    }
}

type Window = (DateTime<Utc>, DateTime<Utc>);

/// Provisions an app, until it is running. Returns when the client had its answer, and when
/// HAProxy reloaded near it.
async fn provision(house: &House, number: u16) -> Result<(Uuid, DateTime<Utc>, Option<Window>)> {
    let user = format!("new-{number:05}");
    let (host, http) = (house.host(&user), house.cluster.config.http_port());
    let client = tokio::task::spawn_blocking(move || first_200(http, &host));
    // Each third has a reload near it, some time before or after.
    let reload = number % 3 == 2;
    let (before, _) = current_worker(house).await?;
    let edit = async {
        if reload {
            tokio::time::sleep(Duration::from_millis(u64::from(number) * 37 % 200)).await;
            house.edit_template(&user);
        }
    };
    let provision = async {
        tokio::time::sleep(Duration::from_millis(if reload { 100 } else { 0 })).await;
        house.provision(&user).await
    };
    let ((), id) = tokio::join!(edit, provision);
    let answered = client.await??;
    house.comes_to_be(id, Phase::Running).await;
    if reload {
        until("HAProxy has reloaded", Duration::from_secs(30), async || {
            (current_worker(house).await.ok()?.0 != before).then_some(())
        })
        .await?;
    }
    // From the writing of haproxy.cfg, over its check, to the start of the worker that reads it.
    let (worker, started) = current_worker(house).await?;
    let config = house.cluster.layout.haproxy_dir().join("haproxy.cfg");
    let written = DateTime::<Utc>::from(std::fs::metadata(config)?.modified()?);
    Ok((id, answered, (worker != before).then_some((written, started))))
}

/// The current worker, and when it was started. In the middle of a reload there is none.
async fn current_worker(house: &House) -> Result<(i32, DateTime<Utc>)> {
    until("HAProxy has a worker", Duration::from_secs(30), async || {
        let workers = house.haproxy.workers().await.ok()?;
        workers.iter().find(|worker| worker.current).map(|worker| (worker.pid, worker.started))
    })
    .await
}

/// When the first 200 was there, to its last byte, for a client that has asked all the time.
fn first_200(port: u16, host: &str) -> Result<DateTime<Utc>> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut connection = None;
    while Instant::now() < deadline {
        let stream = match connection.take() {
            Some(stream) => stream,
            None => BufReader::new(TcpStream::connect(("127.0.0.1", port))?),
        };
        // A connection that a reload closes is followed by another; this isn't what is measured.
        match ask(stream, host) {
            Ok((200, _)) => return Ok(Utc::now()),
            Ok((_, kept)) => connection = kept,
            Err(error) => log::debug!("asking {host}: {error}"),
        }
        std::thread::sleep(LOOK);
    }
    bail!("{host} does not answer")
}

/// One request: its status and, if it is kept, the connection.
fn ask(mut stream: BufReader<TcpStream>, host: &str) -> Result<(u16, Option<BufReader<TcpStream>>)> {
    let request = format!("GET /hoodie/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes())?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(stream.read_line(&mut head)? > 0, "closed");
    }
    head.make_ascii_lowercase();
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let mut body = vec![0; length.trim().parse()?];
    stream.read_exact(&mut body)?;
    Ok((status, (!head.contains("connection: close")).then_some(stream)))
}
