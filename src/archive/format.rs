//! An archive, inside out: zstd, in it a tar, in it the header, the tree and its checksum.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::channel::PIECE;
use super::digest::{Checksum, Tally};
use super::entries::{self, Attributes, Entry, Kind, Segment, Time, each, invalid, shown};
use super::files::{Hashed, Unfinished, failed};
use super::tree::KEPT;
use super::{Archive, ArchiveError, FORMAT, FORMATS, Header, STREAM, TENANT, file_name, told};
use crate::instance::storage::{Limits, Taken};

const HEADER: &str = "haas.json";
/// What the root of every tree is called.
pub(super) const ROOT: &str = "data";
const CHECKSUM: &str = "haas-checksum.json";
/// Both descriptions are short.
const JSON_MAX: u64 = 64 * 1024;
/// What a file takes at least, and takes more of: a block of the usual file systems.
const BLOCK: u64 = 4096;
/// zstd's own choice between speed and size.
const LEVEL: i32 = 3;
/// The memory that reading may take, as a power of two: what levels up to 19 need.
const WINDOW_LOG_MAX: u32 = 23;

/// Who has made an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Maker {
    /// This installation, of what a volume of its own held.
    Own,
    /// Anybody: there is nothing in it but what a tenant could have made in its volume.
    Anybody,
}

/// A tree on its way from one tar to another.
struct Tree<'a> {
    maker: Maker,
    format: u32,
    /// What its root is called where it comes from; the first entry tells.
    from: Option<Vec<u8>>,
    to: &'a mut dyn Write,
    tally: Tally,
    /// What it would take of a disk.
    taken: Taken,
    /// How much of it that may be.
    limits: Limits,
    /// The folder that the entry before was in, or was.
    folder: Vec<u8>,
    /// The entry before.
    last: Vec<u8>,
}

impl<'a> Tree<'a> {
    fn new(format: u32, maker: Maker, to: &'a mut dyn Write) -> Self {
        let (folder, last) = (Vec::new(), Vec::new());
        let (taken, limits) = (Taken::default(), Limits::NONE);
        Self { maker, format, from: None, to, tally: Tally::new(format), taken, limits, folder, last }
    }

    fn pass(&mut self, entry: &mut Entry<'_>) -> io::Result<()> {
        let first = self.from.is_none();
        if first && (entry.kind != Kind::Directory || entry.path.contains(&b'/')) {
            return Err(invalid(format!("it begins with {}, no folder", shown(&entry.path))));
        }
        let from = self.from.get_or_insert_with(|| entry.path.clone());
        entry.path = below(from, &entry.path)?;
        if entry.kind == Kind::HardLink {
            entry.link = below(from, &entry.link)?;
        }
        if !first {
            self.check_place(entry)?;
            self.weigh(entry)?;
        }
        if self.maker == Maker::Anybody {
            check_tenants_own(entry)?;
        }
        if self.format == 1 && entry.segments.iter().map(|segment| segment.length).sum::<u64>() != entry.size {
            return Err(invalid(format!("{} has holes, which its format does not know", shown(&entry.path))));
        }
        let mut content = self.tally.content(entry)?;
        entries::put(entry, ROOT, self.to, |at, piece| content.show(at, piece))?;
        self.tally.add(entry, content);
        Ok(())
    }

    /// Before any of its content is read: as a look at the disk counts it, but for what the file system
    /// itself adds.
    fn weigh(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        // Another name of something takes nothing.
        if entry.kind == Kind::HardLink {
            return Ok(());
        }
        let blocks = |segment: &Segment| {
            let end = segment.offset.saturating_add(segment.length).div_ceil(BLOCK);
            end.saturating_sub(segment.offset / BLOCK).saturating_mul(BLOCK)
        };
        let bytes = entry.segments.iter().map(blocks).fold(0, u64::saturating_add);
        self.taken.bytes = self.taken.bytes.saturating_add(bytes.max(BLOCK));
        self.taken.files += 1;
        if self.limits.exceeded_by(self.taken) {
            return Err(io::Error::other(ArchiveError::Exceeds(self.limits.told(self.taken))));
        }
        Ok(())
    }

