//! The one loop that makes the world agree with the manifest.
//!
//! It is level-triggered: a pass takes no arguments, compares what should be with what is, and
//! starts what has to be done. It runs when nudged and every period. What goes wrong is
//! written into the row, with the time of the next attempt; nothing is retried inside a pass.
//!
//! | file | what it does |
//! |---|---|
//! | `worker` | waits for nudges, becomes the one actor or stands by |
//! | `pass` | one look at everything; starts what is needed |
//! | `drive` | takes one instance step by step, until it has to wait for something |
//! | `publish` | what HAProxy routes to, as it was last confirmed |
//! | `orphans` | containers of ours that no row wants |
//! | `health` | what the last look at each part showed |

mod drive;
mod health;
mod orphans;
mod pass;
mod publish;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Notify, Semaphore, broadcast};
use uuid::Uuid;

use crate::config::Config;
use crate::containers::{Containers, ContainersError};
use crate::failpoint::Faults;
use crate::haproxy::Proxy;
use crate::manifest::{Manifest, ManifestError};

pub use health::{Health, Part, Report};
pub use pass::{Planned, dry_run};
pub use publish::routes;
pub use worker::{Worker, settle};

/// Why a pass on demand could not be made.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// A running server is the one actor.
    #[error("a running server is the one actor, and does this by itself")]
    AnotherActs,
    /// The manifest can't be asked.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The engine can't be asked.
    #[error(transparent)]
    Containers(#[from] ContainersError),
}

/// Instances that are worked on at the same time: each may hold a connection to Docker.
const TURNS: usize = 64;

/// Times and bounds of the reconciler.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How often it looks even when nobody nudged it.
    pub period: Duration,
    /// Containers that are started at the same time.
    pub concurrency: usize,
    /// The rest after a first failure.
    pub backoff_base: Duration,
    /// The longest rest.
    pub backoff_max: Duration,
    /// An instance that ran this long has its earlier failures forgiven.
    pub stable_after: Duration,
    /// How long an orphan is left alone.
    pub orphan_grace: Duration,
    /// How long a Hoodie may take to answer for the first time.
    pub ready_timeout: Duration,
    /// How long the last requests of an unwanted Hoodie are waited for.
    pub drain_timeout: Duration,
}

impl Settings {
    /// The part of the configuration that the reconciler goes by.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        Self {
            period: config.reconcile.period,
            concurrency: config.reconcile.concurrency,
            backoff_base: config.reconcile.backoff_base,
            backoff_max: config.reconcile.backoff_max,
            stable_after: config.reconcile.stable_after,
            orphan_grace: config.reconcile.orphan_grace,
            ready_timeout: config.tenant.ready_timeout,
            drain_timeout: config.tenant.drain_timeout,
        }
    }
}

/// The rooms that the reconciler acts on.
pub struct World<C, P> {
    /// What should be.
    pub manifest: Manifest,
    /// Where tenants run.
    pub containers: C,
    /// What leads to them.
    pub proxy: P,
    /// Times and bounds.
    pub settings: Settings,
    /// Where a test ends or freezes it.
    pub faults: Faults,
    /// Places for those that start at the same time.
    starts: Semaphore,
    /// Instances that are worked on at the same time, whatever for.
    turns: Semaphore,
}

impl<C: Containers, P: Proxy> World<C, P> {
    /// Puts the rooms together.
    #[must_use]
    pub fn new(manifest: Manifest, containers: C, proxy: P, settings: Settings, faults: Faults) -> Arc<Self> {
        let starts = Semaphore::new(settings.concurrency);
        let turns = Semaphore::new(TURNS);
        Arc::new(Self { manifest, containers, proxy, settings, faults, starts, turns })
    }
}

/// Where nudges arrive: "something may have changed, look again".
#[derive(Clone)]
pub struct Nudges {
    wake: Arc<Notify>,
    haproxy: Arc<AtomicBool>,
    changes: broadcast::Sender<Uuid>,
}

impl Default for Nudges {
    fn default() -> Self {
        Self { wake: Arc::default(), haproxy: Arc::default(), changes: broadcast::channel(1024).0 }
    }
}

impl Nudges {
    /// Wakes the reconciler.
    pub fn nudge(&self) {
        self.wake.notify_one();
    }

    /// Wakes the reconciler to publish anew, though no route has changed: the template has.
    pub fn nudge_haproxy(&self) {
        self.haproxy.store(true, Ordering::SeqCst);
        self.nudge();
    }

    fn take_haproxy(&self) -> bool {
        self.haproxy.swap(false, Ordering::SeqCst)
    }

    /// Tells those who wait for an instance that its row has changed.
    pub fn changed(&self, instance: Uuid) {
        // Nobody waiting is no error.
        drop(self.changes.send(instance));
    }

    /// The ids of rows that change from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Uuid> {
        self.changes.subscribe()
    }

    async fn nudged(&self) {
        self.wake.notified().await;
    }
}
