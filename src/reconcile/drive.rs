//! The executor: takes one instance step by step, until it is settled or has to wait for
//! something else. All decisions are [`plan`]'s.

pub(super) mod data;

use std::sync::{Arc, RwLock};
use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::awake::Room;
use super::publish::{Published, route};
use super::turns::Place;
use super::{Settings, World};
use crate::bounded::{ERROR_MAX, bounded};
use crate::containers::{Containers, ContainersError, DataFound};
use crate::failpoint::Boundary;
use crate::haproxy::{Proxy, RouteChange};
use crate::instance::plan::{Observed, Seen, Step, attempts_carried, backoff, plan};
use crate::instance::policy::Descent;
use crate::instance::{Desired, Instance, Phase};
use crate::manifest::ManifestError;

/// Between two looks whether a Hoodie answers, while it is expected any moment.
const PROBE_SOON: Duration = Duration::from_millis(5);
/// Between two looks at the most, and the share of the time waited so far that passes between two.
const PROBE_LATER: Duration = Duration::from_millis(250);
const PROBE_SHARE: u32 = 20;
/// A Hoodie that takes so many times as long as usual to answer is not expected any moment any more, and
/// gives its place among those that start to the next; within these bounds.
const TIMES_AS_USUAL: u32 = 4;
const EXPECTED_WITHIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// How long a confirmed route may take to answer.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long Docker may take to show one container.
pub(super) const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// Steps after which an instance that still is not settled waits for the next look.
const ROUNDS: usize = 40;
/// How long the last requests of an app whose data is too much are waited for.
const FULL_DRAIN: Duration = Duration::from_secs(1);
const DRAIN_POLL: Duration = Duration::from_millis(100);
/// So many failed looks in a row, at least, before an app is stopped that may be in use.
const UNSEEN_MOST: u32 = 3;
const ALL_BUSY: &str = "all that are awake are busy";

/// What waiting alone does not mend rests so many times `backoff_max`: who has mended it need not say so.
const LASTING_RESTS: u32 = 24;

/// Why an instance was left before it was settled.
#[derive(Debug)]
enum Halt {
    /// The part is away; its row stays as it is and the next pass tries again.
    Away(String),
    /// The row was changed meanwhile; the next pass sees how.
    Stale,
    /// The attempt failed.
    Failed(Failure),
    /// The step failed, and harms nobody: it is tried again later.
    Postponed(Failure),
}

/// What went wrong.
#[derive(Debug)]
struct Failure {
    why: String,
    /// Whether it will fail again, however long one waits.
    lasts: bool,
}

impl Failure {
    /// What may succeed the next time.
    fn passing(why: impl Into<String>) -> Self {
        Self { why: bounded(&why.into(), ERROR_MAX), lasts: false }
    }

    /// What fails until somebody has done something about it.
    fn lasting(why: impl Into<String>) -> Self {
        Self { why: bounded(&why.into(), ERROR_MAX), lasts: true }
    }

    /// How long it rests after so many failures.
    fn rest(&self, attempts: i32, settings: &Settings) -> Duration {
        if self.lasts {
            return settings.backoff_max.saturating_mul(LASTING_RESTS);
        }
        backoff(attempts, settings.backoff_base, settings.backoff_max)
    }
}

impl From<ManifestError> for Halt {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::Stale => Self::Stale,
            other => Self::Away(other.to_string()),
        }
    }
}

impl From<ContainersError> for Halt {
    fn from(error: ContainersError) -> Self {
        match error {
            ContainersError::Unreachable(_) => Self::Away(error.to_string()),
            ContainersError::Unfit(why) => Self::Failed(Failure::lasting(why)),
            other => Self::Failed(Failure::passing(other.to_string())),
        }
    }
}

