//! The containers that tenants run in: observe, ensure, remove.
//!
//! [`Containers`] is what the reconciler knows of them; [`Docker`] is the real engine, and
//! the fake world has the same rules without the machine.

mod disk;
mod docker;
#[cfg(feature = "failpoints")]
pub mod fake;
mod held;
mod spec;

use std::future::Future;
use std::path::PathBuf;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use thiserror::Error;
use uuid::Uuid;

use crate::archive::tree::Found;
use crate::instance::Instance;
use crate::instance::plan::{Container, Seen};
use crate::instance::storage::{Limits, Taken};

pub use disk::Disk;
pub use docker::{Docker, DockerSettings, Report, Work, bridge};
pub use spec::bridge_name;

/// The label with the installation's id. What doesn't carry ours is never touched.
pub const LABEL_INSTALLATION: &str = "haas.installation";
/// The label with the instance's id.
pub const LABEL_INSTANCE: &str = "haas.instance";
/// The label with the digest of what a container is made of.
pub const LABEL_SPEC: &str = "haas.spec";
/// The label with the volume that a container has.
pub const LABEL_VOLUME: &str = "haas.volume";
/// The label with the generation that a container, or a volume, was made for.
pub const LABEL_GENERATION: &str = "haas.generation";

/// The label of a helper's container (docker/helper.rs), with the instance's id.
pub const LABEL_HELPER: &str = "haas.helper";

/// What can go wrong with a container.
#[derive(Debug, Error)]
pub enum ContainersError {
    /// The engine does not answer.
    #[error("Docker is unreachable: {0}")]
    Unreachable(String),
    /// The tenant's image is not on the engine.
    #[error("the image {0} is not there; scripts/build-image makes it")]
    ImageMissing(String),
    /// A container that isn't this instance's has the name.
    #[error("a container that is not ours has the name {0}")]
    NameHeld(String),
    /// Nothing has the name.
    #[error("there is no container {0}")]
    NoSuchContainer(String),
    /// It is some installation's tenant, and only the installation's own work touches those.
    #[error("the container {0} is a tenant's")]
    IsTenant(String),
    /// It stands still.
    #[error("the container {0} does not run")]
    NotRunning(String),
    /// Something else on the host listens on the port.
    #[error("something else on the host holds port {0}")]
    PortOccupied(u16),
    /// The volume that was to be filled holds something already.
    #[error("{0}")]
    Occupied(String),
    /// Something in a volume can't be kept, or can't be put into one, however often it is tried.
    #[error("{0}")]
    Unfit(String),
    /// The engine refused.
    #[error("Docker refused: {0}")]
    Refused(String),
}

/// A container with our installation's label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// Docker's id.
    pub id: String,
    /// Docker's name.
    pub name: String,
    /// The instance that it was made for.
    pub instance: Option<Uuid>,
    /// What it does.
    pub container: Container,
    /// When it was made.
    pub created: DateTime<Utc>,
}

/// A volume with our installation's label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedVolume {
    /// Docker's name.
    pub name: String,
    /// The instance that it was made for.
    pub instance: Option<Uuid>,
    /// When it was made.
    pub created: Option<DateTime<Utc>>,
    /// Where its files are on the engine's machine.
    pub path: PathBuf,
}

/// A volume, and how much it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeBound {
    /// Docker's name.
    pub name: String,
    /// Past twice as much it does not matter how much more it is.
    pub limits: Limits,
}

/// A tar of a volume's files ([`crate::archive::tree::pack`]).
pub type Data = BoxStream<'static, Result<Bytes, ContainersError>>;

/// A volume's files, and what a second look at them finds.
pub struct Reading {
    /// All of them. Ends with an error where it is not all.
    pub tar: Data,
    /// What the volume held afterwards; to be asked once the tar has come to its end.
    pub second_look: BoxFuture<'static, Result<Found, ContainersError>>,
}

/// Whether an instance's volume is from an earlier life of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataFound(pub bool);

