//! HAProxy: the domain-to-unique-port-mapper.
//!
//! [`Proxy::publish`] makes HAProxy route exactly what it is given, and never shows it a broken
//! file: render → check the candidate with `haproxy -c` → fsync → rename → signal the master →
//! confirm that the running worker reports the new generation. Where the live lane is on
//! (`live_routes`), routes don't wait for that: `lane` puts them into the running workers at
//! once, and a reload only gives new apps their sections, every now and then. [`Proxy::change`] is
//! the lane for one app alone.
//!
//! What is true at each moment, so that a crash at any of them heals with the next publication:
//!
//! * `haproxy.cfg` in the configured folder was accepted by `haproxy -c`. An older or newer
//!   `routes.map` beside it is harmless: a host that moved or came anew falls through to the
//!   backend `apps`, which goes by the map alone. Without the lane the map is renamed first, and
//!   the rename of haproxy.cfg is the commit point.
//! * The generation is a hash over haproxy.cfg and, without the lane, the map. It stands in
//!   haproxy.cfg as a process variable, and the worker that loaded it reports it; so what runs is
//!   compared with what should run, not remembered.
//! * `candidate/` is this publication's scratch. `rejected/` is the last one that HAProxy refused,
//!   for the administrator. `last-good/` is what a worker is known to have run; it is put back when
//!   a new generation passes the check but no worker comes up with it, so that HAProxy can be
//!   restarted at any time.

mod check;
mod files;
mod lane;
mod master;
mod publish;
mod reload;
mod render;
mod settings;
mod socket;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::failpoint::Faults;
use crate::instance::name::{ContainerName, Hostname};
pub use check::CheckedConfig;
use lane::Lane;
pub use master::Worker;
use master::{Master, Running};
pub use reload::ReloadSignal;
pub use render::Candidate;
pub use settings::Settings;

/// One app's way: its host, and the loopback port that its container is published on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What end users ask for; names the section, too.
    pub host: Hostname,
    /// Further hosts that lead to the same app.
    pub extra_hosts: Vec<Hostname>,
    /// Where it answers, on 127.0.0.1.
    pub port: u16,
    /// Whose it is; for people who read haproxy.cfg.
    pub container: ContainerName,
    /// Since when it is ready; for people who read haproxy.cfg.
    pub since: DateTime<Utc>,
}

impl Route {
    /// What the map has for its hosts: the name of its section.
    #[must_use]
    pub fn target(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Every host that leads to it.
    pub fn hosts(&self) -> impl Iterator<Item = &Hostname> {
        std::iter::once(&self.host).chain(&self.extra_hosts)
    }
}

/// A change of where one app's hosts lead, for the live lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteChange {
    /// The route is to be there.
    Set(Route),
    /// These hosts are to lead nowhere.
    Unset(Vec<Hostname>),
}

impl RouteChange {
    /// The hosts that it is about.
    fn hosts(&self) -> Vec<&Hostname> {
        match self {
            Self::Set(route) => route.hosts().collect(),
            Self::Unset(hosts) => hosts.iter().collect(),
        }
    }

    /// The section that they are to lead to; none for nowhere.
    fn target(&self) -> Option<String> {
        match self {
            Self::Set(route) => Some(route.target()),
            Self::Unset(_) => None,
        }
    }
}

/// A moment in the order of changes; see [`Proxy::publish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(pub(crate) u64);

/// Routes, sorted by host, one for each: equal sets render to equal bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes(Vec<Route>);

impl Routes {
    /// Sorts them. Of several with the same host the last one stays; the manifest lets none of
    /// them come about.
    #[must_use]
    pub fn new(routes: impl IntoIterator<Item = Route>) -> Self {
        let sorted: BTreeMap<Hostname, Route> = routes.into_iter().map(|route| (route.host.clone(), route)).collect();
        Self(sorted.into_values().collect())
    }

    /// In the order of their hosts.
    pub fn iter(&self) -> std::slice::Iter<'_, Route> {
        self.0.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts a route in, in place of one with the same host.
    pub fn insert(&mut self, route: Route) {
        match self.0.binary_search_by(|present| present.host.cmp(&route.host)) {
            Ok(at) => self.0[at] = route,
            Err(at) => self.0.insert(at, route),
        }
    }

