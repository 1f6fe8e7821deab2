//! What to do next for one instance: a pure function of the manifest's row and what was seen.
//!
//! Every decision of the control plane is made here; the executor carries out one step and
//! comes back. Crashing between any two steps is harmless because the next call starts from
//! what is there, not from what was meant to be.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Desired, Instance, Phase};

/// What the world looked like a moment ago, as far as this instance goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Who holds the container name.
    pub container: Seen,
    /// Whether HAProxy sends requests to it; none while that is not known.
    pub routed: Option<bool>,
}

/// Who holds the container name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nobody.
    Absent,
    /// A container that is not this instance's. It is never touched.
    Foreign,
    /// This instance's own, by its labels.
    Ours(Container),
}

/// This instance's own container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The generation that it was made for.
    pub generation: i64,
    /// The loopback port that it is published on.
    pub port: Option<u16>,
    /// What its process does.
    pub status: Status,
}

/// Docker's container states (Docker Engine API, `ContainerState.Status`), as far as they differ
/// for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Made, or ended and left so by Docker: it has to be started.
    Stopped,
    /// Frozen by hand.
    Paused,
    /// Its process runs.
    Running,
    /// Its process ended, and Docker's restart policy starts it again.
    Restarting,
    /// Being removed, or half removed: useless.
    Dead,
}

/// The one thing to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// World and manifest agree.
    Settled,
    /// Nothing to do before this time.
    WaitUntil(DateTime<Utc>),
    /// HAProxy has to be told first; publishing is done for all instances at once.
    AwaitPublish,
    /// Only the manifest changes.
    Advance(Phase),
    /// Make and start the container; then `Starting`.
    Create,
    /// Start, or unfreeze, the container that is there; then `Starting`.
    Start,
    /// Wait for an answer from Hoodie itself; then this phase.
    AwaitReady(Phase),
    /// See the Hoodie answer through HAProxy; then `Running`.
    ConfirmRoute,
    /// Wait until nobody is talking to it any more; then `Removing`.
    Drain,
    /// Stop and remove the container; the phase stays.
    Remove,
    /// Somebody else's container has the name, and this life never began: give up the intent.
    Refuse,
    /// Somebody else's container has the name of an instance that has lived: try again later.
    NameHeld,
}

/// The next step for an instance.
#[must_use]
pub fn plan(instance: &Instance, observed: &Observed, now: DateTime<Utc>) -> Step {
    match instance.desired {
        Desired::Running => towards_running(instance, observed, now),
        Desired::Deleted => towards_deleted(instance, observed),
    }
}

#[allow(clippy::match_same_arms, reason = "the arms stand in the order of an instance's life")]
fn towards_running(instance: &Instance, observed: &Observed, now: DateTime<Utc>) -> Step {
    let current = match &observed.container {
        Seen::Ours(c) if c.generation == instance.generation && c.port == instance.port => Some(c.status),
        _ => None,
    };
    match (instance.phase, current) {
        (Phase::Deleted | Phase::Draining | Phase::Removing, _) => Step::Advance(Phase::Pending),

        (Phase::Failed, _) if matches!(observed.container, Seen::Ours(_)) => Step::Remove,
        (Phase::Failed, _) => match instance.next_attempt_at {
            Some(at) if at > now => Step::WaitUntil(at),
            _ => Step::Advance(Phase::Pending),
        },

        (Phase::Pending, None) => match &observed.container {
            Seen::Absent => Step::Create,
            // Giving up gives the port back: no route of an earlier life may still lead there.
            Seen::Foreign if observed.routed != Some(false) => Step::AwaitPublish,
            Seen::Foreign if instance.ready_at.is_none() => Step::Refuse,
            Seen::Foreign => Step::NameHeld,
            Seen::Ours(_) => Step::Remove,
        },
        (Phase::Pending, Some(Status::Running | Status::Restarting)) => Step::Advance(Phase::Starting),
        (Phase::Pending | Phase::Starting, Some(Status::Stopped | Status::Paused)) => Step::Start,
        (Phase::Pending, Some(Status::Dead)) => Step::Remove,

        (Phase::Starting, Some(Status::Running | Status::Restarting)) => Step::AwaitReady(Phase::Ready),

        (Phase::Ready, Some(Status::Running)) if observed.routed == Some(true) => Step::ConfirmRoute,
        (Phase::Ready, Some(Status::Running)) => Step::AwaitPublish,

        (Phase::Running, Some(Status::Running)) => Step::Settled,
        (Phase::Running, Some(Status::Restarting)) => Step::Advance(Phase::Restarting),

        (Phase::Restarting, Some(Status::Running | Status::Restarting)) => Step::AwaitReady(Phase::Running),

        // Gone, replaced, stopped by hand or of an older generation: from the beginning.
        (Phase::Starting | Phase::Ready | Phase::Running | Phase::Restarting, _) => Step::Advance(Phase::Pending),
    }
}

