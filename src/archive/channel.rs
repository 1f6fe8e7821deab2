//! Between an async stream and a thread that reads or writes: a bounded channel.
//!
//! The end is an item of its own. A channel that is closed without it was abandoned: by a caller
//! that no longer waits, or by a thread that is gone.

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::pin::pin;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{ArchiveError, blocking};

/// How many pieces may wait for the other side.
const DEPTH: usize = 4;
/// The size of those that are made here.
pub(super) const PIECE: usize = 64 * 1024;

enum Item {
    Piece(Bytes),
    End,
}

/// Lets a thread read a stream.
pub(super) async fn feed<T, E>(
    data: impl Stream<Item = Result<Bytes, E>> + Send,
    work: impl FnOnce(Incoming) -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError>
where
    T: Send + 'static,
    E: Display + Send + 'static,
{
    let (sender, receiver) = channel(DEPTH);
    let forward = async move {
        let mut data = pin!(data);
        while let Some(piece) = data.next().await {
            let failed = piece.is_err();
            let item = piece.map(Item::Piece).map_err(|error| error.to_string());
            // A thread that reads no more has failed, and says so below.
            if sender.send(item).await.is_err() || failed {
                return;
            }
        }
        let _ = sender.send(Ok(Item::End)).await;
    };
    let worker = blocking(move || work(Incoming { receiver, current: Bytes::new(), ended: false }));
    // Together: the thread starts when it is first polled.
    let ((), done) = futures_util::future::join(forward, worker).await;
    done
}

/// A stream as a thread reads it.
pub(super) struct Incoming {
    receiver: Receiver<Result<Item, String>>,
    current: Bytes,
    ended: bool,
}

impl Read for Incoming {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            let failure = match self.receiver.blocking_recv() {
                Some(Ok(Item::Piece(piece))) => {
                    self.current = piece;
                    continue;
                }
                Some(Ok(Item::End)) => {
                    self.ended = true;
                    continue;
                }
                Some(Err(failure)) => failure,
                None => "nobody waits for it any more".to_owned(),
            };
            return Err(io::Error::other(ArchiveError::Engine(failure)));
        }
        let length = into.len().min(self.current.len());
        self.current.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}

/// What a thread writes, as a stream. It starts at once, and waits for the reader.
pub(super) fn drain(
    work: impl FnOnce(&mut Outgoing) -> Result<(), ArchiveError> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, io::Error>> + Send + 'static {
    let (sender, receiver) = channel(DEPTH);
    tokio::task::spawn_blocking(move || {
        let mut outgoing = Outgoing { sender, current: BytesMut::new() };
        let last = match work(&mut outgoing).and_then(|()| outgoing.flush().map_err(|error| super::told(error, ""))) {
            Ok(()) => Ok(Item::End),
            Err(error) => Err(io::Error::other(error)),
        };
        // A reader that is gone wants neither.
        let _ = outgoing.sender.blocking_send(last);
    });
    stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Ok(Item::Piece(piece))) => Some((Ok(piece), Some(receiver))),
            Some(Ok(Item::End)) => None,
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Err(io::Error::other("the thread that reads the archive is gone")), None)),
        }
    })
}

/// A stream as a thread writes it, in pieces of one size.
pub(super) struct Outgoing {
    sender: Sender<Result<Item, io::Error>>,
    current: BytesMut,
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE - self.current.len());
        self.current.extend_from_slice(&bytes[..length]);
        if self.current.len() == PIECE {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        let piece = self.current.split().freeze();
        let abandoned = |_| io::Error::other(ArchiveError::Engine("nobody waits for it any more".to_owned()));
        self.sender.blocking_send(Ok(Item::Piece(piece))).map_err(abandoned)
    }
}
