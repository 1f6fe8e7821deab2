//! `haas export` and `haas import`: one tenant on its way between installations, as a file that
//! is verified on both sides.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use uuid::Uuid;

use super::intent::{Named, Waiting, named};
use super::lifecycle::comes_up;
use super::{Global, Outcome, settings};
use crate::archive::{ArchiveError, Archives, Header};
use crate::containers::{Containers, Docker, Reading};
use crate::failpoint::Faults;
use crate::haproxy::Haproxy;
use crate::instance::name::{AppName, Email, Username};
use crate::instance::policy::{Descent, Overrides};
use crate::instance::storage::Limits;
use crate::instance::{Desired, Instance, Phase};
use crate::manifest::{Manifest, ManifestError, NewInstance};
use crate::reconcile::World;
use crate::server;

/// How often an app that keeps waking up is tried.
const ATTEMPTS: usize = 5;
const LOOK: std::time::Duration = std::time::Duration::from_millis(100);

#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    named: Named,
    /// The file, which must not be there yet [default: USER-APP.tar.zst]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// What `haas export` wrote
    file: PathBuf,
    /// Whose it is to be, if not the user's that it was exported from
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Which app it is to serve, if not the same
    #[arg(long, value_name = "APP")]
    app: Option<String>,
    /// Where the owner gets mail, if not at the same address
    #[arg(long, value_name = "EMAIL")]
    email: Option<String>,
    #[command(flatten)]
    bounds: Bounds,
    #[command(flatten)]
    waiting: Waiting,
}

/// Bounds of its own, as `haas policy` sets them.
#[derive(Debug, Args)]
struct Bounds {
    /// How much of the disk its data may take, in MiB, if not as much as the installation says; 0 for no bound
    #[arg(long, value_name = "MIB")]
    disk_mib: Option<u32>,
    /// How many files and folders its data may have, if not as many as the installation says; 0 for no bound
    #[arg(long, value_name = "FILES")]
    files: Option<u32>,
}

impl Bounds {
    fn over(&self, installation: Limits) -> Limits {
        let Limits { mib, files } = installation;
        Limits { mib: self.disk_mib.unwrap_or(mib), files: self.files.unwrap_or(files) }
    }

    fn are_its_own(&self) -> bool {
        self.disk_mib.is_some() || self.files.is_some()
    }
}

fn bar(length: u64, what: &str) -> anyhow::Result<ProgressBar> {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(length) } else { ProgressBar::hidden() };
    let bar = if length == 0 {
        bar.with_style(ProgressStyle::with_template("{spinner} {msg} {bytes}")?)
    } else {
        bar.with_style(ProgressStyle::with_template("{msg} [{wide_bar}] {bytes}/{total_bytes} ({eta})")?)
    };
    bar.set_message(what.to_owned());
    Ok(bar)
}

/// Copies an archive out, or reads the volume of one that sleeps: one that is awake is put to
/// sleep for that, and woken again.
pub(super) async fn export(global: &Global, arguments: &Export) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let world = server::world(&config, settings::cause(), Faults::default()).await?;
    let Some((username, appname)) = arguments.named.parse() else { return Ok(Outcome::Refused) };
    let Some(row) = world.manifest.find(&username, &appname).await? else { return Ok(arguments.named.not_found()) };
    let output = arguments.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.tar.zst", row.container)));
    if output.exists() {
        eprintln!("haas: {} is there already", output.display());
        return Ok(Outcome::Refused);
    }
    let awake = row.desired == Desired::Running;
    let exported = export_at_rest(&world, row.id, &output).await;
    if awake && let Err(error) = world.manifest.wake(row.id, "it was exported").await {
        eprintln!("haas: {} was put to sleep for this, and is not woken: {error}", row.container);
    }
    let Some((bytes, sha256)) = exported? else { return Ok(Outcome::NotReady) };
    say!("{}: {bytes} bytes, sha256 {sha256}", output.display());
    Ok(Outcome::Done)
}

async fn export_at_rest(
    world: &World<Docker, Haproxy>,
    id: Uuid,
    output: &std::path::Path,
) -> anyhow::Result<Option<(u64, String)>> {
    for _ in 0..ATTEMPTS {
        let Some(row) = at_rest(&world.manifest, id).await? else { bail!("it does not come to rest") };
        if let Some(archive) = &row.archive {
            let bar = bar(archive.bytes, "exporting")?;
            let shown = bar.clone();
            world
                .archives
                .export(archive, output, move |bytes| shown.set_position(bytes))
                .await
                .map_err(|error| plain(&error))?;
            bar.finish_and_clear();
            return Ok(Some((archive.bytes, archive.sha256.clone())));
        }
        let bar = bar(0, "exporting")?;
        let shown = bar.clone();
        let Reading { tar, second_look } = world.containers.read_data(&row).await?;
        let tar = futures_util::StreamExt::inspect(tar, move |bytes| {
            shown.inc(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64));
        });
        let exported = Archives::export_stream(output, &Header::of(&row), tar).await.map_err(|error| plain(&error))?;
        bar.finish_and_clear();
        let same = second_look.await.is_ok_and(|found| found.digest == exported.digest);
        match is_unchanged(world, &row, same).await {
            Ok(true) => return Ok(Some((exported.bytes, exported.sha256))),
            outcome => {
                std::fs::remove_file(output).with_context(|| output.display().to_string())?;
                outcome?;
            }
        }
    }
    eprintln!("haas: it is woken again and again; try when fewer people use it");
    Ok(None)
}

