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
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, fremovexattr, fsync, ftruncate, linkat, makedev,
    mkdirat, mknodat, open, openat, symlinkat, syncfs,
};
use rustix::io::Errno;

use super::super::ArchiveError;
use super::super::entries::{Attributes, Entry, Kind, invalid, shown};
use super::super::format::parent_and_name;
use super::attributes::{Place, reading, writing};
use super::folders::{FOLDER, Folders};

/// The smallest stretch of zeros that becomes a hole.
const BLOCK: u64 = 4096;
const UNFINISHED: u32 = 0o700;

/// Whether a tree was begun and not finished: root's own, and its alone, or as the engine makes a volume,
/// root's and empty.
pub(super) fn is_unfinished(root: &Path) -> io::Result<bool> {
    let failed = |errno: Errno| reading(b"", errno);
    let folder = open(root, FOLDER, Mode::empty()).map_err(failed)?;
    let stat = Place::Open(folder.as_fd()).stat().map_err(failed)?;
    if (stat.stx_uid, stat.stx_gid) != (0, 0) {
        return Ok(false);
    }
    Ok(u32::from(stat.stx_mode) & 0o7777 == UNFINISHED || first_name(&folder)?.is_none())
}

/// The first of the names in a folder that one comes upon.
fn first_name(folder: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let failed = |errno: Errno| reading(b"", errno);
    for entry in Dir::read_from(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// A folder into which entries are put. What it has itself it gets when it is full: every new name
/// changes its time, and its access control list would be its entries', too.
struct Filling {
    /// How long its own path is.
    length: usize,
    attributes: Attributes,
}

pub(super) struct Unpacking {
    folders: Folders<Filling>,
    root: OwnedFd,
    /// What the root is called in the stream; none until its entry has come.
    root_path: Option<Vec<u8>>,
    /// The path of the folder that is being filled.
    path: Vec<u8>,
    /// Where the last hard link led, and the folder of that: the next one often leads there, too.
    linked: Option<(Vec<u8>, OwnedFd)>,
}

impl Unpacking {
    pub(super) fn begin(root: &Path) -> io::Result<Self> {
        let failed = |errno: Errno| reading(b"", errno);
        let folder = open(root, FOLDER, Mode::empty()).map_err(failed)?;
        if let Some(name) = first_name(&folder)? {
            return Err(io::Error::other(ArchiveError::Occupied(shown(&name))));
        }
        // An access control list that it has of the folder around it would be that of all in it.
        for name in Place::Open(folder.as_fd()).xattr_names().map_err(failed)?.split(|byte| *byte == 0) {
            if name.starts_with(b"system.posix_acl_") {
                fremovexattr(&folder, name).map_err(failed)?;
            }
        }
        fchown(&folder, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(failed)?;
        fchmod(&folder, Mode::from_raw_mode(UNFINISHED)).map_err(failed)?;
        Ok(Self { folders: Folders::new(), root: folder, root_path: None, path: Vec::new(), linked: None })
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
            self.path.clone_from(&path);
            let filling = Filling { length: path.len(), attributes: std::mem::take(&mut entry.attributes) };
            return self.folders.enter(self.root.try_clone()?, filling).map_err(failed);
        }
        let (parent, name) = parent_and_name(&path);
        while self.folders.depth() > 1 && self.path != parent {
            self.leave()?;
        }
        let Some((folder, _)) = self.folders.last().filter(|_| self.path == parent && !name.is_empty()) else {
            return Err(invalid(format!("{} is in no folder before it", shown(&path))));
        };
        let kind = match entry.kind {
            Kind::Directory => {
                mkdirat(folder, name, Mode::from_raw_mode(UNFINISHED)).map_err(failed)?;
                let inner = openat(folder, name, FOLDER, Mode::empty()).map_err(failed)?;
                let filling = Filling { length: path.len(), attributes: std::mem::take(&mut entry.attributes) };
                self.path.clone_from(&path);
                return self.folders.enter(inner, filling).map_err(failed);
            }
            Kind::File => return put_file(folder, name, entry),
            Kind::HardLink => {
                let root_path = self.root_path.as_deref().unwrap_or_default();
                return link(&mut self.linked, (&self.root, root_path), (folder, name), entry);
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
        let Some((folder, Filling { attributes, .. })) = left else { return Ok(()) };
        let set = Place::Open(folder.as_fd()).set(Kind::Directory, &attributes);
        set.map_err(|errno| writing(&self.path, errno))?;
        self.path.truncate(self.folders.last().map_or(0, |(_, filling)| filling.length));
        Ok(())
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
fn link(
    linked: &mut Option<(Vec<u8>, OwnedFd)>,
    (root, root_path): (&OwnedFd, &[u8]),
    (folder, name): (BorrowedFd<'_>, &[u8]),
    entry: &Entry<'_>,
) -> io::Result<()> {
    let failed = |errno: Errno| writing(&entry.path, errno);
    let below = entry.link.strip_prefix(root_path).unwrap_or(&entry.link);
    let (parent, target) = parent_and_name(below.strip_prefix(b"/").unwrap_or(below));
    let there = match linked.take() {
        Some((path, there)) if path == parent => there,
        _ => {
            let mut at = root.try_clone()?;
            for step in parent.split(|byte| *byte == b'/').filter(|step| !step.is_empty()) {
                at = openat(&at, step, FOLDER, Mode::empty()).map_err(failed)?;
            }
            at
        }
    };
    linkat(&there, target, folder, name, AtFlags::empty()).map_err(failed)?;
    *linked = Some((parent.to_vec(), there));
    Ok(())
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
