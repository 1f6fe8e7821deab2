//! Reads a tree from the disk: every folder's names in the order of their bytes, each folder's content
//! right after it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, SeekFrom, Statx, StatxAttributes, open, openat, readlinkat, seek};
use rustix::io::Errno;

use super::super::entries::{Attributes, Entry, Kind, PATH_MAX, SEGMENTS_MAX, Segment, SegmentsBuilder};
use super::attributes::{Place, reading, unfit};
use super::folders::{FOLDER, Folders};

/// What has become a pipe since it was looked at is not waited for.
const FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// What names and attributes may take that have to be kept in memory, in bytes: those of the folders on the
/// way to where one is, and the first names of files that have more to come. Less than half of what a helper
/// has: whoever puts the tree in place again keeps the folders' attributes, too.
const KEPT_MAX: usize = 160 * 1024 * 1024;
/// What keeping one more costs beside its bytes.
const KEPT_EACH: usize = 64;

/// What is kept in memory.
#[derive(Default)]
struct Kept(usize);

impl Kept {
    fn add(&mut self, length: usize, path: &[u8]) -> io::Result<()> {
        self.0 += length + KEPT_EACH;
        if self.0 > KEPT_MAX {
            return Err(unfit(path, "there are too many names, or attributes of folders, to be kept in mind"));
        }
        Ok(())
    }

    fn drop(&mut self, length: usize) {
        self.0 = self.0.saturating_sub(length + KEPT_EACH);
    }
}

/// What is left to be read of a folder.
struct Names {
    left: std::vec::IntoIter<Vec<u8>>,
    /// How long its own path is.
    length: usize,
    /// What its attributes take.
    attributes: usize,
}

impl Names {
    fn of(folder: &OwnedFd, path: &[u8], attributes: usize, kept: &mut Kept) -> io::Result<Self> {
        let failed = |errno: Errno| reading(path, errno);
        kept.add(attributes, path)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                kept.add(name.len(), path)?;
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(Self { left: names.into_iter(), length: path.len(), attributes })
    }
}

/// Shows every entry of a tree, its root first.
pub(super) fn each(root: &Path, mut visit: impl FnMut(&mut Entry<'_>) -> io::Result<()>) -> io::Result<()> {
    let mut path: Vec<u8> = Vec::new();
    let folder = open(root, FOLDER, Mode::empty()).map_err(|errno| reading(&path, errno))?;
    let device = numbers(&Place::Open(folder.as_fd()).stat().map_err(|errno| reading(&path, errno))?);
    let mut kept = Kept::default();
    let attributes = show(Kind::Directory, Place::Open(folder.as_fd()), &path, &mut visit)?;
    let (names, mut folders) = (Names::of(&folder, &path, attributes, &mut kept)?, Folders::new());
    folders.enter(folder, names).map_err(|errno| reading(&path, errno))?;
    // By inode: the first name, and how many more are to come.
    let mut linked: HashMap<u64, (Vec<u8>, u32)> = HashMap::new();
    while let Some((folder, names)) = folders.last() {
        let Some(name) = names.left.next() else {
            kept.drop(names.attributes);
            folders.leave().map_err(|errno| reading(&path, errno))?;
            continue;
        };
        kept.drop(name.len());
        path.truncate(names.length);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        if path.len() > PATH_MAX {
            return Err(unfit(&path, format!("its path is longer than {} KiB", PATH_MAX / 1024)));
        }
        let failed = |errno: Errno| reading(&path, errno);
        let place = Place::Named(folder, &name);
        let stat = place.stat().map_err(failed)?;
        if numbers(&stat) != device || stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Err(unfit(&path, "something else is mounted there"));
        }
        let kind = kind(&stat).ok_or_else(|| unfit(&path, "it is of an unknown kind"))?;
        if kind != Kind::Directory && stat.stx_nlink > 1 {
            if let Some((first, left)) = linked.get_mut(&stat.stx_ino) {
                let (path, link) = (path.clone(), first.clone());
                *left = left.saturating_sub(1);
                if *left == 0 {
                    kept.drop(first.len());
                    linked.remove(&stat.stx_ino);
                }
                // What programs expect of one, and the first format's digest has.
                let (mode, uid, gid) = (u32::from(stat.stx_mode) & 0o7777, stat.stx_uid.into(), stat.stx_gid.into());
                let attributes = Attributes { mode, uid, gid, ..Attributes::default() };
                let content = &mut io::empty();
                let (size, segments) = (0, Vec::new());
                visit(&mut Entry { kind: Kind::HardLink, path, link, attributes, size, segments, content })?;
                continue;
            }
            kept.add(path.len(), &path)?;
            linked.insert(stat.stx_ino, (path.clone(), stat.stx_nlink - 1));
        }
        match kind {
            Kind::Directory => {
                let inner = openat(folder, name.as_slice(), FOLDER, Mode::empty()).map_err(failed)?;
                let attributes = show(kind, Place::Open(inner.as_fd()), &path, &mut visit)?;
                let names = Names::of(&inner, &path, attributes, &mut kept)?;
                folders.enter(inner, names).map_err(failed)?;
            }
            Kind::File => {
                let file = openat(folder, name.as_slice(), FILE, Mode::empty());
                show_file(&File::from(file.map_err(failed)?), &path, &mut visit)?;
            }
            Kind::Symlink => {
                let link = readlinkat(folder, name.as_slice(), Vec::new()).map_err(failed)?.into_bytes();
                let attributes = place.attributes(kind, &path)?;
                let (path, content, segments) = (path.clone(), &mut io::empty(), Vec::new());
                visit(&mut Entry { kind, path, link, attributes, size: 0, segments, content })?;
            }
            _ => {
                show(kind, place, &path, &mut visit)?;
            }
        }
    }
    Ok(())
}

