mod anew;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::archive::Archive;
use crate::instance::spec::{Egress, Spec};

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
    /// Whether there is room among those that are awake.
    room: bool,
    /// Volumes by name, with what was written there last; it grows with each run.
    volumes: BTreeMap<String, u32>,
    /// What the archive's file has.
    archived: Option<u32>,
    /// What its users wrote last.
    written: u32,
    purged: bool,
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
    LaidToRest(Desired),
    Woken,
    ContainerStarted,
    NoRoom,
    Rolled,
    Rotated,
    Purged,
}

impl World {
    fn new() -> Self {
        Self {
            row: Instance::example(),
            container: Seen::Absent,
            route: None,
            known: false,
            answered_generation: 0,
            room: true,
            volumes: BTreeMap::new(),
            archived: None,
            written: 0,
            purged: false,
            now: DateTime::UNIX_EPOCH,
        }
    }

    fn observe(&self) -> Observed {
        let leads_here = self.route.is_some() && self.route == self.row.port;
        let routed = if self.row.port.is_none() { Some(false) } else { self.known.then_some(leads_here) };
        Observed { container: self.container.clone(), routed, room: self.room }
    }

    fn publish(&mut self) {
        self.known = true;
        self.route = self.row.port.filter(|_| self.row.routable());
    }

    fn enter(&mut self, phase: Phase) {
        assert!(self.row.phase.may_become(phase), "{} -> {phase}", self.row.phase);
        match phase {
            Phase::Deleted | Phase::Archived => self.row.port = None,
            Phase::Pending => {
                self.row.port = self.row.port.or(Some(5522));
                self.row.rolling = self.row.next_spec.is_some();
            }
            Phase::Running if self.row.rolling => {
                self.row.spec = self.row.next_spec.take();
                self.row.rolling = false;
            }
            _ => {}
        }
        self.row.phase = phase;
        self.row.phase_since = self.now;
    }

    fn container(&self, volume: String) -> Container {
        Container {
            generation: self.row.generation,
            port: self.row.port,
            status: Status::Stopped,
            spec: self.row.wanted_spec().map(Spec::digest),
            volume: Some(volume),
        }
    }

    /// Starts it: its users write something.
    fn run(&mut self) {
        self.set_status(Status::Running);
        let Seen::Ours(container) = &self.container else { return };
        let volume = container.volume.clone().unwrap();
        assert!(self.row.archive.is_none(), "runs while the archive has the data");
        assert_eq!(volume, self.row.volume(), "runs on data that is not its own");
        let content = self.volumes.get_mut(&volume).expect("its volume is there");
        assert_eq!(*content, self.written, "it has lost what was written");
        *content += 1;
        self.written = *content;
    }

