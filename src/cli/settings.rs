//! Where a command's settings come from: its options, the environment, a file, and what the
//! `haas up` of the same folder was started with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use toml::Value;

use super::Global;
use crate::config::Config;
use crate::embedded::Layout;
use crate::manifest::{Actor, Cause, Manifest};

/// Where the HTTPS of `haas up` comes in, unless its options or a file say otherwise.
const HTTPS_BIND: &str = "127.0.0.1:8443";
/// The setting's default, which `haas up` takes for "in its own folder".
const ARCHIVE_DIR: &str = "/var/lib/haas/archive";

/// What `haas up` was started with, for the commands that come after it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Started {
    pub config: Option<PathBuf>,
    pub domain: Option<String>,
    pub http_port: Option<u16>,
    /// Off as it was before there was any.
    #[serde(default)]
    pub tls: bool,
    pub https_port: Option<u16>,
    pub ports: Option<String>,
}

impl Started {
    fn overrides(&self, layout: &Layout) -> BTreeMap<String, Value> {
        let path = |path: &Path| Value::String(path.display().to_string());
        let mut overrides = BTreeMap::from([
            ("manifest.database_url".to_owned(), Value::String(layout.database_url())),
            ("manifest.owner_url".to_owned(), Value::String(layout.owner_url())),
            ("haproxy.dir".to_owned(), path(&layout.haproxy_dir())),
            ("haproxy.master_socket".to_owned(), path(&layout.master_socket())),
            ("haproxy.reload_container".to_owned(), Value::String(String::new())),
            ("haproxy.stats_socket".to_owned(), path(&layout.stats_socket())),
            ("http.listen".to_owned(), Value::String(format!("unix:{}", layout.control_socket().display()))),
            ("secrets.dir".to_owned(), path(&layout.secrets_dir())),
            ("tls.dir".to_owned(), path(&layout.tls_dir())),
            ("tls.local_ca".to_owned(), Value::Boolean(self.tls)),
        ]);
        let mut set = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                overrides.insert(name.to_owned(), Value::String(value));
            }
        };
        set("installation.domain", self.domain.clone());
        set("haproxy.http_bind", self.http_port.map(|port| format!("127.0.0.1:{port}")));
        let https = self.https_port.map(|port| format!("127.0.0.1:{port}"));
        set("haproxy.https_bind", if self.tls { https } else { Some(String::new()) });
        set("tenant.ports", self.ports.clone());
        overrides
    }

    /// The settings of a `haas up` in this folder.
    pub fn config(&self, layout: &Layout) -> anyhow::Result<Config> {
        // Its own database, whatever DATABASE_URL says.
        let mut overrides = self.overrides(layout);
        let config = Config::load(self.config.as_deref(), std::env::vars(), overrides.clone())?;
        let before = overrides.len();
        let mut set_unless = |set: bool, name: &str, value: String| {
            if !set {
                overrides.insert(name.to_owned(), Value::String(value));
            }
        };
        let https = !self.tls || !config.haproxy.https_bind.is_empty();
        set_unless(https, "haproxy.https_bind", HTTPS_BIND.to_owned());
        let archive = config.lifecycle.archive_dir != Path::new(ARCHIVE_DIR);
        set_unless(archive, "lifecycle.archive_dir", layout.archive_dir().display().to_string());
        if overrides.len() == before {
            return Ok(config);
        }
        Ok(Config::load(self.config.as_deref(), std::env::vars(), overrides)?)
    }

    pub fn write(&self, layout: &Layout) -> anyhow::Result<()> {
        let path = layout.settings_file();
        let text = format!(
            "# What the latest `haas up` in this folder was started with; other commands read it.\n{}",
            toml::to_string(self)?
        );
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    }

    /// What the latest `haas up` in this folder was started with, if there was one.
    pub fn read(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let path = layout.settings_file();
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(toml::from_str(&text).with_context(|| path.display().to_string())?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }
}

/// The settings of a server that runs with a Postgres and a HAProxy that others run.
pub(super) fn standalone(global: &Global) -> anyhow::Result<Config> {
    let config = Config::load(global.config.as_deref(), std::env::vars(), BTreeMap::new())?;
    anyhow::ensure!(
        !config.manifest.database_url.is_empty(),
        "no database: set DATABASE_URL, or manifest.database_url in a file given by --config"
    );
    Ok(config)
}

/// The settings of whichever server this command is about: the one whose database is named,
/// else the `haas up` of the folder.
pub(super) fn of_server(global: &Global) -> anyhow::Result<Config> {
    let config = Config::load(global.config.as_deref(), std::env::vars(), BTreeMap::new())?;
    if !config.manifest.database_url.is_empty() {
        return Ok(config);
    }
    let layout = Layout::new(&global.dir)?;
    let started = Started::read(&layout)?.with_context(|| {
        format!(
            "no `haas up` has run in {} and no database is named: give --dir, or set DATABASE_URL",
            layout.dir().display()
        )
    })?;
    // A file that is named now is stronger than the one that `haas up` was started with.
    let config = global.config.clone().or(started.config.clone());
    Started { config, ..started }.config(&layout)
}

/// The same, for a command that needs no database: else a file and the environment alone.
pub(super) fn of_any(global: &Global) -> anyhow::Result<Config> {
    if Started::read(&Layout::new(&global.dir)?)?.is_some() {
        return of_server(global);
    }
    Ok(Config::load(global.config.as_deref(), std::env::vars(), BTreeMap::new())?)
}

/// The manifest, in whose events the person at this command line stands.
pub(super) fn manifest(config: &Config) -> Manifest {
    Manifest::new(config).caused_by(cause())
}

/// That person: who has become root by sudo is still who it was.
pub(super) fn cause() -> Cause {
    let uid = nix::unistd::getuid();
    let sudoer = std::env::var("SUDO_USER").ok().filter(|login| uid.is_root() && !login.is_empty());
    let account = || nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    let login = sudoer.or_else(account).unwrap_or_else(|| uid.to_string());
    Cause { actor: Actor::Admin { login }, request: None, budget: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn https_is_on_unless_it_was_turned_off_or_there_was_none_yet() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path()).unwrap();
        let file = dir.path().join("haas.toml");
        std::fs::write(&file, "[haproxy]\nhttps_bind = \"127.0.0.1:9443\"").unwrap();
        let bind = |text: &str| {
            std::fs::write(layout.settings_file(), text).unwrap();
            let config = Started::read(&layout).unwrap().unwrap().config(&layout).unwrap();
            (config.haproxy.https_bind, config.tls.local_ca)
        };
        assert_eq!(bind("http_port = 8081"), (String::new(), false), "written before there was HTTPS");
        assert_eq!(bind("tls = true"), (HTTPS_BIND.to_owned(), true));
        assert_eq!(bind("tls = true\nhttps_port = 7443"), ("127.0.0.1:7443".to_owned(), true));
        let named = format!("config = {:?}\n", file.to_str().unwrap());
        assert_eq!(bind(&format!("{named}tls = true")), ("127.0.0.1:9443".to_owned(), true));
        assert_eq!(bind(&format!("{named}tls = false")), (String::new(), false));
    }
}
