//! What to do next for one instance: a pure function of the manifest's row and what was seen.
//!
//! Every decision of the control plane is made here; the executor carries out one step and
//! comes back. Crashing between any two steps is harmless because the next call starts from
//! what is there, not from what was meant to be.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::spec::Spec;
use super::{Desired, Instance, Phase};

/// What the world looked like a moment ago, as far as this instance goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Who holds the container name.
    pub container: Seen,
    /// Whether HAProxy sends requests to it; none while that is not known.
    pub routed: Option<bool>,
    /// Whether there is room for it among those that are awake.
    pub room: bool,
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
    /// The digest of what it is made of; none where that was never written down.
    pub spec: Option<String>,
    /// The volume with its data; none where it can only be the first.
    pub volume: Option<String>,
}

impl Container {
    /// Whether it is what the row asks for: of this generation, at this port, with this data, and
    /// made of what it should be.
    #[must_use]
    pub fn is_of(&self, instance: &Instance) -> bool {
        let same_spec = match (&self.spec, instance.wanted_spec()) {
            (Some(spec), Some(wanted)) => *spec == wanted.digest(),
            // One from before that was written down is what it is, until it is rolled.
            (None, _) => !instance.rolling,
            (Some(_), None) => true,
        };
        self.generation == instance.generation && self.port == instance.port && self.has_data_of(instance) && same_spec
    }

    /// Whether its volume is the one that the row names.
    #[must_use]
    pub fn has_data_of(&self, instance: &Instance) -> bool {
        match &self.volume {
            Some(volume) => *volume == instance.volume(),
            None => instance.volume_serial == 0,
        }
    }

    /// Whether its process is there, and takes memory.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.status, Status::Running | Status::Restarting | Status::Paused)
    }
}

/// Docker's container states (Docker Engine API, `ContainerState.Status`), as far as they differ
/// for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Made, or ended and left so by Docker: it has to be started.
    Stopped,
    /// Frozen.
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
    /// Too many are awake: one that nobody uses has to make room first.
    AwaitRoom,
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
    /// Wait until nobody is talking to it any more; then this phase.
    Drain(Phase),
    /// Freeze the container; the phase stays.
    Pause,
    /// Stop the container; the phase stays.
    Stop,
    /// Stop and remove the container; the phase stays.
    Remove,
    /// Write the volume's data into an archive; from then on that has the data.
    Archive,
    /// Remove the volume, since the archive has the data; then `Archived`.
    FreeVolumes,
    /// Write the archive's data into a new volume; from then on that has the data.
    Restore,
    /// Remove its data, wherever that is, and the row.
    Purge,
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
        Desired::Paused | Desired::Asleep | Desired::Archived => towards_rest(instance, observed, now),
        Desired::Deleted | Desired::Purged => towards_deleted(instance, observed),
    }
}