    fn fail(&mut self) {
        self.container = Seen::Absent;
        self.row.attempts += 1;
        self.row.next_attempt_at = Some(self.now + chrono::Duration::seconds(2));
        if self.row.rolling {
            (self.row.next_spec, self.row.rolling) = (None, false);
        }
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
            Step::AwaitRoom => self.room = true,
            Step::Create => {
                assert_eq!(self.container, Seen::Absent, "never created over another container");
                let volume = self.row.volume();
                self.volumes.entry(volume.clone()).or_insert(0);
                self.container = Seen::Ours(self.container(volume));
                self.run();
                if !crash {
                    self.enter(Phase::Starting);
                }
            }
            Step::Start => {
                self.run();
                if !crash && self.row.phase == Phase::Pending {
                    self.enter(Phase::Starting);
                }
            }
            Step::Restore => {
                assert_eq!(self.container, Seen::Absent, "never restored under a container");
                let next = Instance { volume_serial: self.row.volume_serial + 1, ..self.row.clone() };
                let volume = next.volume();
                self.volumes.insert(volume.clone(), self.archived.expect("the archive is there"));
                self.container = Seen::Ours(self.container(volume));
                if !crash {
                    self.row.volume_serial += 1;
                    self.row.archive = None;
                    self.archived = None;
                }
            }
            Step::Archive => {
                assert!(!matches!(&self.container, Seen::Ours(c) if c.is_up()), "archived while it runs");
                self.archived = Some(self.volumes.get(&self.row.volume()).copied().unwrap_or_default());
                if !crash {
                    self.row.archive = Some(Box::new(archive()));
                }
            }
            Step::FreeVolumes => {
                assert!(self.row.archive.is_some() && !matches!(self.container, Seen::Ours(_)));
                self.volumes.clear();
                if !crash {
                    self.enter(Phase::Archived);
                }
            }
            Step::Pause => self.set_status(Status::Paused),
            Step::Stop => self.set_status(Status::Stopped),
            Step::Purge => {
                self.volumes.clear();
                self.archived = None;
                self.purged = !crash;
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
            Step::Drain(next) if !crash => self.enter(next),
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
            Fault::Deprovisioned if !self.row.desired.gone() => {
                self.row.desired = Desired::Deleted;
                self.row.generation += 1;
            }
            Fault::Purged if self.row.desired != Desired::Purged => {
                self.row.generation += i64::from(!self.row.desired.gone());
                self.row.desired = Desired::Purged;
            }
            Fault::Provisioned if self.row.desired == Desired::Deleted => {
                self.row.desired = Desired::Running;
                self.row.generation += 1;
                self.row.ready_at = None;
                if self.row.phase == Phase::Deleted {
                    self.enter(Phase::Pending);
                }
            }
            Fault::LaidToRest(desired) if !self.row.desired.gone() => self.row.desired = desired,
            Fault::Woken if self.row.desired.resting() => self.row.desired = Desired::Running,
            // By hand, with data that is its own.
            Fault::ContainerStarted
                if matches!(&self.container, Seen::Ours(c) if c.is_of(&self.row)) && self.row.archive.is_none() =>
            {
                self.run();
            }
            Fault::NoRoom => self.room = false,
            Fault::Rolled if !self.row.desired.gone() => {
                let image = format!("image:{}", self.row.phase_since.timestamp() + self.row.generation);
                self.row.next_spec = Some(spec(&image).into());
                self.row.rolling = self.row.phase == Phase::Running && self.row.desired == Desired::Running;
            }
            Fault::Rotated if !self.row.desired.gone() => rotate(&mut self.row, &spec("image")),
            // What the executor does when somebody else on the host holds the port.
            Fault::PortMoved
                if self.row.phase == Phase::Pending
                    && self.route.is_none()
                    && !matches!(self.container, Seen::Ours(_)) =>
            {
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
        if matches!(self.row.phase, Phase::Deleted | Phase::Archived) {
            assert_eq!(self.row.port, None);
            assert_eq!(self.route, None, "its port is given back while a route leads there");
            assert!(!matches!(self.container, Seen::Ours(_)), "deleted while its container lives");
        }
        if self.written > 0 && !self.purged && self.row.desired != Desired::Purged {
            let kept =
                if self.row.archive.is_some() { self.archived } else { self.volumes.get(&self.row.volume()).copied() };
            assert_eq!(kept, Some(self.written), "what was written is lost");
        }
    }
}

fn spec(image: &str) -> Spec {
    Spec { image: image.to_owned(), memory_mib: 192, millicpus: 1000, pids: 64, log_mib: 1, egress: Egress::None }
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
        Just(Fault::LaidToRest(Desired::Paused)),
        Just(Fault::LaidToRest(Desired::Asleep)),
        Just(Fault::LaidToRest(Desired::Archived)),
        Just(Fault::Woken),
        Just(Fault::ContainerStarted),
        Just(Fault::NoRoom),
        Just(Fault::Rolled),
        Just(Fault::Rotated),
        // Seldom, since nothing comes after it.
        (0..20u8).prop_map(|n| if n == 0 { Fault::Purged } else { Fault::TimePasses }),
    ];
    proptest::collection::vec((fault, 0u8..6), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn any_history_converges(history in faults(), end in proptest::sample::select(Desired::ALL)) {
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
        prop_assume!(world.row.desired != Desired::Purged || end == Desired::Purged);
        match end {
            Desired::Deleted => world.suffer(Fault::Deprovisioned),
            Desired::Purged => world.suffer(Fault::Purged),
            _ => {
                world.suffer(Fault::Provisioned);
                world.row.desired = end;
            }
        }
        let mut steps = 0;
        while !world.purged && world.step(false, false) != Step::Settled {
            world.assert_invariants();
            steps += 1;
            prop_assert!(steps < 40, "does not converge: {world:?}");
        }
        world.publish();
        let ours = match &world.container { Seen::Ours(c) => Some(c.clone()), _ => None };
        let up = ours.as_ref().is_some_and(Container::is_up);
        match end {
            Desired::Running => {
                prop_assert_eq!(world.row.phase, Phase::Running);
                prop_assert_eq!(world.route, world.row.port);
                prop_assert!(ours.is_some_and(|c| c.is_of(&world.row) && c.status == Status::Running));
            }
            Desired::Paused => {
                // What has gone further down stays there until it is woken.
                let archived = world.row.phase == Phase::Archived && world.row.archive.is_some();
                let phase = archived || matches!(world.row.phase, Phase::Paused | Phase::Asleep);
                prop_assert!(world.route.is_none() && phase);
                prop_assert!(ours.is_none_or(|c| !matches!(c.status, Status::Running | Status::Restarting)));
            }
            Desired::Asleep => {
                prop_assert!(world.route.is_none() && !up);
                let expected = if world.row.archive.is_some() { Phase::Archived } else { Phase::Asleep };
                prop_assert_eq!(world.row.phase, expected);
            }
            Desired::Archived => {
                prop_assert_eq!(world.row.phase, Phase::Archived);
                prop_assert!(ours.is_none() && world.volumes.is_empty() && world.archived.is_some());
            }
            Desired::Deleted => {
                prop_assert_eq!(world.row.phase, Phase::Deleted);
                prop_assert!(ours.is_none() && world.route.is_none());
            }
            Desired::Purged => {
                prop_assert!(world.purged && ours.is_none() && world.volumes.is_empty() && world.archived.is_none());
            }
        }
    }
}

fn archive() -> Archive {
    Archive {
        file: "f".to_owned(),
        sha256: String::new(),
        bytes: 0,
        digest: String::new(),
        made_at: DateTime::UNIX_EPOCH,
        format: crate::archive::FORMAT,
    }
}

fn settled(world: &mut World) {
    while world.step(false, false) != Step::Settled {}
}

#[test]
fn a_wake_starts_the_same_container_once() {
    let mut world = World::new();
    settled(&mut world);
    world.row.desired = Desired::Asleep;
    settled(&mut world);
    assert_eq!(world.row.phase, Phase::Asleep);
    let steps = [
        Step::Advance(Phase::Pending),
        Step::Start,
        Step::AwaitReady(Phase::Ready),
        Step::AwaitPublish,
        Step::ConfirmRoute,
        Step::Settled,
    ];
    world.row.desired = Desired::Running;
    for step in steps {
        assert_eq!(world.step(false, false), step);
    }
}

#[test]
fn a_healthy_instance_is_left_alone() {
    let mut world = World::new();
    settled(&mut world);
    assert_eq!(world.row.phase, Phase::Running);
    let before = world.row.clone();
    assert_eq!(world.step(false, false), Step::Settled);
    assert_eq!(world.row, before);
}

#[test]
fn a_crashing_hoodie_keeps_its_route() {
    let mut world = World::new();
    settled(&mut world);
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
