//! One entry of a tar after the other: read, checked, written.
//!
//! The form is POSIX's pax (IEEE Std 1003.1-2024, pax, "pax Interchange Format"), with the records
//! that GNU tar has for extended attributes and for holes: `tar --xattrs -xpf` unpacks it. Two
//! records are ours: `HAAS.type=socket`, since tar knows no sockets, and `HAAS.flags`, the
//! attributes that `chattr` sets. Older archives have GNU's long names in their place, and are read
//! as well.
//!
//! The tar crate finds and checks the headers. What it makes of pax records is not used, since it
//! ends a record at a newline, and names and attributes hold what they like. A tar without an end
//! is an error here, names can't lead out of the tree, and no entry's head may fill the memory.

mod pax;
mod put;
mod sparse;

use std::cell::Cell;
use std::io::{self, ErrorKind, Read};

use tar::{EntryType, Header};

pub(super) use put::{finish, put};
pub(super) use sparse::{SEGMENTS_MAX, Segment, SegmentsBuilder};

const BLOCK: usize = 512;
/// How much one entry's head may take: its names, and what else describes it.
pub(super) const HEAD_MAX: u64 = 1024 * 1024;
/// The longest path of an entry, in bytes. The kernel's own bound, `PATH_MAX`, is for what one call is
/// given, and not for where a file may be.
pub(super) const PATH_MAX: usize = 64 * 1024;
/// The longest name in a folder (limits.h).
const NAME_MAX: usize = 255;

/// What an entry is. The numbers are part of the digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory = 1,
    File = 2,
    Symlink = 3,
    /// One more name of an entry before it that is no folder.
    HardLink = 4,
    Fifo = 5,
    Socket = 6,
    CharacterDevice = 7,
    BlockDevice = 8,
}

impl Kind {
    pub(super) fn is_device(self) -> bool {
        matches!(self, Self::CharacterDevice | Self::BlockDevice)
    }
}

/// A moment as inodes have it: seconds since 1970, before it a negative number of them, and the
/// nanoseconds that follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// What an inode has beside its content. A hard link's are those of the entry that it leads to, and
/// are not said again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// Permissions, setuid, setgid and sticky bits.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: Time,
    /// A device's major and minor number.
    pub device: (u32, u32),
    /// Extended attributes, by name; access control lists are some (acl(5), xattr(7)).
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Those of the attributes in `ioctl_iflags(2)` that are kept.
    pub flags: u32,
}

/// One entry. Paths have neither `.` nor `..` in them, and no `/` at an end; the root's is empty.
pub(super) struct Entry<'a> {
    pub kind: Kind,
    pub path: Vec<u8>,
    /// Of a symbolic link its target as it is; of a hard link the path of another entry.
    pub link: Vec<u8>,
    pub attributes: Attributes,
    /// How long a file is, with its holes.
    pub size: u64,
    /// Where a file's content is; between them are holes.
    pub segments: Vec<Segment>,
    /// The segments' bytes, one after the other.
    pub content: &'a mut dyn Read,
}

impl Entry<'_> {
    /// Shows the content piece by piece, each with its place in the file.
    pub(super) fn each_piece(&mut self, mut show: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = vec![0; super::channel::PIECE];
        for segment in &self.segments {
            let (mut at, end) = (segment.offset, segment.offset + segment.length);
            while at < end {
                let want = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
                let length = match self.content.read(&mut buffer[..want]) {
                    Ok(0) => return Err(cut(&format!("it ends within {}", shown(&self.path)))),
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    other => other?,
                };
                show(at, &buffer[..length])?;
                at += length as u64;
            }
        }
        Ok(())
    }
}

/// A name for people: on one line, whatever is in it, and not too long.
pub(super) fn shown(name: &[u8]) -> String {
    const LONG: usize = 200;
    let text = String::from_utf8_lossy(&name[..name.len().min(LONG)]);
    if name.len() > LONG { format!("{text:?}… ({} bytes)", name.len()) } else { format!("{text:?}") }
}

