//! A Postgres cluster of a test's own, and configurations that use it.

use std::collections::BTreeMap;

use haas::config::Config;
use haas::embedded::{HaproxyProcess, Layout, Postgres};
use haas::haproxy::{Haproxy, Proxy, Settings};
use haas::manifest::{Manifest, migrate};
use tempfile::TempDir;
use toml::Value;

use super::Ports;

pub struct Cluster {
    pub dir: TempDir,
    pub layout: Layout,
    pub config: Config,
}

impl Cluster {
    /// Starts a cluster, migrates it, and makes a configuration for it.
    pub async fn start(ports: Ports, settings: &[(&str, &str)]) -> Self {
        let cluster = Self::start_empty(ports, settings).await;
        migrate(&cluster.layout.owner_url(), Some("haas_server")).await.unwrap();
        cluster
    }

    pub async fn start_empty(ports: Ports, settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("haas").tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("var")).unwrap();
        layout.create().unwrap();
        let mut overrides = BTreeMap::from([
            ("manifest.database_url".to_owned(), Value::String(layout.database_url())),
            ("tenant.ports".to_owned(), Value::String(format!("{}-{}", ports.first, ports.last))),
            ("haproxy.http_bind".to_owned(), Value::String(format!("127.0.0.1:{}", ports.http))),
            ("haproxy.dir".to_owned(), Value::String(layout.haproxy_dir().display().to_string())),
            ("haproxy.master_socket".to_owned(), Value::String(layout.master_socket().display().to_string())),
            ("haproxy.stats_socket".to_owned(), Value::String(layout.stats_socket().display().to_string())),
            ("http.listen".to_owned(), Value::String(format!("unix:{}", layout.control_socket().display()))),
            ("secrets.dir".to_owned(), Value::String(layout.secrets_dir().display().to_string())),
            ("lifecycle.archive_dir".to_owned(), Value::String(layout.archive_dir().display().to_string())),
        ]);
        for (name, value) in settings {
            overrides.insert((*name).to_owned(), Value::String((*value).to_owned()));
        }
        let config = Config::load(None, [], overrides).unwrap();
        let cluster = Self { dir, layout, config };
        Postgres::ensure(&cluster.layout).await.unwrap();
        cluster
    }

    pub fn manifest(&self) -> Manifest {
        Manifest::new(&self.config)
    }

    /// Adds rows as the reconciler leaves them when it is done: `user-00000`'s notes on this port,
    /// and so on. Their ids count from 0, too.
    pub async fn settled(&self, rows: u16, first_port: u16) {
        let insert = format!(
            "INSERT INTO instances (id, username, appname, email, host, container_name, port, desired, phase,
                                    generation, observed_generation, ready_at)
             SELECT lpad(to_hex(n), 32, '0')::uuid, name, 'notes', name || '@example.com',
                    'notes.' || name || '.haas.localhost', name || '-notes', {first_port} + n, 'running', 'running',
                    1, 1, now()
             FROM (SELECT n, 'user-' || lpad(n::text, 5, '0') AS name FROM generate_series(0, {rows} - 1) AS n) AS users;
             INSERT INTO events (instance_id, kind)
             SELECT id, kind FROM instances, unnest(ARRAY['provisioned', 'starting', 'ready', 'running']) AS kind"
        );
        // Each in a transaction of its own; the last leaves autovacuum nothing to do.
        for statement in [&*insert, "VACUUM (FREEZE, ANALYZE)", "CHECKPOINT"] {
            self.sql(statement).await.unwrap();
        }
    }

    /// Runs one statement, as an administrator with psql would.
    pub async fn sql(&self, statement: &str) -> Result<String, String> {
        sql(&self.layout, statement).await
    }
}

pub async fn sql(layout: &Layout, statement: &str) -> Result<String, String> {
    sql_as(&layout.owner_url(), statement).await
}

/// The same as whoever this connection string names.
pub async fn sql_as(url: &str, statement: &str) -> Result<String, String> {
    let output = tokio::process::Command::new("psql")
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement, url])
        .output()
        .await
        .unwrap();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let layout = self.layout.clone();
        // Dropped inside a runtime, which can't be blocked on: a thread with one of its own.
        let stopping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Postgres::stop(&layout)).ok();
        });
        stopping.join().ok();
    }
}

/// The HAProxy of a cluster's configuration, with the manifest's routes; stopped when it is dropped.
pub struct RunningHaproxy(Layout);

impl RunningHaproxy {
    pub async fn start(cluster: &Cluster) -> Self {
        let (live, corrupt) = cluster.manifest().live().await.unwrap();
        assert!(corrupt.is_empty(), "{corrupt:?}");
        let settings = Settings::from_config(&cluster.config);
        Haproxy::new(settings.clone()).publish_alone(&haas::reconcile::routes(&live)).await.unwrap();
        HaproxyProcess::ensure(&cluster.layout, &settings.binary).await.unwrap();
        Self(cluster.layout.clone())
    }
}

impl Drop for RunningHaproxy {
    fn drop(&mut self) {
        let layout = self.0.clone();
        // Dropped inside a runtime, which can't be blocked on: a thread with one of its own.
        let stopping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(HaproxyProcess::stop(&layout)).ok()
        });
        if !matches!(stopping.join(), Ok(Some(true))) {
            eprintln!("HAProxy in {} may still run", self.0.dir().display());
        }
    }
}
