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

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::master::{Master, Worker};
use super::render::{MAP, map_text};
use super::socket::Socket;
use super::{HaproxyError, RouteChange, Settings, files};
use crate::failpoint::{Boundary, Faults};
use crate::instance::name::Hostname;

/// Differences up to which a map is repaired entry by entry; past it, it is replaced in one.
const REPAIRED_SINGLY: usize = 64;
/// What a worker takes as one command: its buffer has 16 KiB (`tune.bufsize`).
const PAYLOAD: usize = 12 * 1024;

/// How long an old worker that gave no answer is left alone.
const DEAF_REST: Duration = Duration::from_secs(60);
/// How soon what is in doubt is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Which host leads to which section.
pub(super) type Entries = BTreeMap<Hostname, String>;

/// See the module's documentation.
pub(super) struct Lane {
    dir: PathBuf,
    control: Hostname,
    current: Socket,
    faults: Faults,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What routes.map says; none until it was first written.
    entries: Option<Entries>,
    /// Workers whose maps say the same.
    agreed: HashSet<i32>,
    /// Counts changes.
    sequence: u64,
    /// Hosts that were changed alone, and when.
    recent: HashMap<Hostname, u64>,
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
        Self { dir, control, current: Socket::new(settings.stats_socket.clone()), faults, state: Mutex::default() }
    }

    pub fn with_faults(self, faults: Faults) -> Self {
        Self { faults, ..self }
    }

    /// This moment, for [`Lane::settle`].
    pub async fn now(&self) -> u64 {
        self.state.lock().await.sequence
    }

    /// Changes where some hosts lead. True when every worker follows; otherwise it may or may
    /// not be in force, and settling has to make sure.
    pub async fn change(&self, master: &Master, change: &RouteChange) -> Result<bool, HaproxyError> {
        let mut guard = self.state.lock().await;
        let state = &mut *guard;
        let Some(mut entries) = state.entries.take() else { return Ok(false) };
        let (hosts, target) = (change.hosts(), change.target());
        let mut steps = Vec::new();
        state.sequence += 1;
        // The control API's own host is never an app's.
        for host in hosts.into_iter().filter(|host| **host != self.control) {
            let before = match &target {
                Some(target) => entries.insert(host.clone(), target.clone()),
                None => entries.remove(host),
            };
            steps.push(Entry { host, before, after: target.as_deref() });
            state.recent.insert(host.clone(), state.sequence);
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
            match bring_in_line(master, worker, entries).await {
                Ok(InLine::No) if worker.current => return Ok(Following::InDoubt),
                Ok(InLine::No) => old_in_doubt = true,
                Ok(line) => {
                    repaired |= line == InLine::Repaired;
                    state.agreed.insert(worker.pid);
                }
                // One that gives no answer takes no request either, and is on its way out.
                Err(error) if !worker.current => {
                    log::warn!("an old worker of HAProxy (process {}) is left alone: {error}", worker.pid);
                    state.deaf.insert(worker.pid, Instant::now());
                }
                Err(error) => return Err(error),
            }
        }
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

/// What makes a map that leads a host to one section lead it to another; nothing if they are the
/// same.
fn command(host: &str, before: Option<&str>, after: Option<&str>) -> Option<String> {
    match (before, after) {
        (None, Some(after)) => Some(format!("add map {MAP} {host} {after}")),
        (Some(before), Some(after)) if before != after => Some(format!("set map {MAP} {host} {after}")),
        (Some(_), None) => Some(format!("del map {MAP} {host}")),
        (Some(_), Some(_)) | (None, None) => None,
    }
}

/// One host, where it led and where it is to lead.
struct Entry<'a> {
    host: &'a Hostname,
    before: Option<String>,
    after: Option<&'a str>,
}

