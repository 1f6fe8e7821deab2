//! `haas doctor`: looks at every part, and says what is wrong and what to do.

mod certificates;
mod strays;
mod walls;

use std::os::unix::fs::PermissionsExt;

use clap::Args;
use serde::Serialize;

use super::{Global, Outcome, settings};
use crate::clients::Clients;
use crate::config::Config;
use crate::containers::{Containers, ContainersError, Disk};
use crate::failpoint::Faults;
use crate::haproxy::{Haproxy, Settings};
use crate::instance::hosts::rehost;
use crate::instance::storage::MIB;
use crate::instance::{Instance, Phase};
use crate::manifest::{Cause, Manifest};
use crate::reconcile;
use crate::server;

/// The kernel's ephemeral ports begin here (ip_local_port_range, ip-sysctl).
const EPHEMERAL_FIRST: u16 = 32768;
/// Ports left, in percent, below which it is time to think.
const PORTS_LOW: usize = 10;
/// Room on the volumes' file system, in percent, below which it is time to think, and to act.
const DISK_LOW: u64 = 15;
const DISK_FULL: u64 = 3;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It can't be seen from here.
    Unknown,
    Warning,
    Broken,
}

#[derive(Debug, Serialize)]
struct Finding {
    part: &'static str,
    verdict: Verdict,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, part: &'static str, detail: impl Into<String>) {
        self.0.push(Finding { part, verdict: Verdict::Ok, detail: detail.into(), advice: None });
    }

    fn unknown(&mut self, part: &'static str, detail: impl Into<String>) {
        self.0.push(Finding { part, verdict: Verdict::Unknown, detail: detail.into(), advice: None });
    }

    fn warn(&mut self, part: &'static str, detail: impl Into<String>, advice: impl Into<String>) {
        let advice = Some(advice.into());
        self.0.push(Finding { part, verdict: Verdict::Warning, detail: detail.into(), advice });
    }

    fn broken(&mut self, part: &'static str, detail: impl Into<String>, advice: impl Into<String>) {
        let advice = Some(advice.into());
        self.0.push(Finding { part, verdict: Verdict::Broken, detail: detail.into(), advice });
    }
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let mut findings = Findings::default();
    look_at_secrets(&config, &mut findings);
    look_at_settings(&config, &mut findings);
    let manifest = Manifest::new(&config);
    match manifest.live().await {
        Ok((live, corrupt)) => {
            findings.ok("postgres", format!("answers; {} live instances", live.len()));
            for error in corrupt {
                findings.broken("postgres", error.to_string(), "restore the row from a backup, or correct it by hand");
            }
            look_at_events(&manifest, &mut findings).await;
            look_at_server(&manifest, &mut findings).await;
            look_at_instances(&live, &mut findings);
            look_at_hosts(&config, &live, &mut findings);
            look_at_ports(&manifest, &mut findings).await;
            look_at_docker(&config, &live, &mut findings).await;
            if let Ok(installation) = manifest.installation().await {
                walls::look(&config, installation, &live, &mut findings).await;
            }
            look_at_haproxy(&config, &live, &mut findings).await;
            certificates::look(&config, &live, &mut findings).await;
        }
        Err(error) => {
            findings.broken("postgres", error.to_string(), "start it: `haas up`, or the service that runs it");
        }
    }
    let Findings(findings) = findings;
    if arguments.json {
        say!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for finding in &findings {
            let mark = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Unknown => "unknown",
                Verdict::Warning => "WARNING",
                Verdict::Broken => "BROKEN",
            };
            let detail = finding.detail.replace('\n', "\n                    ");
            say!("{mark:<8} {:<10} {detail}", finding.part);
            if let Some(advice) = &finding.advice {
                say!("                    → {advice}");
            }
        }
    }
    let broken = findings.iter().any(|finding| finding.verdict == Verdict::Broken);
    Ok(if broken { Outcome::NotReady } else { Outcome::Done })
}