/// Takes an instance as far as it goes. Says whether it should be looked at again soon.
pub(super) async fn drive<C: Containers, P: Proxy>(
    world: Arc<World<C, P>>,
    published: Arc<RwLock<Published>>,
    id: Uuid,
) -> bool {
    let Ok(Some(row)) = world.manifest.get(id).await else { return false };
    let _turn = world.lanes.turn(&row).await;
    let mut driver = Driver { world: &world, published: &published, place: None };
    let mut changed = false;
    for _ in 0..ROUNDS {
        let instance = match world.manifest.get(id).await {
            Ok(Some(instance)) => instance,
            Ok(None) => return false,
            Err(error) => {
                log::warn!(instance:% = id; "left alone: {error}");
                return false;
            }
        };
        world.awake.note(&instance);
        match driver.step(&instance).await {
            Ok(true) => changed = true,
            // Where nothing was done, another look would find nothing else to do.
            Ok(false) => return changed,
            Err(Halt::Stale) => return true,
            Err(Halt::Away(why)) => {
                log::warn!(instance:% = id; "{} left alone: {why}", instance.container);
                return false;
            }
            Err(Halt::Failed(failure)) => {
                let written = driver.fail(&instance, &failure).await;
                if let Ok(Some(row)) = world.manifest.get(id).await {
                    world.awake.note(&row);
                }
                return written;
            }
            Err(Halt::Postponed(failure)) => return driver.postpone(&instance, &failure).await,
        }
    }
    log::warn!(instance:% = id; "left alone: it goes round in circles");
    false
}

struct Driver<'a, C, P> {
    world: &'a World<C, P>,
    published: &'a RwLock<Published>,
    /// A place among those that start at the same time.
    place: Option<Place<'a>>,
}

