//! The way of a layer's bytes from where they come to the thread that unpacks them.
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{Images, PullError, blocking};
use crate::digest::Digest;
use crate::layer::{Limits, Unpacked};
use crate::layers::MakeError;

/// Layers that are unpacked at once. Each takes a thread until it has unpacked what has come, also when whoever wanted it has
/// given up, and a few MiB that have come may be thousands of MiB unpacked: so that pulls which are begun and given up in turn
/// do not take all threads that there are.
static UNPACKING: Semaphore = Semaphore::const_new(24);
/// Pieces between the network and the disk. Each is at most some hundred KiB, as hyper reads them: of three downloads at once
/// they are a few MiB. When it is full, the network waits for the disk.
pub(super) const PIECES_MAX: usize = 8;

/// What goes through the pipe.
pub(super) enum Piece {
    Bytes(Bytes),
    /// Nothing is missing. Without it, the bytes broke off.
    End,
}

/// Both ends of a pipe.
pub(super) fn pipe() -> (mpsc::Sender<Piece>, Pipe) {
    let (send, receive) = mpsc::channel(PIECES_MAX);
    let pipe = Pipe {
        receive,
        current: Bytes::new(),
        is_over: false,
    };
    (send, pipe)
}

/// A place among those that unpack: to be had before the first byte is asked for.
pub(super) async fn place() -> SemaphorePermit<'static> {
    UNPACKING.acquire().await.expect("never closed")
}

/// Makes a layer of what comes through the pipe, on a thread. That one goes on when nobody waits for it any more, and `tracked`
/// goes with it.
pub(super) async fn make(
    images: &Images,
    (diff, blob): (Digest, Digest),
    pipe: Pipe,
    limits: Limits,
    (place, tracked): (SemaphorePermit<'static>, TaskTrackerToken),
) -> Result<Result<Unpacked, MakeError>, PullError> {
    let (layers, keeps) = (Arc::clone(&images.layers), images.keeps_archives);
    blocking(move || {
        let _place = place;
        let made = layers.make(diff, Some(blob), pipe, limits, keeps);
        drop(tracked);
        made
    })
    .await
}

/// The disk's end of the pipe. Reads on a thread that may wait.
pub(super) struct Pipe {
    receive: mpsc::Receiver<Piece>,
    current: Bytes,
    is_over: bool,
}

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.is_over {
            match self.receive.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::End) => self.is_over = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the layer broke off",
                    ));
                }
            }
        }
        let most = self.current.len().min(into.len());
        self.current.copy_to_slice(&mut into[..most]);
        Ok(most)
    }
}
