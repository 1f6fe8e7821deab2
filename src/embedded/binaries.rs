//! Which PostgreSQL to run, and how to run it when we are root.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};
use tokio::process::Command;

use super::error::EmbeddedError;
use super::process::{find_program, search_path};

const PACKAGE: &str = "Debian's package postgresql";

/// The programs of one installed PostgreSQL.
#[derive(Debug)]
pub(super) struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// The newest one that can serve the cluster in `data`, or any if there is none yet.
    pub(super) async fn find(data: &Path) -> Result<Self, EmbeddedError> {
        let wanted = major_of_cluster(data)?;
        let mut found = Vec::new();
        for dir in candidates().await {
            if let Some(major) = major_of_binaries(&dir).await {
                found.push((major, dir));
            }
        }
        found.sort();
        let best = found.iter().rfind(|(major, _)| wanted.is_none_or(|wanted| wanted == *major));
        if let Some((_, dir)) = best {
            return Ok(Self { dir: dir.clone() });
        }
        match wanted {
            Some(wanted) if !found.is_empty() => {
                let found = found.iter().map(|(major, _)| major.to_string()).collect::<Vec<_>>().join(", ");
                Err(EmbeddedError::PostgresMajorMissing { data: data.to_owned(), wanted, found })
            }
            _ => Err(EmbeddedError::ProgramMissing { program: "PostgreSQL".to_owned(), package: PACKAGE }),
        }
    }

    /// The program and its first arguments to run one of them. As root it runs as a user of
    /// root's own namespace, where it has another number: PostgreSQL is content, and files of
    /// root stay root's.
    pub(super) fn command(&self, program: &str) -> Result<(PathBuf, Vec<OsString>), EmbeddedError> {
        let program = self.dir.join(program);
        if !Uid::effective().is_root() {
            return Ok((program, Vec::new()));
        }
        let unshare = find_program(Path::new("unshare"), "Debian's package util-linux")?;
        // initdb wants an account with a name.
        let account = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
        let uid = account.map_or(65534, |account| account.uid.as_raw());
        let arguments = ["--user", &format!("--map-user={uid}"), &format!("--map-group={uid}"), "--"];
        let arguments = arguments.iter().map(OsString::from).chain([program.into_os_string()]);
        Ok((unshare, arguments.collect()))
    }
}

/// The major version that made the cluster; none if there is no cluster.
fn major_of_cluster(data: &Path) -> Result<Option<u32>, EmbeddedError> {
    if !data.exists() {
        return Ok(None);
    }
    let file = data.join("PG_VERSION");
    let not_a_cluster = |why| EmbeddedError::NotACluster { data: data.to_owned(), why };
    let text = fs::read_to_string(&file).map_err(|error| not_a_cluster(format!("PG_VERSION: {error}")))?;
    match text.trim().parse() {
        Ok(major) => Ok(Some(major)),
        Err(_) => Err(not_a_cluster("PG_VERSION holds no version".to_owned())),
    }
}

/// Folders that may hold the server's programs.
async fn candidates() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for parent in ["/usr/lib/postgresql", "/usr/lib64/postgresql"] {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        dirs.extend(entries.map(|entry| entry.path().join("bin")));
    }
    let asked = Command::new("pg_config").arg("--bindir").env("PATH", search_path()).output().await;
    if let Ok(output) = asked {
        dirs.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    dirs.sort();
    dirs.dedup();
    dirs
}

async fn major_of_binaries(dir: &Path) -> Option<u32> {
    if !dir.join("initdb").is_file() {
        return None;
    }
    // `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`
    let output = Command::new(dir.join("postgres")).arg("--version").output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_ascii_whitespace().nth(2)?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// For the places that want slices.
pub(super) fn as_os_strs(arguments: &[OsString]) -> Vec<&OsStr> {
    arguments.iter().map(OsString::as_os_str).collect()
}
