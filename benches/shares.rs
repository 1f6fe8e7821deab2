//! What apps of one user that hang at their start cost the others: the time that another user's app takes to
//! wake, and to be provisioned, while twenty of them are started again and again and visitors wait for each;
//! against the same installation before.
//!
//! `cargo bench --bench shares -- [--full]`
#![allow(clippy::unwrap_used, reason = "what it shares with the tests does")]

mod common;
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use common::{Figures, Verdict, full, heading, ports};
use reqwest::StatusCode;
use support::hanging::hangs;
use support::hoodie::Hoodie;
use support::installation::Installation;
use support::{eventually, unique};

const TARGET: f64 = 2.0;
const PORTS: u16 = 40;
/// Before each measurement, so that the one before has left the engine alone.
const REST: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_mins(5);
/// A Hoodie that hangs is given up, and tried again, many times in a run.
const SETTINGS: &str = "[tenant]\nready_timeout = \"5s\"\n[reconcile]\nbackoff_max = \"2s\"\n\
                        [lifecycle]\nidle_after = \"never\"";

struct Size {
    bad: usize,
    rounds: usize,
}

fn main() -> Result<()> {
    let size = if full() { Size { bad: 20, rounds: 30 } } else { Size { bad: 3, rounds: 2 } };
    tokio::runtime::Runtime::new()?.block_on(measure(&size))
}

async fn measure(size: &Size) -> Result<()> {
    let first = ports(PORTS)?;
    let mut haas = Installation::prepared(SETTINGS);
    haas.ports = support::Ports { first, last: first + PORTS - 3, http: first + PORTS - 2, spare: first + PORTS - 1 };
    haas.word = format!("bench-{}", unique());
    haas.start().await;
    let sleeper = haas.provision("sleeper", "notes").await;
    // The first of each warms the caches.
    wake(&haas, &sleeper).await?;
    provision(&haas, 0).await?;

    let quiet = rounds(&haas, &sleeper, size.rounds).await?;
    let visitors = attack(&haas, size.bad).await;
    let beside = rounds(&haas, &sleeper, size.rounds).await?;
    let failures = haas.sql("SELECT count(*) FROM events WHERE kind = 'failed'").await;
    visitors.iter().for_each(tokio::task::JoinHandle::abort);

    let mut verdict = Verdict::new();
    for (what, quiet, beside) in [("a wake", &quiet.0, &beside.0), ("a provision", &quiet.1, &beside.1)] {
        heading(&format!("{what}, {} times each", quiet.count()), "ms");
        quiet.row("quiet", 0);
        beside.row(&format!("beside {} that hang", size.bad), 0);
        println!("\np90 {:.0} ms quiet, {:.0} ms beside them\n", quiet.percentile(90.0), beside.percentile(90.0));
        verdict.at_most(&format!("{what}, ratio of the medians"), beside.median() / quiet.median(), TARGET);
    }
    println!("{failures} starts failed meanwhile");
    verdict.end()
}

/// Wakes and provisions, in turns.
async fn rounds(haas: &Installation, sleeper: &Hoodie, count: usize) -> Result<(Figures, Figures)> {
    let (mut wakes, mut provisions) = (Figures::default(), Figures::default());
    for round in 0..count {
        wakes.take_time(wake(haas, sleeper).await?);
        provisions.take_time(provision(haas, round).await?);
    }
    Ok((wakes, provisions))
}

/// From a request to an app that sleeps to the end of its answer.
async fn wake(haas: &Installation, sleeper: &Hoodie) -> Result<Duration> {
    haas.order("sleep", "sleeper", "notes").await;
    haas.comes_to_be("sleeper", "notes", "asleep").await;
    tokio::time::sleep(REST).await;
    let began = Instant::now();
    let answer = sleeper.get("/hoodie/").await?;
    let status = answer.status();
    answer.bytes().await?;
    let took = began.elapsed();
    ensure!(status == StatusCode::OK, "{status}\n{}", haas.log());
    Ok(took)
}

/// From POST /provision to its 201; the app goes again.
async fn provision(haas: &Installation, number: usize) -> Result<Duration> {
    tokio::time::sleep(REST).await;
    let app = format!("app{number}");
    let mut body = haas.request("new", &app);
    let began = Instant::now();
    let answer = haas.post("/provision", &body).await?;
    let took = began.elapsed();
    ensure!(answer.status() == StatusCode::CREATED, "{}\n{}", answer.status(), haas.log());
    let fields = body.as_object_mut().unwrap();
    fields.remove("emailaddress");
    fields.insert("purge".to_owned(), true.into());
    let answer = haas.post("/deprovision", &body).await?;
    ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
    Ok(took)
}

/// Apps of one user, each of which has failed once, with a visitor each who asks again and again.
async fn attack(haas: &Installation, bad: usize) -> Vec<tokio::task::JoinHandle<()>> {
    let mut visitors = Vec::new();
    let mut hoodies = Vec::new();
    for number in 0..bad {
        let app = format!("bad{number}");
        hoodies.push(haas.provision("bad", &app).await);
        hangs(haas, "bad", &app).await;
    }
    for hoodie in hoodies {
        visitors.push(tokio::spawn(async move {
            loop {
                drop(hoodie.get("/hoodie/").await);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }));
    }
    let failed = "SELECT count(DISTINCT instance_id) FROM events WHERE kind = 'failed'";
    eventually("each has failed once", LIMIT, || async { (haas.sql(failed).await == bad.to_string()).then_some(()) })
        .await;
    visitors
}
