//! A server whose instances are all settled: its memory, the length of its passes, and that it
//! writes nothing. The containers are an engine's that only says so (`common/engine.rs`).
//!
//! `cargo bench --bench settled -- [--full]`
#![allow(clippy::unwrap_used, reason = "what it shares with the tests does")]

mod common;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::engine::{Engine, Listed};
use common::{Figures, Verdict, full, heading, ports, until};
use haas::credentials::{InstanceKey, make_secret};
use haas::server;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::cluster::{Cluster, RunningHaproxy};
use uuid::Uuid;

/// Instead of the default 10 s, so that many passes fit into a short time. The least rest that the
/// reconciler takes between two passes is 10 ms.
const PERIOD: &str = "10ms";
const FIRST_PORT: u16 = 5521;

fn main() -> Result<()> {
    let (rows, passes) = if full() { (10_000, 100) } else { (500, 10) };
    tokio::runtime::Runtime::new()?.block_on(measure(rows, passes))
}

async fn measure(rows: u16, passes: usize) -> Result<()> {
    let first = ports(2)?;
    let cluster = Cluster::start(support::Ports { first, last: first, http: first + 1, spare: first }, &[]).await;
    cluster.settled(rows, FIRST_PORT).await;
    let installation = cluster.sql("SELECT id FROM installation").await.map_err(anyhow::Error::msg)?;
    let engine_socket = cluster.dir.path().join("engine.sock");
    let engine = Engine::listen(&engine_socket, &installation, &containers(rows))?;
    let _haproxy = RunningHaproxy::start(&cluster).await;
    let server = Server::start(&cluster, &engine_socket)?;

    let seen = || engine.asked(|asked| asked.listings.len());
    let after = async |count: usize| {
        until("the server looks", Duration::from_secs(120), || async { (seen() >= count).then_some(()) }).await
    };
    // The first passes open connections and publish.
    after(10).await?;
    let before = Written::of(&cluster).await?;
    let begin = seen();
    after(begin + passes + 1).await?;
    let written = Written::of(&cluster).await?;
    let (resident, greatest) = (server.memory("VmRSS")?, server.memory("VmHWM")?);
    drop(server);

    let mut pass = Figures::default();
    engine.asked(|asked| {
        for two in asked.listings[begin..].windows(2) {
            pass.take_time(two[1] - two[0]);
        }
    });
    let unexpected = engine.asked(|asked| asked.unexpected.clone());
    ensure!(unexpected.is_empty(), "it wanted more than to look: {:?}", &unexpected[..unexpected.len().min(5)]);

    let mut baseline = Figures::default();
    for _ in 0..if full() { 15 } else { 3 } {
        baseline.take_time(read_alone(&cluster, &engine_socket)?);
    }
    heading(&format!("A pass over {rows} settled rows, {passes} passes"), "ms");
    pass.row("from one pass to the next (rests 10 ms)", 1);
    baseline.row("psql reading the rows, curl reading the listing", 1);
    println!("\n**ratio** of the medians: {:.3}", pass.median() / baseline.median());
    println!("\n### Written in these passes\n\n| | before | after |\n|---|---|---|");
    println!("| rows inserted, updated, deleted in all tables but one | {} | {} |", before.rows, written.rows);
    println!("| the next transaction's number | {} | {} |", before.transaction, written.transaction);
    println!("\n### Memory of `haas serve` with {rows} rows\n\n| | MiB |\n|---|---|");
    println!("| resident after {} passes | {resident:.1} |\n| at its greatest | {greatest:.1} |", begin + passes + 1);

    ensure!(before.rows == written.rows, "something was written");
    // That HAProxy was asked who is used is written down each half minute, into the one row of `installation`.
    let notes = i64::try_from((written.at - before.at).as_secs() / 30)? + 1;
    ensure!(written.transaction - before.transaction <= notes, "something was written");
    let mut verdict = Verdict::new();
    verdict.at_most("a pass, median, in seconds", pass.median() / 1000.0, 1.0);
    verdict.at_most("resident memory in MiB", resident, 64.0);
    verdict.at_most("resident memory at its greatest, in MiB", greatest, 64.0);
    verdict.end()
}

fn containers(rows: u16) -> Vec<Listed> {
    (0..rows)
        .map(|n| Listed {
            instance: Uuid::from_u128(n.into()),
            name: format!("user-{n:05}-notes"),
            port: FIRST_PORT + n,
        })
        .collect()
}

/// What a pass has to read, read by others: the rows by psql, the listing by curl.
fn read_alone(cluster: &Cluster, engine: &Path) -> Result<Duration> {
    let rows = "SELECT * FROM instances WHERE phase <> 'deleted' ORDER BY created_at";
    let mut psql = Command::new("psql");
    psql.args(["-XAtq", "-c", rows]).arg(cluster.layout.owner_url());
    let mut curl = Command::new("curl");
    curl.args(["-sf", "http://engine/containers/json?all=true", "--unix-socket"]).arg(engine);
    let began = Instant::now();
    for command in [&mut psql, &mut curl] {
        ensure!(command.stdout(Stdio::null()).status()?.success(), "{command:?} failed");
    }
    Ok(began.elapsed())
}

/// What a write would change.
struct Written {
    /// Rows inserted, updated and deleted in all tables but the one row of `installation`.
    rows: String,
    /// The next transaction's number: only one that writes is given one.
    transaction: i64,
    at: Instant,
}

impl Written {
    async fn of(cluster: &Cluster) -> Result<Self> {
        // A connection reports what it did at most once a second.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let sql = async |query: &str| cluster.sql(query).await.map_err(anyhow::Error::msg);
        let rows = "SELECT concat_ws(', ', sum(n_tup_ins), sum(n_tup_upd), sum(n_tup_del)) FROM pg_stat_user_tables
                    WHERE relname <> 'installation'";
        let transaction = sql("SELECT pg_snapshot_xmax(pg_current_snapshot())").await?.parse()?;
        Ok(Self { rows: sql(rows).await?, transaction, at: Instant::now() })
    }
}

/// `haas serve`; stopped when it is dropped.
struct Server(Child);

impl Server {
    fn start(cluster: &Cluster, engine: &Path) -> Result<Self> {
        let secrets = cluster.layout.secrets_dir();
        make_secret(&secrets.join("provision.secret"))?;
        InstanceKey::make(&server::instance_key_path(&secrets))?;
        let config = &cluster.config;
        let log = std::fs::File::create(cluster.dir.path().join("haas.log"))?;
        let child = Command::new(env!("CARGO_BIN_EXE_haas"))
            .arg("serve")
            .env("DATABASE_URL", &config.manifest.database_url)
            .env("DOCKER_HOST", format!("unix://{}", engine.display()))
            .env("HAAS_SECRETS_DIR", secrets)
            .env("HAAS_HTTP_LISTEN", config.http.listen.to_string().replace("unix@", "unix:"))
            .env("HAAS_HAPROXY_DIR", &config.haproxy.dir)
            .env("HAAS_HAPROXY_MASTER_SOCKET", &config.haproxy.master_socket)
            .env("HAAS_HAPROXY_STATS_SOCKET", &config.haproxy.stats_socket)
            .env("HAAS_HAPROXY_HTTP_BIND", &config.haproxy.http_bind)
            .env("HAAS_RECONCILE_PERIOD", PERIOD)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self(child))
    }

    /// A line of its status, in MiB.
    fn memory(&self, name: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find(|line| line.starts_with(name)).context("no such line")?;
        let kib: f64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        drop(self.0.wait());
    }
}