impl<C: Containers, P: Proxy> Driver<'_, C, P> {
    /// One step. Says whether to go on with this instance.
    async fn step(&mut self, instance: &Instance) -> Result<bool, Halt> {
        let World { manifest, containers, faults, settings, .. } = self.world;
        let container = self.look(instance).await?;
        let routed = self.published.read().map_or(None, |published| published.routed(instance));
        let now = Utc::now();
        let room = self.world.awake.has(instance.id);
        let step = plan(instance, &Observed { container, routed, room }, now);
        log::debug!(instance:% = instance.id; "{} is {}: {step:?}", instance.container, instance.phase);
        if matches!(step, Step::Create | Step::Start) && self.place.is_none() {
            self.place = Some(self.world.lanes.start(instance).await);
            // Much may have changed while waiting in line.
            return Ok(true);
        }
        let carried = attempts_carried(instance, settings.stable_after, now);
        match step {
            Step::Settled | Step::WaitUntil(_) => return Ok(false),
            // Where there is no lane, or it is not sure of itself, the next publication does it.
            Step::AwaitPublish => return Ok(self.change_route(instance).await),
            Step::AwaitRoom => return self.await_room(instance).await,
            Step::Advance(phase) => {
                let row = manifest.advance(instance, phase, carried).await?;
                // At once: somebody may be waiting for its place.
                self.world.awake.note(&row);
                if instance.phase == Phase::Running && phase == Phase::Pending {
                    log::warn!(instance:% = instance.id; "{} has lost its container; making it again", instance.container);
                }
            }
            Step::Create => self.create(instance).await?,
            Step::Start => self.start(instance).await?,
            Step::AwaitReady(phase) => self.await_ready(instance, phase).await?,
            Step::ConfirmRoute => {
                self.confirm_route(instance).await?;
                faults.hit(Boundary::RouteConfirmed).await;
                manifest.running(instance).await?;
                log::info!(instance:% = instance.id; "{} answers at {}", instance.container, instance.host);
            }
            Step::Drain(next) => {
                self.drain(instance).await?;
                faults.hit(Boundary::Drained).await;
                manifest.advance(instance, next, carried).await?;
            }
            Step::Pause => {
                containers.pause(instance).await?;
                faults.hit(Boundary::ContainerPaused).await;
            }
            Step::Stop => {
                containers.stop(instance).await?;
                faults.hit(Boundary::ContainerStopped).await;
                log::info!(instance:% = instance.id; "{} is asleep", instance.container);
            }
            Step::Archive => self.archive(instance).await?,
            Step::FreeVolumes => self.free_volumes(instance).await?,
            Step::Restore => {
                // Nothing is started with it meanwhile.
                self.place = None;
                let _place = self.world.lanes.restore(instance).await;
                self.unarchive(instance).await?;
            }
            Step::Purge => {
                self.purge(instance).await?;
                return Ok(false);
            }
            Step::Remove => {
                containers.remove(instance).await?;
                faults.hit(Boundary::ContainerRemoved).await;
                log::info!(instance:% = instance.id; "{}: container removed", instance.container);
            }
            Step::Refuse => {
                let error = ContainersError::NameHeld(instance.container.to_string()).to_string();
                manifest.refuse(instance, &error).await?;
                log::warn!(instance:% = instance.id; "{} refused: {error}", instance.container);
            }
            Step::NameHeld => {
                return Err(ContainersError::NameHeld(instance.container.to_string()).into());
            }
        }
        faults.hit(Boundary::ManifestAdvanced).await;
        Ok(true)
    }

    /// Not being able to look is no failure of the instance.
    async fn look(&self, instance: &Instance) -> Result<Seen, Halt> {
        timeout(LOOK_TIMEOUT, self.world.containers.inspect(instance))
            .await
            .map_err(|_| Halt::Away("Docker does not answer".to_owned()))?
            .map_err(|error| Halt::Away(error.to_string()))
    }

    async fn create(&self, instance: &Instance) -> Result<(), Halt> {
        let World { manifest, containers, faults, .. } = self.world;
        // An engine whose disk is not mounted knows of no volume: an app that has lived must not
        // begin anew with an empty one.
        if instance.expects_data() && !containers.has_volume(&instance.volume()).await? {
            return Err(Halt::Failed(Failure::passing(format!("its volume {} is gone", instance.volume()))));
        }
        let DataFound(found) = containers.prepare_data(instance).await?;
        // From before this life, not just from before the admin's last password.
        if found && !instance.restored && !instance.returning() {
            manifest.restored(instance).await?;
        }
        match containers.create(instance).await {
            Ok(()) => {}
            // The next look sees whose it is; Docker may give the name back a moment later, too.
            Err(ContainersError::NameHeld(_)) => {
                tokio::time::sleep(PROBE_LATER).await;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        faults.hit(Boundary::ContainerCreated).await;
        self.start(instance).await
    }

    async fn start(&self, instance: &Instance) -> Result<(), Halt> {
        let World { manifest, containers, faults, .. } = self.world;
        match containers.start(instance).await {
            Ok(()) => {}
            Err(ContainersError::PortOccupied(port)) => {
                // A container's port is fixed when it is made.
                containers.remove(instance).await?;
                let moved = match instance.phase {
                    Phase::Pending => manifest.move_port(instance).await,
                    _ => return Err(ContainersError::PortOccupied(port).into()),
                };
                return match moved {
                    Ok(moved) => {
                        let to = moved.port.unwrap_or_default();
                        log::warn!(instance:% = instance.id; "something else on the host holds port {port}; taking {to}");
                        Ok(())
                    }
                    Err(error @ ManifestError::NoFreePort) => Err(Halt::Failed(Failure::passing(error.to_string()))),
                    Err(error) => Err(error.into()),
                };
            }
            Err(error) => return Err(error.into()),
        }
        faults.hit(Boundary::ContainerStarted).await;
        if instance.phase == Phase::Pending {
            manifest.advance(instance, Phase::Starting, instance.attempts).await?;
        }
        Ok(())
    }

    /// Waits for an answer from Hoodie itself: an open port means nothing, since Docker may
    /// accept before the process inside listens.
    async fn await_ready(&mut self, instance: &Instance, next: Phase) -> Result<(), Halt> {
        let World { manifest, containers, faults, settings, lanes, .. } = self.world;
        let began = Instant::now();
        let expected = (lanes.first_answer() * TIMES_AS_USUAL).clamp(EXPECTED_WITHIN.0, EXPECTED_WITHIN.1);
        let mut looked = began;
        while !containers.answers(instance).await {
            if began.elapsed() >= settings.ready_timeout {
                let why = format!("its Hoodie did not answer within {:?}", settings.ready_timeout);
                return Err(Halt::Failed(Failure::passing(why)));
            }
            if looked.elapsed() >= Duration::from_secs(1) {
                looked = Instant::now();
                let fresh = manifest.get(instance.id).await?;
                let unchanged = fresh.is_some_and(|row| {
                    (row.generation, row.phase, row.desired) == (instance.generation, instance.phase, instance.desired)
                });
                let there = matches!(self.look(instance).await?, Seen::Ours(_));
                if !(unchanged && there) {
                    // The next look decides what now.
                    return Ok(());
                }
            }
            let waited = began.elapsed();
            if waited >= expected {
                // A Hoodie that does not come up must not keep others from starting.
                self.place = None;
            }
            tokio::time::sleep((waited / PROBE_SHARE).clamp(PROBE_SOON, PROBE_LATER)).await;
        }
        self.place = None;
        if instance.phase == Phase::Starting {
            lanes.note_answer(instance.id, began.elapsed());
        }
        faults.hit(Boundary::HoodieAnswered).await;
        if next == Phase::Running {
            manifest.running(instance).await?;
        } else {
            manifest.ready(instance, next).await?;
        }
        Ok(())
    }

    /// Routes an instance, or takes its route away, without waiting for the publication of all.
    async fn change_route(&self, instance: &Instance) -> bool {
        let change = if let Some(route) = route(instance) {
            RouteChange::Set(route)
        } else {
            let known = self.published.read().map(|published| published.hosts(instance));
            RouteChange::Unset(known.unwrap_or_else(|_| instance.hosts().cloned().collect()))
        };
        let Some(port) = instance.port else { return false };
        // It may be in force from now on, whatever comes of it.
        if let Ok(mut published) = self.published.write() {
            published.doubt(port);
        }
        match self.world.proxy.change(&change).await {
            Ok(true) => {
                if let Ok(mut published) = self.published.write() {
                    published.changed(port, change);
                }
                true
            }
            Ok(false) => false,
            Err(error) => {
                log::warn!(instance:% = instance.id; "{}: its route is left to the next publication: {error}", instance.container);
                false
            }
        }
    }

    async fn confirm_route(&self, instance: &Instance) -> Result<(), Halt> {
        let deadline = Instant::now() + ROUTE_TIMEOUT;
        while !self.world.proxy.answers(&instance.host).await {
            if Instant::now() >= deadline {
                return Err(Halt::Away("its Hoodie answers, but not through HAProxy".to_owned()));
            }
            tokio::time::sleep(PROBE_SOON).await;
        }
        Ok(())
    }

    /// Waits until nobody talks to it any more, or the time for that is over. One that is wanted
    /// again meanwhile is not waited for.
    async fn drain(&self, instance: &Instance) -> Result<(), Halt> {
        let Some(port) = instance.port else { return Ok(()) };
        let spent = (Utc::now() - instance.phase_since).to_std().unwrap_or_default();
        let patience = self.world.settings.drain_timeout;
        // What fills the disk goes on with it until it is stopped.
        let patience = if instance.storage_full.is_some() { patience.min(FULL_DRAIN) } else { patience };
        let deadline = Instant::now() + patience.saturating_sub(spent);
        let mut unseen = 0;
        loop {
            let busy = self.world.proxy.busy(port).await;
            unseen = if busy.is_err() { unseen + 1 } else { 0 };
            // Its routes are gone, but this server may still pass on to it what it has begun.
            let held = self.world.held.passed_on(instance.id);
            match busy {
                Ok(false) if !held => return Ok(()),
                Ok(_) if Instant::now() >= deadline => {
                    log::info!(instance:% = instance.id; "{}: its last requests are cut off", instance.container);
                    return Ok(());
                }
                // One look may take as long as all of that.
                Err(error) if Instant::now() >= deadline && unseen >= UNSEEN_MOST => {
                    log::warn!(instance:% = instance.id; "{}: drained unseen: {error}", instance.container);
                    return Ok(());
                }
                _ => tokio::time::sleep(DRAIN_POLL).await,
            }
            let fresh = self.world.manifest.get(instance.id).await?;
            if fresh.is_none_or(|row| (row.desired, row.generation) != (instance.desired, instance.generation)) {
                return Err(Halt::Stale);
            }
        }
    }

    /// Waits for a place among those that are awake. One that is coming back, and for which nobody
    /// can make room, goes back to where it was.
    async fn await_room(&self, instance: &Instance) -> Result<bool, Halt> {
        let room = self.world.make_room(instance).await?;
        if room == Room::AllBusy && instance.returning() {
            let step = if instance.archive.is_some() { Descent::Archive } else { Descent::Sleep };
            self.world.manifest.descend(instance, step, ALL_BUSY).await?;
            log::warn!(instance:% = instance.id; "{} was not woken: {ALL_BUSY}", instance.container);
        }
        // A new one waits for the next look.
        Ok(room != Room::AllBusy || instance.returning())
    }

    /// Ends a step that is tried again later.
    async fn postpone(&self, instance: &Instance, failure: &Failure) -> bool {
        let rest = failure.rest(instance.attempts.saturating_add(1), &self.world.settings);
        let why = &failure.why;
        let next = Utc::now() + chrono::Duration::from_std(rest).unwrap_or(chrono::Duration::MAX);
        log::error!(instance:% = instance.id; "{} stays {}: {why}; next attempt in {rest:?}", instance.container, instance.phase);
        match self.world.manifest.postpone(instance, why, next).await {
            Ok(_) | Err(ManifestError::Stale) => true,
            Err(error) => {
                log::warn!(instance:% = instance.id; "its failure could not be written down: {error}");
                false
            }
        }
    }

    /// Ends an attempt: its last lines are kept, its container is not. Says whether the row was
    /// written, so that another look makes sense.
    async fn fail(&mut self, instance: &Instance, failure: &Failure) -> bool {
        let World { manifest, containers, settings, .. } = self.world;
        self.place = None;
        if instance.desired == Desired::Running {
            self.world.lanes.note_failure(instance.id);
        }
        let why = failure.why.as_str();
        if !instance.phase.may_become(Phase::Failed) {
            log::error!(instance:% = instance.id; "{} is {} and stays so: {why}", instance.container, instance.phase);
            if instance.last_error.as_deref() != Some(why) {
                // Only for people to read.
                drop(manifest.note_error(instance, why).await);
            }
            return false;
        }
        let log = containers.last_log(instance).await.ok().filter(|log| !log.is_empty());
        // A foreign container is refused here, and stays; ours that won't go is found next time.
        drop(containers.remove(instance).await);
        let attempt = instance.attempts.saturating_add(1);
        let rest = failure.rest(attempt, settings);
        let next = Utc::now() + chrono::Duration::from_std(rest).unwrap_or(chrono::Duration::MAX);
        log::error!(instance:% = instance.id, attempt; "{} failed: {why}; next attempt in {rest:?}", instance.container);
        match manifest.fail(instance, why, log, next).await {
            Ok(_) | Err(ManifestError::Stale) => true,
            Err(error) => {
                log::warn!(instance:% = instance.id; "its failure could not be written down: {error}");
                false
            }
        }
    }
}
