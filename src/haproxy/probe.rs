//! Whether an app answers through HAProxy, as its users would ask.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Settings;
use crate::app_connection::{ANSWER_MAX, Connection, ready};
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
    /// Whom to trust, and what to connect with that does; none where that can't be.
    connector: Mutex<Option<(Trusted, Option<TlsConnector>)>>,
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
        let opening = Connection::open(&self.address, ANSWER_MAX);
        let looked = if self.https {
            // As a browser names it (RFC 9110, section 7.2, and 4.2.2 for the port that goes without saying).
            let named = match self.address.rsplit_once(':') {
                None | Some((_, "443")) => host.to_string(),
                Some((_, port)) => format!("{host}:{port}"),
            };
            ready(self.secured(opening, host), &named).await
        } else {
            ready(opening, host.as_str()).await
        };
        looked.inspect_err(|error| log::debug!("{host} does not answer through HAProxy: {error}")).is_ok()
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
        let mut known = self.connector.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(&*known, Some((of, _)) if *of == trusted) {
            let built = client(&trusted).inspect_err(|error| {
                log::error!("apps can't be looked at through HAProxy: {error}");
            });
            *known = Some((trusted, built.ok().map(|config| TlsConnector::from(Arc::new(config)))));
        }
        let connector = known.as_ref().and_then(|(_, connector)| connector.clone());
        connector.ok_or_else(|| io::Error::other("the local authority can't be used"))
    }
}
