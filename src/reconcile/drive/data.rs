//! Data on its way into an archive and out of it, and its end.
//!
//! Exactly one place has the data at any time, and the row says which: the archive while there is
//! one, else the volume of its serial number. One write of the row moves it from one to the other,
//! after the new place was written and read back; only then the old place is given back. So
//! whatever ends in between leaves the data where the row says, and at worst a copy of it that
//! nobody claims: such a copy has its time of grace, since nobody knows what it may be good for.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use uuid::Uuid;

use super::{Driver, Failure, Halt, World};
use crate::archive::{Archive, ArchiveError, Header};
use crate::containers::{Containers, ContainersError, Data, Reading};
use crate::failpoint::Boundary;
use crate::haproxy::Proxy;
use crate::instance::plan::Seen;
use crate::instance::{Instance, Phase, volume_serial};
use crate::manifest::DataPlace;

impl<C: Containers, P: Proxy> Driver<'_, C, P> {
    /// Writes what the volume has into an archive. Its container stands still.
    pub(super) async fn archive(&self, instance: &Instance) -> Result<(), Halt> {
        let World { manifest, containers, archives, faults, .. } = self.world;
        self.volume_to_read(instance).await.map_err(postponed)?;
        // A name that no archive ever had: what was once unclaimed is never taken for this one.
        let once = Uuid::new_v4().simple().to_string();
        let name = format!("{}-{}-{}", instance.container, instance.id.simple(), &once[..8]);
        let Reading { tar, second_look } = containers.read_data(instance).await.map_err(postponed)?;
        // What the volume's reader can't keep is told in its own words.
        let (tar, unfit) = told_apart(tar);
        let stored = archives.store(&name, &Header::of(instance), tar).await;
        let stored = stored.map_err(|error| unfit.take().unwrap_or_else(|| Halt::Postponed(error.into())))?;
        // What was read while somebody wrote is no copy of anything.
        let unchanged = second_look.await.is_ok_and(|found| found.digest == stored.digest);
        let runs = matches!(containers.inspect(instance).await?, Seen::Ours(container) if container.is_up());
        if runs || !unchanged {
            drop(archives.remove(&stored.file).await);
            return Err(Halt::Postponed(Failure::passing("its data has changed while it was archived")));
        }
        faults.hit(Boundary::ArchiveWritten).await;
        manifest.archived(instance, &stored).await?;
        faults.hit(Boundary::ArchiveRecorded).await;
        log::info!(instance:% = instance.id; "{}: {} bytes in {}", instance.container, stored.bytes, stored.file);
        Ok(())
    }

    /// The volume has to be there: to make an empty one, and archive that, would be to lose the data.
    async fn volume_to_read(&self, instance: &Instance) -> Result<(), ContainersError> {
        let containers = &self.world.containers;
        if instance.generation == 1 && !instance.expects_data() {
            // One that was laid to rest before it ever ran has no data yet.
            containers.prepare_data(instance).await?;
        }
        if !containers.has_volume(&instance.volume()).await? {
            return Err(ContainersError::Refused(format!("its volume {} is gone", instance.volume())));
        }
        if instance.expects_data() {
            return Ok(());
        }
        // The engine gives a volume its root with its first container.
        match containers.inspect(instance).await? {
            Seen::Ours(container) if container.has_data_of(instance) => return Ok(()),
            Seen::Ours(_) => containers.remove(instance).await?,
            Seen::Absent => {}
            Seen::Foreign => return Err(ContainersError::NameHeld(instance.container.to_string())),
        }
        containers.create(instance).await
    }

    /// Removes the volume, since the archive has the data: which is looked at once more.
    pub(super) async fn free_volumes(&self, instance: &Instance) -> Result<(), Halt> {
        let World { manifest, containers, archives, faults, .. } = self.world;
        let Some(archive) = &instance.archive else { return Ok(()) };
        if let Err(error) = archives.verify(archive).await {
            // The volume has it still, if all of it is there: the engine may have begun to remove it.
            let whole = containers.has_volume(&instance.volume()).await.map_err(postponed)?
                && containers.look_at_data(instance, archive.format).await.map_err(postponed)?.digest == archive.digest;
            if whole {
                manifest.archive_lost(instance).await?;
            }
            return Err(Halt::Postponed(error.into()));
        }
        containers.end_helpers(instance.id).await.map_err(postponed)?;
        // This one alone: another one of its may be newer, if the manifest was restored from a backup.
        containers.remove_volume(&instance.volume()).await.map_err(postponed)?;
        faults.hit(Boundary::VolumesFreed).await;
        manifest.advance(instance, Phase::Archived, instance.attempts).await?;
        log::info!(instance:% = instance.id; "{} is archived", instance.container);
        Ok(())
    }

    /// Writes what the archive has into a new volume. One that is there is never written to.
    pub(super) async fn unarchive(&self, instance: &Instance) -> Result<(), Halt> {
        let World { manifest, containers, archives, faults, .. } = self.world;
        let Some(archive) = &instance.archive else { return Ok(()) };
        let taken = archives.verify(archive).await?;
        if instance.limits(self.world.settings.limits).exceeded_by(taken) {
            let data = DataPlace::Archive(archive.file.clone());
            let row = manifest.stop_full(instance.id, &data, taken).await?;
            let why = row.and_then(|row| row.storage_full).map(|full| full.why()).unwrap_or_default();
            log::warn!(instance:% = instance.id; "{} is not restored: {why}", instance.container);
            return Ok(());
        }
        // A server that was killed may have left one at work, which has not noticed yet.
        containers.end_helpers(instance.id).await?;
        let at = |serial| Instance { volume_serial: serial, archive: None, ..instance.clone() };
        let next = if let Some(serial) = self.restored_before(instance, archive).await? {
            at(serial)
        } else {
            let mut next = at(instance.volume_serial + 1);
            while containers.has_volume(&next.volume()).await? {
                next.volume_serial += 1;
            }
            self.fill(&next, archive).await?;
            next
        };
        faults.hit(Boundary::DataRestored).await;
        // The file stays for its time of grace.
        manifest.unarchived(instance, &next).await?;
        faults.hit(Boundary::RestoreRecorded).await;
        log::info!(instance:% = instance.id; "{}: its data is back from {}", instance.container, archive.file);
        Ok(())
    }

    /// Fills a new volume; one that could not be filled is removed.
    async fn fill(&self, next: &Instance, archive: &Archive) -> Result<(), Halt> {
        let World { containers, archives, .. } = self.world;
        let failed = match containers.write_data(next, archive.format, archives.data(archive).boxed()).await {
            Ok(found) if found.digest == archive.digest => return Ok(()),
            Ok(_) => Halt::Failed(Failure::lasting(format!(
                "what was restored from {} is not what was archived",
                archive.file
            ))),
            // It is somebody's, and was left as it is.
            Err(error @ ContainersError::Occupied(_)) => return Err(error.into()),
            Err(error) => error.into(),
        };
        if let Err(error) = containers.remove_volume(&next.volume()).await {
            log::warn!(instance:% = next.id; "{} is half filled, and left: {error}", next.volume());
        }
        Err(failed)
    }

    /// What attempts before have left, whose process was ended: a volume that is whole, to be used, by
    /// its number. Those that were begun and not finished are removed, and others are not touched: they
    /// have been in use, and the manifest may have forgotten that.
    async fn restored_before(&self, instance: &Instance, archive: &Archive) -> Result<Option<i32>, Halt> {
        let containers = &self.world.containers;
        let names = containers.volumes_of(instance.id).await?;
        let serials = names.iter().filter_map(|name| volume_serial(instance.id, name));
        let mut whole = None;
        for serial in serials.filter(|serial| *serial > instance.volume_serial) {
            let left = Instance { volume_serial: serial, ..instance.clone() };
            let found = match containers.look_at_data(&left, archive.format).await {
                Ok(found) => found,
                Err(error @ ContainersError::Unreachable(_)) => return Err(error.into()),
                // Nothing that was unpacked here.
                Err(error) => {
                    log::warn!(instance:% = instance.id; "{} is left as it is: {error}", left.volume());
                    continue;
                }
            };
            if found.unfinished || (found.digest == archive.digest && whole.is_some()) {
                containers.remove_volume(&left.volume()).await?;
            } else if found.digest == archive.digest {
                whole = Some(serial);
            }
        }
        Ok(whole)
    }

    /// Removes all that there is of an instance, and then its row.
    pub(super) async fn purge(&self, instance: &Instance) -> Result<(), Halt> {
        let World { manifest, containers, archives, faults, .. } = self.world;
        // Its name may be another instance's by now, and a container of that.
        if matches!(containers.inspect(instance).await?, Seen::Ours(container) if container.generation >= 0) {
            containers.remove(instance).await?;
        }
        containers.end_helpers(instance.id).await?;
        containers.remove_volumes(instance.id).await?;
        // Copies that nobody claims are its data, too.
        for stored in archives.list().await?.iter().filter(|stored| archive_of(&stored.file) == Some(instance.id)) {
            archives.remove(&stored.file).await?;
        }
        faults.hit(Boundary::DataPurged).await;
        manifest.purged(instance).await?;
        log::info!(instance:% = instance.id; "{} is purged", instance.container);
        Ok(())
    }
}

