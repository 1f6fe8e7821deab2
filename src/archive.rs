//! Tenants' data as files: one compressed, checksummed file for each volume.
//!
//! A tenant that sleeps for long has its volume written into such a file, and the volume freed;
//! when it wakes, the file is put into a new volume. `haas export` and `haas import` move the same
//! files between installations.
//!
//! ```text
//! Docker ──tar──▶ store  ──▶ NAME.tar.zst ──▶ data   ──tar──▶ Docker
//!                 elsewhere ◀── export   import ◀── elsewhere
//!
//! NAME.tar.zst = zstd( haas.json | data/ data/… | haas-checksum.json )
//! ```
//!
//! The header comes first, so that whose data it is can be read at once; the checksum comes last,
//! so that a file that was cut short has none. Between them is all that a file system can hold, as
//! [`tree`] reads it from the disk: every kind of inode, any name, holes as holes, times to the
//! nanosecond, extended attributes. Format 1 had folders, files and links alone.
//!
//! Three checks, since each sees what the others can't: zstd's own checksum, the SHA-256 of the
//! whole file that the manifest keeps, and the *digest*: a hash of the tree itself, whenever and
//! wherever it was written. It is what a restored volume is compared by.
//!
//! No file has its name before it is whole: written beside its place, synced, read back and
//! verified, renamed, the folder synced. Whatever ends that early (a full disk, a kill, a stream
//! that breaks off, a caller that no longer waits) leaves what was there before, and at most a
//! file that [`Archives::sweep`] takes away.
//!
//! Every archive at work has one thread, and bytes reach it by a bounded channel. What is in
//! memory is a few buffers and 32 bytes for each entry, however large the data is.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use thiserror::Error;

mod channel;
mod digest;
mod entries;
mod files;
mod format;
pub mod tree;

use crate::instance::Instance;
use crate::instance::storage::{Limits, Taken};
use files::Unfinished;
use format::Maker;

/// The format that is written.
pub const FORMAT: u32 = 2;
/// Those that are read.
const FORMATS: [u32; 2] = [1, FORMAT];
/// The uid and gid that tenants run as (hoodie/Dockerfile).
const TENANT: u64 = 1000;
/// What the names of finished archives end with.
const SUFFIX: &str = ".tar.zst";
/// A file system allows 255, and there is the suffix.
const NAME_MAX: usize = 240;
/// How messages call a tar stream that comes from outside.
const STREAM: &str = "the engine's stream";
/// And a tree on the disk.
const VOLUME: &str = "the volume";

/// Why data could not be kept, or given back.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The file system's trouble: a disk that is full, a folder that can't be written to.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A file or a stream that ends before its end.
    #[error("{file} is cut short: {why}")]
    Truncated {
        /// Which one.
        file: String,
        /// Where it ends.
        why: String,
    },
    /// A file or a stream that is not what it should be.
    #[error("{file} is damaged, or no archive: {why}")]
    Corrupt {
        /// Which one.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something in a tree that an archive, or the file system that it is put on, can't hold.
    #[error("{path}: {why}")]
    Unfit {
        /// Where in the tree; for people.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The folder that a tree was to be put into holds something already.
    #[error("the volume holds {0} already")]
    Occupied(String),
    /// The data in it is more than it may be: what there is too much of.
    #[error("its data {0}")]
    Exceeds(String),
    /// The stream itself says that it failed.
    #[error("reading the data: {0}")]
    Engine(String),
    /// There is something at this path, and it is not to be overwritten.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// A name that could lead out of the folder, or is too long.
    #[error("{0:?} is no plain file name")]
    BadName(String),
}

impl ArchiveError {
    /// Whether it may work out the next time, without anybody doing anything about it.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Engine(_) | Self::Occupied(_) => true,
            // What comes from an engine or a disk that is in trouble, or from files that are written to.
            Self::Truncated { file, .. } => file == STREAM || file == VOLUME,
            Self::Corrupt { .. } | Self::Exceeds(_) | Self::Unfit { .. } | Self::Exists(_) | Self::BadName(_) => false,
        }
    }
}

/// A tenant's data in one file: what the manifest keeps of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// Its name in the folder.
    pub file: String,
    /// Of the whole file, in hexadecimal.
    pub sha256: String,
    /// The file's length.
    pub bytes: u64,
    /// Of the tree in it, in hexadecimal.
    pub digest: String,
    /// As its header says.
    pub made_at: DateTime<Utc>,
    /// What its digest is made of. Those of the first format did not say it.
    #[serde(default = "first_format")]
    pub format: u32,
}

fn first_format() -> u32 {
    1
}

/// Whose data it is: the first entry. Plain strings; whoever uses them checks them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// What is in it, and how.
    pub format: u32,
    /// The user.
    pub username: String,
    /// The user's app.
    pub appname: String,
    /// The user's address.
    pub emailaddress: String,
    /// Custom domains.
    pub extra_hosts: Vec<String>,
    /// When it was written.
    pub made_at: DateTime<Utc>,
}

