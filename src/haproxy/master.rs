//! What the master tells of itself and its workers (HAProxy management guide, section 9.4,
//! "Master CLI"). `@1` is the current worker, `@!<pid>` any living one.
//!
//! At each reload the master executes itself anew (management guide, section 4). Until it has
//! read its files it refuses connections, and those that it had are cut off: that is no sign that
//! HAProxy, or a worker, is gone, and it is waited for.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::{Instant, sleep};

use super::HaproxyError;
use super::render::MAP;
use super::socket::{Answer, NO_SUCH_WORKER, Socket, SocketFile, TIMEOUT, is_question};

/// Between two questions to a master that is replacing itself.
const ASK_AGAIN: Duration = Duration::from_millis(5);
/// How long a question may take that can be asked again; the next time twice as long.
const FIRST_LIMIT: Duration = Duration::from_secs(1);
/// How long a master that can't be looked at, as one of another namespace, may be replacing itself.
const UNSEEN_REPLACED_WITHIN: Duration = Duration::from_secs(5);
/// The same of one that was never met: the socket's file may as well be left over.
const UNMET_REPLACED_WITHIN: Duration = Duration::from_secs(1);

/// Where the master is asked.
pub(super) struct Master {
    socket: Socket,
    /// Whether HAProxy's process ids are of this namespace (`pid_namespaces(7)`). One of another's
    /// may be a stranger's here.
    own_pids: bool,
    met: Mutex<Met>,
}

/// What is known of whoever answers at the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    /// Somebody may be there.
    Unknown,
    /// This process, which began at this tick since boot where it can be looked at. It keeps both
    /// when it executes itself anew.
    Process(i32, Option<i64>),
    /// Nobody is behind this file.
    Gone(Option<SocketFile>),
}

/// What the current worker says that it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Running {
    /// Nobody answers.
    Down,
    /// It has no generation: it isn't ours, or it is just coming up.
    Foreign,
    /// This one.
    Generation(String),
}

/// HAProxy's processes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Processes {
    /// The master's process id.
    pub master: i32,
    /// Reloads that failed since one succeeded.
    pub failed: u32,
    /// The current worker first.
    pub workers: Vec<Worker>,
}

/// A process that serves, or still serves, requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its process id.
    pub pid: i32,
    /// Whether it takes new connections. An old one only ends what it has begun.
    pub current: bool,
    /// When it started.
    pub started: DateTime<Utc>,
}

impl Master {
    pub(super) fn new(socket: PathBuf, own_pids: bool) -> Self {
        Self { socket: Socket::new(socket), own_pids, met: Mutex::new(Met::Unknown) }
    }

    /// What runs.
    pub(super) async fn running(&self) -> Result<Running, HaproxyError> {
        Ok(match self.ask("@1 get var proc.haas_generation").await? {
            None => Running::Down,
            Some(answer) => generation(&answer).map_or(Running::Foreign, Running::Generation),
        })
    }

    /// Who runs; none when HAProxy is down.
    pub(super) async fn processes(&self) -> Result<Option<Processes>, HaproxyError> {
        let Some(answer) = self.ask("show proc").await? else { return Ok(None) };
        let mut processes =
            processes(&answer, Utc::now()).ok_or_else(|| self.socket.error(format!("no master in {answer:?}")))?;
        let began = if self.own_pids { start_tick(processes.master).await } else { None };
        *self.met() = Met::Process(processes.master, began);
        for worker in processes.workers.iter_mut().filter(|_| self.own_pids) {
            // The uptime there is in whole seconds; the kernel knows better.
            if let Some(started) = started(worker.pid).await {
                worker.started = started;
            }
        }
        Ok(Some(processes))
    }

    /// Who takes new connections; none when HAProxy is down.
    pub(super) async fn current_worker(&self) -> Result<Option<Worker>, HaproxyError> {
        let workers = self.processes().await?.map(|processes| processes.workers).unwrap_or_default();
        Ok(workers.into_iter().find(|worker| worker.current))
    }

