//! Files on the disk: beside their place while they are unfinished, then in it.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::ArchiveError;
use super::channel::PIECE;

const PREFIX: &str = ".haas-";
const SUFFIX: &str = ".unfinished";

/// Whether a file of this name is one that was never finished.
pub(super) fn is_unfinished(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// A file that has no name of its own yet. Dropped, it is gone.
pub(super) struct Unfinished {
    path: PathBuf,
    file: File,
}

impl Unfinished {
    /// In the same folder as `to`: from there it can be renamed.
    pub(super) fn beside(to: &Path) -> Result<Self, ArchiveError> {
        // Of each attempt its own: one that was given up may still be writing.
        let path = to.with_file_name(format!("{PREFIX}{}{SUFFIX}", Uuid::new_v4()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(failed("making", &path))?;
        Ok(Self { path, file })
    }

    /// A copy, on the disk itself, and the SHA-256 of what was copied.
    pub(super) fn copy(from: &Path, to: &Path, progress: impl Fn(u64)) -> Result<(Self, String), ArchiveError> {
        let source = File::open(from).map_err(failed("opening", from))?;
        let copied = Self::beside(to)?;
        let pass = || -> io::Result<_> {
            let mut source = Hashed::new(source, format!("reading {}", from.display()));
            let (mut target, mut buffer) = (copied.hashed(), vec![0; PIECE]);
            loop {
                match source.read(&mut buffer) {
                    Ok(0) => return Ok(source.finish().0),
                    Ok(length) => target.write_all(&buffer[..length])?,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
                progress(source.bytes);
            }
        };
        let sha256 = pass().map_err(|error| super::told(error, &from.display().to_string()))?;
        copied.sync()?;
        Ok((copied, sha256))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// To write to.
    pub(super) fn hashed(&self) -> Hashed<&File> {
        Hashed::new(&self.file, format!("writing {}", self.path.display()))
    }

    /// Brings it to the disk itself. What is read after this comes from there, where the kernel
    /// listens.
    pub(super) fn sync(&self) -> Result<(), ArchiveError> {
        self.file.sync_all().map_err(failed("syncing", &self.path))?;
        let _ = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(())
    }

    /// Gives it its name, and takes that from whatever had it.
    pub(super) fn replace(self, to: &Path) -> Result<(), ArchiveError> {
        fs::rename(&self.path, to).map_err(failed("renaming a finished archive to", to))?;
        sync_folder(to)
    }

    /// Gives it a name that nothing has.
    pub(super) fn place(self, to: &Path) -> Result<(), ArchiveError> {
        match fs::hard_link(&self.path, to) {
            Ok(()) => fs::remove_file(&self.path).map_err(failed("removing", &self.path))?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(ArchiveError::Exists(to.to_owned())),
            // Sticks and cards often have file systems without hard links: there, what appears
            // between the two steps is lost.
            Err(_) => {
                check_free(to)?;
                fs::rename(&self.path, to).map_err(failed("renaming a finished archive to", to))?;
            }
        }
        sync_folder(to)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            // It has its name now.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => log::warn!("{} stays behind: {error}", self.path.display()),
            Ok(()) => {}
        }
    }
}

/// A file whose bytes are hashed as they pass, and whose errors say what was being done.
pub(super) struct Hashed<F> {
    file: F,
    doing: String,
    hasher: Sha256,
    bytes: u64,
}

impl<F> Hashed<F> {
    pub(super) fn new(file: F, doing: String) -> Self {
        Self { file, doing, hasher: Sha256::new(), bytes: 0 }
    }

    /// The SHA-256 in hexadecimal, and how many bytes have passed.
    pub(super) fn finish(self) -> (String, u64) {
        (hex::encode(self.hasher.finalize()), self.bytes)
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn told(&self, source: io::Error) -> io::Error {
        // This one is for whoever calls, to try again.
        if source.kind() == ErrorKind::Interrupted {
            return source;
        }
        io::Error::other(ArchiveError::Io { doing: self.doing.clone(), source })
    }
}

impl<F: Read> Read for Hashed<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(into).map_err(|error| self.told(error))?;
        self.passed(&into[..length]);
        Ok(length)
    }
}

impl<F: Write> Write for Hashed<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.file.write(bytes).map_err(|error| self.told(error))?;
        self.passed(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().map_err(|error| self.told(error))
    }
}

/// Makes the folder, for its owner alone, if it is not there.
pub(super) fn create_folder(folder: &Path) -> Result<(), ArchiveError> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("making the folder", folder))?;
    sync_folder(folder)
}

/// Fails if something has this name, be it a link that leads nowhere.
pub(super) fn check_free(path: &Path) -> Result<(), ArchiveError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(ArchiveError::Exists(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("looking for", path)(error)),
    }
}

/// One that is gone is no error.
pub(super) fn remove(path: &Path) -> Result<(), ArchiveError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("removing", path)(error)),
        _ => Ok(()),
    }
}

/// The regular files of a folder; none when it is not there. Names that are no text are not ours.
pub(super) fn list(folder: &Path) -> Result<Vec<(String, Metadata)>, ArchiveError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed("reading", folder))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("reading", folder))?;
        match (entry.file_name().into_string(), entry.metadata()) {
            (Ok(name), Ok(metadata)) if metadata.is_file() => found.push((name, metadata)),
            (_, Err(error)) if error.kind() != ErrorKind::NotFound => {
                return Err(failed("reading", &entry.path())(error));
            }
            // Finished or removed in between, or no file.
            _ => {}
        }
    }
    Ok(found)
}

/// Brings the names in a path's folder to the disk itself.
fn sync_folder(path: &Path) -> Result<(), ArchiveError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("syncing", folder))
}

pub(super) fn failed<'a>(doing: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> ArchiveError + 'a {
    move |source| ArchiveError::Io { doing: format!("{doing} {}", path.display()), source }
}
