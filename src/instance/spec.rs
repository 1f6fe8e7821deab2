//! What a tenant's container is made of, as far as an operator may change it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Where tenants' own connections may go. The rules of `haas firewall` enforce it for all of them
/// together; a container's resolver is a part of what it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// Nowhere; names outside are not resolved.
    None,
    /// To public addresses.
    Internet,
}

impl Egress {
    /// As it stands in settings and in the manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Internet => "internet",
        }
    }

    /// Before there was a choice, containers had the resolver that Docker gives by itself.
    fn before_there_was_a_choice() -> Self {
        Self::Internet
    }
}

impl std::fmt::Display for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Image and limits. An instance keeps those that it was made with, until it is rolled to others.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Spec {
    /// The image, as Docker knows it.
    pub image: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// CPUs, in thousandths.
    pub millicpus: u32,
    /// Processes and threads.
    pub pids: u32,
    /// Size of the log file in MiB.
    pub log_mib: u32,
    /// Where its own connections may go.
    #[serde(default = "Egress::before_there_was_a_choice")]
    pub egress: Egress,
}

/// Those that were read: thousands of instances have the same.
static SHARED: Mutex<Vec<Weak<Spec>>> = Mutex::new(Vec::new());

impl Spec {
    /// As it stands in the manifest; equal ones are one.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_json(value: serde_json::Value) -> Result<Arc<Self>, serde_json::Error> {
        let spec: Self = serde_json::from_value(value)?;
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = shared.iter().filter_map(Weak::upgrade).find(|same| **same == spec) {
            return Ok(same);
        }
        let spec = Arc::new(spec);
        shared.retain(|other| other.strong_count() > 0);
        shared.push(Arc::downgrade(&spec));
        Ok(spec)
    }

    /// Names it in a container's label: equal specs have equal digests.
    #[must_use]
    pub fn digest(&self) -> String {
        let Self { image, memory_mib, millicpus, pids, log_mib, egress } = self;
        let mut text = format!("{image}\0{memory_mib}\0{millicpus}\0{pids}\0{log_mib}");
        // Labels of containers that are older than a field must stay true.
        if *egress == Egress::None {
            text.push_str("\0egress=none");
        }
        hex::encode(&Sha256::digest(text.as_bytes())[..8])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_and_a_label_from_before_there_was_egress_still_agree() {
        let row = serde_json::json!({
            "image": "haas/hoodie:28.2.10", "memory_mib": 192, "millicpus": 1000, "pids": 64, "log_mib": 1
        });
        let old = Spec::from_json(row).unwrap();
        assert_eq!(old.egress, Egress::Internet, "its container has Docker's own resolver");
        let before = "haas/hoodie:28.2.10\x00192\x001000\x0064\x001";
        assert_eq!(old.digest(), hex::encode(&Sha256::digest(before.as_bytes())[..8]));
        let new = Spec { egress: Egress::None, ..(*old).clone() };
        assert_ne!(new.digest(), old.digest(), "so that a roll makes the container anew");
        let again = Spec::from_json(serde_json::to_value(&new).unwrap()).unwrap();
        assert_eq!(*again, new);
    }
}
