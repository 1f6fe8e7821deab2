//! HAProxy's own opinion of a candidate.
//!
//! A check is necessary, not sufficient: a file that passes can still fail to start (a port that
//! is taken, too few file descriptors). What counts is the confirmation after the reload.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;

use super::files;
use super::{Candidate, HaproxyError, Settings};

/// 100,000 apps take four seconds.
const TIMEOUT: Duration = Duration::from_mins(1);
/// A file that is wrong in every line has as many messages.
const MESSAGE_MAX: usize = 8 * 1024;

/// Files that HAProxy has accepted, synced to disk. Only [`check`] makes one, only the swap takes it.
#[derive(Debug)]
pub struct CheckedConfig {
    candidate: Arc<Candidate>,
    folder: PathBuf,
}

impl CheckedConfig {
    /// What was checked.
    #[must_use]
    pub fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Writes the candidate into `folder` and has `haproxy -c` read it there. Nothing in haproxy.cfg
/// depends on that folder (see `default-path config` in the template), so what is checked is, to
/// the byte, what will be used, with the map that belongs to it. While HAProxy reads, the files
/// are synced.
pub(super) async fn check(
    settings: &Settings,
    candidate: Arc<Candidate>,
    folder: PathBuf,
) -> Result<CheckedConfig, HaproxyError> {
    files::write_pair(&folder, candidate.cfg(), candidate.map()).await?;
    let (verdict, synced) = tokio::join!(ask(settings, &folder), files::sync_pair(&folder));
    verdict?;
    synced?;
    Ok(CheckedConfig { candidate, folder })
}

/// `haproxy -c` on a folder's haproxy.cfg.
pub(super) async fn ask(settings: &Settings, folder: &Path) -> Result<(), HaproxyError> {
    let run = Command::new(&settings.binary)
        .arg("-c")
        .arg("-f")
        .arg(folder.join(files::CFG))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(TIMEOUT, run).await {
        Err(_) => return Err(HaproxyError::CheckTimeout { after: TIMEOUT }),
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
            return Err(HaproxyError::Missing { binary: settings.binary.clone() });
        }
        Ok(Err(source)) => {
            return Err(HaproxyError::Io { doing: format!("running {}", settings.binary.display()), source });
        }
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(());
    }
    let mut message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if message.is_empty() {
        message = format!("haproxy -c ended with {} and said nothing", output.status);
    }
    if message.len() > MESSAGE_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_MAX));
        message.push_str("\n…");
    }
    Err(HaproxyError::Rejected { message })
}
