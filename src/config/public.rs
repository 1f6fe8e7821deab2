//! Where this installation is reached: its ports, and what a URL begins with.

use super::{Config, Listen};
use crate::instance::name::Hostname;

impl Config {
    /// Ports that this installation's own parts listen on.
    #[must_use]
    pub fn own_ports(&self) -> Vec<u16> {
        let listen = match self.http.listen {
            Listen::Tcp(address) => Some(address.port()),
            Listen::Unix(_) => None,
        };
        let https = self.https_port();
        listen.into_iter().chain([self.http_port()]).chain(https).collect()
    }

    /// The port of plain HTTP.
    #[must_use]
    pub fn http_port(&self) -> u16 {
        port_of(&self.haproxy.http_bind).unwrap_or(80)
    }

    /// The port of HTTPS; none without it.
    #[must_use]
    pub fn https_port(&self) -> Option<u16> {
        let bind = &self.haproxy.https_bind;
        (!bind.is_empty()).then(|| port_of(bind).unwrap_or(443))
    }

    /// How end users reach the apps.
    #[must_use]
    pub fn public(&self) -> Public {
        match self.https_port() {
            Some(port) => Public { https: true, port },
            None => Public { https: false, port: self.http_port() },
        }
    }
}

/// The port that a `bind` line's address ends with.
fn port_of(bind: &str) -> Option<u16> {
    bind.rsplit(':').next().and_then(|port| port.parse().ok())
}

/// How end users reach the apps: what a URL begins and goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Public {
    /// Whether by HTTPS.
    pub https: bool,
    /// The port that their browsers connect to.
    pub port: u16,
}

impl Public {
    /// The origin of a host (RFC 6454): the port is left out where it is the scheme's own.
    #[must_use]
    pub fn origin(self, host: &Hostname) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{host}{}", self.port_suffix())
    }

    /// `:8443`, or nothing where the port is the scheme's own.
    #[must_use]
    pub fn port_suffix(self) -> String {
        match (self.https, self.port) {
            (true, 443) | (false, 80) => String::new(),
            (_, port) => format!(":{port}"),
        }
    }
}
