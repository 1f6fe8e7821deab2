//! The way down and the way back, as intent: by the policy, by commands, and by the first request
//! to an app that rests.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use serde_json::{Value, json};
use uuid::Uuid;

use super::intents::{latest, lock_intents, locked};
use super::rows::InstanceRow;
use super::schema::{installation, instances};
use super::{Manifest, ManifestError, NewInstance, events, notices, storage};
use crate::archive::Archive;
use crate::instance::name::{AppName, Username};
use crate::instance::policy::{Descent, Overrides};
use crate::instance::{Desired, Instance, Phase};

/// What became of a wish to have a deleted instance back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The row as it stands now.
    pub instance: Instance,
    /// Whether this request is what brought it back.
    pub new: bool,
}

impl Manifest {
    /// Writes that an instance should be one step further down, and why. It is left alone if it
    /// is not as it stands here any more.
    ///
    /// # Errors
    /// [`ManifestError::Stale`] when the row has changed; others when Postgres can't be asked.
    pub async fn descend(&self, instance: &Instance, step: Descent, why: &str) -> Result<Instance, ManifestError> {
        let desired = step.desired();
        let detail = json!({ "why": why, "from": instance.phase.as_str() });
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                let same: Option<Uuid> = instances::table
                    .filter(instances::id.eq(instance.id))
                    .filter(instances::phase.eq(instance.phase.as_str()))
                    .filter(instances::phase_since.eq(instance.phase_since))
                    .filter(instances::desired.eq(instance.desired.as_str()))
                    // Its times are those that were looked at, too.
                    .filter(instances::overrides.eq(json!(instance.overrides())))
                    .filter(instances::restorable_until.is_not_distinct_from(instance.restorable_until))
                    .select(instances::id)
                    .for_update()
                    .first(conn)
                    .await
                    .optional()?;
                if same.is_none() {
                    return Err(ManifestError::Stale);
                }
                if desired.gone() {
                    let gone = self.take_away(conn, instance, desired, &step.to_string(), detail).await?;
                    return gone.ok_or(ManifestError::Stale);
                }
                let row: InstanceRow = diesel::update(instances::table.find(instance.id))
                    .filter(instances::generation.eq(instance.generation))
                    .set((
                        instances::desired.eq(desired.as_str()),
                        instances::attempts.eq(0),
                        instances::next_attempt_at.eq(None::<DateTime<Utc>>),
                        instances::rolling.eq(false),
                        instances::updated_at.eq(diesel::dsl::now),
                    ))
                    .returning(InstanceRow::as_returning())
                    .get_result(conn)
                    .await
                    .optional()?
                    .ok_or(ManifestError::Stale)?;
                events::append(conn, &self.cause, row.id, &step.to_string(), detail).await?;
                row.try_into()
            })
            .await
        })
        .await
    }

    /// Writes that an instance that rests should run; one that does not rest is left as it is.
    /// `None` if it is gone. However many ask, it is woken once.
    ///
    /// # Errors
    /// [`ManifestError::NoFreePort`] when an archived one can't have a port;
    /// [`ManifestError::StorageFull`] when its data takes more of the disk than it may; others when
    /// Postgres can't be asked.
    pub async fn wake(&self, id: Uuid, why: &str) -> Result<Option<Instance>, ManifestError> {
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                lock_intents(conn).await?;
                let Some(instance) = locked(conn, id).await? else { return Ok(None) };
                if !instance.desired.resting() {
                    return Ok(Some(instance).filter(|instance| !instance.desired.gone()));
                }
                if let Some(full) = instance.storage_full.as_deref().filter(|_| instance.is_full(self.limits)) {
                    return Err(ManifestError::StorageFull(full.why()));
                }
                let port = match instance.port {
                    Some(port) => i32::from(port),
                    None => self.free_port(conn).await?,
                };
                let row: InstanceRow = diesel::update(instances::table.find(id))
                    .set((
                        instances::desired.eq(Desired::Running.as_str()),
                        instances::port.eq(port),
                        instances::attempts.eq(0),
                        instances::next_attempt_at.eq(None::<DateTime<Utc>>),
                        instances::last_error.eq(None::<String>),
                        instances::storage_full.eq(None::<Value>),
                        instances::last_used_at.eq(Utc::now()),
                        instances::updated_at.eq(diesel::dsl::now),
                    ))
                    .returning(InstanceRow::as_returning())
                    .get_result(conn)
                    .await?;
                events::append(conn, &self.cause, id, "wake", json!({ "why": why, "from": instance.phase.as_str() }))
                    .await?;
                Ok(Some(row.try_into()?))
            })
            .await
        })
        .await
    }

    /// Has what failed, and rests before it is tried again, tried at once: somebody has done something
    /// about it. The row as it stands then.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn try_again(&self, instance: &Instance) -> Result<Instance, ManifestError> {
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                let waiting = instances::phase.eq_any([Phase::Failed.as_str(), Phase::Archiving.as_str()]);
                let changed = diesel::update(instances::table.find(instance.id))
                    .filter(waiting)
                    .filter(instances::next_attempt_at.gt(diesel::dsl::now))
                    .set((instances::next_attempt_at.eq(None::<DateTime<Utc>>), instances::attempts.eq(0)))
                    .returning(InstanceRow::as_returning())
                    .get_result::<InstanceRow>(conn)
                    .await
                    .optional()?;
                let Some(row) = changed else { return Ok(instance.clone()) };
                // What is wanted has not changed: nothing else nudges whoever acts.
                diesel::sql_query("SELECT pg_notify('haas', 'intent ' || $1::text)")
                    .bind::<SqlUuid, _>(row.id)
                    .execute(conn)
                    .await?;
                events::append(conn, &self.cause, row.id, "tried again", json!({ "phase": row.phase })).await?;
                row.try_into()
            })
            .await
        })
        .await
    }

    /// Writes that a deleted instance should run again, with its data; one that was not deleted is
    /// left as it is. `None` if there is none.
    ///
    /// # Errors
    /// [`ManifestError::NameTaken`], [`ManifestError::NoFreePort`], [`ManifestError::TooManyApps`] and
    /// [`ManifestError::BeingPurged`] change nothing; others when Postgres can't be asked.
    pub async fn restore(&self, username: &Username, appname: &AppName) -> Result<Option<Restored>, ManifestError> {
        self.run(async |conn| {
            conn.transaction::<_, ManifestError, _>(async |conn| {
                lock_intents(conn).await?;
                let Some(row) = latest(conn, username, appname).await? else { return Ok(None) };
                let instance = Instance::try_from(row)?;
                match instance.desired {
                    Desired::Purged => Err(ManifestError::BeingPurged),
                    Desired::Deleted => {
                        let host = self.host_pattern.host(username, appname, &self.domain);
                        let host = host.map_err(|_| ManifestError::UnfitHost)?;
                        let instance = self.bring_back(conn, &instance, host.as_str(), "restored").await?;
                        Ok(Some(Restored { instance, new: true }))
                    }
                    _ => Ok(Some(Restored { instance, new: false })),
                }
            })
            .await
        })
        .await
    }

    /// Writes an instance whose data is in this archive; it is unpacked and started.
    ///
    /// # Errors
    /// [`ManifestError::Exists`] when there is one, or a tombstone, of this name;
    /// [`ManifestError::NameTaken`], [`ManifestError::NoFreePort`], [`ManifestError::TooManyApps`]; others when Postgres
    /// can't be asked.
    pub async fn import(&self, id: Uuid, new: &NewInstance, archive: &Archive) -> Result<Instance, ManifestError> {
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async |conn| {
                lock_intents(conn).await?;
                if latest(conn, &new.username, &new.appname).await?.is_some() {
                    return Err(ManifestError::Exists);
                }
                let row = self.insert(conn, id, new, Some(archive)).await?;
                events::append(conn, &self.cause, id, "imported", json!({ "file": archive.file, "port": row.port }))
                    .await?;
                row.try_into()
            })
            .await
        })
        .await
    }

    /// Changes where an instance departs from the policy, and returns its row; `None` if there is
    /// none. A tombstone's time to be restored is counted anew.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn set_overrides(
        &self,
        username: &Username,
        appname: &AppName,
        change: impl FnOnce(&mut Overrides) + Send,
    ) -> Result<Option<Instance>, ManifestError> {
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                lock_intents(conn).await?;
                let Some(row) = latest(conn, username, appname).await? else { return Ok(None) };
                let instance = Instance::try_from(row)?;
                let before = instance.overrides();
                let mut overrides = before;
                change(&mut overrides);
                if overrides == before {
                    return Ok(Some(instance));
                }
                let mut until = instance.restorable_until;
                if overrides.purge_after != before.purge_after && instance.desired == Desired::Deleted {
                    let since = if instance.phase == Phase::Deleted { instance.phase_since } else { Utc::now() };
                    until = self.policy.with(&overrides).purge_after.from(since);
                }
                // What its owner was told is another time than this one: it is told anew, and has its time anew.
                for (step, changed) in [
                    (Descent::Archive, overrides.archive_after != before.archive_after),
                    (Descent::Purge, overrides.purge_after != before.purge_after),
                ] {
                    if changed {
                        notices::forget(conn, instance.id, step).await?;
                    }
                }
                // A limit that was raised lets it go.
                let own = Instance { overrides: Some(Box::new(overrides)), ..instance.clone() };
                let freed = instance.storage_full.is_some() && !own.is_full(self.limits);
                let row: InstanceRow = diesel::update(instances::table.find(instance.id))
                    .set((
                        instances::overrides.eq(json!(overrides)),
                        instances::restorable_until.eq(until),
                        instances::updated_at.eq(diesel::dsl::now),
                    ))
                    .returning(InstanceRow::as_returning())
                    .get_result(conn)
                    .await?;
                events::append(conn, &self.cause, instance.id, "policy changed", json!(overrides)).await?;
                let row = if freed { storage::free(conn, &self.cause, instance.id).await? } else { row };
                Ok(Some(row.try_into()?))
            })
            .await
        })
        .await
    }

    /// Writes down when instances were last used, and until when that is known of all of them.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn note_use(
        &self,
        uses: &[(Uuid, DateTime<Utc>)],
        read_at: Option<DateTime<Utc>>,
    ) -> Result<(), ManifestError> {
        let ids: Vec<Uuid> = uses.iter().map(|(id, _)| *id).collect();
        let times: Vec<DateTime<Utc>> = uses.iter().map(|(_, at)| *at).collect();
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                if !ids.is_empty() {
                    diesel::sql_query(
                        "UPDATE instances SET last_used_at = used.at FROM unnest($1, $2) AS used (id, at)
                         WHERE instances.id = used.id AND (last_used_at IS NULL OR last_used_at < used.at)",
                    )
                    .bind::<Array<SqlUuid>, _>(&ids)
                    .bind::<Array<Timestamptz>, _>(&times)
                    .execute(conn)
                    .await?;
                }
                if let Some(read_at) = read_at {
                    diesel::update(installation::table)
                        .set(installation::use_read_at.eq(read_at))
                        .execute(conn)
                        .await?;
                }
                Ok(())
            })
            .await
        })
        .await
    }

    /// Until when it is known who was used.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn use_read_at(&self) -> Result<Option<DateTime<Utc>>, ManifestError> {
        self.run(async |conn| Ok(installation::table.select(installation::use_read_at).first(conn).await?)).await
    }

    /// Tombstones whose time is over before this moment, the earliest first.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn tombstones(&self, before: DateTime<Utc>) -> Result<Vec<Instance>, ManifestError> {
        self.run(async move |conn| {
            let rows: Vec<InstanceRow> = instances::table
                .filter(instances::phase.eq(Phase::Deleted.as_str()))
                .filter(instances::desired.eq(Desired::Deleted.as_str()))
                .filter(instances::restorable_until.le(before))
                .order(instances::restorable_until)
                .select(InstanceRow::as_select())
                .load(conn)
                .await?;
            Ok(rows.into_iter().filter_map(|row| Instance::try_from(row).ok()).collect())
        })
        .await
    }
}
