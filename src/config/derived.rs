//! What several rooms go by, in the form that they need.

use super::{Lifecycle, Tenant};
use crate::instance::policy::Policy;
use crate::instance::spec::Spec;
use crate::instance::storage::Limits;

impl Lifecycle {
    /// The times of the way down.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            idle_after: self.idle_after,
            pause_after: self.pause_after,
            archive_after: self.archive_after,
            delete_after: self.delete_after,
            purge_after: self.purge_after,
        }
    }

    /// How many may be awake, by both bounds; none for no bound.
    #[must_use]
    pub fn most_awake(&self, tenant: &Tenant) -> Option<usize> {
        let by_memory = self.memory_budget_mib / tenant.memory_mib.max(1) as usize;
        let bounds = [(self.max_awake, self.max_awake), (self.memory_budget_mib, by_memory.max(1))];
        bounds.into_iter().filter(|(set, _)| *set > 0).map(|(_, bound)| bound).min()
    }
}

impl Tenant {
    /// How much of the disk one tenant's data may take.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { mib: self.disk_mib, files: self.files }
    }

    /// What new containers are made of.
    #[must_use]
    pub fn spec(&self) -> Spec {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of CPUs is small")]
        let millicpus = (self.cpus * 1000.0).round() as u32;
        Spec {
            image: self.image.clone(),
            memory_mib: self.memory_mib,
            millicpus,
            pids: self.pids,
            log_mib: self.log_mib,
            egress: self.egress,
        }
    }
}
