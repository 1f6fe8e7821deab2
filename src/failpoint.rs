//! Places where a test may end the process, or freeze the reconciler, to show that no moment
//! is a bad one to die. Without the feature `failpoints` they cost nothing and do nothing.

/// Every moment between two effects that outlive the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Boundary {
    /// A handler has written its intent.
    IntentWritten,
    /// The container is made, not started.
    ContainerCreated,
    /// The container is started, the manifest does not know.
    ContainerStarted,
    /// Its Hoodie has answered, the manifest does not know.
    HoodieAnswered,
    /// The route answers through HAProxy, the manifest does not know.
    RouteConfirmed,
    /// Its last requests are over, the manifest does not know.
    Drained,
    /// The container is gone, the manifest does not know.
    ContainerRemoved,
    /// The container is frozen, the manifest does not know.
    ContainerPaused,
    /// The container stands still, the manifest does not know.
    ContainerStopped,
    /// The archive is in its place and was read back, the manifest does not know.
    ArchiveWritten,
    /// The manifest knows that the archive has the data; the volume is still there.
    ArchiveRecorded,
    /// The volumes are gone, the manifest does not know.
    VolumesFreed,
    /// The new volume has the archive's data, the manifest does not know.
    DataRestored,
    /// The manifest knows that the new volume has the data; the archive is still there.
    RestoreRecorded,
    /// The data of a purged one is gone, its row is not.
    DataPurged,
    /// The manifest has taken a step.
    ManifestAdvanced,
    /// haproxy accepts the candidate; nothing is in its place yet.
    CandidateChecked,
    /// The new map is in its place, the old haproxy.cfg still in its own.
    MapSwapped,
    /// HAProxy's maps have been changed while it runs, nobody has written that down.
    RunningMapChanged,
    /// Both files are in their places, HAProxy has not been told.
    ConfigSwapped,
    /// HAProxy was told, nobody has looked whether it obeyed.
    HaproxySignalled,
    /// The running worker carries the new generation.
    HaproxyConfirmed,
}

impl Boundary {
    /// Every boundary.
    pub const ALL: &'static [Self] = &[
        Self::IntentWritten,
        Self::ContainerCreated,
        Self::ContainerStarted,
        Self::HoodieAnswered,
        Self::RouteConfirmed,
        Self::Drained,
        Self::ContainerRemoved,
        Self::ContainerPaused,
        Self::ContainerStopped,
        Self::ArchiveWritten,
        Self::ArchiveRecorded,
        Self::VolumesFreed,
        Self::DataRestored,
        Self::RestoreRecorded,
        Self::DataPurged,
        Self::ManifestAdvanced,
        Self::CandidateChecked,
        Self::MapSwapped,
        Self::RunningMapChanged,
        Self::ConfigSwapped,
        Self::HaproxySignalled,
        Self::HaproxyConfirmed,
    ];
}

#[cfg(not(feature = "failpoints"))]
mod inert {
    /// What happens at the boundaries: nothing.
    #[derive(Debug, Clone, Default)]
    pub struct Faults;

    impl Faults {
        /// Reads what a test wants from the environment; without the feature, nothing.
        #[must_use]
        pub fn from_environment() -> Self {
            Self
        }

        /// Passes a boundary.
        pub async fn hit(&self, _: super::Boundary) {}
    }
}
#[cfg(not(feature = "failpoints"))]
pub use inert::Faults;

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, raise};

    use super::Boundary;

    /// What happens at the boundaries.
    #[derive(Clone, Default)]
    pub struct Faults {
        freeze: Option<Arc<dyn Fn(Boundary) -> bool + Send + Sync>>,
        kill: Option<(String, Arc<AtomicU32>)>,
    }

    impl Faults {
        /// `HAAS_FAILPOINT=Boundary` or `Boundary:N` ends the process with SIGKILL at the
        /// N-th time that it passes there.
        #[must_use]
        pub fn from_environment() -> Self {
            let kill = std::env::var("HAAS_FAILPOINT").ok().map(|text| {
                let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
                let count = count.parse().unwrap_or(1);
                (name.to_owned(), Arc::new(AtomicU32::new(count)))
            });
            Self { freeze: None, kill }
        }

        /// The task that passes where `freeze` says true stays there until it is dropped.
        #[must_use]
        pub fn freezing(freeze: impl Fn(Boundary) -> bool + Send + Sync + 'static) -> Self {
            Self { freeze: Some(Arc::new(freeze)), kill: None }
        }

        /// Passes a boundary.
        pub async fn hit(&self, boundary: Boundary) {
            if let Some((name, left)) = &self.kill
                && *name == format!("{boundary:?}")
                && left.fetch_sub(1, Ordering::SeqCst) == 1
            {
                log::error!("failpoint {name}: ending this process");
                let _ = raise(Signal::SIGKILL);
            }
            if let Some(freeze) = &self.freeze
                && freeze(boundary)
            {
                std::future::pending::<()>().await;
            }
        }
    }
}
#[cfg(feature = "failpoints")]
pub use armed::Faults;
