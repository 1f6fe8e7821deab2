//! Whether an app answers through HAProxy, as its users would ask.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, ClientBuilder, StatusCode};
use tokio::sync::Mutex;

use super::Settings;
use crate::instance::name::Hostname;
use crate::tls;

/// A client of the apps on this machine.
pub(super) struct Probe {
    https: bool,
    /// Where HAProxy listens.
    address: String,
    /// The local CA's certificate; none without one.
    authority: Option<PathBuf>,
    /// The operator's own certificates.
    given: PathBuf,
    /// The client, and the CA's certificate that it trusts.
    client: Mutex<Option<(Vec<u8>, Client)>>,
}

impl Probe {
    pub fn new(settings: &Settings) -> Self {
        let authority = settings.tls.local_ca.then(|| settings.tls.dir.join("ca.pem"));
        let (https, given) = (settings.https(), settings.tls.given());
        Self { https, address: settings.local_address(), authority, given, client: Mutex::default() }
    }

    /// Whether the Hoodie at this host answers 200. By HTTPS with the host's name, and with the
    /// local CA only if that vouches for it. Without one, or beside the operator's own
    /// certificates, any for the name will do: who vouches for those is for the operator's users
    /// to know, and HAProxy has none for a name that it does not know (`strict-sni`).
    pub async fn answers(&self, host: &Hostname) -> bool {
        let Some(client) = self.client().await else { return false };
        let request = if self.https {
            let port = self.address.rsplit(':').next().unwrap_or_default();
            client.get(format!("https://{host}:{port}/hoodie/"))
        } else {
            client.get(format!("http://{}/hoodie/", self.address)).header(reqwest::header::HOST, host.as_str())
        };
        match request.send().await {
            Ok(answer) => answer.status() == StatusCode::OK,
            Err(error) => {
                log::debug!("{host} gives no answer through HAProxy: {error:?}");
                false
            }
        }
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

    async fn client(&self) -> Option<Client> {
        let authority = match &self.authority {
            Some(path) if self.https && !self.has_given().await => tokio::fs::read(path).await.ok()?,
            _ => Vec::new(),
        };
        let mut client = self.client.lock().await;
        if let Some((of, client)) = &*client
            && *of == authority
        {
            return Some(client.clone());
        }
        tls::use_ring();
        let builder = Client::builder()
            .timeout(Duration::from_secs(2))
            .pool_max_idle_per_host(0)
            // A tenant must not send us anywhere else.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .dns_resolver(Here(self.address.clone()));
        let built = match trusting(builder, &authority).and_then(ClientBuilder::build) {
            Ok(built) => built,
            Err(error) => {
                log::error!("apps can't be looked at through HAProxy: {error:?}");
                return None;
            }
        };
        *client = Some((authority, built.clone()));
        Some(built)
    }
}

fn trusting(builder: ClientBuilder, authority: &[u8]) -> reqwest::Result<ClientBuilder> {
    if authority.is_empty() {
        return Ok(builder.tls_danger_accept_invalid_certs(true));
    }
    Ok(builder.tls_certs_only([Certificate::from_pem(authority)?]))
}

/// Every name is here: what the names really resolve to is not ours to see.
struct Here(String);

impl Resolve for Here {
    fn resolve(&self, _: Name) -> Resolving {
        let address = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}
