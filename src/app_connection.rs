//! A connection to an app. What answers there is the tenant's: it may say anything, nothing, or go
//! on for ever, and has to harm nobody but itself.
//!
//! hyper bounds a head, trailers and extensions of chunks, but it reads interim answers and zeros
//! of a chunk's size for as long as they come, and while they come fast it keeps its thread. So
//! whoever asks an app does so through a [`Connection`].

use std::error::Error;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{self, Context, Poll};
use std::time::Duration;

use futures_util::future::{Either, select};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::time::timeout;

/// Octets of an answer that is wanted for itself: Hoodie's have some hundreds. A chain of certificates before
/// it has some thousands.
pub(crate) const ANSWER_MAX: u64 = 64 * 1024;
/// And of its head, as HAProxy has it.
pub(crate) const HEAD_MAX: usize = 16 * 1024;
/// What each byte of a body that is passed on brings with it: a chunk of one byte has five of its own.
const OVERHEAD_PER_BYTE: u64 = 16;
/// One look whether it is ready.
const LOOK: Duration = Duration::from_secs(2);

/// Why there is no answer from an app that is any good.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    #[error("no connection to it: {0}")]
    Unreachable(#[from] io::Error),
    #[error("it can't be asked: {0}")]
    NoRequest(#[from] hyper::http::Error),
    #[error("its answer is no HTTP: {}", with_cause(.0))]
    NoAnswer(#[from] hyper::Error),
    #[error("it gave no whole answer within {0:?}")]
    Late(Duration),
    #[error("it answered {0}")]
    Status(StatusCode),
}

/// What went wrong with an answer, in one line.
pub(crate) fn with_cause(error: &hyper::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// A connection that breaks off when the app has sent too much. Its answer can be read when the app takes
/// no more of the request: it may answer early and hang up, and hyper would report that it can't write
/// instead of reading on.
pub(crate) struct Connection {
    stream: TcpStream,
    /// What the app may send, at most, and how much of it is left.
    allowance: u64,
    left: u64,
    /// Bytes of the answer's body that were passed on, and those of them that were credited.
    passed: Arc<AtomicU64>,
    credited: u64,
}

impl Connection {
    /// Connects, once, to an app that may send so many bytes.
    ///
    /// # Errors
    /// When nobody takes the connection.
    pub async fn open(address: impl ToSocketAddrs, allowance: u64) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, allowance, left: allowance, passed: Arc::default(), credited: 0 })
    }

    /// What is counted here as passed on to somebody else is allowed again, with what it brings with it.
    pub fn passing_on(self, passed: Arc<AtomicU64>) -> Self {
        Self { passed, ..self }
    }

    /// Takes down that so much has come.
    fn spend(&mut self, read: u64) -> io::Result<()> {
        let passed = self.passed.load(Ordering::Relaxed);
        let credit = passed.saturating_sub(self.credited).saturating_mul(1 + OVERHEAD_PER_BYTE);
        self.credited = passed;
        // It is never more than at first: nobody saves up for a long read at the end.
        let left = self.left.saturating_add(credit).min(self.allowance);
        let left = left.checked_sub(read);
        self.left = left.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it sends much, and no answer"))?;
        Ok(())
    }
}

/// Looks whether a Hoodie answers 200 at the other end of a connection; its body is not waited for.
///
/// # Errors
/// What there is instead.
pub(crate) async fn ready<S>(opening: impl Future<Output = io::Result<S>>, host: &str) -> Result<(), AskError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let asked = async { status(opening.await?, host).await };
    match timeout(LOOK, asked).await {
        Ok(Ok(StatusCode::OK)) => Ok(()),
        Ok(Ok(other)) => Err(AskError::Status(other)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(AskError::Late(LOOK)),
    }
}

async fn status<S>(stream: S, host: &str) -> Result<StatusCode, AskError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = Request::get("/hoodie/").header(header::HOST, host).body(String::new())?;
    let (mut app, driver) = http1::Builder::new().max_buf_size(HEAD_MAX).handshake(TokioIo::new(stream)).await?;
    let answer = match select(pin!(app.send_request(request)), pin!(driver)).await {
        Either::Left((answer, _)) => answer,
        // It may have ended with the answer.
        Either::Right((_, answer)) => answer.await,
    };
    Ok(answer?.status())
}