fn look_at_secrets(config: &Config, findings: &mut Findings) {
    let dir = &config.secrets.dir;
    let mut open: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o077 != 0) {
            open.push(entry.path().display().to_string());
        }
    }
    let clients = match Clients::read(dir) {
        Ok(clients) => clients,
        Err(error) => {
            findings.broken("secrets", error.to_string(), "put one key into one file, with mode 0600");
            return;
        }
    };
    if open.is_empty() {
        findings.ok("secrets", format!("{}: readable by their owner alone", dir.display()));
    } else {
        let files = open.join(" ");
        findings.warn("secrets", format!("others may read {files}"), format!("chmod 600 {files}"));
    }
    let others = clients.mistakes().into_iter().filter(|mistake| !mistake.contains("others may read"));
    for mistake in others {
        findings.warn("clients", mistake, "see docs/operations.md, Clients");
    }
    let keys: Vec<String> = clients.keys().into_iter().map(|key| key.id).collect();
    findings.ok("clients", format!("{} key(s): {}", keys.len(), keys.join(" ")));
}

async fn look_at_events(manifest: &Manifest, findings: &mut Findings) {
    match manifest.may_change_events().await {
        Ok(false) => findings.ok("events", "append-only for the server's role"),
        Ok(true) => findings.warn(
            "events",
            "the server's own role owns the tables: whoever takes it over could change what is written down",
            "give the server a role of its own: docs/operations.md, Database roles",
        ),
        Err(error) => findings.broken("events", error.to_string(), "see postgres"),
    }
}

fn look_at_settings(config: &Config, findings: &mut Findings) {
    let ports = config.tenant.ports;
    if ports.last >= EPHEMERAL_FIRST {
        findings.warn(
            "settings",
            format!("the port range {ports} reaches into the kernel's ephemeral ports"),
            format!("end tenant.ports below {EPHEMERAL_FIRST}"),
        );
    }
}

async fn look_at_server(manifest: &Manifest, findings: &mut Findings) {
    match manifest.has_leader().await {
        Ok(true) => findings.ok("server", "one acts"),
        Ok(false) => {
            findings.broken(
                "server",
                "none acts: what is wanted is written down, and not carried out",
                "start `haas up` or `haas serve`",
            );
        }
        Err(error) => findings.broken("server", error.to_string(), "see postgres"),
    }
}

fn look_at_instances(live: &[Instance], findings: &mut Findings) {
    let mut unsettled = 0;
    for row in live {
        match (row.phase, &row.last_error) {
            (Phase::Failed, error) => {
                let error = error.as_deref().unwrap_or("unknown");
                findings.broken(
                    "instance",
                    format!("{} failed {} time(s): {error}", row.container, row.attempts),
                    format!("haas show {} {}", row.username, row.appname),
                );
            }
            _ if row.storage_full.is_some() => findings.warn(
                "storage",
                format!(
                    "{} is stopped: {}",
                    row.container,
                    row.storage_full.as_ref().map(|full| full.why()).unwrap_or_default()
                ),
                format!(
                    "`haas policy {} {} --disk-mib N` raises its limit; then a request wakes it",
                    row.username, row.appname
                ),
            ),
            (Phase::Archiving, Some(error)) => findings.warn(
                "instance",
                format!("{} is not archived: {error}", row.container),
                format!("its data stays where it is; haas show {} {}", row.username, row.appname),
            ),
            (Phase::Running | Phase::Paused | Phase::Asleep | Phase::Archived, _) => {}
            _ => unsettled += 1,
        }
    }
    if unsettled > 0 {
        findings.warn("instance", format!("{unsettled} on their way"), "`haas list` tells which");
    }
}

fn look_at_hosts(config: &Config, live: &[Instance], findings: &mut Findings) {
    match rehost(live, config.installation.host_pattern, &config.installation.domain) {
        Ok(moves) if moves.is_empty() => {}
        Ok(moves) => findings.warn(
            "hosts",
            format!("{} app(s) have hosts that the domain and the pattern don't give", moves.len()),
            "`haas rehost` rewrites them; with --dry-run it only shows them",
        ),
        Err(obstacles) => {
            for obstacle in obstacles {
                findings.warn("hosts", obstacle.to_string(), "`haas rehost` can't rewrite hosts until then");
            }
        }
    }
}

