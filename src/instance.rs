//! The domain, pure: what an instance is, what it should be, and how far it has come.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub mod hosts;
pub mod name;
pub mod plan;
pub mod policy;
pub mod spec;
pub mod storage;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::archive::Archive;
use name::{AppName, ContainerName, Email, Hostname, Username};
use policy::Overrides;
use spec::Spec;
use storage::StorageFull;

/// One user's one app: the row in the ship manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Identity that survives re-provisioning; names the volume and derives the password.
    pub id: Uuid,
    /// Whose it is.
    pub username: Username,
    /// Which of the user's apps it serves.
    pub appname: AppName,
    /// Where the owner gets mail.
    pub email: Email,
    /// The host that HAProxy routes to it, by the pattern.
    pub host: Hostname,
    /// Custom domains that lead to it, too.
    pub extra_hosts: Vec<Hostname>,
    /// The Docker name, `<username>-<app>`.
    pub container: ContainerName,
    /// The loopback port that is published for it; none once it is archived or deleted.
    pub port: Option<u16>,
    /// What it should be. Written by handlers, commands and the policy only.
    pub desired: Desired,
    /// How far it has come. Written by the reconciler only, by compare-and-set.
    pub phase: Phase,
    /// When the phase was entered.
    pub phase_since: DateTime<Utc>,
    /// Counts the changes of what is desired; the container carries the one that it was made for.
    pub generation: i64,
    /// The last generation that was carried out in full.
    pub observed_generation: i64,
    /// Failures in a row.
    pub attempts: i32,
    /// When a failed instance is tried again.
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// Why the last attempt failed, for people.
    pub last_error: Option<String>,
    /// Whether it was provisioned again and found the data of its earlier life.
    pub restored: bool,
    /// When it was first asked for.
    pub created_at: DateTime<Utc>,
    /// When the row last changed.
    pub updated_at: DateTime<Utc>,
    /// When its Hoodie first answered in this life.
    pub ready_at: Option<DateTime<Utc>>,
    /// When its users last asked it for something, as far as that was written down.
    pub last_used_at: Option<DateTime<Utc>>,
    /// Where it departs from the installation's clean-up policy, if it does.
    pub overrides: Option<Box<Overrides>>,
    /// The file that its data is in; none while it is in the volume. Never both: whichever is not
    /// the data any more is removed.
    pub archive: Option<Box<Archive>>,
    /// Which of its volumes has its data: each restored archive goes into a new one, with a number that
    /// none has.
    pub volume_serial: i32,
    /// What its container is made of; none where that was never written down.
    pub spec: Option<Arc<Spec>>,
    /// What its container will be made of, once it is made anew.
    pub next_spec: Option<Arc<Spec>>,
    /// Whether that is under way; it becomes its `spec` when its Hoodie answers at its host.
    pub rolling: bool,
    /// Until when a deleted one can be restored for sure; none for ever.
    pub restorable_until: Option<DateTime<Utc>>,
    /// That it was stopped because its data took more of the disk than it may.
    pub storage_full: Option<Box<StorageFull>>,
}

/// What an instance should be, in the order of the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Desired {
    /// Answering at its host.
    Running,
    /// Frozen in memory, until somebody asks for it.
    Paused,
    /// Stopped, until somebody asks for it.
    Asleep,
    /// Without a container and a volume: its data is in a file, until somebody asks for it.
    Archived,
    /// Gone, but for its data and a tombstone.
    Deleted,
    /// Gone with its data. There is no way back.
    Purged,
}

impl Desired {
    /// Whether it was taken away, rather than laid to rest.
    #[must_use]
    pub fn gone(self) -> bool {
        matches!(self, Self::Deleted | Self::Purged)
    }

    /// Whether the first request brings it back.
    #[must_use]
    pub fn resting(self) -> bool {
        matches!(self, Self::Paused | Self::Asleep | Self::Archived)
    }
}

/// How far an instance has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Wanted; no container of the current generation is known.
    Pending,
    /// The container was started; its Hoodie has not answered yet.
    Starting,
    /// Its Hoodie answers; HAProxy does not route to it yet.
    Ready,
    /// Its Hoodie answers at its host.
    Running,
    /// Was running, and Docker's restart policy is bringing it back. It keeps its route, so
    /// that a Hoodie that crashes over and over does not make HAProxy reload each time.
    Restarting,
    /// An attempt failed; the next one comes at `next_attempt_at`.
    Failed,
    /// To rest, or unwanted: leaving HAProxy, then waiting for its last requests.
    Draining,
    /// Drained: its container is being paused or stopped.
    Stopping,
    /// Its container is frozen.
    Paused,
    /// Its container stands still, or is not there.
    Asleep,
    /// Its data is being written into an archive, then its container and its volume are removed.
    Archiving,
    /// Its data is in an archive; container, volume and port are given back.
    Archived,
    /// Drained, and unwanted or to be made anew: its container is being stopped and removed.
    Removing,
    /// The container is gone and the port given back; the data and this tombstone remain.
    Deleted,
}

