//! Waiting for the reconciler: woken by its writes, with a look each second as the floor.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::Api;
use crate::instance::Instance;

const LOOK: Duration = Duration::from_secs(1);

/// A row, as it was last seen.
pub(super) struct Waited {
    pub row: Instance,
    /// Whether there is none any more: it was purged.
    pub purged: bool,
}

/// Waits until `done`, or the row is gone, or the time is over.
pub(super) async fn until(
    api: &Api,
    written: Instance,
    time: Duration,
    mut done: impl AsyncFnMut(&Instance) -> bool,
) -> Waited {
    let id: Uuid = written.id;
    let deadline = Instant::now() + time;
    let mut news = api.nudges.subscribe();
    let mut row = written;
    loop {
        // The intent is written: a database that goes away now makes this a slow answer, not a failed one.
        match api.manifest.get(id).await {
            Ok(Some(latest)) => row = latest,
            Ok(None) => return Waited { row, purged: true },
            Err(_) => {}
        }
        if done(&row).await || Instant::now() >= deadline {
            return Waited { row, purged: false };
        }
        let look = deadline.min(Instant::now() + LOOK);
        loop {
            match timeout_at(look, news.recv()).await {
                Ok(Ok(changed)) if changed != id => {}
                Ok(Ok(_) | Err(RecvError::Lagged(_))) | Err(_) => break,
                Ok(Err(RecvError::Closed)) => {
                    tokio::time::sleep_until(look).await;
                    break;
                }
            }
        }
    }
}
