//! What the reconciler writes: how far an instance has come. Each write is a compare-and-set
//! on (id, generation, phase), with its event in the same transaction; a stale writer gets
//! [`ManifestError::Stale`] and nothing is lost.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use serde_json::{Value, json};

use super::rows::{InstanceRow, Progress};
use super::schema::instances;
use super::{Manifest, ManifestError, events, ports};
use crate::instance::{Desired, Instance, Phase};

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
            last_log: Some(None),
            ..Progress::default()
        };
        self.enter(instance, phase, progress, json!({})).await
    }

    /// Enters `Running`: its Hoodie was seen to answer through HAProxy.
    ///
    /// # Errors
    /// As for [`Manifest::advance`].
    pub async fn running(&self, instance: &Instance) -> Result<Instance, ManifestError> {
        let progress = Progress { observed_generation: Some(instance.generation), ..Progress::default() };
        self.enter(instance, Phase::Running, progress, json!({})).await
    }

    /// Enters `Failed`, to be tried again at `next_attempt_at`.
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
        let progress = Progress {
            attempts: Some(instance.attempts.saturating_add(1)),
            next_attempt_at: Some(Some(next_attempt_at)),
            last_error: Some(Some(error.to_owned())),
            last_log: Some(last_log),
            ..Progress::default()
        };
        self.enter(instance, Phase::Failed, progress, json!({ "error": error })).await
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
                events::append(conn, instance.id, "port moved", detail).await?;
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
        self.run(async |conn| {
            conn.transaction::<_, ManifestError, _>(async |conn| {
                let progress = Progress { restored: Some(true), ..Progress::default() };
                let row = compare_and_set(conn, instance, progress).await?;
                events::append(conn, instance.id, "data restored", json!({})).await?;
                row.try_into()
            })
            .await
        })
        .await
    }

    async fn enter(
        &self,
        instance: &Instance,
        phase: Phase,
        mut progress: Progress,
        mut detail: Value,
    ) -> Result<Instance, ManifestError> {
        if !instance.phase.may_become(phase) {
            return Err(ManifestError::IllegalTransition { from: instance.phase, to: phase });
        }
        progress.phase = Some(phase.as_str());
        progress.phase_since = Some(Utc::now());
        if let Some(fields) = detail.as_object_mut() {
            fields.insert("from".to_owned(), json!(instance.phase.as_str()));
            fields.insert("generation".to_owned(), json!(instance.generation));
        }
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async |conn| {
                if phase == Phase::Deleted {
                    progress.port = Some(None);
                    progress.observed_generation = Some(instance.generation);
                    progress.next_attempt_at = Some(None);
                    if let Some(port) = instance.port {
                        ports::withhold(conn, port, false).await?;
                    }
                }
                let row = compare_and_set(conn, instance, progress).await?;
                events::append(conn, instance.id, phase.as_str(), detail).await?;
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
    diesel::update(instances::table)
        .filter(instances::id.eq(instance.id))
        .filter(instances::generation.eq(instance.generation))
        .filter(instances::phase.eq(instance.phase.as_str()))
        .set(Progress { updated_at: Some(Utc::now()), ..progress })
        .returning(InstanceRow::as_returning())
        .get_result(conn)
        .await
        .optional()?
        .ok_or(ManifestError::Stale)
}
