//! The real engine, through bollard.

mod data;
mod disk;
mod helper;
mod last_log;
mod listed;
mod network;
mod signal;

pub(in crate::containers) use helper::Image as HelperImage;
pub use helper::{Report, Work};
pub use network::bridge;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bollard::errors::Error as BollardError;
use bollard::models::{ContainerInspectResponse, ContainerSummary, EventMessage};
use bollard::query_parameters::{
    CreateContainerOptions, EventsOptions, InspectContainerOptions, ListContainersOptions, RemoveContainerOptions,
    StartContainerOptions, StopContainerOptions,
};
use bytes::Bytes;
use chrono::Utc;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use listed::{container_status, tenants};
use tokio::sync::{Mutex, OnceCell};
use uuid::Uuid;

use super::{
    Containers, ContainersError, Data, DataFound, Disk, LABEL_GENERATION, LABEL_HELPER, LABEL_INSTALLATION,
    LABEL_INSTANCE, LABEL_SPEC, LABEL_VOLUME, Owned, OwnedVolume, Reading, VolumeBound,
    spec::{self, Admin},
};
use crate::app_connection::{ANSWER_MAX, Connection, ready};
use crate::archive::tree::Found;
use crate::bounded::{ERROR_MAX, bounded};
use crate::config::Tenant;
use crate::credentials::InstanceKey;
use crate::instance::Instance;
use crate::instance::plan::{Container, Seen, Status};
use crate::instance::storage::Taken;

/// A generation that no instance has: what carries it is always stale.
const NO_GENERATION: i64 = -1;
/// Seconds for one call to the engine.
const CALL_TIMEOUT: u64 = 60;
/// How often, and how many times, a container is looked for whose removal is under way.
const REMOVAL_LOOK: Duration = Duration::from_millis(100);
const REMOVAL_LOOKS: u32 = 100;
/// Containers in one answer: the engine's words for one take ten times what is kept of it.
const PAGE: i32 = 500;
/// How long an app whose data is too much may take to exit before it is killed.
const FULL_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of an error of the engine's: with what stands before them, they fit into a row.
const WORDS_MAX: usize = ERROR_MAX - 128;

/// What the engine has to know of this installation.
#[derive(Debug, Clone)]
pub struct DockerSettings {
    /// The installation's id, our label.
    pub installation: Uuid,
    /// Image, limits and times.
    pub tenant: Tenant,
    /// Derives the admins' passwords, and the salts of their sessions.
    pub key: InstanceKey,
}

/// The engine at `DOCKER_HOST`, or at its usual socket.
pub struct Docker {
    settings: DockerSettings,
    /// Made at the first call that succeeds in agreeing on an API version.
    client: OnceCell<bollard::Docker>,
    /// Whether the network was seen to be there.
    network: Mutex<bool>,
    /// Where the engine keeps its volumes.
    volumes_folder: OnceCell<PathBuf>,
    /// Seen to be there, or made, once.
    helper_image: OnceCell<HelperImage>,
}

impl Docker {
    /// Prepares; nothing is connected yet, so that a server can start while Docker is down.
    #[must_use]
    pub fn new(settings: DockerSettings) -> Self {
        Self {
            settings,
            client: OnceCell::new(),
            network: Mutex::default(),
            volumes_folder: OnceCell::new(),
            helper_image: OnceCell::new(),
        }
    }

    async fn client(&self) -> Result<&bollard::Docker, ContainersError> {
        self.client.get_or_try_init(connect).await
    }

    async fn inspect_raw(&self, name: &str) -> Result<Option<ContainerInspectResponse>, ContainersError> {
        match self.client().await?.inspect_container(name, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(classify(error)),
        }
    }

    /// Our containers, the newest first: all of them, or at most so many that are older than one.
    async fn summaries(
        &self,
        limit: Option<i32>,
        before: Option<&str>,
    ) -> Result<Vec<ContainerSummary>, ContainersError> {
        let label = format!("{LABEL_INSTALLATION}={}", self.settings.installation);
        let mut filters = HashMap::from([("label".to_owned(), vec![label])]);
        if let Some(before) = before {
            filters.insert("before".to_owned(), vec![before.to_owned()]);
        }
        let options =
            ListContainersOptions { all: true, limit, filters: Some(filters), ..ListContainersOptions::default() };
        self.client().await?.list_containers(Some(options)).await.map_err(classify)
    }

    fn is_ours(&self, labels: Option<&HashMap<String, String>>) -> bool {
        let ours = self.settings.installation.to_string();
        labels.and_then(|labels| labels.get(LABEL_INSTALLATION)) == Some(&ours)
    }

