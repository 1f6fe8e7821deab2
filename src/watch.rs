//! What happens outside, turned into nudges: containers that die, a template that is edited,
//! secrets that are rotated.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::containers::Docker;
use crate::haproxy::Proxy;
use crate::reconcile::{Nudges, World};

/// How soon a lost stream of events is asked for again.
const RETRY: Duration = Duration::from_secs(1);
const LISTING_LAG: Duration = Duration::from_millis(500);
/// An editor writes a file in several steps.
const QUIET: Duration = Duration::from_millis(100);

/// Nudges at every event of this installation's containers.
pub async fn container_events<P: Proxy>(world: Arc<World<Docker, P>>, nudges: Nudges) -> Infallible {
    loop {
        match world.containers.events().await {
            Ok(events) => {
                // What happened while nobody listened is found by a look.
                nudges.nudge();
                let mut events = std::pin::pin!(events);
                while let Some(event) = events.next().await {
                    match event {
                        Ok(event) => {
                            log::debug!("container event: {}", event.action.unwrap_or_default());
                            nudges.nudge();
                            // The engine's listing trails its events: a container that has died
                            // may still be listed as running.
                            let later = nudges.clone();
                            tokio::spawn(async move {
                                sleep(LISTING_LAG).await;
                                later.nudge();
                            });
                        }
                        Err(error) => {
                            log::debug!("no container events: {error}");
                            break;
                        }
                    }
                }
                nudges.nudge();
            }
            Err(error) => log::debug!("no container events: {error}"),
        }
        sleep(RETRY).await;
    }
}

/// Calls `on_change` whenever something changes in a folder; `only` restricts it to one file.
/// The folder is watched, not the file: an editor that replaces the file would end the watch.
///
/// # Errors
/// When the folder can't be watched.
pub async fn folder(dir: &Path, only: Option<&Path>, mut on_change: impl FnMut()) -> Result<Infallible, notify::Error> {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let only: Option<PathBuf> = only.and_then(Path::file_name).map(PathBuf::from);
    let mut watcher: RecommendedWatcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        let about = |path: &PathBuf| only.as_ref().is_none_or(|name| path.file_name() == Some(name.as_os_str()));
        if !event.kind.is_access() && event.paths.iter().any(about) {
            // The receiver is gone only when nobody wants to know any more.
            let _ = sender.send(());
        }
    })?;
    watcher.watch(dir, RecursiveMode::NonRecursive)?;
    loop {
        if receiver.recv().await.is_none() {
            return Err(notify::Error::generic("the watch has ended"));
        }
        sleep(QUIET).await;
        while receiver.try_recv().is_ok() {}
        on_change();
    }
}
