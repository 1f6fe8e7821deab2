//! Data on its way into an archive and out of it, and its end.
//!
//! Exactly one place has the data at any time, and the row says which: the archive while there is
//! one, else the volume of its serial number. One write of the row moves it from one to the other,
//! after the new place was written and read back; only then the old place is given back. So
//! whatever ends in between leaves the data where the row says, and at worst a copy of it that
//! nobody claims: such a copy has its time of grace, since nobody knows what it may be good for.

use futures_util::StreamExt;
use uuid::Uuid;

use super::{Driver, Halt, World};
use crate::archive::{ArchiveError, Archives, Header};
use crate::containers::{Containers, ContainersError};
use crate::failpoint::Boundary;
use crate::haproxy::Proxy;
use crate::instance::plan::Seen;
use crate::instance::{Instance, Phase};

impl<C: Containers, P: Proxy> Driver<'_, C, P> {
    /// Writes what the volume has into an archive. Its container stands still.
    pub(super) async fn archive(&self, instance: &Instance) -> Result<(), Halt> {
        let World { manifest, containers, archives, faults, .. } = self.world;
        let postponed = |error: &dyn std::fmt::Display| Halt::Postponed(error.to_string());
        self.container_to_read(instance).await.map_err(|error| postponed(&error))?;
        // A name that no archive ever had: what was once unclaimed is never taken for this one.
        let once = Uuid::new_v4().simple().to_string();
        let name = format!("{}-{}-{}", instance.container, instance.id.simple(), &once[..8]);
        let data = containers.read_data(instance).await.map_err(|error| postponed(&error))?;
        let stored = archives.store(&name, &Header::of(instance), data).await.map_err(|error| postponed(&error))?;
        // Once more from the volume: what was read while somebody wrote is no copy of anything.
        let again = containers.read_data(instance).await.map_err(|error| postponed(&error))?;
        let again = Archives::digest(again).await.map_err(|error| postponed(&error))?;
        let runs = matches!(containers.inspect(instance).await?, Seen::Ours(container) if container.is_up());
        if runs || again != stored.digest {
            drop(archives.remove(&stored.file).await);
            return Err(Halt::Postponed("its data has changed while it was archived".to_owned()));
        }
        faults.hit(Boundary::ArchiveWritten).await;
        manifest.archived(instance, &stored).await?;
        faults.hit(Boundary::ArchiveRecorded).await;
        log::info!(instance:% = instance.id; "{}: {} bytes in {}", instance.container, stored.bytes, stored.file);
        Ok(())
    }

    /// A container through which the engine shows the volume; it is never started.
    async fn container_to_read(&self, instance: &Instance) -> Result<(), ContainersError> {
        let containers = &self.world.containers;
        match containers.inspect(instance).await? {
            Seen::Ours(container) if container.has_data_of(instance) => return Ok(()),
            Seen::Ours(_) => containers.remove(instance).await?,
            Seen::Absent => {}
            Seen::Foreign => return Err(ContainersError::NameHeld(instance.container.to_string())),
        }
        // One that was laid to rest before it ever ran has no data yet.
        if instance.generation == 1 && !instance.returning() {
            containers.prepare_data(instance).await?;
        }
        // To make an empty one, and archive that, would be to lose the data.
        if !containers.has_volume(&instance.volume()).await? {
            return Err(ContainersError::Refused(format!("its volume {} is gone", instance.volume())));
        }
        containers.create(instance).await
    }

    /// Removes the volumes, since the archive has the data: which is looked at once more.
    pub(super) async fn free_volumes(&self, instance: &Instance) -> Result<(), Halt> {
        let World { manifest, containers, archives, faults, .. } = self.world;
        let Some(archive) = &instance.archive else { return Ok(()) };
        if let Err(error) = archives.verify(archive).await {
            if containers.has_volume(&instance.volume()).await? {
                // Nothing is lost: the volume has it still.
                manifest.archive_lost(instance).await?;
            }
            return Err(Halt::Postponed(error.to_string()));
        }
        containers.remove_volumes(instance.id, None).await?;
        faults.hit(Boundary::VolumesFreed).await;
        manifest.advance(instance, Phase::Archived, instance.attempts).await?;
        log::info!(instance:% = instance.id; "{} is archived", instance.container);
        Ok(())
    }

    /// Writes what the archive has into a new volume, with a container on it. A volume that is
    /// there is never written to.
    pub(super) async fn unarchive(&self, instance: &Instance) -> Result<(), Halt> {
        let World { manifest, containers, archives, faults, .. } = self.world;
        let Some(archive) = &instance.archive else { return Ok(()) };
        archives.verify(archive).await?;
        let mut next = Instance { volume_serial: instance.volume_serial + 1, archive: None, ..instance.clone() };
        while containers.has_volume(&next.volume()).await? {
            next.volume_serial += 1;
        }
        let data = archives.data(archive, ".");
        containers.write_data(&next, data.boxed()).await?;
        let restored = Archives::digest(containers.read_data(&next).await?).await?;
        if restored != archive.digest {
            return Err(Halt::Failed(format!("what was restored from {} is not what was archived", archive.file)));
        }
        faults.hit(Boundary::DataRestored).await;
        // The file stays for its time of grace: what the engine wrote may not have reached the disk.
        manifest.unarchived(instance, &next).await?;
        faults.hit(Boundary::RestoreRecorded).await;
        log::info!(instance:% = instance.id; "{}: its data is back from {}", instance.container, archive.file);
        Ok(())
    }

    /// Removes all that there is of an instance, and then its row.
    pub(super) async fn purge(&self, instance: &Instance) -> Result<(), Halt> {
        let World { manifest, containers, archives, faults, .. } = self.world;
        // Its name may be another instance's by now, and a container of that.
        if matches!(containers.inspect(instance).await?, Seen::Ours(container) if container.generation >= 0) {
            containers.remove(instance).await?;
        }
        containers.remove_volumes(instance.id, None).await?;
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

impl From<ArchiveError> for Halt {
    fn from(error: ArchiveError) -> Self {
        Self::Failed(error.to_string())
    }
}