    async fn stop_container(&self, id: &str, patience: Duration) -> Result<(), ContainersError> {
        let client = self.client().await?;
        // What is frozen can't hear that it is to end.
        match client.unpause_container(id).await {
            Ok(()) => {}
            Err(error) if matches!(status(&error), Some(404 | 409 | 500)) => {}
            Err(error) => return Err(classify(error)),
        }
        let seconds = i32::try_from(patience.as_secs()).unwrap_or(i32::MAX);
        let stop = StopContainerOptions { t: Some(seconds), ..StopContainerOptions::default() };
        match client.stop_container(id, Some(stop)).await {
            Ok(()) => Ok(()),
            // 304: it was stopped; 404: somebody else has removed it.
            Err(error) if matches!(status(&error), Some(304 | 404)) => Ok(()),
            Err(error) => Err(classify(error)),
        }
    }

    async fn stop_and_remove(&self, id: &str) -> Result<(), ContainersError> {
        self.stop_container(id, self.settings.tenant.stop_timeout).await?;
        let client = self.client().await?;
        // Named volumes stay: `v` would remove anonymous ones only.
        let remove = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
        match client.remove_container(id, Some(remove)).await {
            Ok(()) => Ok(()),
            Err(error) if status(&error) == Some(404) => Ok(()),
            // Its removal is under way.
            Err(error) if status(&error) == Some(409) => self.wait_until_gone(id).await,
            Err(error) => Err(classify(error)),
        }
    }

    async fn wait_until_gone(&self, id: &str) -> Result<(), ContainersError> {
        for _ in 0..REMOVAL_LOOKS {
            tokio::time::sleep(REMOVAL_LOOK).await;
            if self.inspect_raw(id).await?.is_none() {
                return Ok(());
            }
        }
        Err(ContainersError::Refused(format!("container {id} does not go")))
    }

    /// The container of an instance by Docker's id: the name may be somebody else's a moment
    /// later, or be so already.
    async fn own(&self, instance: &Instance) -> Result<Option<ContainerInspectResponse>, ContainersError> {
        let found = self.inspect_raw(instance.container.as_str()).await?;
        match found {
            Some(found) if self.is_ours(found.config.as_ref().and_then(|config| config.labels.as_ref())) => {
                Ok(Some(found))
            }
            Some(_) => Err(ContainersError::NameHeld(instance.container.to_string())),
            None => Ok(None),
        }
    }

    /// What the engine's own settings cost tenants when it restarts.
    ///
    /// # Errors
    /// [`ContainersError::Unreachable`] when the engine does not answer.
    pub async fn engine_gaps(&self) -> Result<Vec<String>, ContainersError> {
        let info = self.client().await?.info().await.map_err(classify)?;
        let mut gaps = Vec::new();
        if info.live_restore_enabled != Some(true) {
            gaps.push("live-restore is off: tenants stop whenever the engine does".to_owned());
        }
        Ok(gaps)
    }

    /// What happens to this installation's containers, as it happens.
    ///
    /// # Errors
    /// [`ContainersError::Unreachable`] when the engine does not answer.
    pub async fn events(
        &self,
    ) -> Result<impl Stream<Item = Result<EventMessage, ContainersError>> + Send + use<>, ContainersError> {
        let label = format!("{LABEL_INSTALLATION}={}", self.settings.installation);
        let actions = ["die", "destroy", "kill", "oom", "pause", "rename", "start", "stop", "unpause"];
        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("label".to_owned(), vec![label]),
            ("event".to_owned(), actions.map(str::to_owned).to_vec()),
        ]);
        let options = EventsOptions { filters: Some(filters), ..EventsOptions::default() };
        // A stream has no end: the time limit is for answers that have one.
        let client = self.client().await?.clone().with_timeout(Duration::from_secs(86_400));
        Ok(client.events(Some(options)).map(|event| event.map_err(classify)))
    }
}

impl Containers for Docker {
    async fn list(&self) -> Result<Vec<Owned>, ContainersError> {
        let (mut all, mut last) = (Vec::new(), None::<String>);
        loop {
            let page = match self.summaries(Some(PAGE), last.as_deref()).await {
                // The last one of the page before is gone by now.
                Err(ContainersError::Refused(_)) if last.is_some() => {
                    return Ok(tenants(self.summaries(None, None).await?).collect());
                }
                other => other?,
            };
            let more = i32::try_from(page.len()).is_ok_and(|length| length >= PAGE);
            last = page.last().and_then(|summary| summary.id.clone());
            all.extend(tenants(page));
            if !more {
                return Ok(all);
            }
        }
    }

