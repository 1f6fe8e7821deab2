//! What an inode has beside its content: read from the disk, and given to it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, Gid, IFlags, Mode, Statx, StatxFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fgetxattr, fgetxattr_query, flistxattr, flistxattr_query, fsetxattr, futimens, ioctl_getflags,
    ioctl_setflags, lgetxattr, lgetxattr_query, llistxattr, llistxattr_query, lsetxattr, statx, utimensat,
};
use rustix::io::Errno;

use super::super::ArchiveError;
use super::super::entries::{Attributes, Kind, Time, shown};

/// What is kept of the attributes that `chattr` sets: those that a file's owner may set.
const KEPT_FLAGS: IFlags = IFlags::SYNC
    .union(IFlags::NODUMP)
    .union(IFlags::NOATIME)
    .union(IFlags::DIRSYNC)
    .union(IFlags::TOPDIR)
    .union(IFlags::NOTAIL)
    .union(IFlags::SECURE_REMOVAL)
    .union(IFlags::UNRM);
/// The same, as an archive has them.
pub(in super::super) const KEPT: u32 = KEPT_FLAGS.bits();
/// Those that make a file unfit for an archive: they change what may be done with it, and only root, or the
/// file system, sets them (`ioctl_iflags(2)`).
const IMMUTABLE: u32 = 0x10;
const APPEND_ONLY: u32 = 0x20;
const ENCRYPTED: u32 = 0x800;
const VERITY: u32 = 0x10_0000;
const CASE_FOLDED: u32 = 0x4000_0000;
const UNFIT: [(u32, &str); 5] = [
    (IMMUTABLE, "is immutable (chattr +i)"),
    (APPEND_ONLY, "may be appended to only (chattr +a)"),
    (ENCRYPTED, "is encrypted by the file system"),
    (VERITY, "is sealed by fs-verity"),
    (CASE_FOLDED, "ignores the case of its names (chattr +F)"),
];
/// What all extended attributes of an inode may take: an entry's head has room for them, whatever their
/// bytes.
const XATTRS_MAX: usize = 512 * 1024;
/// Of the machine's own policy, and no part of the data.
const LABEL: &[u8] = b"security.selinux";

/// An inode: open, or a name in an open folder, which no link is followed at.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    Open(BorrowedFd<'a>),
    Named(BorrowedFd<'a>, &'a [u8]),
}

