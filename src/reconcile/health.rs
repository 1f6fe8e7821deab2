//! What the last look at each part showed. The API reads it; it asks none of the parts itself.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::bounded::{REPORT_MAX, bounded};

/// One part, as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Part {
    /// Whether it does what it should.
    pub ok: bool,
    /// What is wrong; none when nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When this began.
    pub since: DateTime<Utc>,
}

impl Part {
    fn unknown() -> Self {
        Self { ok: false, detail: Some("not seen yet".to_owned()), since: Utc::now() }
    }
}

/// Every part, as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Report {
    /// The ship manifest's database.
    pub postgres: Part,
    /// The container engine.
    pub docker: Part,
    /// The tenants' image.
    pub image: Part,
    /// HAProxy: it runs the configuration that the manifest asks for.
    pub haproxy: Part,
    /// Whether this server acts; another one does if not.
    pub leader: bool,
}

impl Report {
    /// Whether every part does what it should.
    #[must_use]
    pub fn ok(&self) -> bool {
        [&self.postgres, &self.docker, &self.image, &self.haproxy].iter().all(|part| part.ok)
    }
}

/// The shared board that the reconciler writes on.
#[derive(Clone)]
pub struct Health(Arc<watch::Sender<Report>>);

impl Default for Health {
    fn default() -> Self {
        let report = Report {
            postgres: Part::unknown(),
            docker: Part::unknown(),
            image: Part::unknown(),
            haproxy: Part::unknown(),
            leader: false,
        };
        Self(Arc::new(watch::Sender::new(report)))
    }
}

impl Health {
    /// What was last seen.
    #[must_use]
    pub fn report(&self) -> Report {
        self.0.borrow().clone()
    }

    pub(super) fn leader(&self, leader: bool) {
        self.0.send_modify(|report| report.leader = leader);
    }

    pub(super) fn postgres(&self, detail: Option<String>) {
        self.set("Postgres", detail, |report| &mut report.postgres);
    }

    pub(super) fn docker(&self, detail: Option<String>) {
        self.set("Docker", detail, |report| &mut report.docker);
    }

    pub(super) fn image(&self, detail: Option<String>) {
        self.set("the tenants' image", detail, |report| &mut report.image);
    }

    pub(super) fn haproxy(&self, detail: Option<String>) {
        self.set("HAProxy", detail, |report| &mut report.haproxy);
    }

    #[allow(clippy::needless_pass_by_value, reason = "every caller has one to give away")]
    /// Writes a part's state down, and logs it when it is news.
    fn set(&self, name: &str, detail: Option<String>, part: impl Fn(&mut Report) -> &mut Part) {
        let detail = detail.map(|words| bounded(&words, REPORT_MAX));
        let mut before = self.report();
        let before = part(&mut before);
        if before.ok == detail.is_none() && before.detail == detail {
            return;
        }
        match &detail {
            Some(why) => log::error!("{name}: {why}"),
            None => log::info!("{name} is well"),
        }
        self.0.send_modify(|report| {
            *part(report) = Part { ok: detail.is_none(), detail: detail.clone(), since: Utc::now() };
        });
    }
}