    /// Whether the worker has a stream to this app. A connection that is merely kept alive has
    /// no stream, on either side.
    pub(super) async fn has_stream(&self, pid: i32, port: u16) -> Result<bool, HaproxyError> {
        let Some(streams) = self.tell(pid, "show sess").await? else { return Ok(false) };
        // Its section has its port in its name; the host may have been another one when the stream began.
        let own = format!(":{port}");
        let section = |word: &str| word.starts_with("be=") && word.ends_with(&own);
        if streams.lines().any(|line| line.split_whitespace().any(section)) {
            return Ok(true);
        }
        // Without a section of its own an app is known by its address alone, and that is only in
        // the long form.
        if !streams.lines().any(|line| line.contains(" be=apps ") || line.contains(" be=counted ")) {
            return Ok(false);
        }
        let Some(details) = self.tell(pid, "show sess all").await? else { return Ok(false) };
        let address = format!("addr=127.0.0.1:{port}");
        Ok(details.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("server=any") && words.any(|word| word == address)
        }))
    }

    /// What the master has to say about its last start, where it keeps that (from 2.7 on).
    pub(super) async fn startup_logs(&self) -> Option<String> {
        let answer = self.ask("show startup-logs").await.ok()??;
        let told: Vec<&str> = answer.lines().filter(|line| line.starts_with('[')).collect();
        (!told.is_empty()).then(|| told.join("\n"))
    }

    /// Memory of a worker in MiB: what is resident, or where only HAProxy can be asked, what its
    /// pools have allocated (management guide, `show info`: `PoolAlloc_MB`), which is less.
    pub(super) async fn memory_mib(&self, pid: i32) -> Option<u64> {
        if self.own_pids {
            return resident_mib(pid).await;
        }
        let info = self.tell(pid, "show info").await.ok()??;
        pool_mib(&info)
    }

    /// Whether a worker still takes connections (management guide, `show info`: `Stopping`).
    pub(super) async fn is_listening(&self, pid: i32) -> bool {
        match self.tell(pid, "show info").await {
            Ok(Some(info)) => info.lines().any(|line| line.trim() == "Stopping: 0"),
            Ok(None) | Err(_) => false,
        }
    }

    /// The current worker's map, as it shows it.
    pub(super) async fn running_map(&self) -> Result<Option<String>, HaproxyError> {
        self.ask(&format!("@1 show map {MAP}")).await
    }

    /// Tells one worker something; none when the master, or that worker, is not there any more.
    ///
    /// # Errors
    /// [`HaproxyError::Socket`], too when a worker that is still there may have done it or not.
    pub(super) async fn tell(&self, pid: i32, command: &str) -> Result<Option<String>, HaproxyError> {
        let command = format!("@!{pid} {command}");
        let answer = self.ask_patiently(&command).await?;
        if answer == Answer::CutOff && !is_question(&command) {
            // One that is just leaving gives no answer.
            let there = self.ask(&format!("@!{pid} show info")).await?;
            if there.is_none_or(|answer| answer.starts_with(NO_SUCH_WORKER)) {
                return Ok(None);
            }
        }
        Ok(self.socket.finally(answer)?.filter(|answer| !answer.starts_with(NO_SUCH_WORKER)))
    }

    /// The answer; none when HAProxy is down.
    async fn ask(&self, command: &str) -> Result<Option<String>, HaproxyError> {
        self.socket.finally(self.ask_patiently(command).await?)
    }

    /// Asks, and waits while the master replaces itself. Only a question is asked again when it may
    /// have been heard.
    async fn ask_patiently(&self, command: &str) -> Result<Answer, HaproxyError> {
        let began = Instant::now();
        // A master of HAProxy 3.4 that is asked in a bad moment forgets that one question.
        let mut limit = if is_question(command) { FIRST_LIMIT } else { TIMEOUT };
        loop {
            let answer = self.socket.ask_once(command, limit).await?;
            let may_repeat = is_question(command) && began.elapsed() < TIMEOUT;
            match &answer {
                Answer::CutOff if may_repeat => {}
                Answer::Late if may_repeat => limit *= 2,
                Answer::Nobody(Some(file)) if self.may_come_back(*file, began.elapsed()).await => {}
                Answer::Nobody(file) => {
                    *self.met() = Met::Gone(*file);
                    return Ok(answer);
                }
                Answer::CutOff | Answer::Late | Answer::Whole(_) => return Ok(answer),
            }
            sleep(ASK_AGAIN).await;
        }
    }

    /// Whether a master that has refused connections for so long may be replacing itself.
    async fn may_come_back(&self, file: SocketFile, refused_for: Duration) -> bool {
        let met = *self.met();
        match met {
            Met::Process(pid, Some(began)) => refused_for < TIMEOUT && start_tick(pid).await == Some(began),
            Met::Process(_, None) => refused_for < UNSEEN_REPLACED_WITHIN,
            Met::Gone(known) if known == Some(file) => false,
            Met::Gone(_) | Met::Unknown => refused_for < UNMET_REPLACED_WITHIN,
        }
    }

    fn met(&self) -> MutexGuard<'_, Met> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `proc.haas_generation: type=str value=<…>`
