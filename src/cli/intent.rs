//! `haas provision` and `haas deprovision`: the same intent that the API writes.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, sleep};

use super::{Global, Outcome, settings};
use crate::config::Config;
use crate::http::InstanceView;
use crate::instance::name::{AppName, Email, Username};
use crate::instance::{Desired, Instance, State};
use crate::manifest::{Manifest, ManifestError, NewInstance};

const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(super) struct Provision {
    /// Whose it is to be
    user: String,
    /// Which app it is to serve
    app: String,
    /// Where the owner gets mail
    email: String,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(Debug, Args)]
pub(super) struct Deprovision {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(Debug, Args)]
pub(super) struct Waiting {
    /// Write the intent and go
    #[arg(long)]
    pub no_wait: bool,
    /// A JSON object
    #[arg(long)]
    pub json: bool,
}

/// An instance, by the names that a command was given.
#[derive(Debug, Args)]
pub(super) struct Named {
    /// Whose it is
    user: String,
    /// Which app it serves
    app: String,
}

impl Named {
    /// The names, if they are names; what is wrong is said.
    pub fn parse(&self) -> Option<(Username, AppName)> {
        named("user", Username::parse(&self.user)).zip(named("app", AppName::parse(&self.app)))
    }

    /// Says that there is no such instance.
    pub fn not_found(&self) -> Outcome {
        eprintln!("haas: there is no app {} of {}", self.app, self.user);
        Outcome::NotFound
    }
}

pub(super) async fn provision(global: &Global, arguments: &Provision) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let manifest = settings::manifest(&config);
    let parsed = (
        named("user", Username::parse(&arguments.user)),
        named("app", AppName::parse(&arguments.app)),
        named("email", Email::parse(&arguments.email)),
    );
    let (Some(username), Some(appname), Some(email)) = parsed else { return Ok(Outcome::Refused) };
    let new = NewInstance { username, appname, email };
    let written = match manifest.provision(&new).await {
        Ok(provisioned) => provisioned.instance,
        Err(error @ (ManifestError::NameTaken(_) | ManifestError::UnfitHost | ManifestError::TooManyApps(_))) => {
            eprintln!("haas: {error}");
            return Ok(Outcome::Refused);
        }
        Err(error) => return Err(error.into()),
    };
    let over = |row: &Instance| row.state() == State::Running || row.desired != Desired::Running;
    let row = wait(&config, &manifest, written, &arguments.waiting, over).await?;
    report(&config, &row, arguments.waiting.json)?;
    Ok(match row.state() {
        _ if row.storage_full.is_some() => Outcome::NotReady,
        State::Running | State::Paused | State::Asleep | State::Archived => Outcome::Done,
        State::Deleted | State::Deleting => Outcome::Refused,
        _ if arguments.waiting.no_wait => Outcome::Done,
        _ => Outcome::NotReady,
    })
}

pub(super) async fn deprovision(global: &Global, arguments: &Deprovision) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let manifest = settings::manifest(&config);
    let Some((username, appname)) = arguments.named.parse() else { return Ok(Outcome::Refused) };
    let Some(written) = manifest.deprovision(&username, &appname, false).await? else {
        return Ok(arguments.named.not_found());
    };
    let over = |row: &Instance| row.state() == State::Deleted || !row.desired.gone();
    let row = wait(&config, &manifest, written, &arguments.waiting, over).await?;
    report(&config, &row, arguments.waiting.json)?;
    Ok(match row.state() {
        State::Deleted => Outcome::Done,
        State::Deleting if arguments.waiting.no_wait => Outcome::Done,
        _ => Outcome::NotReady,
    })
}

/// Says what is wrong with an argument; all of them are looked at before the command ends.
pub(super) fn named<T, E: std::fmt::Display>(name: &str, parsed: Result<T, E>) -> Option<T> {
    parsed.map_err(|error| eprintln!("haas: {name} {error}")).ok()
}

/// Waits for what the server makes of an intent; the row as last seen.
pub(super) async fn wait(
    config: &Config,
    manifest: &Manifest,
    written: Instance,
    waiting: &Waiting,
    over: impl Fn(&Instance) -> bool,
) -> anyhow::Result<Instance> {
    let mut row = written;
    if waiting.no_wait {
        return Ok(row);
    }
    let progress = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    progress.set_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})")?);
    progress.enable_steady_tick(LOOK);
    let deadline = Instant::now() + config.http.wait;
    while !over(&row) && Instant::now() < deadline {
        progress.set_message(format!("{} is {}", row.container, row.phase));
        sleep(LOOK).await;
        match manifest.get(row.id).await? {
            Some(fresh) => row = fresh,
            // It was purged.
            None => break,
        }
    }
    progress.finish_and_clear();
    Ok(row)
}

/// Says what has become of an instance.
pub(super) fn report(config: &Config, row: &Instance, json: bool) -> anyhow::Result<()> {
    let view = InstanceView::new(row, config.public());
    if json {
        say!("{}", serde_json::to_string_pretty(&view)?);
        return Ok(());
    }
    match row.state() {
        state if row.storage_full.is_some() && !row.desired.gone() => {
            let why = view.storage_full.map(|full| full.why()).unwrap_or_default();
            say!("{} is {state} ({}): {why}; `haas policy` raises its limit", view.container, row.phase);
        }
        State::Running => say!("{} answers at {}", view.container, view.endpoint),
        State::Deleted => {
            let until = view.restorable_until.map(|until| until.format("until %F %T %Z").to_string());
            let until = until.unwrap_or_else(|| "at any time".to_owned());
            match &view.last_error {
                Some(error) => say!("{} was refused: {error}", view.container),
                None => say!("{} is gone; it can be restored {until}", view.container),
            }
        }
        State::Paused | State::Asleep | State::Archived => {
            say!("{} is {}; a request to {} wakes it", view.container, view.state, view.endpoint);
        }
        state => {
            let why = view.last_error.map(|error| format!(": {error}")).unwrap_or_default();
            say!("{} is {state} ({}){why}; `haas show` tells more", view.container, row.phase);
        }
    }
    Ok(())
}
