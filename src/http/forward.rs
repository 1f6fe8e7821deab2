//! Passes a request on to an app, and its answer back, as they come: nothing is held whole, and
//! who is slow slows the other down.
//!
//! A request has a connection of its own, which a task drives. That task is aborted when the
//! answer's body is dropped, or the handler before there is one, so the app sees its client go
//! away. The server has to see it first: it must not allow half-closed connections
//! ([`h1_allow_half_closed`](actix_web::HttpServer::h1_allow_half_closed)). It sees nothing
//! behind more of a body than it holds (160 KiB), while the app reads none of it.
//!
//! A body that breaks off on one side breaks off on the other, never ends as if it were whole.

mod fields;

use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use actix_web::http::{ConnectionType, Method, StatusCode, Version, header};
use actix_web::rt::task::JoinHandle;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use crate::app_connection::{Connection, with_cause};

/// How long an app that has just answered may refuse connections.
const REFUSED_FOR: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(20);
/// What an app may send ahead of what is passed on: the head, sizes of chunks, trailers, and what is
/// held of the body. Without a bound a line that never ends, or interim answers without one after
/// them, would be read for ever.
const AHEAD: u64 = 1024 * 1024;
/// What is held of an answer that has come; its head has to fit in.
const HELD_MAX: usize = 128 * 1024;

/// Why a request has no answer from the app.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    /// Nothing of the body was read.
    #[error("the app takes no connection: {0}")]
    Unreachable(#[source] io::Error),
    /// The app may have seen a part of it.
    #[error("the body is longer than an app may get")]
    BodyTooLong,
    /// What it sent is no answer, or it hung up before one.
    #[error("the app gave no answer: {0}")]
    BadAnswer(String),
    /// The client broke off its body.
    #[error("the client went away")]
    ClientGone,
}

/// Passes a request on to the app that listens on this loopback port, and its answer back.
/// `held` is dropped when the answer's last byte was passed on, or the client has gone away.
///
/// # Errors
/// When there is no answer to pass on. One that breaks off is the client's to see.
pub(super) async fn forward<G: 'static>(
    request: &HttpRequest,
    body: web::Payload,
    port: u16,
    body_max: u64,
    held: G,
) -> Result<HttpResponse, ForwardError> {
    let request_body = Upload::new(request, body, body_max)?;
    let passed_on = fields::request(request, request_body).map_err(ForwardError::Unreachable)?;
    let passed = Arc::<AtomicU64>::default();
    let connection = connect(port, AHEAD).await.map_err(ForwardError::Unreachable)?;
    let connection = TokioIo::new(connection.passing_on(Arc::clone(&passed)));
    let handshake = http1::Builder::new().max_buf_size(HELD_MAX).handshake(connection).await;
    let (mut app, driver) = handshake.map_err(|error| no_answer(&error))?;
    let driver = Driver::spawn(driver);
    let answer = app.send_request(passed_on).await.map_err(|error| no_answer(&error))?;
    let (parts, body) = answer.into_parts();
    let mut answer = fields::answer(&parts).map_err(ForwardError::BadAnswer)?;

    let bodiless = request.method() == Method::HEAD
        || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&answer.status());
    let size = match body.size_hint().exact() {
        // Its length is that of a body that is not there; as a stream, actix leaves it as it is.
        _ if bodiless => BodySize::Stream,
        Some(length) => BodySize::Sized(length),
        None => BodySize::Stream,
    };
    // Where actix sends no chunks, or the client knows none: the body's end is the connection's.
    let chunkless = request.version() < Version::HTTP_11
        || request.method() == Method::CONNECT
        || request.headers().contains_key(header::UPGRADE);
    if chunkless {
        answer.head_mut().set_connection_type(ConnectionType::Close);
    }
    if size == BodySize::Stream && (bodiless || chunkless) {
        // actix would announce chunks all the same.
        answer.head_mut().no_chunking(true);
    }
    Ok(answer.set_body(Download { body, size, passed, _driver: driver, _held: held }).map_into_boxed_body())
}

/// A connection to the app at this loopback port, which may refuse for a moment, and send so many bytes.
pub(super) async fn connect(port: u16, allowance: u64) -> io::Result<Connection> {
    let until = Instant::now() + REFUSED_FOR;
    loop {
        match Connection::open((Ipv4Addr::LOCALHOST, port), allowance).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < until => {
                tokio::time::sleep(RETRY).await;
            }
            opened => return opened,
        }
    }
}

/// Why there is no answer: the client's body, or else the app.
fn no_answer(error: &hyper::Error) -> ForwardError {
    match error.source().and_then(|source| source.downcast_ref()) {
        Some(ForwardError::BodyTooLong) => ForwardError::BodyTooLong,
        Some(ForwardError::ClientGone) => ForwardError::ClientGone,
        _ => ForwardError::BadAnswer(with_cause(error)),
    }
}

/// Closes the app's connection when it is dropped.
pub(super) struct Driver(JoinHandle<()>);

impl Driver {
    /// Drives a connection. Its errors are those of the answer, or of its body.
    pub(super) fn spawn(connection: impl Future<Output = hyper::Result<()>> + 'static) -> Self {
        Self(actix_web::rt::spawn(async move { drop(connection.await) }))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The request's body; none when the request has none.
struct Upload {
    body: Option<web::Payload>,
    /// How many bytes more it may have.
    left: u64,
}

impl Upload {
    fn new(request: &HttpRequest, body: web::Payload, max: u64) -> Result<Self, ForwardError> {
        let headers = request.headers();
        // actix has refused what is no number, and both headers at once.
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.trim().parse().ok());
        let length: u64 = length.unwrap_or_default();
        if length > max {
            return Err(ForwardError::BodyTooLong);
        }
        // Without either, actix gives what follows an upgrade as a body.
        let there = length > 0 || headers.contains_key(header::TRANSFER_ENCODING);
        Ok(Self { body: there.then_some(body), left: max })
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = ForwardError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ForwardError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let Some(chunk) = ready!(Pin::new(body).poll_next(cx)) else { return Poll::Ready(None) };
        let chunk = chunk.map_err(|_| ForwardError::ClientGone)?;
        self.left = self.left.checked_sub(chunk.len() as u64).ok_or(ForwardError::BodyTooLong)?;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }
}

/// The answer's body, and what is to live as long.
struct Download<G> {
    body: Incoming,
    size: BodySize,
    /// Bytes of it that were passed on.
    passed: Arc<AtomicU64>,
    _driver: Driver,
    _held: G,
}

// What is held is never looked at, let alone pinned.
impl<G> Unpin for Download<G> {}

impl<G> MessageBody for Download<G> {
    type Error = hyper::Error;

    fn size(&self) -> BodySize {
        self.size
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        loop {
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)?) else { return Poll::Ready(None) };
            match frame.into_data() {
                // In chunks, an empty one would be the end.
                Ok(chunk) if !chunk.is_empty() => {
                    self.passed.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    return Poll::Ready(Some(Ok(chunk)));
                }
                // Trailers end here.
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
