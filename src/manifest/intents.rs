//! What handlers and commands write: intent, in one transaction, and nothing else.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use serde_json::{Value, json};
use uuid::Uuid;

use super::rows::InstanceRow;
use super::schema::instances;
use super::{Cause, Manifest, ManifestError, events, hosts, last_logs, names, ports};
use crate::archive::Archive;
use crate::instance::name::{AppName, Email, Hostname, Username};
use crate::instance::storage::StorageFull;
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
    /// [`ManifestError::NameTaken`], [`ManifestError::UnfitHost`], [`ManifestError::TooManyApps`] and
    /// [`ManifestError::NoFreePort`] change nothing; others when Postgres can't be asked.
    pub async fn provision(&self, new: &NewInstance) -> Result<Provisioned, ManifestError> {
        let (_, host) = names(self, new)?;
        self.run(async move |conn| {
            conn.transaction::<_, ManifestError, _>(async |conn| {
                lock_intents(conn).await?;
                let Some(row) = latest(conn, &new.username, &new.appname).await? else {
                    let row = self.insert(conn, Uuid::new_v4(), new, None).await?;
                    events::append(conn, &self.cause, row.id, "provisioned", json!({ "port": row.port })).await?;
                    return Ok(Provisioned { instance: row.try_into()?, new: true });
                };
                let mut instance = Instance::try_from(row)?;
                if instance.email != new.email {
                    instance = update_email(conn, &self.cause, &instance, &new.email).await?;
                }
                match instance.desired {
                    Desired::Purged => Err(ManifestError::BeingPurged),
                    Desired::Deleted => {
                        let instance = self.bring_back(conn, &instance, host.as_str(), "provisioned").await?;
                        Ok(Provisioned { instance, new: true })
                    }
                    // One that rests is there: the first request to it wakes it.
                    _ => Ok(Provisioned { instance, new: false }),
                }
            })
            .await
        })
        .await
    }

    /// Writes a new instance, which is to run; with what is in its archive, if it has one.
    pub(super) async fn insert(
        &self,
        conn: &mut AsyncPgConnection,
        id: Uuid,
        new: &NewInstance,
        archive: Option<&Archive>,
    ) -> Result<InstanceRow, ManifestError> {
        let (container, host) = names(self, new)?;
        self.has_room_for_another(conn, &new.username).await?;
        let port = self.free_port(conn).await?;
        // Everything else is as the table's own defaults have it.
        diesel::insert_into(instances::table)
            .values((
                instances::id.eq(id),
                instances::username.eq(new.username.as_str()),
                instances::appname.eq(new.appname.as_str()),
                instances::email.eq(new.email.as_str()),
                instances::host.eq(host.as_str()),
                instances::container_name.eq(container.as_str()),
                instances::port.eq(port),
                instances::desired.eq(Desired::Running.as_str()),
                instances::phase.eq(Phase::Pending.as_str()),
                instances::archive.eq(archive.map(|archive| json!(archive))),
                instances::spec.eq(json!(self.spec)),
            ))
            .returning(InstanceRow::as_returning())
            .get_result(conn)
            .await
            .map_err(name_taken)
    }

    /// Gives a deleted instance another life, with the data that it had.
    pub(super) async fn bring_back(
        &self,
        conn: &mut AsyncPgConnection,
        instance: &Instance,
        host: &str,
        event: &str,
    ) -> Result<Instance, ManifestError> {
        self.has_room_for_another(conn, &instance.username).await?;
        let port = match instance.port {
            Some(port) => i32::from(port),
            None => self.free_port(conn).await?,
        };
        // What has no room for its data is there again, and not run.
        let desired = if instance.is_full(self.limits) { Desired::Asleep } else { Desired::Running };
        let full = instance.storage_full.as_deref().filter(|_| desired == Desired::Asleep);
        // A tombstone starts again at once; what is still on its way out is turned round by the
        // reconciler, which owns the phase.
        let phase = if instance.live() { instance.phase } else { Phase::Pending };
        let own = Hostname::parse(host).map_err(|_| ManifestError::UnfitHost)?;
        let extra_hosts = hosts::still_free(conn, &self.cause, instance, &own, &self.domain).await?;
        let row: InstanceRow = diesel::update(instances::table.find(instance.id))
            .set((
                (
                    instances::desired.eq(desired.as_str()),
                    instances::phase.eq(phase.as_str()),
                    instances::phase_since.eq(diesel::dsl::now),
                    instances::generation.eq(instances::generation + 1),
                    instances::port.eq(port),
                    instances::host.eq(host),
                    instances::extra_hosts.eq(extra_hosts),
                ),
                (
                    instances::attempts.eq(0),
                    instances::next_attempt_at.eq(None::<DateTime<Utc>>),
                    instances::last_error.eq(full.map(StorageFull::why)),
                    instances::restored.eq(false),
                    instances::ready_at.eq(None::<DateTime<Utc>>),
                    instances::restorable_until.eq(None::<DateTime<Utc>>),
                    instances::updated_at.eq(diesel::dsl::now),
                ),
                (
                    instances::spec.eq(json!(self.spec)),
                    instances::next_spec.eq(None::<Value>),
                    instances::rolling.eq(false),
                    instances::storage_full.eq(full.map(|full| json!(full))),
                ),
            ))
            .returning(InstanceRow::as_returning())
            .get_result(conn)
            .await
            .map_err(name_taken)?;
        last_logs::forget(conn, row.id).await?;
        events::append(conn, &self.cause, row.id, event, json!({ "port": port, "again": true })).await?;
        row.try_into()
    }

    /// Writes that an instance should be gone, with its data or without, and returns its row;
    /// `None` if there is none. Asking again changes nothing, but that the data goes, too. What is
    /// being purged stays so.
    ///
    /// # Errors
    /// [`ManifestError`] when Postgres can't be asked.
    pub async fn deprovision(
        &self,
        username: &Username,
        appname: &AppName,
        purge: bool,
    ) -> Result<Option<Instance>, ManifestError> {
        let desired = if purge { Desired::Purged } else { Desired::Deleted };
        self.run(async |conn| {
            conn.transaction::<_, ManifestError, _>(async |conn| {
                lock_intents(conn).await?;
                let Some(row) = latest(conn, username, appname).await? else { return Ok(None) };
                let instance = Instance::try_from(row)?;
                if instance.desired >= desired {
                    return Ok(Some(instance));
                }
                let detail = json!({ "purge": purge });
                let unlocked = self.take_away(conn, &instance, desired, "deprovisioned", detail).await?;
                unlocked.ok_or(ManifestError::Stale).map(Some)
            })
            .await
        })
        .await
    }

    /// Writes that an instance, as it stands here, should be gone. None if it stands otherwise.
    pub(super) async fn take_away(
        &self,
        conn: &mut AsyncPgConnection,
        instance: &Instance,
        desired: Desired,
        event: &str,
        detail: Value,
    ) -> Result<Option<Instance>, ManifestError> {
        // One that is gone already keeps its time.
        let again = instance.desired.gone();
        let generation = instance.generation + i64::from(!again);
        let policy = self.policy.with(&instance.overrides());
        let until = if again { instance.restorable_until } else { policy.purge_after.from(Utc::now()) };
        let row: Option<InstanceRow> = diesel::update(instances::table.find(instance.id))
            .filter(instances::generation.eq(instance.generation))
            .filter(instances::desired.eq(instance.desired.as_str()))
            .set((
                instances::desired.eq(desired.as_str()),
                instances::generation.eq(generation),
                instances::restorable_until.eq(until.filter(|_| desired == Desired::Deleted)),
                instances::attempts.eq(0),
                instances::next_attempt_at.eq(None::<DateTime<Utc>>),
                instances::last_error.eq(None::<String>),
                instances::rolling.eq(false),
                instances::next_spec.eq(None::<Value>),
                instances::updated_at.eq(diesel::dsl::now),
            ))
            .returning(InstanceRow::as_returning())
            .get_result(conn)
            .await
            .optional()?;
        let Some(row) = row else { return Ok(None) };
        events::append(conn, &self.cause, row.id, event, detail).await?;
        Ok(Some(row.try_into()?))
    }

    /// Whether a user may have one more app. The caller holds the intent lock.
    async fn has_room_for_another(
        &self,
        conn: &mut AsyncPgConnection,
        username: &Username,
    ) -> Result<(), ManifestError> {
        let most = self.apps_per_user;
        if most == 0 {
            return Ok(());
        }
        let gone = [Desired::Deleted.as_str(), Desired::Purged.as_str()];
        let apps: i64 = instances::table
            .filter(instances::username.eq(username.as_str()))
            .filter(instances::desired.ne_all(gone))
            .count()
            .get_result(conn)
            .await?;
        if apps < i64::from(most) { Ok(()) } else { Err(ManifestError::TooManyApps(most)) }
    }

    /// The lowest port that nobody has. The caller holds the intent lock.
    pub(super) async fn free_port(&self, conn: &mut AsyncPgConnection) -> Result<i32, ManifestError> {
        ports::lowest_free(conn, self.ports, &self.own_ports, self.occupied_before()).await
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

/// The instance as it is, locked until the transaction ends.
pub(super) async fn locked(conn: &mut AsyncPgConnection, id: Uuid) -> Result<Option<Instance>, ManifestError> {
    let row: Option<InstanceRow> =
        instances::table.find(id).select(InstanceRow::as_select()).for_update().first(conn).await.optional()?;
    row.map(Instance::try_from).transpose()
}

async fn update_email(
    conn: &mut AsyncPgConnection,
    cause: &Cause,
    instance: &Instance,
    email: &Email,
) -> Result<Instance, ManifestError> {
    let row: InstanceRow = diesel::update(instances::table.find(instance.id))
        .set((instances::email.eq(email.as_str()), instances::updated_at.eq(diesel::dsl::now)))
        .returning(InstanceRow::as_returning())
        .get_result(conn)
        .await?;
    events::append(conn, cause, row.id, "email changed", json!({})).await?;
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
