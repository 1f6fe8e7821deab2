//! `haas sleep`, `wake`, `archive`, `restore` and `purge`: the policy's steps down, and those back,
//! by hand.

use clap::Args;

use super::intent::{Named, Waiting, report, wait};
use super::{Global, Outcome, settings};
use crate::config::Config;
use crate::instance::policy::Descent;
use crate::instance::{Desired, Instance, Phase, State};
use crate::manifest::{Manifest, ManifestError};

const BY_HAND: &str = "asked for by a command";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    waiting: Waiting,
}

/// `haas sleep` and `haas archive`.
pub(super) async fn descend(global: &Global, arguments: &Arguments, step: Descent) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let manifest = settings::manifest(&config);
    let Some((username, appname)) = arguments.named.parse() else { return Ok(Outcome::Refused) };
    // Whoever changes it between the two looks is as right as this command.
    let row = loop {
        let Some(row) = manifest.find(&username, &appname).await? else { return Ok(arguments.named.not_found()) };
        if row.desired.gone() {
            eprintln!("haas: {} is deleted; `haas restore` brings it back", row.container);
            return Ok(Outcome::Refused);
        }
        if row.desired >= step.desired() {
            break if step == Descent::Archive { manifest.try_again(&row).await? } else { row };
        }
        match manifest.descend(&row, step, BY_HAND).await {
            Ok(row) => break row,
            Err(ManifestError::Stale) => {}
            Err(error) => return Err(error.into()),
        }
    };
    // Wherever it has come to rest, it rests.
    let settled = |row: &Instance| match row.desired {
        Desired::Paused => matches!(row.phase, Phase::Paused | Phase::Asleep | Phase::Archived),
        Desired::Asleep => matches!(row.phase, Phase::Asleep | Phase::Archived),
        Desired::Archived => row.phase == Phase::Archived,
        Desired::Running | Desired::Deleted | Desired::Purged => true,
    };
    let row = wait(&config, &manifest, row, &arguments.waiting, settled).await?;
    report(&config, &row, arguments.waiting.json)?;
    let reached = row.desired >= step.desired() && settled(&row);
    Ok(if reached || arguments.waiting.no_wait { Outcome::Done } else { Outcome::NotReady })
}

/// `haas wake`.
pub(super) async fn wake(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let manifest = settings::manifest(&config);
    let Some((username, appname)) = arguments.named.parse() else { return Ok(Outcome::Refused) };
    let Some(row) = manifest.find(&username, &appname).await? else { return Ok(arguments.named.not_found()) };
    let written = match manifest.wake(row.id, BY_HAND).await {
        Err(error @ ManifestError::StorageFull(_)) => {
            eprintln!(
                "haas: {}: {error}; `haas policy {username} {appname} --disk-mib N` raises its limit",
                row.container
            );
            return Ok(Outcome::Refused);
        }
        written => written?,
    };
    let Some(written) = written else {
        eprintln!("haas: {} is deleted; `haas restore` brings it back", row.container);
        return Ok(Outcome::Refused);
    };
    let written = manifest.try_again(&written).await?;
    comes_up(&config, &manifest, written, &arguments.waiting).await
}

/// `haas restore`.
pub(super) async fn restore(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let manifest = settings::manifest(&config);
    let Some((username, appname)) = arguments.named.parse() else { return Ok(Outcome::Refused) };
    match manifest.restore(&username, &appname).await {
        Ok(Some(restored)) => comes_up(&config, &manifest, restored.instance, &arguments.waiting).await,
        Ok(None) => Ok(arguments.named.not_found()),
        Err(error @ (ManifestError::NameTaken(_) | ManifestError::BeingPurged | ManifestError::TooManyApps(_))) => {
            eprintln!("haas: {error}");
            Ok(Outcome::Refused)
        }
        Err(error) => Err(error.into()),
    }
}

/// Waits for one that was woken, restored or imported.
pub(super) async fn comes_up(
    config: &Config,
    manifest: &Manifest,
    written: Instance,
    waiting: &Waiting,
) -> anyhow::Result<Outcome> {
    let over = |row: &Instance| row.state() == State::Running || row.desired != Desired::Running;
    let row = wait(config, manifest, written, waiting, over).await?;
    report(config, &row, waiting.json)?;
    let up = row.state() == State::Running || waiting.no_wait;
    Ok(if up { Outcome::Done } else { Outcome::NotReady })
}

/// `haas purge`.
pub(super) async fn purge(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let manifest = settings::manifest(&config);
    let Some((username, appname)) = arguments.named.parse() else { return Ok(Outcome::Refused) };
    let Some(written) = manifest.deprovision(&username, &appname, true).await? else {
        return Ok(arguments.named.not_found());
    };
    let id = written.id;
    let row = wait(&config, &manifest, written, &arguments.waiting, |_| false).await?;
    if manifest.get(id).await?.is_none() {
        say!("{} is purged: nothing is left of it", row.container);
        return Ok(Outcome::Done);
    }
    say!("{} is being purged ({})", row.container, row.phase);
    Ok(if arguments.waiting.no_wait { Outcome::Done } else { Outcome::NotReady })
}
