//! Whether an app answers through HAProxy, as its users would ask.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Settings;
use crate::app_connection::{Connection, ready};
use crate::instance::name::Hostname;
use crate::tls::{Trusted, client};

/// A client of the apps on this machine.
pub(super) struct Probe {
    https: bool,
    /// Where HAProxy listens.
    address: String,
    /// The local CA's certificate; none without one.
    authority: Option<PathBuf>,
    /// The operator's own certificates.
    given: PathBuf,
    /// What to connect with, and whom that trusts.
    connector: Mutex<Option<(Trusted, TlsConnector)>>,
}

impl Probe {
    pub fn new(settings: &Settings) -> Self {
        let authority = settings.tls.local_ca.then(|| settings.tls.dir.join("ca.pem"));
        let (https, given) = (settings.https(), settings.tls.given());
        Self { https, address: settings.local_address(), authority, given, connector: Mutex::default() }
    }

    /// Whether the Hoodie at this host answers 200. By HTTPS with the host's name, and with the
    /// local CA only if that vouches for it. Without one, or beside the operator's own
    /// certificates, any for the name will do: who vouches for those is for the operator's users
    /// to know, and HAProxy has none for a name that it does not know (`strict-sni`).
    pub async fn answers(&self, host: &Hostname) -> bool {
        let opening = Connection::open(&self.address, Arc::default());
        let looked = if self.https {
            let port = self.address.rsplit(':').next().unwrap_or_default();
            ready(self.secured(opening, host), &format!("{host}:{port}")).await
        } else {
            ready(opening, host.as_str()).await
        };
        if let Err(error) = &looked {
            log::debug!("{host} does not answer through HAProxy: {error}");
        }
        looked.is_ok()
    }

    async fn secured(
        &self,
        opening: impl Future<Output = io::Result<Connection>>,
        host: &Hostname,
    ) -> io::Result<TlsStream<Connection>> {
        let connector = self.connector().await?;
        let name = ServerName::try_from(host.to_string()).map_err(io::Error::other)?;
        connector.connect(name, opening.await?).await
    }

    async fn has_given(&self) -> bool {
        let Ok(mut entries) = tokio::fs::read_dir(&self.given).await else { return false };
        while let Ok(Some(entry)) = entries.next_entry().await {
            if entry.path().extension().is_some_and(|extension| extension == "pem") {
                return true;
            }
        }
        false
    }

    async fn connector(&self) -> io::Result<TlsConnector> {
        let trusted = match &self.authority {
            Some(path) if !self.has_given().await => Trusted::Authority(tokio::fs::read(path).await?),
            _ => Trusted::Anybody,
        };
        let mut known = self.connector.lock().await;
        if let Some((of, connector)) = &*known
            && *of == trusted
        {
            return Ok(connector.clone());
        }
        let connector = TlsConnector::from(Arc::new(client(&trusted).map_err(io::Error::other)?));
        *known = Some((trusted, connector.clone()));
        Ok(connector)
    }
}
