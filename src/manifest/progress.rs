//! What the reconciler writes: how far an instance has come. Each write is a compare-and-set
//! on (id, generation, phase), with its event in the same transaction; a stale writer gets
//! [`ManifestError::Stale`] and nothing is lost.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use serde_json::{Value, json};
use uuid::Uuid;

use super::events::Outcome;
use super::last_logs::LastLog;
use super::rows::{InstanceRow, Progress};
use super::schema::instances;
use super::{Manifest, ManifestError, events, ports, roll};
use crate::archive::Archive;
use crate::bounded::{ERROR_MAX, bounded};
use crate::instance::{Desired, Instance, Phase};

/// What is written in the transaction that enters a phase.
#[derive(Default)]
struct Along {
    /// No other instance is to be rolled to this spec any more.
    halted: Option<Value>,
    log: LastLog,
}

impl Manifest {
    /// Enters a phase that needs nothing else written. Leaving `Removing` for `Deleted` gives
    /// the port back.
    ///
    /// # Errors
    /// [`ManifestError::Stale`] when the row has changed; others when Postgres can't be asked.
    pub async fn advance(&self, instance: &Instance, phase: Phase, attempts: i32) -> Result<Instance, ManifestError> {
        let progress = Progress { attempts: Some(attempts), ..Progress::default() };
        self.enter(instance, phase, progress, json!({})).await
    }

    /// Enters `phase` because its Hoodie has answered.
    ///
    /// # Errors
    /// As for [`Manifest::advance`].
    pub async fn ready(&self, instance: &Instance, phase: Phase) -> Result<Instance, ManifestError> {
        let progress = Progress {
            ready_at: Some(Some(instance.ready_at.unwrap_or_else(Utc::now))),
            next_attempt_at: Some(None),
            last_error: Some(None),
            ..Progress::default()
        };
        let along = Along { log: LastLog::Forgotten, ..Along::default() };
        self.enter_along(instance, phase, progress, json!({}), along).await
    }

    /// Enters `Running`: its Hoodie was seen to answer through HAProxy.
    ///
    /// # Errors
    /// As for [`Manifest::advance`].
    pub async fn running(&self, instance: &Instance) -> Result<Instance, ManifestError> {
        let mut progress = Progress { observed_generation: Some(instance.generation), ..Progress::default() };
        let mut detail = json!({});
        if instance.rolling {
            if instance.next_spec != instance.spec {
                detail = json!({ "rolled": instance.next_spec.as_deref() });
            }
            progress.spec = Some(instance.next_spec.as_deref().map(|spec| json!(spec)));
            progress.next_spec = Some(None);
            progress.rolling = Some(false);
        }
        self.enter(instance, Phase::Running, progress, detail).await
    }

    /// Writes down that the archive has the data from now on, and no volume.
    ///
    /// # Errors
    /// As for [`Manifest::advance`].
    pub async fn archived(&self, instance: &Instance, archive: &Archive) -> Result<Instance, ManifestError> {
        let progress = Progress {
            archive: Some(Some(json!(archive))),
            attempts: Some(0),
            next_attempt_at: Some(None),
            last_error: Some(None),
            ..Progress::default()
        };
        let detail = json!({ "file": archive.file, "bytes": archive.bytes, "sha256": archive.sha256 });
        self.note(instance, progress, "data archived", detail).await
    }

    /// Writes down that the volume of `restored`, which the archive was restored into, has the data
    /// from now on.
    ///
    /// # Errors
    /// As for [`Manifest::advance`].
    pub async fn unarchived(&self, instance: &Instance, restored: &Instance) -> Result<Instance, ManifestError> {
        let progress = Progress {
            archive: Some(None),
            volume_serial: Some(restored.volume_serial),
            restored: Some(true),
            ..Progress::default()
        };
        self.note(instance, progress, "data restored", json!({ "volume": restored.volume() })).await
    }

    /// Writes down that the archive is no good, and the volume has the data still.
    ///
    /// # Errors
    /// As for [`Manifest::advance`].
    pub async fn archive_lost(&self, instance: &Instance) -> Result<Instance, ManifestError> {
        let file = instance.archive.as_ref().map(|archive| archive.file.clone());
        let progress = Progress { archive: Some(None), ..Progress::default() };
        self.note(instance, progress, "archive lost", json!({ "file": file })).await
    }

    /// Writes down that a step did not work out, and when it is tried again. The phase stays.
    ///
    /// # Errors
    /// As for [`Manifest::advance`].
    pub async fn postpone(
        &self,
        instance: &Instance,
        error: &str,
        next_attempt_at: DateTime<Utc>,
    ) -> Result<Instance, ManifestError> {
        let progress = Progress {
            attempts: Some(instance.attempts.saturating_add(1)),
            next_attempt_at: Some(Some(next_attempt_at)),
            last_error: Some(Some(error.to_owned())),
            ..Progress::default()
        };
        self.note(instance, progress, "postponed", json!({ "error": error, "phase": instance.phase.as_str() })).await
    }

