//! One fake world: an engine and a proxy in memory, with the rules of the real ones, for tests
//! that end the reconciler hundreds of times. It outlives every reconciler that acts on it.

mod proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use chrono::DateTime;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use uuid::Uuid;

use super::{Containers, ContainersError, DataFound, Disk, Owned, OwnedVolume, Reading, VolumeBound};
use crate::archive::tree::Found;
use crate::archive::{Archives, FORMAT};
use crate::failpoint::{Boundary, Faults};
use crate::haproxy::{Route, Routes, Usage};
use crate::instance::Instance;
use crate::instance::name::Hostname;
use crate::instance::plan::{Container, Seen, Status};
use crate::instance::spec::Spec;
use crate::instance::storage::Taken;

/// A container of the fake engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeContainer {
    /// Docker's id; never used twice.
    pub id: u64,
    /// The instance it was made for; none for somebody else's.
    pub instance: Option<Uuid>,
    /// The generation it was made for.
    pub generation: i64,
    /// The port it is published on.
    pub port: Option<u16>,
    /// What it does.
    pub status: Status,
    /// The digest of what it is made of.
    pub spec: Option<String>,
    /// The volume that it has.
    pub volume: Option<String>,
}

/// A volume of the fake engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeVolume {
    /// The instance it was made for.
    pub instance: Uuid,
    /// The generation it was made for.
    pub generation: i64,
    /// How often a container was started on it: what its users wrote.
    pub written: u32,
    /// Whether it is being filled, or was when somebody ended that.
    pub unfinished: bool,
}

/// Everything there is.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "what a test switches on and off, each on its own")]
pub struct State {
    /// By name, as the engine has it.
    pub containers: BTreeMap<String, FakeContainer>,
    /// By name.
    pub volumes: BTreeMap<String, FakeVolume>,
    /// What volumes take of the disk, by name; the others take nothing.
    pub disk: BTreeMap<String, u64>,
    /// What the proxy counts, by port.
    pub usage: Usage,
    /// What was written last, by instance.
    pub ledger: BTreeMap<Uuid, u32>,
    /// Where a container was started on something else than what was written last.
    pub spoiled: Vec<String>,
    /// Ports that something else on the host listens on.
    pub occupied: BTreeSet<u16>,
    /// Instances whose Hoodie never answers.
    pub mute: BTreeSet<Uuid>,
    /// What the proxy routes to.
    pub routes: Routes,
    /// Whether the engine does not answer.
    pub engine_down: bool,
    /// Whether the proxy is not there.
    pub proxy_down: bool,
    /// Why the proxy refuses configurations, if it does.
    pub rejecting: bool,
    /// How many containers were ever made.
    pub created: u64,
    /// How many publications changed something.
    pub reloads: u64,
    /// Whether the proxy has no live lane.
    pub no_lane: bool,
    /// Whether the lane does as it is told, and is never sure of it.
    pub unsure: bool,
    /// Counts changes through the lane.
    sequence: u64,
    /// Hosts that were changed through the lane, when, and to what.
    recent: BTreeMap<Hostname, (u64, Option<Route>)>,
}

/// A handle on the fake world; clones share it.
#[derive(Clone, Default)]
pub struct FakeWorld {
    state: Arc<Mutex<State>>,
    faults: Faults,
}

impl FakeWorld {
    /// The same world, seen by a reconciler that passes the proxy's boundaries too.
    #[must_use]
    pub fn with_faults(&self, faults: Faults) -> Self {
        Self { state: Arc::clone(&self.state), faults }
    }

    /// The whole state, to look at and to meddle with.
    ///
    /// # Panics
    /// When another holder has panicked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| panic!("a test has failed already: {poisoned}"))
    }

    fn engine(&self) -> Result<MutexGuard<'_, State>, ContainersError> {
        let state = self.state();
        if state.engine_down { Err(ContainersError::Unreachable("down".to_owned())) } else { Ok(state) }
    }
}

fn seen(container: &FakeContainer, instance: Uuid) -> Seen {
    match container.instance {
        None => Seen::Foreign,
        Some(owner) => Seen::Ours(Container {
            generation: if owner == instance { container.generation } else { -1 },
            port: container.port,
            status: container.status,
            spec: container.spec.clone(),
            volume: container.volume.clone(),
        }),
    }
}

/// The one file of a fake volume, as the engine would show it.
fn tar_of(written: u32) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut entry = |path: &str, kind: tar::EntryType, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        // Writing into memory does not fail.
        drop(tar.append_data(&mut header, path, content));
    };
    entry("./", tar::EntryType::Directory, b"");
    entry("./written", tar::EntryType::Regular, written.to_string().as_bytes());
    tar.into_inner().unwrap_or_default()
}

fn written_in(tar: &[u8]) -> Option<u32> {
    use std::io::Read;
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().ok()? {
        let mut entry = entry.ok()?;
        if entry.path().ok()?.ends_with("written") {
            let mut text = String::new();
            entry.read_to_string(&mut text).ok()?;
            return text.parse().ok();
        }
    }
    None
}

