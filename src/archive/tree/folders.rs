//! The way from the root of a tree down to where one is, as open folders. Only the last ones stay open:
//! a path has room for more folders inside each other than a process has descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::attributes::Place;

/// How a folder is opened: never by a link.
pub(super) const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How many stay open.
const OPEN: usize = 256;

struct Level<T> {
    /// None while it is far above.
    folder: Option<OwnedFd>,
    inode: u64,
    own: T,
}

/// The folders, each with what there is to know of it. There is always a last one, until the root is
/// left.
pub(super) struct Folders<T>(Vec<Level<T>>);

impl<T> Folders<T> {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn depth(&self) -> usize {
        self.0.len()
    }

    pub(super) fn enter(&mut self, folder: OwnedFd, own: T) -> rustix::io::Result<()> {
        let inode = Place::Open(folder.as_fd()).stat()?.stx_ino;
        if let Some(far) = self.0.len().checked_sub(OPEN) {
            self.0[far].folder = None;
        }
        self.0.push(Level { folder: Some(folder), inode, own });
        Ok(())
    }

    /// Where one is.
    pub(super) fn last(&mut self) -> Option<(BorrowedFd<'_>, &mut T)> {
        let Level { folder, own, .. } = self.0.last_mut()?;
        Some((folder.as_ref()?.as_fd(), own))
    }

    /// Goes one up, and gives back what is left.
    pub(super) fn leave(&mut self) -> rustix::io::Result<Option<(OwnedFd, T)>> {
        let Some(Level { folder: Some(folder), own, .. }) = self.0.pop() else { return Ok(None) };
        if let Some(above) = self.0.last_mut().filter(|above| above.folder.is_none()) {
            let opened = openat(&folder, "..", FOLDER, Mode::empty())?;
            // Nobody else should be at work here; if it was moved, it is not the same way back.
            if Place::Open(opened.as_fd()).stat()?.stx_ino != above.inode {
                return Err(Errno::STALE);
            }
            above.folder = Some(opened);
        }
        Ok(Some((folder, own)))
    }
}
