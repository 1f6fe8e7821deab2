//! One `haas up` to a folder.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process;
use std::thread::sleep;
use std::time::Duration;

use super::error::EmbeddedError;
use super::files;
use super::layout::Layout;

/// Held as long as a `haas up` runs. The kernel lets go of it when the process ends, however it
/// ends, and no child inherits it.
#[derive(Debug)]
pub struct DirLock {
    // Kept open: closing it is what unlocks.
    _file: File,
    pid_file: PathBuf,
}

impl DirLock {
    /// Takes the lock and writes our pid beside it. The folder must exist.
    ///
    /// # Errors
    /// [`EmbeddedError::Locked`], with the holder's pid, when another process has it.
    pub fn acquire(layout: &Layout) -> Result<Self, EmbeddedError> {
        let path = layout.lock_file();
        let file = open(&path)?;
        let mut attempts = 0;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // Another command may be in the middle of `holder`.
                Err(TryLockError::WouldBlock) if attempts < 10 => {
                    attempts += 1;
                    sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(EmbeddedError::Locked { dir: layout.dir().to_owned(), pid: read_pid(layout) });
                }
                Err(TryLockError::Error(error)) => return Err(EmbeddedError::file("can't lock", &path)(error)),
            }
        }
        let pid_file = layout.server_pid_file();
        files::replace(&pid_file, format!("{}\n", process::id()).as_bytes())?;
        Ok(Self { _file: file, pid_file })
    }

    /// The pid of the `haas up` that runs in this folder, `None` when none does. A pid file that
    /// a killed one left is not believed.
    ///
    /// # Errors
    /// When the lock can't be looked at.
    pub fn holder(layout: &Layout) -> Result<Option<i32>, EmbeddedError> {
        let path = layout.lock_file();
        if !path.exists() {
            return Ok(None);
        }
        match open(&path)?.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(read_pid(layout)),
            Err(TryLockError::Error(error)) => Err(EmbeddedError::file("can't lock", &path)(error)),
        }
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // Still under the lock: it can only be ours.
        let _ = fs::remove_file(&self.pid_file);
    }
}

fn open(path: &Path) -> Result<File, EmbeddedError> {
    File::options().create(true).truncate(false).write(true).open(path).map_err(EmbeddedError::file("can't open", path))
}

fn read_pid(layout: &Layout) -> Option<i32> {
    fs::read_to_string(layout.server_pid_file()).ok()?.trim().parse().ok()
}
