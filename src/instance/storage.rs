//! How much of the disk an instance's data may take, and that it takes more. Pure.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Instance;

/// Bytes in a MiB.
pub const MIB: u64 = 1024 * 1024;

/// That an instance's data was seen to take more of the disk than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StorageFull {
    /// When that was seen.
    pub since: DateTime<Utc>,
    /// What its data took then, in bytes.
    #[schema(example = 1_181_116_006)]
    pub bytes: u64,
    /// What it might take, in MiB.
    #[schema(example = 1024)]
    pub limit_mib: u32,
}

/// Whether so many bytes are more than the limit; a limit of 0 is none.
#[must_use]
pub fn exceeds(bytes: u64, limit_mib: u32) -> bool {
    limit_mib > 0 && bytes > u64::from(limit_mib) * MIB
}

impl StorageFull {
    /// For people.
    #[must_use]
    pub fn why(&self) -> String {
        let (taken, limit) = (self.bytes.div_ceil(MIB), self.limit_mib);
        format!("its data takes {taken} MiB of the disk and may take {limit}; it is kept, and not run")
    }
}

impl Instance {
    /// How much its data may take, in MiB, where the installation's limit is this; 0 for no bound.
    #[must_use]
    pub fn disk_mib(&self, installation: u32) -> u32 {
        self.overrides.as_ref().and_then(|own| own.disk_mib).unwrap_or(installation)
    }

    /// Whether it is stopped because its data takes more than it may, by the limit as it is now.
    #[must_use]
    pub fn is_full(&self, installation: u32) -> bool {
        self.storage_full.as_ref().is_some_and(|full| exceeds(full.bytes, self.disk_mib(installation)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::policy::Overrides;

    #[test]
    fn a_raised_limit_lets_it_go_and_none_is_no_bound() {
        let full = StorageFull { since: DateTime::UNIX_EPOCH, bytes: 10 * MIB + 1, limit_mib: 10 };
        let mut row = Instance { storage_full: Some(Box::new(full)), ..Instance::example() };
        let limits: Vec<bool> = [10, 11, 9, 0].map(|limit| row.is_full(limit)).into();
        assert_eq!(limits, [true, false, true, false]);
        for (own, is_full) in [(10, true), (11, false), (0, false)] {
            row.overrides = Some(Box::new(Overrides { disk_mib: Some(own), ..Overrides::default() }));
            assert_eq!(row.is_full(5), is_full, "{own}");
        }
        assert!(!Instance::example().is_full(1));
        assert!(full.why().contains("takes 11 MiB of the disk and may take 10"), "{}", full.why());
    }
}
