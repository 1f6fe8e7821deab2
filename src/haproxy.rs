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

mod certs;
mod check;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod lane;
mod master;
mod probe;
mod processes;
mod publish;
mod reload;
mod render;
mod routes;
mod settings;
mod socket;
mod usage;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::failpoint::Faults;
use crate::instance::name::Hostname;
pub use certs::Certificates;
use certs::Certs;
pub use check::CheckedConfig;
use lane::Lane;
use master::{Master, Running};
use probe::Probe;
pub use processes::Worker;
pub use reload::ReloadSignal;
pub use render::Candidate;
pub use routes::{Moment, Route, RouteChange, Routes};
pub use settings::Settings;
pub use usage::{AppUsage, REMEMBERED_FOR, Usage};

/// How often what the workers have is compared with what they should when nothing is amiss.
const COMPARE_EVERY: Duration = Duration::from_secs(10);

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
    /// What is wrong with haproxy.cfg or with certificates; the routes are as they should be all
    /// the same.
    pub trouble: Option<String>,
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
    /// Somebody listens at the socket, and gives no answer.
    #[error("the socket {}: no answer within {} s", .path.display(), .after.as_secs())]
    Deaf {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        after: Duration,
    },
    /// Somebody answers at the master's socket, but not as HAProxy's master does; or it can't be
    /// said whether anybody is there.
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

    /// What was seen before may be old: somebody else may have acted meanwhile.
    fn forget(&self) -> impl Future<Output = ()> + Send;

    /// This moment. Ask before the routes are read that are published.
    fn now(&self) -> impl Future<Output = Moment> + Send;

    /// Changes where one app's hosts lead, at once. True when every living worker follows; false
    /// when that is not sure, or this proxy has no such way: then a publication has to do it.
    ///
    /// # Errors
    /// [`HaproxyError::Io`] when routes.map can't be written.
    fn change(&self, change: &RouteChange) -> impl Future<Output = Result<bool, HaproxyError>> + Send;

    /// Whether a request or stream towards this port is still under way in any living worker, old
    /// or new. No when HAProxy is down.
    ///
    /// # Errors
    /// [`HaproxyError::Socket`] and [`HaproxyError::Deaf`] when it can't be said.
    fn busy(&self, port: u16) -> impl Future<Output = Result<bool, HaproxyError>> + Send;

    /// What was counted for each app since it was last asked; none when HAProxy is down.
    ///
    /// # Errors
    /// [`HaproxyError::Socket`] and [`HaproxyError::Deaf`] when it can't be said.
    fn usage(&self) -> impl Future<Output = Result<Option<Usage>, HaproxyError>> + Send;

    /// When the oldest worker started of those that a reload has told to leave; none when there
    /// is none. Such a worker keeps the routes that it was started with: a port that was unrouted
    /// later than this may still be reached through it.
    ///
    /// # Errors
    /// [`HaproxyError::Socket`] and [`HaproxyError::Deaf`] when it can't be said.
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
    certs: Certs,
    faults: Faults,
    probe: Probe,
    earlier_usage: usage::Earlier,
    /// Held for a whole publication: they never overlap.
    publishing: Mutex<Memory>,
}

/// What a publication remembers of those before it. All of it may be lost at any time.
#[derive(Default)]
struct Memory {
    rendered: Option<Rendered>,
    /// The last reload, and haproxy.cfg without sections as it was then.
    reloaded: Option<(Instant, String)>,
    /// Whether the template may be half written, and was not read.
    half_written: bool,
    /// The generation that the last reload failed with, if it did.
    failed: Option<publish::FailedReload>,
    /// When the workers' maps were last compared.
    compared: Option<Instant>,
    /// When HAProxy was last reloaded for certificates alone.
    reloaded_for_certificates: Option<Instant>,
}

/// The last rendering, since most publications ask for what is there already.
struct Rendered {
    template: String,
    /// The generation of haproxy.cfg without any section: what of it can't wait.
    skeleton: String,
    routes: Routes,
    candidate: Arc<Candidate>,
}

