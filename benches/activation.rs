//! From the manifest's commit that an app is ready to the first 200 at its host: real Postgres,
//! real HAProxy, the real reconciler. The containers are a stub's (`tests/support/tenants.rs`),
//! since ten thousand Hoodies fit on no small machine.
//!
//! `cargo bench --bench activation -- [--full]`
#![allow(clippy::unwrap_used, reason = "what it shares with the tests does")]

mod common;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use common::{Figures, Verdict, full, ports, until};
use haas::failpoint::Faults;
use haas::haproxy::{Haproxy, Settings};
use haas::instance::Phase;
use haas::instance::name::{AppName, Email, Username};
use haas::manifest::{Manifest, NewInstance};
use haas::reconcile::{self, Health, Nudges, Worker, World};
use support::cluster::{Cluster, RunningHaproxy};
use support::tenants::{Server, Tenants};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Ports of the apps in place, at which nobody listens; their number is at most 10,000.
const SETTLED_PORTS: u16 = 20_000;
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
        for (name, figures) in
            [("all", &times.all), ("nothing else under way", &times.quiet), ("a reload under way", &times.reloading)]
        {
            let [p50, p99, max] = [50.0, 99.0, 100.0].map(|percent| figures.percentile(percent));
            if figures.count() == 0 {
                continue;
            }
            println!("| {routes} routes in place, {name} ({}) | {p50:.2} | {p99:.2} | {max:.2} |", figures.count());
        }
    }
    let mut verdict = Verdict::new();
    for (routes, times) in &measured {
        verdict.at_most(&format!("p50 with {routes} routes in place, in ms"), times.all.percentile(50.0), 5.0);
        verdict.at_most(&format!("p99 with {routes} routes in place, in ms"), times.all.percentile(99.0), 25.0);
    }
    verdict.end()
}

#[derive(Default)]
struct Times {
    all: Figures,
    quiet: Figures,
    reloading: Figures,
}

async fn measure(routes: u16, samples: u16) -> Result<Times> {
    let installation = Installation::start(routes, samples).await?;
    let mut times = Times::default();
    for number in 0..samples {
        let (time, reloading) = installation.activate(number).await?;
        times.all.take_time(time);
        if reloading {
            times.reloading.take_time(time);
        } else {
            times.quiet.take_time(time);
        }
    }
    Ok(times)
}

/// All but the engine; ended when it is dropped.
struct Installation {
    manifest: Manifest,
    haproxy: Haproxy,
    nudges: Nudges,
    reconciler: JoinHandle<()>,
    _control: Server,
    _haproxy: RunningHaproxy,
    cluster: Cluster,
}

impl Installation {
    async fn start(routes: u16, samples: u16) -> Result<Self> {
        let first = ports(samples + 2)?;
        let [http, control] = [first + samples, first + samples + 1];
        let ports = support::Ports { first, last: http - 1, http, spare: control };
        let listen = format!("127.0.0.1:{control}");
        // Sections come soon after their apps, so that there is a reload under way now and then.
        let settings = [("http.listen", listen.as_str()), ("haproxy.reload_min_interval", "500ms")];
        let mut cluster = Cluster::start(ports, &settings).await;
        cluster.config.haproxy.template = cluster.dir.path().join("template");
        edit_template(&cluster, 0)?;
        cluster.settled(routes, SETTLED_PORTS).await;
        let tenants = Tenants::default();
        for n in 0..routes {
            tenants.settled(Uuid::from_u128(n.into()), format!("user-{n:05}-notes"), SETTLED_PORTS + n);
        }
        // In place of the control API, which is asked for hosts that are in no map.
        let control = Server::at(control, 404, "no such app").await?;
        let running = RunningHaproxy::start(&cluster).await;
        let haproxy = || Haproxy::new(Settings::from_config(&cluster.config));
        let settings = reconcile::Settings::from_config(&cluster.config);
        let world = World::new(cluster.manifest(), tenants, haproxy(), settings, Faults::default());
        let (health, nudges) = (Health::default(), Nudges::default());
        let url = cluster.config.manifest.database_url.clone();
        let worker = Worker::new(world, url, health.clone(), nudges.clone());
        let installation = Self {
            manifest: cluster.manifest(),
            haproxy: haproxy(),
            nudges,
            reconciler: tokio::spawn(async move { match worker.run().await {} }),
            _control: control,
            _haproxy: running,
            cluster,
        };
        let ready = async || health.report().ok().then_some(());
        until("the reconciler has looked at everything", Duration::from_secs(30), ready).await?;
        Ok(installation)
    }

    /// Provisions an app. Returns the time from the commit to the first 200, and whether HAProxy
    /// reloaded at that time.
    async fn activate(&self, number: u16) -> Result<(Duration, bool)> {
        let username = Username::parse(&format!("new-{number:05}"))?;
        let new = NewInstance { username, appname: AppName::parse("notes")?, email: Email::parse("n@example.com")? };
        let host = format!("notes.{}.{}", new.username, self.cluster.config.installation.domain);
        let http = self.cluster.config.http_port();
        let client = tokio::task::spawn_blocking(move || first_200(http, &host));
        // Each third has a reload near it, some time before or after.
        let reload = (number % 3 == 2).then(|| Duration::from_millis(u64::from(number) * 37 % 200));
        let before = self.current_worker().await?;
        let edit = async {
            if let Some(delay) = reload {
                tokio::time::sleep(delay).await;
                edit_template(&self.cluster, number)?;
                self.nudges.nudge_haproxy();
            }
            anyhow::Ok(())
        };
        let provision = async {
            tokio::time::sleep(Duration::from_millis(if reload.is_some() { 100 } else { 0 })).await;
            anyhow::Ok(self.manifest.provision(&new).await?.instance.id)
        };
        let ((), id) = tokio::try_join!(edit, provision)?;
        let answered = client.await??;
        until("it is running", Duration::from_secs(10), async || {
            let row = self.manifest.get(id).await.ok()??;
            (row.phase == Phase::Running).then_some(())
        })
        .await?;
        let ready = self.manifest.events(id, 10).await?.into_iter().find(|event| event.kind == "ready");
        let committed = ready.context("it never became ready")?.at;
        if reload.is_some() {
            until("HAProxy has reloaded", Duration::from_secs(30), async || {
                (self.current_worker().await.ok()?.0 != before.0).then_some(())
            })
            .await?;
        }
        // A reload: from the writing of haproxy.cfg, over its check, to the start of the worker that
        // reads it.
        let config = self.cluster.layout.haproxy_dir().join("haproxy.cfg");
        let written = DateTime::<Utc>::from(std::fs::metadata(config)?.modified()?);
        let (_, started) = self.current_worker().await?;
        let reloading = written < answered && committed < started;
        Ok(((answered - committed).to_std()?, reloading))
    }

    async fn current_worker(&self) -> Result<(i32, DateTime<Utc>)> {
        let workers = self.haproxy.workers().await?;
        let current = workers.iter().find(|worker| worker.current).context("HAProxy has no worker")?;
        Ok((current.pid, current.started))
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        self.reconciler.abort();
    }
}

fn edit_template(cluster: &Cluster, number: u16) -> Result<()> {
    let text = include_str!("../templates/haproxy.cfg.tera");
    std::fs::write(&cluster.config.haproxy.template, format!("{text}\n# Edited {number} times.\n"))?;
    Ok(())
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
