//! The Postgres cluster of `haas up`.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use super::binaries::{Binaries, as_os_strs};
use super::error::EmbeddedError;
use super::layout::Layout;
use super::process::{self, Process};
use super::{Started, cluster, database, files};

const WHAT: &str = "Postgres";
/// Crash recovery may take a while; a start without it takes less than a second.
const START_PATIENCE: Duration = Duration::from_mins(2);
/// How long a process may live without a socket that anybody listens on.
const DEAF_PATIENCE: Duration = Duration::from_secs(10);
/// How long a start is repeated that fails over what an earlier one left.
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(15);

/// The Postgres cluster below a folder; it outlives `haas up`.
#[derive(Debug)]
pub struct Postgres;

impl Postgres {
    /// Sees to it that the cluster runs and has the database `haas`. One that runs is adopted;
    /// what a dead one left is cleared.
    ///
    /// # Errors
    /// When it can't be started, with the last lines of its log.
    pub async fn ensure(layout: &Layout) -> Result<Started, EmbeddedError> {
        if let Some(postmaster) = postmaster(layout) {
            if wait_for_adopted(layout, postmaster).await? {
                let mut connection = database::connect(layout).await.map_err(EmbeddedError::Database)?;
                database::make(&mut connection).await?;
                return Ok(Started::Adopted);
            }
            log::warn!("{WHAT} (pid {}) lives, but nothing listens on its socket: it is replaced", postmaster.pid());
            end(&[postmaster]).await?;
        }
        let binaries = Binaries::find(&layout.postgres_data()).await?;
        cluster::make(layout, &binaries).await?;
        let end = Instant::now() + LEFTOVER_PATIENCE;
        loop {
            clear_leftovers(layout).await?;
            match start(layout, &binaries).await {
                Err(EmbeddedError::Ended { log, .. }) if is_about_leftovers(&log) && Instant::now() < end => {
                    sleep(Duration::from_millis(500)).await;
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(Started::Fresh),
            }
        }
    }

    /// Ends it cleanly, sessions included; by force if that takes too long. False if it didn't run.
    ///
    /// # Errors
    /// When not even SIGKILL ends it.
    pub async fn stop(layout: &Layout) -> Result<bool, EmbeddedError> {
        let postmaster = postmaster(layout);
        if let Some(postmaster) = postmaster {
            end(&[postmaster]).await?;
        }
        let orphans = of_cluster(layout).await;
        process::end(WHAT, &orphans, &[(Signal::SIGQUIT, Duration::from_secs(5))]).await?;
        Ok(postmaster.is_some())
    }

    /// Whether it runs and lets us in.
    pub async fn is_running(layout: &Layout) -> bool {
        postmaster(layout).is_some() && database::connect(layout).await.is_ok()
    }
}

/// The process that supervises the cluster: the one in postmaster.pid, if it is Postgres and
/// works in the cluster's folder.
pub(super) fn postmaster(layout: &Layout) -> Option<Process> {
    let data = layout.postgres_data();
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let process = Process::find(text.lines().next()?.trim().parse().ok()?)?;
    is_of_cluster(process, &data).then_some(process)
}

fn is_of_cluster(process: Process, data: &Path) -> bool {
    // A folder by its inode: the kernel names it as this process' root folder has it.
    let inode = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    process.runs("postgres")
        && process.working_dir().is_some()
        && inode(data).is_some_and(|ours| {
            inode(Path::new(&format!("/proc/{}/cwd", process.pid()))).is_some_and(|its| its == ours)
        })
}

/// Every process of the cluster, also backends that have lost their postmaster.
async fn of_cluster(layout: &Layout) -> Vec<Process> {
    let data = layout.postgres_data();
    let scan = move || Process::find_all(|process| is_of_cluster(process, &data));
    tokio::task::spawn_blocking(scan).await.unwrap_or_default()
}

/// SIGINT is the fast shutdown, SIGQUIT the immediate one.
async fn end(processes: &[Process]) -> Result<(), EmbeddedError> {
    let signals = [(Signal::SIGINT, Duration::from_secs(30)), (Signal::SIGQUIT, Duration::from_secs(5))];
    process::end(WHAT, processes, &signals).await
}

/// Waits until a running one lets us in. False when it has died, or nobody listens on its socket
/// any more (somebody removed it).
async fn wait_for_adopted(layout: &Layout, postmaster: Process) -> Result<bool, EmbeddedError> {
    let begin = Instant::now();
    let mut deaf_since = None;
    while postmaster.is_alive() {
        if database::connect(layout).await.is_ok() {
            return Ok(true);
        }
        if listens(layout).await {
            deaf_since = None;
        } else if deaf_since.get_or_insert_with(Instant::now).elapsed() >= DEAF_PATIENCE {
            return Ok(false);
        }
        if begin.elapsed() >= START_PATIENCE {
            let log = files::tail(&layout.postgres_log(), 0);
            return Err(EmbeddedError::NoAnswer { what: WHAT, after: START_PATIENCE, log });
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(false)
}

/// Whether anybody accepts connections on the socket, be it only to say "starting up".
async fn listens(layout: &Layout) -> bool {
    let attempt = timeout(Duration::from_secs(1), UnixStream::connect(layout.postgres_socket())).await;
    // A full queue is not deafness.
    !matches!(attempt, Ok(Err(error)) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused))
}

/// Ends backends that have lost their postmaster (an idle one leaves by itself, a busy one when
/// it is done), and removes lock files that name a pid which is somebody else's now or a zombie's.
/// Postgres sees only that the pid exists, and would refuse to start.
async fn clear_leftovers(layout: &Layout) -> Result<(), EmbeddedError> {
    let orphans = of_cluster(layout).await;
    if !process::all_gone(&orphans, Duration::from_secs(3)).await {
        process::end(WHAT, &orphans, &[(Signal::SIGQUIT, Duration::from_secs(5))]).await?;
    }
    let socket = layout.postgres_socket();
    let lock = layout.postgres_socket_dir().join(".s.PGSQL.5432.lock");
    for path in [layout.postgres_data().join("postmaster.pid"), lock, socket] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(EmbeddedError::file("can't remove", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_about_leftovers(log: &str) -> bool {
    log.contains("pre-existing shared memory block") || log.contains("lock file")
}

async fn start(layout: &Layout, binaries: &Binaries) -> Result<(), EmbeddedError> {
    let data = layout.postgres_data();
    let log_file = layout.postgres_log();
    let mark = files::length(&log_file);
    let (program, mut arguments) = binaries.command("postgres")?;
    arguments.extend([OsString::from("-D"), data.clone().into(), "-k".into(), layout.postgres_socket_dir().into()]);
    // The socket alone, so that two clusters don't meet on a port; the log is ours to trim.
    for setting in ["listen_addresses=", "unix_socket_permissions=0700", "port=5432", "logging_collector=off"] {
        arguments.extend([OsString::from("-c"), setting.into()]);
    }
    let log = files::open_log(&log_file)?;
    let mut child = process::spawn(&program, &as_os_strs(&arguments), &data, log)?;
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(EmbeddedError::spawn(&program))? {
            return Err(why_ended(files::tail(&log_file, mark), status.to_string()));
        }
        if is_child(layout, &child)
            && let Ok(mut connection) = database::connect(layout).await
        {
            process::reap_later(child);
            return database::make(&mut connection).await;
        }
        if begin.elapsed() >= START_PATIENCE {
            process::reap_later(child);
            let log = files::tail(&log_file, mark);
            return Err(EmbeddedError::NoAnswer { what: WHAT, after: START_PATIENCE, log });
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Whether the cluster is the child's by now.
fn is_child(layout: &Layout, child: &Child) -> bool {
    postmaster(layout).is_some_and(|process| child.id() == u32::try_from(process.pid()).ok())
}

fn why_ended(log: String, status: String) -> EmbeddedError {
    match log.lines().find(|line| line.starts_with("unshare:")) {
        Some(line) => EmbeddedError::NoUserNamespace(line.to_owned()),
        None => EmbeddedError::Ended { what: WHAT, status, log },
    }
}
