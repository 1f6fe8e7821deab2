//! The digest of a tree: the same in whatever order its entries come.
//!
//! SHA-256 over the sorted SHA-256 of all entries. Of each: what it is, its path below the root,
//! permissions, owner, group, length, where it leads, and the SHA-256 of its contents. Times are
//! left out, since putting a tree in place changes them, and all of the root but its being there.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::FORMAT;
use super::entries::Entry;

/// The last entry: what the tree before it was when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checksum {
    pub format: u32,
    pub digest: String,
    pub entries: u64,
    pub bytes: u64,
}

/// The entries that have been seen.
#[derive(Default)]
pub(super) struct Tally {
    hashes: Vec<[u8; 32]>,
    bytes: u64,
}

impl Tally {
    /// One more, with the SHA-256 of its contents.
    pub(super) fn add(&mut self, entry: &Entry<'_>, content: &[u8; 32]) {
        let mut hasher = Sha256::new();
        hasher.update([entry.kind as u8]);
        // The root itself is the engine's: it keeps the owner and mode that the image gives it.
        let root = entry.path.is_empty();
        let own = if root { [0; 4] } else { [u64::from(entry.mode), entry.uid, entry.gid, entry.size] };
        for number in own {
            hasher.update(number.to_be_bytes());
        }
        // With their lengths: else `a` that leads to `bc` would be `ab` that leads to `c`.
        for text in [&entry.path, &entry.link] {
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(text);
        }
        hasher.update(content);
        self.hashes.push(hasher.finalize().into());
        self.bytes += entry.size;
    }

    pub(super) fn checksum(mut self) -> Checksum {
        self.hashes.sort_unstable();
        let mut hasher = Sha256::new();
        for hash in &self.hashes {
            hasher.update(hash);
        }
        let digest = hex::encode(hasher.finalize());
        Checksum { format: FORMAT, digest, entries: self.hashes.len() as u64, bytes: self.bytes }
    }
}