impl Entry<'_> {
    fn changes(&self) -> bool {
        self.before.as_deref() != self.after
    }

    /// What to tell a worker that agrees with what was; nothing if nothing changes.
    fn command(&self) -> Option<String> {
        command(self.host.as_str(), self.before.as_deref(), self.after)
    }

    fn question(&self) -> String {
        format!("get map {MAP} {}", self.host)
    }

    /// Whether the answer to the question is as it should be.
    fn is_told_by(&self, answer: &str) -> bool {
        match self.after {
            Some(after) => answer.contains(&format!("value=\"{after}\"")),
            None => answer.contains("found=no"),
        }
    }
}

/// How a worker's map was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InLine {
    Already,
    Repaired,
    No,
}

/// Compares a worker's map, repairs it, and compares once more. One that has left is in line.
async fn bring_in_line(master: &Master, worker: &Worker, entries: &Entries) -> Result<InLine, HaproxyError> {
    let gone = if worker.current { InLine::No } else { InLine::Already };
    let Some(present) = show_map(master, worker).await? else { return Ok(gone) };
    let repair_by = repair(&parse_map(&present), entries);
    let empty = present.trim().is_empty();
    drop(present);
    if repair_by == Repair::Nothing {
        return Ok(InLine::Already);
    }
    if worker.current && !empty {
        log::info!("HAProxy's map differs from the manifest; repairing it");
    }
    match repair_by {
        Repair::Singly(steps) => {
            for step in &steps {
                master.tell(worker.pid, step).await?;
            }
        }
        Repair::Whole | Repair::Nothing => replace_map(master, worker.pid, entries).await?,
    }
    let Some(present) = show_map(master, worker).await? else { return Ok(gone) };
    Ok(if repair(&parse_map(&present), entries) == Repair::Nothing { InLine::Repaired } else { InLine::No })
}

/// A worker's map, as it shows it; none when the worker is not there, or is an old one that has no
/// such map: it ran something else before, and routes by nothing of ours.
async fn show_map(master: &Master, worker: &Worker) -> Result<Option<String>, HaproxyError> {
    let answer = master.tell(worker.pid, &format!("show map {MAP}")).await?;
    Ok(answer.filter(|answer| worker.current || !answer.starts_with("Unknown map")))
}

/// Host and section, repeated hosts included, of lines such as
/// `0x55f8d4ebe1a0 notes.alice.example notes.alice.example:5521`.
pub(super) fn parse_map(answer: &str) -> Vec<(&str, &str)> {
    fn entry(line: &str) -> Option<(&str, &str)> {
        let (pointer, rest) = line.split_once(' ')?;
        let (host, target) = rest.split_once(' ')?;
        pointer.starts_with("0x").then(|| (host, target.trim()))
    }
    answer.lines().filter_map(entry).collect()
}

/// In how many hosts a worker's map, as it shows it, is not as it should be.
pub(super) fn count_differences(answer: &str, wanted: &Entries) -> usize {
    differences(&parse_map(answer).into_iter().collect(), wanted).count()
}

/// Each host that leads elsewhere than it should: where it leads, and where it should.
fn differences<'a>(
    present: &'a HashMap<&'a str, &'a str>,
    wanted: &'a Entries,
) -> impl Iterator<Item = (&'a str, Option<&'a str>, Option<&'a str>)> {
    let there =
        present.iter().map(|(host, before)| (*host, Some(*before), wanted.get::<str>(host).map(String::as_str)));
    let missing = wanted.iter().filter(|(host, _)| !present.contains_key(host.as_str()));
    let missing = missing.map(|(host, after)| (host.as_str(), None, Some(after.as_str())));
    there.chain(missing).filter(|(_, before, after)| before != after)
}

/// What would make the one out of the other.
#[derive(Debug, PartialEq, Eq)]
enum Repair {
    /// They are equal.
    Nothing,
    /// These commands.
    Singly(Vec<String>),
    /// All of it anew: so much differs, or a host is there twice (of which `del map` takes all on
    /// 2.6 and one on 3.4).
    Whole,
}