impl Containers for FakeWorld {
    async fn list(&self) -> Result<Vec<Owned>, ContainersError> {
        let state = self.engine()?;
        let ours = state.containers.iter().filter(|(_, container)| container.instance.is_some());
        Ok(ours
            .map(|(name, container)| Owned {
                id: container.id.to_string(),
                name: name.clone(),
                instance: container.instance,
                container: Container {
                    generation: container.generation,
                    // As the real listing has it.
                    port: container.port.filter(|_| container.status == Status::Running),
                    status: container.status,
                    spec: container.spec.clone(),
                    volume: container.volume.clone(),
                },
                created: DateTime::UNIX_EPOCH,
            })
            .collect())
    }

    async fn inspect(&self, instance: &Instance) -> Result<Seen, ContainersError> {
        let state = self.engine()?;
        Ok(state.containers.get(instance.container.as_str()).map_or(Seen::Absent, |found| seen(found, instance.id)))
    }

    async fn prepare_data(&self, instance: &Instance) -> Result<DataFound, ContainersError> {
        let mut state = self.engine()?;
        let volume = state.volumes.entry(instance.volume()).or_insert(FakeVolume {
            instance: instance.id,
            generation: instance.generation,
            written: 0,
            unfinished: false,
        });
        Ok(DataFound(volume.generation < instance.generation))
    }

    async fn create(&self, instance: &Instance) -> Result<(), ContainersError> {
        tokio::task::yield_now().await;
        let mut state = self.engine()?;
        let name = instance.container.to_string();
        if state.containers.contains_key(&name) {
            return Err(ContainersError::NameHeld(name));
        }
        state.created += 1;
        let container = FakeContainer {
            id: state.created,
            instance: Some(instance.id),
            generation: instance.generation,
            port: instance.port,
            status: Status::Stopped,
            spec: instance.wanted_spec().map(Spec::digest),
            volume: Some(instance.volume()),
        };
        state.containers.insert(name, container);
        Ok(())
    }

    async fn start(&self, instance: &Instance) -> Result<(), ContainersError> {
        tokio::task::yield_now().await;
        let mut state = self.engine()?;
        let port = instance.port.unwrap_or_default();
        let used = state.containers.values().any(|other| other.port == Some(port) && other.status == Status::Running);
        if state.occupied.contains(&port) || used {
            return Err(ContainersError::PortOccupied(port));
        }
        let state = &mut *state;
        match state.containers.get_mut(instance.container.as_str()) {
            Some(container) if container.status == Status::Dead => Err(ContainersError::Refused("dead".to_owned())),
            Some(container) => {
                let began = container.status == Status::Stopped;
                container.status = Status::Running;
                let name = container.volume.clone().unwrap_or_default();
                let Some(volume) = state.volumes.get_mut(&name).filter(|_| began) else {
                    return Ok(());
                };
                let ledger = state.ledger.entry(volume.instance).or_default();
                if volume.written != *ledger {
                    state.spoiled.push(format!("{name} has {}, and {ledger} was written", volume.written));
                }
                volume.written += 1;
                *ledger = volume.written;
                Ok(())
            }
            None => Err(ContainersError::Refused("no such container".to_owned())),
        }
    }

    async fn pause(&self, instance: &Instance) -> Result<(), ContainersError> {
        tokio::task::yield_now().await;
        if let Some(container) = self.engine()?.containers.get_mut(instance.container.as_str())
            && container.instance.is_some()
            && container.status == Status::Running
        {
            container.status = Status::Paused;
        }
        Ok(())
    }

    async fn stop(&self, instance: &Instance) -> Result<(), ContainersError> {
        tokio::task::yield_now().await;
        if let Some(container) = self.engine()?.containers.get_mut(instance.container.as_str())
            && container.instance.is_some()
            && container.status != Status::Dead
        {
            container.status = Status::Stopped;
        }
        Ok(())
    }

    async fn read_data(&self, instance: &Instance) -> Result<Reading, ContainersError> {
        tokio::task::yield_now().await;
        let state = self.engine()?;
        let volume = state.volumes.get(&instance.volume());
        let written = volume.ok_or_else(|| ContainersError::Refused("no such volume".to_owned()))?.written;
        drop(state);
        let tar = futures_util::stream::iter([Ok(Bytes::from(tar_of(written)))]).boxed();
        let world = self.clone();
        let instance = instance.clone();
        Ok(Reading { tar, second_look: async move { world.look_at_data(&instance, FORMAT).await }.boxed() })
    }

