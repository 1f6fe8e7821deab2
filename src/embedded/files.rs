//! Small things about files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::EmbeddedError;
use crate::whole_file::{self, Durability};

/// A log file that grew past this is trimmed.
pub(super) const LOG_MAX: u64 = 50 * 1024 * 1024;

/// Writes a file whole or not at all.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), EmbeddedError> {
    whole_file::replace(path, content, 0o644, Durability::Power).map_err(EmbeddedError::file("can't write", path))
}

/// Makes a rename in this folder survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> Result<(), EmbeddedError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(EmbeddedError::file("can't sync", dir))
}

/// Opens a log for a service to write to. It only ever appends, so the file can be cut under it.
pub(super) fn open_log(path: &Path) -> Result<File, EmbeddedError> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(EmbeddedError::file("can't open", path))
}

/// How long a log is now: a mark for [`tail`].
pub(super) fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// The last lines that were written after `from`.
pub(super) fn tail(path: &Path, from: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let from = if from > length { 0 } else { from };
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(4096))))?;
        let mut bytes = Vec::new();
        file.take(8192).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// Moves a log that grew past `max` to `.1` by copy and cut, since its writer keeps the file
/// open. A line written between the two is lost.
pub(super) fn trim(path: &Path, max: u64) -> io::Result<bool> {
    if length(path) <= max {
        return Ok(false);
    }
    let mut from = File::options().read(true).write(true).open(path)?;
    let mut to = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(beside(path, ".1"))?;
    let copied = io::copy(&mut from, &mut to);
    // Also when the copy failed: the bound holds on a full disk above all.
    from.set_len(0)?;
    copied.map(|_| true)
}

/// The path with something added to its last part.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_is_cut_under_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut writer = open_log(&path).unwrap();
        writer.write_all(b"one\ntwo\n").unwrap();
        assert!(!trim(&path, 8).unwrap());
        assert!(trim(&path, 7).unwrap());
        writer.write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        assert_eq!(fs::read_to_string(dir.path().join("a.log.1")).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_tail_begins_at_the_mark() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        fs::write(&path, "old\n").unwrap();
        let mark = length(&path);
        assert_eq!(tail(&path, mark), "");
        fs::write(&path, "old\nnew\n").unwrap();
        assert_eq!(tail(&path, mark), "new");
        fs::write(&path, "cut").unwrap();
        assert_eq!(tail(&path, mark), "cut");
        assert_eq!(tail(&dir.path().join("none"), 0), "");
    }
}
