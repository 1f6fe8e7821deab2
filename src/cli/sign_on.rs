//! `haas sso` and `haas rotate`: an owner's way in to an app's admin dashboard, and the end of it.

use clap::Args;

use super::intent::{Named, Waiting, report, wait};
use super::{Global, Outcome, settings};
use crate::http::sign_on_url;
use crate::instance::{Desired, Instance, State};
use crate::manifest::Manifest;

#[derive(Debug, Args)]
pub(super) struct Sso {
    #[command(flatten)]
    named: Named,
}

#[derive(Debug, Args)]
pub(super) struct Rotate {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    waiting: Waiting,
}

/// Prints the link alone.
pub(super) async fn sso(global: &Global, arguments: &Sso) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let manifest = settings::manifest(&config);
    let Some((username, appname)) = arguments.named.parse() else { return Ok(Outcome::Refused) };
    match manifest.issue_sign_on(&username, &appname).await? {
        Some(issued) => {
            say!("{}", sign_on_url(&issued, config.public()));
            Ok(Outcome::Done)
        }
        None => gone(&manifest, &arguments.named).await,
    }
}

pub(super) async fn rotate(global: &Global, arguments: &Rotate) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let manifest = settings::manifest(&config);
    let Some((username, appname)) = arguments.named.parse() else { return Ok(Outcome::Refused) };
    let Some(written) = manifest.rotate(&username, &appname).await? else {
        return gone(&manifest, &arguments.named).await;
    };
    // One that rests has it when it wakes: until then nobody can sign on to it with the old one either.
    let over = |row: &Instance| row.desired != Desired::Running || has_it(row);
    let row = wait(&config, &manifest, written, &arguments.waiting, over).await?;
    report(&config, &row, arguments.waiting.json)?;
    let done = has_it(&row) || row.desired.resting() || arguments.waiting.no_wait;
    Ok(if done { Outcome::Done } else { Outcome::NotReady })
}

/// Whether its Hoodie answers at its host with the password of its generation.
fn has_it(row: &Instance) -> bool {
    row.state() == State::Running && row.observed_generation == row.generation
}

/// Says why there is nobody to sign on to.
async fn gone(manifest: &Manifest, named: &Named) -> anyhow::Result<Outcome> {
    let Some((username, appname)) = named.parse() else { return Ok(Outcome::Refused) };
    let Some(row) = manifest.find(&username, &appname).await? else { return Ok(named.not_found()) };
    eprintln!("haas: {} is deleted; `haas restore` brings it back", row.container);
    Ok(Outcome::Refused)
}