    async fn inspect(&self, instance: &Instance) -> Result<Seen, ContainersError> {
        let Some(found) = self.inspect_raw(instance.container.as_str()).await? else {
            return Ok(Seen::Absent);
        };
        let labels = found.config.as_ref().and_then(|config| config.labels.as_ref());
        if !self.is_ours(labels) {
            return Ok(Seen::Foreign);
        }
        let label = |name: &str| labels.and_then(|labels| labels.get(name));
        let same = label(LABEL_INSTANCE) == Some(&instance.id.to_string());
        let generation = label(LABEL_GENERATION).and_then(|text| text.parse().ok());
        let state = found.state.as_ref().and_then(|state| state.status);
        let status = container_status(&state.map(|state| state.to_string()).unwrap_or_default());
        // What it was made for while it stands still; what is really published once it runs: a
        // container that was cut off its network has no port any more.
        let bindings = if status == Status::Running {
            found.network_settings.as_ref().and_then(|network| network.ports.as_ref())
        } else {
            found.host_config.as_ref().and_then(|host| host.port_bindings.as_ref())
        };
        let port = bindings.and_then(|bindings| {
            bindings.values().flatten().flatten().find_map(|b| b.host_port.as_ref()?.parse().ok())
        });
        Ok(Seen::Ours(Container {
            // Another instance's, of our installation: the manifest says the name is ours.
            generation: generation.filter(|_| same).unwrap_or(NO_GENERATION),
            port,
            status,
            spec: label(LABEL_SPEC).cloned(),
            volume: label(LABEL_VOLUME).cloned(),
        }))
    }

    async fn prepare_data(&self, instance: &Instance) -> Result<DataFound, ContainersError> {
        let request = spec::volume(instance, self.settings.installation);
        // Creating a volume that is there returns it as it is.
        let volume = self.client().await?.create_volume(request).await.map_err(classify)?;
        let made_for = volume.labels.get(LABEL_GENERATION).and_then(|text| text.parse::<i64>().ok());
        Ok(DataFound(made_for.is_some_and(|generation| generation < instance.generation)))
    }

    async fn create(&self, instance: &Instance) -> Result<(), ContainersError> {
        let client = self.client().await?;
        self.ensure_network().await?;
        let port = instance.port.ok_or_else(|| ContainersError::Refused("the instance has no port".to_owned()))?;
        let admin = Admin::of(instance, &self.settings.key);
        let spec = instance.wanted_spec().cloned().unwrap_or_else(|| self.settings.tenant.spec());
        let body = spec::container(instance, port, self.settings.installation, &spec, &admin);
        let options =
            CreateContainerOptions { name: Some(instance.container.to_string()), ..CreateContainerOptions::default() };
        match client.create_container(Some(options), body).await {
            Ok(_) => Ok(()),
            Err(error) => match status(&error) {
                Some(404) => Err(ContainersError::ImageMissing(spec.image)),
                Some(409) => Err(ContainersError::NameHeld(instance.container.to_string())),
                _ => Err(classify(error)),
            },
        }
    }

    async fn start(&self, instance: &Instance) -> Result<(), ContainersError> {
        let client = self.client().await?;
        let gone = || ContainersError::Refused(format!("container {} is gone", instance.container));
        let found = self.own(instance).await?.ok_or_else(gone)?;
        let id = found.id.ok_or_else(gone)?;
        let outcome = if found.state.and_then(|state| state.paused) == Some(true) {
            client.unpause_container(&id).await
        } else {
            client.start_container(&id, None::<StartContainerOptions>).await
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(error) if status(&error) == Some(304) => Ok(()),
            Err(error) => {
                let text = error.to_string();
                let occupied = ["address already in use", "port is already allocated"];
                if occupied.iter().any(|words| text.contains(words)) {
                    return Err(ContainersError::PortOccupied(instance.port.unwrap_or_default()));
                }
                if text.contains("network") {
                    // Removed by hand: the next attempt makes it anew.
                    *self.network.lock().await = false;
                }
                Err(classify(error))
            }
        }
    }

    async fn pause(&self, instance: &Instance) -> Result<(), ContainersError> {
        let Some(id) = self.own(instance).await?.and_then(|found| found.id) else { return Ok(()) };
        match self.client().await?.pause_container(&id).await {
            Ok(()) => Ok(()),
            // It has stopped, is paused, or is gone: the next look sees which.
            Err(error) if matches!(status(&error), Some(404 | 409)) => Ok(()),
            Err(error) => Err(classify(error)),
        }
    }

    async fn stop(&self, instance: &Instance) -> Result<(), ContainersError> {
        match self.own(instance).await?.and_then(|found| found.id) {
            Some(id) => {
                let patience = self.settings.tenant.stop_timeout;
                // What fills the disk goes on with it until it has ended.
                let full = instance.storage_full.is_some();
                self.stop_container(&id, if full { patience.min(FULL_PATIENCE) } else { patience }).await
            }
            None => Ok(()),
        }
    }

