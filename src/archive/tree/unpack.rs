//! Puts a tree in place, entry by entry. Every inode is new, and made by its name in a folder that was
//! made here: so nothing is written over, and nothing through a link.
//!
//! While it lasts the root belongs to root and to nobody else, which no tenant can bring about: it
//! gets what it should have at the very end, when all else is on the disk.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, fsync, ftruncate, linkat, makedev, mkdirat,
    mknodat, open, openat, symlinkat, syncfs,
};
use rustix::io::Errno;

use super::super::entries::{Attributes, Entry, Kind, invalid, shown};
use super::super::format::parent_and_name;
use super::attributes::{Place, reading, unfit, writing};
use super::folders::{FOLDER, Folders};

/// The smallest stretch of zeros that becomes a hole.
const BLOCK: u64 = 4096;
const UNFINISHED: u32 = 0o700;

/// Whether a tree was begun and not finished.
pub(super) fn is_unfinished(root: &Path) -> io::Result<bool> {
    let failed = |errno: Errno| reading(b"", errno);
    let folder = open(root, FOLDER, Mode::empty()).map_err(failed)?;
    let stat = Place::Open(folder.as_fd()).stat().map_err(failed)?;
    Ok((stat.stx_uid, stat.stx_gid) == (0, 0) && u32::from(stat.stx_mode) & 0o7777 == UNFINISHED)
}

/// A folder into which entries are put. What it has itself it gets when it is full: every new name
/// changes its time, and its access control list would be its entries', too.
struct Filling {
    path: Vec<u8>,
    attributes: Attributes,
}

pub(super) struct Unpacking {
    folders: Folders<Filling>,
    root: OwnedFd,
    /// What the root is called in the stream; none until its entry has come.
    root_path: Option<Vec<u8>>,
}

impl Unpacking {
    pub(super) fn begin(root: &Path) -> io::Result<Self> {
        let failed = |errno: Errno| reading(b"", errno);
        let folder = open(root, FOLDER, Mode::empty()).map_err(failed)?;
        for entry in Dir::read_from(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if ![c".", c".."].contains(&entry.file_name()) {
                return Err(unfit(b"", format!("{} is in it already", shown(entry.file_name().to_bytes()))));
            }
        }
        fchown(&folder, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(failed)?;
        fchmod(&folder, Mode::from_raw_mode(UNFINISHED)).map_err(failed)?;
        Ok(Self { folders: Folders::new(), root: folder, root_path: None })
    }

    /// Puts the next entry in place.
    pub(super) fn put(&mut self, entry: &mut Entry<'_>) -> io::Result<()> {
        let path = entry.path.clone();
        let failed = |errno: Errno| writing(&path, errno);
        if self.root_path.is_none() {
            if entry.kind != Kind::Directory {
                return Err(invalid(format!("it begins with {}, no folder", shown(&path))));
            }
            self.root_path = Some(path.clone());
            let attributes = std::mem::take(&mut entry.attributes);
            let filling = Filling { path: path.clone(), attributes };
            return self.folders.enter(self.root.try_clone()?, filling).map_err(failed);
        }
        let (parent, name) = parent_and_name(&path);
        while self.folders.depth() > 1 && self.folders.last().is_some_and(|(_, filling)| filling.path != parent) {
            self.leave()?;
        }
        let Some((folder, _)) = self.folders.last().filter(|(_, filling)| filling.path == parent && !name.is_empty())
        else {
            return Err(invalid(format!("{} is in no folder before it", shown(&path))));
        };
        let kind = match entry.kind {
            Kind::Directory => {
                mkdirat(folder, name, Mode::from_raw_mode(UNFINISHED)).map_err(failed)?;
                let inner = openat(folder, name, FOLDER, Mode::empty()).map_err(failed)?;
                let attributes = std::mem::take(&mut entry.attributes);
                return self.folders.enter(inner, Filling { path: path.clone(), attributes }).map_err(failed);
            }
            Kind::File => return put_file(folder, name, entry),
            Kind::HardLink => {
                let root_path = self.root_path.as_deref().unwrap_or_default();
                return link(&self.root, root_path, folder, name, entry);
            }
            Kind::Symlink => FileType::Symlink,
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::CharacterDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
        };
        make(folder, name, kind, entry).map_err(failed)?;
        Place::Named(folder, name).set(entry.kind, &entry.attributes).map_err(failed)
    }

    fn leave(&mut self) -> io::Result<()> {
        let left = self.folders.leave().map_err(|errno| reading(b"", errno))?;
        let Some((folder, Filling { path, attributes })) = left else { return Ok(()) };
        Place::Open(folder.as_fd()).set(Kind::Directory, &attributes).map_err(|errno| writing(&path, errno))
    }

    /// Ends it, once all of it has come: the root's own attributes are the last write of all.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let failed = |errno: Errno| writing(b"", errno);
        if self.root_path.is_none() {
            return Err(invalid("there is no folder in it"));
        }
        while self.folders.depth() > 1 {
            self.leave()?;
        }
        syncfs(&self.root).map_err(failed)?;
        self.leave()?;
        fsync(&self.root).map_err(failed)
    }
}

/// One more name of what stands before it. On the way there no link is followed either.
fn link(root: &OwnedFd, root_path: &[u8], folder: BorrowedFd<'_>, name: &[u8], entry: &Entry<'_>) -> io::Result<()> {
    let failed = |errno: Errno| writing(&entry.path, errno);
    let below = entry.link.strip_prefix(root_path).unwrap_or(&entry.link);
    let (parent, target) = parent_and_name(below.strip_prefix(b"/").unwrap_or(below));
    let mut at = root.try_clone()?;
    for step in parent.split(|byte| *byte == b'/').filter(|step| !step.is_empty()) {
        at = openat(&at, step, FOLDER, Mode::empty()).map_err(failed)?;
    }
    linkat(&at, target, folder, name, AtFlags::empty()).map_err(failed)
}

fn make(folder: BorrowedFd<'_>, name: &[u8], kind: FileType, entry: &Entry<'_>) -> rustix::io::Result<()> {
    if kind == FileType::Symlink {
        return symlinkat(entry.link.as_slice(), folder, name);
    }
    let (major, minor) = entry.attributes.device;
    mknodat(folder, name, kind, Mode::from_raw_mode(0o600), makedev(major, minor))
}

fn put_file(folder: BorrowedFd<'_>, name: &[u8], entry: &mut Entry<'_>) -> io::Result<()> {
    let path = entry.path.clone();
    let failed = |errno: Errno| writing(&path, errno);
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(folder, name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?);
    entry.each_piece(|at, piece| {
        runs(at, piece, |at, run| {
            let written = file.write_all_at(run, at);
            written.map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
        })
    })?;
    ftruncate(&file, entry.size).map_err(failed)?;
    Place::Open(file.as_fd()).set(Kind::File, &entry.attributes).map_err(failed)
}

/// Shows what is not zeros, in the blocks of the file.
fn runs(at: u64, piece: &[u8], mut show: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let (mut from, mut run) = (0, None);
    while from < piece.len() {
        let left = usize::try_from(BLOCK - (at + from as u64) % BLOCK).unwrap_or_default();
        let end = piece.len().min(from + left);
        let zeros = piece[from..end].iter().all(|byte| *byte == 0);
        match run {
            None if !zeros => run = Some(from),
            Some(start) if zeros => {
                show(at + start as u64, &piece[start..from])?;
                run = None;
            }
            _ => {}
        }
        from = end;
    }
    run.map_or(Ok(()), |start| show(at + start as u64, &piece[start..]))
}