/// The instance that an archive's name ends with: `alice-notes-<id>-<word>.tar.zst`.
pub(in crate::reconcile) fn archive_of(file: &str) -> Option<Uuid> {
    file.split('.').next()?.rsplit('-').nth(1)?.parse().ok()
}

/// What a failure of the engine means to a step that harms nobody.
fn postponed(error: ContainersError) -> Halt {
    match Halt::from(error) {
        Halt::Failed(failure) => Halt::Postponed(failure),
        other => other,
    }
}

/// The error that a stream has ended with.
struct Ended(Arc<Mutex<Option<ContainersError>>>);

impl Ended {
    fn take(&self) -> Option<Halt> {
        self.0.lock().ok()?.take().map(postponed)
    }
}

/// A stream whose error is kept as it is, beside the words that the archive makes of it.
fn told_apart(tar: Data) -> (impl Stream<Item = Result<Bytes, String>> + Send, Ended) {
    let ended = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&ended);
    let told = tar.map(move |piece| {
        piece.map_err(|error| {
            let words = error.to_string();
            if let Ok(mut kept) = keep.lock() {
                *kept = Some(error);
            }
            words
        })
    });
    (told, Ended(ended))
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        if error.may_pass() { Self::passing(error.to_string()) } else { Self::lasting(error.to_string()) }
    }
}

impl From<ArchiveError> for Halt {
    fn from(error: ArchiveError) -> Self {
        Self::Failed(error.into())
    }
}
