//! What the master tells of itself and its workers (HAProxy management guide, section 9.4,
//! "Master CLI"). `@1` is the current worker, `@!<pid>` any living one.
//!
//! At each reload the master executes itself anew (management guide, section 4). Until it has
//! read its files it refuses connections, and those that it had are cut off: that is no sign that
//! HAProxy, or a worker, is gone, and it is waited for.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, sleep};

use super::HaproxyError;
use super::processes::{self, Processes, Worker, resident_mib, start_tick, started};
use super::render::MAP;
use super::socket::{Answer, NO_SUCH_WORKER, Socket, SocketFile, TIMEOUT, is_question};

/// Between two questions to a master that is replacing itself; less often when that takes long.
const ASK_AGAIN: Duration = Duration::from_millis(5);
const ASK_AGAIN_LATER: Duration = Duration::from_millis(50);
/// How long a question may take that can be asked again; the second time it is whatever is left.
const FIRST_LIMIT: Duration = Duration::from_secs(1);
/// How long a master that can't be looked at, as one of another namespace, may be replacing itself.
const UNSEEN_REPLACED_WITHIN: Duration = Duration::from_secs(5);
/// The same of one that was never met: the socket's file may as well be left over.
const UNMET_REPLACED_WITHIN: Duration = Duration::from_secs(1);

/// How long a worker that gave no answer is not asked again, and how many times as long after each
/// further time. The master keeps every such question until that worker is gone, and takes ten at
/// a time (seen on 2.6 and 3.4): it must not be used up by one worker before `hard-stop-after`.
const DEAF_REST: Duration = Duration::from_secs(5);
const DEAF_REST_GROWS: u32 = 3;

/// Where the master is asked.
pub(super) struct Master {
    socket: Socket,
    /// Whether HAProxy's process ids are of this namespace (`pid_namespaces(7)`). One of another's
    /// may be a stranger's here.
    own_pids: bool,
    met: Mutex<Met>,
    /// Workers that gave no answer.
    deaf: Mutex<HashMap<i32, Deaf>>,
}

/// A worker that gave no answer.
#[derive(Debug, Clone, Copy)]
struct Deaf {
    asked: Instant,
    rest: Duration,
}

/// What is known of whoever listens at the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    /// Somebody may be there.
    Unknown,
    /// A process, by its id and the tick since boot at which it began, where it can be looked at.
    /// It keeps both when it executes itself anew.
    Listener(Option<(i32, i64)>),
    /// Whoever was behind this file was waited for in vain.
    Silent(SocketFile),
}

/// What may be hoped of a master that refuses connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hope {
    /// It may be replacing itself.
    Wait,
    /// It was waited for long enough, and may live all the same.
    GiveUp,
    /// Its process has ended.
    None,
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

impl Master {
    pub(super) fn new(socket: PathBuf, own_pids: bool) -> Self {
        Self { socket: Socket::new(socket), own_pids, met: Mutex::new(Met::Unknown), deaf: Mutex::default() }
    }

    /// What runs.
    pub(super) async fn running(&self) -> Result<Running, HaproxyError> {
        Ok(match self.ask("@1 get var proc.haas_generation").await? {
            None => Running::Down,
            Some(answer) => generation(&answer).map_or(Running::Foreign, Running::Generation),
        })
    }

    /// Who runs; none when HAProxy is down, or seems to be.
    pub(super) async fn processes(&self) -> Result<Option<Processes>, HaproxyError> {
        let answer = self.ask_patiently("show proc", TIMEOUT).await?;
        self.read_processes(answer).await
    }

    /// Every living worker; none when HAProxy is down, and nobody has to reckon with it.
    ///
    /// # Errors
    /// [`HaproxyError::Socket`], too when it only seems to be down.
    pub(super) async fn workers_for_sure(&self) -> Result<Option<Vec<Worker>>, HaproxyError> {
        let answer = self.ask_patiently("show proc", TIMEOUT).await?;
        if answer == Answer::Unclear {
            return Err(self.unclear());
        }
        Ok(self.read_processes(answer).await?.map(|processes| processes.workers))
    }

