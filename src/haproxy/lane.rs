//! The live lane: a route is put into the running HAProxy at once, and gets its section with a
//! later reload.
//!
//! The map decides where a host leads (see the template), and HAProxy can change a map while it
//! runs (HAProxy management guide, section 9.3, `add map`, `set map`, `del map`, `prepare map`).
//! So a change goes first into routes.map, for whoever starts HAProxy next, then to every living
//! worker: the current one through its own socket, which answers also while the master reads its
//! files anew, the older ones through the master's.
//!
//! What the lane relies on, it has seen. A worker is in `agreed` once its whole map was compared
//! with `entries`, and for as long as each change since was read back from it. Anything
//! unexpected (an error, an unknown worker, a reload under way) takes that away: nothing is
//! called in force then, until a comparison of every worker's map, and the repair of what
//! differs, has restored it. That comparison is made at every reload and every period.
//!
//! Who changes what: [`Lane::change`] is called for one app at a time, by whoever works on it;
//! [`Lane::settle`] for all of them, with routes that were read from the manifest a moment ago.
//! A change made since that moment is newer, and is left alone.

mod map;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::master::Master;
use super::render::{MAP, map_text};
use super::socket::Socket;
use super::{HaproxyError, RouteChange, Settings, files};
use crate::failpoint::{Boundary, Faults};
use crate::instance::name::Hostname;
use crate::whole_file::Durability;
#[cfg(feature = "fuzzing")]
pub(super) use map::fuzzing;
pub(super) use map::{Entries, count_differences, parse_map};
use map::{Entry, InLine, bring_in_line};

/// How long an old worker that gave no answer is left alone.
const DEAF_REST: Duration = Duration::from_secs(60);
/// How soon what is in doubt is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// See the module's documentation.
pub(super) struct Lane {
    dir: PathBuf,
    control: Hostname,
    current: Socket,
    faults: Faults,
    /// Counts changes.
    sequence: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What routes.map says; none until it was first written.
    entries: Option<Entries>,
    /// Workers whose maps say the same.
    agreed: HashSet<i32>,
    /// Hosts that were changed alone, and when.
    recent: HashMap<Hostname, u64>,
    /// Whether `entries` has changed since the workers were last compared.
    news: bool,
    /// A worker may be reading routes.map right now.
    reloading: bool,
    /// Old workers that gave no answer, and when: each question costs seconds.
    deaf: HashMap<i32, Instant>,
}

/// How far the workers follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Following {
    /// Every living one has the map.
    All,
    /// HAProxy is down.
    Nobody,
    /// The current one does not.
    InDoubt,
    /// The current one does; an old one does not, and no reload would help it.
    OldInDoubt,
}

impl Lane {
    pub fn new(settings: &Settings, faults: Faults) -> Self {
        let (dir, control) = (settings.dir.clone(), settings.domain.clone());
        let current = Socket::new(settings.stats_socket.clone());
        Self { dir, control, current, faults, sequence: AtomicU64::new(0), state: Mutex::default() }
    }

    pub fn with_faults(self, faults: Faults) -> Self {
        Self { faults, ..self }
    }

    /// This moment, for [`Lane::settle`].
    pub fn now(&self) -> u64 {
        // Whoever changes a route has written it to the manifest before: no need to wait for it.
        self.sequence.load(Ordering::SeqCst)
    }