async fn look_at_ports(manifest: &Manifest, findings: &mut Findings) {
    match manifest.port_use().await {
        Ok(usage) => {
            let free = usage.total.saturating_sub(usage.taken + usage.withheld.len());
            let text = format!("{} of {} taken, {free} free", usage.taken, usage.total);
            if free == 0 {
                findings.broken("ports", text, "widen tenant.ports: nothing more can be provisioned");
            } else if free * 100 < usage.total * PORTS_LOW {
                findings.warn("ports", text, "widen tenant.ports in time");
            } else {
                findings.ok("ports", text);
            }
            let occupied: Vec<String> =
                usage.withheld.iter().filter(|port| port.occupied).map(|port| port.port.to_string()).collect();
            if !occupied.is_empty() {
                findings.warn(
                    "ports",
                    format!("something else on this host held {}", occupied.join(", ")),
                    "they are left alone for reconcile.port_retry_after; `ss -ltnp` tells who has them",
                );
            }
        }
        Err(error) => findings.broken("ports", error.to_string(), "see postgres"),
    }
}

async fn look_at_docker(config: &Config, live: &[Instance], findings: &mut Findings) {
    let world = match server::world(config, Cause::default(), Faults::default()).await {
        Ok(world) => world,
        Err(error) => return findings.broken("docker", error.to_string(), "see secrets"),
    };
    let owned = match world.containers.list().await {
        Ok(owned) => owned,
        Err(error) => {
            return findings.broken("docker", error.to_string(), "start dockerd; scripts/start-docker does");
        }
    };
    findings.ok("docker", format!("answers; {} containers of this installation", owned.len()));
    match world.containers.health().await {
        Ok(()) => findings.ok("image", config.tenant.image.clone()),
        Err(error @ ContainersError::ImageMissing(_)) => {
            findings.broken("image", error.to_string(), "scripts/build-image");
        }
        Err(error) => findings.broken("image", error.to_string(), "see docker"),
    }
    let reloaded = &config.haproxy.reload_container;
    if !reloaded.is_empty()
        && let Err(error) = world.containers.may_signal(reloaded).await
    {
        findings.broken("haproxy", error.to_string(), "haproxy.reload_container must name the container of HAProxy");
    }
    for why in world.containers.engine_gaps().await.unwrap_or_default() {
        findings.warn("docker", why, "scripts/start-docker starts an engine without this gap");
    }
    look_at_disk(world.containers.disk().await, findings);
    strays::look(config, &world, &owned, live, findings).await;
}

/// Of the volumes' file system.
fn look_at_disk(disk: Option<Disk>, findings: &mut Findings) {
    // Another machine's, perhaps.
    let Some(Disk { total, free, files_total, files_free }) = disk.filter(|disk| disk.total > 0) else { return };
    let advice = "make room, or put the engine's volumes on a larger one; tenant.disk_mib, tenant.files and \
                  lifecycle.archive_after bound what tenants take";
    let room = [(free / MIB, free, total, "MiB"), (files_free, files_free, files_total, "inodes")];
    // Some file systems make inodes as they are needed.
    for (shown, free, total, unit) in room.into_iter().filter(|(_, _, total, _)| *total > 0) {
        let percent = free.saturating_mul(100) / total;
        let text = format!("{shown} {unit} ({percent} %) of the volumes' file system are free");
        if percent < DISK_FULL {
            findings.broken("disk", text, advice);
        } else if percent < DISK_LOW {
            findings.warn("disk", text, advice);
        } else {
            findings.ok("disk", text);
        }
    }
}