fn generation(answer: &str) -> Option<String> {
    let (_, rest) = answer.split_once("haas_generation: type=str value=<")?;
    rest.split_once('>').map(|(word, _)| word.to_owned())
}

/// Reads the answer to `show proc`. The columns have changed between versions, so a line is known
/// by its type, and the uptime by its form. An uptime is rounded down: the start is put a second
/// earlier, since to think a worker younger than it is would be the dangerous mistake.
fn processes(answer: &str, now: DateTime<Utc>) -> Option<Processes> {
    let mut master = None;
    let mut workers = Vec::new();
    let mut current = true;
    for line in answer.lines() {
        if line.starts_with('#') {
            current = !line.contains("old workers");
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(pid), Some(kind)) = (words.first().and_then(|word| word.parse().ok()), words.get(1)) else {
            continue;
        };
        match *kind {
            "master" => {
                let failed = words.iter().skip_while(|word| **word != "[failed:").nth(1);
                let failed = failed.and_then(|word| word.trim_end_matches(']').parse().ok());
                master = Some((pid, failed.unwrap_or(0)));
            }
            "worker" => {
                let uptime = words.iter().find_map(|word| uptime(word)).unwrap_or(TimeDelta::zero());
                workers.push(Worker { pid, current, started: now - uptime - TimeDelta::seconds(1) });
            }
            _ => {}
        }
    }
    master.map(|(master, failed)| Processes { master, failed, workers })
}

/// `0d00h02m07s`
fn uptime(word: &str) -> Option<TimeDelta> {
    let mut rest = word;
    let mut seconds = 0;
    for (unit, length) in [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)] {
        let (number, after) = rest.split_once(unit)?;
        seconds += number.parse::<i64>().ok()?.checked_mul(length)?;
        rest = after;
    }
    TimeDelta::try_seconds(seconds).filter(|_| rest.is_empty())
}

/// When a process started.
async fn started(pid: i32) -> Option<DateTime<Utc>> {
    /// The kernel's USER_HZ, which is 100 on every architecture that HAProxy is built for.
    const MILLISECONDS_A_TICK: i64 = 10;
    let tick = start_tick(pid).await?;
    let uptime = tokio::fs::read_to_string("/proc/uptime").await.ok()?;
    let (seconds, hundredths) = uptime.split_whitespace().next()?.split_once('.')?;
    let now = seconds.parse::<i64>().ok()? * 1000 + hundredths.parse::<i64>().ok()? * 10;
    Some(Utc::now() - TimeDelta::try_milliseconds(now - tick * MILLISECONDS_A_TICK)?)
}