    /// Changes where some hosts lead. True when every worker follows; otherwise it may or may
    /// not be in force, and settling has to make sure.
    pub async fn change(&self, master: &Master, change: &RouteChange) -> Result<bool, HaproxyError> {
        let mut guard = self.state.lock().await;
        let state = &mut *guard;
        let Some(mut entries) = state.entries.take() else { return Ok(false) };
        let (hosts, target) = (change.hosts(), change.target());
        let mut steps = Vec::new();
        let sequence = self.sequence.fetch_add(1, Ordering::SeqCst) + 1;
        // The control API's own host is never an app's.
        for host in hosts.into_iter().filter(|host| **host != self.control) {
            let before = match &target {
                Some(target) => entries.insert(host.clone(), target.clone()),
                None => entries.remove(host),
            };
            steps.push(Entry { host, before, after: target.as_deref() });
            state.recent.insert(host.clone(), sequence);
        }
        // Whoever is dropped on the way from here has told nobody, or not all.
        let agreed = std::mem::take(&mut state.agreed);
        let changes = steps.iter().any(Entry::changes);
        let written = if changes { write_map(&self.dir, &entries).await } else { Ok(()) };
        state.entries = Some(entries);
        written?;
        self.faults.hit(Boundary::MapSwapped).await;
        match self.tell_all(master, &agreed, state.reloading, &steps).await {
            Ok(true) => {
                state.agreed = agreed;
                self.faults.hit(Boundary::RunningMapChanged).await;
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(error) => {
                log::debug!("the live lane is in doubt: {error}");
                Ok(false)
            }
        }
    }

    /// Whether every living worker is known, was told, and has it.
    async fn tell_all(
        &self,
        master: &Master,
        agreed: &HashSet<i32>,
        reloading: bool,
        steps: &[Entry<'_>],
    ) -> Result<bool, HaproxyError> {
        let mut line: Vec<String> = steps.iter().filter_map(Entry::command).collect();
        line.extend(steps.iter().map(Entry::question));
        line.push("show info".to_owned());
        let Some(answer) = self.current.ask(&line.join(";")).await? else { return Ok(false) };
        let Some(pid) = answer.lines().find_map(|line| line.strip_prefix("Pid: ")?.trim().parse::<i32>().ok()) else {
            return Ok(false);
        };
        let told: Vec<&str> = answer.lines().filter(|line| line.starts_with("type=str")).collect();
        if told.len() != steps.len() || !steps.iter().zip(told).all(|(entry, answer)| entry.is_told_by(answer)) {
            return Ok(false);
        }
        if reloading {
            // The master is busy with itself, and all is compared when it is done.
            return Ok(false);
        }
        let Some(processes) = master.processes().await? else { return Ok(false) };
        if !processes.workers.iter().all(|worker| agreed.contains(&worker.pid))
            || !processes.workers.iter().any(|worker| worker.pid == pid)
        {
            return Ok(false);
        }
        for worker in processes.workers.iter().filter(|worker| worker.pid != pid) {
            for entry in steps {
                if let Some(command) = entry.command() {
                    master.tell(worker.pid, &command).await?;
                }
                // One that has left in the meantime routes nobody any more.
                if let Some(answer) = master.tell(worker.pid, &entry.question()).await?
                    && !entry.is_told_by(&answer)
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Makes routes.map, and the map of every living worker, say `wanted`, but for what was
    /// changed after `since`. `compare` looks at every worker's map also when it should be right.
    pub async fn settle(
        &self,
        master: &Master,
        mut wanted: Entries,
        since: u64,
        compare: bool,
    ) -> Result<Following, HaproxyError> {
        let mut guard = self.state.lock().await;
        let state = &mut *guard;
        if state.reloading {
            // The publication that began the reload was dropped before it saw the end.
            state.reloading = false;
            state.agreed.clear();
        }
        state.recent.retain(|_, changed| *changed > since);
        if let Some(entries) = &state.entries {
            for host in state.recent.keys() {
                match entries.get(host) {
                    Some(target) => wanted.insert(host.clone(), target.clone()),
                    None => wanted.remove(host),
                };
            }
        }
        let news = state.entries.as_ref() != Some(&wanted);
        if (news || compare) && !files::says(&self.dir.join(MAP), &map_text(&wanted)).await? {
            write_map(&self.dir, &wanted).await?;
            self.faults.hit(Boundary::MapSwapped).await;
        }
        if news || compare {
            state.agreed.clear();
        }
        state.entries = Some(wanted);
        state.news |= news;
        self.follow(master, state).await
    }

    /// What was seen before may be old: somebody else has acted meanwhile.
    pub async fn forget(&self) {
        let mut state = self.state.lock().await;
        (state.agreed, state.reloading) = (HashSet::new(), false);
    }

    /// How far the workers follow now.
    pub async fn look(&self, master: &Master) -> Result<Following, HaproxyError> {
        let mut guard = self.state.lock().await;
        self.follow(master, &mut guard).await
    }

    /// From here on a worker may be reading routes.map.
    pub async fn reload_begins(&self) {
        self.state.lock().await.reloading = true;
    }

    /// The reload is over, well or not: everything is compared.
    pub async fn reload_ends(&self, master: &Master) -> Result<Following, HaproxyError> {
        let mut guard = self.state.lock().await;
        let state = &mut *guard;
        state.reloading = false;
        state.agreed.clear();
        self.follow(master, state).await
    }

    /// Brings every living worker's map in line with `entries`. Workers come and go meanwhile:
    /// what is in doubt is looked at once more.
    async fn follow(&self, master: &Master, state: &mut State) -> Result<Following, HaproxyError> {
        for _ in 0..2 {
            if let Ok(known @ (Following::All | Following::Nobody)) = self.follow_once(master, state).await {
                return Ok(known);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.follow_once(master, state).await
    }

    async fn follow_once(&self, master: &Master, state: &mut State) -> Result<Following, HaproxyError> {
        let Some(entries) = &state.entries else { return Ok(Following::InDoubt) };
        let Some(processes) = master.processes().await? else {
            state.agreed.clear();
            return Ok(Following::Nobody);
        };
        let living: HashSet<i32> = processes.workers.iter().map(|worker| worker.pid).collect();
        state.agreed.retain(|pid| living.contains(pid));
        state.deaf.retain(|pid, _| living.contains(pid));
        let (mut repaired, mut old_in_doubt) = (false, false);
        for worker in &processes.workers {
            let deaf = state.deaf.get(&worker.pid).is_some_and(|since| since.elapsed() < DEAF_REST);
            if state.agreed.contains(&worker.pid) || deaf {
                continue;
            }
            match bring_in_line(master, worker, entries, state.news).await {
                Ok(InLine::No) if worker.current => return Ok(Following::InDoubt),
                Ok(InLine::No) => old_in_doubt = true,
                Ok(line) => {
                    repaired |= line == InLine::Repaired;
                    state.agreed.insert(worker.pid);
                }
                // It is on its way out.
                Err(error) if master.is_silence_of(worker, &error).await => {
                    log::warn!("an old worker of HAProxy (process {}) is left alone: {error}", worker.pid);
                    state.deaf.insert(worker.pid, Instant::now());
                }
                Err(error) if !worker.current => {
                    log::debug!("what an old worker of HAProxy (process {}) routes is not known: {error}", worker.pid);
                    old_in_doubt = true;
                }
                Err(error) => return Err(error),
            }
        }
        state.news = false;
        if repaired {
            self.faults.hit(Boundary::RunningMapChanged).await;
        }
        Ok(match processes.workers.first() {
            None => Following::Nobody,
            Some(_) if old_in_doubt => Following::OldInDoubt,
            Some(_) => Following::All,
        })
    }
}

/// Not synced: it is compared, and written again if need be, before it is relied on.
async fn write_map(dir: &Path, entries: &Entries) -> Result<(), HaproxyError> {
    files::replace(&dir.join(MAP), map_text(entries), Durability::Process).await
}
