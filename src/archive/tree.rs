//! A tree of files as it is on the disk, with everything that an archive keeps of it: read, put in
//! place, looked at.
//!
//! These run as root in a container of their own that has a tenant's volume and nothing else (see
//! `containers/docker/helper.rs`), since a volume holds what no other way shows: the engine's archive
//! API refuses links that lead out, leaves out sockets and paths longer than `PATH_MAX`, and knows
//! neither holes nor most times.
//!
//! Nothing in the tree is trusted, and no link is followed: every step goes from one open folder to
//! a name in it. What an archive can't hold is an error that says so ([`ArchiveError::Unfit`]).
//! What is left out without a word is no part of the data: the label `security.selinux`, which the
//! machine gives; times other than that of modification; and how the file system is to store a file
//! (compressed, copied on write, counted to a project).

mod attributes;
mod folders;
mod unpack;
mod walk;

pub(super) use attributes::KEPT;

use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::channel::PIECE;
use super::digest::Tally;
use super::entries::{self, Entry};
use super::format::ROOT;
use super::{ArchiveError, STREAM, VOLUME, told};

/// What a look at a tree has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The digest of all of it, as the asked format has it.
    pub digest: String,
    /// Whether it is one that [`unpack`] has begun and not finished.
    pub unfinished: bool,
}

/// Writes a tree as a tar stream.
///
/// # Errors
/// [`ArchiveError::Unfit`] for what an archive can't hold; others of the file system, or of whom it
/// is written to.
pub fn pack(root: &Path, to: &mut dyn Write) -> Result<(), ArchiveError> {
    let mut to = BufWriter::with_capacity(PIECE, to);
    let packed = walk::each(root, |entry| entries::put(entry, ROOT, &mut to, |_, _| {}));
    packed.and_then(|()| entries::finish(&mut to)).and_then(|()| to.flush()).map_err(|error| told(error, VOLUME))
}

/// Puts a tree from such a stream, or from an archive's [`Archives::data`](super::Archives::data),
/// into a folder in which nothing is, and brings it to the disk. Until it is whole the folder is
/// root's alone.
///
/// # Errors
/// [`ArchiveError::Unfit`] when the file system can't hold it, [`ArchiveError::Corrupt`] and
/// [`ArchiveError::Truncated`] when the stream is none; others of the file system. What is in place
/// by then stays there, and is seen to be [unfinished](Found::unfinished).
pub fn unpack(from: &mut dyn Read, root: &Path) -> Result<(), ArchiveError> {
    let mut from = BufReader::with_capacity(PIECE, from);
    let unpacked = unpack::Unpacking::begin(root).and_then(|mut unpacking| {
        entries::each(&mut from, |entry| unpacking.put(entry))?;
        unpacking.finish()
    });
    unpacked.map_err(|error| told(error, STREAM))
}

/// Reads all of a tree.
///
/// # Errors
/// As for [`pack`].
pub fn look(root: &Path, format: u32) -> Result<Found, ArchiveError> {
    let told = |error| told(error, VOLUME);
    let unfinished = unpack::is_unfinished(root).map_err(told)?;
    let mut tally = Tally::new(format);
    let counted = walk::each(root, |entry: &mut Entry<'_>| {
        let mut content = tally.content(entry)?;
        entry.each_piece(|at, piece| {
            content.show(at, piece);
            Ok(())
        })?;
        tally.add(entry, content);
        Ok(())
    });
    counted.map_err(told)?;
    Ok(Found { digest: tally.checksum().digest, unfinished })
}

#[cfg(test)]
mod tests;
