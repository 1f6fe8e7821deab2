//! Requests a second through our configuration, against configurations written by hand for the
//! same apps: one that only routes, and one that does the same at the door as ours. All three
//! run at the same time, and wrk asks them in turns.
//!
//! `cargo bench --bench throughput -- [--full]`

mod common;
#[path = "common/wrk.rs"]
mod wrk;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::DateTime;
use common::{Figures, Verdict, full, heading, ports, until};
use haas::config::Config;
use haas::haproxy::{Haproxy, Proxy, Route, Routes, Settings};
use haas::instance::name::{AppName, ContainerName, HostPattern, Hostname, Username};
use tempfile::TempDir;
use wrk::{Run, Wrk};

/// Ports that the apps listen on; more apps than that share them.
const APP_PORTS: u16 = 1000;
const CERTIFICATE: &str = "certs/all.pem";

fn main() -> Result<()> {
    let (sizes, rounds, seconds): (&[u16], _, _) = if full() { (&[10, 1000, 10_000], 11, 1) } else { (&[10], 1, 1) };
    let runtime = tokio::runtime::Runtime::new()?;
    let mut verdicts = Vec::new();
    for &routes in sizes {
        for scheme in ["http", "https"] {
            let bench = runtime.block_on(Bench::start(routes, scheme))?;
            for (load, hosts) in [("spread over all", routes), ("all to one", 1)] {
                let title = format!("{routes} routes, {scheme}, {load}");
                let compared = runtime.block_on(bench.compare(hosts, rounds, seconds))?;
                compared.print(&format!("{title}, {rounds} rounds"));
                verdicts.push((title, compared.to_plain.median()));
            }
        }
    }
    let mut verdict = Verdict::new();
    for (title, ratio) in &verdicts {
        verdict.at_least(title, *ratio, 0.95);
    }
    verdict.end()
}

/// The apps, and three ways to them.
struct Bench {
    dir: TempDir,
    scheme: &'static str,
    ours: Running,
    plain: Running,
    door: Running,
    _apps: Running,
}

impl Bench {
    async fn start(routes: u16, scheme: &'static str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("haas-bench").tempdir()?;
        let count = routes.min(APP_PORTS);
        let first = ports(count + 3)?;
        let [ours, plain, door] = [0, 1, 2].map(|n| first + count + n);
        certificate(dir.path())?;
        let apps = format!(
            "global\n maxconn 8192\n nbthread 1\ndefaults\n mode http\n timeout client 180s\n timeout http-keep-alive 180s\n\
             listen apps\n bind 127.0.0.1:{first}-{}\n http-request return status 200 content-type text/plain string hello\n",
            first + count - 1
        );
        let routes: Vec<Route> = (0..routes).map(|n| route(n, first + n % count)).collect::<Result<_>>()?;
        let (maps, sections) = by_hand(&routes);
        let map = dir.path().join("hosts.map");
        std::fs::write(&map, maps)?;
        let by_hand = |port: u16, door: &str| {
            let tls = if scheme == "https" {
                format!(" ssl crt {} alpn h2,http/1.1", dir.path().join(CERTIFICATE).display())
            } else {
                String::new()
            };
            let head = include_str!("common/handwritten.cfg")
                .replace("{bind}", &format!("127.0.0.1:{port}{tls}"))
                .replace("{scheme}", scheme)
                .replace("{door}", door)
                .replace("{map}", &map.display().to_string());
            format!("{head}\n{sections}")
        };
        let limits = "\nbackend limits\n    stick-table type string len 260 size 100k expire 1m store conn_cur,http_req_rate(10s)\n";
        let with_door = by_hand(door, include_str!("common/handwritten-door.cfg").trim_end()) + limits;
        let ours_cfg = generated(dir.path(), ours, scheme, routes).await?;
        let write = |name: &str, text: String| -> Result<PathBuf> {
            let path = dir.path().join(name);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        Ok(Self {
            _apps: Running::start(&write("apps.cfg", apps)?, first).await?,
            ours: Running::start(&ours_cfg, ours).await?,
            plain: Running::start(&write("plain.cfg", by_hand(plain, ""))?, plain).await?,
            door: Running::start(&write("door.cfg", with_door)?, door).await?,
            scheme,
            dir,
        })
    }

    async fn compare(&self, hosts: u16, rounds: usize, seconds: u32) -> Result<Compared> {
        let wrk = Wrk::new(&self.dir.path().join("wrk.lua"), hosts)?;
        let all = [&self.ours, &self.plain, &self.door];
        // Connections to the apps, and the table, are there when it counts.
        for running in all {
            wrk.run(self.scheme, running.port, 1).await?;
        }
        let mut compared = Compared::default();
        for round in 0..rounds {
            let mut runs = [None; 3];
            for turn in 0..3 {
                let which = (round + if round % 2 == 0 { turn } else { 3 - turn }) % 3;
                let before = all[which].cpu()?;
                let run = wrk.run(self.scheme, all[which].port, seconds).await?;
                runs[which] = Some((run, all[which].cpu()?.saturating_sub(before)));
            }
            let [Some(ours), Some(plain), Some(door)] = runs else { anyhow::bail!("a round without a run") };
            compared.take(ours, plain, door);
        }
        Ok(compared)
    }
}

/// What wrk saw, and the CPU time that HAProxy took for it.
type Measured = (Run, Duration);

#[derive(Default)]
struct Compared {
    per_second: [Figures; 3],
    cpu: [Figures; 3],
    to_plain: Figures,
    to_door: Figures,
    cpu_to_plain: Figures,
    cpu_to_door: Figures,
}

impl Compared {
    fn take(&mut self, ours: Measured, plain: Measured, door: Measured) {
        let cpu = |(run, cpu): Measured| cpu.as_secs_f64() * 1e6 / run.requests;
        for (at, measured) in [ours, plain, door].into_iter().enumerate() {
            self.per_second[at].take(measured.0.per_second);
            self.cpu[at].take(cpu(measured));
        }
        self.to_plain.take(ours.0.per_second / plain.0.per_second);
        self.to_door.take(ours.0.per_second / door.0.per_second);
        self.cpu_to_plain.take(cpu(ours) / cpu(plain));
        self.cpu_to_door.take(cpu(ours) / cpu(door));
    }