impl Haproxy {
    /// Touches nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let master = Master::new(settings.master_socket.clone(), settings.reload_container.is_none());
        let signal = settings.reload_container.clone().map_or_else(reload::to_the_process, reload::to_nobody);
        let lane = Lane::new(&settings, Faults::default());
        let (certs, probe) = (Certs::new(&settings), Probe::new(&settings));
        Self {
            settings,
            master,
            lane,
            signal,
            certs,
            faults: Faults::default(),
            probe,
            earlier_usage: usage::Earlier::default(),
            publishing: Mutex::default(),
        }
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
        let answer = self.master.running_map().await?.unwrap_or_default();
        let owned = |(host, target): (&str, &str)| (host.to_owned(), target.to_owned());
        Ok(lane::parse_map(&answer).into_iter().map(owned).collect())
    }

    /// In how many entries the running worker's map differs from these routes; none when HAProxy
    /// is down.
    ///
    /// # Errors
    /// [`HaproxyError::Socket`].
    pub async fn map_differences(&self, routes: &Routes) -> Result<Option<usize>, HaproxyError> {
        let answer = self.master.running_map().await?;
        Ok(answer.map(|answer| lane::count_differences(&answer, &routes.entries(&self.settings.domain))))
    }

    /// The certificates, for a person to read. Changes nothing.
    ///
    /// # Errors
    /// [`HaproxyError`] when they, or HAProxy, can't be looked at.
    pub async fn certificates(&self) -> Result<Certificates, HaproxyError> {
        self.certs.report(&self.master).await
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

    async fn rendered<'a>(&self, memory: &'a mut Memory, routes: &Routes) -> Result<&'a Rendered, HaproxyError> {
        let present = render::template(&self.settings).await;
        // Looked at after it was read: whoever began to write meanwhile is seen.
        memory.half_written = memory.rendered.is_some() && !render::template_is_settled(&self.settings).await;
        let template = match &memory.rendered {
            Some(before) if memory.half_written => before.template.clone(),
            _ => present?,
        };
        let render = |routes: Routes| render::candidate(self.settings.clone(), routes, template.clone());
        let skeleton = match &memory.rendered {
            Some(before) if before.template == template => before.skeleton.clone(),
            _ => render(Routes::default()).await?.generation().to_owned(),
        };
        let candidate = match &memory.rendered {
            Some(before) if before.template == template && before.routes == *routes => Arc::clone(&before.candidate),
            _ => Arc::new(render(routes.clone()).await?),
        };
        Ok(memory.rendered.insert(Rendered { template, skeleton, routes: routes.clone(), candidate }))
    }
}

impl Proxy for Haproxy {
    async fn publish(&self, routes: &Routes, read: Moment) -> Result<Publication, HaproxyError> {
        let mut memory = self.publishing.lock().await;
        // The folder first: a worker that starts loads it. Certificates are no reason to leave
        // routes as they are, nor the other way round.
        let settled = self.certs.settle(routes).await;
        let published = async {
            files::write_fixed(&self.settings).await?;
            if self.settings.live_routes {
                self.publish_live(&mut memory, routes, read).await
            } else {
                let candidate = Arc::clone(&self.rendered(&mut memory, routes).await?.candidate);
                self.publish_by_reload(&candidate).await
            }
        };
        let published = published.await;
        let in_force = self.certificates_in_force(&mut memory, routes).await;
        let certificates = settled.and(in_force).err().map(|why| format!("certificates: {why}"));
        // What was left out because it may be half written is looked at once more.
        let again = memory.half_written.then(|| Instant::now() + render::HALF_WRITTEN);
        published.map(|publication| {
            let reload_due = publication.reload_due.into_iter().chain(again).min();
            let troubles: Vec<String> = publication.trouble.into_iter().chain(certificates).collect();
            Publication { reload_due, trouble: (!troubles.is_empty()).then(|| troubles.join("; ")), ..publication }
        })
    }

    async fn forget(&self) {
        *self.publishing.lock().await = Memory::default();
        self.lane.forget().await;
    }

    async fn now(&self) -> Moment {
        Moment(self.lane.now())
    }

    async fn change(&self, change: &RouteChange) -> Result<bool, HaproxyError> {
        if !self.settings.live_routes {
            return Ok(false);
        }
        // Whoever is told of an app may come at once.
        let covered = match change {
            RouteChange::Set(route) => self.certs.cover(&self.master, route).await,
            RouteChange::Unset(_) => true,
        };
        Ok(self.lane.change(&self.master, change).await? && covered)
    }

    async fn busy(&self, port: u16) -> Result<bool, HaproxyError> {
        for worker in self.master.workers_for_sure().await?.unwrap_or_default() {
            match self.master.has_stream(worker.pid, port).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) if self.master.is_silence_of(&worker, &error).await => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    async fn usage(&self) -> Result<Option<Usage>, HaproxyError> {
        self.earlier_usage.read(&self.master).await
    }

    async fn oldest_leaving_worker(&self) -> Result<Option<DateTime<Utc>>, HaproxyError> {
        let workers = self.master.workers_for_sure().await?.unwrap_or_default();
        Ok(workers.iter().filter(|worker| !worker.current).map(|worker| worker.started).min())
    }

    async fn answers(&self, host: &Hostname) -> bool {
        self.probe.answers(host).await
    }

    async fn health(&self) -> Result<(), HaproxyError> {
        match self.master.running().await? {
            Running::Generation(_) => Ok(()),
            Running::Foreign | Running::Down => Err(HaproxyError::NotOurs),
        }
    }
}