fn towards_deleted(instance: &Instance, observed: &Observed) -> Step {
    match instance.phase {
        Phase::Deleted => Step::Settled,
        Phase::Draining if observed.routed == Some(false) => Step::Drain,
        Phase::Draining => Step::AwaitPublish,
        Phase::Removing if matches!(observed.container, Seen::Ours(_)) => Step::Remove,
        Phase::Removing => Step::Advance(Phase::Deleted),
        _ => Step::Advance(Phase::Draining),
    }
}

/// How long a failed instance rests: doubled with each failure in a row, up to `max`.
#[must_use]
pub fn backoff(attempts: i32, base: Duration, max: Duration) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(30);
    base.saturating_mul(1 << doublings).min(max)
}

/// Failures in a row that still count, now that an instance leaves a phase: one that ran for
/// `stable_after` starts afresh, one that keeps falling over does not.
#[must_use]
pub fn attempts_carried(instance: &Instance, stable_after: Duration, now: DateTime<Utc>) -> i32 {
    let stable =
        instance.phase == Phase::Running && (now - instance.phase_since).to_std().is_ok_and(|ran| ran >= stable_after);
    if stable { 0 } else { instance.attempts }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A world of one instance, in which every step does what the executor would do.
    #[derive(Debug, Clone)]
    struct World {
        row: Instance,
        container: Seen,
        /// What HAProxy routes to.
        route: Option<u16>,
        /// Whether the executor knows what HAProxy routes to.
        known: bool,
        /// The generation of the last container whose Hoodie answered.
        answered_generation: i64,
        now: DateTime<Utc>,
    }

    /// What may happen behind our back, or go wrong, between two steps.
    #[derive(Debug, Clone, Copy)]
    enum Fault {
        ContainerRemoved,
        ContainerStopped,
        ContainerPaused,
        ContainerCrashed,
        ContainerDead,
        HoodieNeverReady,
        NameGrabbed,
        NameGivenBack,
        Deprovisioned,
        Provisioned,
        PortMoved,
        Published,
        RouteForgotten,
        CrashBeforeManifestWrite,
        TimePasses,
    }

    impl World {
        fn new() -> Self {
            Self {
                row: Instance::example(),
                container: Seen::Absent,
                route: None,
                known: false,
                answered_generation: 0,
                now: DateTime::UNIX_EPOCH,
            }
        }

        fn observe(&self) -> Observed {
            let routed = self.known.then_some(self.route.is_some() && self.route == self.row.port);
            Observed { container: self.container.clone(), routed }
        }

        fn publish(&mut self) {
            self.known = true;
            self.route = self.row.port.filter(|_| self.row.routable());
        }

        fn enter(&mut self, phase: Phase) {
            assert!(self.row.phase.may_become(phase), "{} -> {phase}", self.row.phase);
            if phase == Phase::Deleted {
                self.row.port = None;
            }
            self.row.phase = phase;
            self.row.phase_since = self.now;
        }

        fn fail(&mut self) {
            self.container = Seen::Absent;
            self.row.attempts += 1;
            self.row.next_attempt_at = Some(self.now + chrono::Duration::seconds(2));
            self.enter(Phase::Failed);
        }

        fn set_status(&mut self, to: Status) {
            if let Seen::Ours(c) = &mut self.container {
                c.status = to;
            }
        }

        /// One step of the executor. `crash` stops it before it writes to the manifest.
        #[allow(clippy::match_same_arms, reason = "one arm for each step")]
        fn step(&mut self, crash: bool, never_ready: bool) -> Step {
            let step = plan(&self.row, &self.observe(), self.now);
            match step.clone() {
                Step::Settled => {}
                Step::WaitUntil(at) => self.now = at,
                Step::AwaitPublish => self.publish(),
                Step::Advance(phase) if !crash => self.enter(phase),
                Step::Create => {
                    assert_eq!(self.container, Seen::Absent, "never created over another container");
                    self.container = Seen::Ours(Container {
                        generation: self.row.generation,
                        port: self.row.port,
                        status: Status::Running,
                    });
                    if !crash {
                        self.enter(Phase::Starting);
                    }
                }
                Step::Start => {
                    self.set_status(Status::Running);
                    if !crash && self.row.phase == Phase::Pending {
                        self.enter(Phase::Starting);
                    }
                }
                Step::AwaitReady(_) if never_ready => {
                    if crash {
                        self.container = Seen::Absent;
                    } else {
                        self.fail();
                    }
                }
                Step::AwaitReady(phase) => {
                    self.set_status(Status::Running);
                    self.answered_generation = self.row.generation;
                    if !crash {
                        self.row.ready_at = Some(self.now);
                        self.enter(phase);
                    }
                }
                Step::ConfirmRoute if !crash => self.enter(Phase::Running),
                Step::Drain if !crash => self.enter(Phase::Removing),
                Step::Remove => {
                    assert!(matches!(self.container, Seen::Ours(_)), "never removed another's container");
                    self.container = Seen::Absent;
                }
                Step::Refuse if !crash => {
                    assert!(self.row.ready_at.is_none());
                    self.row.desired = Desired::Deleted;
                    self.enter(Phase::Deleted);
                }
                Step::NameHeld if !crash => {
                    self.row.attempts += 1;
                    self.row.next_attempt_at = Some(self.now + chrono::Duration::seconds(2));
                    self.enter(Phase::Failed);
                }
                _ => {}
            }
            step
        }

        fn suffer(&mut self, fault: Fault) {
            match fault {
                Fault::ContainerRemoved if matches!(self.container, Seen::Ours(_)) => self.container = Seen::Absent,
                Fault::ContainerStopped => self.set_status(Status::Stopped),
                Fault::ContainerPaused => self.set_status(Status::Paused),
                Fault::ContainerCrashed => self.set_status(Status::Restarting),
                Fault::ContainerDead => self.set_status(Status::Dead),
                Fault::NameGrabbed if self.container == Seen::Absent => self.container = Seen::Foreign,
                Fault::NameGivenBack if self.container == Seen::Foreign => self.container = Seen::Absent,
                Fault::Deprovisioned if self.row.desired == Desired::Running => {
                    self.row.desired = Desired::Deleted;
                    self.row.generation += 1;
                }
                Fault::Provisioned if self.row.desired == Desired::Deleted => {
                    self.row.desired = Desired::Running;
                    self.row.generation += 1;
                    self.row.ready_at = None;
                    self.row.port = self.row.port.or(Some(5522));
                    if self.row.phase == Phase::Deleted {
                        self.row.phase = Phase::Pending;
                    }
                }
                // What the executor does when somebody else on the host holds the port.
                Fault::PortMoved if self.row.phase == Phase::Pending && self.route.is_none() => {
                    self.row.port = Some(5523);
                }
                Fault::Published => self.publish(),
                Fault::RouteForgotten => self.known = false,
                Fault::TimePasses => self.now += chrono::Duration::seconds(60),
                Fault::CrashBeforeManifestWrite => {
                    self.step(true, false);
                }
                Fault::HoodieNeverReady => {
                    self.step(false, true);
                }
                _ => {}
            }
        }

        fn assert_invariants(&self) {
            if let (true, Seen::Ours(c)) = (self.row.routable(), &self.container) {
                let answered = c.generation == self.answered_generation || c.generation != self.row.generation;
                assert!(answered, "routed before its Hoodie answered");
            }
            if self.row.phase == Phase::Deleted {
                assert_eq!(self.row.port, None);
                assert_eq!(self.route, None, "its port is given back while a route leads there");
                assert!(!matches!(self.container, Seen::Ours(_)), "deleted while its container lives");
            }
        }
    }

    fn faults() -> impl Strategy<Value = Vec<(Fault, u8)>> {
        let fault = prop_oneof![
            Just(Fault::ContainerRemoved),
            Just(Fault::ContainerStopped),
            Just(Fault::ContainerPaused),
            Just(Fault::ContainerCrashed),
            Just(Fault::ContainerDead),
            Just(Fault::HoodieNeverReady),
            Just(Fault::NameGrabbed),
            Just(Fault::NameGivenBack),
            Just(Fault::Deprovisioned),
            Just(Fault::Provisioned),
            Just(Fault::PortMoved),
            Just(Fault::Published),
            Just(Fault::RouteForgotten),
            Just(Fault::CrashBeforeManifestWrite),
            Just(Fault::TimePasses),
        ];
        proptest::collection::vec((fault, 0u8..4), 0..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn any_history_converges(history in faults(), wanted in any::<bool>()) {
            let mut world = World::new();
            for (fault, steps) in history {
                world.suffer(fault);
                world.assert_invariants();
                for _ in 0..steps {
                    world.step(false, false);
                    world.assert_invariants();
                }
            }
            world.suffer(Fault::NameGivenBack);
            world.suffer(if wanted { Fault::Provisioned } else { Fault::Deprovisioned });
            let mut steps = 0;
            while world.step(false, false) != Step::Settled {
                world.assert_invariants();
                steps += 1;
                prop_assert!(steps < 30, "does not converge: {world:?}");
            }
            world.publish();
            if wanted {
                prop_assert_eq!(world.row.phase, Phase::Running);
                prop_assert_eq!(world.route, world.row.port);
                let current = matches!(&world.container, Seen::Ours(c)
                    if c.generation == world.row.generation && c.status == Status::Running);
                prop_assert!(current, "{:?}", world.container);
            } else {
                prop_assert_eq!(world.row.phase, Phase::Deleted);
                prop_assert_eq!(world.route, None);
                prop_assert!(!matches!(world.container, Seen::Ours(_)));
            }
        }
    }

    #[test]
    fn a_healthy_instance_is_left_alone() {
        let mut world = World::new();
        while world.step(false, false) != Step::Settled {}
        assert_eq!(world.row.phase, Phase::Running);
        let before = world.row.clone();
        assert_eq!(world.step(false, false), Step::Settled);
        assert_eq!(world.row, before);
    }

    #[test]
    fn a_crashing_hoodie_keeps_its_route() {
        let mut world = World::new();
        while world.step(false, false) != Step::Settled {}
        world.suffer(Fault::ContainerCrashed);
        assert_eq!(world.step(false, false), Step::Advance(Phase::Restarting));
        assert!(world.row.routable());
    }

    #[test]
    fn backoff_doubles_up_to_its_bound() {
        let (base, max) = (Duration::from_secs(2), Duration::from_secs(300));
        let seconds: Vec<u64> = (1..=10).map(|n| backoff(n, base, max).as_secs()).collect();
        assert_eq!(seconds, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(backoff(i32::MAX, base, max), max);
        assert_eq!(backoff(0, base, max), base);
    }

    #[test]
    fn only_a_stable_run_forgives_earlier_failures() {
        let mut row = Instance { attempts: 3, phase: Phase::Running, ..Instance::example() };
        let stable = Duration::from_secs(60);
        let at = |s| DateTime::UNIX_EPOCH + chrono::Duration::seconds(s);
        assert_eq!(attempts_carried(&row, stable, at(59)), 3);
        assert_eq!(attempts_carried(&row, stable, at(60)), 0);
        row.phase = Phase::Ready;
        assert_eq!(attempts_carried(&row, stable, at(60)), 3);
    }
}
