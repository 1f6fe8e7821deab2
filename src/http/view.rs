//! An instance as callers see it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::config::Public;
use crate::instance::name::Email;
use crate::instance::policy::Overrides;
use crate::instance::storage::StorageFull;
use crate::instance::{Instance, Phase, State};

/// An instance as callers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct InstanceView {
    /// Identity; stays when the app is provisioned again.
    pub id: Uuid,
    /// Whose it is.
    #[schema(example = "alice")]
    pub username: String,
    /// Which app it serves.
    #[schema(example = "notes")]
    pub appname: String,
    /// Where the owner gets mail.
    #[schema(example = "alice@example.com", value_type = String)]
    pub emailaddress: Email,
    /// The Hoodie endpoint, for the app's configuration.
    #[schema(example = "http://notes.alice.haas.localhost:8080/hoodie/")]
    pub endpoint: String,
    /// The app's host.
    #[schema(example = "notes.alice.haas.localhost")]
    pub host: String,
    /// Custom domains that lead to it, too.
    #[schema(example = json!(["www.example.org"]))]
    pub extra_hosts: Vec<String>,
    /// The Docker name.
    #[schema(example = "alice-notes")]
    pub container: String,
    /// The loopback port; none once it is deleted.
    #[schema(example = 5521)]
    pub port: Option<u16>,
    /// What it does.
    pub state: State,
    /// How far it has come, in more detail.
    pub phase: Phase,
    /// Why it does not run, if an attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When a failed one is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// Whether it was provisioned again and found the data of its earlier life.
    pub restored: bool,
    /// When its users last asked it for something, to within some minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<DateTime<Utc>>,
    /// Where it departs from the installation's clean-up policy, and from its bound on the disk.
    #[serde(skip_serializing_if = "is_default")]
    pub policy: Overrides,
    /// Of a deleted one: until when it can be restored for sure; not there for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restorable_until: Option<DateTime<Utc>>,
    /// That it is stopped because its data takes more of the disk than it may; no request wakes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_full: Option<StorageFull>,
    /// Whether its data is gone, too, and this is the last that is known of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub purged: bool,
    /// When it was first asked for.
    pub created_at: DateTime<Utc>,
    /// When its Hoodie first answered in this life.
    pub ready_at: Option<DateTime<Utc>>,
    /// When anything about it last changed.
    pub updated_at: DateTime<Utc>,
}

impl InstanceView {
    /// Shows an instance, with its endpoint as end users reach it.
    #[must_use]
    pub fn new(instance: &Instance, public: Public) -> Self {
        let failed = matches!(instance.phase, Phase::Failed);
        Self {
            id: instance.id,
            username: instance.username.to_string(),
            appname: instance.appname.to_string(),
            emailaddress: instance.email.clone(),
            endpoint: format!("{}/hoodie/", public.origin(&instance.host)),
            host: instance.host.to_string(),
            extra_hosts: instance.extra_hosts.iter().map(ToString::to_string).collect(),
            container: instance.container.to_string(),
            port: instance.port,
            state: instance.state(),
            phase: instance.phase,
            last_error: instance.last_error.clone(),
            next_attempt_at: instance.next_attempt_at.filter(|_| failed),
            restored: instance.restored,
            last_used_at: instance.last_used_at,
            policy: instance.overrides(),
            restorable_until: instance.restorable_until,
            storage_full: instance.storage_full.as_deref().copied(),
            purged: false,
            created_at: instance.created_at,
            ready_at: instance.ready_at,
            updated_at: instance.updated_at,
        }
    }

    /// Shows what was known of one that is no more.
    #[must_use]
    pub fn purged(last: &Instance, public: Public) -> Self {
        let shown = Self::new(last, public);
        Self { state: State::Deleted, phase: Phase::Deleted, port: None, purged: true, ..shown }
    }
}

fn is_default(overrides: &Overrides) -> bool {
    *overrides == Overrides::default()
}
