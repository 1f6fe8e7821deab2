//! What a tenant's container is made of, as far as an operator may change it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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
        let Self { image, memory_mib, millicpus, pids, log_mib } = self;
        let text = format!("{image}\0{memory_mib}\0{millicpus}\0{pids}\0{log_mib}");
        hex::encode(&Sha256::digest(text.as_bytes())[..8])
    }
}
