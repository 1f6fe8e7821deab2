//! The HAProxy of `haas up`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::binaries::as_os_strs;
use super::error::EmbeddedError;
use super::layout::Layout;
use super::process::{self, Process};
use super::{Started, files};

const WHAT: &str = "HAProxy";
/// A configuration with ten thousand sections takes seconds to load on a busy machine.
const START_PATIENCE: Duration = Duration::from_mins(1);
/// How long a master may live without an answer on its socket.
const DEAF_PATIENCE: Duration = Duration::from_secs(10);

/// The HAProxy below a folder; it outlives `haas up`.
#[derive(Debug)]
pub struct HaproxyProcess;

impl HaproxyProcess {
    /// Sees to it that a master runs with the folder's haproxy.cfg, which must be there. One
    /// that answers is adopted; a dead one's leftovers are cleared.
    ///
    /// # Errors
    /// When it can't be started, with the last lines of its log.
    pub async fn ensure(layout: &Layout, binary: &Path) -> Result<Started, EmbeddedError> {
        if wait_for_adopted(layout).await {
            return Ok(Started::Adopted);
        }
        // Workers leave by themselves when their master dies; a master that gives no answer
        // can't be told about routes.
        let leftovers = all(layout).await;
        if !process::all_gone(&leftovers, Duration::from_secs(1)).await {
            log::warn!("{WHAT} gives no answer on its master's socket: it is replaced");
            end(&leftovers).await?;
        }
        start(layout, binary).await?;
        Ok(Started::Fresh)
    }

    /// Ends the master and its workers, connections included. False if none ran.
    ///
    /// # Errors
    /// When not even SIGKILL ends them.
    pub async fn stop(layout: &Layout) -> Result<bool, EmbeddedError> {
        let mut ran = false;
        loop {
            let processes = all(layout).await;
            if processes.is_empty() {
                return Ok(ran);
            }
            ran = true;
            // A master that was about to reload may have started another worker meanwhile.
            end(&processes).await?;
        }
    }

    /// Whether its master answers.
    pub async fn is_running(layout: &Layout) -> bool {
        master(layout).await.is_some()
    }
}

/// The master, as it tells of itself through its socket.
pub(super) async fn master(layout: &Layout) -> Option<Process> {
    let text = ask(layout).await.ok()?;
    Process::find(rows(&text, "master").next()?).filter(|process| is_ours(*process, layout))
}

/// The answer to `show proc`.
async fn ask(layout: &Layout) -> io::Result<String> {
    let exchange = async {
        let mut stream = UnixStream::connect(layout.master_socket()).await?;
        stream.write_all(b"show proc\n").await?;
        stream.shutdown().await?;
        let mut text = String::new();
        stream.take(1 << 20).read_to_string(&mut text).await?;
        Ok(text)
    };
    timeout(Duration::from_secs(2), exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The pids of a kind of process in the answer: `25677  master  0 [failed: 0]  0d00h00m01s  2.6.12`.
fn rows(text: &str, kind: &str) -> impl Iterator<Item = i32> {
    text.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        let pid = words.next()?.parse().ok()?;
        (words.next() == Some(kind)).then_some(pid)
    })
}

/// Whether it is a master or a worker with our master socket. A reload puts arguments before
/// ours, and a worker keeps those of its master.
fn is_ours(process: Process, layout: &Layout) -> bool {
    let socket = layout.master_socket();
    let arguments = process.arguments();
    arguments.windows(2).any(|pair| {
        let path = pair[1].split(|byte| *byte == b',').next().unwrap_or_default();
        pair[0] == b"-S" && path == socket.as_os_str().as_bytes()
    })
}

async fn all(layout: &Layout) -> Vec<Process> {
    let layout = layout.clone();
    let scan = move || Process::find_all(|process| is_ours(process, &layout));
    tokio::task::spawn_blocking(scan).await.unwrap_or_default()
}

/// SIGTERM to the master ends its workers too; to a worker it is what the master would send.
async fn end(processes: &[Process]) -> Result<(), EmbeddedError> {
    process::end(WHAT, processes, &[(Signal::SIGTERM, Duration::from_secs(5))]).await
}

/// Waits for the answer of a master that lives; false when there is none.
async fn wait_for_adopted(layout: &Layout) -> bool {
    let begin = Instant::now();
    loop {
        if master(layout).await.is_some() {
            return true;
        }
        if begin.elapsed() >= DEAF_PATIENCE || all(layout).await.is_empty() {
            return false;
        }
        sleep(Duration::from_millis(250)).await;
    }
}

async fn start(layout: &Layout, binary: &Path) -> Result<(), EmbeddedError> {
    let program = process::find_program(binary, "Debian's package haproxy")?;
    let log_file = layout.haproxy_log();
    let mark = files::length(&log_file);
    let mut socket = layout.master_socket().into_os_string().into_vec();
    socket.extend_from_slice(b",mode,600,level,admin");
    let arguments =
        ["-W".into(), "-S".into(), OsString::from_vec(socket), "-f".into(), layout.haproxy_cfg().into_os_string()];
    let log = files::open_log(&log_file)?;
    let mut child = process::spawn(&program, &as_os_strs(&arguments), &layout.haproxy_dir(), log)?;
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(EmbeddedError::spawn(&program))? {
            let log = files::tail(&log_file, mark);
            return Err(EmbeddedError::Ended { what: WHAT, status: status.to_string(), log });
        }
        if ask(layout).await.is_ok_and(|text| rows(&text, "worker").next().is_some()) {
            process::reap_later(child);
            return Ok(());
        }
        if begin.elapsed() >= START_PATIENCE {
            process::reap_later(child);
            let log = files::tail(&log_file, mark);
            return Err(EmbeddedError::NoAnswer { what: WHAT, after: START_PATIENCE, log });
        }
        sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_master_tells_who_is_who() {
        let text = "#<PID>          <type>          <reloads>       <uptime>        <version>\n\
            25677           master          1 [failed: 0]   0d00h00m01s     2.6.12-1+deb12u4\n\
            # workers\n25705           worker          0               0d00h00m01s     2.6.12\n\
            # old workers\n25700           worker          1               0d00h00m01s     2.6.12\n# programs\n\n";
        assert_eq!(rows(text, "master").collect::<Vec<_>>(), [25677]);
        assert_eq!(rows(text, "worker").collect::<Vec<_>>(), [25705, 25700]);
        assert_eq!(rows("", "master").next(), None);
    }
}
