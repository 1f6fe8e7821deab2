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
//! | `turns` | places for what is done at the same time, shared fairly between users |
//! | `publish` | what HAProxy routes to, as it was last confirmed |
//! | `uses` | who is used, as HAProxy counts it |
//! | `awake` | how many may be awake, and who makes room for whom |
//! | `lifecycle` | the policy's steps down, written as intent |
//! | `disk` | who takes more of the disk than it may |
//! | `notices` | what owners are told |
//! | `orphans`, `unclaimed` | containers, volumes, networks and archives of ours that no row wants |
//! | `health` | what the last look at each part showed |

mod awake;
mod disk;
mod drive;
mod health;
mod lifecycle;
mod notices;
mod orphans;
mod pass;
mod publish;
mod turns;
mod unclaimed;
mod uses;
mod worker;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Notify, broadcast};
use uuid::Uuid;

use crate::archive::Archives;
use crate::config::Config;
use crate::containers::{Containers, ContainersError};
use crate::failpoint::Faults;
use crate::haproxy::Proxy;
use crate::instance::policy::{Policy, TimeLimit};
use crate::instance::storage::Limits;
use crate::instance::{Desired, Instance};
use crate::manifest::{Manifest, ManifestError};
use crate::webhook::Webhook;

use awake::Awake;
pub use health::{Health, Part, Report};
pub use lifecycle::{Decision, Outlook, decide, notice_horizon};
pub use pass::{Planned, dry_run};
pub use publish::routes;
use turns::{Place, Standing, Turns};
pub use unclaimed::{Stray, UnclaimedError, strays};
pub use uses::{Held, HeldRequest, Uses};
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

/// Instances of one lane that are worked on at the same time: each may hold a connection to Docker.
const TURNS: usize = 64;
/// Archives that are written, and that are read, at the same time.
const MOVES: usize = 2;
/// How long a Hoodie is expected to take to answer for the first time, before any has: 2 s.
const FIRST_ANSWER_MICROS: u64 = 2_000_000;

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
    /// Who cleans up, and when.
    pub policy: Policy,
    /// How long an open stream counts as use.
    pub stream_keeps_awake_for: TimeLimit,
    /// How many may be awake; none for no bound.
    pub most_awake: Option<usize>,
    /// How long a request waits for the app that it wakes.
    pub wake_timeout: Duration,
    /// Apps that are woken at the same time.
    pub wake_concurrency: usize,
    /// Apps that are awake and rolled at the same time.
    pub roll_concurrency: usize,
    /// Where archives are kept.
    pub archive_dir: PathBuf,
    /// How long before something happens to the data its owner is told.
    pub notice_before: Duration,
    /// Whether nothing is purged by the policy before that was delivered.
    pub purge_needs_notice: bool,
    /// How long what no row claims is left alone.
    pub unclaimed_grace: Duration,
    /// How much of the disk an instance's data may take.
    pub limits: Limits,
    /// How often that is looked at.
    pub disk_period: Duration,
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
            policy: config.lifecycle.policy(),
            stream_keeps_awake_for: config.lifecycle.stream_keeps_awake_for,
            most_awake: config.lifecycle.most_awake(&config.tenant),
            wake_timeout: config.lifecycle.wake_timeout,
            wake_concurrency: config.lifecycle.wake_concurrency,
            roll_concurrency: config.lifecycle.roll_concurrency,
            archive_dir: config.lifecycle.archive_dir.clone(),
            notice_before: config.lifecycle.notice_before,
            purge_needs_notice: config.lifecycle.purge_needs_notice,
            unclaimed_grace: config.lifecycle.unclaimed_grace,
            limits: config.tenant.limits(),
            disk_period: config.tenant.disk_period,
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
    /// Where data is packed away.
    pub archives: Archives,
    /// Requests that this server holds for apps that come up.
    pub held: Held,
    /// Who tells the owners; none for nobody.
    pub webhook: Option<Webhook>,
    uses: Uses,
    awake: Awake,
    lanes: Lanes,
}

/// Places for what is done at the same time, by what for: a storm of wakes must not keep others
/// from being provisioned, nor either of them those that make room by going to sleep.
struct Lanes {
    new: Lane,
    returning: Lane,
    leaving: Lane,
    /// On their way into an archive, which takes minutes of work and disk.
    archiving: Lane,
    /// For reading archives back.
    restores: Turns,
    /// Instances that failed, and have not answered since: their rows forget that when they go to rest.
    failed: Mutex<HashSet<Uuid>>,
    /// How long a Hoodie takes to answer for the first time, in microseconds.
    first_answer: AtomicU64,
}

struct Lane {
    turns: Turns,
    /// For those that start at the same time.
    starts: Turns,
}

