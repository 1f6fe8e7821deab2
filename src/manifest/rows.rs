//! Rows, and their way into the domain's types.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use serde_json::Value;
use uuid::Uuid;

use super::ManifestError;
use super::schema::{events, instances};
use crate::instance::Instance;
use crate::instance::name::{AppName, ContainerName, Email, Hostname, Username};
use crate::instance::policy::Overrides;
use crate::instance::spec::Spec;

/// A row of `instances`, as it stands in the table.
#[derive(Queryable, Selectable)]
#[diesel(table_name = instances, check_for_backend(diesel::pg::Pg))]
pub(super) struct InstanceRow {
    pub id: Uuid,
    pub username: String,
    pub appname: String,
    pub email: String,
    pub host: String,
    pub container_name: String,
    pub port: Option<i32>,
    pub desired: String,
    pub phase: String,
    pub phase_since: DateTime<Utc>,
    pub generation: i64,
    pub observed_generation: i64,
    pub attempts: i32,
    pub next_attempt_at: Option<DateTime<Utc>>,
    pub last_error: Option<String>,
    pub restored: bool,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub ready_at: Option<DateTime<Utc>>,
    pub extra_hosts: Vec<String>,
    pub last_used_at: Option<DateTime<Utc>>,
    pub overrides: Value,
    pub archive: Option<Value>,
    pub volume_serial: i32,
    pub spec: Option<Value>,
    pub next_spec: Option<Value>,
    pub rolling: bool,
    pub restorable_until: Option<DateTime<Utc>>,
    pub storage_full: Option<Value>,
}

impl TryFrom<InstanceRow> for Instance {
    type Error = ManifestError;

    /// A row that some other hand has written is checked like any input: nothing unchecked
    /// may reach a container or haproxy.cfg.
    fn try_from(row: InstanceRow) -> Result<Self, ManifestError> {
        let id = row.id;
        let corrupt = |why: &dyn std::fmt::Display| ManifestError::Corrupt { id, why: why.to_string() };
        Ok(Self {
            id,
            username: Username::parse(&row.username).map_err(|e| corrupt(&e))?,
            appname: AppName::parse(&row.appname).map_err(|e| corrupt(&e))?,
            email: Email::parse(&row.email).map_err(|e| corrupt(&e))?,
            host: Hostname::parse(&row.host).map_err(|e| corrupt(&e))?,
            extra_hosts: row
                .extra_hosts
                .iter()
                .map(|host| Hostname::parse(host))
                .collect::<Result<_, _>>()
                .map_err(|e| corrupt(&e))?,
            container: ContainerName::parse(&row.container_name).map_err(|e| corrupt(&e))?,
            port: row.port.map(u16::try_from).transpose().map_err(|e| corrupt(&e))?,
            desired: row.desired.parse().map_err(|e| corrupt(&e))?,
            phase: row.phase.parse().map_err(|e| corrupt(&e))?,
            phase_since: row.phase_since,
            generation: row.generation,
            observed_generation: row.observed_generation,
            attempts: row.attempts,
            next_attempt_at: row.next_attempt_at,
            last_error: row.last_error,
            restored: row.restored,
            created_at: row.created_at,
            updated_at: row.updated_at,
            ready_at: row.ready_at,
            last_used_at: row.last_used_at,
            overrides: serde_json::from_value(row.overrides)
                .map(|own: Overrides| (own != Overrides::default()).then(|| Box::new(own)))
                .map_err(|e| corrupt(&e))?,
            archive: row.archive.map(serde_json::from_value).transpose().map_err(|e| corrupt(&e))?,
            volume_serial: row.volume_serial,
            spec: row.spec.map(Spec::from_json).transpose().map_err(|e| corrupt(&e))?,
            next_spec: row.next_spec.map(Spec::from_json).transpose().map_err(|e| corrupt(&e))?,
            rolling: row.rolling,
            restorable_until: row.restorable_until,
            storage_full: row.storage_full.map(serde_json::from_value).transpose().map_err(|e| corrupt(&e))?,
        })
    }
}

/// The columns that the reconciler's compare-and-set may touch; `None` leaves one as it is.
#[derive(Debug, Default, AsChangeset)]
#[diesel(table_name = instances)]
#[allow(clippy::option_option, reason = "diesel's way: the outer says whether, the inner is what is written")]
pub(super) struct Progress {
    pub desired: Option<&'static str>,
    pub phase: Option<&'static str>,
    pub phase_since: Option<DateTime<Utc>>,
    pub port: Option<Option<i32>>,
    pub observed_generation: Option<i64>,
    pub attempts: Option<i32>,
    pub next_attempt_at: Option<Option<DateTime<Utc>>>,
    pub last_error: Option<Option<String>>,
    pub restored: Option<bool>,
    pub updated_at: Option<DateTime<Utc>>,
    pub ready_at: Option<Option<DateTime<Utc>>>,
    pub archive: Option<Option<Value>>,
    pub volume_serial: Option<i32>,
    pub spec: Option<Option<Value>>,
    pub next_spec: Option<Option<Value>>,
    pub rolling: Option<bool>,
    pub restorable_until: Option<Option<DateTime<Utc>>>,
}

/// Something that happened, or was refused.
#[derive(Debug, Clone, PartialEq, Queryable, Selectable, serde::Serialize)]
#[diesel(table_name = events, check_for_backend(diesel::pg::Pg))]
pub struct Event {
    /// Grows with time.
    pub id: i64,
    /// The instance it happened to; its row may be gone by now. None where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<Uuid>,
    /// When.
    pub at: DateTime<Utc>,
    /// What, in a word or two.
    pub kind: String,
    /// Whose instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Which app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub appname: Option<String>,
    /// Who: `haas`, `client`, `admin` or `visitor`.
    pub actor: String,
    /// Which client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// With which of its keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// From which address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Which administrator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// By which request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// What came of it: `done`, `refused` or `failed`.
    pub outcome: String,
    /// The particulars.
    pub detail: Value,
}
