//! Hosts: custom domains given and taken, and all hosts rewritten when the domain or the pattern
//! has changed. Whether a host is free is the database's to say (the table `hosts`).

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{Array, Text, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use serde_json::json;
use uuid::Uuid;

use super::intents::{latest, lock_intents, name_taken};
use super::rows::InstanceRow;
use super::schema::{hosts, instances};
use super::{Cause, Manifest, ManifestError, events};
use crate::instance::Instance;
use crate::instance::hosts::{EXTRA_HOSTS_MAX, Move, Obstacle, extra_host, rehost};
use crate::instance::name::{AppName, Hostname, Username};

/// How long the rewriting of all hosts may take; 10,000 of them took about a second.
const REHOST_LIMIT: Duration = Duration::from_secs(60);

/// What became of a wish to rewrite all hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rehosted {
    /// These were rewritten or, on a dry run, would be. None: all are as they should be.
    Moved(Vec<Move>),
    /// Nothing was changed; this is in the way.
    Refused(Vec<Obstacle>),
}

impl Manifest {
    /// Makes these an instance's custom domains, all of them, and returns its row; `None` if there
    /// never was one. A tombstone claims them when it comes back to life.
    ///
    /// # Errors
    /// [`ManifestError::NameTaken`] and [`ManifestError::TooManyHosts`] change nothing; others
    /// when Postgres can't be asked.
    pub async fn set_hosts(
        &self,
        username: &Username,
        appname: &AppName,
        extra_hosts: &[Hostname],
    ) -> Result<Option<Instance>, ManifestError> {
        self.change_hosts(username, appname, |present| *present = extra_hosts.to_vec()).await
    }

    /// Gives an instance one more custom domain; nothing happens if it is there.
    ///
    /// # Errors
    /// As for [`Manifest::set_hosts`].
    pub async fn add_host(
        &self,
        username: &Username,
        appname: &AppName,
        host: &Hostname,
    ) -> Result<Option<Instance>, ManifestError> {
        self.change_hosts(username, appname, |present| present.push(host.clone())).await
    }

    /// Takes a custom domain from an instance; nothing happens if it isn't there.
    ///
    /// # Errors
    /// As for [`Manifest::set_hosts`].
    pub async fn remove_host(
        &self,
        username: &Username,
        appname: &AppName,
        host: &Hostname,
    ) -> Result<Option<Instance>, ManifestError> {
        self.change_hosts(username, appname, |present| present.retain(|other| other != host)).await
    }

    async fn change_hosts(
        &self,
        username: &Username,
        appname: &AppName,
        change: impl FnOnce(&mut Vec<Hostname>) + Send,
    ) -> Result<Option<Instance>, ManifestError> {
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                lock_intents(conn).await?;
                let Some(row) = latest(conn, username, appname).await? else { return Ok(None) };
                let instance = Instance::try_from(row)?;
                let mut wanted = instance.extra_hosts.clone();
                change(&mut wanted);
                // A set: equal ones are equal rows.
                wanted.sort();
                wanted.dedup();
                if wanted.len() > EXTRA_HOSTS_MAX {
                    return Err(ManifestError::TooManyHosts);
                }
                if wanted == instance.extra_hosts {
                    return Ok(Some(instance));
                }
                let row: InstanceRow = diesel::update(instances::table.find(instance.id))
                    .set((instances::extra_hosts.eq(texts(&wanted)), instances::updated_at.eq(diesel::dsl::now)))
                    .returning(InstanceRow::as_returning())
                    .get_result(conn)
                    .await
                    .map_err(name_taken)?;
                for host in wanted.iter().filter(|host| !instance.extra_hosts.contains(host)) {
                    events::append(conn, &self.cause, instance.id, "host added", json!({ "host": host })).await?;
                }
                for host in instance.extra_hosts.iter().filter(|host| !wanted.contains(host)) {
                    events::append(conn, &self.cause, instance.id, "host removed", json!({ "host": host })).await?;
                }
                Ok(Some(row.try_into()?))
            })
            .await
        })
        .await
    }

    /// Makes every instance's host the one that the pattern and the domain give: all of them, or
    /// none. A dry run only says what it would do.
    ///
    /// # Errors
    /// [`ManifestError::NameTaken`] when a row that can't be read is in the way; others when
    /// Postgres can't be asked. Nothing is changed then.
    pub async fn rehost(&self, dry_run: bool) -> Result<Rehosted, ManifestError> {
        let limit = if dry_run { self.timeout } else { REHOST_LIMIT.max(self.timeout) };
        self.run_within(limit, async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                lock_intents(conn).await?;
                let rows: Vec<InstanceRow> = instances::table
                    .order((instances::username, instances::appname))
                    .select(InstanceRow::as_select())
                    .load(conn)
                    .await?;
                let mut all = Vec::with_capacity(rows.len());
                for row in rows {
                    match Instance::try_from(row) {
                        Ok(instance) => all.push(instance),
                        Err(error) => log::error!("its host is left as it is: {error}"),
                    }
                }
                match rehost(&all, self.host_pattern, &self.domain) {
                    Ok(moves) if dry_run || moves.is_empty() => Ok(Rehosted::Moved(moves)),
                    Ok(moves) => {
                        move_all(conn, &self.cause, &moves).await?;
                        Ok(Rehosted::Moved(moves))
                    }
                    Err(obstacles) => Ok(Rehosted::Refused(obstacles)),
                }
            })
            .await
        })
        .await
    }
}

