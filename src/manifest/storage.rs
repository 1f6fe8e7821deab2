//! Instances whose data takes more of the disk than it may: stopped, their owners told, kept so,
//! and let go.

use chrono::{SubsecRound, Utc};
use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use uuid::Uuid;

use super::intents::locked;
use super::rows::InstanceRow;
use super::schema::{instances, notices};
use super::{Cause, Manifest, ManifestError, events};
use crate::instance::policy::Overrides;
use crate::instance::storage::{StorageFull, exceeds};
use crate::instance::{Desired, Instance, Phase, volume_name};

/// The kind of the notice.
const NOTICE: &str = "storage-full";

/// One whose data may grow, or that was stopped because it had. Small: there may be thousands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// Which instance.
    pub id: Uuid,
    /// See [`Instance::volume_serial`].
    pub volume_serial: i32,
    /// How much its data may take, in MiB; 0 for no bound.
    pub limit_mib: u32,
    /// What its data took when it was stopped; none of one that is to run.
    pub stopped_with: Option<u64>,
}

impl Watched {
    /// The Docker volume with its data.
    #[must_use]
    pub fn volume(&self) -> String {
        volume_name(self.id, self.volume_serial)
    }
}

impl Manifest {
    /// Those that are to run and whose data is in a volume, unless nothing bounds it; and those that were
    /// stopped. The second's data may be in an archive: then they have no volume.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn watched(&self) -> Result<Vec<Watched>, ManifestError> {
        self.run(async |conn| {
            type Row = (Uuid, i32, Value, Option<Value>);
            let runs = instances::desired.eq(Desired::Running.as_str()).and(instances::archive.is_null());
            let mut rows = instances::table
                .filter(instances::phase.ne(Phase::Deleted.as_str()))
                .filter(runs.or(instances::storage_full.is_not_null()))
                .select((instances::id, instances::volume_serial, instances::overrides, instances::storage_full))
                .load_stream::<Row>(conn)
                .await?;
            let mut watched = Vec::new();
            while let Some((id, volume_serial, overrides, full)) = rows.try_next().await? {
                // A row that can't be read is told of where all are read.
                let Ok(own) = serde_json::from_value::<Overrides>(overrides) else { continue };
                let limit_mib = own.disk_mib.unwrap_or(self.disk_mib);
                let full = full.and_then(|full| serde_json::from_value::<StorageFull>(full).ok());
                if limit_mib > 0 || full.is_some() {
                    watched.push(Watched { id, volume_serial, limit_mib, stopped_with: full.map(|full| full.bytes) });
                }
            }
            Ok(watched)
        })
        .await
    }

    /// Writes that an instance should be stopped, because its data takes so much, and that its
    /// owner is to be told; in one transaction. None if it is not to run any more, its data is
    /// elsewhere by now, or its limit was raised meanwhile.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn stop_full(&self, seen: &Watched, bytes: u64) -> Result<Option<Instance>, ManifestError> {
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                let concerned = locked(conn, seen.id).await?.filter(|instance| {
                    instance.desired == Desired::Running
                        && instance.volume_serial == seen.volume_serial
                        && instance.archive.is_none()
                });
                let Some(instance) = concerned else { return Ok(None) };
                let full = StorageFull {
                    since: Utc::now().trunc_subsecs(6),
                    bytes,
                    limit_mib: instance.disk_mib(self.disk_mib),
                };
                if !exceeds(bytes, full.limit_mib) {
                    return Ok(None);
                }
                let row: InstanceRow = diesel::update(instances::table.find(seen.id))
                    .set((
                        instances::desired.eq(Desired::Asleep.as_str()),
                        instances::storage_full.eq(json!(full)),
                        instances::last_error.eq(full.why()),
                        instances::attempts.eq(0),
                        instances::next_attempt_at.eq(None::<chrono::DateTime<Utc>>),
                        instances::rolling.eq(false),
                        instances::updated_at.eq(diesel::dsl::now),
                    ))
                    .returning(InstanceRow::as_returning())
                    .get_result(conn)
                    .await?;
                let detail = json!({ "bytes": bytes, "limit_mib": full.limit_mib, "from": instance.phase.as_str() });
                events::append(conn, &self.cause, seen.id, "storage full", detail).await?;
                // It is about this time of being full, whatever phase it is in.
                diesel::insert_into(notices::table)
                    .values((
                        notices::instance_id.eq(seen.id),
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
        instance.is_full(self.disk_mib)
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
