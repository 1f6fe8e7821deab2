//! `haas migrate`: brings the database up to this version, as its owner.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::time::{Instant, sleep};

use super::{Global, Outcome, settings};
use crate::config::Config;
use crate::manifest::{ManifestError, migrate, role_of};

const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Seconds to wait for a database that is not up yet
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u64,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = Config::load(global.config.as_deref(), std::env::vars(), BTreeMap::new())?;
    let named = !config.manifest.database_url.is_empty() || !config.manifest.owner_url.is_empty();
    let config = if named { config } else { settings::of_server(global)? };
    let deadline = Instant::now() + Duration::from_secs(arguments.wait);
    loop {
        match migrate_as_owner(&config).await {
            Err(error)
                if Instant::now() < deadline && matches!(error.downcast_ref(), Some(ManifestError::Unavailable(_))) =>
            {
                sleep(RETRY).await;
            }
            done => {
                done?;
                say!("the database is up to date");
                return Ok(Outcome::Done);
            }
        }
    }
}

/// Migrates as the owner, and gives the server's role what it needs.
pub(super) async fn migrate_as_owner(config: &Config) -> anyhow::Result<()> {
    let (server, owner) = (&config.manifest.database_url, &config.manifest.owner_url);
    if owner.is_empty() {
        return Ok(migrate(server, None).await?);
    }
    let role = match role_of(server) {
        _ if server.is_empty() => None,
        parsed => Some(parsed?.context("manifest.database_url names no role; give it a `user`")?),
    };
    Ok(migrate(owner, role.as_deref()).await?)
}