/// The file system that something is on.
fn numbers(stat: &Statx) -> (u32, u32) {
    (stat.stx_dev_major, stat.stx_dev_minor)
}

fn kind(stat: &Statx) -> Option<Kind> {
    Some(match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => Kind::Directory,
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharacterDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Unknown => return None,
    })
}

/// An entry without content. How much its extended attributes take.
fn show(
    kind: Kind,
    place: Place<'_>,
    path: &[u8],
    visit: &mut impl FnMut(&mut Entry<'_>) -> io::Result<()>,
) -> io::Result<usize> {
    let (path, link, attributes) = (path.to_vec(), Vec::new(), place.attributes(kind, path)?);
    let length = attributes.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    visit(&mut Entry { kind, path, link, attributes, size: 0, segments: Vec::new(), content: &mut io::empty() })?;
    Ok(length)
}

fn show_file(file: &File, path: &[u8], visit: &mut impl FnMut(&mut Entry<'_>) -> io::Result<()>) -> io::Result<()> {
    let place = Place::Open(file.as_fd());
    let stat = place.stat().map_err(|errno| reading(path, errno))?;
    if kind(&stat) != Some(Kind::File) {
        return Err(reading(path, Errno::STALE));
    }
    let (kind, attributes) = (Kind::File, place.attributes(Kind::File, path)?);
    let segments = segments(file, stat.stx_size).map_err(|errno| reading(path, errno))?;
    let segments = segments.ok_or_else(|| unfit(path, format!("it has more than {SEGMENTS_MAX} holes")))?;
    let mut content = Pieces { file, left: segments.clone().into_iter(), current: None, path };
    let (path, link) = (path.to_vec(), Vec::new());
    visit(&mut Entry { kind, path, link, attributes, size: stat.stx_size, segments, content: &mut content })
}

/// Where a file's content is (lseek(2), `SEEK_DATA`); none where there are too many holes in it.
fn segments(file: &File, size: u64) -> rustix::io::Result<Option<Vec<Segment>>> {
    let mut builder = SegmentsBuilder::default();
    let (mut at, mut fits) = (0, true);
    while at < size && fits {
        let from = match seek(file, SeekFrom::Data(at)) {
            Ok(from) => from.min(size),
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            // A file system that does not tell.
            Err(Errno::INVAL) => {
                fits = builder.push(at, size);
                break;
            }
            Err(errno) => return Err(errno),
        };
        if from >= size {
            break;
        }
        let to = seek(file, SeekFrom::Hole(from))?.min(size);
        fits = builder.push(from, to);
        at = to;
    }
    Ok(fits.then(|| builder.finish()))
}

/// The bytes of a file's segments, one after the other.
struct Pieces<'a> {
    file: &'a File,
    left: std::vec::IntoIter<Segment>,
    current: Option<Segment>,
    path: &'a [u8],
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let current = self.current.take().filter(|segment| segment.length > 0);
        let Some(Segment { offset, length }) = current.or_else(|| self.left.next()) else { return Ok(0) };
        let want = usize::try_from(length).map_or(into.len(), |length| length.min(into.len()));
        let read = self.file.read_at(&mut into[..want], offset);
        let read = read.map_err(|error| reading(self.path, Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        self.current = Some(Segment { offset: offset + read as u64, length: length - read as u64 });
        Ok(read)
    }
}