    /// Each entry is in a folder that stands before it, and comes after what it comes after in the
    /// folder: so each is there once, and no name leads through anything but folders of the tree's own.
    fn check_place(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let (parent, _) = parent_and_name(&entry.path);
        let open = self.folder.strip_prefix(parent);
        if !open.is_some_and(|rest| parent.is_empty() || rest.is_empty() || rest.starts_with(b"/")) {
            return Err(invalid(format!("{} is in no folder before it", shown(&entry.path))));
        }
        if !order(&self.last).lt(order(&entry.path)) && self.format > 1 {
            return Err(invalid(format!("{} stands out of order", shown(&entry.path))));
        }
        self.folder = if entry.kind == Kind::Directory { entry.path.clone() } else { parent.to_vec() };
        self.last.clone_from(&entry.path);
        Ok(())
    }

    fn end(self) -> io::Result<(Checksum, Taken)> {
        if self.from.is_none() {
            return Err(invalid("there is no folder in it"));
        }
        Ok((self.tally.checksum(), self.taken))
    }
}

/// A folder's entries come right after it, in the order of their names' bytes.
fn order(path: &[u8]) -> impl Iterator<Item = u8> {
    path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte })
}

/// The folder that a path is in, and its name there. The root's are empty.
pub(super) fn parent_and_name(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// What is no tenant's work is refused: it has one uid, no capabilities, and its volume alone.
fn check_tenants_own(entry: &Entry<'_>) -> io::Result<()> {
    let Entry { kind, path, attributes: Attributes { uid, gid, xattrs, flags, device, .. }, .. } = entry;
    let no = |what: String| Err(invalid(format!("{} {what}, which no tenant could have made", shown(path))));
    // One with both numbers zero leads nowhere, and anybody may make it (mknod(2), Linux 5.8).
    if *kind == Kind::BlockDevice || *kind == Kind::CharacterDevice && *device != (0, 0) {
        return no("is a device".to_owned());
    }
    if flags & !KEPT != 0 {
        return no(format!("has the flags {flags:x}"));
    }
    // Another name of something says nothing of it.
    if *kind != Kind::HardLink && (*uid, *gid) != (TENANT, TENANT) {
        return no(format!("belongs to {uid}:{gid}"));
    }
    let own = |name: &[u8]| {
        name.starts_with(b"user.") || name == b"system.posix_acl_access" || name == b"system.posix_acl_default"
    };
    match xattrs.iter().find(|(name, _)| !own(name)) {
        Some((name, _)) => no(format!("has the extended attribute {}", shown(name))),
        None => Ok(()),
    }
}

/// A path as seen from the root.
fn below(root: &[u8], path: &[u8]) -> io::Result<Vec<u8>> {
    let rest = match path.strip_prefix(root) {
        Some(rest) if root.is_empty() || rest.is_empty() => Some(rest),
        Some(rest) => rest.strip_prefix(b"/"),
        None => None,
    };
    let outside = || invalid(format!("{} lies outside its root", shown(path)));
    rest.map(<[u8]>::to_vec).ok_or_else(outside)
}

/// The digest of a tree that comes as a tar.
pub(super) fn digest(from: &mut dyn Read) -> Result<String, ArchiveError> {
    let mut nowhere = io::sink();
    let mut tree = Tree::new(FORMAT, Maker::Own, &mut nowhere);
    let read = each(from, |entry| tree.pass(entry));
    read.and_then(|()| tree.end()).map(|(checksum, _)| checksum.digest).map_err(|error| told(error, STREAM))
}

/// Writes the tree that comes as a tar into an archive beside `to`, and reads it back.
pub(super) fn write(to: &Path, header: &Header, from: &mut dyn Read) -> Result<(Unfinished, Archive), ArchiveError> {
    let unfinished = Unfinished::beside(to)?;
    let written = compress(&unfinished, header, from).map_err(|error| told(error, STREAM));
    let (digest, (sha256, bytes)) = written?;
    unfinished.sync()?;
    let archive = Archive { file: file_name(to)?, sha256, bytes, digest, made_at: header.made_at, format: FORMAT };
    if verify(unfinished.path(), &archive)?.header != *header {
        return Err(ArchiveError::Corrupt { file: archive.file, why: format!("its {HEADER} is another's") });
    }
    Ok((unfinished, archive))
}

fn compress(unfinished: &Unfinished, header: &Header, from: &mut dyn Read) -> io::Result<(String, (String, u64))> {
    let mut encoder = zstd::Encoder::new(unfinished.hashed(), LEVEL)?;
    encoder.include_checksum(true)?;
    put_json(HEADER, header, header, &mut encoder)?;
    let mut tree = Tree::new(FORMAT, Maker::Own, &mut encoder);
    each(from, |entry| tree.pass(entry))?;
    let (checksum, _) = tree.end()?;
    put_json(CHECKSUM, &checksum, header, &mut encoder)?;
    entries::finish(&mut encoder)?;
    Ok((checksum.digest, encoder.finish()?.finish()))
}

/// What a whole archive turns out to be.
pub(super) struct Inspected {
    pub header: Header,
    pub archive: Archive,
    /// What its data would take of a disk.
    pub taken: Taken,
}

/// Reads a whole archive, and tells what it is; no further than to where its data is more than these
/// limits. Messages call it `name`.
pub(super) fn inspect(path: &Path, name: &str, maker: Maker, limits: Limits) -> Result<Inspected, ArchiveError> {
    read(path, name, maker, limits, &mut io::sink())
}

/// Reads a whole archive, which is to be this one.
pub(super) fn verify(path: &Path, archive: &Archive) -> Result<Inspected, ArchiveError> {
    check_length(path, archive)?;
    let found = inspect(path, &archive.file, Maker::Own, Limits::NONE)?;
    check(&found.archive, archive)?;
    Ok(found)
}

/// The tree of this archive as a tar. Its end is not written unless all of it was right.
pub(super) fn unwrap(path: &Path, archive: &Archive, to: &mut dyn Write) -> Result<(), ArchiveError> {
    check_length(path, archive)?;
    let found = read(path, &archive.file, Maker::Own, Limits::NONE, to)?;
    check(&found.archive, archive)?;
    entries::finish(to).map_err(|error| told(error, &archive.file))
}

/// Reads the first entry.
pub(super) fn header(path: &Path) -> Result<Header, ArchiveError> {
    let name = path.display().to_string();
    let mut header = None;
    let read = open(path).and_then(|mut decoder| {
        each(&mut decoder, |entry| {
            header = Some(parse_header(entry)?);
            // The rest is not asked for.
            Err(invalid("seen enough"))
        })
    });
    match (header, read) {
        (Some(header), _) => Ok(header),
        (None, Err(error)) => Err(told(error, &name)),
        (None, Ok(())) => Err(told(invalid("it is empty"), &name)),
    }
}

fn read(path: &Path, name: &str, maker: Maker, limits: Limits, to: &mut dyn Write) -> Result<Inspected, ArchiveError> {
    let mut pass = || -> io::Result<_> {
        let mut decoder = open(path)?;
        let (mut header, mut checksum) = (None::<Header>, None);
        let mut tree = Tree { limits, ..Tree::new(FORMAT, maker, to) };
        each(&mut decoder, |entry| {
            if header.is_none() {
                let own = parse_header(entry)?;
                (tree.format, tree.tally) = (own.format, Tally::new(own.format));
                header = Some(own);
            } else if checksum.is_some() {
                return Err(invalid("it goes on after its checksum"));
            } else if entry.path == CHECKSUM.as_bytes() {
                checksum = Some(parse_json::<Checksum>(entry)?);
            } else {
                tree.pass(entry)?;
            }
            Ok(())
        })?;
        let header = header.ok_or_else(|| invalid("it is empty"))?;
        let checksum = checksum.ok_or_else(|| invalid(format!("it does not end with {CHECKSUM}")))?;
        let (found, taken) = tree.end()?;
        if found != checksum {
            return Err(invalid(format!("the data in it is not what its {CHECKSUM} says")));
        }
        let (sha256, bytes) = decoder.finish().into_inner().finish();
        let (made_at, format, digest) = (header.made_at, header.format, found.digest);
        let archive = Archive { file: name.to_owned(), sha256, bytes, digest, made_at, format };
        Ok(Inspected { header, archive, taken })
    };
    pass().map_err(|error| told(error, name))
}

fn open(path: &Path) -> io::Result<zstd::Decoder<'static, BufReader<Hashed<File>>>> {
    let doing = format!("reading {}", path.display());
    let file = File::open(path).map_err(failed("opening", path)).map_err(io::Error::other)?;
    let mut decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(PIECE, Hashed::new(file, doing)))?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    Ok(decoder)
}