    /// Takes a route out.
    pub fn remove(&mut self, host: &Hostname) {
        if let Ok(at) = self.0.binary_search_by(|present| present.host.cmp(host)) {
            self.0.remove(at);
        }
    }

    /// Which host leads to which section, further hosts included.
    pub(crate) fn entries(&self) -> BTreeMap<Hostname, String> {
        self.0.iter().flat_map(|route| route.hosts().map(|host| (host.clone(), route.target()))).collect()
    }

    /// Whether this host is routed to this port.
    #[must_use]
    pub fn contains(&self, host: &Hostname, port: u16) -> bool {
        self.0.binary_search_by(|route| route.host.cmp(host)).is_ok_and(|at| self.0[at].port == port)
    }
}

impl<'a> IntoIterator for &'a Routes {
    type Item = &'a Route;
    type IntoIter = std::slice::Iter<'a, Route>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// What a publication came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Publication {
    /// Names the files' contents.
    pub generation: String,
    /// Whether the routes are in use.
    pub standing: Standing,
    /// When a reload will give new apps their sections, or bring in what else has changed in
    /// haproxy.cfg; none when the running worker has all of it. Publish again then.
    pub reload_due: Option<Instant>,
}

/// Whether what was published is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Every living worker routes so; without the live lane, the running one reports this
    /// generation.
    Live,
    /// Nobody answers at the master's socket; the files are in place for when HAProxy comes.
    Down,
}

/// What goes wrong on the way to HAProxy.
#[derive(Debug, Error)]
pub enum HaproxyError {
    /// The template can't be read or rendered. What ran before still runs.
    #[error("the template of haproxy.cfg: {reason}")]
    Template {
        /// What tera, or the file system, says.
        reason: String,
    },
    /// `haproxy -c` refused the candidate. What ran before still runs.
    #[error("HAProxy refused its new configuration:\n{message}")]
    Rejected {
        /// HAProxy's own words, with the paths of the files that `rejected/` keeps.
        message: String,
    },
    /// No worker came up with the new generation in time.
    #[error(
        "HAProxy did not take generation {generation}: {reason}{}",
        if *.restored { " (the last good files were put back)" } else { "" }
    )]
    Unconfirmed {
        /// The generation that was asked for.
        generation: String,
        /// What was seen instead.
        reason: String,
        /// Whether the last good files are in place again.
        restored: bool,
    },
    /// The program that checks candidates is not there.
    #[error("the program {} is missing (haproxy.binary)", .binary.display())]
    Missing {
        /// As configured.
        binary: PathBuf,
    },
    /// `haproxy -c` did not end in time.
    #[error("haproxy -c did not end within {} s", .after.as_secs())]
    CheckTimeout {
        /// How long it was given.
        after: Duration,
    },
    /// Nobody answers at the master's socket, or the worker runs no configuration of ours.
    #[error("HAProxy does not run, or not with our configuration")]
    NotOurs,
    /// A file could not be read or written.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Somebody answers at the master's socket, but not as HAProxy's master does.
    #[error("the master socket {}: {reason}", .path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
}

