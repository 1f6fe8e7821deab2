//! One fake world: an engine and a proxy in memory, with the rules of the real ones, for tests
//! that end the reconciler hundreds of times. It outlives every reconciler that acts on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Containers, ContainersError, DataFound, Owned};
use crate::failpoint::{Boundary, Faults};
use crate::haproxy::{HaproxyError, Moment, Proxy, Publication, Route, RouteChange, Routes, Standing};
use crate::instance::Instance;
use crate::instance::name::Hostname;
use crate::instance::plan::{Container, Seen, Status};

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
}

/// Everything there is.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "what a test switches on and off, each on its own")]
pub struct State {
    /// By name, as the engine has it.
    pub containers: BTreeMap<String, FakeContainer>,
    /// By name, with the generation that each was made for.
    pub volumes: BTreeMap<String, i64>,
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
        }),
    }
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
        let made_for = *state.volumes.entry(instance.volume()).or_insert(instance.generation);
        Ok(DataFound(made_for < instance.generation))
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
        match state.containers.get_mut(instance.container.as_str()) {
            Some(container) if container.status == Status::Dead => Err(ContainersError::Refused("dead".to_owned())),
            Some(container) => {
                container.status = Status::Running;
                Ok(())
            }
            None => Err(ContainersError::Refused("no such container".to_owned())),
        }
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

impl Proxy for FakeWorld {
    async fn publish(&self, routes: &Routes, read: Moment) -> Result<Publication, HaproxyError> {
        tokio::task::yield_now().await;
        if self.state().rejecting {
            return Err(HaproxyError::Rejected { message: "the fake proxy refuses".to_owned() });
        }
        self.faults.hit(Boundary::CandidateChecked).await;
        self.faults.hit(Boundary::MapSwapped).await;
        self.faults.hit(Boundary::ConfigSwapped).await;
        {
            let mut state = self.state();
            let mut wanted = routes.clone();
            state.recent.retain(|_, (changed, _)| Moment(*changed) > read);
            for (host, (_, route)) in &state.recent {
                match route {
                    Some(route) => wanted.insert(route.clone()),
                    None => wanted.remove(host),
                }
            }
            if state.routes != wanted {
                state.routes = wanted;
                state.reloads += 1;
            }
        }
        self.faults.hit(Boundary::HaproxySignalled).await;
        self.faults.hit(Boundary::HaproxyConfirmed).await;
        let standing = if self.state().proxy_down { Standing::Down } else { Standing::Live };
        Ok(Publication { generation: "fake".to_owned(), standing, reload_due: None, trouble: None })
    }

    async fn forget(&self) {}

    async fn now(&self) -> Moment {
        Moment(self.state().sequence)
    }

    async fn change(&self, change: &RouteChange) -> Result<bool, HaproxyError> {
        tokio::task::yield_now().await;
        if self.state().no_lane {
            return Ok(false);
        }
        {
            let mut state = self.state();
            state.sequence += 1;
            let changed = state.sequence;
            match change {
                RouteChange::Set(route) => {
                    state.routes.insert(route.clone());
                    state.recent.insert(route.host.clone(), (changed, Some(route.clone())));
                }
                RouteChange::Unset(hosts) => {
                    for host in hosts {
                        state.routes.remove(host);
                        state.recent.insert(host.clone(), (changed, None));
                    }
                }
            }
        }
        self.faults.hit(Boundary::RunningMapChanged).await;
        let state = self.state();
        Ok(!state.proxy_down && !state.unsure)
    }

    async fn busy(&self, _: u16) -> Result<bool, HaproxyError> {
        Ok(false)
    }

    async fn oldest_leaving_worker(&self) -> Result<Option<DateTime<Utc>>, HaproxyError> {
        Ok(None)
    }

    async fn answers(&self, host: &Hostname) -> bool {
        let state = self.state();
        let Some(route) = state.routes.iter().find(|route| route.host == *host) else { return false };
        let mut containers = state.containers.values();
        !state.proxy_down
            && containers.any(|container| container.port == Some(route.port) && container.status == Status::Running)
    }

    async fn health(&self) -> Result<(), HaproxyError> {
        if self.state().proxy_down { Err(HaproxyError::NotOurs) } else { Ok(()) }
    }
}