    fn print(&self, title: &str) {
        const NAMES: [&str; 3] = ["ours", "by hand, routing only", "by hand, with the same service at the door"];
        heading(title, "requests a second");
        for (name, figures) in NAMES.iter().zip(&self.per_second) {
            figures.row(name, 0);
        }
        self.to_plain.row("**ratio to routing only**", 3);
        self.to_door.row("ratio to the same service", 3);
        for (name, figures) in NAMES.iter().zip(&self.cpu) {
            figures.row(&format!("(CPU time of HAProxy a request, in µs: {name})"), 1);
        }
        self.cpu_to_plain.row("(its ratio to routing only)", 3);
        self.cpu_to_door.row("(its ratio to the same service)", 3);
    }
}

fn route(number: u16, port: u16) -> Result<Route> {
    let (user, app) = (Username::parse(&format!("user-{number:05}"))?, AppName::parse("notes")?);
    Ok(Route {
        host: HostPattern::Nested.host(&user, &app, &Hostname::parse("haas.localhost")?)?,
        extra_hosts: Vec::new(),
        port,
        container: ContainerName::of(&user, &app),
        since: DateTime::UNIX_EPOCH,
    })
}

/// A map from hosts to sections, and the sections.
fn by_hand(routes: &[Route]) -> (String, String) {
    let (mut map, mut sections) = (String::new(), String::new());
    for Route { host, container, port, .. } in routes {
        let line = writeln!(map, "{host} {container}");
        let section = writeln!(sections, "backend {container}\n    server app 127.0.0.1:{port} maxconn 512\n");
        line.and(section).unwrap_or_else(|error| unreachable!("a String takes everything: {error}"));
    }
    (map, sections)
}

/// haproxy.cfg as Haas publishes it, with limits that don't bite.
async fn generated(dir: &Path, port: u16, scheme: &str, routes: Vec<Route>) -> Result<PathBuf> {
    let mut config = Config::load(None, [], std::collections::BTreeMap::new())?;
    let haproxy = &mut config.haproxy;
    haproxy.dir = dir.join("haproxy");
    haproxy.master_socket = dir.join("master.sock");
    haproxy.stats_socket = dir.join("stats.sock");
    haproxy.maxconn = 4096;
    haproxy.app_maxconn = 2000;
    haproxy.app_request_rate = 100_000_000;
    let bind = format!("127.0.0.1:{port}");
    if scheme == "https" {
        // Plain HTTP is not asked for here.
        haproxy.http_bind = dir.join("plain.sock").display().to_string();
        haproxy.https_bind = bind;
        config.tls.dir = dir.to_owned();
    } else {
        haproxy.http_bind = bind;
    }
    std::fs::create_dir_all(&config.haproxy.dir)?;
    Haproxy::new(Settings::from_config(&config)).publish_alone(&Routes::new(routes)).await?;
    Ok(config.haproxy.dir.join("haproxy.cfg"))
}

/// One for every app. wrk names the address when it asks for a certificate.
fn certificate(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir.join("certs"))?;
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    openssl.args(["-days", "1", "-subj", "/CN=haas.localhost"]);
    openssl.args(["-addext", "subjectAltName=DNS:*.haas.localhost,DNS:127.0.0.1"]);
    openssl.arg("-keyout").arg(dir.join("key.pem")).arg("-out").arg(dir.join("cert.pem"));
    let output = openssl.stdin(Stdio::null()).output().context("openssl does not start")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pem = std::fs::read_to_string(dir.join("cert.pem"))? + &std::fs::read_to_string(dir.join("key.pem"))?;
    Ok(std::fs::write(dir.join(CERTIFICATE), pem)?)
}

/// A HAProxy without a master; ended when it is dropped.
struct Running {
    child: Child,
    port: u16,
}

impl Running {
    async fn start(cfg: &Path, port: u16) -> Result<Self> {
        let errors = std::fs::File::create(cfg.with_extension("log"))?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(cfg).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let mut running = Self { child: command.spawn().context("haproxy does not start")?, port };
        let listens = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        until("HAProxy is up", Duration::from_secs(30), async || listens().then_some(())).await?;
        ensure!(running.child.try_wait()?.is_none(), "{}", std::fs::read_to_string(cfg.with_extension("log"))?);
        Ok(running)
    }

    /// CPU time so far, from fields 14 and 15 of its `stat` (proc(5)).
    fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields = stat.rsplit_once(')').context("no name")?.1.split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Duration::from_millis(ticks * 10))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
