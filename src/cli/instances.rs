//! `haas list` and `haas show`.

use clap::Args;
use serde_json::json;

use super::table::{age, brief, print, table};
use super::{Global, Outcome, settings};
use crate::http::InstanceView;
use crate::instance::name::{AppName, Username};
use crate::instance::{Instance, State};
use crate::manifest::{Filter, Manifest};

const PAGE: usize = 1000;
const EVENTS: i64 = 12;

#[derive(Debug, Args)]
pub(super) struct List {
    /// One user's only
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Those in one state only: pending, running, failed, paused, asleep, archived, deleting, deleted
    #[arg(long)]
    state: Option<State>,
    /// Deleted ones too
    #[arg(long, short)]
    all: bool,
    /// A JSON array, deleted ones included
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Whose it is
    user: String,
    /// Which app it serves
    app: String,
    /// A JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn list(global: &Global, arguments: &List) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let manifest = Manifest::new(&config);
    let username = arguments.user.as_deref().map(Username::parse).transpose()?;
    let filter = Filter { username, state: arguments.state, ..Filter::default() };
    let mut found: Vec<Instance> = Vec::new();
    let mut after = None;
    loop {
        let page = manifest.list(&filter, after.as_ref(), PAGE).await?;
        found.extend(page.instances);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if arguments.json {
        let views: Vec<_> = found.iter().map(|row| InstanceView::new(row, config.public())).collect();
        say!("{}", serde_json::to_string_pretty(&views)?);
        return Ok(Outcome::Done);
    }
    let hide_deleted = !arguments.all && arguments.state.is_none();
    let shown: Vec<_> = found.iter().filter(|row| !(hide_deleted && row.state() == State::Deleted)).collect();
    if shown.is_empty() {
        say!("no instances");
        return Ok(Outcome::Done);
    }
    let mut rows = table(&["USER", "APP", "STATE", "HOST", "PORT", "FOR", "ERROR"]);
    for row in shown {
        rows.add_row([
            row.username.to_string(),
            row.appname.to_string(),
            row.state().to_string(),
            row.host.to_string(),
            row.port.map(|port| port.to_string()).unwrap_or_default(),
            age(row.phase_since),
            row.last_error.as_deref().map(brief).unwrap_or_default(),
        ]);
    }
    print(&rows);
    Ok(Outcome::Done)
}

pub(super) async fn show(global: &Global, arguments: &Show) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let manifest = Manifest::new(&config);
    let (username, appname) = (Username::parse(&arguments.user)?, AppName::parse(&arguments.app)?);
    let Some(row) = manifest.find(&username, &appname).await? else {
        eprintln!("haas: there is no app {appname} of {username}");
        return Ok(Outcome::NotFound);
    };
    let events = manifest.events(row.id, EVENTS).await?;
    let last_log = manifest.last_log(row.id).await?;
    let view = InstanceView::new(&row, config.public());
    if arguments.json {
        let mut object = serde_json::to_value(&view)?;
        object["volume"] = json!(row.archive.is_none().then(|| row.volume()));
        object["archive"] = json!(row.archive);
        object["attempts"] = json!(row.attempts);
        object["last_log"] = json!(last_log);
        object["events"] = serde_json::to_value(&events)?;
        say!("{}", serde_json::to_string_pretty(&object)?);
        return Ok(Outcome::Done);
    }
    say!("{} of {}: {} ({} for {})", view.appname, view.username, view.state, row.phase, age(row.phase_since));
    let mut lines = vec![
        ("endpoint", view.endpoint),
        ("host", view.host),
        ("extra hosts", if view.extra_hosts.is_empty() { "none".to_owned() } else { view.extra_hosts.join(" ") }),
        ("container", view.container),
        ("port", view.port.map_or_else(|| "none".to_owned(), |port| port.to_string())),
        ("volume", if row.archive.is_none() { row.volume() } else { "none".to_owned() }),
        ("email", view.emailaddress.to_string()),
        ("created", view.created_at.to_rfc3339()),
        ("ready", view.ready_at.map_or_else(|| "not yet".to_owned(), |at| at.to_rfc3339())),
        ("restored", view.restored.to_string()),
        ("last used", view.last_used_at.map_or_else(|| "not known".to_owned(), |at| at.to_rfc3339())),
        ("generation", format!("{} (carried out: {})", row.generation, row.observed_generation)),
    ];
    if let Some(archive) = &row.archive {
        lines.push(("archive", format!("{} ({} bytes)", archive.file, archive.bytes)));
    }
    if let Some(until) = row.restorable_until {
        lines.push(("restorable", format!("until {}", until.to_rfc3339())));
    }
    if let Some(spec) = &row.spec {
        lines.push(("image", spec.image.clone()));
    }
    if let Some(next) = &row.next_spec {
        lines.push(("next image", next.image.clone()));
    }
    if let Some(full) = &row.storage_full {
        let bytes = format!("{} bytes of {} MiB", full.bytes, full.limit_mib);
        let files = format!("{} files of {}", full.files, full.limit_files);
        let since = full.since.to_rfc3339();
        lines.push(("storage", format!("full since {since}: {bytes}, {files}; no request wakes it")));
    }
    if let Some(error) = &row.last_error {
        lines.push(("error", error.clone()));
    }
    if let Some(at) = view.next_attempt_at {
        lines.push(("attempts", format!("{}; the next one at {}", row.attempts, at.to_rfc3339())));
    }
    for (name, value) in lines {
        say!("  {name:<11} {value}");
    }
    say!("events, newest first:");
    for event in events {
        say!("  {}  {:<14} {}  {}", event.at.format("%F %T"), event.kind, event.by(), event.detail);
    }
    if let Some(log) = &last_log {
        say!("last lines of its log before it failed:");
        for line in log.lines() {
            say!("  {line}");
        }
    }
    Ok(Outcome::Done)
}
