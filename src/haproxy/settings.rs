//! What this room takes from the configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Config;
use crate::instance::name::Hostname;

/// What HAProxy needs to be told. Checked where it was read: none of it can break a line of
/// haproxy.cfg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The bare domain: the control API's host.
    pub domain: Hostname,
    /// The program that checks candidates.
    pub binary: PathBuf,
    /// Where the files go. Absolute: HAProxy's working folder is not ours.
    pub dir: PathBuf,
    /// The template on disk, if not the one that is built in.
    pub template: Option<PathBuf>,
    /// Where end users' requests come in.
    pub http_bind: String,
    /// The master's socket.
    pub master_socket: PathBuf,
    /// The worker's statistics socket.
    pub stats_socket: PathBuf,
    /// Where the control API answers, in the form of a `server` line's address. Never empty.
    pub control: Vec<String>,
    /// How long the control API may take to answer.
    pub control_timeout: Duration,
    /// The account that workers change to; empty for none.
    pub user: String,
    /// See `user`.
    pub group: String,
    /// How long an old worker may live on.
    pub hard_stop_after: Duration,
    /// Up to so many apps have sections of their own.
    pub sections_max: usize,
    /// Connections to HAProxy at most.
    pub maxconn: u32,
    /// Connections to one app at most.
    pub app_maxconn: u32,
    /// How long a reload may take.
    pub confirm_timeout: Duration,
    /// The container that HAProxy runs in, if it is another one's: then its process ids mean
    /// nothing here.
    pub reload_container: Option<String>,
}

impl Settings {
    /// The parts of the configuration that matter here.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        let haproxy = &config.haproxy;
        let mut control: Vec<String> = haproxy.control_servers.split_whitespace().map(str::to_owned).collect();
        if control.is_empty() {
            control.push(config.http.listen.to_string());
        }
        Self {
            domain: config.installation.domain.clone(),
            binary: haproxy.binary.clone(),
            dir: absolute(&haproxy.dir),
            template: (!haproxy.template.as_os_str().is_empty()).then(|| absolute(&haproxy.template)),
            http_bind: haproxy.http_bind.clone(),
            master_socket: absolute(&haproxy.master_socket),
            stats_socket: absolute(&haproxy.stats_socket),
            control,
            // Past its own wait the API answers 202: it is not to be cut off just before.
            control_timeout: config.http.wait + Duration::from_secs(30),
            user: haproxy.user.clone(),
            group: haproxy.group.clone(),
            hard_stop_after: haproxy.hard_stop_after,
            sections_max: haproxy.sections_max,
            maxconn: haproxy.maxconn,
            app_maxconn: haproxy.app_maxconn,
            confirm_timeout: haproxy.confirm_timeout,
            reload_container: (!haproxy.reload_container.is_empty()).then(|| haproxy.reload_container.clone()),
        }
    }
}

impl Settings {
    /// Where this machine's own requests reach HAProxy.
    pub(super) fn local_address(&self) -> String {
        let first = self.http_bind.split([',', ' ']).next().unwrap_or_default();
        match first.rsplit_once(':') {
            Some(("" | "*" | "0.0.0.0" | "[::]" | "::", port)) => format!("127.0.0.1:{port}"),
            _ => first.to_owned(),
        }
    }
}

/// An empty path alone has no absolute form; it is left for the one who uses it to stumble over.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
