//! What owners are told before something happens to their data: delivered at least once, tried
//! again later and later while nobody takes it.

use std::convert::Infallible;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use tokio::time::sleep;

use super::World;
use super::lifecycle::notice_horizon;
use crate::containers::Containers;
use crate::haproxy::Proxy;
use crate::instance::plan::backoff;
use crate::instance::policy::Descent;
use crate::manifest::Delivery;
use crate::webhook::{Message, Webhook};

/// How often it is looked whether something is to be delivered.
const LOOK: Duration = Duration::from_secs(1);
/// The rests between attempts.
const REST: Duration = Duration::from_secs(2);
const REST_MAX: Duration = Duration::from_secs(3600);

impl<C: Containers, P: Proxy> World<C, P> {
    /// Delivers for as long as this server acts.
    pub(super) async fn tell_owners(&self) -> Infallible {
        let Some(webhook) = &self.webhook else { return std::future::pending().await };
        loop {
            match self.manifest.undelivered(Utc::now()).await {
                Ok(deliveries) => {
                    for delivery in deliveries {
                        self.tell(webhook, &delivery).await;
                    }
                }
                Err(error) => log::debug!("notices wait: {error}"),
            }
            sleep(LOOK).await;
        }
    }

    async fn tell(&self, webhook: &Webhook, delivery: &Delivery) {
        let Delivery { notice, instance } = delivery;
        let mut told = notice.clone();
        if [Descent::Archive, Descent::Purge].iter().any(|step| step.to_string() == told.kind) {
            // Its owner has the whole time from now on.
            told.due_at = told.due_at.max(notice_horizon(&self.settings, Utc::now()));
        }
        let written = match webhook.deliver(&Message::of(&told, instance)).await {
            Ok(()) => {
                log::info!(instance:% = instance.id; "{}: its owner is told of the {}", instance.container, notice.kind);
                self.manifest.notice_delivered(notice.id).await
            }
            Err(error) => {
                let rest = backoff(notice.attempts.saturating_add(1), REST, REST_MAX);
                log::warn!(instance:% = instance.id; "notice {} was not taken: {error}; next attempt in {rest:?}", notice.id);
                let next = Utc::now() + TimeDelta::from_std(rest).unwrap_or(TimeDelta::hours(1));
                self.manifest.notice_failed(notice.id, &error.to_string(), next).await
            }
        };
        if let Err(error) = written {
            // It is delivered once more then.
            log::warn!(instance:% = instance.id; "notice {}: its outcome is not written down: {error}", notice.id);
        }
    }
}
