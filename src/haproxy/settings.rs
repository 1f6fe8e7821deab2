//! What this room takes from the configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{Config, Public};
use crate::instance::name::Hostname;
use crate::tls;

/// How long a stream may be silent: three times the heartbeat of a `_changes` feed, as for the apps themselves.
const STREAM_SILENCE: Duration = Duration::from_secs(180);

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
    /// Where plain HTTP comes in.
    pub http_bind: String,
    /// Where HTTPS comes in; empty for plain HTTP alone.
    pub https_bind: String,
    /// Whence the certificates for `https_bind` come.
    pub tls: tls::Settings,
    /// How end users reach the apps.
    pub public: Public,
    /// How long browsers use HTTPS alone (RFC 6797); zero for no word of it.
    pub hsts: Duration,
    /// Whether the control API takes requests in the clear from other machines.
    pub allow_insecure: bool,
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
    /// Whether routes go live without a reload.
    pub live_routes: bool,
    /// How soon after a reload the next one may come that only gives apps their sections.
    pub reload_min_interval: Duration,
    /// How long an old worker may live on.
    pub hard_stop_after: Duration,
    /// While this many old workers live, sections wait.
    pub old_workers_max: usize,
    /// Up to so many apps have sections of their own.
    pub sections_max: usize,
    /// Connections at most; those past it are told to come back.
    pub maxconn: u32,
    /// Requests that one app may have under way.
    pub app_maxconn: u32,
    /// Requests a second that one app is sent at most, over ten seconds.
    pub app_request_rate: u32,
    /// The longest request body, in bytes.
    pub body_max: u64,
    /// How long the head of a request may take to come in.
    pub head_timeout: Duration,
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
        let certificates = tls::Settings {
            dir: absolute(&config.tls.dir),
            domain: config.installation.domain.clone(),
            local_ca: config.tls.local_ca,
        };
        Self {
            domain: config.installation.domain.clone(),
            binary: haproxy.binary.clone(),
            dir: absolute(&haproxy.dir),
            template: (!haproxy.template.as_os_str().is_empty()).then(|| absolute(&haproxy.template)),
            http_bind: haproxy.http_bind.clone(),
            https_bind: haproxy.https_bind.clone(),
            tls: certificates,
            public: config.public(),
            hsts: config.tls.hsts,
            allow_insecure: config.tls.allow_insecure,
            master_socket: absolute(&haproxy.master_socket),
            stats_socket: absolute(&haproxy.stats_socket),
            control,
            // Past its own wait the API answers: it is not to be cut off just before.
            // Streams of apps that were just woken come this way, too.
            control_timeout: (config.http.wait.max(config.lifecycle.wake_timeout) + Duration::from_secs(30))
                .max(STREAM_SILENCE),
            user: haproxy.user.clone(),
            group: haproxy.group.clone(),
            live_routes: haproxy.live_routes,
            reload_min_interval: haproxy.reload_min_interval,
            hard_stop_after: haproxy.hard_stop_after,
            old_workers_max: haproxy.old_workers_max,
            sections_max: haproxy.sections_max,
            maxconn: haproxy.maxconn,
            app_maxconn: haproxy.app_maxconn,
            app_request_rate: haproxy.app_request_rate,
            body_max: u64::from(haproxy.body_max_mib) * 1024 * 1024,
            head_timeout: haproxy.head_timeout,
            confirm_timeout: haproxy.confirm_timeout,
            reload_container: (!haproxy.reload_container.is_empty()).then(|| haproxy.reload_container.clone()),
        }
    }
}

impl Settings {
    /// Whether there is HTTPS at all.
    pub(super) fn https(&self) -> bool {
        !self.https_bind.is_empty()
    }

    /// Where this machine's own requests reach the apps through HAProxy.
    pub(super) fn local_address(&self) -> String {
        let bind = if self.https() { &self.https_bind } else { &self.http_bind };
        let first = bind.split([',', ' ']).next().unwrap_or_default();
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
