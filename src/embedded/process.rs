//! Processes, as the kernel describes them in /proc.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::error::EmbeddedError;

/// How often, and how many times, the arguments of a process are looked for that executes a program.
const EXEC_LOOK: Duration = Duration::from_millis(1);
const EXEC_LOOKS: u32 = 100;

/// One process. Its start time tells it from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pid: i32,
    started: u64,
}

impl Process {
    /// The living process with this pid; a zombie is dead.
    pub(super) fn find(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold anything; what follows it is plain.
        let plain = &stat[stat.iter().rposition(|byte| *byte == b')')? + 1..];
        let fields: Vec<&str> = std::str::from_utf8(plain).ok()?.split_ascii_whitespace().collect();
        let started = fields.get(19)?.parse().ok()?;
        (pid > 1 && !matches!(*fields.first()?, "Z" | "X")).then_some(Self { pid, started })
    }

    /// All living processes for which `ours` says yes.
    pub(super) fn find_all(ours: impl Fn(Self) -> bool) -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::find).filter(|process| ours(*process)).collect()
    }

    pub(super) fn is_alive(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    pub(super) fn pid(self) -> i32 {
        self.pid
    }

    /// Whether it runs a program of this name.
    pub(super) fn runs(self, name: &str) -> bool {
        let Ok(program) = fs::read_link(format!("/proc/{}/exe", self.pid)) else { return false };
        let Some(file_name) = program.file_name() else { return false };
        // An upgrade has replaced the file under a process that still runs.
        file_name.as_bytes().strip_suffix(b" (deleted)").unwrap_or(file_name.as_bytes()) == name.as_bytes()
    }

    pub(super) fn working_dir(self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/cwd", self.pid)).ok()
    }

    pub(super) fn arguments(self) -> Vec<Vec<u8>> {
        let read = || fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let mut line = read();
        // One that executes a program has none for a moment, as HAProxy's master at each reload; a thread of
        // the kernel, which has no program, never has any.
        let mut looks = 0;
        while line.is_empty() && looks < EXEC_LOOKS && fs::read_link(format!("/proc/{}/exe", self.pid)).is_ok() {
            std::thread::sleep(EXEC_LOOK);
            line = read();
            looks += 1;
        }
        line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
    }

    fn signal(self, signal: Signal) {
        // Looked at once more right before: a pid can be given out again at any time.
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// Waits until all have ended; false when some have not in that time.
pub(super) async fn all_gone(processes: &[Process], within: Duration) -> bool {
    let end = Instant::now() + within;
    while processes.iter().any(|process| process.is_alive()) {
        if Instant::now() >= end {
            return false;
        }
        sleep(Duration::from_millis(25)).await;
    }
    true
}

/// Ends processes by one signal after the other, each with the time that it is given, and at
/// last by SIGKILL.
pub(super) async fn end(
    what: &'static str,
    processes: &[Process],
    signals: &[(Signal, Duration)],
) -> Result<(), EmbeddedError> {
    for (signal, patience) in signals.iter().copied().chain([(Signal::SIGKILL, Duration::from_secs(5))]) {
        for process in processes {
            process.signal(signal);
        }
        if all_gone(processes, patience).await {
            return Ok(());
        }
    }
    let left = processes.iter().filter(|process| process.is_alive());
    let pids = left.map(|process| process.pid.to_string()).collect::<Vec<_>>().join(", ");
    Err(EmbeddedError::Unkillable { what, pids })
}

/// Starts a service in a session of its own, with nothing on its standard input and the log on
/// both outputs. The environment is a plain one, since ours may hold variables that mean
/// something to it (PGPORT), or secrets.
pub(super) fn spawn(program: &Path, arguments: &[&OsStr], dir: &Path, log: File) -> Result<Child, EmbeddedError> {
    let setsid = find_program(Path::new("setsid"), "Debian's package util-linux")?;
    let errors = log.try_clone().map_err(EmbeddedError::spawn(program))?;
    let mut command = Command::new(&setsid);
    command.arg(program).args(arguments).current_dir(dir);
    command.env_clear().env("PATH", search_path()).env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    command.spawn().map_err(EmbeddedError::spawn(&setsid))
}

/// Takes note of the child's end, whenever that is, so that no zombie stays.
pub(super) fn reap_later(mut child: Child) {
    tokio::spawn(async move {
        let _ = child.wait().await;
    });
}

/// Ours, and where administrators' programs are: an ordinary user's PATH may lack those.
pub(super) fn search_path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    let own = if own.is_empty() { "/usr/local/bin:/usr/bin:/bin" } else { &own };
    format!("{own}:/usr/local/sbin:/usr/sbin:/sbin")
}

/// The file of a program, looked up as a shell would.
pub(super) fn find_program(name: &Path, package: &'static str) -> Result<PathBuf, EmbeddedError> {
    let found = if name.components().count() > 1 {
        std::path::absolute(name).ok().filter(|file| file.is_file())
    } else {
        std::env::split_paths(&search_path()).map(|dir| dir.join(name)).find(|file| file.is_file())
    };
    found.ok_or_else(|| EmbeddedError::ProgramMissing { program: name.display().to_string(), package })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_executes_itself_anew_is_found_at_any_moment() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("again");
        fs::write(&script, "exec /bin/sh \"$0\"\n").unwrap();
        let mut child = std::process::Command::new("/bin/sh").arg(&script).spawn().unwrap();
        let process = Process::find(child.id().try_into().unwrap()).unwrap();
        let name = script.as_os_str().as_bytes();
        let looks = (0..5000).map(|_| process.arguments());
        let missed = looks.filter(|arguments| !arguments.iter().any(|argument| argument == name)).count();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(missed, 0);
    }

    #[tokio::test]
    async fn a_zombie_is_dead() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::find(child.id().try_into().unwrap()).unwrap();
        assert!(process.is_alive() && process.runs("sleep") && !process.runs("leep"));
        assert_eq!(process.working_dir(), std::env::current_dir().ok());
        assert_eq!(Process::find_all(|each| each == process), [process]);
        end("sleep", &[process], &[]).await.unwrap();
        assert_eq!(Process::find(process.pid()), None);
        child.wait().unwrap();
    }

    #[test]
    fn a_pid_that_was_given_out_again_is_another_process() {
        let us = Process::find(std::process::id().try_into().unwrap()).unwrap();
        let earlier = Process { started: us.started - 1, ..us };
        assert!(us.is_alive() && !earlier.is_alive());
    }
}