    async fn read_processes(&self, answer: Answer) -> Result<Option<Processes>, HaproxyError> {
        let Some(answer) = self.socket.finally(answer)? else { return Ok(None) };
        let mut processes = processes::parse(&answer, Utc::now())
            .ok_or_else(|| self.socket.error(format!("no master in {answer:?}")))?;
        for worker in processes.workers.iter_mut().filter(|_| self.own_pids) {
            // The uptime there is in whole seconds; the kernel knows better.
            if let Some(started) = started(worker.pid).await {
                worker.started = started;
            }
        }
        let lives = |pid: &i32| processes.workers.iter().any(|worker| worker.pid == *pid);
        self.deaf().retain(|pid, _| lives(pid));
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
    pub(super) async fn is_listening(&self, pid: i32) -> Result<bool, HaproxyError> {
        let info = self.tell(pid, "show info").await?;
        Ok(info.is_some_and(|info| info.lines().any(|line| line.trim() == "Stopping: 0")))
    }

    /// The current worker's map, as it shows it.
    pub(super) async fn running_map(&self) -> Result<Option<String>, HaproxyError> {
        self.ask(&format!("@1 show map {MAP}")).await
    }

    /// Tells one worker something; none when HAProxy, or that worker, is not there any more.
    ///
    /// # Errors
    /// [`HaproxyError::Deaf`]; [`HaproxyError::Socket`], too when a worker that is still there may
    /// have heard it or not.
    pub(super) async fn tell(&self, pid: i32, command: &str) -> Result<Option<String>, HaproxyError> {
        let known = self.deaf().get(&pid).copied();
        if known.is_some_and(|deaf| deaf.asked.elapsed() < deaf.rest) {
            return self.socket.finally(Answer::Late);
        }
        let command = format!("@!{pid} {command}");
        let asked = self.ask_patiently(&command, if known.is_some() { FIRST_LIMIT } else { TIMEOUT });
        let mut answer = asked.await?;
        if answer == Answer::Late {
            let rest = known.map_or(DEAF_REST, |deaf| deaf.rest * DEAF_REST_GROWS);
            self.deaf().insert(pid, Deaf { asked: Instant::now(), rest });
        } else if known.is_some() {
            self.deaf().remove(&pid);
        }
        if answer == Answer::CutOff && !is_question(&command) {
            // One that is just leaving gives no answer.
            match self.ask_patiently(&format!("@!{pid} show info"), TIMEOUT).await? {
                Answer::Whole(there) if !there.starts_with(NO_SUCH_WORKER) => {}
                gone => answer = gone,
            }
        }
        match answer {
            Answer::Unclear => Err(self.unclear()),
            answer => Ok(self.socket.finally(answer)?.filter(|answer| !answer.starts_with(NO_SUCH_WORKER))),
        }
    }

    /// The answer; none when HAProxy is down, or seems to be.
    async fn ask(&self, command: &str) -> Result<Option<String>, HaproxyError> {
        self.socket.finally(self.ask_patiently(command, TIMEOUT).await?)
    }

    /// Whether an error is an old worker's own silence: it serves no stream and takes no request.
    pub(super) async fn is_silence_of(&self, worker: &Worker, error: &HaproxyError) -> bool {
        let silent = !worker.current && matches!(error, HaproxyError::Deaf { .. });
        // Or it is the master's.
        silent && self.workers_for_sure().await.is_ok()
    }

    pub(super) fn error(&self, reason: String) -> HaproxyError {
        self.socket.error(reason)
    }

    fn unclear(&self) -> HaproxyError {
        self.socket.error("it refuses connections, and whether HAProxy lives can't be seen".to_owned())
    }

    /// Asks, and waits while the master replaces itself. Only a question is asked again when it may
    /// have been heard.
    async fn ask_patiently(&self, command: &str, time: Duration) -> Result<Answer, HaproxyError> {
        let began = Instant::now();
        let mut refused_since = None;
        // A master of HAProxy 3.4 that is asked in a bad moment forgets that one question.
        let mut limit = if is_question(command) { FIRST_LIMIT } else { time };
        loop {
            let left = time.saturating_sub(began.elapsed());
            let answer = self.socket.ask_once(command, limit.min(left)).await?;
            let left = time.saturating_sub(began.elapsed());
            let may_repeat = !left.is_zero() && (answer == Answer::Unheard || is_question(command));
            match &answer {
                Answer::Whole(_) => {
                    self.meet().await;
                    return Ok(answer);
                }
                Answer::Nobody(Some(file)) => {
                    let since = *refused_since.get_or_insert_with(Instant::now);
                    match self.hope(*file, since.elapsed()).await {
                        Hope::Wait if !left.is_zero() => {}
                        Hope::Wait | Hope::GiveUp => return Ok(Answer::Unclear),
                        Hope::None => return Ok(answer),
                    }
                }
                Answer::CutOff | Answer::Late | Answer::Unheard if may_repeat => refused_since = None,
                _ => return Ok(answer),
            }
            if answer == Answer::Late {
                limit = time;
            }
            let soon = began.elapsed() < FIRST_LIMIT;
            sleep(if soon { ASK_AGAIN } else { ASK_AGAIN_LATER }).await;
        }
    }

    /// Remembers who has answered.
    async fn meet(&self) {
        let listener = match self.socket.listener() {
            Some(pid) => start_tick(pid).await.map(|tick| (pid, tick)),
            None => None,
        };
        *self.met() = Met::Listener(listener);
    }

    /// Whether a master that has refused connections for so long may be replacing itself.
    async fn hope(&self, file: SocketFile, refused_for: Duration) -> Hope {
        let met = *self.met();
        let limit = match met {
            Met::Listener(Some((pid, tick))) if start_tick(pid).await == Some(tick) => TIMEOUT,
            Met::Listener(Some(_)) => return Hope::None,
            Met::Listener(None) => UNSEEN_REPLACED_WITHIN,
            Met::Silent(known) if known == file => Duration::ZERO,
            Met::Silent(_) | Met::Unknown => UNMET_REPLACED_WITHIN,
        };
        if refused_for < limit {
            return Hope::Wait;
        }
        // Whoever lives is waited for the next time, too.
        if !matches!(met, Met::Listener(Some(_))) {
            *self.met() = Met::Silent(file);
        }
        Hope::GiveUp
    }

    fn deaf(&self) -> MutexGuard<'_, HashMap<i32, Deaf>> {
        self.deaf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn met(&self) -> MutexGuard<'_, Met> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `proc.haas_generation: type=str value=<…>`
pub(super) fn generation(answer: &str) -> Option<String> {
    let (_, rest) = answer.split_once("haas_generation: type=str value=<")?;
    rest.split_once('>').map(|(word, _)| word.to_owned())
}

pub(super) fn pool_mib(info: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix("PoolAlloc_MB:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn a_generation_is_read_from_what_get_var_says() {
        let answer = "proc.haas_generation: type=str value=<abc123>\n\n";
        assert_eq!(generation(answer).as_deref(), Some("abc123"));
        assert_eq!(generation("Variable not found.\n"), None);
        assert_eq!(generation(""), None);
    }

    #[tokio::test]
    async fn a_question_that_finds_a_full_queue_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.sock");
        let socket = tokio::net::UnixSocket::new_stream().unwrap();
        socket.bind(&path).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut others = Vec::new();
        while let Ok(other) = tokio::net::UnixStream::connect(&path).await {
            others.push(other);
        }
        assert!(!others.is_empty());
        let master = Master::new(path, true);
        let serve = async {
            sleep(Duration::from_millis(50)).await;
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    stream.read_to_end(&mut Vec::new()).await.ok();
                    stream.write_all(b"\n").await.ok();
                });
            }
        };
        tokio::select! {
            told = master.tell(7, "del map routes.map a") => assert_eq!(told.unwrap().as_deref(), Some("\n")),
            () = serve => {}
        }
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
