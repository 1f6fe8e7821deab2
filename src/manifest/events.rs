//! The append-only record of what happened. Each entry is written in the transaction of the
//! change that it tells of.

use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde_json::Value;
use uuid::Uuid;

use super::rows::Event;
use super::schema::events;
use super::{Manifest, ManifestError};

/// Appends one entry.
pub(super) async fn append(
    conn: &mut AsyncPgConnection,
    instance: Uuid,
    kind: &str,
    detail: Value,
) -> Result<(), diesel::result::Error> {
    diesel::insert_into(events::table)
        .values((events::instance_id.eq(instance), events::kind.eq(kind), events::detail.eq(detail)))
        .execute(conn)
        .await?;
    Ok(())
}

impl Manifest {
    /// An instance's latest entries, newest first.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn events(&self, instance: Uuid, limit: i64) -> Result<Vec<Event>, ManifestError> {
        self.run(async move |conn| {
            Ok(events::table
                .filter(events::instance_id.eq(instance))
                .order(events::id.desc())
                .limit(limit)
                .select(Event::as_select())
                .load(conn)
                .await?)
        })
        .await
    }
}
