//! An archive, inside out: zstd, in it a tar, in it the header, the tree and its checksum.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::channel::PIECE;
use super::digest::{Checksum, Tally};
use super::entries::{self, Entry, Kind, each, invalid};
use super::files::{Hashed, Unfinished, failed};
use super::{Archive, ArchiveError, FORMAT, Header, STREAM, file_name, told};

const HEADER: &str = "haas.json";
const ROOT: &str = "data";
const CHECKSUM: &str = "haas-checksum.json";
/// Both descriptions are short.
const JSON_MAX: u64 = 64 * 1024;
/// zstd's own choice between speed and size.
const LEVEL: i32 = 3;
/// The memory that reading may take, as a power of two: what levels up to 19 need.
const WINDOW_LOG_MAX: u32 = 23;

/// A tree on its way from one tar to another.
struct Tree<'a> {
    /// What its root is called where it comes from; the first entry tells.
    from: Option<Vec<u8>>,
    /// And where it goes.
    root: &'a str,
    to: &'a mut dyn Write,
    tally: Tally,
}

impl<'a> Tree<'a> {
    fn new(root: &'a str, to: &'a mut dyn Write) -> Self {
        Self { from: None, root, to, tally: Tally::default() }
    }

    fn pass(&mut self, entry: &mut Entry<'_>) -> io::Result<()> {
        if self.from.is_none() && (entry.kind != Kind::Directory || entry.path.contains(&b'/')) {
            return Err(invalid(format!("it begins with {:?}, no folder", String::from_utf8_lossy(&entry.path))));
        }
        let from = self.from.get_or_insert_with(|| entry.path.clone());
        entry.path = below(from, &entry.path)?;
        if entry.kind == Kind::HardLink {
            entry.link = below(from, &entry.link)?;
        }
        let mut hasher = Sha256::new();
        entries::put(entry, self.root, self.to, |content| hasher.update(content))?;
        self.tally.add(entry, &hasher.finalize().into());
        Ok(())
    }

    fn end(self) -> io::Result<Checksum> {
        if self.from.is_none() { Err(invalid("there is no folder in it")) } else { Ok(self.tally.checksum()) }
    }
}

/// A path as seen from the root.
fn below(root: &[u8], path: &[u8]) -> io::Result<Vec<u8>> {
    let rest = match path.strip_prefix(root) {
        Some(rest) if root.is_empty() || rest.is_empty() => Some(rest),
        Some(rest) => rest.strip_prefix(b"/"),
        None => None,
    };
    let outside = || invalid(format!("{:?} lies outside its root", String::from_utf8_lossy(path)));
    rest.map(<[u8]>::to_vec).ok_or_else(outside)
}

/// The digest of a tree that comes as a tar.
pub(super) fn digest(from: &mut dyn Read) -> Result<String, ArchiveError> {
    let mut nowhere = io::sink();
    let mut tree = Tree::new(ROOT, &mut nowhere);
    let read = each(from, |entry| tree.pass(entry));
    read.and_then(|()| tree.end()).map(|checksum| checksum.digest).map_err(|error| told(error, STREAM))
}

/// Writes the tree that comes as a tar into an archive beside `to`, and reads it back.
pub(super) fn write(to: &Path, header: &Header, from: &mut dyn Read) -> Result<(Unfinished, Archive), ArchiveError> {
    let unfinished = Unfinished::beside(to)?;
    let written = compress(&unfinished, header, from).map_err(|error| told(error, STREAM));
    let (digest, (sha256, bytes)) = written?;
    unfinished.sync()?;
    let archive = Archive { file: file_name(to)?, sha256, bytes, digest, made_at: header.made_at };
    let read = verify(unfinished.path(), &archive)?;
    if read != *header {
        return Err(ArchiveError::Corrupt { file: archive.file, why: format!("its {HEADER} is another's") });
    }
    Ok((unfinished, archive))
}