impl Place<'_> {
    pub(super) fn stat(self) -> rustix::io::Result<Statx> {
        match self {
            Place::Open(fd) => statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS),
            Place::Named(folder, name) => statx(folder, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS),
        }
    }

    /// By the process's own descriptor: a path of any depth has no other.
    fn path(folder: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
        [format!("/proc/self/fd/{}/", folder.as_raw_fd()).as_bytes(), name].concat()
    }

    pub(super) fn xattr_names(self) -> rustix::io::Result<Vec<u8>> {
        let names = match self {
            Place::Open(fd) => filled(|| flistxattr_query(fd), |to| flistxattr(fd, to)),
            Place::Named(folder, name) => {
                let path = Self::path(folder, name);
                filled(|| llistxattr_query(path.as_slice()), |to| llistxattr(path.as_slice(), to))
            }
        };
        match names {
            // File systems that have none.
            Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
            other => other,
        }
    }

    fn xattr(self, attribute: &[u8]) -> rustix::io::Result<Vec<u8>> {
        match self {
            Place::Open(fd) => filled(|| fgetxattr_query(fd, attribute), |to| fgetxattr(fd, attribute, to)),
            Place::Named(folder, name) => {
                let path = Self::path(folder, name);
                let path = path.as_slice();
                filled(|| lgetxattr_query(path, attribute), |to| lgetxattr(path, attribute, to))
            }
        }
    }

    /// What the inode has, to be kept. `path` is for what is said of it.
    pub(super) fn attributes(self, kind: Kind, path: &[u8]) -> io::Result<Attributes> {
        let failed = |errno: Errno| reading(path, errno);
        let stat = self.stat().map_err(failed)?;
        let mut xattrs = Vec::new();
        for name in self.xattr_names().map_err(failed)?.split(|byte| *byte == 0) {
            if name.is_empty() || name == LABEL {
                continue;
            }
            xattrs.push((name.to_vec(), self.xattr(name).map_err(failed)?));
        }
        xattrs.sort();
        let length: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if length > XATTRS_MAX {
            return Err(unfit(path, format!("its extended attributes take more than {} KiB", XATTRS_MAX / 1024)));
        }
        Ok(Attributes {
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid.into(),
            gid: stat.stx_gid.into(),
            mtime: Time { seconds: stat.stx_mtime.tv_sec, nanoseconds: stat.stx_mtime.tv_nsec },
            device: if kind.is_device() { (stat.stx_rdev_major, stat.stx_rdev_minor) } else { (0, 0) },
            xattrs,
            flags: self.flags(path)?,
        })
    }

    fn flags(self, path: &[u8]) -> io::Result<u32> {
        let Place::Open(fd) = self else { return Ok(0) };
        let flags = match ioctl_getflags(fd) {
            Ok(flags) => flags,
            // File systems that have none.
            Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(0),
            Err(errno) => return Err(reading(path, errno)),
        };
        match UNFIT.iter().find(|(flag, _)| flags.bits() & flag != 0) {
            Some((_, why)) => Err(unfit(path, *why)),
            None => Ok((flags & KEPT_FLAGS).bits()),
        }
    }

    /// Gives it all of these. In this order: a change of the owner takes setuid and capabilities away,
    /// one of the mode changes an access control list.
    pub(super) fn set(self, kind: Kind, attributes: &Attributes) -> rustix::io::Result<()> {
        let Attributes { mode, uid, gid, mtime, xattrs, flags, .. } = attributes;
        let id = |id: &u64| u32::try_from(*id).ok().filter(|id| *id != u32::MAX).ok_or(Errno::INVAL);
        let (uid, gid, mode) = (Uid::from_raw(id(uid)?), Gid::from_raw(id(gid)?), Mode::from_raw_mode(*mode));
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() },
        };
        match self {
            Place::Open(fd) => {
                fchown(fd, Some(uid), Some(gid))?;
                fchmod(fd, mode)?;
                for (name, value) in xattrs {
                    fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())?;
                }
                futimens(fd, &times)?;
                set_flags(fd, *flags)
            }
            Place::Named(folder, name) => {
                chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                if kind != Kind::Symlink {
                    chmodat(folder, name, mode, AtFlags::empty())?;
                }
                for (attribute, value) in xattrs {
                    let path = Self::path(folder, name);
                    lsetxattr(path.as_slice(), attribute.as_slice(), value, XattrFlags::empty())?;
                }
                utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }
}

fn set_flags(fd: BorrowedFd<'_>, wanted: u32) -> rustix::io::Result<()> {
    let had = match ioctl_getflags(fd) {
        Ok(flags) => flags,
        Err(_) if wanted == 0 => return Ok(()),
        Err(errno) => return Err(errno),
    };
    // A new inode has some of its folder's.
    let flags = had.difference(KEPT_FLAGS).union(IFlags::from_bits_retain(wanted).intersection(KEPT_FLAGS));
    if flags == had { Ok(()) } else { ioctl_setflags(fd.as_fd(), flags) }
}

/// What a call fills a buffer with, once another has told its size.
fn filled(
    query: impl Fn() -> rustix::io::Result<usize>,
    call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; query()?];
    if !buffer.is_empty() {
        let length = call(&mut buffer)?;
        buffer.truncate(length);
    }
    Ok(buffer)
}

/// Something that an archive, or a file system, can't hold.
pub(super) fn unfit(path: &[u8], why: impl Into<String>) -> io::Error {
    io::Error::other(ArchiveError::Unfit { path: place(path), why: why.into() })
}

/// Trouble with the disk.
pub(super) fn reading(path: &[u8], errno: Errno) -> io::Error {
    io::Error::other(ArchiveError::Io { doing: format!("reading {}", place(path)), source: errno.into() })
}

/// What came of a write, which trying again may help or not.
pub(super) fn writing(path: &[u8], errno: Errno) -> io::Error {
    let may_pass = matches!(
        errno,
        Errno::NOSPC
            | Errno::DQUOT
            | Errno::IO
            | Errno::NOMEM
            | Errno::MFILE
            | Errno::NFILE
            | Errno::INTR
            | Errno::AGAIN
    );
    if may_pass {
        return io::Error::other(ArchiveError::Io { doing: format!("writing {}", place(path)), source: errno.into() });
    }
    unfit(path, io::Error::from(errno).to_string())
}

fn place(path: &[u8]) -> String {
    if path.is_empty() { "the volume's root".to_owned() } else { shown(path) }
}
