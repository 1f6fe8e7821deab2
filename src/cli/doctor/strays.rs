//! Containers, volumes, networks and archives of ours that no instance claims: since when, how old
//! they are, and how large.

use std::path::Path;

use chrono::Utc;

use super::Findings;
use crate::cli::table::age;
use crate::config::Config;
use crate::containers::{Docker, Owned};
use crate::haproxy::Haproxy;
use crate::instance::Instance;
use crate::manifest::UnclaimedKind;
use crate::reconcile::{World, strays};

const PART: &str = "unclaimed";

pub(super) async fn look(
    config: &Config,
    world: &World<Docker, Haproxy>,
    owned: &[Owned],
    live: &[Instance],
    findings: &mut Findings,
) {
    for orphan in owned.iter().filter(|owned| !live.iter().any(|row| Some(row.id) == owned.instance)) {
        findings.warn(
            PART,
            format!("container {}, {} old, belongs to no live instance", orphan.name, age(orphan.created)),
            format!("the server removes it {:?} after it noticed", config.reconcile.orphan_grace),
        );
    }
    let strays = match strays(&world.manifest, &world.archives, &world.containers).await {
        Ok(strays) => strays,
        Err(error) => {
            return findings.broken(PART, error.to_string(), "see docker, postgres, and lifecycle.archive_dir");
        }
    };
    for stray in strays {
        let kind = stray.unclaimed.kind.as_str();
        let old = stray.created.map(|created| format!(", {} old", age(created))).unwrap_or_default();
        let path = stray.path.clone();
        let size = tokio::task::spawn_blocking(move || path.and_then(|path| size(&path).ok())).await;
        let size = size.ok().flatten().map(|bytes| format!(", {} KiB", bytes.div_ceil(1024))).unwrap_or_default();
        let name = &stray.unclaimed.name;
        let since = (Utc::now() - stray.unclaimed.since).num_seconds().max(0);
        // A copy of what was restored is no trouble.
        let live = live.iter().any(|row| Some(row.id) == stray.instance);
        if live && stray.unclaimed.kind == UnclaimedKind::Archive {
            findings.ok(PART, format!("{kind} {name}{old}{size}: a copy of what was restored"));
            continue;
        }
        findings.warn(
            PART,
            format!(
                "{kind} {name}{old}{size}: claimed by no instance since {} ({since} s)",
                stray.unclaimed.since.format("%F %T")
            ),
            format!(
                "removed after lifecycle.unclaimed_grace, {:?}; `haas gc --dry-run` tells",
                config.lifecycle.unclaimed_grace
            ),
        );
    }
}

/// What its files take together; an error where they are another machine's.
fn size(path: &Path) -> std::io::Result<u64> {
    let metadata = std::fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let mut sum = 0;
    for entry in std::fs::read_dir(path)? {
        sum += size(&entry?.path())?;
    }
    Ok(sum)
}
