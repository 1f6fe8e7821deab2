//! Publishing routes, against HAProxy's own check and reload of files of the same size.
//!
//! `cargo bench --bench routes -- [--full]`

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::DateTime;
use common::{Figures, Pairs, Verdict, full, heading, ports, until};
use haas::config::Config;
use haas::embedded::{HaproxyProcess, Layout};
use haas::haproxy::{Candidate, Haproxy, Proxy, Route, Routes, Settings, Standing};
use haas::instance::name::{AppName, ContainerName, HostPattern, Hostname, Username};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::Command;
use toml::Value;

/// How often the baseline asks the worker for its generation: as often as `publish` does.
const POLL: Duration = Duration::from_millis(5);

struct Case {
    routes: u16,
    sections_max: u32,
    /// Through the live lane, which puts routes in force without the reload.
    live: bool,
    pairs: usize,
}

fn main() -> Result<()> {
    let pairs = if full() { 15 } else { 3 };
    let mut cases = Vec::new();
    for live in [false, true] {
        cases.push(Case { routes: 1000, sections_max: 2000, live, pairs });
        cases.push(Case { routes: 10_000, sections_max: 2000, live, pairs });
    }
    if full() {
        cases.push(Case { routes: 10_000, sections_max: 20_000, live: false, pairs });
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let mut verdicts = Vec::new();
    for case in &cases {
        let sections = if u32::from(case.routes) <= case.sections_max { "a section each" } else { "no sections" };
        let way = if case.live { "live" } else { "by a reload" };
        let title = format!("{} routes, {sections}, {way}, {} pairs", case.routes, case.pairs);
        verdicts.push((title.clone(), runtime.block_on(measure(case, &title))?));
    }
    let mut verdict = Verdict::new();
    for (title, ratio) in &verdicts {
        verdict.at_most(title, *ratio, 1.3);
    }
    verdict.end()
}

async fn measure(case: &Case, title: &str) -> Result<f64> {
    let running = Running::start(case).await?;
    let mut pairs = Pairs::default();
    let mut render = Figures::default();
    for number in 0..case.pairs {
        let (ours, theirs) = (routes(case.routes, 2 * number + 1)?, routes(case.routes, 2 * number + 2)?);
        let ours_first = number % 2 == 0;
        let mut times = [Duration::ZERO; 2];
        for turn in [ours_first, !ours_first] {
            running.settled().await?;
            if turn {
                let began = Instant::now();
                let publication = running.haproxy.publish_alone(&ours).await?;
                times[0] = began.elapsed();
                ensure!(publication.standing == Standing::Live, "it was not published");
            } else {
                let began = Instant::now();
                let candidate = running.haproxy.render_candidate(&theirs).await?;
                render.take_time(began.elapsed());
                times[1] = running.check_and_reload(&candidate).await?;
            }
        }
        pairs.take(times[0], times[1]);
    }
    let bytes = std::fs::metadata(running.layout.haproxy_dir().join("haproxy.cfg"))?.len();
    heading(title, "ms");
    pairs.ours.row("publish", 1);
    pairs.baseline.row("haproxy -c and reload", 1);
    pairs.ratio.row("**ratio**", 3);
    render.row("(of which rendering, measured alone)", 1);
    println!("\nhaproxy.cfg has {} KiB.", bytes / 1024);
    Ok(pairs.ratio.median())
}

/// Routes of which the last one's port differs with each number.
fn routes(count: u16, number: usize) -> Result<Routes> {
    let pattern = HostPattern::Nested;
    let domain = Hostname::parse("haas.localhost")?;
    let app = AppName::parse("notes")?;
    let mut all = Vec::with_capacity(usize::from(count));
    for at in 0..count {
        let user = Username::parse(&format!("user-{at:05}"))?;
        let moved = if at == count - 1 { u16::try_from(number)? } else { 0 };
        all.push(Route {
            host: pattern.host(&user, &app, &domain)?,
            extra_hosts: Vec::new(),
            port: 5521 + at + moved,
            container: ContainerName::of(&user, &app),
            since: DateTime::UNIX_EPOCH,
        });
    }
    Ok(Routes::new(all))
}

/// A HAProxy in a folder of its own.
struct Running {
    haproxy: Haproxy,
    settings: Settings,
    layout: Layout,
    _dir: TempDir,
}

impl Running {
    async fn start(case: &Case) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("haas-bench").tempdir()?;
        let layout = Layout::new(&dir.path().join("var"))?;
        layout.create()?;
        let path = |path: &Path| Value::String(path.display().to_string());
        let overrides = BTreeMap::from([
            ("haproxy.dir".to_owned(), path(&layout.haproxy_dir())),
            ("haproxy.master_socket".to_owned(), path(&layout.master_socket())),
            ("haproxy.stats_socket".to_owned(), path(&layout.stats_socket())),
            ("haproxy.http_bind".to_owned(), Value::String(format!("127.0.0.1:{}", ports(1)?))),
            ("haproxy.sections_max".to_owned(), Value::Integer(case.sections_max.into())),
            ("haproxy.live_routes".to_owned(), Value::Boolean(case.live)),
        ]);
        let settings = Settings::from_config(&Config::load(None, [], overrides)?);
        let running = Self { haproxy: Haproxy::new(settings.clone()), settings, layout, _dir: dir };
        running.haproxy.publish_alone(&routes(case.routes, 0)?).await?;
        HaproxyProcess::ensure(&running.layout, &running.settings.binary).await?;
        Ok(running)
    }

    /// Waits until the worker of the reload before has left, so that its end costs nobody's time.
    async fn settled(&self) -> Result<()> {
        until("the old worker leaves", Duration::from_secs(30), || async {
            self.haproxy.workers().await.is_ok_and(|workers| workers.len() == 1).then_some(())
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(())
    }

    /// What an administrator would do: the files are there; check, signal, look.
    async fn check_and_reload(&self, candidate: &Candidate) -> Result<Duration> {
        let dir = &self.settings.dir;
        for (name, text) in [("routes.map", candidate.map()), ("haproxy.cfg", candidate.cfg())] {
            std::fs::write(dir.join(name), text)?;
            std::fs::File::open(dir.join(name))?.sync_all()?;
        }
        let began = Instant::now();
        let mut check = Command::new(&self.settings.binary);
        check.arg("-c").arg("-f").arg(dir.join("haproxy.cfg")).stdin(Stdio::null());
        let output = check.output().await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        kill(self.master().await?, Signal::SIGUSR2)?;
        // While the master replaces itself, connections are cut.
        while self.haproxy.running_generation().await.ok().flatten().as_deref() != Some(candidate.generation()) {
            ensure!(began.elapsed() < Duration::from_secs(60), "no worker came up");
            tokio::time::sleep(POLL).await;
        }
        Ok(began.elapsed())
    }

    /// The worker's parent.
    async fn master(&self) -> Result<Pid> {
        let worker = self.haproxy.workers().await?.first().context("HAProxy is down")?.pid;
        let stat = std::fs::read_to_string(format!("/proc/{worker}/stat"))?;
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        Ok(Pid::from_raw(parent.context("a worker without a parent")?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let layout = self.layout.clone();
        // Dropped inside a runtime, which can't be blocked on: a thread with one of its own.
        let stopping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(HaproxyProcess::stop(&layout)).ok()
        });
        if !matches!(stopping.join(), Ok(Some(true))) {
            eprintln!("HAProxy in {} may still run", self.layout.dir().display());
        }
    }
}
