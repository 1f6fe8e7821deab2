//! What handlers and commands write: intent, in one transaction, and nothing else.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use serde_json::json;
use uuid::Uuid;

use super::rows::InstanceRow;
use super::schema::instances;
use super::{Manifest, ManifestError, events, hosts, names, ports};
use crate::instance::name::{AppName, Email, Username};
use crate::instance::{Desired, Instance, Phase};

/// Held by a transaction that takes a port or a name, so that two never choose the same.
const INTENT_LOCK: i64 = 0x6861_6173_0002;

/// What a caller of /provision asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewInstance {
    /// Whose it is to be.
    pub username: Username,
    /// Which app it is to serve.
    pub appname: AppName,
    /// Where the owner gets mail.
    pub email: Email,
}

/// What a request to provision came upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provisioned {
    /// The row as it stands now.
    pub instance: Instance,
    /// Whether this request is what made it, or brought it back.
    pub new: bool,
}

impl Manifest {
    /// Writes that an instance should run. Asking again changes nothing but the email.
    ///
    /// # Errors
    /// [`ManifestError::NameTaken`], [`ManifestError::HostTooLong`] and
    /// [`ManifestError::NoFreePort`] change nothing; others when Postgres can't be asked.
    pub async fn provision(&self, new: &NewInstance) -> Result<Provisioned, ManifestError> {
        let (container, host) = names(self, new)?;
        let occupied_before = self.occupied_before();
        let range = self.ports;
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async |conn| {
                lock_intents(conn).await?;
                let Some(row) = latest(conn, &new.username, &new.appname).await? else {
                    let port = ports::lowest_free(conn, range, &self.own_ports, occupied_before).await?;
                    // Everything else is as the table's own defaults have it.
                    let row: InstanceRow = diesel::insert_into(instances::table)
                        .values((
                            instances::id.eq(Uuid::new_v4()),
                            instances::username.eq(new.username.as_str()),
                            instances::appname.eq(new.appname.as_str()),
                            instances::email.eq(new.email.as_str()),
                            instances::host.eq(host.as_str()),
                            instances::container_name.eq(container.as_str()),
                            instances::port.eq(port),
                            instances::desired.eq(Desired::Running.as_str()),
                            instances::phase.eq(Phase::Pending.as_str()),
                        ))
                        .returning(InstanceRow::as_returning())
                        .get_result(conn)
                        .await
                        .map_err(name_taken)?;
                    events::append(conn, row.id, "provisioned", json!({ "port": port })).await?;
                    return Ok(Provisioned { instance: row.try_into()?, new: true });
                };
                let mut instance = Instance::try_from(row)?;
                if instance.email != new.email {
                    instance = update_email(conn, &instance, &new.email).await?;
                }
                if instance.desired == Desired::Running {
                    return Ok(Provisioned { instance, new: false });
                }
                let port = match instance.port {
                    Some(port) => i32::from(port),
                    None => ports::lowest_free(conn, range, &self.own_ports, occupied_before).await?,
                };
                // A tombstone starts again at once; what is still on its way out is turned
                // round by the reconciler, which owns the phase.
                let phase = if instance.live() { instance.phase } else { Phase::Pending };
                let extra_hosts = hosts::still_free(conn, &instance, &host, &self.domain).await?;
                let row: InstanceRow = diesel::update(instances::table.find(instance.id))
                    .set((
                        instances::desired.eq(Desired::Running.as_str()),
                        instances::phase.eq(phase.as_str()),
                        instances::phase_since.eq(diesel::dsl::now),
                        instances::generation.eq(instances::generation + 1),
                        instances::port.eq(port),
                        instances::host.eq(host.as_str()),
                        instances::extra_hosts.eq(extra_hosts),
                        instances::attempts.eq(0),
                        instances::next_attempt_at.eq(None::<DateTime<Utc>>),
                        instances::last_error.eq(None::<String>),
                        instances::last_log.eq(None::<String>),
                        instances::restored.eq(false),
                        instances::ready_at.eq(None::<DateTime<Utc>>),
                        instances::updated_at.eq(diesel::dsl::now),
                    ))
                    .returning(InstanceRow::as_returning())
                    .get_result(conn)
                    .await
                    .map_err(name_taken)?;
                events::append(conn, row.id, "provisioned", json!({ "port": port, "again": true })).await?;
                Ok(Provisioned { instance: row.try_into()?, new: true })
            })
            .await
        })
        .await
    }

    /// Writes that an instance should be gone, and returns its row; `None` if there never was
    /// one. Asking again changes nothing.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn deprovision(&self, username: &Username, appname: &AppName) -> Result<Option<Instance>, ManifestError> {
        self.run(async |conn| {
            conn.transaction::<_, ManifestError, _>(async |conn| {
                lock_intents(conn).await?;
                let Some(row) = latest(conn, username, appname).await? else { return Ok(None) };
                let instance = Instance::try_from(row)?;
                if instance.desired == Desired::Deleted {
                    return Ok(Some(instance));
                }
                let row: InstanceRow = diesel::update(instances::table.find(instance.id))
                    .set((
                        instances::desired.eq(Desired::Deleted.as_str()),
                        instances::generation.eq(instances::generation + 1),
                        instances::attempts.eq(0),
                        instances::next_attempt_at.eq(None::<DateTime<Utc>>),
                        instances::last_error.eq(None::<String>),
                        instances::updated_at.eq(diesel::dsl::now),
                    ))
                    .returning(InstanceRow::as_returning())
                    .get_result(conn)
                    .await?;
                events::append(conn, row.id, "deprovisioned", json!({})).await?;
                Ok(Some(row.try_into()?))
            })
            .await
        })
        .await
    }
}

pub(super) async fn lock_intents(conn: &mut AsyncPgConnection) -> Result<(), ManifestError> {
    diesel::sql_query("SELECT pg_advisory_xact_lock($1)")
        .bind::<diesel::sql_types::BigInt, _>(INTENT_LOCK)
        .execute(conn)
        .await?;
    Ok(())
}

/// The pair's row. There is one at most, since a tombstone is brought back to life.
pub(super) async fn latest(
    conn: &mut AsyncPgConnection,
    username: &Username,
    appname: &AppName,
) -> Result<Option<InstanceRow>, ManifestError> {
    Ok(instances::table
        .filter(instances::username.eq(username.as_str()))
        .filter(instances::appname.eq(appname.as_str()))
        .order(instances::created_at.desc())
        .select(InstanceRow::as_select())
        .for_update()
        .first(conn)
        .await
        .optional()?)
}

async fn update_email(
    conn: &mut AsyncPgConnection,
    instance: &Instance,
    email: &Email,
) -> Result<Instance, ManifestError> {
    let row: InstanceRow = diesel::update(instances::table.find(instance.id))
        .set((instances::email.eq(email.as_str()), instances::updated_at.eq(diesel::dsl::now)))
        .returning(InstanceRow::as_returning())
        .get_result(conn)
        .await?;
    events::append(conn, row.id, "email changed", json!({})).await?;
    row.try_into()
}

/// A name's uniqueness is the database's to say; the caller learns which name, not whose it is.
pub(super) fn name_taken(error: DieselError) -> ManifestError {
    if let DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, info) = &error {
        match info.constraint_name() {
            Some("instances_container_live") => return ManifestError::NameTaken("of the container".to_owned()),
            Some("hosts_pkey") => return ManifestError::NameTaken("of the host".to_owned()),
            _ => {}
        }
    }
    error.into()
}