    async fn write_data(
        &self,
        instance: &Instance,
        format: u32,
        mut data: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<Found, ContainersError> {
        if self.has_volume(&instance.volume()).await? {
            self.state().spoiled.push(format!("{} was written over", instance.volume()));
        }
        self.prepare_data(instance).await?;
        if let Some(volume) = self.engine()?.volumes.get_mut(&instance.volume()) {
            volume.unfinished = true;
        }
        self.faults.hit(Boundary::DataRestored).await;
        let mut tar = Vec::new();
        while let Some(bytes) = data.next().await {
            tar.extend_from_slice(&bytes.map_err(|error| ContainersError::Refused(error.to_string()))?);
        }
        let written = written_in(&tar).ok_or_else(|| ContainersError::Unfit("no tar".to_owned()))?;
        if let Some(volume) = self.engine()?.volumes.get_mut(&instance.volume()) {
            (volume.written, volume.unfinished) = (written, false);
        }
        self.look_at_data(instance, format).await
    }

    async fn look_at_data(&self, instance: &Instance, _: u32) -> Result<Found, ContainersError> {
        tokio::task::yield_now().await;
        let volume = self.engine()?.volumes.get(&instance.volume()).cloned();
        let volume = volume.ok_or_else(|| ContainersError::Refused("no such volume".to_owned()))?;
        let tar = futures_util::stream::iter([Ok::<_, ContainersError>(Bytes::from(tar_of(volume.written)))]);
        let digest = Archives::digest(tar).await.map_err(|error| ContainersError::Refused(error.to_string()))?;
        Ok(Found { digest, unfinished: volume.unfinished })
    }

    async fn sweep_helpers(&self) -> Result<(), ContainersError> {
        self.engine().map(|_| ())
    }

    async fn end_helpers(&self, _: Uuid) -> Result<(), ContainersError> {
        self.engine().map(|_| ())
    }

    async fn volumes_of(&self, instance: Uuid) -> Result<Vec<String>, ContainersError> {
        let state = self.engine()?;
        let of = state.volumes.iter().filter(|(_, volume)| volume.instance == instance);
        Ok(of.map(|(name, _)| name.clone()).collect())
    }

    async fn remove_volumes(&self, instance: Uuid) -> Result<(), ContainersError> {
        for name in self.volumes_of(instance).await? {
            self.remove_volume(&name).await?;
        }
        Ok(())
    }

    async fn has_volume(&self, name: &str) -> Result<bool, ContainersError> {
        Ok(self.engine()?.volumes.contains_key(name))
    }

    async fn volumes(&self) -> Result<Vec<OwnedVolume>, ContainersError> {
        let owned = |(name, volume): (&String, &FakeVolume)| OwnedVolume {
            name: name.clone(),
            instance: Some(volume.instance),
            created: None,
            path: PathBuf::new(),
        };
        let state = self.engine()?;
        let used = |name: &str| state.containers.values().any(|container| container.volume.as_deref() == Some(name));
        Ok(state.volumes.iter().filter(|(name, _)| !used(name)).map(owned).collect())
    }

    async fn remove_volume(&self, name: &str) -> Result<(), ContainersError> {
        tokio::task::yield_now().await;
        let mut state = self.engine()?;
        if state.containers.values().any(|container| container.volume.as_deref() == Some(name)) {
            return Err(ContainersError::Refused(format!("volume {name} is in use")));
        }
        state.volumes.remove(name);
        Ok(())
    }

    async fn disk_taken(&self, volumes: Vec<VolumeBound>) -> Result<Vec<Option<Taken>>, ContainersError> {
        let state = self.engine()?;
        let taken = |volume: &VolumeBound| {
            let there = state.volumes.contains_key(&volume.name);
            let bytes = || state.disk.get(&volume.name).copied().unwrap_or_default();
            there.then(|| Taken { bytes: bytes(), files: 0 })
        };
        Ok(volumes.iter().map(taken).collect())
    }

    async fn disk(&self) -> Option<Disk> {
        None
    }

    async fn stray_networks(&self) -> Result<Vec<String>, ContainersError> {
        self.engine().map(|_| Vec::new())
    }

    async fn remove_network(&self, _: &str) -> Result<(), ContainersError> {
        self.engine().map(|_| ())
    }

    async fn answers(&self, instance: &Instance) -> bool {
        tokio::task::yield_now().await;
        let state = self.state();
        let mut containers = state.containers.values();
        !state.mute.contains(&instance.id)
            && containers
                .any(|c| c.instance == Some(instance.id) && c.port == instance.port && c.status == Status::Running)
    }

    async fn last_log(&self, _: &Instance) -> Result<String, ContainersError> {
        self.engine().map(|_| "the fake Hoodie's last words\n".to_owned())
    }

    async fn remove(&self, instance: &Instance) -> Result<(), ContainersError> {
        tokio::task::yield_now().await;
        let mut state = self.engine()?;
        let name = instance.container.as_str();
        match state.containers.get(name) {
            Some(container) if container.instance.is_none() => Err(ContainersError::NameHeld(name.to_owned())),
            Some(_) => {
                state.containers.remove(name);
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn remove_owned(&self, owned: &Owned) -> Result<(), ContainersError> {
        self.engine()?.containers.retain(|_, container| container.id.to_string() != owned.id);
        Ok(())
    }

    async fn health(&self) -> Result<(), ContainersError> {
        self.engine().map(|_| ())
    }
}