async fn look_at_haproxy(config: &Config, live: &[Instance], findings: &mut Findings) {
    let haproxy = Haproxy::new(Settings::from_config(config));
    let routes = reconcile::routes(live);
    let candidate = match haproxy.render_candidate(&routes).await {
        Ok(candidate) => candidate,
        Err(error) => {
            return findings.broken("haproxy", error.to_string(), "correct the template; the last good file serves on");
        }
    };
    let checked = match haproxy.check(&candidate).await {
        Ok(_) => true,
        Err(error) => {
            findings.broken("haproxy", error.to_string(), "correct the template; the last good file serves on");
            false
        }
    };
    match haproxy.running_generation().await {
        Ok(Some(running)) if running == candidate.generation() => {
            findings.ok("haproxy", format!("runs generation {running} with {} routes", routes.len()));
        }
        Ok(Some(running)) if checked => findings.warn(
            "haproxy",
            format!("runs generation {running}, the manifest asks for {}", candidate.generation()),
            "sections follow the routes within haproxy.reload_min_interval; `haas config --diff` shows the difference",
        ),
        Ok(Some(running)) => findings.warn("haproxy", format!("still runs generation {running}"), "see above"),
        Ok(None) => findings.broken(
            "haproxy",
            "does not run, or not with our configuration",
            if config.haproxy.reload_container.is_empty() {
                format!("start it with haproxy -W -S {}", config.haproxy.master_socket.display())
            } else {
                format!("`docker logs {}` says why", config.haproxy.reload_container)
            },
        ),
        Err(error) => findings.broken("haproxy", error.to_string(), "haproxy.master_socket must be its -S socket"),
    }
    match haproxy.map_differences(&routes).await {
        Ok(Some(0)) => findings.ok("haproxy", format!("routes as the manifest says: {} apps", routes.len())),
        Ok(Some(count)) => {
            let text = format!("its map differs from the manifest in {count} entries");
            findings.warn("haproxy", text, "it is repaired within reconcile.period; `haas routes` shows which");
        }
        // That it does not run stands above.
        Ok(None) | Err(_) => {}
    }
    let workers = haproxy.workers().await.unwrap_or_default();
    let old = workers.iter().filter(|worker| !worker.current).count();
    if old > 0 {
        let mut memory = 0;
        for worker in workers.iter().filter(|worker| !worker.current) {
            memory += haproxy.memory_mib(worker).await.unwrap_or(0);
        }
        let text = format!("{old} old worker(s) with {memory} MiB still serve streams");
        if old >= config.haproxy.old_workers_max {
            let advice = "new apps wait for their sections; haproxy.hard_stop_after bounds how long they stay";
            findings.warn("haproxy", text, advice);
        } else {
            findings.ok("haproxy", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_with_little_room_is_told_of_in_time() {
        let verdict = |free: u64| {
            let verdicts = [(free, 1000), (1000, free)].map(|(free, files_free)| {
                let disk = Disk { total: 1000 * MIB, free: free * MIB, files_total: 1000, files_free };
                let mut findings = Findings::default();
                look_at_disk(Some(disk), &mut findings);
                let Findings(findings) = findings;
                assert!(findings.iter().all(|found| found.advice.is_some() == (found.verdict != Verdict::Ok)));
                findings.iter().map(|found| found.verdict).collect::<Vec<_>>()
            });
            let [bytes, files] = verdicts;
            assert_eq!((bytes[1], files[0]), (Verdict::Ok, Verdict::Ok));
            assert_eq!(bytes[0], files[1]);
            bytes[0]
        };
        let (ok, low, full) = ([1000, 150], [149, 30], [29, 0]);
        assert!(ok.map(verdict) == [Verdict::Ok; 2] && low.map(verdict) == [Verdict::Warning; 2]);
        assert!(full.map(verdict) == [Verdict::Broken; 2]);
        let mut nothing = Findings::default();
        look_at_disk(None, &mut nothing);
        look_at_disk(Some(Disk { total: 0, free: 0, files_total: 0, files_free: 0 }), &mut nothing);
        assert!(nothing.0.is_empty(), "another machine's, or none");
    }
}