impl Lane {
    fn new(turns: usize, starts: usize) -> Self {
        Self { turns: Turns::new(turns), starts: Turns::new(starts) }
    }
}

impl Lanes {
    fn new(settings: &Settings) -> Self {
        Self {
            new: Lane::new(TURNS, settings.concurrency),
            returning: Lane::new(TURNS, settings.wake_concurrency),
            leaving: Lane::new(TURNS, settings.concurrency),
            archiving: Lane::new(MOVES, settings.concurrency),
            restores: Turns::new(MOVES),
            failed: Mutex::default(),
            first_answer: AtomicU64::new(FIRST_ANSWER_MICROS),
        }
    }

    fn of(&self, instance: &Instance) -> &Lane {
        match instance.desired {
            Desired::Running if instance.returning() => &self.returning,
            Desired::Running => &self.new,
            Desired::Archived => &self.archiving,
            _ => &self.leaving,
        }
    }

    async fn turn(&self, instance: &Instance) -> Place<'_> {
        self.of(instance).turns.acquire(&instance.username, self.standing(instance)).await
    }

    async fn start(&self, instance: &Instance) -> Place<'_> {
        self.of(instance).starts.acquire(&instance.username, self.standing(instance)).await
    }

    async fn restore(&self, instance: &Instance) -> Place<'_> {
        self.restores.acquire(&instance.username, self.standing(instance)).await
    }

    fn standing(&self, instance: &Instance) -> Standing {
        let failed = instance.attempts > 0 || self.failures().contains(&instance.id);
        if failed { Standing::Failed } else { Standing::Good }
    }

    fn failures(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_failure(&self, id: Uuid) {
        self.failures().insert(id);
    }

    /// Forgets those that are gone.
    fn forget_failures_but(&self, live: &[Instance]) {
        let mut failures = self.failures();
        if !failures.is_empty() {
            let live: HashSet<Uuid> = live.iter().map(|row| row.id).collect();
            failures.retain(|id| live.contains(id));
        }
    }

    /// Its Hoodie answers, so long after it was started.
    fn note_answer(&self, id: Uuid, after: Duration) {
        self.failures().remove(&id);
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        // Two at the same time may forget one of them: it is an average.
        let before = self.first_answer.load(Ordering::Relaxed);
        self.first_answer.store((before / 8 * 7).saturating_add(micros / 8), Ordering::Relaxed);
    }

    /// How long a Hoodie usually takes to answer for the first time.
    fn first_answer(&self) -> Duration {
        Duration::from_micros(self.first_answer.load(Ordering::Relaxed))
    }
}

impl<C: Containers, P: Proxy> World<C, P> {
    /// Puts the rooms together.
    #[must_use]
    pub fn new(manifest: Manifest, containers: C, proxy: P, settings: Settings, faults: Faults) -> Arc<Self> {
        Self::new_telling(manifest, containers, proxy, settings, faults, None)
    }

    /// With somebody who tells the owners.
    #[must_use]
    pub fn new_telling(
        manifest: Manifest,
        containers: C,
        proxy: P,
        settings: Settings,
        faults: Faults,
        webhook: Option<Webhook>,
    ) -> Arc<Self> {
        let lanes = Lanes::new(&settings);
        let archives = Archives::new(settings.archive_dir.clone());
        let awake = Awake::new(settings.most_awake, settings.wake_concurrency);
        let held = Held::default();
        let uses = Uses::new(held.clone(), settings.stream_keeps_awake_for);
        Arc::new(Self { manifest, containers, proxy, settings, faults, archives, held, webhook, uses, awake, lanes })
    }
}

/// Where nudges arrive: "something may have changed, look again".
#[derive(Clone)]
pub struct Nudges {
    wake: Arc<Notify>,
    haproxy: Arc<AtomicBool>,
    /// Instances that somebody waits for: they need no look at all the others first.
    urgent: Arc<Mutex<HashSet<Uuid>>>,
    wake_urgent: Arc<Notify>,
    changes: broadcast::Sender<Uuid>,
}

impl Default for Nudges {
    fn default() -> Self {
        Self {
            wake: Arc::default(),
            haproxy: Arc::default(),
            urgent: Arc::default(),
            wake_urgent: Arc::default(),
            changes: broadcast::channel(1024).0,
        }
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

    /// Wakes the reconciler for one instance, whose row says that it should be something else.
    pub fn nudge_for(&self, instance: Uuid) {
        self.urgent.lock().unwrap_or_else(PoisonError::into_inner).insert(instance);
        self.wake_urgent.notify_one();
        self.nudge();
    }

    async fn urgent(&self) {
        self.wake_urgent.notified().await;
    }

    fn take_urgent(&self) -> HashSet<Uuid> {
        std::mem::take(&mut *self.urgent.lock().unwrap_or_else(PoisonError::into_inner))
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
