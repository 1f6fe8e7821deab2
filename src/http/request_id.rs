//! Each request's id: HAProxy's where it came through that, so that its log, ours, the event and the
//! answer all have the same one.

use std::future::Future;

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// What HAProxy sets, over whatever the client sent.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// As long as a UUID, with room for what an operator's own template may put there.
const LENGTH_MAX: usize = 64;

tokio::task_local! {
    static CURRENT: RequestId;
}

/// An id that can stand in a log line and in a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestId(String);

impl RequestId {
    /// The request's own, or a new one.
    pub fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(HEADER).and_then(|value| value.to_str().ok());
        let plain = |id: &&str| {
            (1..=LENGTH_MAX).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b))
        };
        Self(given.filter(plain).map_or_else(|| Uuid::new_v4().to_string(), str::to_owned))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For the answer.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }

    /// Runs what handles the request, which then finds it as the current one.
    pub async fn scope<T>(self, handling: impl Future<Output = T>) -> T {
        CURRENT.scope(self, handling).await
    }

    /// That of the request which is being handled.
    pub fn current() -> Option<String> {
        CURRENT.try_with(|id| id.0.clone()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_break_a_log_line_is_replaced() {
        let id = |text: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_bytes(text).unwrap());
            RequestId::of(&headers).0
        };
        assert_eq!(id(b"5f0c-1"), "5f0c-1");
        for odd in [&b""[..], b"a b", b"a\"b", b"\xff", &[b'x'; 65]] {
            assert_eq!(id(odd).len(), 36, "{odd:?}");
        }
    }
}
