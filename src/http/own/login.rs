//! Logs in to an app's Hoodie as its admin. What answers is the tenant's: it may say anything,
//! nothing, or go on for ever.

use std::pin::Pin;
use std::time::Duration;

use actix_web::http::header;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::time::timeout;

use crate::app_connection::{ANSWER_MAX, AskError, HEAD_MAX};
use crate::http::forward::{Driver, connect};
use crate::instance::name::Hostname;

/// From the connection to the last byte of the answer; Hoodie takes some milliseconds.
const TIME: Duration = Duration::from_secs(10);
/// Octets of the answer's body; Hoodie's has some hundreds.
const BODY_MAX: usize = 16 * 1024;
/// Hoodie's are base64url of about 36 bytes.
const SESSION_MAX: usize = 256;

/// Why there is no session.
#[derive(Debug, Error)]
pub(super) enum LoginError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("its answer is longer than any session's")]
    TooLong,
    #[error("its answer has no session")]
    NoSession,
}

/// The id of a session, which may stand in a script as it is: base64url without padding.
pub(super) struct SessionId(String);

impl SessionId {
    fn parse(text: String) -> Option<Self> {
        let sound = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        (sound && (1..=SESSION_MAX).contains(&text.len())).then_some(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Logs in at a loopback port.
pub(super) async fn log_in(port: u16, host: &Hostname, password: &str) -> Result<SessionId, LoginError> {
    timeout(TIME, exchange(port, host, password)).await.unwrap_or(Err(AskError::Late(TIME).into()))
}

async fn exchange(port: u16, host: &Hostname, password: &str) -> Result<SessionId, LoginError> {
    let body = json!({ "data": { "type": "session",
        "attributes": { "username": "admin", "password": password } } });
    let request = hyper::Request::put("/hoodie/account/api/session")
        .header(header::HOST.as_str(), host.as_str())
        .header(header::CONTENT_TYPE.as_str(), "application/vnd.api+json")
        .header(header::ACCEPT.as_str(), "application/vnd.api+json")
        .body(body.to_string())
        .map_err(AskError::from)?;
    let connection = TokioIo::new(connect(port, ANSWER_MAX).await.map_err(AskError::from)?);
    let handshake = http1::Builder::new().max_buf_size(HEAD_MAX).handshake(connection).await;
    let (mut app, connection) = handshake.map_err(AskError::from)?;
    let _driver = Driver::spawn(connection);
    let answer = app.send_request(request).await.map_err(AskError::from)?;
    if !answer.status().is_success() {
        return Err(AskError::Status(answer.status()).into());
    }
    session(&collect(answer.into_body()).await?)
}

async fn collect(mut body: Incoming) -> Result<Vec<u8>, LoginError> {
    let mut bytes = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(chunk) = frame.map_err(AskError::from)?.into_data() else { continue };
        if bytes.len() + chunk.len() > BODY_MAX {
            return Err(LoginError::TooLong);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The session of an answer (JSON:API, section 7.1).
pub(super) fn session(body: &[u8]) -> Result<SessionId, LoginError> {
    // Not as a struct, which serde also reads from a list of its fields' values.
    let document: Value = serde_json::from_slice(body).map_err(|_| LoginError::NoSession)?;
    document["data"]["id"].as_str().and_then(|id| SessionId::parse(id.to_owned())).ok_or(LoginError::NoSession)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_stand_in_a_script_is_a_session() {
        let answer = |id: &str| json!({ "data": { "type": "session", "id": id } }).to_string();
        let good = "YWRtaW46NjVGMDAwMDA6-_09";
        assert_eq!(session(answer(good).as_bytes()).unwrap().as_str(), good);
        for bad in ["", "a'b", "</script>", "a\"", "a\\", "a b", "ä", "a=", "a\n", &"a".repeat(257)] {
            assert!(session(answer(bad).as_bytes()).is_err(), "{bad:?}");
        }
        for bad in [
            "",
            "null",
            "{}",
            r#"{"data":null}"#,
            r#"{"data":{"id":7}}"#,
            r#"{"data":[]}"#,
            r#"[["a"]]"#,
            r#"{"data":["a"]}"#,
            &"[".repeat(9999),
        ] {
            assert!(session(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