/// Whether nobody has woken it while its data was read.
async fn is_unchanged(world: &World<Docker, Haproxy>, row: &Instance, same: bool) -> anyhow::Result<bool> {
    let now = world.manifest.get(row.id).await?;
    Ok(same && now.is_some_and(|now| (now.phase, now.phase_since) == (row.phase, row.phase_since)))
}

/// Puts it to sleep, unless it rests, and waits until it does.
async fn at_rest(manifest: &Manifest, id: Uuid) -> anyhow::Result<Option<Instance>> {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let Some(row) = manifest.get(id).await? else { return Ok(None) };
        let rests = matches!(row.phase, Phase::Asleep | Phase::Archived | Phase::Deleted);
        if rests && row.desired != Desired::Running {
            return Ok(Some(row));
        }
        if row.desired < Desired::Asleep {
            match manifest.descend(&row, Descent::Sleep, "it is exported").await {
                Ok(_) | Err(ManifestError::Stale) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if tokio::time::Instant::now() >= deadline {
            return Ok(None);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Takes the file into the folder of archives, and writes an instance whose data is in it: the
/// server does the rest.
pub(super) async fn import(global: &Global, arguments: &Import) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let manifest = settings::manifest(&config);
    let archives = Archives::new(config.lifecycle.archive_dir.clone());
    let header = match Archives::header(&arguments.file).await {
        Ok(header) => header,
        Err(error) => return refused(&error),
    };
    let parsed = (
        named("user", Username::parse(arguments.user.as_deref().unwrap_or(&header.username))),
        named("app", AppName::parse(arguments.app.as_deref().unwrap_or(&header.appname))),
        named("email", Email::parse(arguments.email.as_deref().unwrap_or(&header.emailaddress))),
    );
    let (Some(username), Some(appname), Some(email)) = parsed else { return Ok(Outcome::Refused) };
    if manifest.find(&username, &appname).await?.is_some() {
        eprintln!("haas: there is an app {appname} of {username}, or a deleted one; purge it first");
        return Ok(Outcome::Refused);
    }
    let id = Uuid::new_v4();
    let length = std::fs::metadata(&arguments.file).with_context(|| arguments.file.display().to_string())?.len();
    let bar = bar(length, "importing")?;
    let shown = bar.clone();
    let name = format!("{username}-{appname}-{}-0", id.simple());
    let limits = arguments.bounds.over(config.tenant.limits());
    let imported = archives.import(&arguments.file, &name, limits, move |bytes| shown.set_position(bytes)).await;
    bar.finish_and_clear();
    let archive = match imported {
        Ok((_, archive)) => archive,
        Err(error @ ArchiveError::Exceeds(_)) => {
            eprintln!("haas: {error}; --disk-mib and --files give it other bounds");
            return Ok(Outcome::Refused);
        }
        Err(error) => return refused(&error),
    };
    if !header.extra_hosts.is_empty() {
        let hosts = header.extra_hosts.join(" ");
        eprintln!("haas: its custom domains are not taken over; `haas host add` gives them to it: {hosts}");
    }
    let new = NewInstance { username, appname, email };
    match manifest.import(id, &new, &archive).await {
        Ok(written) => {
            if arguments.bounds.are_its_own() {
                let Bounds { disk_mib, files } = arguments.bounds;
                let own = move |own: &mut Overrides| (own.disk_mib, own.files) = (disk_mib, files);
                manifest.set_overrides(&new.username, &new.appname, own).await?;
            }
            let outcome = comes_up(&config, &manifest, written, &arguments.waiting).await?;
            match manifest.get(id).await? {
                // A stranger's container has the name: nothing of it is to stay.
                Some(row) if row.desired == Desired::Deleted && row.last_error.is_some() => {
                    manifest.deprovision(&new.username, &new.appname, true).await?;
                    Ok(Outcome::Refused)
                }
                _ => Ok(outcome),
            }
        }
        Err(error) => {
            archives.remove(&archive.file).await?;
            match error {
                ManifestError::Exists
                | ManifestError::NameTaken(_)
                | ManifestError::UnfitHost
                | ManifestError::TooManyApps(_) => {
                    eprintln!("haas: {error}");
                    Ok(Outcome::Refused)
                }
                other => Err(other.into()),
            }
        }
    }
}

/// Its text says all that its sources do.
fn plain(error: &ArchiveError) -> anyhow::Error {
    anyhow::anyhow!(error.to_string())
}

/// A file that is no whole export is refused; trouble with the disk is trouble.
fn refused(error: &ArchiveError) -> anyhow::Result<Outcome> {
    if let ArchiveError::Io { .. } = error {
        bail!("{error}");
    }
    eprintln!("haas: {error}");
    Ok(Outcome::Refused)
}
