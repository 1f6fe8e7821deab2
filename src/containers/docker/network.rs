//! The network that an installation's tenants share, and the bridge under it.

use std::collections::HashMap;

use bollard::models::NetworkInspect;
use bollard::query_parameters::{InspectNetworkOptions, ListNetworksOptions};
use uuid::Uuid;

use super::{Docker, classify, connect, status};
use crate::containers::{ContainersError, LABEL_INSTALLATION, spec};

/// The bridge of an installation's network; none while there is no network.
///
/// # Errors
/// [`ContainersError::Unreachable`] when the engine does not answer.
pub async fn bridge(installation: Uuid) -> Result<Option<String>, ContainersError> {
    let client = connect().await?;
    match client.inspect_network(&spec::network_name(installation), None::<InspectNetworkOptions>).await {
        Ok(network) => Ok(bridge_of(network)),
        Err(error) if status(&error) == Some(404) => Ok(None),
        Err(error) => Err(classify(error)),
    }
}

/// The name that it was given, or the one that Docker makes of a network's id.
fn bridge_of(network: NetworkInspect) -> Option<String> {
    let given =
        network.options.and_then(|mut options| options.remove(spec::BRIDGE_NAME)).filter(|name| !name.is_empty());
    given.or_else(|| Some(format!("br-{}", network.id?.get(..12)?)))
}

impl Docker {
    /// Makes the installation's network, unless it is there.
    pub(super) async fn ensure_network(&self) -> Result<(), ContainersError> {
        let client = self.client().await?;
        // Two servers, or two starts at once, would make two networks of one name.
        let mut made = self.network.lock().await;
        if *made {
            return Ok(());
        }
        let name = spec::network_name(self.settings.installation);
        match client.inspect_network(&name, None::<InspectNetworkOptions>).await {
            Ok(_) => {}
            Err(error) if status(&error) == Some(404) => {
                client.create_network(spec::network(self.settings.installation)).await.map_err(classify)?;
            }
            Err(error) => return Err(classify(error)),
        }
        *made = true;
        Ok(())
    }

    /// Removes the installation's network; one that is in use, or gone, is left as it is.
    ///
    /// # Errors
    /// [`ContainersError::Unreachable`] when the engine does not answer.
    pub async fn remove_own_network(&self) -> Result<(), ContainersError> {
        self.remove_unused_network(&spec::network_name(self.settings.installation)).await
    }

    pub(super) async fn remove_unused_network(&self, name: &str) -> Result<(), ContainersError> {
        match self.client().await?.remove_network(name).await {
            Ok(()) => Ok(()),
            Err(error) if matches!(status(&error), Some(403 | 404)) => Ok(()),
            Err(error) => Err(classify(error)),
        }
    }

    /// Networks with our installation's label other than the one in use.
    pub(super) async fn other_networks(&self) -> Result<Vec<String>, ContainersError> {
        let label = format!("{LABEL_INSTALLATION}={}", self.settings.installation);
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let options = ListNetworksOptions { filters: Some(filters) };
        let found = self.client().await?.list_networks(Some(options)).await.map_err(classify)?;
        let own = spec::network_name(self.settings.installation);
        Ok(found.into_iter().filter_map(|network| network.name).filter(|name| *name != own).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_has_the_name_that_it_was_given_or_the_one_of_its_network() {
        let id = Some("0123456789abcdef0123456789abcdef".to_owned());
        let given = |name: &str| Some(HashMap::from([(spec::BRIDGE_NAME.to_owned(), name.to_owned())]));
        let network = |options| NetworkInspect { id: id.clone(), options, ..NetworkInspect::default() };
        assert_eq!(bridge_of(network(given("haas-0a1b2c3d4e"))).unwrap(), "haas-0a1b2c3d4e");
        assert_eq!(bridge_of(network(given(""))).unwrap(), "br-0123456789ab");
        assert_eq!(bridge_of(network(None)).unwrap(), "br-0123456789ab");
    }

    #[test]
    fn the_bridge_of_a_new_network_is_known_before_there_is_one() {
        let id = Uuid::from_u128(0x0a1b_2c3d_4e5f_6071_8293_a4b5_c6d7_e8f9);
        assert_eq!(spec::bridge_name(id), "haas-0a1b2c3d4e");
        assert!(spec::bridge_name(id).len() <= 15, "IFNAMSIZ");
        let options = spec::network(id).options.unwrap();
        assert_eq!(options[spec::BRIDGE_NAME], spec::bridge_name(id));
    }
}
