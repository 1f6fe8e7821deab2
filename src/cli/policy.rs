//! `haas policy`: where an instance departs from the installation's clean-up policy, and from its bound on the disk.

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
    /// How much of the disk its data may take, in MiB: a number, 0 for no bound, or "default"
    #[arg(long, value_name = "MIB", value_parser = parse_bound)]
    disk_mib: Option<Bound>,
    /// How many files and folders its data may have: a number, 0 for no bound, or "default"
    #[arg(long, value_name = "FILES", value_parser = parse_bound)]
    files: Option<Bound>,
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

/// None for the installation's own bound.
#[derive(Debug, Clone, Copy)]
struct Bound(Option<u32>);

fn parse_bound(text: &str) -> Result<Bound, std::num::ParseIntError> {
    if text == "default" { Ok(Bound(None)) } else { text.parse().map(|bound| Bound(Some(bound))) }
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
            let bounds = [(arguments.disk_mib, &mut overrides.disk_mib), (arguments.files, &mut overrides.files)];
            for (change, field) in bounds {
                if let Some(Bound(bound)) = change {
                    *field = bound;
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
    let limits = row.limits(config.tenant.limits());
    if arguments.json {
        let mut times: serde_json::Map<String, serde_json::Value> =
            times.into_iter().map(|(name, limit, _)| (name.to_owned(), json!(limit))).collect();
        times.insert("disk_mib".to_owned(), json!(limits.mib));
        times.insert("files".to_owned(), json!(limits.files));
        say!("{}", serde_json::to_string_pretty(&json!({ "policy": times, "overrides": own }))?);
        return Ok(Outcome::Done);
    }
    say!("{}", row.container);
    let whose = |own: bool| if own { "its own" } else { "the installation's" };
    for (name, limit, own) in times {
        say!("  {name:<14} {limit:<8} {}", whose(own.is_some()));
    }
    for (name, bound, own) in [("disk_mib", limits.mib, own.disk_mib), ("files", limits.files, own.files)] {
        let bound = if bound == 0 { "no bound".to_owned() } else { bound.to_string() };
        say!("  {name:<14} {bound:<8} {}", whose(own.is_some()));
    }
    Ok(Outcome::Done)
}