/// The proxy, as the reconciler needs it.
pub trait Proxy: Send + Sync + 'static {
    /// Makes HAProxy route exactly these, but for hosts that [`Proxy::change`] has changed since
    /// they were read. Idempotent: when the files on disk and the running workers already carry
    /// this, nothing is written or signalled.
    ///
    /// # Errors
    /// Any [`HaproxyError`]. Whichever it is, HAProxy serves what it served before.
    fn publish(&self, routes: &Routes, read: Moment) -> impl Future<Output = Result<Publication, HaproxyError>> + Send;

    /// [`Proxy::publish`] where nobody else changes routes.
    ///
    /// # Errors
    /// As for [`Proxy::publish`].
    fn publish_alone(&self, routes: &Routes) -> impl Future<Output = Result<Publication, HaproxyError>> + Send {
        async { self.publish(routes, self.now().await).await }
    }

    /// This moment. Ask before the routes are read that are published.
    fn now(&self) -> impl Future<Output = Moment> + Send;

    /// Changes where one app's hosts lead, at once. True when every living worker follows; false
    /// when that is not sure, or this proxy has no such way: then a publication has to do it.
    ///
    /// # Errors
    /// [`HaproxyError::Io`] when routes.map can't be written.
    fn change(&self, change: &RouteChange) -> impl Future<Output = Result<bool, HaproxyError>> + Send;

    /// Whether a request or stream towards this route is still under way in any living worker,
    /// old or new. No when HAProxy is down.
    ///
    /// # Errors
    /// [`HaproxyError::Socket`] when the master answers with something else.
    fn busy(&self, host: &Hostname, port: u16) -> impl Future<Output = Result<bool, HaproxyError>> + Send;

    /// When the oldest worker started of those that a reload has told to leave; none when there
    /// is none. Such a worker keeps the routes that it was started with: a port that was unrouted
    /// later than this may still be reached through it.
    ///
    /// # Errors
    /// [`HaproxyError::Socket`] when the master answers with something else.
    fn oldest_leaving_worker(&self) -> impl Future<Output = Result<Option<DateTime<Utc>>, HaproxyError>> + Send;

    /// Whether the Hoodie at this host answers 200 through HAProxy now.
    fn answers(&self, host: &Hostname) -> impl Future<Output = bool> + Send;

    /// Whether HAProxy runs a configuration of ours.
    ///
    /// # Errors
    /// [`HaproxyError::NotOurs`] when it does not; [`HaproxyError::Socket`].
    fn health(&self) -> impl Future<Output = Result<(), HaproxyError>> + Send;
}

/// The real one.
pub struct Haproxy {
    settings: Settings,
    master: Master,
    lane: Lane,
    signal: ReloadSignal,
    faults: Faults,
    http: reqwest::Client,
    /// Held for a whole publication: they never overlap.
    publishing: Mutex<Memory>,
}

/// What a publication remembers of those before it. All of it may be lost at any time.
#[derive(Default)]
struct Memory {
    /// The last rendering, since most publications ask for what is there already.
    rendered: Option<(Routes, String, Arc<Candidate>)>,
    /// The last reload, and haproxy.cfg without sections as it was then.
    reloaded: Option<(Instant, String)>,
    /// When the workers' maps were last compared.
    compared: Option<Instant>,
}