fn repair(present: &[(&str, &str)], wanted: &Entries) -> Repair {
    let mut seen: HashMap<&str, &str> = HashMap::with_capacity(present.len());
    for (host, target) in present {
        if seen.insert(host, target).is_some() {
            return Repair::Whole;
        }
    }
    let steps: Vec<String> =
        differences(&seen, wanted).filter_map(|(host, before, after)| command(host, before, after)).collect();
    match steps.len() {
        0 => Repair::Nothing,
        1..=REPAIRED_SINGLY => Repair::Singly(steps),
        _ => Repair::Whole,
    }
}

/// Replaces a worker's map in one moment, however large (management guide, `prepare map`).
async fn replace_map(master: &Master, pid: i32, entries: &Entries) -> Result<(), HaproxyError> {
    let answer = master.tell(pid, &format!("prepare map {MAP}")).await?.unwrap_or_default();
    // "New version created: 1"
    let Some(version) = answer.rsplit(' ').next().and_then(|word| word.trim().parse::<u32>().ok()) else {
        return Ok(());
    };
    let command = format!("add map @{version} {MAP} <<\n");
    let mut payload = command.clone();
    for (host, target) in entries {
        let line = format!("{host} {target}\n");
        if payload.len() + line.len() > PAYLOAD {
            payload.push('\n');
            master.tell(pid, &payload).await?;
            payload.clone_from(&command);
        }
        payload.push_str(&line);
    }
    if payload.len() > command.len() {
        payload.push('\n');
        master.tell(pid, &payload).await?;
    }
    master.tell(pid, &format!("commit map @{version} {MAP}")).await?;
    Ok(())
}

/// Not synced: it is compared, and written again if need be, before it is relied on.
async fn write_map(dir: &Path, entries: &Entries) -> Result<(), HaproxyError> {
    files::replace_unsynced(&dir.join(MAP), map_text(entries)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(of: &[(&str, &str)]) -> Entries {
        of.iter().map(|(host, target)| (Hostname::parse(host).unwrap(), (*target).to_owned())).collect()
    }

    #[test]
    fn a_map_is_read_as_haproxy_shows_it() {
        let answer = "0x55f8d4ebe1a0 a.example a.example:1\n0x55f8d4ebe1f0 b.example a.example:1\n\n";
        let read = parse_map(answer);
        assert_eq!(read, [("a.example", "a.example:1"), ("b.example", "a.example:1")]);
        assert!(parse_map("Unknown map identifier. Please use #<id> or <file>.\n").is_empty());
    }

    #[test]
    fn what_differs_is_repaired_and_nothing_else_is_touched() {
        let wanted = entries(&[("a.example", "a:1"), ("b.example", "b:2"), ("c.example", "c:3")]);
        let same = [("c.example", "c:3"), ("a.example", "a:1"), ("b.example", "b:2")];
        assert_eq!(repair(&same, &wanted), Repair::Nothing);
        let differs = [("a.example", "a:9"), ("x.example", "x:1"), ("b.example", "b:2")];
        let Repair::Singly(mut steps) = repair(&differs, &wanted) else { panic!("so little") };
        steps.sort();
        assert_eq!(
            steps,
            ["add map routes.map c.example c:3", "del map routes.map x.example", "set map routes.map a.example a:1",]
        );
        let twice = [("c.example", "c:3"), ("a.example", "a:1"), ("b.example", "b:2"), ("b.example", "b:2")];
        assert_eq!(repair(&twice, &wanted), Repair::Whole);
    }

    #[test]
    fn an_answer_counts_only_for_the_target_that_was_asked_for() {
        let host = Hostname::parse("a.example").unwrap();
        let found = "type=str, case=sensitive, found=yes, idx=tree, key=\"a.example\", value=\"a:1\", type=\"str\"";
        let entry = |after| Entry { host: &host, before: None, after };
        assert!(entry(Some("a:1")).is_told_by(found));
        assert!(!entry(Some("a:12")).is_told_by(found) && !entry(None).is_told_by(found));
        assert!(entry(None).is_told_by("type=str, case=sensitive, found=no"));
        assert!(!entry(None).is_told_by("Unknown map identifier."));
    }
}
