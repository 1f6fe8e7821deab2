//! `haas policy`: where an instance departs from the installation's clean-up policy.

use clap::Args;
use serde_json::json;

use super::intent::Named;
use super::{Global, Outcome, settings};
use crate::instance::policy::{NoTimeLimit, TimeLimit};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    named: Named,
    /// From its last use until it is put to sleep: "2h", "never", or "default" for the
    /// installation's
    #[arg(long, value_name = "TIME", value_parser = parse)]
    idle_after: Option<Change>,
    /// From its last use until it is paused, before it is put to sleep
    #[arg(long, value_name = "TIME", value_parser = parse)]
    pause_after: Option<Change>,
    /// How long it sleeps before it is archived
    #[arg(long, value_name = "TIME", value_parser = parse)]
    archive_after: Option<Change>,
    /// How long it stays archived before it is deleted
    #[arg(long, value_name = "TIME", value_parser = parse)]
    delete_after: Option<Change>,
    /// How long it can be restored once it is deleted
    #[arg(long, value_name = "TIME", value_parser = parse)]
    purge_after: Option<Change>,
    /// A JSON object
    #[arg(long)]
    json: bool,
}

/// None for the installation's own time.
#[derive(Debug, Clone, Copy)]
struct Change(Option<TimeLimit>);

fn parse(text: &str) -> Result<Change, NoTimeLimit> {
    if text == "default" { Ok(Change(None)) } else { text.parse().map(|limit| Change(Some(limit))) }
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let manifest = settings::manifest(&config);
    let Some((username, appname)) = arguments.named.parse() else { return Ok(Outcome::Refused) };
    let changed = manifest
        .set_overrides(&username, &appname, |overrides| {
            for (change, field) in [
                (arguments.idle_after, &mut overrides.idle_after),
                (arguments.pause_after, &mut overrides.pause_after),
                (arguments.archive_after, &mut overrides.archive_after),
                (arguments.delete_after, &mut overrides.delete_after),
                (arguments.purge_after, &mut overrides.purge_after),
            ] {
                if let Some(Change(limit)) = change {
                    *field = limit;
                }
            }
        })
        .await?;
    let Some(row) = changed else { return Ok(arguments.named.not_found()) };
    let (installation, own) = (config.lifecycle.policy(), row.overrides());
    let policy = installation.with(&own);
    let times = [
        ("idle_after", policy.idle_after, own.idle_after),
        ("pause_after", policy.pause_after, own.pause_after),
        ("archive_after", policy.archive_after, own.archive_after),
        ("delete_after", policy.delete_after, own.delete_after),
        ("purge_after", policy.purge_after, own.purge_after),
    ];
    if arguments.json {
        let times: serde_json::Map<String, serde_json::Value> =
            times.into_iter().map(|(name, limit, _)| (name.to_owned(), json!(limit))).collect();
        say!("{}", serde_json::to_string_pretty(&json!({ "policy": times, "overrides": own }))?);
        return Ok(Outcome::Done);
    }
    say!("{}", row.container);
    for (name, limit, own) in times {
        let whose = if own.is_some() { "its own" } else { "the installation's" };
        say!("  {name:<14} {limit:<8} {whose}");
    }
    Ok(Outcome::Done)
}
