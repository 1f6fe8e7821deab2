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

/// What `haas up` was started with, for the commands that come after it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Started {
    pub config: Option<PathBuf>,
    pub domain: Option<String>,
    pub http_port: Option<u16>,
    pub ports: Option<String>,
}

impl Started {
    fn overrides(&self, layout: &Layout) -> BTreeMap<String, Value> {
        let path = |path: &Path| Value::String(path.display().to_string());
        let mut overrides = BTreeMap::from([
            ("manifest.database_url".to_owned(), Value::String(layout.database_url())),
            ("haproxy.dir".to_owned(), path(&layout.haproxy_dir())),
            ("haproxy.master_socket".to_owned(), path(&layout.master_socket())),
            ("haproxy.reload_container".to_owned(), Value::String(String::new())),
            ("haproxy.stats_socket".to_owned(), path(&layout.stats_socket())),
            ("http.listen".to_owned(), Value::String(format!("unix:{}", layout.control_socket().display()))),
            ("secrets.dir".to_owned(), path(&layout.secrets_dir())),
        ]);
        let mut set = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                overrides.insert(name.to_owned(), Value::String(value));
            }
        };
        set("installation.domain", self.domain.clone());
        set("haproxy.http_bind", self.http_port.map(|port| format!("127.0.0.1:{port}")));
        set("tenant.ports", self.ports.clone());
        overrides
    }

    /// The settings of a `haas up` in this folder.
    pub fn config(&self, layout: &Layout) -> anyhow::Result<Config> {
        // Its own database, whatever DATABASE_URL says.
        Ok(Config::load(self.config.as_deref(), std::env::vars(), self.overrides(layout))?)
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
