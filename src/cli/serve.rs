//! `haas serve`: the server alone.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Global, Outcome, settings};
use crate::credentials::{InstanceKey, make_secret};
use crate::manifest::{ManifestError, migrate};
use crate::{server, webhook};

const RETRY: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Make the callers' secret and the instance key first, unless they are there
    #[arg(long)]
    make_secrets: bool,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = settings::standalone(global)?;
    if arguments.make_secrets {
        let secret = config.secrets.dir.join("provision.secret");
        make_secret(&secret).with_context(|| secret.display().to_string())?;
        make_secret(&config.secrets.dir.join(webhook::KEY_FILE))?;
        InstanceKey::make(&server::instance_key_path(&config.secrets.dir))?;
    }
    let url = &config.manifest.database_url;
    let mut stop = std::pin::pin!(stopped()?);
    // Services start in any order: a database that isn't up yet is waited for.
    loop {
        let migrated = tokio::select! {
            migrated = migrate(url, None) => migrated,
            () = &mut stop => return Ok(Outcome::Done),
        };
        match migrated {
            Ok(()) => break,
            Err(ManifestError::Unavailable(why)) => log::warn!("waiting for the database: {why}"),
            Err(error @ ManifestError::NotMigrated) => log::warn!("waiting: {error}"),
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = &mut stop => return Ok(Outcome::Done),
        }
    }
    server::run(&config, stop).await?;
    Ok(Outcome::Done)
}

/// Done when the process is asked to end: SIGTERM, or Ctrl-C.
pub(super) fn stopped() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        log::info!("stopping; tenants stay as they are");
    })
}