#[allow(clippy::match_same_arms, reason = "the arms stand in the order of an instance's life")]
fn towards_running(instance: &Instance, observed: &Observed, now: DateTime<Utc>) -> Step {
    let ours = match &observed.container {
        Seen::Ours(container) => Some(container),
        Seen::Absent | Seen::Foreign => None,
    };
    // While the archive has the data, no container has.
    let current = ours.filter(|c| instance.archive.is_none() && c.is_of(instance)).map(|c| c.status);
    match (instance.phase, current) {
        // To be made anew: nobody may be talking to it then.
        (Phase::Ready | Phase::Running | Phase::Restarting, None) if instance.rolling && ours.is_some() => {
            Step::Advance(Phase::Draining)
        }
        (Phase::Draining, _) if instance.rolling => drain(observed, Phase::Removing),
        (Phase::Removing, _) if instance.rolling && ours.is_some() => Step::Remove,

        (Phase::Deleted | Phase::Archived | Phase::Archiving | Phase::Asleep | Phase::Paused, _) => {
            Step::Advance(Phase::Pending)
        }
        (Phase::Draining | Phase::Stopping | Phase::Removing, _) => Step::Advance(Phase::Pending),

        (Phase::Failed, _) if ours.is_some() => Step::Remove,
        (Phase::Failed, _) => match instance.next_attempt_at {
            Some(at) if at > now => Step::WaitUntil(at),
            _ => Step::Advance(Phase::Pending),
        },

        (Phase::Pending, None) => match &observed.container {
            Seen::Absent if !observed.room => Step::AwaitRoom,
            Seen::Absent if instance.archive.is_some() => Step::Restore,
            Seen::Absent => Step::Create,
            // Giving up gives the port back: no route of an earlier life may still lead there.
            Seen::Foreign if observed.routed != Some(false) => Step::AwaitPublish,
            Seen::Foreign if instance.ready_at.is_none() => Step::Refuse,
            Seen::Foreign => Step::NameHeld,
            Seen::Ours(_) => Step::Remove,
        },
        (Phase::Pending, Some(Status::Running | Status::Restarting)) => Step::Advance(Phase::Starting),
        (Phase::Pending, Some(Status::Stopped | Status::Paused)) if !observed.room => Step::AwaitRoom,
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

/// Down to where the row says, and no further: never over a container that still runs, never over
/// data that is nowhere else.
#[allow(clippy::match_same_arms, reason = "the arms stand in the order of the way down")]
fn towards_rest(instance: &Instance, observed: &Observed, now: DateTime<Utc>) -> Step {
    let ours = match &observed.container {
        Seen::Ours(container) => Some(container),
        Seen::Absent | Seen::Foreign => None,
    };
    let up = ours.is_some_and(Container::is_up);
    let runs = ours.is_some_and(|c| matches!(c.status, Status::Running | Status::Restarting));
    let (pause, archive) = (instance.desired == Desired::Paused, instance.desired == Desired::Archived);
    match instance.phase {
        Phase::Pending | Phase::Starting | Phase::Ready | Phase::Running | Phase::Restarting | Phase::Failed => {
            Step::Advance(Phase::Draining)
        }
        Phase::Removing | Phase::Deleted => Step::Advance(Phase::Pending),
        Phase::Draining => drain(observed, Phase::Stopping),

        Phase::Stopping | Phase::Paused if pause && runs => Step::Pause,
        Phase::Stopping if pause && up => Step::Advance(Phase::Paused),
        // One that stopped by itself is woken all the same.
        Phase::Paused if pause => Step::Settled,
        Phase::Paused => Step::Advance(Phase::Stopping),
        Phase::Stopping | Phase::Asleep | Phase::Archiving | Phase::Archived if up => Step::Stop,
        Phase::Stopping => Step::Advance(Phase::Asleep),
        Phase::Asleep if archive || instance.archive.is_some() => Step::Advance(Phase::Archiving),
        Phase::Asleep => Step::Settled,

        Phase::Archiving if instance.archive.is_some() && ours.is_some() => Step::Remove,
        Phase::Archiving if !archive && instance.archive.is_none() => Step::Advance(Phase::Asleep),
        Phase::Archiving => match instance.next_attempt_at {
            Some(at) if at > now => Step::WaitUntil(at),
            _ if instance.archive.is_some() => Step::FreeVolumes,
            _ => Step::Archive,
        },
        Phase::Archived if ours.is_some() => Step::Remove,
        Phase::Archived => Step::Settled,
    }
}

fn towards_deleted(instance: &Instance, observed: &Observed) -> Step {
    match instance.phase {
        Phase::Deleted if instance.desired == Desired::Purged => Step::Purge,
        Phase::Deleted => Step::Settled,
        Phase::Draining => drain(observed, Phase::Removing),
        Phase::Removing if matches!(observed.container, Seen::Ours(_)) => Step::Remove,
        Phase::Removing => Step::Advance(Phase::Deleted),
        // Drained already, and nothing leads to it.
        Phase::Stopping | Phase::Paused | Phase::Asleep | Phase::Archiving | Phase::Archived => {
            Step::Advance(Phase::Removing)
        }
        _ => Step::Advance(Phase::Draining),
    }
}

/// Out of HAProxy first; then its last requests.
fn drain(observed: &Observed, next: Phase) -> Step {
    if observed.routed == Some(false) { Step::Drain(next) } else { Step::AwaitPublish }
}

/// Gives an instance its next generation, and so its admin another password: its container is made
/// anew, where somebody may be talking to it in the order of a roll. `spec` is what it is made of where
/// that was never written down.
pub fn rotate(instance: &mut Instance, spec: &Spec) {
    instance.generation += 1;
    let in_use = matches!(instance.phase, Phase::Ready | Phase::Running | Phase::Restarting | Phase::Draining);
    instance.rolling |= in_use && instance.desired == Desired::Running;
    if instance.rolling && instance.next_spec.is_none() {
        // Of the same as before.
        instance.next_spec = Some(instance.spec.clone().unwrap_or_else(|| Arc::new(spec.clone())));
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
mod tests;
