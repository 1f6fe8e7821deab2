//! Which loopback port is whose.
//!
//! A port belongs to the row that has it. It is withheld while something else on the host
//! holds it, or while an old HAProxy worker may still route some host to it.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Integer, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::schema::{instances, withheld_ports};
use super::{Manifest, ManifestError};
use crate::config::PortRange;

const OCCUPIED: &str = "occupied";
const DRAINING: &str = "draining";
/// A port rests so long after it was given back: a request that HAProxy tries again and again,
/// because its app refuses connections, may for some seconds reach whoever listens there next.
/// The template's `retries` and `timeout connect` make that four seconds, up to eight.
const REST: TimeDelta = TimeDelta::seconds(15);

/// A port that is not given out at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithheldPort {
    /// The port.
    pub port: u16,
    /// Whether something else on the host held it, rather than an old HAProxy worker.
    pub occupied: bool,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// How the range is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortUse {
    /// Ports in the range.
    pub total: usize,
    /// Ports that instances have.
    pub taken: usize,
    /// Ports that are not given out at the moment.
    pub withheld: Vec<WithheldPort>,
}

#[derive(QueryableByName)]
struct FreePort {
    #[diesel(sql_type = Integer)]
    port: i32,
}

/// The lowest port that nobody has and that isn't withheld. The caller holds the intent lock.
pub(super) async fn lowest_free(
    conn: &mut AsyncPgConnection,
    range: PortRange,
    own_ports: &[i32],
    occupied_before: DateTime<Utc>,
) -> Result<i32, ManifestError> {
    let free: Option<FreePort> = diesel::sql_query(
        "SELECT candidate AS port FROM generate_series($1, $2) AS candidate
         WHERE candidate <> ALL ($4)
           AND NOT EXISTS (SELECT FROM instances WHERE port = candidate)
           AND NOT EXISTS (SELECT FROM withheld_ports
                           WHERE port = candidate AND (reason = 'draining' OR since > $3))
         ORDER BY candidate LIMIT 1",
    )
    .bind::<Integer, _>(i32::from(range.first))
    .bind::<Integer, _>(i32::from(range.last))
    .bind::<Timestamptz, _>(occupied_before)
    .bind::<diesel::sql_types::Array<Integer>, _>(own_ports)
    .get_result(conn)
    .await
    .optional()?;
    free.map(|free| free.port).ok_or(ManifestError::NoFreePort)
}

/// Withholds a port that an instance gives back.
pub(super) async fn withhold(
    conn: &mut AsyncPgConnection,
    port: u16,
    occupied: bool,
) -> Result<(), diesel::result::Error> {
    let reason = if occupied { OCCUPIED } else { DRAINING };
    // Compared with when HAProxy's workers started: by this machine's clock, not the database's.
    let since = Utc::now();
    diesel::insert_into(withheld_ports::table)
        .values((
            withheld_ports::port.eq(i32::from(port)),
            withheld_ports::reason.eq(reason),
            withheld_ports::since.eq(since),
        ))
        .on_conflict(withheld_ports::port)
        .do_update()
        .set((withheld_ports::reason.eq(reason), withheld_ports::since.eq(since)))
        .execute(conn)
        .await?;
    Ok(())
}

impl Manifest {
    /// A port that something else held before this time is worth another try.
    pub(super) fn occupied_before(&self) -> DateTime<Utc> {
        let retry_after = chrono::Duration::from_std(self.port_retry_after).unwrap_or(chrono::Duration::MAX);
        Utc::now().checked_sub_signed(retry_after).unwrap_or(DateTime::<Utc>::MIN_UTC)
    }

    /// Frees the ports that no HAProxy worker can route to any more: those given back before
    /// the oldest worker that is on its way out had started, or all when there is none. Each
    /// rests for some seconds in any case, for the requests that are still being retried.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn free_drained_ports(
        &self,
        oldest_leaving_worker: Option<DateTime<Utc>>,
    ) -> Result<usize, ManifestError> {
        let before = oldest_leaving_worker.unwrap_or(DateTime::<Utc>::MAX_UTC).min(Utc::now() - REST);
        self.run(async move |conn| {
            Ok(diesel::delete(withheld_ports::table)
                .filter(withheld_ports::reason.eq(DRAINING))
                .filter(withheld_ports::since.lt(before))
                .execute(conn)
                .await?)
        })
        .await
    }

    /// Whether any port waits for old workers.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn has_draining_ports(&self) -> Result<bool, ManifestError> {
        self.run(async move |conn| {
            Ok(diesel::select(diesel::dsl::exists(withheld_ports::table.filter(withheld_ports::reason.eq(DRAINING))))
                .get_result(conn)
                .await?)
        })
        .await
    }

    /// How the port range is used.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn port_use(&self) -> Result<PortUse, ManifestError> {
        let (range, occupied_before) = (self.ports, self.occupied_before());
        self.run(async move |conn| {
            let (first, last) = (i32::from(range.first), i32::from(range.last));
            let taken: i64 =
                instances::table.filter(instances::port.between(first, last)).count().get_result(conn).await?;
            let withheld: Vec<(i32, String, DateTime<Utc>)> = withheld_ports::table
                .filter(withheld_ports::port.between(first, last))
                .filter(withheld_ports::reason.eq(DRAINING).or(withheld_ports::since.gt(occupied_before)))
                .filter(diesel::dsl::not(diesel::dsl::exists(
                    instances::table.filter(instances::port.eq(withheld_ports::port.nullable())),
                )))
                .order(withheld_ports::port)
                .load(conn)
                .await?;
            Ok(PortUse {
                total: usize::from(range.last - range.first) + 1,
                taken: usize::try_from(taken).unwrap_or_default(),
                withheld: withheld
                    .into_iter()
                    .filter_map(|(port, reason, since)| {
                        let port = u16::try_from(port).ok()?;
                        Some(WithheldPort { port, occupied: reason == OCCUPIED, since })
                    })
                    .collect(),
            })
        })
        .await
    }
}
