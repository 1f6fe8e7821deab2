//! `haas firewall`: puts the walls around tenants in, looks at them, or takes them away. A one-shot for
//! root; the server never does this.

use anyhow::Context;
use clap::{ArgGroup, Args};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Global, Outcome, settings};
use crate::config::Config;
use crate::containers;
use crate::firewall::{self, FirewallError, Walls};
use crate::manifest::Manifest;

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "options, of which the group takes one")]
#[command(group(ArgGroup::new("action").required(true)))]
pub(super) struct Arguments {
    /// Put the rules in, or make them what tenant.egress says; twice is once
    #[arg(long, group = "action")]
    install: bool,
    /// Say what is not as it should be; ends with 3 if anything is
    #[arg(long, group = "action")]
    check: bool,
    /// Take them away
    #[arg(long, group = "action")]
    remove: bool,
    /// The installation's id, where its Postgres can't be asked; --check prints it
    #[arg(long, value_name = "ID")]
    installation: Option<Uuid>,
    /// The bridge of its network, where Docker can't be asked
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,
    /// Docker's engine does not run yet: make the chain DOCKER-USER, and don't ask it for the bridge
    #[arg(long, conflicts_with_all = ["check", "remove"])]
    before_docker: bool,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    // Before anything else is asked: whatever it said would be of no use.
    if !firewall::may_look() {
        return Err(FirewallError::NotRoot.into());
    }
    let (installation, config) = if let Some(id) = arguments.installation {
        (id, settings::of_any(global)?)
    } else {
        let config = settings::of_server(global)?;
        let asked = Manifest::new(&config).installation().await;
        (asked.context("the installation's id is not known; --installation gives it")?, config)
    };
    if arguments.remove {
        let removed = firewall::remove(installation).await?;
        if removed {
            note(&config, "walls removed", json!({})).await;
        }
        say!("{}", if removed { "the rules are gone" } else { "there were none" });
        return Ok(Outcome::Done);
    }
    let bridge = match &arguments.bridge {
        Some(bridge) => bridge.clone(),
        None if arguments.before_docker => containers::bridge_name(installation),
        None => bridge_of(installation).await?,
    };
    let walls = Walls::new(installation, &bridge, config.tenant.egress)?;
    let changed = arguments.install && walls.install(arguments.before_docker).await?;
    if changed {
        note(&config, "walls put in", json!({ "bridge": bridge, "egress": config.tenant.egress.to_string() })).await;
    }
    let mut gaps = walls.gaps().await?;
    if arguments.before_docker {
        // What Docker puts in itself is not there yet.
        gaps.retain(|gap| !gap.is_dockers());
    }
    for gap in &gaps {
        say!("{gap}");
    }
    if gaps.is_empty() {
        say!("{}{}", if changed { "put in: " } else { "" }, described(&config, installation, &bridge));
        return Ok(Outcome::Done);
    }
    if !arguments.install {
        say!("not as it should be: {}", described(&config, installation, &bridge));
    }
    Ok(Outcome::NotReady)
}

/// Writes down what was done, where the manifest can be asked: at boot it may not run yet.
async fn note(config: &Config, kind: &str, detail: Value) {
    if config.manifest.database_url.is_empty() {
        return;
    }
    if let Err(error) = settings::manifest(config).note_change(kind, detail).await {
        log::warn!("that is no event: {error}");
    }
}

fn described(config: &Config, installation: Uuid, bridge: &str) -> String {
    format!("walls of installation {installation} around {bridge}, egress {}", config.tenant.egress)
}

/// The bridge of the installation's network, or the one that it will have.
pub(super) async fn bridge_of(installation: Uuid) -> Result<String, containers::ContainersError> {
    Ok(containers::bridge(installation).await?.unwrap_or_else(|| containers::bridge_name(installation)))
}
