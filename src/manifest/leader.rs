//! One actor: the server that holds a session advisory lock acts, others stand by; and nudges
//! that cross processes.

use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{Manifest, ManifestError};

/// Held by the one server whose reconciler acts. Its key is database-wide, as is the manifest.
const LEADER_LOCK: i64 = 0x6861_6173_0003;

/// How long a lost connection may go unnoticed.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A change of the manifest, by whichever process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nudge {
    /// Somebody wants something else.
    Intent(Uuid),
    /// The reconciler has come further.
    Progress(Uuid),
    /// Something may have changed for many.
    Look,
}

impl Nudge {
    fn parse(payload: &str) -> Option<Self> {
        if payload == "look" {
            return Some(Self::Look);
        }
        let (kind, id) = payload.split_once(' ')?;
        let id = id.parse().ok()?;
        match kind {
            "intent" => Some(Self::Intent(id)),
            "progress" => Some(Self::Progress(id)),
            _ => None,
        }
    }
}

#[derive(QueryableByName)]
struct Granted {
    #[diesel(sql_type = Bool)]
    granted: bool,
}

/// The proof that this process is the one actor, for as long as [`Leader::hold`] has not
/// returned. The lock goes with the connection.
pub struct Leader {
    conn: AsyncPgConnection,
}

impl Leader {
    /// Tries to become the one actor; `None` while another is.
    ///
    /// # Errors
    /// [`ManifestError::Unavailable`] when Postgres can't be reached.
    pub async fn try_acquire(database_url: &str) -> Result<Option<Self>, ManifestError> {
        let mut conn = connect(database_url).await?;
        let asking = async {
            // A machine that dies takes no leave: Postgres must notice, and let another act.
            let keepalive =
                "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3";
            conn.batch_execute(keepalive).await?;
            diesel::sql_query("SELECT pg_try_advisory_lock($1) AS granted")
                .bind::<BigInt, _>(LEADER_LOCK)
                .get_result(&mut conn)
                .await
        };
        let Granted { granted } = in_time(asking).await?;
        Ok(granted.then_some(Self { conn }))
    }

    /// Returns when the lock may be lost: stop acting then.
    pub async fn hold(mut self) -> ManifestError {
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            if let Err(error) = heartbeat(&mut self.conn).await {
                return error;
            }
        }
    }
}

/// Calls `on_nudge` for each change of the manifest until the connection is lost. Changes made
/// before `on_ready` was called are not reported.
///
/// # Errors
/// Always ends with [`ManifestError::Unavailable`], since only a lost connection ends it.
pub async fn watch(
    database_url: &str,
    on_ready: impl FnOnce(),
    mut on_nudge: impl FnMut(Nudge),
) -> Result<std::convert::Infallible, ManifestError> {
    let mut conn = connect(database_url).await?;
    in_time(diesel::sql_query("LISTEN haas").execute(&mut conn)).await?;
    on_ready();
    loop {
        let next_heartbeat = Instant::now() + HEARTBEAT;
        {
            let mut notifications = std::pin::pin!(conn.notifications_stream());
            while let Ok(notification) = tokio::time::timeout_at(next_heartbeat, notifications.next()).await {
                match notification {
                    Some(Ok(notification)) => {
                        if let Some(nudge) = Nudge::parse(&notification.payload) {
                            on_nudge(nudge);
                        }
                    }
                    Some(Err(error)) => return Err(ManifestError::Unavailable(error.to_string())),
                    None => return Err(ManifestError::Unavailable("the connection was closed".to_owned())),
                }
            }
        }
        heartbeat(&mut conn).await?;
    }
}

impl Manifest {
    /// Whether some server is the one actor now.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn has_leader(&self) -> Result<bool, ManifestError> {
        self.run(async |conn| {
            // A 64-bit key shows in pg_locks as its two halves (PostgreSQL manual, pg_locks).
            let Granted { granted } = diesel::sql_query(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
                   AND granted AND (classid::bigint << 32 | objid::bigint) = $1
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS granted",
            )
            .bind::<BigInt, _>(LEADER_LOCK)
            .get_result(conn)
            .await?;
            Ok(granted)
        })
        .await
    }
}

async fn connect(database_url: &str) -> Result<AsyncPgConnection, ManifestError> {
    let unavailable = |why: String| ManifestError::Unavailable(why);
    timeout(3 * HEARTBEAT, AsyncPgConnection::establish(database_url))
        .await
        .map_err(|_| unavailable("no connection in time".to_owned()))?
        .map_err(|error| unavailable(error.to_string()))
}

async fn heartbeat(conn: &mut AsyncPgConnection) -> Result<(), ManifestError> {
    in_time(diesel::sql_query("SELECT 1").execute(conn)).await.map(|_| ())
}

/// Whatever goes wrong on these connections: they can't be relied on any more.
async fn in_time<T>(answer: impl Future<Output = diesel::QueryResult<T>>) -> Result<T, ManifestError> {
    timeout(3 * HEARTBEAT, answer)
        .await
        .map_err(|_| ManifestError::Unavailable("no answer in time".to_owned()))?
        .map_err(|error| ManifestError::Unavailable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_what_the_trigger_sends() {
        let id = Uuid::from_u128(7);
        assert_eq!(Nudge::parse(&format!("intent {id}")), Some(Nudge::Intent(id)));
        assert_eq!(Nudge::parse(&format!("progress {id}")), Some(Nudge::Progress(id)));
        assert_eq!(Nudge::parse("look"), Some(Nudge::Look));
        for bad in ["", "intent", "intent x", "hello 1"] {
            assert_eq!(Nudge::parse(bad), None);
        }
    }
}
