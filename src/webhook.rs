//! The webhook: what owners have to know is posted to an URL of the operator's, who tells them.
//!
//! A message is a JSON document, signed as Standard Webhooks has it: `webhook-id` is the notice's
//! id and stays the same however often it is sent, `webhook-timestamp` the time in seconds, and
//! `webhook-signature` is `v1,` with the base64 of HMAC-SHA256 over `id.timestamp.body`. Any
//! answer with a 2xx status takes it. The key is base64 in its file, with or without `whsec_` before it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use serde::Serialize;
use sha2::Sha256;
use thiserror::Error;
use url::Url;
use uuid::Uuid;

use crate::instance::name::Email;
use crate::instance::storage::StorageFull;
use crate::instance::{Instance, State};
use crate::manifest::Notice;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The file with the key, among the secrets.
pub const KEY_FILE: &str = "webhook.key";

/// Why a message was not taken.
#[derive(Debug, Error)]
pub enum WebhookError {
    /// No answer.
    #[error("no answer: {0}")]
    Unreachable(String),
    /// An answer that takes nothing.
    #[error("it was answered with status {0}")]
    Refused(u16),
    /// The key can't be read.
    #[error("{}: {source}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What is posted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// The same each time that it is sent.
    pub id: Uuid,
    /// What it is about: `instance.archive`, `instance.purge` or `instance.storage-full`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When it was decided.
    pub timestamp: DateTime<Utc>,
    /// Whom it is about.
    pub data: MessageData,
}

/// Whom a message is about, and when it happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MessageData {
    /// The instance.
    pub id: Uuid,
    /// Whose it is.
    pub username: String,
    /// Which app it serves.
    pub appname: String,
    /// Where the owner gets mail.
    pub emailaddress: Email,
    /// What it does now.
    pub state: State,
    /// When it happens, at the earliest, unless the app is used, or restored, before; of one that was
    /// stopped, when that was.
    pub due_at: DateTime<Utc>,
    /// Of one that was stopped because its data takes more of the disk than it may: how much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_full: Option<StorageFull>,
}

impl Message {
    /// From a notice.
    #[must_use]
    pub fn of(notice: &Notice, instance: &Instance) -> Self {
        Self {
            id: notice.id,
            kind: format!("instance.{}", notice.kind),
            timestamp: notice.created_at,
            data: MessageData {
                id: instance.id,
                username: instance.username.to_string(),
                appname: instance.appname.to_string(),
                emailaddress: instance.email.clone(),
                state: instance.state(),
                due_at: notice.due_at,
                storage_full: instance.storage_full.as_deref().copied().filter(|_| notice.kind == "storage-full"),
            },
        }
    }
}

/// Where messages are posted.
pub struct Webhook {
    url: Url,
    key: Vec<u8>,
    client: reqwest::Client,
}

impl Webhook {
    /// With the key among these secrets.
    ///
    /// # Errors
    /// [`WebhookError::Key`].
    pub fn read(url: Url, secrets_dir: &Path) -> Result<Self, WebhookError> {
        let path = secrets_dir.join(KEY_FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Self::new(url, key(text.trim()))),
            Err(source) => Err(WebhookError::Key { path, source }),
        }
    }

    /// With this key.
    #[must_use]
    pub fn new(url: Url, key: Vec<u8>) -> Self {
        crate::tls::use_ring();
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            // Whoever is named is told, and nobody else.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        let client = if url.scheme() == "http" { client.tls_certs_only([]) } else { client };
        let client = client.build().unwrap_or_else(|error| {
            log::error!("the machine's certificates can't be read, so no HTTPS webhook is reached: {error}");
            reqwest::Client::builder()
                .timeout(TIMEOUT)
                .tls_certs_only([])
                .build()
                .unwrap_or_else(|error| unreachable!("a client that trusts nobody has nothing to load: {error}"))
        });
        Self { url, key, client }
    }

    /// Sends a message; Ok when it was taken.
    ///
    /// # Errors
    /// [`WebhookError::Unreachable`], [`WebhookError::Refused`].
    pub async fn deliver(&self, message: &Message) -> Result<(), WebhookError> {
        let body = serde_json::to_string(message).unwrap_or_default();
        let (id, timestamp) = (message.id.to_string(), Utc::now().timestamp().to_string());
        let answer = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", &timestamp)
            .header("webhook-signature", signature(&self.key, &id, &timestamp, &body))
            .body(body)
            .send()
            .await
            .map_err(|error| WebhookError::Unreachable(error.without_url().to_string()))?;
        if answer.status().is_success() { Ok(()) } else { Err(WebhookError::Refused(answer.status().as_u16())) }
    }
}

/// What does not read as base64 is a key as it is.
fn key(text: &str) -> Vec<u8> {
    STANDARD.decode(text.trim_start_matches("whsec_")).unwrap_or_else(|_| text.as_bytes().to_vec())
}

fn signature(key: &[u8], id: &str, timestamp: &str, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)
        .unwrap_or_else(|error| unreachable!("HMAC takes a key of any length: {error}"));
    mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_as_standard_webhooks_has_it() {
        // The example of the Standard Webhooks specification's own libraries.
        let signed = signature(
            &key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "1614265330",
            "{\"test\": 2432232314}",
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
