//! `haas gc`: the clean-up policy at once. What the server does all the time, with the same
//! decisions; a dry run says what they are.

use chrono::Utc;
use clap::Args;
use serde::Serialize;

use super::table::{print, table};
use super::{Global, Outcome, settings};
use crate::failpoint::Faults;
use crate::instance::policy::Descent;
use crate::manifest::ManifestError;
use crate::reconcile::{Held, Outlook, Settings, Uses, decide, notice_horizon, strays};
use crate::server;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only say what would happen to whom, and why
    #[arg(long)]
    dry_run: bool,
    /// A JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    what: String,
    whom: String,
    why: String,
    /// Whether it is done now; else, what it waits for stands in `why`.
    due: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let world = server::world(&config, settings::cause(), Faults::default()).await?;
    let settings = Settings::from_config(&config);
    let manifest = &world.manifest;
    let now = Utc::now();
    let uses = Uses::new(Held::default(), settings.stream_keeps_awake_for);
    uses.begin(manifest.use_read_at().await?, now);
    if let Err(error) = uses.read(&world.proxy).await {
        eprintln!("haas: nobody is put to sleep, since HAProxy does not say who is used: {error}");
    }
    let knows_uses = uses.read_at().is_some();
    let (live, _) = manifest.live().await?;
    let tombstones = manifest.tombstones(notice_horizon(&settings, now)).await?;
    let announced = manifest.announced().await?;
    let outlook = Outlook {
        live: &live,
        tombstones: &tombstones,
        uses: &uses,
        announced: &announced,
        tells: world.webhook.is_some(),
    };
    let mut rows = Vec::new();
    for decision in decide(&outlook, &settings, now) {
        let (instance, next) = (decision.instance, &decision.next);
        if next.due > now || (next.step <= Descent::Sleep && !knows_uses) {
            continue;
        }
        let due = decision.is_due(now);
        let why = match &decision.held_back {
            Some(reason) => format!("{}; but {reason}", next.why()),
            None => next.why(),
        };
        let mut row =
            Row { what: next.step.to_string(), whom: instance.container.to_string(), why, due, outcome: None };
        if due && !arguments.dry_run {
            row.outcome = Some(match manifest.descend(instance, next.step, &next.why()).await {
                Ok(_) => "written: the server carries it out".to_owned(),
                Err(ManifestError::Stale) => "left alone: it has changed meanwhile".to_owned(),
                Err(error) => return Err(error.into()),
            });
        }
        rows.push(row);
    }
    match strays(manifest, &world.archives, &world.containers).await {
        Ok(strays) => {
            for stray in strays.into_iter().filter(|stray| stray.is_due(settings.unclaimed_grace, now)) {
                let why = format!("no instance claims it since {}", stray.unclaimed.since.format("%F %T"));
                let whom = format!("{} {}", stray.unclaimed.kind.as_str(), stray.unclaimed.name);
                let outcome = if arguments.dry_run {
                    None
                } else {
                    Some(match world.remove_stray(&stray).await {
                        Ok(()) => "removed".to_owned(),
                        Err(error) => format!("left: {error}"),
                    })
                };
                rows.push(Row { what: "remove".to_owned(), whom, why, due: true, outcome });
            }
        }
        Err(error) => eprintln!("haas: what no instance claims is not known: {error}"),
    }
    if arguments.json {
        say!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(Outcome::Done);
    }
    if rows.is_empty() {
        say!("nothing is due");
        return Ok(Outcome::Done);
    }
    let mut shown = table(&["WHAT", "WHOM", if arguments.dry_run { "WOULD" } else { "OUTCOME" }, "WHY"]);
    for row in rows {
        let otherwise = if row.due { "happen" } else { "wait" };
        shown.add_row([row.what, row.whom, row.outcome.unwrap_or_else(|| otherwise.to_owned()), row.why]);
    }
    print(&shown);
    Ok(Outcome::Done)
}
