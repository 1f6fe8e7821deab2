//! Signals to a container that is none of the tenants': HAProxy's, where it runs in one.

use bollard::query_parameters::KillContainerOptions;

use super::{ContainersError, Docker, LABEL_INSTALLATION, classify};

impl Docker {
    /// Who would get a signal by this name, by Docker's id: a running container that is no tenant,
    /// neither of this installation nor of another.
    ///
    /// # Errors
    /// [`ContainersError::NoSuchContainer`], [`ContainersError::IsTenant`],
    /// [`ContainersError::NotRunning`]; [`ContainersError::Unreachable`] when the engine does not answer.
    pub async fn may_signal(&self, name: &str) -> Result<String, ContainersError> {
        let no_such = || ContainersError::NoSuchContainer(name.to_owned());
        let found = self.inspect_raw(name).await?.ok_or_else(no_such)?;
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        if labels.contains_key(LABEL_INSTALLATION) {
            return Err(ContainersError::IsTenant(name.to_owned()));
        }
        if found.state.and_then(|state| state.running) != Some(true) {
            return Err(ContainersError::NotRunning(name.to_owned()));
        }
        found.id.ok_or_else(no_such)
    }

    /// Sends a signal to the first process of a container that [`Docker::may_signal`] allows.
    ///
    /// # Errors
    /// As [`Docker::may_signal`]; [`ContainersError::Refused`] with the engine's words.
    pub async fn signal(&self, name: &str, signal: &str) -> Result<(), ContainersError> {
        let id = self.may_signal(name).await?;
        let options = KillContainerOptions { signal: signal.to_owned() };
        self.client().await?.kill_container(&id, Some(options)).await.map_err(classify)
    }
}