/// An engine that runs the tenants' containers. All of it may be repeated at any time.
pub trait Containers: Send + Sync + 'static {
    /// Every container of this installation.
    fn list(&self) -> impl Future<Output = Result<Vec<Owned>, ContainersError>> + Send;

    /// Who holds the instance's container name.
    fn inspect(&self, instance: &Instance) -> impl Future<Output = Result<Seen, ContainersError>> + Send;

    /// Makes the volume, if it isn't there.
    fn prepare_data(&self, instance: &Instance) -> impl Future<Output = Result<DataFound, ContainersError>> + Send;

    /// Makes the container; does not start it.
    fn create(&self, instance: &Instance) -> impl Future<Output = Result<(), ContainersError>> + Send;

    /// Starts, or unfreezes, the container.
    fn start(&self, instance: &Instance) -> impl Future<Output = Result<(), ContainersError>> + Send;

    /// Freezes the container; one that does not run is left as it is.
    fn pause(&self, instance: &Instance) -> impl Future<Output = Result<(), ContainersError>> + Send;

    /// Stops the container, which stays; one that does not run is left as it is.
    fn stop(&self, instance: &Instance) -> impl Future<Output = Result<(), ContainersError>> + Send;

    /// The files of the instance's volume, from the disk itself. Its container must not run.
    fn read_data(&self, instance: &Instance) -> impl Future<Output = Result<Reading, ContainersError>> + Send;

    /// Makes the instance's volume, which must not be there, and fills it; what is on the disk then, as
    /// an archive of this format has it. What it has begun stays when it fails.
    fn write_data(
        &self,
        instance: &Instance,
        format: u32,
        data: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> impl Future<Output = Result<Found, ContainersError>> + Send;

    /// What an instance's volume holds.
    fn look_at_data(
        &self,
        instance: &Instance,
        format: u32,
    ) -> impl Future<Output = Result<Found, ContainersError>> + Send;

    /// Removes what readers and writers of volumes have left behind, when their server has ended.
    fn sweep_helpers(&self) -> impl Future<Output = Result<(), ContainersError>> + Send;

    /// Ends whoever reads or writes an instance's volumes: whoever calls this is the only one who should.
    fn end_helpers(&self, instance: Uuid) -> impl Future<Output = Result<(), ContainersError>> + Send;

    /// The names of all volumes that were made for an instance.
    fn volumes_of(&self, instance: Uuid) -> impl Future<Output = Result<Vec<String>, ContainersError>> + Send;

    /// Removes every volume that was made for an instance.
    fn remove_volumes(&self, instance: Uuid) -> impl Future<Output = Result<(), ContainersError>> + Send;

    /// Whether there is a volume of this name.
    fn has_volume(&self, name: &str) -> impl Future<Output = Result<bool, ContainersError>> + Send;

    /// Every volume of this installation that no container has.
    fn volumes(&self) -> impl Future<Output = Result<Vec<OwnedVolume>, ContainersError>> + Send;

    /// Removes a volume that nobody uses; one that is gone, or in use, is left as it is.
    fn remove_volume(&self, name: &str) -> impl Future<Output = Result<(), ContainersError>> + Send;

    /// How much of the disk each of these volumes takes; none of one that is not there. No files are counted
    /// where only the engine can be asked.
    fn disk_taken(
        &self,
        volumes: Vec<VolumeBound>,
    ) -> impl Future<Output = Result<Vec<Option<Taken>>, ContainersError>> + Send;

    /// The file system that volumes are on; none where it is not this machine's, or can't be seen.
    fn disk(&self) -> impl Future<Output = Option<Disk>> + Send;

    /// Networks of this installation that it does not use.
    fn stray_networks(&self) -> impl Future<Output = Result<Vec<String>, ContainersError>> + Send;

    /// Removes a network of this installation; one that is gone, or in use, is left as it is.
    fn remove_network(&self, name: &str) -> impl Future<Output = Result<(), ContainersError>> + Send;

    /// Whether its Hoodie answers 200 now.
    fn answers(&self, instance: &Instance) -> impl Future<Output = bool> + Send;

    /// The last lines that its Hoodie wrote.
    fn last_log(&self, instance: &Instance) -> impl Future<Output = Result<String, ContainersError>> + Send;

    /// Stops and removes the container, if it is of this installation. The volume stays.
    fn remove(&self, instance: &Instance) -> impl Future<Output = Result<(), ContainersError>> + Send;

    /// Stops and removes a container that [`Containers::list`] returned.
    fn remove_owned(&self, owned: &Owned) -> impl Future<Output = Result<(), ContainersError>> + Send;

    /// Whether the engine answers and has the tenant's image.
    fn health(&self) -> impl Future<Output = Result<(), ContainersError>> + Send;
}
