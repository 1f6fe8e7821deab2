//! Waiting for the reconciler: woken by its writes, with a look each second as the floor.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::Api;
use crate::instance::Instance;

const LOOK: Duration = Duration::from_secs(1);

/// Waits until `done`, or until the configured time is over; returns the row as last seen.
pub(super) async fn until(api: &Api, written: Instance, done: impl Fn(&Instance) -> bool) -> Instance {
    let id: Uuid = written.id;
    let deadline = Instant::now() + api.settings.wait;
    let mut news = api.nudges.subscribe();
    let mut latest = written;
    loop {
        // The intent is written: a database that goes away now makes this a slow answer, not a failed one.
        if let Ok(Some(row)) = api.manifest.get(id).await {
            latest = row;
        }
        if done(&latest) || Instant::now() >= deadline {
            return latest;
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