impl Haproxy {
    /// Touches nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let master = Master::new(settings.master_socket.clone(), settings.reload_container.is_none());
        let signal = settings.reload_container.clone().map_or_else(reload::to_the_process, reload::to_nobody);
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(2))
            .pool_max_idle_per_host(0)
            .no_proxy()
            .build()
            .unwrap_or_else(|error| unreachable!("a client without TLS has nothing to load: {error}"));
        let lane = Lane::new(settings.dir.clone(), settings.stats_socket.clone(), Faults::default());
        Self { settings, master, lane, signal, faults: Faults::default(), http, publishing: Mutex::default() }
    }

    /// With another way to signal the master than a signal to its process.
    #[must_use]
    pub fn with_reload_signal(self, signal: ReloadSignal) -> Self {
        Self { signal, ..self }
    }

    /// With failures at its boundaries, for tests.
    #[must_use]
    pub fn with_faults(self, faults: Faults) -> Self {
        Self { lane: self.lane.with_faults(faults.clone()), faults, ..self }
    }

    /// What would be published for these routes. Writes nothing.
    ///
    /// # Errors
    /// [`HaproxyError::Template`].
    pub async fn render_candidate(&self, routes: &Routes) -> Result<Candidate, HaproxyError> {
        let template = render::template(&self.settings).await?;
        render::candidate(self.settings.clone(), routes.clone(), template).await
    }

    /// Asks HAProxy about a candidate. Writes into a folder of its own, beside the real files.
    ///
    /// # Errors
    /// [`HaproxyError::Rejected`] with HAProxy's own words; [`HaproxyError::Missing`].
    pub async fn check(&self, candidate: &Candidate) -> Result<CheckedConfig, HaproxyError> {
        files::write_fixed(&self.settings).await?;
        let folder = self.settings.dir.join(format!("candidate-{}", std::process::id()));
        let checked = check::check(&self.settings, Arc::new(candidate.clone()), folder.clone()).await;
        files::remove_folder(&folder).await?;
        // The folder is gone: only the files' names mean something to who reads this.
        let prefix = format!("{}/", folder.display());
        checked.map_err(|error| match error {
            HaproxyError::Rejected { message } => HaproxyError::Rejected { message: message.replace(&prefix, "") },
            other => other,
        })
    }

    /// The generation that the running worker reports; none when HAProxy is down, or runs
    /// something that isn't ours.
    ///
    /// # Errors
    /// [`HaproxyError::Socket`].
    pub async fn running_generation(&self) -> Result<Option<String>, HaproxyError> {
        Ok(match self.master.running().await? {
            Running::Generation(generation) => Some(generation),
            Running::Foreign | Running::Down => None,
        })
    }

    /// Which host leads to which section in the running worker; empty when HAProxy is down.
    ///
    /// # Errors
    /// [`HaproxyError::Socket`].
    pub async fn running_map(&self) -> Result<Vec<(String, String)>, HaproxyError> {
        Ok(self.master.running_map().await?.map(|answer| lane::parse_map(&answer)).unwrap_or_default())
    }

    /// Every living worker, the current one first; empty when HAProxy is down.
    ///
    /// # Errors
    /// [`HaproxyError::Socket`].
    pub async fn workers(&self) -> Result<Vec<Worker>, HaproxyError> {
        Ok(self.master.processes().await?.map(|processes| processes.workers).unwrap_or_default())
    }

    /// A worker's memory in MiB; in another container only what its pools take, as it tells.
    pub async fn memory_mib(&self, worker: &Worker) -> Option<u64> {
        self.master.memory_mib(worker.pid).await
    }

    async fn rendered(&self, memory: &mut Memory, routes: &Routes) -> Result<Arc<Candidate>, HaproxyError> {
        let template = render::template(&self.settings).await?;
        if let Some((of_routes, of_template, candidate)) = &memory.rendered
            && of_routes == routes
            && *of_template == template
        {
            return Ok(Arc::clone(candidate));
        }
        let candidate = render::candidate(self.settings.clone(), routes.clone(), template.clone()).await?;
        let candidate = Arc::new(candidate);
        memory.rendered = Some((routes.clone(), template, Arc::clone(&candidate)));
        Ok(candidate)
    }
}

impl Proxy for Haproxy {
    async fn publish(&self, routes: &Routes, read: Moment) -> Result<Publication, HaproxyError> {
        let mut memory = self.publishing.lock().await;
        let candidate = self.rendered(&mut memory, routes).await?;
        if self.settings.live_routes {
            self.publish_live(&mut memory, &candidate, routes, read).await
        } else {
            self.publish_by_reload(&candidate).await
        }
    }

    async fn now(&self) -> Moment {
        Moment(self.lane.now().await)
    }

    async fn change(&self, change: &RouteChange) -> Result<bool, HaproxyError> {
        if !self.settings.live_routes {
            return Ok(false);
        }
        self.lane.change(&self.master, change).await
    }

    async fn busy(&self, host: &Hostname, port: u16) -> Result<bool, HaproxyError> {
        for worker in self.workers().await? {
            if self.master.has_stream(worker.pid, host, port).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn oldest_leaving_worker(&self) -> Result<Option<DateTime<Utc>>, HaproxyError> {
        Ok(self.workers().await?.iter().filter(|worker| !worker.current).map(|worker| worker.started).min())
    }

    async fn answers(&self, host: &Hostname) -> bool {
        let scheme = if self.settings.https_bind.is_empty() { "http" } else { "https" };
        let url = format!("{scheme}://{}/hoodie/", self.settings.local_address());
        let answer = self.http.get(url).header(reqwest::header::HOST, host.as_str()).send().await;
        answer.is_ok_and(|answer| answer.status() == reqwest::StatusCode::OK)
    }

    async fn health(&self) -> Result<(), HaproxyError> {
        match self.master.running().await? {
            Running::Generation(_) => Ok(()),
            Running::Foreign | Running::Down => Err(HaproxyError::NotOurs),
        }
    }
}
