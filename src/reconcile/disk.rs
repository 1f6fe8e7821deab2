//! The watch over what tenants' data takes of the disk: most file systems have no quota for a
//! volume. Who takes more than it may is stopped, as one is that goes to sleep; see
//! [`crate::instance::storage`].

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::{ReconcileError, World};
use crate::containers::{Containers, VolumeBound};
use crate::haproxy::Proxy;
use crate::instance::storage::{MIB, exceeds};
use crate::manifest::{ManifestError, Watched};

/// How often it is looked how much of the disk is free, which costs one system call.
const FREE_LOOK: Duration = Duration::from_secs(1);
/// Between two looks there is a rest of so many times the first one.
const RESTS: u32 = 9;

impl<C: Containers, P: Proxy> World<C, P> {
    /// Watches for as long as this server acts.
    pub(super) async fn watch_disk(&self) -> Infallible {
        let mut trouble = None;
        loop {
            let began = Instant::now();
            let outcome = self.look_at_disk().await.err().map(|error| error.to_string());
            if let Some(error) = outcome.as_ref().filter(|_| trouble != outcome) {
                log::warn!("what tenants take of the disk is not known: {error}");
            }
            trouble = outcome;
            self.rest_until_disk_fills(began.elapsed()).await;
        }
    }

    /// One look at all that may grow, and at those that were stopped.
    pub(super) async fn look_at_disk(&self) -> Result<(), ReconcileError> {
        let (freed, watched): (Vec<_>, Vec<_>) = self.manifest.watched().await?.into_iter().partition(is_free);
        for one in freed {
            unless_corrupt(&one, self.let_go(&one).await)?;
        }
        let bound = |one: &Watched| VolumeBound { name: one.volume(), limit: u64::from(one.limit_mib) * MIB };
        let taken = self.containers.disk_taken(watched.iter().map(bound).collect()).await?;
        for (one, bytes) in watched.iter().zip(taken) {
            let Some(bytes) = bytes else { continue };
            let outcome = match (one.stopped_with, exceeds(bytes, one.limit_mib)) {
                (None, true) => self.stop(one, bytes).await,
                // Somebody has made room in its volume.
                (Some(_), false) => self.let_go(one).await,
                (None, false) | (Some(_), true) => Ok(()),
            };
            unless_corrupt(one, outcome)?;
        }
        Ok(())
    }

    async fn stop(&self, one: &Watched, bytes: u64) -> Result<(), ManifestError> {
        if let Some(row) = self.manifest.stop_full(one, bytes).await? {
            let why = row.storage_full.as_ref().map(|full| full.why()).unwrap_or_default();
            log::warn!(instance:% = row.id; "{} is stopped: {why}", row.container);
        }
        Ok(())
    }

    async fn let_go(&self, one: &Watched) -> Result<(), ManifestError> {
        if self.manifest.free_full(one.id).await? {
            log::info!(instance:% = one.id; "its data takes no more than it may; the next request wakes it");
        }
        Ok(())
    }

    /// Until the next look is due: sooner when the disk loses in a moment what would be much for one.
    async fn rest_until_disk_fills(&self, took: Duration) {
        let settings = &self.settings;
        let least = (took * RESTS).max(FREE_LOOK);
        let due = Instant::now() + settings.disk_period.max(took * RESTS);
        let much = u64::from(settings.disk_mib) * MIB / 4;
        let before = self.containers.disk().await;
        sleep(least.min(settings.disk_period)).await;
        while let Some(rest) = due.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
            let Some((before, now)) = before.zip(self.containers.disk().await) else {
                return sleep_until(due).await;
            };
            if much > 0 && before.free.saturating_sub(now.free) > much {
                return;
            }
            sleep(rest.min(FREE_LOOK)).await;
        }
    }
}

/// Whether one that was stopped may go by the limit as it is now, whatever its data takes.
fn is_free(one: &Watched) -> bool {
    one.stopped_with.is_some_and(|bytes| !exceeds(bytes, one.limit_mib))
}

/// A row that can't be read keeps nobody else from being stopped, or let go.
fn unless_corrupt(one: &Watched, outcome: Result<(), ManifestError>) -> Result<(), ManifestError> {
    match outcome {
        Err(error @ ManifestError::Corrupt { .. }) => {
            log::error!(instance:% = one.id; "nothing follows from what its data takes: {error}");
            Ok(())
        }
        outcome => outcome,
    }
}
