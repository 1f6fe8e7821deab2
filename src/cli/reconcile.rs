//! `haas reconcile --once`: what the server does all the time.

use std::time::Duration;

use clap::Args;

use super::table::{print, table};
use super::{Global, Outcome, settings};
use crate::failpoint::Faults;
use crate::manifest::Cause;
use crate::reconcile::{Health, ReconcileError, dry_run, routes, settle};
use crate::server;

/// How long `--once` goes on.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Go on until everything is settled, then end
    #[arg(long, required = true)]
    once: bool,
    /// Only say what would be done next
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    debug_assert!(arguments.once, "clap requires it");
    let config = settings::of_server(global)?;
    let world = server::world(&config, Cause::default(), Faults::default()).await?;
    if arguments.dry_run {
        let (live, _) = world.manifest.live().await?;
        let wanted = routes(&live);
        let candidate = world.proxy.render_candidate(&wanted).await?;
        let running = world.proxy.running_generation().await.ok().flatten();
        let published = running.as_deref() == Some(candidate.generation());
        let planned = dry_run(&world, |row| published.then(|| row.routable())).await?;
        if !published {
            say!("publish {} routes to HAProxy", wanted.len());
        }
        if planned.is_empty() {
            say!("every instance is settled");
        } else {
            let mut rows = table(&["CONTAINER", "PHASE", "NEXT STEP"]);
            for planned in planned {
                rows.add_row([
                    planned.instance.container.to_string(),
                    planned.instance.phase.to_string(),
                    format!("{:?}", planned.step),
                ]);
            }
            print(&rows);
        }
        return Ok(Outcome::Done);
    }
    match settle(world, &config.manifest.database_url, Health::default(), LIMIT).await {
        Ok(true) => {
            say!("everything that can be done now is done");
            Ok(Outcome::Done)
        }
        Ok(false) => {
            eprintln!("haas: not settled within {LIMIT:?}; `haas list` tells what is left");
            Ok(Outcome::NotReady)
        }
        Err(error @ ReconcileError::AnotherActs) => {
            eprintln!("haas: {error}; nothing was done");
            Ok(Outcome::NotReady)
        }
        Err(error) => Err(error.into()),
    }
}