/// A word in the database that this binary does not know.
#[derive(Debug, Error)]
#[error("unknown {what}: {word:?}")]
pub struct UnknownWord {
    what: &'static str,
    word: String,
}

macro_rules! words {
    ($type:ident, $what:literal, $($variant:ident = $word:literal),+ $(,)?) => {
        impl $type {
            /// Every variant.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that stands in the database and in JSON.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::str::FromStr for $type {
            type Err = UnknownWord;
            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownWord { what: $what, word: word.to_owned() }),
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words!(
    Desired,
    "desired state",
    Running = "running",
    Paused = "paused",
    Asleep = "asleep",
    Archived = "archived",
    Deleted = "deleted",
    Purged = "purged",
);
words!(
    Phase,
    "phase",
    Pending = "pending",
    Starting = "starting",
    Ready = "ready",
    Running = "running",
    Restarting = "restarting",
    Failed = "failed",
    Draining = "draining",
    Stopping = "stopping",
    Paused = "paused",
    Asleep = "asleep",
    Archiving = "archiving",
    Archived = "archived",
    Removing = "removing",
    Deleted = "deleted",
);
words!(
    State,
    "state",
    Pending = "pending",
    Running = "running",
    Failed = "failed",
    Paused = "paused",
    Asleep = "asleep",
    Archived = "archived",
    Deleting = "deleting",
    Deleted = "deleted",
);

/// The phase as callers see it: fewer words, each of which tells them what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// On its way; ask again.
    Pending,
    /// Answering at its endpoint.
    Running,
    /// Not answering; it is retried, and `last_error` says why.
    Failed,
    /// Frozen; the first request to its endpoint wakes it.
    Paused,
    /// Stopped; the first request to its endpoint wakes it.
    Asleep,
    /// Packed away; the first request to its endpoint unpacks and wakes it.
    Archived,
    /// On its way out.
    Deleting,
    /// Gone; its data is kept until it is purged.
    Deleted,
}

impl State {
    /// The phases that show as this state while an instance is wanted or unwanted.
    #[must_use]
    pub fn of(desired: Desired, phase: Phase) -> Self {
        match (desired, phase) {
            (Desired::Deleted | Desired::Purged, Phase::Deleted) => Self::Deleted,
            (Desired::Deleted | Desired::Purged, _) => Self::Deleting,
            (_, Phase::Failed) => Self::Failed,
            (Desired::Running, Phase::Running) => Self::Running,
            (Desired::Running, _) | (_, Phase::Pending) => Self::Pending,
            (_, Phase::Paused) => Self::Paused,
            (_, Phase::Asleep | Phase::Archiving) => Self::Asleep,
            (_, Phase::Archived) => Self::Archived,
            // On its way to rest, and back at once if somebody asks for it.
            (_, _) => Self::Running,
        }
    }
}

impl Instance {
    /// The state that callers see.
    #[must_use]
    pub fn state(&self) -> State {
        State::of(self.desired, self.phase)
    }

    /// Whether HAProxy should route to it: wanted, and its Hoodie has answered since its
    /// container was made.
    #[must_use]
    pub fn routable(&self) -> bool {
        self.desired == Desired::Running
            && self.port.is_some()
            && self.ready_at.is_some()
            && matches!(self.phase, Phase::Ready | Phase::Running | Phase::Restarting)
    }

    /// Every host that leads to it.
    pub fn hosts(&self) -> impl Iterator<Item = &Hostname> {
        std::iter::once(&self.host).chain(&self.extra_hosts)
    }

    /// Whether it is more than a tombstone: then its names are its own.
    #[must_use]
    pub fn live(&self) -> bool {
        self.phase != Phase::Deleted
    }

    /// Whether its container may run, or stand frozen, in this phase: then it takes memory.
    #[must_use]
    pub fn takes_memory(&self) -> bool {
        use Phase::{Draining, Paused, Ready, Removing, Restarting, Running, Starting, Stopping};
        matches!(self.phase, Starting | Ready | Running | Restarting | Draining | Stopping | Paused | Removing)
    }

    /// Whether it has lived before, and is coming back.
    #[must_use]
    pub fn returning(&self) -> bool {
        self.ready_at.is_some()
    }

    /// Whether its volume has data of it: it has run on it, or was brought back into it from an archive.
    #[must_use]
    pub fn expects_data(&self) -> bool {
        self.returning() || self.volume_serial > 0
    }

    /// The Docker volume with its data. Named after the id alone: a name that another user
    /// comes to hold later never leads to this data.
    #[must_use]
    pub fn volume(&self) -> String {
        volume_name(self.id, self.volume_serial)
    }

    /// Where it departs from the installation's clean-up policy.
    #[must_use]
    pub fn overrides(&self) -> Overrides {
        self.overrides.as_deref().copied().unwrap_or_default()
    }

    /// What its container is to be made of.
    #[must_use]
    pub fn wanted_spec(&self) -> Option<&Spec> {
        let next = self.next_spec.as_deref().filter(|_| self.rolling);
        next.or(self.spec.as_deref())
    }
}

#[cfg(test)]
impl Instance {
    /// A row as it is just after it was first asked for.
    pub(crate) fn example() -> Self {
        let (username, appname) = (Username::parse("alice").unwrap(), AppName::parse("notes").unwrap());
        let now = DateTime::UNIX_EPOCH;
        Self {
            id: Uuid::from_u128(1),
            container: ContainerName::of(&username, &appname),
            username,
            appname,
            email: Email::parse("alice@example.com").unwrap(),
            host: Hostname::parse("notes.alice.haas.localhost").unwrap(),
            extra_hosts: Vec::new(),
            port: Some(5521),
            desired: Desired::Running,
            phase: Phase::Pending,
            phase_since: now,
            generation: 1,
            observed_generation: 0,
            attempts: 0,
            next_attempt_at: None,
            last_error: None,
            restored: false,
            created_at: now,
            updated_at: now,
            ready_at: None,
            last_used_at: None,
            overrides: None,
            archive: None,
            volume_serial: 0,
            spec: None,
            next_spec: None,
            rolling: false,
            restorable_until: None,
            storage_full: None,
        }
    }
}

/// See [`Instance::volume`].
#[must_use]
pub fn volume_name(id: Uuid, serial: i32) -> String {
    match serial {
        0 => format!("haas-{}", id.simple()),
        serial => format!("haas-{}-{serial}", id.simple()),
    }
}

/// The serial number in a volume's name, if it is one of this instance's.
#[must_use]
pub fn volume_serial(id: Uuid, name: &str) -> Option<i32> {
    match name.strip_prefix(&volume_name(id, 0))? {
        "" => Some(0),
        rest => rest.strip_prefix('-')?.parse().ok(),
    }
}

impl Phase {
    /// Whether the reconciler may go from this phase to that one. Anything else is a bug, and
    /// the manifest refuses it.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use Phase::{
            Archived, Archiving, Asleep, Deleted, Draining, Failed, Paused, Pending, Ready, Removing, Restarting,
            Running, Starting, Stopping,
        };
        match self {
            Pending => matches!(next, Starting | Failed | Draining | Deleted),
            Starting => matches!(next, Pending | Ready | Failed | Draining),
            Ready => matches!(next, Pending | Running | Failed | Draining),
            Running => matches!(next, Pending | Restarting | Draining),
            Restarting => matches!(next, Pending | Running | Failed | Draining),
            Failed => matches!(next, Pending | Draining),
            Draining => matches!(next, Removing | Stopping | Pending),
            Stopping => matches!(next, Paused | Asleep | Removing | Pending),
            Paused => matches!(next, Stopping | Removing | Pending),
            Asleep => matches!(next, Archiving | Removing | Pending),
            Archiving => matches!(next, Archived | Asleep | Removing | Pending),
            Archived => matches!(next, Archiving | Removing | Pending),
            Removing => matches!(next, Deleted | Pending),
            Deleted => matches!(next, Pending),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_way_through_the_database() {
        for phase in Phase::ALL {
            assert_eq!(phase.as_str().parse::<Phase>().unwrap(), *phase);
        }
        for desired in Desired::ALL {
            assert_eq!(desired.as_str().parse::<Desired>().unwrap(), *desired);
        }
        assert!("zombie".parse::<Phase>().is_err());
    }

    #[test]
    fn every_phase_can_reach_both_ends() {
        for start in Phase::ALL {
            for end in [Phase::Running, Phase::Deleted] {
                let mut reached = vec![*start];
                while let Some(next) =
                    Phase::ALL.iter().find(|p| !reached.contains(p) && reached.iter().any(|r| r.may_become(**p)))
                {
                    reached.push(*next);
                }
                assert!(reached.contains(&end), "{start} never reaches {end}");
            }
        }
    }
}