    /// Removes the row of an instance whose data is gone. Only its events stay.
    ///
    /// # Errors
    /// As for [`Manifest::advance`].
    pub async fn purged(&self, instance: &Instance) -> Result<(), ManifestError> {
        self.run(async |conn| {
            conn.transaction::<_, ManifestError, _>(async |conn| {
                // Before the row that it takes the names from is gone.
                events::append(conn, &self.cause, instance.id, "purged", json!({})).await?;
                let gone = diesel::delete(instances::table)
                    .filter(instances::id.eq(instance.id))
                    .filter(instances::desired.eq(Desired::Purged.as_str()))
                    .filter(instances::phase.eq(Phase::Deleted.as_str()))
                    .execute(conn)
                    .await?;
                if gone == 0 {
                    return Err(ManifestError::Stale);
                }
                // Nobody else tells those who wait for it: its row is gone.
                diesel::sql_query("SELECT pg_notify('haas', 'progress ' || $1::text)")
                    .bind::<diesel::sql_types::Uuid, _>(instance.id)
                    .execute(conn)
                    .await?;
                Ok(())
            })
            .await
        })
        .await
    }

    /// Writes something down that happened without a change of phase.
    async fn note(
        &self,
        instance: &Instance,
        progress: Progress,
        kind: &str,
        detail: Value,
    ) -> Result<Instance, ManifestError> {
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async move |conn| {
                let row = compare_and_set(conn, instance, progress).await?;
                events::append(conn, &self.cause, instance.id, kind, detail).await?;
                row.try_into()
            })
            .await
        })
        .await
    }

    /// Enters `Failed`, to be tried again at `next_attempt_at`. Of the log its end is kept.
    ///
    /// # Errors
    /// As for [`Manifest::advance`].
    pub async fn fail(
        &self,
        instance: &Instance,
        error: &str,
        last_log: Option<String>,
        next_attempt_at: DateTime<Utc>,
    ) -> Result<Instance, ManifestError> {
        let mut progress = Progress {
            attempts: Some(instance.attempts.saturating_add(1)),
            next_attempt_at: Some(Some(next_attempt_at)),
            last_error: Some(Some(error.to_owned())),
            ..Progress::default()
        };
        let mut along = Along { log: last_log.map_or(LastLog::Forgotten, LastLog::Is), ..Along::default() };
        let mut detail = json!({ "error": error });
        if let Some(spec) = instance.next_spec.as_deref().filter(|_| instance.rolling) {
            // What it was made of before is known to work: at once.
            progress.next_attempt_at = Some(Some(Utc::now()));
            (progress.next_spec, progress.rolling) = (Some(None), Some(false));
            // One that was in trouble before, or is made anew of the same, says nothing about what it is made of.
            let other = instance.next_spec != instance.spec;
            if other && instance.attempts == 0 && matches!(instance.phase, Phase::Starting | Phase::Ready) {
                detail = json!({ "error": error, "rolled back from": spec });
                along.halted = Some(json!(spec));
            }
        }
        self.enter_along(instance, Phase::Failed, progress, detail, along).await
    }

    /// Writes down why a step did not work out in a phase that can't become `Failed`: what is
    /// running, or on its way out, stays so.
    ///
    /// # Errors
    /// As for [`Manifest::advance`].
    pub async fn note_error(&self, instance: &Instance, error: &str) -> Result<(), ManifestError> {
        self.run(async |conn| {
            let progress = Progress { last_error: Some(Some(error.to_owned())), ..Progress::default() };
            compare_and_set(conn, instance, progress).await.map(|_| ())
        })
        .await
    }

    /// Gives up an intent that never began to live: it becomes a tombstone that says why.
    ///
    /// # Errors
    /// As for [`Manifest::advance`].
    pub async fn refuse(&self, instance: &Instance, error: &str) -> Result<Instance, ManifestError> {
        let progress = Progress {
            desired: Some(Desired::Deleted.as_str()),
            restorable_until: Some(self.policy.with(&instance.overrides()).purge_after.from(Utc::now())),
            last_error: Some(Some(error.to_owned())),
            ..Progress::default()
        };
        self.enter(instance, Phase::Deleted, progress, json!({ "refused": error })).await
    }

    /// Takes another port, because something else on the host holds this one. The phase stays.
    ///
    /// # Errors
    /// [`ManifestError::NoFreePort`]; otherwise as for [`Manifest::advance`].
    pub async fn move_port(&self, instance: &Instance) -> Result<Instance, ManifestError> {
        let range = self.ports;
        let occupied_before = self.occupied_before();
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async |conn| {
                super::intents::lock_intents(conn).await?;
                if let Some(port) = instance.port {
                    ports::withhold(conn, port, true).await?;
                }
                let port = ports::lowest_free(conn, range, &self.own_ports, occupied_before).await?;
                let progress = Progress { port: Some(Some(port)), ..Progress::default() };
                let row = compare_and_set(conn, instance, progress).await?;
                let detail = json!({ "occupied": instance.port, "port": port });
                events::append(conn, &self.cause, instance.id, "port moved", detail).await?;
                row.try_into()
            })
            .await
        })
        .await
    }

    /// Remembers that the data of an earlier life was found.
    ///
    /// # Errors
    /// As for [`Manifest::advance`].
    pub async fn restored(&self, instance: &Instance) -> Result<Instance, ManifestError> {
        let progress = Progress { restored: Some(true), ..Progress::default() };
        self.note(instance, progress, "data restored", json!({})).await
    }

    async fn enter(
        &self,
        instance: &Instance,
        phase: Phase,
        progress: Progress,
        detail: Value,
    ) -> Result<Instance, ManifestError> {
        self.enter_along(instance, phase, progress, detail, Along::default()).await
    }

    async fn enter_along(
        &self,
        instance: &Instance,
        phase: Phase,
        mut progress: Progress,
        mut detail: Value,
        along: Along,
    ) -> Result<Instance, ManifestError> {
        if !instance.phase.may_become(phase) {
            return Err(ManifestError::IllegalTransition { from: instance.phase, to: phase });
        }
        let refused = progress.desired.is_some();
        progress.phase = Some(phase.as_str());
        progress.phase_since = Some(Utc::now());
        if let Some(fields) = detail.as_object_mut() {
            fields.insert("from".to_owned(), json!(instance.phase.as_str()));
            fields.insert("generation".to_owned(), json!(instance.generation));
        }
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async |conn| {
                if matches!(phase, Phase::Archived | Phase::Deleted) {
                    if !refused && !is_still_desired(conn, instance).await? {
                        // It is wanted again, and needs what is given back here.
                        return Err(ManifestError::Stale);
                    }
                    progress.port = Some(None);
                    progress.observed_generation = Some(instance.generation);
                    progress.next_attempt_at = Some(None);
                    if let Some(port) = instance.port {
                        ports::withhold(conn, port, false).await?;
                    }
                }
                let mut row = compare_and_set(conn, instance, progress).await?;
                if phase == Phase::Pending && row.rolling != row.next_spec.is_some() {
                    // What it is made of from here on: as the row says now, not as it was read.
                    row = diesel::update(instances::table.find(instance.id))
                        .set(instances::rolling.eq(instances::next_spec.is_not_null()))
                        .returning(InstanceRow::as_returning())
                        .get_result(conn)
                        .await?;
                }
                let outcome = match phase {
                    _ if refused => Outcome::Refused,
                    Phase::Failed => Outcome::Failed,
                    _ => Outcome::Done,
                };
                events::append_outcome(conn, &self.cause, instance.id, phase.as_str(), detail, outcome).await?;
                along.log.write(conn, instance.id).await?;
                if let Some(spec) = along.halted {
                    roll::halt(conn, &spec, instance.id).await?;
                }
                row.try_into()
            })
            .await
        })
        .await
    }
}

async fn compare_and_set(
    conn: &mut AsyncPgConnection,
    instance: &Instance,
    progress: Progress,
) -> Result<InstanceRow, ManifestError> {
    let last_error = progress.last_error.map(|error| error.map(|text| bounded(&text, ERROR_MAX)));
    diesel::update(instances::table)
        .filter(instances::id.eq(instance.id))
        .filter(instances::generation.eq(instance.generation))
        .filter(instances::phase.eq(instance.phase.as_str()))
        .set(Progress { updated_at: Some(Utc::now()), last_error, ..progress })
        .returning(InstanceRow::as_returning())
        .get_result(conn)
        .await
        .optional()?
        .ok_or(ManifestError::Stale)
}

/// Whether the row asks for what was read; from here on it is locked.
async fn is_still_desired(conn: &mut AsyncPgConnection, instance: &Instance) -> Result<bool, ManifestError> {
    let same: Option<Uuid> = instances::table
        .filter(instances::id.eq(instance.id))
        .filter(instances::desired.eq(instance.desired.as_str()))
        .select(instances::id)
        .for_update()
        .first(conn)
        .await
        .optional()?;
    Ok(same.is_some())
}