    async fn read_data(&self, instance: &Instance) -> Result<Reading, ContainersError> {
        self.read_volume(instance.id, &instance.volume()).await
    }

    async fn write_data(
        &self,
        instance: &Instance,
        format: u32,
        data: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<Found, ContainersError> {
        self.prepare_data(instance).await?;
        self.fill_volume(instance.id, &instance.volume(), format, data).await
    }

    async fn look_at_data(&self, instance: &Instance, format: u32) -> Result<Found, ContainersError> {
        self.look_at_volume(instance.id, &instance.volume(), format).await
    }

    async fn sweep_helpers(&self) -> Result<(), ContainersError> {
        self.remove_helpers_left_behind(Utc::now()).await
    }

    async fn end_helpers(&self, instance: Uuid) -> Result<(), ContainersError> {
        self.remove_helpers(Some(instance)).await
    }

    async fn volumes_of(&self, instance: Uuid) -> Result<Vec<String>, ContainersError> {
        let volumes = self.volumes_with(&format!("{LABEL_INSTANCE}={instance}"), false).await?;
        Ok(volumes.into_iter().map(|volume| volume.name).collect())
    }

    async fn remove_volumes(&self, instance: Uuid) -> Result<(), ContainersError> {
        for volume in self.volumes_of(instance).await? {
            self.remove_unused(&volume).await?;
        }
        Ok(())
    }

    async fn has_volume(&self, name: &str) -> Result<bool, ContainersError> {
        match self.client().await?.inspect_volume(name).await {
            Ok(_) => Ok(true),
            Err(error) if status(&error) == Some(404) => Ok(false),
            Err(error) => Err(classify(error)),
        }
    }

    async fn volumes(&self) -> Result<Vec<OwnedVolume>, ContainersError> {
        self.volumes_with(&format!("{LABEL_INSTALLATION}={}", self.settings.installation), true).await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), ContainersError> {
        self.remove_unused(name).await
    }

    async fn disk_taken(&self, volumes: Vec<VolumeBound>) -> Result<Vec<Option<Taken>>, ContainersError> {
        self.measure(volumes).await
    }

    async fn disk(&self) -> Option<Disk> {
        self.volumes_disk().await
    }

    async fn stray_networks(&self) -> Result<Vec<String>, ContainersError> {
        self.other_networks().await
    }

    async fn remove_network(&self, name: &str) -> Result<(), ContainersError> {
        self.remove_unused_network(name).await
    }

    async fn answers(&self, instance: &Instance) -> bool {
        let Some(port) = instance.port else { return false };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // Once each time: what listens now, not what a kept connection remembers.
        let looked = ready(Connection::open(address, ANSWER_MAX), &address.to_string()).await;
        looked.inspect_err(|error| log::debug!("{} does not answer: {error}", instance.container)).is_ok()
    }

    async fn last_log(&self, instance: &Instance) -> Result<String, ContainersError> {
        self.end_of_log(instance).await
    }

    async fn remove(&self, instance: &Instance) -> Result<(), ContainersError> {
        match self.own(instance).await?.and_then(|found| found.id) {
            Some(id) => self.stop_and_remove(&id).await,
            None => Ok(()),
        }
    }

    async fn remove_owned(&self, owned: &Owned) -> Result<(), ContainersError> {
        self.stop_and_remove(&owned.id).await
    }

    async fn health(&self) -> Result<(), ContainersError> {
        match self.client().await?.inspect_image(&self.settings.tenant.image).await {
            Ok(_) => Ok(()),
            Err(error) if status(&error) == Some(404) => {
                Err(ContainersError::ImageMissing(self.settings.tenant.image.clone()))
            }
            Err(error) => Err(classify(error)),
        }
    }
}

async fn connect() -> Result<bollard::Docker, ContainersError> {
    let docker = bollard::Docker::connect_with_defaults().map_err(classify)?;
    let docker = docker.with_timeout(Duration::from_secs(CALL_TIMEOUT));
    // Debian's engine speaks API 1.41; bollard's own default is newer.
    docker.negotiate_version().await.map_err(classify)
}

fn status(error: &BollardError) -> Option<u16> {
    match error {
        BollardError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// An answer of the engine is a refusal; anything else means that it can't be asked.
fn classify(error: BollardError) -> ContainersError {
    match error {
        BollardError::DockerResponseServerError { status_code, message } => {
            ContainersError::Refused(format!("{} ({status_code})", bounded(&message, WORDS_MAX)))
        }
        other => ContainersError::Unreachable(bounded(&other.to_string(), WORDS_MAX)),
    }
}
