//! How much of the disk a folder takes, when those who write into it may be hostile: no name in it is
//! trusted, no link followed, and the work is bounded.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::dir::{Dir, OwningIter};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::sys::statvfs::statvfs;

use crate::instance::storage::{Limits, MIB, Taken};

/// What a file or folder counts at least, in bytes: an empty one takes an inode all the same. A block
/// of the usual file systems.
const LEAST: u64 = 4096;
/// `st_blocks` counts these (stat(3type)).
pub(super) const BLOCK: u64 = 512;
/// Folders inside each other; each takes two file descriptors while it is looked at.
const DEPTH: usize = 64;
/// Entries that are counted in any case.
const ENTRIES: u64 = 10_000;

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// All of it, in bytes.
    pub total: u64,
    /// What may still be taken of it, in bytes.
    pub free: u64,
    /// All of its inodes; 0 where it makes them as they are needed.
    pub files_total: u64,
    /// Inodes that are free.
    pub files_free: u64,
}

impl Disk {
    /// The file system that a path is on.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let stat = statvfs(path).ok()?;
        let size = stat.fragment_size();
        Some(Self {
            total: stat.blocks() * size,
            free: stat.blocks_available() * size,
            files_total: stat.files(),
            files_free: stat.files_available(),
        })
    }
}

/// A folder that is being read, and a second handle for what is in it.
struct Level {
    folder: OwnedFd,
    entries: OwningIter,
}

impl Level {
    fn new(folder: OwnedFd) -> io::Result<Self> {
        let entries = Dir::from_fd(folder.try_clone()?)?.into_iter();
        Ok(Self { folder, entries })
    }
}

/// What the files in a folder take: bytes as the file system has allocated them, and inodes. It stays on
/// one file system, counts a file of several names once, and each at least as a block. Past twice a limit
/// it may stop; more names than twice as many files as there may be, and folders too deep inside each
/// other, count as more than the limit.
///
/// # Errors
/// What the system says, such as that this process may not look.
pub(super) fn taken(folder: &Path, limits: Limits) -> io::Result<Taken> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = open(folder, flags, Mode::empty())?;
    let device = fstat(&root)?.st_dev;
    let files = if limits.files > 0 { u64::from(limits.files) } else { u64::from(limits.mib) * MIB / LEAST };
    let most = (2 * files).max(ENTRIES);
    let (mut taken, mut entries, mut linked) = (Taken::default(), 0_u64, HashSet::new());
    let mut levels = vec![Level::new(root)?];
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { break };
        let Some(entry) = level.entries.next() else {
            levels.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        // Its owner may remove it, or put something else in its place, at any moment.
        let Some(stat) = vanishing(fstatat(level.folder.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW))? else {
            continue;
        };
        if stat.st_dev != device {
            continue;
        }
        let is_folder = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
        // Another name of a file takes next to nothing of the disk, and as much of this work as a file.
        entries += 1;
        if is_folder || stat.st_nlink == 1 || linked.insert(stat.st_ino) {
            taken.bytes = taken.bytes.saturating_add(counts(&stat));
            taken.files += 1;
        }
        if entries >= most {
            taken = too_much(taken, limits);
            break;
        }
        if is_folder {
            if depth >= DEPTH {
                taken = too_much(taken, limits);
                continue;
            }
            let opened = vanishing(openat(level.folder.as_fd(), name, flags, Mode::empty()))?;
            if let Some(inner) = opened {
                levels.push(Level::new(inner)?);
            }
        }
    }
    Ok(taken)
}

/// More than may be, by the limit that there is.
fn too_much(taken: Taken, Limits { mib, files }: Limits) -> Taken {
    if files > 0 {
        return Taken { files: taken.files.max(u64::from(files) + 1), ..taken };
    }
    Taken { bytes: taken.bytes.max(u64::from(mib) * MIB + 1), ..taken }
}

fn counts(stat: &FileStat) -> u64 {
    (u64::try_from(stat.st_blocks).unwrap_or_default() * BLOCK).max(LEAST)
}

