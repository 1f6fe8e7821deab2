//! `haas down`: stops what `haas up` has started.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::{Global, Outcome, settings};
use crate::containers::Containers;
use crate::embedded::{DirLock, HaproxyProcess, Layout, Postgres};
use crate::failpoint::Faults;
use crate::firewall;
use crate::manifest::Cause;
use crate::server;

/// How long a server may take to stop, its Postgres and HAProxy included.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Remove the tenants' containers too; their data stays, and the next `haas up` makes them again
    #[arg(long)]
    remove: bool,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let layout = Layout::new(&global.dir)?;
    anyhow::ensure!(settings::Started::read(&layout)?.is_some(), "no `haas up` has run in {}", layout.dir().display());
    let lock = stop_server(&layout).await?;
    if arguments.remove {
        remove_containers(global, &layout).await?;
    }
    if HaproxyProcess::stop(&layout).await? {
        say!("HAProxy stopped");
    }
    if Postgres::stop(&layout).await? {
        say!("Postgres stopped");
    }
    drop(lock);
    if !arguments.remove {
        say!("tenants keep running; `haas down --remove` ends them");
    }
    Ok(Outcome::Done)
}

/// Ends the `haas up` of this folder, if one runs, and takes its place, so that none starts meanwhile.
async fn stop_server(layout: &Layout) -> anyhow::Result<DirLock> {
    let deadline = Instant::now() + LIMIT;
    let mut told = None;
    loop {
        let Some(pid) = DirLock::holder(layout)? else {
            match DirLock::acquire(layout) {
                Ok(lock) => return Ok(lock),
                // Somebody was quicker.
                Err(error) if Instant::now() >= deadline => return Err(error.into()),
                Err(_) => continue,
            }
        };
        if told != Some(pid) {
            kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("signalling process {pid}"))?;
            say!("stopping the server (process {pid})");
            told = Some(pid);
        }
        anyhow::ensure!(Instant::now() < deadline, "process {pid} does not stop");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn remove_containers(global: &Global, layout: &Layout) -> anyhow::Result<()> {
    // The manifest knows our label.
    Postgres::ensure(layout).await?;
    let config = settings::of_server(global)?;
    let world = server::world(&config, Cause::default(), Faults::default()).await?;
    let owned = world.containers.list().await?;
    let count = owned.len();
    let mut removals = tokio::task::JoinSet::new();
    for owned in owned {
        let world = std::sync::Arc::clone(&world);
        removals.spawn(async move { world.containers.remove_owned(&owned).await });
        if removals.len() >= config.reconcile.concurrency {
            finish(removals.join_next().await)?;
        }
    }
    while let Some(removed) = removals.join_next().await {
        finish(Some(removed))?;
    }
    world.containers.remove_helpers(None).await?;
    world.containers.remove_own_network().await?;
    say!("{count} container(s) removed; their data stays in their volumes");
    // They stay for the next `haas up`, which does not put them in itself.
    let installation = world.manifest.installation().await?;
    if firewall::is_installed(installation).await.unwrap_or(false) {
        say!("the firewall's rules stay; `haas firewall --remove --installation {installation}` takes them away");
    }
    Ok(())
}

fn finish(
    removed: Option<Result<Result<(), crate::containers::ContainersError>, tokio::task::JoinError>>,
) -> anyhow::Result<()> {
    match removed {
        Some(removed) => Ok(removed??),
        None => Ok(()),
    }
}
