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
    // The map counts only while the running worker is of the generation that it was written with.
    let candidate = haproxy.render_candidate(&wanted).await?;
    let running = haproxy.running_generation().await.ok().flatten();
    let cfg = std::fs::read_to_string(config.haproxy.dir.join("haproxy.cfg")).unwrap_or_default();
    let in_force = running.is_some_and(|generation| cfg.contains(&generation) || candidate.generation() == generation);
    let map = std::fs::read_to_string(config.haproxy.dir.join("routes.map")).unwrap_or_default();
    let mut mapped: BTreeMap<&str, &str> = map
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .filter(|_| in_force)
        .collect();
    let mut rows: Vec<Row> = Vec::new();
    for route in &wanted {
        for host in route.hosts() {
            let live = mapped.remove(host.as_str()) == Some(route.target().as_str());
            rows.push(Row {
                host: host.to_string(),
                target: format!("127.0.0.1:{}", route.port),
                container: Some(route.container.to_string()),
                since: Some(route.since),
                standing: if live { "live" } else { "pending" },
            });
        }
    }
    for (host, target) in mapped {
        if !rows.iter().any(|row| row.host == host) {
            let (host, target) = (host.to_owned(), target.to_owned());
            rows.push(Row { host, target, container: None, since: None, standing: "stale" });
        }
    }
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
