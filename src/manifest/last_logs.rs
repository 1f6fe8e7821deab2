//! The end of a failed Hoodie's log, apart from its row: rows are read for every request about an app, and this
//! by `haas show` alone.

use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::schema::last_logs;
use super::{Manifest, ManifestError};
use crate::bounded::{LOG_MAX, last};

/// What becomes of the log that is kept.
#[derive(Default)]
pub(super) enum LastLog {
    /// It stays as it is.
    #[default]
    Kept,
    /// It is removed.
    Forgotten,
    /// It is the end of this one.
    Is(String),
}

impl LastLog {
    /// The caller has written the instance's row, and so has its lock.
    pub async fn write(self, conn: &mut AsyncPgConnection, instance: Uuid) -> Result<(), diesel::result::Error> {
        match self {
            Self::Kept => Ok(()),
            Self::Forgotten => forget(conn, instance).await,
            Self::Is(log) => {
                // Postgres can't hold NUL.
                let log = log.replace('\0', "");
                let written = (last_logs::log.eq(last(&log, LOG_MAX)), last_logs::at.eq(diesel::dsl::now));
                diesel::insert_into(last_logs::table)
                    .values((last_logs::instance_id.eq(instance), written))
                    .on_conflict(last_logs::instance_id)
                    .do_update()
                    .set(written)
                    .execute(conn)
                    .await?;
                Ok(())
            }
        }
    }
}

pub(super) async fn forget(conn: &mut AsyncPgConnection, instance: Uuid) -> Result<(), diesel::result::Error> {
    diesel::delete(last_logs::table.find(instance)).execute(conn).await?;
    Ok(())
}

impl Manifest {
    /// The end of what an instance's Hoodie wrote before it failed.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn last_log(&self, instance: Uuid) -> Result<Option<String>, ManifestError> {
        self.run(async move |conn| {
            Ok(last_logs::table.find(instance).select(last_logs::log).first(conn).await.optional()?)
        })
        .await
    }
}