/// When a living process started, in ticks since boot: field 22 of its `stat` (proc(5)).
async fn start_tick(pid: i32) -> Option<i64> {
    let stat = tokio::fs::read_to_string(format!("/proc/{pid}/stat")).await.ok()?;
    // The second field is a name in parentheses, and may itself have any character.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // One that has ended stays, as Z, until its parent has asked how.
    let ended = matches!(*fields.first()?, "Z" | "X");
    fields.get(19).filter(|_| !ended)?.parse().ok()
}

/// Resident memory of a process (proc(5), `VmRSS`).
async fn resident_mib(pid: i32) -> Option<u64> {
    let status = tokio::fs::read_to_string(format!("/proc/{pid}/status")).await.ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

fn pool_mib(info: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix("PoolAlloc_MB:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn show_proc_is_read_in_the_forms_that_versions_give_it() {
        let now = Utc::now();
        let ago = |seconds: i64| now - TimeDelta::seconds(seconds + 1);
        let answer = "#<PID>          <type>          <reloads>       <uptime>        <version>\n\
            1162            master          5 [failed: 2]   0d00h02m07s     2.6.12\n\
            # workers\n\
            1271            worker          1               0d00h00m09s     2.6.12\n\
            # old workers\n\
            1233            worker          3               1d01h01m43s     2.6.12\n\
            # programs\n\
            1244            foo             0               0d00h00m00s     -\n\n";
        let expected = Processes {
            master: 1162,
            failed: 2,
            workers: vec![
                Worker { pid: 1271, current: true, started: ago(9) },
                Worker { pid: 1233, current: false, started: ago(90_103) },
            ],
        };
        assert_eq!(processes(answer, now), Some(expected));
        // 2.4 and earlier: no count of failures, and a relative number for each worker.
        let answer = "#<PID> <type> <relative PID> <reloads> <uptime> <version>\n\
            7 master 0 2 0d00h00m01s 2.4\n# workers\n8 worker 1 0 0d00h00m01s 2.4\n# programs\n";
        let read = processes(answer, now).unwrap();
        assert_eq!((read.master, read.failed, read.workers.len()), (7, 0, 1));
        assert_eq!(read.workers[0].started, ago(1));
        assert_eq!(processes("Permission denied", now), None);
    }

    #[test]
    fn a_generation_is_read_from_what_get_var_says() {
        let answer = "proc.haas_generation: type=str value=<abc123>\n\n";
        assert_eq!(generation(answer).as_deref(), Some("abc123"));
        assert_eq!(generation("Variable not found.\n"), None);
        assert_eq!(generation(""), None);
    }

    #[tokio::test]
    async fn the_kernel_knows_when_a_process_started() {
        let age = Utc::now() - started(std::process::id().cast_signed()).await.unwrap();
        assert!(age >= TimeDelta::milliseconds(-50) && age < TimeDelta::hours(1), "{age}");
    }

    #[tokio::test]
    async fn a_stranger_with_the_same_process_id_is_not_asked() {
        use tokio::net::UnixListener;
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("master.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        // A worker of another namespace, with the id of this very process.
        let pid = std::process::id();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut question = String::new();
                stream.read_to_string(&mut question).await.unwrap();
                let answer = if question.contains("show info") {
                    "Name: HAProxy\nPoolAlloc_MB: 7\nPoolUsed_MB: 5\n\n".to_owned()
                } else {
                    format!("1 master 0 [failed: 0] 9d00h00m00s 3.0\n# workers\n{pid} worker 0 9d00h00m00s 3.0\n\n")
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let pid = pid.cast_signed();
        for (own_pids, days) in [(false, 9), (true, 0)] {
            let master = Master::new(socket.clone(), own_pids);
            let processes = master.processes().await.unwrap().unwrap();
            assert_eq!((Utc::now() - processes.workers[0].started).num_days(), days, "own_pids: {own_pids}");
        }
        assert_eq!(Master::new(socket.clone(), false).memory_mib(pid).await, Some(7));
        // It grows meanwhile.
        let told = Master::new(socket, true).memory_mib(pid).await.unwrap();
        assert!(told.abs_diff(resident_mib(pid).await.unwrap()) < 16, "{told}");
    }
}
