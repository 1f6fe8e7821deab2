//! An instance as callers see it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::config::Public;
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
    #[schema(example = "alice@example.com")]
    pub emailaddress: String,
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
            emailaddress: instance.email.to_string(),
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
            created_at: instance.created_at,
            ready_at: instance.ready_at,
            updated_at: instance.updated_at,
        }
    }
}
