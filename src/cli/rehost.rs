//! `haas rehost`: every host as the domain and the pattern have it now.

use clap::Args;

use super::table::{print, table};
use super::{Global, Outcome, settings};
use crate::manifest::{ManifestError, Rehosted};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only say what would be changed
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let moves = match settings::manifest(&config).rehost(arguments.dry_run).await {
        Ok(Rehosted::Moved(moves)) => moves,
        Ok(Rehosted::Refused(obstacles)) => {
            for obstacle in obstacles {
                eprintln!("haas: {obstacle}");
            }
            eprintln!("haas: nothing was changed");
            return Ok(Outcome::Refused);
        }
        Err(error @ ManifestError::NameTaken(_)) => {
            eprintln!("haas: {error}; nothing was changed");
            return Ok(Outcome::Refused);
        }
        Err(error) => return Err(error.into()),
    };
    if moves.is_empty() {
        say!("every host is as the domain and the pattern have it");
        return Ok(Outcome::Done);
    }
    let mut rows = table(&["USER", "APP", "OLD", "NEW"]);
    for step in &moves {
        rows.add_row([step.username.as_str(), step.appname.as_str(), step.from.as_str(), step.to.as_str()]);
    }
    print(&rows);
    if arguments.dry_run {
        say!("{} host(s) would be changed; nothing was", moves.len());
    } else {
        say!("{} host(s) changed; the old ones lead nowhere from now on", moves.len());
    }
    Ok(Outcome::Done)
}
