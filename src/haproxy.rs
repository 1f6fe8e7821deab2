//! HAProxy: the domain-to-unique-port-mapper.
//!
//! [`Proxy::publish`] makes HAProxy route exactly what it is given, and never shows it a broken
//! file: render → check the candidate with `haproxy -c` → fsync → rename → signal the master →
//! confirm that the running worker reports the new generation.
//!
//! What is true at each moment, so that a crash at any of them heals with the next publication:
//!
//! * `haproxy.cfg` in the configured folder was accepted by `haproxy -c` with the `routes.map`
//!   that it was rendered with. Its rename is the commit point and comes after the map's. Between
//!   the two an old haproxy.cfg meets the new map, which is harmless: a host that moved or came
//!   anew falls through to the backend `apps`, which goes by the map alone.
//! * The generation is a hash over both files. It stands in haproxy.cfg as a process variable, and
//!   the worker that loaded it reports it; so what runs is compared with what should run, not
//!   remembered.
//! * `candidate/` is this publication's scratch. `rejected/` is the last one that HAProxy refused,
//!   for the administrator. `last-good/` is what a worker is known to have run; it is put back when
//!   a new generation passes the check but no worker comes up with it, so that HAProxy can be
//!   restarted at any time.

mod check;
mod files;
mod master;
mod reload;
mod render;
mod settings;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use thiserror::Error;
use tokio::sync::Mutex;

use crate::failpoint::{Boundary, Faults};
use crate::instance::name::{ContainerName, Hostname};
pub use check::CheckedConfig;
pub use master::Worker;
use master::{Master, Running};
pub use reload::ReloadSignal;
pub use render::Candidate;
pub use settings::Settings;

/// One app's way: its host, and the loopback port that its container is published on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What end users ask for.
    pub host: Hostname,
    /// Where it answers, on 127.0.0.1.
    pub port: u16,
    /// Whose it is; for people who read haproxy.cfg.
    pub container: ContainerName,
    /// Since when it is ready; for people who read haproxy.cfg.
    pub since: DateTime<Utc>,
}

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
    /// Whether they are in use.
    pub standing: Standing,
}

/// Whether what was published is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The running worker reports this generation.
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
    /// Makes HAProxy route exactly these. Idempotent: when the files on disk and the running
    /// worker already carry this, nothing is written or signalled.
    ///
    /// # Errors
    /// Any [`HaproxyError`]. Whichever it is, HAProxy serves what it served before.
    fn publish(&self, routes: &Routes) -> impl Future<Output = Result<Publication, HaproxyError>> + Send;

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
    signal: ReloadSignal,
    faults: Faults,
    http: reqwest::Client,
    /// Held for a whole publication: they never overlap.
    publishing: Mutex<Rendered>,
}

/// The last rendering, since most publications ask for what is there already.
#[derive(Default)]
struct Rendered(Option<(Routes, String, Arc<Candidate>)>);

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
        Self { settings, master, signal, faults: Faults::default(), http, publishing: Mutex::default() }
    }

    /// With another way to signal the master than a signal to its process.
    #[must_use]
    pub fn with_reload_signal(self, signal: ReloadSignal) -> Self {
        Self { signal, ..self }
    }

    /// With failures at its boundaries, for tests.
    #[must_use]
    pub fn with_faults(self, faults: Faults) -> Self {
        Self { faults, ..self }
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
        files::write_pages(&self.settings.dir).await?;
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

    async fn rendered(&self, cache: &mut Rendered, routes: &Routes) -> Result<Arc<Candidate>, HaproxyError> {
        let template = render::template(&self.settings).await?;
        if let Some((of_routes, of_template, candidate)) = &cache.0
            && of_routes == routes
            && *of_template == template
        {
            return Ok(Arc::clone(candidate));
        }
        let candidate = render::candidate(self.settings.clone(), routes.clone(), template.clone()).await?;
        let candidate = Arc::new(candidate);
        cache.0 = Some((routes.clone(), template, Arc::clone(&candidate)));
        Ok(candidate)
    }

    /// Check and swap, unless the files are there already.
    async fn put_in_place(&self, candidate: &Arc<Candidate>, running: &Running) -> Result<(), HaproxyError> {
        let dir = &self.settings.dir;
        let ((), present) = tokio::try_join!(files::write_pages(dir), files::Pair::read(dir))?;
        if present.as_ref().is_some_and(|pair| pair.is(candidate)) {
            return Ok(());
        }
        let keep = async {
            match (&present, running) {
                (Some(pair), Running::Generation(generation)) => files::keep_last_good(dir, pair, generation).await,
                _ => Ok(()),
            }
        };
        let folder = dir.join("candidate");
        let (kept, checked) = tokio::join!(keep, check::check(&self.settings, Arc::clone(candidate), folder.clone()));
        kept?;
        let checked = match checked {
            Err(HaproxyError::Rejected { message }) => {
                let kept = files::keep_rejected(dir, &folder).await?;
                let message = message.replace(&*folder.to_string_lossy(), &kept.to_string_lossy());
                return Err(HaproxyError::Rejected { message });
            }
            other => other?,
        };
        self.faults.hit(Boundary::CandidateChecked).await;
        let half = files::swap_map(dir, checked).await?;
        self.faults.hit(Boundary::MapSwapped).await;
        half.swap_config().await?;
        self.faults.hit(Boundary::ConfigSwapped).await;
        Ok(())
    }
}

impl Proxy for Haproxy {
    async fn publish(&self, routes: &Routes) -> Result<Publication, HaproxyError> {
        let mut cache = self.publishing.lock().await;
        let candidate = self.rendered(&mut cache, routes).await?;
        let generation = candidate.generation().to_owned();
        let running = self.master.running().await?;
        self.put_in_place(&candidate, &running).await?;
        let standing = match running {
            Running::Down => Standing::Down,
            Running::Generation(running) if running == generation => Standing::Live,
            Running::Generation(_) | Running::Foreign => {
                self.reload(&generation).await?;
                Standing::Live
            }
        };
        Ok(Publication { generation, standing })
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
        let url = format!("http://{}/hoodie/", self.settings.local_address());
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