impl std::fmt::Debug for Header {
    /// Without the owner.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Header");
        shown.field("username", &self.username).field("appname", &self.appname).field("made_at", &self.made_at);
        shown.finish_non_exhaustive()
    }
}

/// A finished archive that lies in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// When it was written or copied here.
    pub modified: DateTime<Utc>,
}

/// The folder of archives.
#[derive(Debug, Clone)]
pub struct Archives {
    dir: PathBuf,
}

impl Header {
    /// Of an instance's data as it is now.
    #[must_use]
    pub fn of(instance: &Instance) -> Self {
        Self {
            format: FORMAT,
            username: instance.username.to_string(),
            appname: instance.appname.to_string(),
            emailaddress: instance.email.to_string(),
            extra_hosts: instance.extra_hosts.iter().map(ToString::to_string).collect(),
            made_at: Utc::now(),
        }
    }
}

impl Archives {
    /// Touches nothing yet: the folder is made, for its owner alone, when it is needed.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a tree into `<name>.tar.zst`. The stream is a tar as [`tree::pack`] gives it: its first
    /// entry is the root, whatever its name, and everything else lies below, in order. An
    /// older file of that name is replaced at the end, and stays when this fails.
    ///
    /// # Errors
    /// [`ArchiveError`]; then nothing is kept.
    pub async fn store<E>(
        &self,
        name: &str,
        header: &Header,
        data: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Archive, ArchiveError>
    where
        E: Display + Send + 'static,
    {
        let path = self.path(&format!("{}{SUFFIX}", checked(name)?))?;
        let (dir, to, header) = (self.dir.clone(), path.clone(), header.clone());
        let (unfinished, archive) = channel::feed(data, move |mut stream| {
            files::create_folder(&dir)?;
            format::write(&to, &header, &mut stream)
        })
        .await?;
        // Apart from the writing: a caller that has given up meanwhile drops the file here, and
        // a later attempt's is not replaced by it.
        blocking(move || unfinished.replace(&path)).await?;
        Ok(archive)
    }

    /// Reads a whole file, and checks it by all there is to check it by. Says what its data would take of
    /// a disk.
    ///
    /// # Errors
    /// [`ArchiveError`]: says what is wrong with it.
    pub async fn verify(&self, archive: &Archive) -> Result<Taken, ArchiveError> {
        let (path, archive) = (self.path(&archive.file)?, archive.clone());
        blocking(move || format::verify(&path, &archive).map(|found| found.taken)).await
    }

    /// The tree as a plain tar stream, for [`tree::unpack`]. The items end with an error when the file
    /// turns out to be damaged: to unpack nothing then, call [`Archives::verify`] before.
    pub fn data(&self, archive: &Archive) -> impl Stream<Item = Result<Bytes, io::Error>> + Send + use<> {
        let (path, archive) = (self.path(&archive.file), archive.clone());
        channel::drain(move |to| format::unwrap(&path?, &archive, to))
    }

    /// The digest of a tree, of which nothing is kept. The stream is one as for [`Archives::store`].
    ///
    /// # Errors
    /// [`ArchiveError`] when the stream fails, or is no whole tar.
    pub async fn digest<E>(data: impl Stream<Item = Result<Bytes, E>> + Send) -> Result<String, ArchiveError>
    where
        E: Display + Send + 'static,
    {
        channel::feed(data, |mut stream| format::digest(&mut stream)).await
    }

    /// Removes a file. One that is gone is no error.
    ///
    /// # Errors
    /// [`ArchiveError::BadName`], or the file system's.
    pub async fn remove(&self, file: &str) -> Result<(), ArchiveError> {
        let path = self.path(file)?;
        blocking(move || files::remove(&path)).await
    }

    /// The finished archives, by name. None when there is no folder.
    ///
    /// # Errors
    /// The file system's.
    pub async fn list(&self) -> Result<Vec<Stored>, ArchiveError> {
        let dir = self.dir.clone();
        blocking(move || {
            let mut found: Vec<Stored> = files::list(&dir)?
                .into_iter()
                .filter(|(file, _)| file.ends_with(SUFFIX) && checked(file).is_ok())
                .map(|(file, metadata)| Stored { file, bytes: metadata.len(), modified: modified(&metadata).into() })
                .collect();
            found.sort_by(|one, other| one.file.cmp(&other.file));
            Ok(found)
        })
        .await
    }

    /// Removes what a crash has left unfinished, if it was last written to longer ago than that.
    ///
    /// # Errors
    /// The file system's.
    pub async fn sweep(&self, age: Duration) -> Result<(), ArchiveError> {
        let dir = self.dir.clone();
        blocking(move || {
            for (file, metadata) in files::list(&dir)? {
                // A clock that was put back makes it look young: it goes next time.
                let old = modified(&metadata).elapsed().is_ok_and(|elapsed| elapsed >= age);
                if old && files::is_unfinished(&file) {
                    log::info!("{file}, an archive that was never finished, is taken away");
                    files::remove(&dir.join(file))?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Whose data a file from elsewhere says it has: reads its beginning, and checks no more.
    ///
    /// # Errors
    /// [`ArchiveError`] when it can't be read, or does not begin as an archive does.
    pub async fn header(from: &Path) -> Result<Header, ArchiveError> {
        let from = from.to_owned();
        blocking(move || format::header(&from)).await
    }

    /// Takes in a file from elsewhere as `<name>.tar.zst`: copies it, and verifies the copy, before
    /// it gets its name. What no tenant could have made in its volume is refused: devices, what belongs
    /// to others, attributes that only root sets; and data that would take more than these limits. `progress` is told the bytes that are copied; what follows, reading them
    /// back, takes about as long again.
    ///
    /// # Errors
    /// [`ArchiveError`]; then nothing is kept.
    pub async fn import(
        &self,
        from: &Path,
        name: &str,
        limits: Limits,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<(Header, Archive), ArchiveError> {
        let path = self.path(&format!("{}{SUFFIX}", checked(name)?))?;
        let (dir, from, to) = (self.dir.clone(), from.to_owned(), path.clone());
        let (unfinished, header, archive) = blocking(move || {
            files::create_folder(&dir)?;
            let (unfinished, sha256) = Unfinished::copy(&from, &to, progress)?;
            let name = from.display().to_string();
            let found = format::inspect(unfinished.path(), &name, Maker::Anybody, limits)?;
            let (header, mut archive) = (found.header, found.archive);
            if archive.sha256 != sha256 {
                let why = "what was read back is not what was written".to_owned();
                return Err(ArchiveError::Corrupt { file: to.display().to_string(), why });
            }
            archive.file = file_name(&to)?;
            Ok((unfinished, header, archive))
        })
        .await?;
        blocking(move || unfinished.replace(&path)).await?;
        Ok((header, archive))
    }

    /// Copies an archive out to a path where nothing is, and verifies the copy before it gets its
    /// name. `progress` as for [`Archives::import`].
    ///
    /// # Errors
    /// [`ArchiveError::Exists`] when there is something, and others; then nothing is left there.
    pub async fn export(
        &self,
        archive: &Archive,
        to: &Path,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<(), ArchiveError> {
        file_name(to)?;
        let (from, to, path, archive) = (self.path(&archive.file)?, to.to_owned(), to.to_owned(), archive.clone());
        let unfinished = blocking(move || {
            files::check_free(&to)?;
            let (unfinished, _) = Unfinished::copy(&from, &to, progress)?;
            format::verify(unfinished.path(), &archive)?;
            Ok(unfinished)
        })
        .await?;
        blocking(move || unfinished.place(&path)).await
    }

    /// As [`Archives::store`], to a path outside where nothing is.
    ///
    /// # Errors
    /// [`ArchiveError::Exists`] when there is something, and others; then nothing is left there.
    pub async fn export_stream<E>(
        to: &Path,
        header: &Header,
        data: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Archive, ArchiveError>
    where
        E: Display + Send + 'static,
    {
        file_name(to)?;
        let (to, path, header) = (to.to_owned(), to.to_owned(), header.clone());
        let (unfinished, archive) = channel::feed(data, move |mut stream| {
            files::check_free(&to)?;
            format::write(&to, &header, &mut stream)
        })
        .await?;
        blocking(move || unfinished.place(&path)).await?;
        Ok(archive)
    }

    fn path(&self, file: &str) -> Result<PathBuf, ArchiveError> {
        Ok(self.dir.join(checked(file)?))
    }
}

/// A name that stays in its folder, and is nobody's hidden file.
fn checked(name: &str) -> Result<&str, ArchiveError> {
    let plain = !name.is_empty() && name.len() <= NAME_MAX && !name.starts_with('.') && !name.contains(['/', '\0']);
    if plain { Ok(name) } else { Err(ArchiveError::BadName(name.to_owned())) }
}

fn file_name(path: &Path) -> Result<String, ArchiveError> {
    let name = path.file_name().ok_or_else(|| ArchiveError::BadName(path.display().to_string()))?;
    Ok(name.to_string_lossy().into_owned())
}

fn modified(metadata: &fs::Metadata) -> SystemTime {
    // Linux knows it of every file.
    metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What touches files does so on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError> {
    let gone =
        |source| ArchiveError::Io { doing: "working on an archive".to_owned(), source: io::Error::other(source) };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|source| Err(gone(source)))
}

/// What an error of a reader or a writer means: a failure that was told apart at its origin, an
/// end that came too early, or bytes that make no sense.
fn told(error: io::Error, file: &str) -> ArchiveError {
    error.downcast::<ArchiveError>().unwrap_or_else(|error| {
        let (file, why) = (file.to_owned(), error.to_string());
        match error.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Truncated { file, why },
            _ => ArchiveError::Corrupt { file, why },
        }
    })
}

#[cfg(test)]
mod tests;
