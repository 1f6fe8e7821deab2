//! Volumes: their files in and out, and what becomes of them. Everything goes through the engine,
//! which may run on another machine.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bollard::query_parameters::{
    DownloadFromContainerOptions, ListVolumesOptions, RemoveVolumeOptions, UploadToContainerOptions,
};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::{
    Containers, ContainersError, Data, Docker, LABEL_INSTALLATION, LABEL_INSTANCE, OwnedVolume, classify, spec, status,
};
use crate::instance::Instance;
use crate::instance::plan::Seen;

/// A volume's files may take long: the time limit of other calls is not for them.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(86_400);

impl Docker {
    async fn transfers(&self) -> Result<bollard::Docker, ContainersError> {
        Ok(self.client().await?.clone().with_timeout(TRANSFER_TIMEOUT))
    }

    /// The container with the instance's own data: a tombstone's name may be another one's by now.
    async fn own_id(&self, instance: &Instance) -> Result<String, ContainersError> {
        let gone = || ContainersError::NoSuchContainer(instance.container.to_string());
        let Seen::Ours(container) = self.inspect(instance).await? else { return Err(gone()) };
        if container.generation < 0 || !container.has_data_of(instance) {
            return Err(gone());
        }
        self.own(instance).await?.and_then(|found| found.id).ok_or_else(gone)
    }

    pub(super) async fn read_files(&self, instance: &Instance) -> Result<Data, ContainersError> {
        let id = self.own_id(instance).await?;
        // With the dot: its contents, not the folder itself.
        let options = DownloadFromContainerOptions { path: format!("{}/.", spec::DATA) };
        let files = self.transfers().await?.download_from_container(&id, Some(options));
        Ok(files.map(|bytes| bytes.map_err(classify)).boxed())
    }

    pub(super) async fn write_files(
        &self,
        instance: &Instance,
        data: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<(), ContainersError> {
        let id = self.own_id(instance).await?;
        let options = UploadToContainerOptions { path: spec::DATA.to_owned(), ..UploadToContainerOptions::default() };
        let body = bollard::body_try_stream(data);
        self.transfers().await?.upload_to_container(&id, Some(options), body).await.map_err(classify)
    }

    /// All of a label, or those that no container has.
    pub(super) async fn volumes_with(&self, label: &str, unused: bool) -> Result<Vec<OwnedVolume>, ContainersError> {
        let mut filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
        if unused {
            filters.insert("dangling".to_owned(), vec!["true".to_owned()]);
        }
        let options = ListVolumesOptions { filters: Some(filters) };
        let found = self.client().await?.list_volumes(Some(options)).await.map_err(classify)?;
        let ours = self.settings.installation.to_string();
        let volumes = found.volumes.unwrap_or_default().into_iter();
        Ok(volumes
            .filter(|volume| volume.labels.get(LABEL_INSTALLATION) == Some(&ours))
            .map(|volume| OwnedVolume {
                instance: volume.labels.get(LABEL_INSTANCE).and_then(|text| text.parse().ok()),
                created: volume.created_at.and_then(|text| text.parse().ok()),
                path: PathBuf::from(volume.mountpoint),
                name: volume.name,
            })
            .collect())
    }

    /// Removes a volume of ours by its name, unless a container has it.
    pub(super) async fn remove_unused(&self, name: &str) -> Result<(), ContainersError> {
        let client = self.client().await?;
        match client.inspect_volume(name).await {
            Ok(volume) if self.is_ours(Some(&volume.labels)) => {}
            Ok(_) => return Err(ContainersError::Refused(format!("the volume {name} is not ours"))),
            Err(error) if status(&error) == Some(404) => return Ok(()),
            Err(error) => return Err(classify(error)),
        }
        match client.remove_volume(name, None::<RemoveVolumeOptions>).await {
            Ok(()) => Ok(()),
            Err(error) if status(&error) == Some(404) => Ok(()),
            Err(error) => Err(classify(error)),
        }
    }

    /// Whether the engine has an image.
    ///
    /// # Errors
    /// [`ContainersError::Unreachable`] when it does not answer.
    pub async fn has_image(&self, image: &str) -> Result<bool, ContainersError> {
        match self.client().await?.inspect_image(image).await {
            Ok(_) => Ok(true),
            Err(error) if status(&error) == Some(404) => Ok(false),
            Err(error) => Err(classify(error)),
        }
    }
}
