//! Volumes, and what becomes of them. Everything goes through the engine, which may run on another
//! machine; their files go in and out by the [helper](super::helper).

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bollard::query_parameters::{ListVolumesOptions, RemoveVolumeOptions};

use super::{ContainersError, Docker, LABEL_INSTALLATION, LABEL_INSTANCE, OwnedVolume, classify, status};

/// A volume's files may take long: the time limit of other calls is not for them.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(86_400);

impl Docker {
    pub(super) async fn transfers(&self) -> Result<bollard::Docker, ContainersError> {
        Ok(self.client().await?.clone().with_timeout(TRANSFER_TIMEOUT))
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