/// Looked at first: it says more than what follows from it.
fn check_length(path: &Path, archive: &Archive) -> Result<(), ArchiveError> {
    let length = std::fs::metadata(path).map_err(failed("reading", path))?.len();
    let (file, why) = (archive.file.clone(), format!("it has {length} bytes, and should have {}", archive.bytes));
    match length.cmp(&archive.bytes) {
        std::cmp::Ordering::Less => Err(ArchiveError::Truncated { file, why }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(ArchiveError::Corrupt { file, why }),
    }
}

fn check(found: &Archive, archive: &Archive) -> Result<(), ArchiveError> {
    let which = match (found.sha256 == archive.sha256, found.digest == archive.digest) {
        (true, true) => return Ok(()),
        (false, _) => "SHA-256",
        (true, false) => "digest",
    };
    let why = format!("it has another {which} than it had when it was written");
    Err(ArchiveError::Corrupt { file: archive.file.clone(), why })
}

fn put_json(path: &str, value: &impl Serialize, header: &Header, to: &mut dyn Write) -> io::Result<()> {
    let text = serde_json::to_vec(value)?;
    let mut entry = Entry {
        kind: Kind::File,
        path: path.as_bytes().to_vec(),
        link: Vec::new(),
        attributes: Attributes {
            mode: 0o600,
            mtime: Time { seconds: header.made_at.timestamp(), nanoseconds: 0 },
            ..Attributes::default()
        },
        size: text.len() as u64,
        segments: vec![Segment { offset: 0, length: text.len() as u64 }],
        content: &mut text.as_slice(),
    };
    entries::put(&mut entry, "", to, |_, _| {})
}

fn parse_json<T: DeserializeOwned>(entry: &mut Entry<'_>) -> io::Result<T> {
    let name = String::from_utf8_lossy(&entry.path).into_owned();
    if entry.kind != Kind::File || entry.size > JSON_MAX {
        return Err(invalid(format!("its {name} is no file, or longer than {} KiB", JSON_MAX / 1024)));
    }
    let mut text = Vec::new();
    entry.each_piece(|_, piece| {
        text.extend_from_slice(piece);
        Ok(())
    })?;
    serde_json::from_slice(&text).map_err(|error| invalid(format!("its {name} makes no sense: {error}")))
}

fn parse_header(entry: &mut Entry<'_>) -> io::Result<Header> {
    if entry.path != HEADER.as_bytes() {
        return Err(invalid(format!("it does not begin with {HEADER}")));
    }
    // The format first: the header of another may have other fields.
    let value: serde_json::Value = parse_json(entry)?;
    if !FORMATS.iter().any(|known| value["format"] == *known) {
        let known = FORMATS.map(|format| format.to_string()).join(" and ");
        return Err(invalid(format!("its format is {}, and this version reads {known}", value["format"])));
    }
    serde_json::from_value(value).map_err(|error| invalid(format!("its {HEADER} makes no sense: {error}")))
}
