//! A new image or new limits on their way to the instances that are there.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Jsonb, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use serde_json::{Value, json};
use uuid::Uuid;

use super::intents::lock_intents;
use super::schema::instances;
use super::{Manifest, ManifestError, events};
use crate::instance::spec::Spec;
use crate::instance::{Desired, Instance, Phase};

/// How far a roll has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, QueryableByName, serde::Serialize)]
pub struct RollStatus {
    /// Made of it.
    #[diesel(sql_type = BigInt)]
    pub done: i64,
    /// Being made anew right now.
    #[diesel(sql_type = BigInt)]
    pub under_way: i64,
    /// Awake, and waiting for a moment when nobody uses them.
    #[diesel(sql_type = BigInt)]
    pub waiting: i64,
    /// At rest: made of it at their next wake.
    #[diesel(sql_type = BigInt)]
    pub resting: i64,
    /// Neither made of it nor to be: the roll was halted.
    #[diesel(sql_type = BigInt)]
    pub left_out: i64,
}

impl Manifest {
    /// Writes that every instance that is not gone should be made of this, once nobody uses it.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn start_roll(&self, spec: &Spec) -> Result<RollStatus, ManifestError> {
        #[derive(QueryableByName)]
        struct Changed {
            #[diesel(sql_type = SqlUuid)]
            id: Uuid,
        }
        let wanted = json!(spec);
        self.run(async |conn| {
            conn.transaction::<_, ManifestError, _>(async |conn| {
                lock_intents(conn).await?;
                let changed: Vec<Changed> = diesel::sql_query(
                    "UPDATE instances SET next_spec = CASE WHEN spec IS DISTINCT FROM $1 THEN $1 END, updated_at = now()
                     WHERE desired NOT IN ('deleted', 'purged') AND NOT rolling
                       AND next_spec IS DISTINCT FROM (CASE WHEN spec IS DISTINCT FROM $1 THEN $1 END)
                     RETURNING id",
                )
                .bind::<Jsonb, _>(&wanted)
                .load(conn)
                .await?;
                let details = changed.into_iter().map(|changed| (changed.id, json!({ "to": wanted }))).collect();
                events::append_all(conn, &self.cause, "roll wanted", details).await?;
                diesel::sql_query("NOTIFY haas, 'look'").execute(conn).await?;
                Ok(())
            })
            .await
        })
        .await?;
        self.roll_status(spec).await
    }

    /// How far it has come.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn roll_status(&self, spec: &Spec) -> Result<RollStatus, ManifestError> {
        let wanted = json!(spec);
        self.run(async |conn| {
            let status = diesel::sql_query(
                "SELECT count(*) FILTER (WHERE spec = $1 AND next_spec IS NULL) AS done,
                        count(*) FILTER (WHERE rolling) AS under_way,
                        count(*) FILTER (WHERE NOT rolling AND next_spec = $1 AND desired = 'running') AS waiting,
                        count(*) FILTER (WHERE NOT rolling AND next_spec = $1 AND desired <> 'running') AS resting,
                        count(*) FILTER (WHERE spec IS DISTINCT FROM $1 AND next_spec IS DISTINCT FROM $1) AS left_out
                 FROM instances WHERE desired NOT IN ('deleted', 'purged')",
            )
            .bind::<Jsonb, _>(&wanted)
            .get_result(conn)
            .await?;
            Ok(status)
        })
        .await
    }

    /// Writes that an instance that runs is to be made anew now, of what it is to be rolled to.
    ///
    /// # Errors
    /// [`ManifestError::Stale`] when the row has changed; others when Postgres can't be asked.
    pub async fn roll(&self, instance: &Instance) -> Result<(), ManifestError> {
        self.run(async |conn| {
            let rolled = diesel::update(instances::table)
                .filter(instances::id.eq(instance.id))
                .filter(instances::generation.eq(instance.generation))
                .filter(instances::phase.eq(Phase::Running.as_str()))
                .filter(instances::desired.eq(Desired::Running.as_str()))
                .filter(instances::next_spec.is_not_null())
                .set((instances::rolling.eq(true), instances::updated_at.eq(diesel::dsl::now)))
                .execute(conn)
                .await?;
            if rolled == 0 { Err(ManifestError::Stale) } else { Ok(()) }
        })
        .await
    }

    /// Those whose roll failed since a moment, and why.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn roll_failures(
        &self,
        since: chrono::DateTime<chrono::Utc>,
    ) -> Result<Vec<(String, String)>, ManifestError> {
        #[derive(QueryableByName)]
        struct Failure {
            #[diesel(sql_type = diesel::sql_types::Text)]
            container_name: String,
            #[diesel(sql_type = diesel::sql_types::Text)]
            error: String,
        }
        self.run(async move |conn| {
            let failures: Vec<Failure> = diesel::sql_query(
                "SELECT container_name, detail->>'error' AS error FROM events JOIN instances ON instances.id = instance_id
                 WHERE kind = 'failed' AND detail ? 'rolled back from' AND at >= $1 ORDER BY events.id",
            )
            .bind::<diesel::sql_types::Timestamptz, _>(since)
            .load(conn)
            .await?;
            Ok(failures.into_iter().map(|failure| (failure.container_name, failure.error)).collect())
        })
        .await
    }
}

/// What did not work for one is not tried with the others.
pub(super) async fn halt(conn: &mut AsyncPgConnection, spec: &Value, failed: Uuid) -> Result<(), ManifestError> {
    let halted = diesel::sql_query(
        "WITH halted AS (UPDATE instances SET next_spec = NULL
                         WHERE next_spec = $1 AND NOT rolling AND id <> $2 RETURNING id)
         INSERT INTO events (instance_id, kind, detail, outcome)
         SELECT id, 'roll halted', jsonb_build_object('failed', $2), 'failed' FROM halted",
    )
    .bind::<Jsonb, _>(spec)
    .bind::<SqlUuid, _>(failed)
    .execute(conn)
    .await?;
    if halted > 0 {
        log::error!(instance:% = failed; "the roll is halted: {halted} others stay as they are");
    }
    Ok(())
}
