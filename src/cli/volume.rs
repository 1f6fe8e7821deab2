//! `haas volume`: what the server has done by this program in a container of its own, as root, with a
//! tenant's volume. See containers/docker/helper.rs; nobody calls it by hand.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use super::Outcome;
use crate::archive::ArchiveError;
use crate::archive::tree::{self, Found};
use crate::containers::{Report, Work};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// "read", "write" or "look"
    #[arg(value_parser = parse)]
    work: Work,
    /// The volume
    root: PathBuf,
    /// Of the archive that it is compared with
    #[arg(long)]
    format: u32,
}

fn parse(word: &str) -> Result<Work, String> {
    Work::ALL.into_iter().find(|work| work.word() == word).ok_or_else(|| "is no work".to_owned())
}

pub(super) async fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let (work, root, format) = (arguments.work, arguments.root.clone(), arguments.format);
    let outcome = tokio::task::spawn_blocking(move || carry_out(work, &root, format)).await?;
    let report = Report::of(outcome);
    // Its last line, on its own.
    eprintln!("\n{}", serde_json::to_string(&report)?);
    Ok(if matches!(report, Report::Found(_)) { Outcome::Done } else { Outcome::Failed })
}

fn carry_out(work: Work, root: &Path, format: u32) -> Result<Found, ArchiveError> {
    match work {
        Work::Read => tree::pack(root, &mut io::stdout().lock())?,
        Work::Write => tree::unpack(&mut io::stdin().lock(), root)?,
        Work::Look => {}
    }
    tree::look(root, format)
}
