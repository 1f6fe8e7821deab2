//! Puts the rooms together and runs them: the API, the reconciler, and what nudges it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::clients::{Clients, ClientsError};
use crate::config::Config;
use crate::containers::{Docker, DockerSettings};
use crate::credentials::{InstanceKey, KeyError};
use crate::failpoint::Faults;
use crate::haproxy::{self, Haproxy, ReloadSignal};
use crate::http::{self, Api, Changes, Listener, Throttle};
use crate::manifest::{Cause, Manifest, ManifestError};
use crate::reconcile::{self, Health, Held, Nudges, Worker, World};
use crate::watch;
use crate::webhook::{Webhook, WebhookError};

/// How often requests that are held for long are written down as use.
const NOTE_HELD: std::time::Duration = std::time::Duration::from_secs(10);

/// Why a server can't start, or had to stop.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The manifest can't be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The clients' keys can't be used.
    #[error(transparent)]
    Clients(#[from] ClientsError),
    /// The instance key can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The webhook's key can't be used.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// A part of the server has ended by itself.
    #[error("a part of the server has ended by itself: {0}")]
    Ended(String),
    /// The API's socket can't be used.
    #[error("{listen}: {error}")]
    Listen {
        /// Where it should have listened.
        listen: String,
        /// What the system said.
        error: std::io::Error,
    },
}

/// The key that derives the tenants' admin passwords.
#[must_use]
pub fn instance_key_path(secrets_dir: &Path) -> PathBuf {
    secrets_dir.join("instance.key")
}

/// The rooms that act on the world, for the server and for commands; `cause` is who has them do so.
///
/// # Errors
/// [`ServerError`] when the manifest or the instance key can't be used.
pub async fn world(config: &Config, cause: Cause, faults: Faults) -> Result<Arc<World<Docker, Haproxy>>, ServerError> {
    let manifest = Manifest::new(config).caused_by(cause);
    let installation = manifest.installation().await?;
    let key = InstanceKey::read(&instance_key_path(&config.secrets.dir))?;
    let settings = DockerSettings { installation, tenant: config.tenant.clone(), key };
    let mut proxy = Haproxy::new(haproxy::Settings::from_config(config)).with_faults(faults.clone());
    if !config.haproxy.reload_container.is_empty() {
        let signal = through_docker(Docker::new(settings.clone()), config.haproxy.reload_container.clone());
        proxy = proxy.with_reload_signal(signal);
    }
    let docker = Docker::new(settings);
    let webhook = match config.lifecycle.webhook_url.parse() {
        Ok(url) => Some(Webhook::read(url, &config.secrets.dir)?),
        Err(_) => None,
    };
    Ok(World::new_telling(manifest, docker, proxy, reconcile::Settings::from_config(config), faults, webhook))
}

/// A signal to a HAProxy that is the first process of another container: its master's process id
/// means nothing here.
fn through_docker(docker: Docker, container: String) -> ReloadSignal {
    let docker = Arc::new(docker);
    Arc::new(move |_| {
        let (docker, container) = (Arc::clone(&docker), container.clone());
        Box::pin(async move {
            let sent = docker.signal(&container, "SIGUSR2").await;
            sent.map_err(|error| format!("{error} (haproxy.reload_container)"))
        })
    })
}