/// Bytes that make no sense, in words.
pub(super) fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why.into())
}

fn cut(why: &str) -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, why)
}

/// Shows every entry of a whole tar, to its end.
pub(super) fn each(from: &mut dyn Read, mut visit: impl FnMut(&mut Entry<'_>) -> io::Result<()>) -> io::Result<()> {
    let gauge = Gauge { left: Cell::new(HEAD_MAX), ended: Cell::new(false) };
    let mut archive = tar::Archive::new(Gauged { from: &mut *from, gauge: &gauge });
    let mut entries = archive.entries()?.raw(true);
    let mut before = Before::default();
    gauge.left.set(HEAD_MAX);
    while let Some(raw) = entries.next().transpose().map_err(|error| gauge.explain(error))? {
        let mut raw = raw;
        if before.takes(&mut raw).map_err(|error| gauge.explain(error))? {
            continue;
        }
        gauge.left.set(u64::MAX);
        let mut entry = describe(&mut raw, std::mem::take(&mut before))?;
        visit(&mut entry)?;
        // What nobody asked for.
        io::copy(&mut entry.content, &mut io::sink())?;
        gauge.left.set(HEAD_MAX);
    }
    if gauge.ended.get() || before != Before::default() {
        return Err(cut("it ends without the end of a tar"));
    }
    // One block of zeros has been read, a second one belongs there, and more may follow. To the
    // very end: what lies under this reader checks itself there.
    let (mut rest, mut buffer) = (0, [0; 4096]);
    loop {
        match from.read(&mut buffer) {
            Ok(0) if rest < BLOCK => return Err(cut("it ends in the middle of the end of a tar")),
            Ok(0) => return Ok(()),
            Ok(length) if buffer[..length].iter().any(|byte| *byte != 0) => {
                return Err(invalid("something follows its end"));
            }
            Ok(length) => rest = rest.saturating_add(length),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What stands before an entry's own header, and says more of it.
#[derive(Default, PartialEq, Eq)]
struct Before {
    records: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Before {
    /// Takes it in, if it is that.
    fn takes<R: Read>(&mut self, raw: &mut tar::Entry<'_, R>) -> io::Result<bool> {
        let field = match raw.header().entry_type() {
            EntryType::XHeader => &mut self.records,
            EntryType::GNULongName => &mut self.path,
            EntryType::GNULongLink => &mut self.link,
            _ => return Ok(false),
        };
        let mut bytes = Vec::new();
        raw.read_to_end(&mut bytes)?;
        if bytes.len() as u64 != raw.size() {
            return Err(cut("it ends in the head of an entry"));
        }
        if field.replace(bytes).is_some() {
            return Err(invalid("two heads of one kind describe the same entry"));
        }
        Ok(true)
    }
}

/// A long name is as a C string has it.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

/// Reads the head of an entry.
fn describe<'a, R: Read>(raw: &'a mut tar::Entry<'_, R>, before: Before) -> io::Result<Entry<'a>> {
    let header = raw.header();
    let mut path = before.path.map_or_else(|| header.path_bytes().into_owned(), text);
    let mut target = before.link.map(text);
    let mut mtime = Time { seconds: i64::try_from(header.mtime()?).unwrap_or(i64::MAX), nanoseconds: 0 };
    let (mut uid, mut gid) = (header.uid()?, header.gid()?);
    let (mut xattrs, mut flags, mut is_socket, mut sparse) = (Vec::new(), 0, false, sparse::Described::default());
    for record in pax::records(before.records.as_deref().unwrap_or_default()) {
        let (key, value) = record?;
        match key {
            b"path" => path = value.to_vec(),
            b"linkpath" => target = Some(value.to_vec()),
            b"mtime" => mtime = pax::time(value)?,
            b"uid" => uid = pax::number(value)?,
            b"gid" => gid = pax::number(value)?,
            b"size" if pax::number(value)? != raw.size() => {
                return Err(invalid(format!("{} has two sizes", shown(&path))));
            }
            b"HAAS.type" if value == b"socket" => is_socket = true,
            b"HAAS.flags" => flags = pax::flags(value)?,
            _ if key.starts_with(b"HAAS.") => {
                return Err(invalid(format!("{} has {}, which this version does not know", shown(&path), shown(key))));
            }
            _ => {
                if let Some(name) = key.strip_prefix(pax::XATTR) {
                    xattrs.push((pax::unescaped(name), value.to_vec()));
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    sparse.record(name, value)?;
                }
            }
        }
    }
    path = sparse.name.take().unwrap_or(path);
    xattrs.sort();
    if xattrs.windows(2).any(|two| two[0].0 == two[1].0) {
        return Err(invalid(format!("{} has two extended attributes of one name", shown(&path))));
    }
    let kind = match header.entry_type() {
        EntryType::Directory => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Fifo if is_socket => Kind::Socket,
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char => Kind::CharacterDevice,
        EntryType::Block => Kind::BlockDevice,
        other => {
            let kind = char::from(other.as_byte());
            return Err(invalid(format!("{} is of an unknown kind, {kind:?}", shown(&path))));
        }
    };
    let target =
        target.unwrap_or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default());
    let link = match kind {
        Kind::Symlink | Kind::HardLink if target.is_empty() || target.contains(&0) => {
            return Err(invalid(format!("{} leads nowhere", shown(&path))));
        }
        Kind::Symlink => target,
        Kind::HardLink => plain(&target)?,
        _ => Vec::new(),
    };
    if kind != Kind::File && raw.size() > 0 {
        return Err(invalid(format!("{} is no file and has contents", shown(&path))));
    }
    let device = if kind.is_device() { numbers(header)? } else { (0, 0) };
    // A symbolic link's means nothing, and can't be set (symlink(7)).
    let mode = if kind == Kind::Symlink { 0o777 } else { header.mode()? & 0o7777 };
    let attributes = Attributes { mode, uid, gid, mtime, device, xattrs, flags };
    let (path, stored) = (plain(&path)?, raw.size());
    let (size, segments) = sparse.segments(raw, stored).map_err(|error| {
        let why = format!("{}: {error}", shown(&path));
        io::Error::new(error.kind(), why)
    })?;
    Ok(Entry { kind, path, link, attributes, size, segments, content: raw })
}

fn numbers(header: &Header) -> io::Result<(u32, u32)> {
    Ok((header.device_major()?.unwrap_or_default(), header.device_minor()?.unwrap_or_default()))
}

/// A path without what says nothing, if it stays where it is.
fn plain(path: &[u8]) -> io::Result<Vec<u8>> {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if path.starts_with(b"/") || path.contains(&0) || parts.contains(&&b".."[..]) {
        return Err(invalid(format!("{} leads out of it", shown(path))));
    }
    if path.len() > PATH_MAX + 64 || parts.iter().any(|part| part.len() > NAME_MAX) {
        return Err(invalid(format!("{} is longer than a path, or one of its names than a name, may be", shown(path))));
    }
    Ok(parts.join(&b'/'))
}

/// How far a reader is.
struct Gauge {
    /// How much more may be read.
    left: Cell<u64>,
    ended: Cell<bool>,
}

impl Gauge {
    /// The tar crate has several words for an end that comes too early.
    fn explain(&self, error: io::Error) -> io::Error {
        if self.ended.get() { cut("it ends between two entries, or in the head of one") } else { error }
    }
}

struct Gauged<'a> {
    from: &'a mut dyn Read,
    gauge: &'a Gauge,
}

impl Read for Gauged<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.gauge.left.get();
        if left == 0 {
            return Err(invalid(format!("an entry's head is longer than {} KiB", HEAD_MAX / 1024)));
        }
        let most = usize::try_from(left).map_or(into.len(), |left| left.min(into.len()));
        let length = self.from.read(&mut into[..most])?;
        self.gauge.left.set(left - length as u64);
        if length == 0 && most > 0 {
            self.gauge.ended.set(true);
        }
        Ok(length)
    }
}