fn compress(unfinished: &Unfinished, header: &Header, from: &mut dyn Read) -> io::Result<(String, (String, u64))> {
    let mut encoder = zstd::Encoder::new(unfinished.hashed(), LEVEL)?;
    encoder.include_checksum(true)?;
    put_json(HEADER, header, header, &mut encoder)?;
    let mut tree = Tree::new(ROOT, &mut encoder);
    each(from, |entry| tree.pass(entry))?;
    let checksum = tree.end()?;
    put_json(CHECKSUM, &checksum, header, &mut encoder)?;
    entries::finish(&mut encoder)?;
    Ok((checksum.digest, encoder.finish()?.finish()))
}

/// Reads a whole archive, and tells what it is. Messages call it `name`.
pub(super) fn inspect(path: &Path, name: &str) -> Result<(Header, Archive), ArchiveError> {
    read(path, name, ROOT, &mut io::sink())
}

/// Reads a whole archive, which is to be this one.
pub(super) fn verify(path: &Path, archive: &Archive) -> Result<Header, ArchiveError> {
    check_length(path, archive)?;
    let (header, found) = inspect(path, &archive.file)?;
    check(&found, archive)?;
    Ok(header)
}

/// The tree of this archive as a tar. Its end is not written unless all of it was right.
pub(super) fn unwrap(path: &Path, archive: &Archive, root: &str, to: &mut dyn Write) -> Result<(), ArchiveError> {
    check_length(path, archive)?;
    let (_, found) = read(path, &archive.file, root, to)?;
    check(&found, archive)?;
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

fn read(path: &Path, name: &str, root: &str, to: &mut dyn Write) -> Result<(Header, Archive), ArchiveError> {
    let mut pass = || -> io::Result<_> {
        let mut decoder = open(path)?;
        let (mut header, mut tree, mut checksum) = (None, Tree::new(root, to), None);
        each(&mut decoder, |entry| {
            if header.is_none() {
                header = Some(parse_header(entry)?);
            } else if checksum.is_some() {
                return Err(invalid("it goes on after its checksum"));
            } else if entry.path == CHECKSUM.as_bytes() {
                checksum = Some(parse_json::<Checksum>(entry)?);
            } else {
                tree.pass(entry)?;
            }
            Ok(())
        })?;
        let header: Header = header.ok_or_else(|| invalid("it is empty"))?;
        let checksum = checksum.ok_or_else(|| invalid(format!("it does not end with {CHECKSUM}")))?;
        let found = tree.end()?;
        if found != checksum {
            return Err(invalid(format!("the data in it is not what its {CHECKSUM} says")));
        }
        let (sha256, bytes) = decoder.finish().into_inner().finish();
        let (made_at, digest) = (header.made_at, found.digest);
        Ok((header, Archive { file: name.to_owned(), sha256, bytes, digest, made_at }))
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
        mode: 0o600,
        uid: 0,
        gid: 0,
        mtime: header.made_at.timestamp().try_into().unwrap_or_default(),
        size: text.len() as u64,
        content: &mut text.as_slice(),
    };
    entries::put(&mut entry, "", to, |_| {})
}

fn parse_json<T: DeserializeOwned>(entry: &mut Entry<'_>) -> io::Result<T> {
    let name = String::from_utf8_lossy(&entry.path).into_owned();
    if entry.kind != Kind::File || entry.size > JSON_MAX {
        return Err(invalid(format!("its {name} is no file, or longer than {} KiB", JSON_MAX / 1024)));
    }
    let mut text = Vec::new();
    entry.content.read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(|error| invalid(format!("its {name} makes no sense: {error}")))
}

fn parse_header(entry: &mut Entry<'_>) -> io::Result<Header> {
    if entry.path != HEADER.as_bytes() {
        return Err(invalid(format!("it does not begin with {HEADER}")));
    }
    // The format first: the header of another may have other fields.
    let value: serde_json::Value = parse_json(entry)?;
    if value["format"] != FORMAT {
        return Err(invalid(format!("its format is {}, and this version reads {FORMAT}", value["format"])));
    }
    serde_json::from_value(value).map_err(|error| invalid(format!("its {HEADER} makes no sense: {error}")))
}
