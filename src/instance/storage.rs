//! How much of the disk an instance's data may take, and that it takes more. Pure.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Instance;
use super::policy::Overrides;

/// Bytes in a MiB.
pub const MIB: u64 = 1024 * 1024;

/// What data takes of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taken {
    /// Bytes, as the file system allocates them: a hole takes none, and an empty file a block.
    pub bytes: u64,
    /// Inodes: each file and folder, however many names it has.
    pub files: u64,
}

/// How much data may take of the disk; 0 for no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In MiB.
    pub mib: u32,
    /// Inodes.
    pub files: u32,
}

impl Limits {
    /// No bound.
    pub const NONE: Self = Self { mib: 0, files: 0 };

    /// Whether there is no bound at all.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// Whether this is more than may be.
    #[must_use]
    pub fn exceeded_by(self, taken: Taken) -> bool {
        self.mib > 0 && taken.bytes > u64::from(self.mib) * MIB || self.files > 0 && taken.files > u64::from(self.files)
    }

    /// What there is too much of, and how much there may be; for people.
    #[must_use]
    pub fn told(self, taken: Taken) -> String {
        let bytes = format!("{} MiB of the disk and may take {}", taken.bytes.div_ceil(MIB), self.mib);
        let files = format!("{} files and folders and may have {}", taken.files, self.files);
        let only_files = Self { mib: 0, ..self }.exceeded_by(taken) && !Self { files: 0, ..self }.exceeded_by(taken);
        if only_files { format!("has {files}") } else { format!("takes {bytes}") }
    }
}

/// That an instance's data was seen to take more of the disk than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StorageFull {
    /// When that was seen.
    pub since: DateTime<Utc>,
    /// What its data took then, in bytes.
    #[schema(example = 1_181_116_006)]
    pub bytes: u64,
    /// What it might take, in MiB; 0 for no bound.
    #[schema(example = 1024)]
    pub limit_mib: u32,
    /// How many files and folders it had then.
    #[serde(default)]
    #[schema(example = 412)]
    pub files: u64,
    /// How many it might have; 0 for no bound.
    #[serde(default)]
    #[schema(example = 100_000)]
    pub limit_files: u32,
}

impl StorageFull {
    /// What its data took.
    #[must_use]
    pub fn taken(&self) -> Taken {
        Taken { bytes: self.bytes, files: self.files }
    }

    /// For people.
    #[must_use]
    pub fn why(&self) -> String {
        let limits = Limits { mib: self.limit_mib, files: self.limit_files };
        format!("its data {}; it is kept, and not run", limits.told(self.taken()))
    }
}

impl Instance {
    /// How much its data may take, where the installation's limits are these.
    #[must_use]
    pub fn limits(&self, installation: Limits) -> Limits {
        self.overrides().limits(installation)
    }

    /// Whether it is stopped because its data takes more than it may, by the limits as they are now.
    #[must_use]
    pub fn is_full(&self, installation: Limits) -> bool {
        self.storage_full.as_ref().is_some_and(|full| self.limits(installation).exceeded_by(full.taken()))
    }
}

impl Overrides {
    /// An instance's limits, where the installation's are these.
    #[must_use]
    pub fn limits(&self, installation: Limits) -> Limits {
        Limits { mib: self.disk_mib.unwrap_or(installation.mib), files: self.files.unwrap_or(installation.files) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: StorageFull =
        StorageFull { since: DateTime::UNIX_EPOCH, bytes: 10 * MIB + 1, limit_mib: 10, files: 100, limit_files: 100 };

    #[test]
    fn a_raised_limit_lets_it_go_and_none_is_no_bound() {
        let mut row = Instance { storage_full: Some(Box::new(BOTH)), ..Instance::example() };
        let limits = [(10, 0), (11, 0), (9, 0), (0, 0), (11, 99), (0, 100), (0, 99), (10, 99)];
        let full = limits.map(|(mib, files)| row.is_full(Limits { mib, files }));
        assert_eq!(full, [true, false, true, false, true, false, true, true]);
        for (mib, files, is_full) in [(10, None, true), (11, None, false), (0, None, false), (0, Some(99), true)] {
            row.overrides = Some(Box::new(Overrides { disk_mib: Some(mib), files, ..Overrides::default() }));
            assert_eq!(row.is_full(Limits { mib: 5, files: 100 }), is_full, "{mib} {files:?}");
        }
        assert!(!Instance::example().is_full(Limits { mib: 1, files: 1 }));
    }

    #[test]
    fn people_read_which_of_the_two_it_is() {
        assert!(BOTH.why().contains("takes 11 MiB of the disk and may take 10"), "{}", BOTH.why());
        let files = StorageFull { files: 101, bytes: MIB, ..BOTH };
        assert!(files.why().contains("has 101 files and folders and may have 100"), "{}", files.why());
        // As it was written before files were counted.
        let old = r#"{"since":"1970-01-01T00:00:00Z","bytes":10485761,"limit_mib":10}"#;
        let old: StorageFull = serde_json::from_str(old).unwrap();
        assert_eq!(old, StorageFull { files: 0, limit_files: 0, ..BOTH });
    }
}
