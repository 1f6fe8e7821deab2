//! Settings: defaults, then a file, then `HAAS_*` in the environment, then the command line.
//!
//! Every setting is declared once, in [`Config`]; the keys of the file, the names of the
//! environment variables and the annotated example follow from that. All mistakes are
//! reported at once, because each round of "fix one, see the next" is a restart.

mod check;
mod derived;
mod public;
mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use toml::{Table, Value};

use crate::instance::name::{HostPattern, Hostname};
use crate::instance::policy::TimeLimit;
use crate::instance::spec::Egress;
pub use public::Public;
use value::Setting;
pub use value::{Listen, PortRange, SecretUrl};

/// Everything that is wrong with the settings, one line each.
#[derive(Debug, Error)]
#[error("the configuration has {} mistake(s):\n  {}", .0.len(), .0.join("\n  "))]
pub struct ConfigError(pub Vec<String>);

/// Declares the sections and settings, and from them the parser and the annotated example.
macro_rules! settings {
    ($($(#[doc = $section_doc:literal])+ $section:ident: $struct:ident {
        $($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:literal,)+
    })+) => {
        /// The settings, by section.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(clippy::doc_markdown, reason = "the texts are the annotated example's, too")]
        pub struct Config {
            $($(#[doc = $section_doc])+ pub $section: $struct,)+
        }

        $(
            $(#[doc = $section_doc])+
            #[derive(Debug, Clone, PartialEq)]
            #[allow(clippy::doc_markdown, reason = "the texts are the annotated example's, too")]
            pub struct $struct {
                $($(#[doc = $doc])+ pub $key: $type,)+
            }
        )+

        impl Config {
            fn read(layers: &mut Layers) -> Option<Self> {
                $(let $section = {
                    $(let $key = layers.take::<$type>(stringify!($section), stringify!($key), $default);)+
                    (|| Some($struct { $($key: $key?,)+ }))()
                };)+
                Some(Self { $($section: $section?,)+ })
            }

            /// An annotated file with every setting at its default.
            #[must_use]
            pub fn example() -> String {
                let mut text = String::from(
                    "# Every setting of Haas with its default. Each can also be given in the environment:\n\
                     # HAAS_<SECTION>_<KEY>, such as HAAS_TENANT_IMAGE.\n",
                );
                $(
                    text.push('\n');
                    $(text.push_str(concat!("#", $section_doc, "\n"));)+
                    text.push_str(concat!("[", stringify!($section), "]\n"));
                    $(
                        $(text.push_str(concat!("#", $doc, "\n"));)+
                        text.push_str(concat!(stringify!($key), " = ", $default, "\n"));
                    )+
                )+
                text
            }
        }
    };
}

settings! {
    /// Where the apps live.
    installation: Installation {
        /// The domain below which every app gets its host; the bare domain is the control API.
        domain: Hostname = "\"haas.localhost\"",
        /// "{app}.{user}.{domain}", or "{app}--{user}.{domain}" for a single wildcard certificate.
        host_pattern: HostPattern = "\"{app}.{user}.{domain}\"",
    }
    /// The control API's own server, behind HAProxy.
    http: Http {
        /// "ADDRESS:PORT", or "unix:PATH". `haas up` uses a socket of its own.
        listen: Listen = "\"127.0.0.1:5500\"",
        /// How long POST /provision and POST /deprovision wait before they answer 202.
        wait: Duration = "\"30s\"",
        /// Wrong keys a minute from one address, or said to be one client's, before it is answered 429.
        failures_per_minute: u32 = "20",
        /// Changes that one client may make a minute, and so many at once; one more is answered 429.
        /// Each event that is written is one. 0 for no bound.
        changes_per_minute: u32 = "1200",
        /// Changes of one app that one client may make a minute, and so many at once. The bearer of a
        /// token is a client of its own, with twice as many for all apps of its user. 0 for no bound.
        changes_per_app: u32 = "30",
        /// Threads that serve the API.
        workers: usize = "2",
    }
    /// The ship manifest: Postgres.
    manifest: ManifestSettings {
        /// A connection string; DATABASE_URL is read too. `haas up` runs its own Postgres.
        database_url: SecretUrl = "\"\"",
        /// The same database, as the role that owns the tables, for `haas migrate`; empty where
        /// database_url's role is the owner, which could then change events that are written. `haas up` sets it.
        owner_url: SecretUrl = "\"\"",
        /// Connections that the API keeps; the reconciler has as many of its own.
        pool_size: usize = "8",
        /// How long a request waits for the database before it is answered 503.
        timeout: Duration = "\"3s\"",
    }
    /// The containers that tenants run in.
    tenant: Tenant {
        /// The image, as scripts/build-image tags it.
        image: String = "\"haas/hoodie:28.2.10\"",
        /// Loopback ports for tenants, both ends included. Keep them below 32768, where the
        /// kernel's ephemeral ports begin.
        ports: PortRange = "\"5521-15520\"",
        /// Memory in MiB; past it the container is killed and started again.
        memory_mib: u32 = "192",
        /// CPUs that one tenant may use at most.
        cpus: f64 = "1.0",
        /// Processes and threads at most.
        pids: u32 = "64",
        /// Size of a tenant's log file in MiB; one older file is kept beside it.
        log_mib: u32 = "1",
        /// Where tenants' own connections may go: "none" for nowhere, "internet" for public addresses;
        /// never to this machine, private networks or each other. `haas firewall` enforces it.
        egress: Egress = "\"none\"",
        /// Disk in MiB that one tenant's data may take; past it the tenant is stopped, its owner told
        /// and its data kept. 0 for no bound; `haas policy` sets another one for one app.
        disk_mib: u32 = "1024",
        /// Files and folders that one tenant's data may have; the same becomes of it past that. 0 for no
        /// bound; `haas policy` sets another one for one app.
        files: u32 = "100000",
        /// How often both are looked at; sooner while the disk fills.
        disk_period: Duration = "\"30s\"",
        /// Apps that one user may have; deleted ones don't count. 0 for no bound.
        apps_per_user: u32 = "20",
        /// How long a Hoodie may take to answer for the first time.
        ready_timeout: Duration = "\"30s\"",
        /// How long a drained Hoodie may take to exit before it is killed.
        stop_timeout: Duration = "\"10s\"",
        /// How long the last requests of an unwanted Hoodie are waited for.
        drain_timeout: Duration = "\"10s\"",
    }
    /// The domain-to-unique-port mapper.
    haproxy: Haproxy {
        /// The program that checks candidates, and that `haas up` runs.
        binary: PathBuf = "\"haproxy\"",
        /// Where haproxy.cfg and routes.map are written.
        dir: PathBuf = "\"/etc/haas/haproxy\"",
        /// A template on disk, watched for changes; empty for the one built into the binary.
        template: PathBuf = "\"\"",
        /// Where plain HTTP comes in. With https_bind it only leads to HTTPS, but for what
        /// tls.allow_insecure says.
        http_bind: String = "\"127.0.0.1:8080\"",
        /// Where HTTPS comes in; empty for plain HTTP alone. `haas up` sets it.
        https_bind: String = "\"\"",
        /// The master's socket (haproxy -S): reloads are confirmed through it.
        master_socket: PathBuf = "\"/run/haproxy-master.sock\"",
        /// The worker's statistics socket, for the administrator.
        stats_socket: PathBuf = "\"/run/haas-haproxy-stats.sock\"",
        /// Where the control API is reached from HAProxy, several servers separated by spaces;
        /// empty for http.listen.
        control_servers: String = "\"\"",
        /// The user and group that workers change to when HAProxy starts as root; empty for none.
        user: String = "\"\"",
        /// See user.
        group: String = "\"\"",
        /// Routes go live in the running HAProxy at once, through its sockets; without, each
        /// change is a reload.
        live_routes: bool = "true",
        /// With live_routes: how soon after a reload the next one may come that gives new apps
        /// their sections.
        reload_min_interval: Duration = "\"5s\"",
        /// An old worker that still has streams open is ended after this time.
        hard_stop_after: Duration = "\"30m\"",
        /// With live_routes: while this many old workers live, sections wait. `haas doctor` warns
        /// from here on, too.
        old_workers_max: usize = "8",
        /// Up to this many apps each have a section of their own in haproxy.cfg.
        sections_max: usize = "2000",
        /// Connections at most; a new one past that is answered 429.
        maxconn: u32 = "8192",
        /// Requests that one app may have under way; one more is answered 429.
        app_maxconn: u32 = "512",
        /// Requests a second that one app is sent at most, over ten seconds; more are answered 429.
        app_request_rate: u32 = "500",
        /// The longest request body, in MiB; a longer one is answered 413.
        body_max_mib: u32 = "16",
        /// How long the head of a request may take to come in.
        head_timeout: Duration = "\"10s\"",
        /// How long a reload may take to be confirmed.
        confirm_timeout: Duration = "\"10s\"",
        /// The container that HAProxy runs in, where Haas can't signal its master itself: it is
        /// sent SIGUSR2 through Docker's API; empty for a signal to the process.
        reload_container: String = "\"\"",
    }
    /// Certificates for haproxy.https_bind.
    tls: Tls {
        /// The folder. certs/*.pem are yours: each with a certificate, its chain and its key;
        /// watched for changes. live/ is what HAProxy loads: checked copies of them, written by
        /// Haas. ca.pem and ca.key are the local CA's.
        dir: PathBuf = "\"/etc/haas/tls\"",
        /// Certificates come from a CA of this installation's own. `haas up` sets it.
        local_ca: bool = "false",
        /// Browsers are told to use HTTPS alone for so long (RFC 6797); "0s" for not at all.
        hsts: Duration = "\"0s\"",
        /// The control API takes requests in the clear from other machines, too.
        allow_insecure: bool = "false",
    }
    /// What becomes of apps that nobody uses; docs/lifecycle.md has the whole way down. "never" is a
    /// time, too. Each instance may depart from the first five: `haas policy`.
    lifecycle: Lifecycle {
        /// From its last use until an app is put to sleep; the next request wakes it.
        idle_after: TimeLimit = "\"30m\"",
        /// From its last use until it is paused, before it is put to sleep: it keeps its memory, and
        /// wakes sooner.
        pause_after: TimeLimit = "\"never\"",
        /// How long it sleeps before it is archived: its data goes into a file.
        archive_after: TimeLimit = "\"30d\"",
        /// How long it stays archived before it is deleted.
        delete_after: TimeLimit = "\"never\"",
        /// How long a deleted one can be restored before its data is purged.
        purge_after: TimeLimit = "\"30d\"",
        /// How long an open stream, such as a _changes feed, counts as use.
        stream_keeps_awake_for: TimeLimit = "\"12h\"",
        /// Apps that are awake at the same time; to wake one more, the longest idle one is put to
        /// sleep. 0 for no bound.
        max_awake: usize = "0",
        /// Memory in MiB that those awake may take together, each counted with the whole of its
        /// tenant.memory_mib. 0 for no bound.
        memory_budget_mib: usize = "0",
        /// How long a request waits for the app that it wakes before it is answered 503.
        wake_timeout: Duration = "\"30s\"",
        /// Apps that are woken at the same time.
        wake_concurrency: usize = "4",
        /// Apps that are awake and rolled to a new image or new limits at the same time.
        roll_concurrency: usize = "2",
        /// Where archives are kept.
        archive_dir: PathBuf = "\"/var/lib/haas/archive\"",
        /// Who is told before something is archived or purged: an URL that notices are posted to;
        /// empty for nobody. `webhook.key` among the secrets signs them.
        webhook_url: SecretUrl = "\"\"",
        /// How long before. So much time passes after the notice was delivered in any case.
        notice_before: Duration = "\"7d\"",
        /// Nothing is purged by the policy before its notice was delivered.
        purge_needs_notice: bool = "true",
        /// How long volumes, networks and archives of ours that no row claims are left before they
        /// are removed.
        unclaimed_grace: Duration = "\"7d\"",
    }
    /// The loop that makes the world agree with the manifest.
    reconcile: Reconcile {
        /// How often it looks even when nobody nudged it.
        period: Duration = "\"10s\"",
        /// Containers that are started at the same time.
        concurrency: usize = "4",
        /// The rest after a first failure; doubled with each one that follows.
        backoff_base: Duration = "\"2s\"",
        /// The longest rest.
        backoff_max: Duration = "\"5m\"",
        /// An instance that ran this long has its earlier failures forgiven.
        stable_after: Duration = "\"1m\"",
        /// How long a container of ours that no row wants is left before it is removed.
        orphan_grace: Duration = "\"10m\"",
        /// How long a port that something else on the host held is left alone.
        port_retry_after: Duration = "\"24h\"",
    }
    /// Files with mode 0600.
    secrets: Secrets {
        /// The folder. Every file <client>.secret or <client>.<name>.secret in it holds one key of a client
        /// of the API, so that one can be rotated; <client>.toml says what the client may do. instance.key
        /// derives the tenants' admin passwords.
        dir: PathBuf = "\"/etc/haas/secrets\"",
    }
}

/// The layers that a setting is looked up in, and what was wrong with them.
struct Layers {
    file: Table,
    environment: BTreeMap<String, String>,
    overrides: BTreeMap<String, Value>,
    mistakes: Vec<String>,
}

impl Layers {
    fn take<T: Setting>(&mut self, section: &str, key: &str, default: &str) -> Option<T> {
        let name = format!("{section}.{key}");
        let variable = format!("HAAS_{}_{}", section.to_uppercase(), key.to_uppercase());
        let from_file = self.file.get_mut(section).and_then(Value::as_table_mut).and_then(|table| table.remove(key));
        let from_environment = self.environment.remove(&variable);
        let (source, value) = if let Some(value) = self.overrides.remove(&name) {
            (name, value)
        } else if let Some(text) = from_environment {
            (variable, value::from_environment(&text))
        } else if let Some(value) = from_file {
            (name, value)
        } else {
            (name, value::from_literal(default))
        };
        T::from_value(&value).map_err(|why| self.mistakes.push(format!("{source}: {why}"))).ok()
    }

    /// What nobody asked for: a typo must not be ignored.
    fn leftovers(&mut self) {
        for (section, value) in &self.file {
            match value {
                Value::Table(table) => {
                    for key in table.keys() {
                        self.mistakes.push(format!("{section}.{key}: unknown setting"));
                    }
                }
                _ => self.mistakes.push(format!("{section}: unknown setting")),
            }
        }
        for variable in self.environment.keys() {
            self.mistakes.push(format!("{variable}: unknown setting"));
        }
    }
}

/// Variables that share our prefix and are not settings: command-line options, the scripts',
/// docker-compose.yml's, the tests'.
const NOT_SETTINGS: &[&str] = &[
    "HAAS_ADDRESS",
    "HAAS_BASE_IMAGE",
    "HAAS_CONFIG",
    "HAAS_CONTROL_PORT",
    "HAAS_DIR",
    "HAAS_DOCKERD_",
    "HAAS_DOMAIN",
    "HAAS_FAILPOINT",
    "HAAS_HAPROXY_IMAGE",
    "HAAS_HTTPS_PORT",
    "HAAS_HTTP_PORT",
    "HAAS_IMAGE",
    "HAAS_LOCAL_CA",
    "HAAS_LOG",
    "HAAS_POSTGRES_IMAGE",
    "HAAS_TEST_",
    "HAAS_VOLUMES",
    "HAAS_WALK_",
];

fn is_setting(variable: &str) -> bool {
    let other = |name: &str| variable == name || name.ends_with('_') && variable.starts_with(name);
    variable.starts_with("HAAS_") && !NOT_SETTINGS.iter().any(|name| other(name))
}

impl Config {
    /// Puts the layers together: `file` (if any), then the environment, then `overrides` by
    /// their dotted names.
    ///
    /// # Errors
    /// [`ConfigError`] lists every mistake: unreadable file, unknown keys, values out of range.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: BTreeMap<String, Value>,
    ) -> Result<Self, ConfigError> {
        let mut mistakes = Vec::new();
        let mut table = Table::new();
        if let Some(path) = file {
            match std::fs::read_to_string(path) {
                Ok(text) => match text.parse() {
                    Ok(parsed) => table = parsed,
                    Err(error) => mistakes.push(format!("{}: {error}", path.display())),
                },
                Err(error) => mistakes.push(format!("{}: {error}", path.display())),
            }
        }
        let mut database_url = None;
        let mut ours = BTreeMap::new();
        for (name, text) in environment {
            if name == "DATABASE_URL" {
                database_url = Some(text);
            } else if is_setting(&name) {
                ours.insert(name, text);
            }
        }
        if let Some(url) = database_url {
            ours.entry("HAAS_MANIFEST_DATABASE_URL".to_owned()).or_insert(url);
        }
        let mut layers = Layers { file: table, environment: ours, overrides, mistakes };
        let config = Self::read(&mut layers);
        layers.leftovers();
        if let Some(config) = &config {
            config.check(&mut layers.mistakes);
        }
        match config {
            Some(config) if layers.mistakes.is_empty() => Ok(config),
            _ => Err(ConfigError(layers.mistakes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("haas.toml");
        std::fs::write(&path, text).unwrap();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::load(Some(&path), environment, BTreeMap::new())
    }

    #[test]
    fn the_example_is_the_default() {
        let example = load(&Config::example(), &[]).unwrap();
        assert_eq!(example, load("", &[]).unwrap());
        assert_eq!(example.tenant.ports, PortRange { first: 5521, last: 15520 });
        assert_eq!(example.public(), Public { https: false, port: 8080 });
    }

    #[test]
    fn the_environment_is_stronger_than_the_file_and_the_command_line_than_both() {
        let text = "[tenant]\nimage = \"a\"\nmemory_mib = 200\n[http]\nwait = \"1s\"";
        let others = [("HAAS_LOG", "debug"), ("HAAS_DOCKERD_ARGS", "-D"), ("HOME", "/"), ("HAAS_DIR", "/x")];
        let ours = [("HAAS_TENANT_IMAGE", "b"), ("HAAS_TENANT_MEMORY_MIB", "300")];
        let config = load(text, &[&others[..], &ours].concat()).unwrap();
        assert_eq!((config.tenant.image.as_str(), config.tenant.memory_mib), ("b", 300));
        assert_eq!(config.http.wait, Duration::from_secs(1));
        let overrides = BTreeMap::from([("tenant.image".to_owned(), Value::String("c".to_owned()))]);
        let environment = [("HAAS_TENANT_IMAGE".to_owned(), "b".to_owned())];
        assert_eq!(Config::load(None, environment, overrides).unwrap().tenant.image, "c");
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let text = "surprise = 1\n[tenant]\nmemory_mb = 1\nports = \"9-1\"\ncpus = \"many\"\n[http]\nwait = \"soon\"\n[nowhere]\nx = 1";
        let ConfigError(mistakes) =
            load(text, &[("HAAS_HTTP_WORKERS", "-1"), ("HAAS_TENANT_MEMORY", "1")]).unwrap_err();
        for start in [
            "surprise:",
            "tenant.memory_mb:",
            "tenant.ports:",
            "tenant.cpus:",
            "http.wait:",
            "nowhere.x:",
            "HAAS_HTTP_WORKERS:",
            "HAAS_TENANT_MEMORY:",
        ] {
            assert!(mistakes.iter().any(|m| m.starts_with(start)), "{start} not in {mistakes:#?}");
        }
        assert_eq!(mistakes.len(), 8, "{mistakes:#?}");
    }

    #[test]
    fn tenants_reach_nothing_unless_it_is_said() {
        assert_eq!(load("", &[]).unwrap().tenant.egress, Egress::None);
        let internet = [("HAAS_TENANT_EGRESS", "internet")];
        assert_eq!(load("[tenant]\negress = \"none\"", &internet).unwrap().tenant.egress, Egress::Internet);
        for bad in ["\"all\"", "\"None\"", "true", "[]"] {
            let ConfigError(mistakes) = load(&format!("[tenant]\negress = {bad}"), &[]).unwrap_err();
            assert!(mistakes[0].starts_with("tenant.egress: must be \"none\" or \"internet\""), "{mistakes:?}");
        }
    }

    #[test]
    fn nothing_that_would_break_haproxy_cfg_gets_in() {
        for text in [
            "[haproxy]\nhttp_bind = \"127.0.0.1:80\\nbackend evil\"",
            "[haproxy]\nuser = \"a b\"\ngroup = \"c\"",
            "[haproxy]\ndir = \"/tmp/a b\"",
            "[installation]\ndomain = \"a\\nb\"",
        ] {
            assert!(load(text, &[]).is_err(), "{text}");
        }
    }
}