/// Runs a server until `stop` is done. The database has been migrated before.
///
/// # Errors
/// [`ServerError`] when it can't start.
pub async fn run(config: &Config, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
    let faults = Faults::from_environment();
    let clients = Clients::read(&config.secrets.dir)?;
    tell_mistakes(&clients);
    let world = world(config, Cause::default(), faults.clone()).await?;
    let key = InstanceKey::read(&instance_key_path(&config.secrets.dir))?;
    let (health, nudges) = (Health::default(), Nudges::default());
    let listener = Listener::bind(&config.http.listen)
        .map_err(|error| ServerError::Listen { listen: config.http.listen.to_string(), error })?;
    let api = Api {
        manifest: Manifest::new(config),
        nudges: nudges.clone(),
        health: health.clone(),
        clients: clients.clone(),
        throttle: Throttle::new(config.http.failures_per_minute),
        changes: Changes::new(config.http.changes_per_minute, config.http.changes_per_app),
        faults,
        held: world.held.clone(),
        key,
        settings: http::Settings::from_config(config),
    };
    let server = http::serve(api, listener)
        .map_err(|error| ServerError::Listen { listen: config.http.listen.to_string(), error })?;
    let handle = server.handle();
    let mut serving = tokio::spawn(server);

    let database_url = config.manifest.database_url.as_str().to_owned();
    let mut background = tokio::task::JoinSet::new();
    let worker = Worker::new(Arc::clone(&world), database_url, health, nudges.clone());
    background.spawn(async move { match worker.run().await {} });
    background.spawn(note_held(Manifest::new(config), world.held.clone()));
    let events = watch::container_events(world, nudges.clone());
    background.spawn(async move { match events.await {} });
    background.spawn(watch_keys(config.secrets.dir.clone(), clients));
    if !config.haproxy.https_bind.is_empty() {
        background.spawn(watch_certificates(config.tls.dir.join("certs"), nudges.clone()));
    }
    if !config.haproxy.template.as_os_str().is_empty() {
        background.spawn(watch_template(config.haproxy.template.clone(), nudges));
    }
    log::info!("the control API listens on {}", config.http.listen);

    let ended = tokio::select! {
        () = stop => Ok(()),
        // Only a bug ends one of these: better no server, which whoever runs it starts again,
        // than one that takes requests and does nothing.
        gone = background.join_next() => Err(ServerError::Ended(format!("{gone:?}"))),
        gone = &mut serving => Err(ServerError::Ended(format!("the API: {gone:?}"))),
    };
    handle.stop(true).await;
    background.shutdown().await;
    ended
}

/// A server that stands by may hold, and pass on, requests as well: whoever acts learns of them from
/// the manifest.
async fn note_held(manifest: Manifest, held: Held) {
    loop {
        tokio::time::sleep(NOTE_HELD).await;
        let now = chrono::Utc::now();
        let uses: Vec<_> = held.instances().into_iter().map(|id| (id, now)).collect();
        if !uses.is_empty()
            && let Err(error) = manifest.note_use(&uses, None).await
        {
            log::debug!("held requests are not written down as use: {error}");
        }
    }
}

fn tell_mistakes(clients: &Clients) {
    for mistake in clients.mistakes() {
        log::warn!("{mistake}");
    }
}

async fn watch_keys(dir: PathBuf, clients: Clients) {
    let reload = || match clients.reload() {
        Ok(()) => {
            let keys: Vec<String> = clients.keys().into_iter().map(|key| key.id).collect();
            log::info!("the clients' keys were read again: {}", keys.join(" "));
            tell_mistakes(&clients);
        }
        Err(error @ ClientsError::None(_)) => log::error!("nobody is let in: {error}"),
        Err(error) => log::error!("the clients' keys stay as they were: {error}"),
    };
    let Err(error) = watch::folder(&dir, None, reload).await;
    log::error!("{} is not watched: a rotated key needs a restart: {error}", dir.display());
    std::future::pending::<()>().await;
}

async fn watch_certificates(dir: PathBuf, nudges: Nudges) {
    if let Err(error) = std::fs::create_dir_all(&dir) {
        log::warn!("{}: {error}", dir.display());
    }
    let Err(error) = watch::folder(&dir, None, || nudges.nudge_haproxy()).await;
    log::error!("{} is not watched: a new certificate is seen within reconcile.period: {error}", dir.display());
    std::future::pending::<()>().await;
}

async fn watch_template(template: PathBuf, nudges: Nudges) {
    let dir = template.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Err(error) = watch::folder(dir, Some(&template), || nudges.nudge_haproxy()).await;
    log::error!("{} is not watched: {error}", template.display());
    std::future::pending::<()>().await;
}