/// When nothing can be written any more: never. The reading side is about to end as well.
fn unless_hung_up<T>(written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    match written {
        Poll::Ready(Err(error))
            if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
        {
            Poll::Pending
        }
        other => other,
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        task::ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        let read = into.filled().len() - before;
        Poll::Ready(self.spend(read as u64))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        unless_hung_up(Pin::new(&mut self.stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        unless_hung_up(Pin::new(&mut self.stream).poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// What is found at an app that begins its answer so, and goes on so for ever; and how much of
    /// it was taken.
    async fn looked_at(begin: &str, piece: &str) -> (Result<(), AskError>, u64) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (begin, piece) = (begin.to_owned(), piece.repeat(64 * 1024 / piece.len().max(1)));
        let app = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /hoodie/ HTTP/1.1\r\nhost: notes.alice\r\n"));
            stream.write_all(begin.as_bytes()).await.unwrap();
            let mut taken = 0;
            while let Ok(bytes @ 1..) = stream.write(piece.as_bytes()).await {
                taken += bytes as u64;
            }
            taken
        });
        let looked = ready(Connection::open(address, ANSWER_MAX), "notes.alice").await;
        (looked, timeout(Duration::from_secs(5), app).await.expect("it is let go").unwrap())
    }

    #[tokio::test]
    async fn only_200_is_ready() {
        assert!(looked_at("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", "").await.0.is_ok());
        for other in ["201 Created", "302 Found", "503 Busy"] {
            let answer = format!("HTTP/1.1 {other}\r\ncontent-length: 0\r\n\r\n");
            assert!(matches!(looked_at(&answer, "").await.0, Err(AskError::Status(_))), "{other}");
        }
        assert!(matches!(looked_at("SSH-2.0-OpenSSH\r\n", "").await.0, Err(AskError::NoAnswer(_))));
        // Bound and not listening: nobody else gets the port meanwhile.
        let nobody = tokio::net::TcpSocket::new_v4().unwrap();
        nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let looked = ready(Connection::open(nobody.local_addr().unwrap(), ANSWER_MAX), "notes.alice").await;
        assert!(matches!(looked, Err(AskError::Unreachable(_))));
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_read_so_far() {
        // The kernel holds some of it, too.
        let most = ANSWER_MAX + 16 * 1024 * 1024;
        let interim = "HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n";
        for (begin, piece, why) in [
            ("", interim, "it sends much"),
            ("HTTP/1.1 200 OK\r\n", "x: y\r\n", "too large"),
            ("HTTP/1.1 200 OK\r\nx: ", "y", "too large"),
        ] {
            let (looked, taken) = looked_at(begin, piece).await;
            assert!(looked.as_ref().is_err_and(|error| error.to_string().contains(why)), "{piece:?}: {looked:?}");
            assert!((1..most).contains(&taken), "{piece:?}: {taken}");
        }
        // Its head was good, and nobody reads on.
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        for (begin, piece) in [(chunked, "0"), (chunked, "1;x"), ("HTTP/1.1 200 OK\r\n\r\n", "x")] {
            let (looked, taken) = looked_at(begin, piece).await;
            assert!(looked.is_ok(), "{piece:?}: {looked:?}");
            assert!((1..most).contains(&taken), "{piece:?}: {taken}");
        }
    }

    #[tokio::test]
    async fn what_is_passed_on_is_allowed_again_and_nothing_is_saved_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let passed = Arc::new(AtomicU64::new(0));
        let connection = Connection::open(listener.local_addr().unwrap(), 1000).await.unwrap();
        let mut connection = connection.passing_on(Arc::clone(&passed));
        connection.spend(900).unwrap();
        assert!(connection.spend(101).is_err());
        // A chunk of one byte at a time, for as long as it likes.
        for _ in 0..10_000 {
            connection.spend(6).unwrap();
            passed.fetch_add(1, Ordering::Relaxed);
        }
        // Much that was passed on is no leave to send as much of anything.
        passed.fetch_add(1_000_000, Ordering::Relaxed);
        connection.spend(1000).unwrap();
        assert!(connection.spend(1).is_err());
    }
}
