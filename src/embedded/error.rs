//! What can go wrong here, in words for the person who typed `haas up`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

/// Why a part could not be started, found or stopped.
#[derive(Debug, Error)]
pub enum EmbeddedError {
    /// A unix socket's path has a fixed room in the kernel's and HAProxy's structures.
    #[error("{} is too long for a unix socket: {bytes} bytes, and {limit} is the most; choose a shorter --dir", .path.display())]
    PathTooLong {
        /// The socket that would not fit.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// The most that fits.
        limit: usize,
    },
    /// The path ends up in haproxy.cfg and in HAProxy's arguments.
    #[error("--dir {} has the character {character:?}, which HAProxy's configuration can't hold; choose another folder", .path.display())]
    PathCharacter {
        /// The folder.
        path: PathBuf,
        /// The first character that is refused.
        character: char,
    },
    /// The disk is full, a folder is somebody else's, and so on.
    #[error("{action} {}: {source}", .path.display())]
    File {
        /// What was tried, such as "can't write".
        action: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Two servers with one folder would fight.
    #[error("{} is in use by another haas up{}", .dir.display(), .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked {
        /// The folder.
        dir: PathBuf,
        /// Who holds it, if that is known.
        pid: Option<i32>,
    },
    /// A program that has to be installed.
    #[error("{program} is not installed ({package})")]
    ProgramMissing {
        /// Its name.
        program: String,
        /// Where it comes from.
        package: &'static str,
    },
    /// A cluster can be served by the major version that made it, and by no other.
    #[error(
        "the cluster in {} was made by PostgreSQL {wanted}, which is not installed (found: {found}); \
         install postgresql-{wanted}, or move the data with pg_dump", .data.display()
    )]
    PostgresMajorMissing {
        /// The cluster's folder.
        data: PathBuf,
        /// The major version that it needs.
        wanted: u32,
        /// Those that are here.
        found: String,
    },
    /// The cluster's folder holds something else.
    #[error("{} is no PostgreSQL cluster: {why}", .data.display())]
    NotACluster {
        /// The folder.
        data: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// PostgreSQL refuses to run as root, and here root can't become anything else.
    #[error(
        "PostgreSQL refuses to run as root, and this machine allows no user namespace ({0}); \
         run haas as an ordinary user, or `haas serve` with a DATABASE_URL"
    )]
    NoUserNamespace(String),
    /// A program could not be run at all.
    #[error("can't run {program}: {source}")]
    Spawn {
        /// Its name.
        program: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A program ended that should not have.
    #[error("{what} ended ({status}):\n{log}")]
    Ended {
        /// Its name.
        what: &'static str,
        /// Its exit status.
        status: String,
        /// The last lines that it wrote.
        log: String,
    },
    /// A program runs and gives no answer.
    #[error("{what} gives no answer after {} s:\n{log}", .after.as_secs())]
    NoAnswer {
        /// Its name.
        what: &'static str,
        /// How long it was waited for.
        after: Duration,
        /// The last lines that it wrote.
        log: String,
    },
    /// Processes that even SIGKILL did not end (they hang in the kernel).
    #[error("{what} can't be ended: pid {pids}")]
    Unkillable {
        /// Their name.
        what: &'static str,
        /// Which they are.
        pids: String,
    },
    /// Postgres answers, but the database could not be made.
    #[error("can't make the database: {0}")]
    Database(String),
}

impl EmbeddedError {
    /// For `map_err` after a call to the file system.
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// For `map_err` after a spawn.
    pub(super) fn spawn(program: &Path) -> impl FnOnce(io::Error) -> Self {
        let program = program.display().to_string();
        move |source| Self::Spawn { program, source }
    }
}
