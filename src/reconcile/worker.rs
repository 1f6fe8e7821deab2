//! The loop around the passes: waits for nudges, becomes the one actor, or stands by.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::drive::LOOK_TIMEOUT;
use super::health::Health;
use super::pass::{Actor, look_at_image};
use super::{Nudges, ReconcileError, World};
use crate::containers::{Containers, ContainersError};
use crate::haproxy::Proxy;
use crate::instance::policy::TimeLimit;
use crate::manifest::{Leader, ManifestError, Nudge, watch};

/// How soon something that is away is looked for again.
const RETRY: Duration = Duration::from_secs(1);
/// Between two passes at least, so that a flood of nudges becomes one look.
const BREATH: Duration = Duration::from_millis(10);
/// How often HAProxy is asked who is used, at least and at most.
const USES_LOOK: Duration = Duration::from_secs(30);
const USES_LOOK_MIN: Duration = Duration::from_millis(250);

/// The reconciler of one server.
pub struct Worker<C, P> {
    world: Arc<World<C, P>>,
    database_url: String,
    health: Health,
    nudges: Nudges,
}

impl<C: Containers, P: Proxy> Worker<C, P> {
    /// Prepares the reconciler; [`Worker::run`] starts it.
    #[must_use]
    pub fn new(world: Arc<World<C, P>>, database_url: String, health: Health, nudges: Nudges) -> Self {
        Self { world, database_url, health, nudges }
    }

    /// Runs until it is dropped; whatever is under way then is left as a crash would leave it.
    pub async fn run(self) -> Infallible {
        tokio::join!(self.hear(), Box::pin(self.act_or_stand_by())).0
    }

    /// Hears of changes, whichever process makes them.
    async fn hear(&self) -> Infallible {
        loop {
            let on_nudge = |nudge| match nudge {
                Nudge::Intent(id) => {
                    self.nudges.changed(id);
                    self.nudges.nudge_for(id);
                }
                Nudge::Progress(id) => self.nudges.changed(id),
                Nudge::Look => self.nudges.nudge(),
            };
            // What changed before it was listened for is found by a look.
            let Err(error) = watch(&self.database_url, || self.nudges.nudge(), on_nudge).await;
            log::debug!("not hearing of changes: {error}");
            sleep(RETRY).await;
        }
    }

    async fn act_or_stand_by(&self) -> Infallible {
        loop {
            match Leader::try_acquire(&self.database_url).await {
                Ok(Some(leader)) => {
                    self.health.leader(true);
                    log::info!("this server acts");
                    let lost = self.act(leader).await;
                    self.health.leader(false);
                    self.health.postgres(Some(lost.to_string()));
                }
                Ok(None) => {
                    self.stand_by().await;
                    sleep(RETRY).await;
                }
                Err(error) => {
                    self.health.postgres(Some(error.to_string()));
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Acts until the lock may be lost. What is under way is dropped with the actor.
    async fn act(&self, leader: Leader) -> ManifestError {
        self.world.proxy.forget().await;
        match self.world.manifest.use_read_at().await {
            Ok(read_at) => self.world.uses.begin(read_at, Utc::now()),
            Err(error) => return error,
        }
        let mut actor = Actor::new(Arc::clone(&self.world), self.health.clone(), self.nudges.clone());
        tokio::select! {
            lost = leader.hold() => lost,
            never = self.passes(&mut actor) => match never {},
            never = self.watch_uses() => match never {},
            never = self.world.tell_owners() => match never {},
            never = self.world.watch_disk() => match never {},
        }
    }

    /// HAProxy remembers who was used for a minute: it is asked often enough to miss nobody.
    async fn watch_uses(&self) -> Infallible {
        let settings = &self.world.settings;
        let quarter = match settings.policy.idle_after {
            TimeLimit::After(time) => time / 4,
            TimeLimit::Never => USES_LOOK,
        };
        loop {
            self.world.read_uses().await;
            sleep(quarter.clamp(USES_LOOK_MIN, USES_LOOK)).await;
        }
    }

    async fn passes(&self, actor: &mut Actor<C, P>) -> Infallible {
        loop {
            let began = Instant::now();
            let wake = actor.pass().await;
            // A long pass is followed by as long a rest, so that the parts are not asked all the time.
            let breath = began.elapsed().clamp(BREATH, RETRY);
            let mut rest = self.world.settings.period;
            if !self.health.report().ok() {
                rest = rest.min(RETRY);
            }
            if let Some(wake) = wake {
                rest = rest.min((wake - Utc::now()).to_std().unwrap_or_default());
            }
            let next = Instant::now() + rest.max(breath);
            let rested = Instant::now() + breath;
            loop {
                tokio::select! {
                    biased;
                    () = actor.finished() => {}
                    () = self.nudges.urgent() => actor.drive_urgent(),
                    () = self.nudges.nudged(), if Instant::now() >= rested => break,
                    () = sleep_until(rested), if Instant::now() < rested => {}
                    () = sleep_until(next) => break,
                }
            }
        }
    }

    /// Another server acts: this one only looks, so that /readyz tells the truth.
    async fn stand_by(&self) {
        match self.world.manifest.ping().await {
            Ok(()) => self.health.postgres(None),
            Err(error) => self.health.postgres(Some(error.to_string())),
        }
        let away = |_| Err(ContainersError::Unreachable("it does not answer".to_owned()));
        match timeout(LOOK_TIMEOUT, self.world.containers.list()).await.unwrap_or_else(away) {
            Ok(_) => self.health.docker(None),
            Err(error) => self.health.docker(Some(error.to_string())),
        }
        look_at_image(&self.world.containers, &self.health).await;
        match timeout(LOOK_TIMEOUT, self.world.proxy.health()).await {
            Ok(Ok(())) => self.health.haproxy(None),
            Ok(Err(error)) => self.health.haproxy(Some(error.to_string())),
            Err(_) => self.health.haproxy(Some("it does not answer".to_owned())),
        }
    }
}

/// Runs passes until nothing is left to do, or the time is over; for `haas reconcile --once`.
/// Says whether everything is settled.
///
/// # Errors
/// [`ReconcileError::AnotherActs`]; [`ReconcileError::Manifest`] when Postgres can't be asked.
pub async fn settle<C: Containers, P: Proxy>(
    world: Arc<World<C, P>>,
    database_url: &str,
    health: Health,
    limit: Duration,
) -> Result<bool, ReconcileError> {
    let leader = Leader::try_acquire(database_url).await?.ok_or(ReconcileError::AnotherActs)?;
    let nudges = Nudges::default();
    let mut actor = Actor::new(world, health.clone(), nudges.clone());
    let deadline = Instant::now() + limit;
    let work = async {
        loop {
            actor.pass().await;
            if actor.idle() {
                // Twice idle in a row: the last task may have made room for more.
                actor.pass().await;
                if actor.idle() {
                    let report = health.report();
                    return report.postgres.ok && report.docker.ok;
                }
            }
            if timeout_at(deadline, actor.finished()).await.is_err() {
                return false;
            }
        }
    };
    tokio::select! {
        lost = leader.hold() => Err(lost.into()),
        settled = work => Ok(settled),
    }
}
