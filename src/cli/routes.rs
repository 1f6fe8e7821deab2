//! `haas routes`: which host leads where, by the manifest, the file, and HAProxy itself.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use super::table::{age, print, table};
use super::{Global, Outcome, settings};
use crate::haproxy::{Haproxy, Settings};
use crate::manifest::Manifest;
use crate::reconcile;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    host: String,
    target: String,
    container: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<chrono::DateTime<chrono::Utc>>,
    /// live, pending (not in force yet) or stale (in force, and not wanted any more).
    standing: &'static str,
}

pub(super) async fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<Outcome> {
    let config = settings::of_server(global)?;
    let (live, _) = Manifest::new(&config).live().await?;
    let wanted = reconcile::routes(&live);
    let haproxy = Haproxy::new(Settings::from_config(&config));
    // What HAProxy itself says, not what the file would make it say.
    let mut running: BTreeMap<String, String> = haproxy.running_map().await.unwrap_or_default().into_iter().collect();
    let mut rows: Vec<Row> = Vec::new();
    for route in &wanted {
        for host in route.hosts() {
            let live = running.remove(host.as_str()) == Some(route.target());
            rows.push(Row {
                host: host.to_string(),
                target: format!("127.0.0.1:{}", route.port),
                container: Some(route.container.to_string()),
                since: Some(route.since),
                standing: if live { "live" } else { "pending" },
            });
        }
    }
    for (host, section) in running {
        if !rows.iter().any(|row| row.host == host) {
            let port = section.rsplit(':').next().unwrap_or_default();
            rows.push(Row {
                host,
                target: format!("127.0.0.1:{port}"),
                container: None,
                since: None,
                standing: "stale",
            });
        }
    }
    rows.sort_by(|a, b| a.host.cmp(&b.host));
    if arguments.json {
        say!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(Outcome::Done);
    }
    if rows.is_empty() {
        say!("no routes");
        return Ok(Outcome::Done);
    }
    let mut shown = table(&["HOST", "TARGET", "CONTAINER", "STANDING", "FOR"]);
    for row in rows {
        let since = row.since.map(age).unwrap_or_default();
        shown.add_row([row.host, row.target, row.container.unwrap_or_default(), row.standing.to_owned(), since]);
    }
    print(&shown);
    Ok(Outcome::Done)
}
