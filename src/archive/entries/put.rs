//! Writes entries. The tar crate's own way would tidy up the targets of links, and a link is to lead
//! where it led.

use std::io::{self, Write};

use tar::{EntryType, Header};

use super::{Attributes, BLOCK, Entry, HEAD_MAX, Kind, Segment, Time, invalid, pax, shown, sparse};

/// What fits into the field of a time: eleven octal digits.
const TIME_MAX: i64 = 0o777_7777_7777;

/// Writes an entry below a root of this name, and shows its content, each piece with its place.
pub(in super::super) fn put(
    entry: &mut Entry<'_>,
    root: &str,
    to: &mut dyn Write,
    mut show: impl FnMut(u64, &[u8]),
) -> io::Result<()> {
    let below = |path: &[u8]| match (root, path) {
        ("", _) => path.to_vec(),
        (_, b"") => root.as_bytes().to_vec(),
        _ => [root.as_bytes(), b"/", path].concat(),
    };
    let mut name = below(&entry.path);
    if entry.kind == Kind::Directory {
        name.push(b'/');
    }
    let link = if entry.kind == Kind::HardLink { below(&entry.link) } else { entry.link.clone() };
    let whole = [Segment { offset: 0, length: entry.size }];
    let dense = entry.size == 0 && entry.segments.is_empty() || entry.segments == whole;
    let map = if dense { Vec::new() } else { sparse::map(&entry.segments) };
    let content: u64 = entry.segments.iter().map(|segment| segment.length).sum();
    let stored = map.len() as u64 + content;

    let mut records = records(entry.kind, &entry.attributes);
    let mut header = Header::new_ustar();
    header.set_entry_type(match entry.kind {
        Kind::Directory => EntryType::Directory,
        Kind::File => EntryType::Regular,
        Kind::Symlink => EntryType::Symlink,
        Kind::HardLink => EntryType::Link,
        Kind::Fifo | Kind::Socket => EntryType::Fifo,
        Kind::CharacterDevice => EntryType::Char,
        Kind::BlockDevice => EntryType::Block,
    });
    let Attributes { mode, uid, gid, mtime: Time { seconds, .. }, device: (major, minor), .. } = entry.attributes;
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_mtime(u64::try_from(seconds.clamp(0, TIME_MAX)).unwrap_or_default());
    header.set_size(stored);
    if entry.kind.is_device() {
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
    }
    let old = header.as_old_mut();
    if !field(&name, &mut old.name) {
        pax::push(&mut records, b"path", &name);
    }
    if !field(&link, &mut old.linkname) {
        pax::push(&mut records, b"linkpath", &link);
    }
    if !dense {
        for (key, value) in [("major", "1"), ("minor", "0"), ("realsize", &entry.size.to_string())] {
            pax::push(&mut records, format!("GNU.sparse.{key}").as_bytes(), value.as_bytes());
        }
        pax::push(&mut records, b"GNU.sparse.name", &name);
    }
    if !records.is_empty() {
        // With its own header and this one, and what fills their blocks.
        if (records.len() + 4 * BLOCK) as u64 > HEAD_MAX {
            return Err(invalid(format!("{}: its attributes take more than an archive holds", shown(&entry.path))));
        }
        put_records(&records, to)?;
    }
    header.set_cksum();
    to.write_all(header.as_bytes())?;
    to.write_all(&map)?;
    entry.each_piece(|at, piece| {
        show(at, piece);
        to.write_all(piece)
    })?;
    pad(stored, to)
}

/// Two blocks of zeros end a tar.
pub(in super::super) fn finish(to: &mut dyn Write) -> io::Result<()> {
    to.write_all(&[0; 2 * BLOCK])
}

/// What the header has no field for.
fn records(kind: Kind, attributes: &Attributes) -> Vec<u8> {
    let mut records = Vec::new();
    let Attributes { mtime, xattrs, flags, .. } = attributes;
    if mtime.nanoseconds != 0 || !(0..=TIME_MAX).contains(&mtime.seconds) {
        pax::push(&mut records, b"mtime", pax::time_text(*mtime).as_bytes());
    }
    if kind == Kind::Socket {
        pax::push(&mut records, b"HAAS.type", b"socket");
    }
    if *flags != 0 {
        pax::push(&mut records, b"HAAS.flags", format!("{flags:x}").as_bytes());
    }
    for (name, value) in xattrs {
        pax::push(&mut records, &[pax::XATTR, &pax::escaped(name)].concat(), value);
    }
    records
}

fn put_records(records: &[u8], to: &mut dyn Write) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_path("././@PaxHeader")?;
    header.set_entry_type(EntryType::XHeader);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(records.len() as u64);
    header.set_cksum();
    to.write_all(header.as_bytes())?;
    to.write_all(records)?;
    pad(records.len() as u64, to)
}

/// A name into its field, as much as fits; whether all of it does.
fn field(name: &[u8], field: &mut [u8; 100]) -> bool {
    let fits = name.len().min(field.len());
    field[..fits].copy_from_slice(&name[..fits]);
    name.len() <= field.len()
}

/// Contents fill whole blocks.
fn pad(size: u64, to: &mut dyn Write) -> io::Result<()> {
    let beyond = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    to.write_all(&[0; BLOCK][..(BLOCK - beyond) % BLOCK])
}
