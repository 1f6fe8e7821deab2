//! Volumes, networks and archives of ours that no row claims: left over from a crash at the wrong
//! moment, or from a manifest that was restored from a backup. They may be somebody's only data:
//! they are removed only past a long time of grace, which outlives restarts.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use thiserror::Error;
use uuid::Uuid;

use super::World;
use super::drive::data::archive_of;
use crate::archive::{ArchiveError, Archives};
use crate::containers::{Containers, ContainersError};
use crate::haproxy::Proxy;
use crate::manifest::{DataPlace, Manifest, ManifestError, Unclaimed, UnclaimedKind};

/// Temporary files of an archive that was being written when somebody ended this process.
const TEMPORARY_AGE: Duration = Duration::from_secs(86_400);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// What it is, its name, and since when nobody claims it.
    pub unclaimed: Unclaimed,
    /// The instance that it was made for, as far as that is known.
    pub instance: Option<Uuid>,
    /// Where its files are, as far as that is known.
    pub path: Option<PathBuf>,
    /// When it was made, as far as that is known.
    pub created: Option<DateTime<Utc>>,
}

impl Stray {
    /// Whether its time of grace is over.
    #[must_use]
    pub fn is_due(&self, grace: Duration, now: DateTime<Utc>) -> bool {
        let grace = TimeDelta::from_std(grace).unwrap_or(TimeDelta::MAX);
        (now - self.unclaimed.since).max(TimeDelta::zero()) >= grace
    }
}

/// What nobody claims now, and since when that is known.
///
/// # Errors
/// What the engine, the disk, or the manifest says.
pub async fn strays<C: Containers>(
    manifest: &Manifest,
    archives: &Archives,
    containers: &C,
) -> Result<Vec<Stray>, UnclaimedError> {
    // Before the rows are read: what is claimed by then, is.
    let (volumes, networks) = (containers.volumes().await?, containers.stray_networks().await?);
    let files = archives.list().await?;
    let mut strays: Vec<Stray> = Vec::new();
    let mut add = |kind, name, instance, path, created| {
        let unclaimed = Unclaimed { kind, name, since: Utc::now() };
        strays.push(Stray { unclaimed, instance, path, created });
    };
    for volume in volumes {
        add(UnclaimedKind::Volume, volume.name, volume.instance, Some(volume.path), volume.created);
    }
    for network in networks {
        add(UnclaimedKind::Network, network, None, None, None);
    }
    for file in files {
        let path = archives.dir().join(&file.file);
        let instance = archive_of(&file.file);
        add(UnclaimedKind::Archive, file.file, instance, Some(path), Some(file.modified));
    }
    if strays.is_empty() {
        return Ok(strays);
    }
    let claims = Claims::read(manifest).await?;
    strays.retain(|stray| !claims.have(stray));
    let known = manifest.unclaimed().await?;
    for stray in &mut strays {
        let is = |known: &&Unclaimed| (known.kind, &known.name) == (stray.unclaimed.kind, &stray.unclaimed.name);
        stray.unclaimed.since = known.iter().find(is).map_or(stray.unclaimed.since, |known| known.since);
    }
    Ok(strays)
}

/// Why what nobody claims is not known, or not removed.
#[derive(Debug, Error)]
pub enum UnclaimedError {
    /// The manifest can't be asked.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The engine can't be asked, or refuses.
    #[error(transparent)]
    Containers(#[from] ContainersError),
    /// The folder of archives can't be read, or written.
    #[error(transparent)]
    Archives(#[from] ArchiveError),
    /// An instance has come to claim it.
    #[error("an instance claims it by now")]
    Claimed,
}

/// What rows claim: while the archive has the data, a volume is a copy at best.
struct Claims(HashSet<DataPlace>);

impl Claims {
    async fn read(manifest: &Manifest) -> Result<Self, ManifestError> {
        Ok(Self(manifest.data_places().await?.into_iter().collect()))
    }

    fn have(&self, stray: &Stray) -> bool {
        let Stray { unclaimed: Unclaimed { kind, name, .. }, instance, .. } = stray;
        let place = match kind {
            UnclaimedKind::Volume => DataPlace::Volume(name.clone()),
            UnclaimedKind::Archive => DataPlace::Archive(name.clone()),
            UnclaimedKind::Network => return false,
        };
        self.0.contains(&place) || instance.is_some_and(|id| self.0.contains(&DataPlace::Unknown(id)))
    }
}

impl<C: Containers, P: Proxy> World<C, P> {
    /// Takes down what nobody claims, and removes what nobody has claimed for the whole time of grace.
    pub(super) async fn sweep(self: Arc<Self>) {
        drop(self.archives.sweep(TEMPORARY_AGE).await);
        if let Err(error) = self.containers.sweep_helpers().await {
            log::debug!("helpers are not swept: {error}");
        }
        let strays = match strays(&self.manifest, &self.archives, &self.containers).await {
            Ok(strays) => strays,
            Err(error) => return log::debug!("nothing is swept: {error}"),
        };
        let noted = strays.iter().map(|stray| stray.unclaimed.clone()).collect();
        if let Err(error) = self.manifest.note_unclaimed(noted).await {
            return log::debug!("nothing is swept: {error}");
        }
        let now = Utc::now();
        for stray in strays.iter().filter(|stray| stray.is_due(self.settings.unclaimed_grace, now)) {
            if let Err(error) = self.remove_stray(stray).await {
                let Unclaimed { kind, name, .. } = &stray.unclaimed;
                log::warn!("{} {name}, which no instance claims, is left: {error}", kind.as_str());
            }
        }
    }

    /// Removes one thing that nobody claims, after another look whether that is still so.
    ///
    /// # Errors
    /// [`UnclaimedError`]; it is left then.
    pub async fn remove_stray(&self, stray: &Stray) -> Result<(), UnclaimedError> {
        if Claims::read(&self.manifest).await?.have(stray) {
            return Err(UnclaimedError::Claimed);
        }
        let Unclaimed { kind, name, since } = &stray.unclaimed;
        match kind {
            UnclaimedKind::Volume => self.containers.remove_volume(name).await?,
            UnclaimedKind::Network => self.containers.remove_network(name).await?,
            UnclaimedKind::Archive => self.archives.remove(name).await?,
        }
        log::warn!("{} {name} was claimed by no instance since {since}; removed", kind.as_str());
        Ok(self.manifest.forget_unclaimed(&stray.unclaimed).await?)
    }
}