/// None where something is gone, or is no folder any more.
fn vanishing<T>(outcome: nix::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const KIB: u64 = 1024;
    const NO_LIMIT: Limits = Limits { mib: 1 << 20, files: 1 << 20 };

    fn bytes(folder: &Path) -> u64 {
        taken(folder, NO_LIMIT).unwrap().bytes
    }

    fn write(path: &Path, kib: usize) {
        fs::write(path, vec![b'x'; kib * 1024]).unwrap();
        fs::File::open(path).unwrap().sync_all().unwrap();
    }

    #[test]
    fn it_counts_what_is_allocated_and_each_file_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(bytes(path), 0);
        write(&path.join("a"), 100);
        let one = bytes(path);
        assert!((100 * KIB..120 * KIB).contains(&one), "{one}");
        fs::hard_link(path.join("a"), path.join("b")).unwrap();
        assert_eq!(bytes(path), one, "the same file");
        let sparse = fs::File::create(path.join("sparse")).unwrap();
        sparse.set_len(1 << 32).unwrap();
        assert_eq!(bytes(path), one + LEAST, "nothing is in it");
        fs::create_dir_all(path.join("one/two")).unwrap();
        write(&path.join("one/two/c"), 50);
        let more = bytes(path);
        assert!((one + 50 * KIB..one + 80 * KIB).contains(&more), "{more}");
        assert_eq!(
            taken(path, NO_LIMIT).unwrap().files,
            5,
            "a file of two names, one with a hole, two folders, and one in them"
        );
    }

    #[test]
    fn it_follows_no_link() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(&outside.path().join("large"), 1000);
        symlink(outside.path(), folder.path().join("folder")).unwrap();
        symlink(outside.path().join("large"), folder.path().join("file")).unwrap();
        symlink("/", folder.path().join("root")).unwrap();
        symlink("loop", folder.path().join("loop")).unwrap();
        assert_eq!(bytes(folder.path()), 4 * LEAST);
        let link = folder.path().join("folder");
        assert!(taken(&link, NO_LIMIT).is_err(), "nor is the folder itself one");
    }

    #[test]
    fn many_files_without_content_are_not_for_nothing_and_its_own_work_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        for n in 0..12_000 {
            fs::File::create(folder.path().join(n.to_string())).unwrap();
        }
        let found = |mib, files| taken(folder.path(), Limits { mib, files }).unwrap();
        assert_eq!(found(1 << 20, 0), Taken { bytes: 12_000 * LEAST, files: 12_000 });
        assert_eq!(found(0, 12_000), Taken { bytes: 12_000 * LEAST, files: 12_000 });
        let seen_enough = Taken { bytes: ENTRIES * LEAST, files: ENTRIES };
        assert_eq!((found(1, 0), found(0, 100), found(1 << 20, 100)), (seen_enough, seen_enough, seen_enough));
    }

    #[test]
    fn many_names_of_one_file_are_as_much_work_as_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::File::create(folder.path().join("file")).unwrap();
        for n in 0..12_000 {
            fs::hard_link(folder.path().join("file"), folder.path().join(n.to_string())).unwrap();
        }
        let limits = Limits { mib: 1, files: 500 };
        assert_eq!(taken(folder.path(), limits).unwrap(), Taken { bytes: LEAST, files: 501 });
        assert_eq!(taken(folder.path(), NO_LIMIT).unwrap(), Taken { bytes: LEAST, files: 1 });
    }

    #[test]
    fn folders_too_deep_inside_each_other_are_more_than_may_be() {
        let folder = tempfile::tempdir().unwrap();
        let deep = |levels: usize| (0..levels).fold(folder.path().to_owned(), |path, _| path.join("d"));
        fs::create_dir_all(deep(DEPTH - 1)).unwrap();
        let limits = [Limits { mib: 1024, files: 0 }, Limits { mib: 0, files: 1000 }];
        assert!(limits.iter().all(|limits| !limits.exceeded_by(taken(folder.path(), *limits).unwrap())));
        fs::create_dir_all(deep(DEPTH)).unwrap();
        assert!(limits.iter().all(|limits| limits.exceeded_by(taken(folder.path(), *limits).unwrap())));
    }
}
