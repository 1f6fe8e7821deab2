//! What owners are told: before something happens to their data, and when it takes more of the disk than
//! it may. Until it was delivered.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::rows::InstanceRow;
use super::schema::{instances, notices};
use super::{Manifest, ManifestError};
use crate::bounded::{ERROR_MAX, bounded};
use crate::instance::Instance;
use crate::instance::policy::Descent;

/// One notice.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = notices, check_for_backend(diesel::pg::Pg))]
pub struct Notice {
    /// Stays the same however often it is delivered.
    pub id: Uuid,
    /// What it is about.
    pub kind: String,
    /// When that happens, at the earliest.
    pub due_at: DateTime<Utc>,
    /// When it was decided.
    pub created_at: DateTime<Utc>,
    /// How often it was tried.
    pub attempts: i32,
}

/// What owners are told, or will be.
#[derive(Debug, Clone, Default)]
pub struct Announced(HashMap<(Uuid, String), Told>);

/// What an owner was told, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    due: DateTime<Utc>,
    delivered: Option<DateTime<Utc>>,
}

impl Announced {
    /// The notice of a step, if there is one.
    #[must_use]
    pub fn of(&self, instance: Uuid, step: Descent) -> Option<Told> {
        self.0.get(&(instance, step.to_string())).copied()
    }
}

impl Told {
    /// The moment before which it does not happen; none while the notice is not delivered. However late
    /// that was, and whatever became of the policy since, its owner has the whole time of a notice.
    #[must_use]
    pub fn promised(&self, notice_before: Duration) -> Option<DateTime<Utc>> {
        let time = TimeDelta::from_std(notice_before).unwrap_or(TimeDelta::MAX);
        let over = self.delivered?.checked_add_signed(time).unwrap_or(DateTime::<Utc>::MAX_UTC);
        Some(over.max(self.due))
    }
}

/// A notice, and the instance that it is about.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What is told.
    pub notice: Notice,
    /// Of whom.
    pub instance: Instance,
}

/// Forgets what an owner was told of a step, or was to be told.
pub(super) async fn forget(conn: &mut AsyncPgConnection, instance: Uuid, step: Descent) -> Result<(), ManifestError> {
    diesel::delete(notices::table)
        .filter(notices::instance_id.eq(instance))
        .filter(notices::kind.eq(step.to_string()))
        .execute(conn)
        .await?;
    Ok(())
}

impl Manifest {
    /// Writes that an owner is to be told of a step; once for each stay in a phase.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn announce(
        &self,
        instance: &Instance,
        step: Descent,
        due_at: DateTime<Utc>,
    ) -> Result<(), ManifestError> {
        self.run(async |conn| {
            diesel::insert_into(notices::table)
                .values((
                    notices::instance_id.eq(instance.id),
                    notices::kind.eq(step.to_string()),
                    notices::stay.eq(instance.phase_since),
                    notices::due_at.eq(due_at),
                ))
                .on_conflict_do_nothing()
                .execute(conn)
                .await?;
            Ok(())
        })
        .await
    }

    /// Which notices of the present stays there are.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn announced(&self) -> Result<Announced, ManifestError> {
        self.run(async |conn| {
            type Row = (Uuid, String, DateTime<Utc>, Option<DateTime<Utc>>);
            let all: Vec<Row> = notices::table
                .inner_join(instances::table.on(instances::id.eq(notices::instance_id)))
                .filter(instances::phase_since.eq(notices::stay))
                .select((notices::instance_id, notices::kind, notices::due_at, notices::delivered_at))
                .load(conn)
                .await?;
            let told = |(id, kind, due, delivered): Row| ((id, kind), Told { due, delivered });
            Ok(Announced(all.into_iter().map(told).collect()))
        })
        .await
    }

    /// Notices to be delivered now. Those whose reason has gone are forgotten.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn undelivered(&self, now: DateTime<Utc>) -> Result<Vec<Delivery>, ManifestError> {
        self.run(async move |conn| {
            diesel::sql_query(
                "DELETE FROM notices USING instances WHERE instances.id = instance_id
                   AND CASE kind WHEN 'storage-full'
                       THEN storage_full IS NULL OR (storage_full->>'since')::timestamptz <> stay
                       ELSE phase_since <> stay END",
            )
            .execute(conn)
            .await?;
            let due: Vec<(Notice, InstanceRow)> = notices::table
                .inner_join(instances::table.on(instances::id.eq(notices::instance_id)))
                .filter(notices::delivered_at.is_null())
                .filter(notices::next_attempt_at.le(now))
                .order(notices::next_attempt_at)
                .limit(100)
                .select((Notice::as_select(), InstanceRow::as_select()))
                .load(conn)
                .await?;
            Ok(due
                .into_iter()
                .filter_map(|(notice, row)| Some(Delivery { notice, instance: Instance::try_from(row).ok()? }))
                .collect())
        })
        .await
    }

    /// Writes down that a notice was taken.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn notice_delivered(&self, id: Uuid) -> Result<(), ManifestError> {
        self.run(async move |conn| {
            diesel::update(notices::table.find(id))
                .set((
                    notices::delivered_at.eq(Utc::now()),
                    notices::attempts.eq(notices::attempts + 1),
                    notices::last_error.eq(None::<String>),
                ))
                .execute(conn)
                .await?;
            Ok(())
        })
        .await
    }

    /// Writes down that a notice was not taken, and when it is tried again.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn notice_failed(&self, id: Uuid, error: &str, next: DateTime<Utc>) -> Result<(), ManifestError> {
        self.run(async move |conn| {
            diesel::update(notices::table.find(id))
                .set((
                    notices::next_attempt_at.eq(next),
                    notices::attempts.eq(notices::attempts + 1),
                    notices::last_error.eq(bounded(error, ERROR_MAX)),
                ))
                .execute(conn)
                .await?;
            Ok(())
        })
        .await
    }
}