/// Hosts may change hands here, so that they are only unique again when all is done.
async fn move_all(conn: &mut AsyncPgConnection, cause: &Cause, moves: &[Move]) -> Result<(), ManifestError> {
    let ids: Vec<Uuid> = moves.iter().map(|step| step.id).collect();
    let to: Vec<&str> = moves.iter().map(|step| step.to.as_str()).collect();
    conn.batch_execute(&format!(
        "SET LOCAL statement_timeout = '{}s'; SET CONSTRAINTS hosts_pkey DEFERRED",
        REHOST_LIMIT.as_secs()
    ))
    .await?;
    diesel::sql_query(
        "UPDATE instances SET host = step.host, extra_hosts = array_remove(extra_hosts, step.host), updated_at = now()
         FROM unnest($1, $2) AS step (id, host) WHERE instances.id = step.id",
    )
    .bind::<Array<SqlUuid>, _>(&ids)
    .bind::<Array<Text>, _>(&to)
    .execute(conn)
    .await?;
    let details = moves.iter().map(|step| (step.id, json!({ "from": step.from, "to": step.to }))).collect();
    events::append_all(conn, cause, "rehosted", details).await?;
    diesel::sql_query("SET CONSTRAINTS hosts_pkey IMMEDIATE").execute(conn).await.map_err(name_taken)?;
    Ok(())
}

/// Which of its custom domains an instance that is provisioned again can have. One that has
/// been given away meanwhile must not keep it from coming back.
pub(super) async fn still_free(
    conn: &mut AsyncPgConnection,
    cause: &Cause,
    instance: &Instance,
    host: &Hostname,
    domain: &Hostname,
) -> Result<Vec<String>, ManifestError> {
    let taken: Vec<String> = hosts::table
        .filter(hosts::host.eq_any(texts(&instance.extra_hosts)))
        .filter(hosts::instance_id.ne(instance.id))
        .select(hosts::host)
        .load(conn)
        .await?;
    let free = |extra: &&Hostname| {
        *extra != host
            && !taken.iter().any(|taken| taken == extra.as_str())
            && extra_host(extra.as_str(), domain).is_ok()
    };
    let (kept, lost): (Vec<&Hostname>, Vec<&Hostname>) = instance.extra_hosts.iter().partition(free);
    for host in lost {
        events::append(conn, cause, instance.id, "host removed", json!({ "host": host, "taken": true })).await?;
    }
    Ok(kept.into_iter().map(ToString::to_string).collect())
}

fn texts(hosts: &[Hostname]) -> Vec<String> {
    hosts.iter().map(ToString::to_string).collect()
}
