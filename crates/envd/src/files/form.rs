//! A form with files in it (RFC 7578), taken apart as it arrives.
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use multer::Multipart;

use super::disposition::Disposition;
use crate::access::Refusal;

/// The field of a form that is a file.
const FILE_FIELD: &str = "file";
/// What may come before a part's content shows: a boundary and headers. More is an attack on our memory.
const PREAMBLE_BYTES_MAX: usize = 2 << 20;

/// Where the files of a form go.
pub(crate) trait Shelf {
    /// One of them, on its way.
    type File;
    /// Begins a file.
    async fn open(&mut self, file_name: Option<String>) -> Result<Self::File, Refusal>;
    /// Goes on with it.
    async fn write(&mut self, file: &mut Self::File, piece: Bytes) -> Result<(), Refusal>;
    /// It is whole.
    async fn finish(&mut self, file: Self::File) -> Result<(), Refusal>;
}

/// What separates the parts, as the type of the body says.
pub(crate) fn boundary(content_type: &str) -> Result<&str, Refusal> {
    let (_, boundary) = content_type
        .split_once("boundary=")
        .ok_or_else(|| Refusal::bad("the form has no boundary"))?;
    Ok(boundary
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .trim_matches('"'))
}

/// Reads a form to its end and puts its files where they go. Whatever is no file is passed over.
pub(crate) async fn read<K: Shelf>(
    pieces: impl Stream<Item = io::Result<Bytes>> + Send,
    boundary: &str,
    shelf: &mut K,
) -> Result<(), Refusal> {
    let unread_bytes = AtomicUsize::new(0);
    let paced = Paced {
        pieces: Box::pin(pieces),
        rests: false,
        unread_bytes: &unread_bytes,
    };
    let mut form = Multipart::new(paced, boundary);
    while let Some(mut part) = form.next_field().await.map_err(broken)? {
        unread_bytes.store(0, Ordering::Relaxed);
        let Disposition { name, file_name } = Disposition::of(part.headers());
        if name != FILE_FIELD {
            while part.chunk().await.map_err(broken)?.is_some() {
                unread_bytes.store(0, Ordering::Relaxed);
            }
            continue;
        }
        let mut file = shelf.open(file_name).await?;
        while let Some(piece) = part.chunk().await.map_err(broken)? {
            unread_bytes.store(0, Ordering::Relaxed);
            shelf.write(&mut file, piece).await?;
        }
        shelf.finish(file).await?;
    }
    Ok(())
}

fn broken(error: multer::Error) -> Refusal {
    match error {
        multer::Error::StreamReadFailed(error) => Refusal::bad(error.to_string()),
        error => Refusal::bad(format!("the form is broken: {error}")),
    }
}

/// Gives out one piece at a time. The parser takes whatever is ready into its memory, which must not be all that a
/// fast client sends.
struct Paced<'a, S> {
    pieces: Pin<Box<S>>,
    rests: bool,
    /// What was given out since the parser last made sense of something.
    unread_bytes: &'a AtomicUsize,
}

impl<S: Stream<Item = io::Result<Bytes>>> Stream for Paced<'_, S> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.rests) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let piece = std::task::ready!(self.pieces.as_mut().poll_next(cx));
        if let Some(Ok(piece)) = &piece {
            self.rests = true;
            if self.unread_bytes.fetch_add(piece.len(), Ordering::Relaxed) > PREAMBLE_BYTES_MAX {
                return Poll::Ready(Some(Err(io::Error::other(
                    "the headers of a part of the form are too long",
                ))));
            }
        }
        Poll::Ready(piece)
    }
}
