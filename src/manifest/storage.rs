//! Instances whose data takes more of the disk than it may: stopped, their owners told, kept so,
//! and let go.

use chrono::{DateTime, SubsecRound, Utc};
use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use uuid::Uuid;

use super::intents::locked;
use super::rows::InstanceRow;
use super::schema::{instances, notices};
use super::{Cause, DataPlace, Manifest, ManifestError, events};
use crate::instance::policy::Overrides;
use crate::instance::storage::{Limits, StorageFull, Taken};
use crate::instance::{Desired, Instance, Phase, volume_name};

/// The kind of the notice.
const NOTICE: &str = "storage-full";
/// Where nothing of an instance runs that is not to run.
const AT_REST: [Phase; 3] = [Phase::Paused, Phase::Asleep, Phase::Archiving];

/// An instance whose volume is measured: its data may grow, has come to rest, or was too much. Small: there
/// may be thousands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// Which instance.
    pub id: Uuid,
    /// See [`Instance::volume_serial`].
    pub volume_serial: i32,
    /// How much its data may take.
    pub limits: Limits,
    /// What its data took when it was stopped; none of one that was not.
    pub stopped_with: Option<Taken>,
    /// Since when nothing of it has run; none while its data may grow.
    pub rests_since: Option<DateTime<Utc>>,
}

impl Watched {
    /// The Docker volume with its data.
    #[must_use]
    pub fn volume(&self) -> String {
        volume_name(self.id, self.volume_serial)
    }
}

impl Manifest {
    /// Those whose data is in a volume, unless nothing bounds it; and those that were stopped. The
    /// second's data may be in an archive: then they have no volume.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn watched(&self) -> Result<Vec<Watched>, ManifestError> {
        self.run(async |conn| {
            type Row = (Uuid, i32, Value, Option<Value>, (String, String, DateTime<Utc>));
            let (deleted, purged) = (Desired::Deleted.as_str(), Desired::Purged.as_str());
            let stays = instances::desired.ne_all([deleted, purged]).and(instances::archive.is_null());
            let mut rows = instances::table
                .filter(instances::phase.ne(Phase::Deleted.as_str()))
                .filter(stays.or(instances::storage_full.is_not_null()))
                .select((
                    instances::id,
                    instances::volume_serial,
                    instances::overrides,
                    instances::storage_full,
                    (instances::desired, instances::phase, instances::phase_since),
                ))
                .load_stream::<Row>(conn)
                .await?;
            let mut watched = Vec::new();
            while let Some((id, volume_serial, overrides, full, (desired, phase, since))) = rows.try_next().await? {
                // A row that can't be read is told of where all are read.
                let Ok(own) = serde_json::from_value::<Overrides>(overrides) else { continue };
                let limits = own.limits(self.limits);
                let full = full.and_then(|full| serde_json::from_value::<StorageFull>(full).ok());
                let rests = desired != Desired::Running.as_str() && AT_REST.iter().any(|rest| rest.as_str() == phase);
                if !limits.is_none() || full.is_some() {
                    let stopped_with = full.map(|full| full.taken());
                    let rests_since = rests.then_some(since);
                    watched.push(Watched { id, volume_serial, limits, stopped_with, rests_since });
                }
            }
            Ok(watched)
        })
        .await
    }

    /// Writes that an instance should be stopped, because its data, which is there, takes so much, and
    /// that its owner is to be told; in one transaction. None if its data is elsewhere by now, or is to go,
    /// its limits were raised meanwhile, or this was written before.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn stop_full(&self, id: Uuid, data: &DataPlace, taken: Taken) -> Result<Option<Instance>, ManifestError> {
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                let concerned = locked(conn, id).await?.filter(|instance| {
                    let new = instance.desired == Desired::Running || instance.storage_full.is_none();
                    new && !instance.desired.gone() && DataPlace::of(instance) == *data
                });
                let Some(instance) = concerned else { return Ok(None) };
                let limits = instance.limits(self.limits);
                let full = StorageFull {
                    since: Utc::now().trunc_subsecs(6),
                    bytes: taken.bytes,
                    limit_mib: limits.mib,
                    files: taken.files,
                    limit_files: limits.files,
                };
                if !limits.exceeded_by(taken) {
                    return Ok(None);
                }
                let desired = match instance.desired {
                    Desired::Running if instance.archive.is_some() => Desired::Archived,
                    Desired::Running | Desired::Paused => Desired::Asleep,
                    rests => rests,
                };
                let row: InstanceRow = diesel::update(instances::table.find(id))
                    .set((
                        instances::desired.eq(desired.as_str()),
                        instances::storage_full.eq(json!(full)),
                        instances::last_error.eq(full.why()),
                        instances::attempts.eq(0),
                        instances::next_attempt_at.eq(None::<DateTime<Utc>>),
                        instances::rolling.eq(false),
                        instances::updated_at.eq(diesel::dsl::now),
                    ))
                    .returning(InstanceRow::as_returning())
                    .get_result(conn)
                    .await?;
                let detail = json!({
                    "bytes": full.bytes, "limit_mib": full.limit_mib, "files": full.files,
                    "limit_files": full.limit_files, "from": instance.phase.as_str(),
                });
                events::append(conn, &self.cause, id, "storage full", detail).await?;
                // It is about this time of being full, whatever phase it is in.
                diesel::insert_into(notices::table)
                    .values((
                        notices::instance_id.eq(id),
                        notices::kind.eq(NOTICE),
                        notices::stay.eq(full.since),
                        notices::due_at.eq(full.since),
                    ))
                    .on_conflict_do_nothing()
                    .execute(conn)
                    .await?;
                Ok(Some(row.try_into()?))
            })
            .await
        })
        .await
    }

    /// Lets one go that was stopped: its data takes no more than it may, so that the next request
    /// wakes it. Says whether it was still stopped.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn free_full(&self, id: Uuid) -> Result<bool, ManifestError> {
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                let stopped = locked(conn, id).await?.is_some_and(|instance| instance.storage_full.is_some());
                if stopped {
                    free(conn, &self.cause, id).await?;
                }
                Ok(stopped)
            })
            .await
        })
        .await
    }

    /// Whether an instance is stopped because of what its data takes, by the limit as it is now.
    #[must_use]
    pub fn is_full(&self, instance: &Instance) -> bool {
        instance.is_full(self.limits)
    }
}

/// See [`Manifest::free_full`].
pub(super) async fn free(conn: &mut AsyncPgConnection, cause: &Cause, id: Uuid) -> Result<InstanceRow, ManifestError> {
    let row = diesel::update(instances::table.find(id))
        .set((
            instances::storage_full.eq(None::<Value>),
            instances::last_error.eq(None::<String>),
            instances::updated_at.eq(diesel::dsl::now),
        ))
        .returning(InstanceRow::as_returning())
        .get_result(conn)
        .await?;
    events::append(conn, cause, id, "storage freed", json!({})).await?;
    Ok(row)
}
