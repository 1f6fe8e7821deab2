//! The digest of a tree: SHA-256 over the SHA-256 of all entries, which stand in one order.
//!
//! Of each: what it is, its path below the root, and all of its [`Attributes`](super::entries), its
//! length, where it leads, and its content. Of that only blocks that are not all zeros, with their
//! numbers: a hole is no other content than the zeros that it reads as, and costs no time.
//!
//! Archives of the first format have a digest without times, attributes beyond mode and owner, and
//! the root's own: the engine that had put them in place changed those. It is of the sorted hashes,
//! since that engine listed entries in an order of its own.

use std::io;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::entries::{Entry, Kind, invalid};

/// The unit in which a content's zeros are told from the rest.
const BLOCK: usize = 4096;
const BLOCK_SIZE: u64 = BLOCK as u64;

/// The last entry: what the tree before it was when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checksum {
    pub format: u32,
    pub digest: String,
    pub entries: u64,
    /// How long all contents are; from the second format on without their holes.
    pub bytes: u64,
}

/// The entries that have been seen.
pub(super) struct Tally {
    format: u32,
    /// Of all entries so far.
    hasher: Sha256,
    /// Those of the first format, until they can be sorted.
    hashes: Vec<[u8; 32]>,
    entries: u64,
    bytes: u64,
}

/// More entries than any archive of the first format has: what is kept of each of them takes memory.
const FIRST_FORMAT_ENTRIES: u64 = 4_000_000;
/// The first format hashes holes as what they read as. Nothing of it is longer than this.
const FIRST_FORMAT_HOLES: u64 = 1 << 40;

impl Tally {
    pub(super) fn new(format: u32) -> Self {
        Self { format, hasher: Sha256::new(), hashes: Vec::new(), entries: 0, bytes: 0 }
    }

    /// The content of the next entry, to be shown piece by piece.
    pub(super) fn content(&self, entry: &Entry<'_>) -> io::Result<Content> {
        let hasher = Sha256::new();
        if self.format > 1 {
            return Ok(Content::Blocks(Blocks::new(hasher)));
        }
        if self.entries >= FIRST_FORMAT_ENTRIES || entry.size > FIRST_FORMAT_HOLES {
            return Err(invalid("it holds more than its format may"));
        }
        Ok(Content::Whole { hasher, end: 0 })
    }

    /// One more, with its content.
    pub(super) fn add(&mut self, entry: &Entry<'_>, content: Content) {
        self.entries += 1;
        if self.format == 1 {
            self.bytes += entry.size;
            self.hashes.push(first_format(entry, content.finish(entry.size)));
        } else {
            self.bytes += entry.segments.iter().map(|segment| segment.length).sum::<u64>();
            self.hasher.update(hash(entry, content.finish(entry.size)));
        }
    }

    pub(super) fn checksum(mut self) -> Checksum {
        self.hashes.sort_unstable();
        for hash in &self.hashes {
            self.hasher.update(hash);
        }
        let digest = hex::encode(self.hasher.finalize());
        Checksum { format: self.format, digest, entries: self.entries, bytes: self.bytes }
    }
}

fn hash(entry: &Entry<'_>, content: [u8; 32]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update([entry.kind as u8]);
    texts(&mut hasher, [entry.path.as_slice(), &entry.link]);
    // Another name of something says nothing of it.
    if entry.kind != Kind::HardLink {
        let own = &entry.attributes;
        let (major, minor) = own.device;
        let numbers = [own.mode.into(), own.uid, own.gid, entry.size, major.into(), minor.into(), own.flags.into()];
        for number in numbers {
            hasher.update(number.to_be_bytes());
        }
        hasher.update(own.mtime.seconds.to_be_bytes());
        hasher.update(own.mtime.nanoseconds.to_be_bytes());
        for (name, value) in &own.xattrs {
            texts(&mut hasher, [name.as_slice(), value]);
        }
    }
    hasher.update(content);
    hasher.finalize().into()
}

fn first_format(entry: &Entry<'_>, content: [u8; 32]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update([entry.kind as u8]);
    let root = entry.path.is_empty();
    let own = &entry.attributes;
    let numbers = if root { [0; 4] } else { [u64::from(own.mode), own.uid, own.gid, entry.size] };
    for number in numbers {
        hasher.update(number.to_be_bytes());
    }
    texts(&mut hasher, [entry.path.as_slice(), &entry.link]);
    hasher.update(content);
    hasher.finalize().into()
}

/// With their lengths: else `a` that leads to `bc` would be `ab` that leads to `c`.
fn texts<const N: usize>(hasher: &mut Sha256, texts: [&[u8]; N]) {
    for text in texts {
        hasher.update((text.len() as u64).to_be_bytes());
        hasher.update(text);
    }
}

/// A file's content on its way past.
pub(super) enum Content {
    /// All of it, as the first format has it.
    Whole {
        hasher: Sha256,
        /// How far it has come.
        end: u64,
    },
    /// Without what is zeros.
    Blocks(Blocks),
}

impl Content {
    /// The next piece, which never begins before the end of the one before.
    pub(super) fn show(&mut self, at: u64, piece: &[u8]) {
        match self {
            Self::Whole { hasher, end } => {
                zeros(hasher, at.saturating_sub(*end));
                hasher.update(piece);
                *end = at + piece.len() as u64;
            }
            Self::Blocks(blocks) => blocks.show(at, piece),
        }
    }

    fn finish(self, size: u64) -> [u8; 32] {
        match self {
            Self::Whole { mut hasher, end } => {
                zeros(&mut hasher, size.saturating_sub(end));
                hasher.finalize().into()
            }
            Self::Blocks(mut blocks) => {
                blocks.turn();
                blocks.hasher.finalize().into()
            }
        }
    }
}

fn zeros(hasher: &mut Sha256, mut count: u64) {
    while count > 0 {
        let piece = count.min(BLOCK_SIZE);
        hasher.update(&[0; BLOCK][..usize::try_from(piece).unwrap_or(BLOCK)]);
        count -= piece;
    }
}

/// The block that is being filled.
pub(super) struct Blocks {
    hasher: Sha256,
    number: u64,
    block: Box<[u8; BLOCK]>,
}

impl Blocks {
    fn new(hasher: Sha256) -> Self {
        Self { hasher, number: 0, block: Box::new([0; BLOCK]) }
    }

    fn show(&mut self, mut at: u64, mut piece: &[u8]) {
        while !piece.is_empty() {
            if at / BLOCK_SIZE != self.number {
                self.turn();
                self.number = at / BLOCK_SIZE;
            }
            let within = usize::try_from(at % BLOCK_SIZE).unwrap_or_default();
            let (now, rest) = piece.split_at(piece.len().min(BLOCK - within));
            self.block[within..within + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            piece = rest;
        }
    }

    fn turn(&mut self) {
        if self.block.iter().any(|byte| *byte != 0) {
            self.hasher.update(self.number.to_be_bytes());
            self.hasher.update(self.block.as_slice());
            self.block.fill(0);
        }
    }
}
