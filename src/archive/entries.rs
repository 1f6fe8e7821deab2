//! One entry of a tar after the other: read, checked, written.
//!
//! Reading is the tar crate's, with what it leaves to its caller: a tar without an end is an error
//! here, names can't lead out of the tree, and no entry's head may fill the memory. Writing is
//! done here, since that crate tidies up the targets of links, and a link is to lead where it led.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};

use tar::{EntryType, Header};

use super::channel::PIECE;

const BLOCK: usize = 512;
/// How much one entry's head may take: its names, and what else describes it.
const HEAD_MAX: u64 = 1024 * 1024;

/// What an entry is. The numbers are part of the digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory = 1,
    File = 2,
    Symlink = 3,
    HardLink = 4,
}

/// One entry. Paths have neither `.` nor `..` in them, and no `/` at an end; the root's is empty.
pub(super) struct Entry<'a> {
    pub kind: Kind,
    pub path: Vec<u8>,
    /// Of a symbolic link its target as it is; of a hard link the path of another entry.
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub size: u64,
    pub content: &'a mut dyn Read,
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
    let mut entries = archive.entries()?;
    loop {
        gauge.left.set(HEAD_MAX);
        let next = entries.next().transpose();
        gauge.left.set(u64::MAX);
        let next = next.map_err(|error| gauge.explain(error))?;
        let Some(mut raw) = next else { break };
        let Some(mut entry) = describe(&mut raw)? else { continue };
        visit(&mut entry)?;
    }
    if gauge.ended.get() {
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

/// Reads the head of an entry. None for what is left out.
fn describe<'a, R: Read>(raw: &'a mut tar::Entry<'_, R>) -> io::Result<Option<Entry<'a>>> {
    let path = raw.path_bytes().into_owned();
    let shown = String::from_utf8_lossy(&path).into_owned();
    // The tar crate passes over a record that it can't read, and knows nothing of sparse files in
    // them: the entry would be taken for another than it is.
    for record in raw.pax_extensions()?.into_iter().flatten() {
        if record?.key_bytes().starts_with(b"GNU.sparse.") {
            return Err(invalid(format!("{shown:?} is of an unknown kind, a sparse file")));
        }
    }
    let kind = match raw.header().entry_type() {
        EntryType::Directory => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Fifo | EntryType::Char | EntryType::Block => return Ok(None),
        other => return Err(invalid(format!("{shown:?} is of an unknown kind, {:?}", char::from(other.as_byte())))),
    };
    let target = raw.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
    let link = match kind {
        Kind::Directory | Kind::File => Vec::new(),
        _ if target.is_empty() || target.contains(&0) => return Err(invalid(format!("{shown:?} leads nowhere"))),
        Kind::Symlink => target,
        Kind::HardLink => plain(&target)?,
    };
    if kind != Kind::File && raw.size() > 0 {
        return Err(invalid(format!("{shown:?} is no file and has contents")));
    }
    let header = raw.header();
    Ok(Some(Entry {
        kind,
        path: plain(&path)?,
        link,
        mode: header.mode()? & 0o7777,
        uid: header.uid()?,
        gid: header.gid()?,
        mtime: header.mtime()?,
        size: raw.size(),
        content: raw,
    }))
}

/// A path without what says nothing, if it stays where it is.
fn plain(path: &[u8]) -> io::Result<Vec<u8>> {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if path.starts_with(b"/") || path.contains(&0) || parts.contains(&&b".."[..]) {
        return Err(invalid(format!("{:?} leads out of it", String::from_utf8_lossy(path))));
    }
    Ok(parts.join(&b'/'))
}

/// Writes an entry below a root of this name, and shows its contents.
pub(super) fn put(
    entry: &mut Entry<'_>,
    root: &str,
    to: &mut dyn Write,
    mut show: impl FnMut(&[u8]),
) -> io::Result<()> {
    let below = |path: &[u8]| match (root, path) {
        ("", _) => path.to_vec(),
        (_, b"") => root.as_bytes().to_vec(),
        _ => [root.as_bytes(), b"/", path].concat(),
    };
    let mut name = below(&entry.path);
    let link = if entry.kind == Kind::HardLink { below(&entry.link) } else { entry.link.clone() };
    let mut header = Header::new_gnu();
    header.set_entry_type(match entry.kind {
        Kind::Directory => EntryType::Directory,
        Kind::File => EntryType::Regular,
        Kind::Symlink => EntryType::Symlink,
        Kind::HardLink => EntryType::Link,
    });
    if entry.kind == Kind::Directory {
        name.push(b'/');
    }
    header.set_mode(entry.mode);
    header.set_uid(entry.uid);
    header.set_gid(entry.gid);
    header.set_mtime(entry.mtime);
    header.set_size(entry.size);
    let old = header.as_old_mut();
    long(&name, &mut old.name, EntryType::GNULongName, to)?;
    long(&link, &mut old.linkname, EntryType::GNULongLink, to)?;
    header.set_cksum();
    to.write_all(header.as_bytes())?;

    let (mut left, mut buffer) = (entry.size, vec![0; PIECE]);
    while left > 0 {
        let want = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        let length = match entry.content.read(&mut buffer[..want]) {
            Ok(0) => return Err(cut(&format!("it ends within {:?}", String::from_utf8_lossy(&entry.path)))),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        };
        show(&buffer[..length]);
        to.write_all(&buffer[..length])?;
        left -= length as u64;
    }
    pad(entry.size, to)
}

/// Two blocks of zeros end a tar.
pub(super) fn finish(to: &mut dyn Write) -> io::Result<()> {
    to.write_all(&[0; 2 * BLOCK])
}

/// A name into its field; one that is too long, into an entry before, as GNU's tar does.
fn long(name: &[u8], field: &mut [u8; 100], kind: EntryType, to: &mut dyn Write) -> io::Result<()> {
    let fits = name.len().min(field.len());
    field[..fits].copy_from_slice(&name[..fits]);
    if name.len() < field.len() {
        return Ok(());
    }
    let size = name.len() as u64 + 1;
    let mut header = Header::new_gnu();
    header.set_path("././@LongLink")?;
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    to.write_all(header.as_bytes())?;
    to.write_all(name)?;
    to.write_all(&[0])?;
    pad(size, to)
}

/// Contents fill whole blocks.
fn pad(size: u64, to: &mut dyn Write) -> io::Result<()> {
    let beyond = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    to.write_all(&[0; BLOCK][..(BLOCK - beyond) % BLOCK])
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
