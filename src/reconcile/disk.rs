//! The watch over what tenants' data takes of the disk: most file systems have no quota for a
//! volume. Who takes more than it may is stopped, as one is that goes to sleep; see
//! [`crate::instance::storage`].

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::{ReconcileError, World};
use crate::containers::{Containers, Disk, VolumeBound};
use crate::haproxy::Proxy;
use crate::instance::storage::{MIB, Taken};
use crate::manifest::{DataPlace, ManifestError, Watched};

/// How often the file system is asked what is free, which costs one system call.
const FREE_LOOK: Duration = Duration::from_secs(1);
/// Between two looks there is a rest of so many times the first one; and of so many while the disk fills.
const RESTS: u32 = 9;
const RESTS_WHILE_IT_FILLS: u32 = 1;
/// Volumes of apps at rest that one look measures at most: they don't grow, and others may.
const AT_REST: usize = 128;

/// The apps at rest whose volumes were measured since they came to rest, and since when they are.
type Measured = HashMap<Uuid, DateTime<Utc>>;

impl<C: Containers, P: Proxy> World<C, P> {
    /// Watches for as long as this server acts.
    pub(super) async fn watch_disk(&self) -> Infallible {
        let (mut trouble, mut measured) = (None, Measured::new());
        loop {
            let (began, before) = (Instant::now(), self.containers.disk().await);
            let outcome = self.look_at_disk(&mut measured).await.err().map(|error| error.to_string());
            if let Some(error) = outcome.as_ref().filter(|_| trouble != outcome) {
                log::warn!("what tenants take of the disk is not known: {error}");
            }
            trouble = outcome;
            self.rest_until_disk_fills(before, began.elapsed()).await;
        }
    }

    /// One look at all that may grow, at those that were stopped, and at some that have come to rest.
    pub(super) async fn look_at_disk(&self, measured: &mut Measured) -> Result<(), ReconcileError> {
        let (freed, watched): (Vec<_>, Vec<_>) = self.manifest.watched().await?.into_iter().partition(is_free);
        for one in freed {
            unless_corrupt(&one, self.let_go(&one).await)?;
        }
        let rests = |one: &Watched| one.rests_since.filter(|_| one.stopped_with.is_none());
        let (resting, growing): (Vec<_>, Vec<_>) = watched.into_iter().partition(|one| rests(one).is_some());
        self.measure(&growing).await?;
        // What they wrote last may be too much, and stays on the disk for as long as they rest.
        let since: Measured = resting.iter().filter_map(|one| Some((one.id, rests(one)?))).collect();
        measured.retain(|id, at| since.get(id) == Some(at));
        let mut new: Vec<Watched> = resting.into_iter().filter(|one| !measured.contains_key(&one.id)).collect();
        new.truncate(AT_REST);
        self.measure(&new).await?;
        measured.extend(new.iter().filter_map(|one| Some((one.id, rests(one)?))));
        Ok(())
    }

    async fn measure(&self, watched: &[Watched]) -> Result<(), ReconcileError> {
        let bound = |one: &Watched| VolumeBound { name: one.volume(), limits: one.limits };
        let taken = self.containers.disk_taken(watched.iter().map(bound).collect()).await?;
        for (one, taken) in watched.iter().zip(taken) {
            let Some(taken) = taken else { continue };
            let outcome = match (one.stopped_with, one.limits.exceeded_by(taken)) {
                (None, true) => self.stop_full(one, taken).await,
                // Its volume has room again.
                (Some(_), false) => self.let_go(one).await,
                (None, false) | (Some(_), true) => Ok(()),
            };
            unless_corrupt(one, outcome)?;
        }
        Ok(())
    }

    async fn stop_full(&self, one: &Watched, taken: Taken) -> Result<(), ManifestError> {
        if let Some(row) = self.manifest.stop_full(one.id, &DataPlace::Volume(one.volume()), taken).await? {
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

    /// Waits until the next look is due: sooner when the disk has lost what would be much for one app
    /// since the last look began.
    async fn rest_until_disk_fills(&self, before: Option<Disk>, took: Duration) {
        let settings = &self.settings;
        let due = Instant::now() + settings.disk_period.max(took * RESTS);
        let least = (took * RESTS_WHILE_IT_FILLS).max(FREE_LOOK).min(settings.disk_period);
        let (much_bytes, much_files) = (u64::from(settings.limits.mib) * MIB / 4, u64::from(settings.limits.files) / 4);
        sleep(least).await;
        while let Some(rest) = due.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
            let Some((before, now)) = before.zip(self.containers.disk().await) else {
                return sleep_until(due).await;
            };
            let fell = |much, before: u64, now| much > 0 && before.saturating_sub(now) > much;
            if fell(much_bytes, before.free, now.free) || fell(much_files, before.files_free, now.files_free) {
                return;
            }
            sleep(rest.min(FREE_LOOK)).await;
        }
    }
}

/// Whether a stopped app may go by its limits as they are now, whatever its data takes.
fn is_free(one: &Watched) -> bool {
    one.stopped_with.is_some_and(|taken| !one.limits.exceeded_by(taken))
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
