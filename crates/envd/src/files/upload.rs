//! Writing files: `POST /files`, one as it is, or several as the parts of a form.
use std::collections::HashSet;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use crate::request_body::RequestBody;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;
use http::{HeaderMap, Request, StatusCode, header};
use multer::Multipart;

use super::disposition::Disposition;
use super::incoming::Content;
use super::metadata::Metadata;
use super::signature::Operation;
use super::writing::Writing;
use super::{Caller, Query, Written};
use crate::access::Refusal;
use crate::http::{Answer, Envd, json};

/// The field of a form that is a file.
const FILE_FIELD: &str = "file";
/// As much of a type as is told back to who sent it.
const TYPE_CHARS_SHOWN: usize = 128;
/// What may come before a part's content shows: a boundary and headers. More is an attack on our memory.
const PREAMBLE_BYTES_MAX: usize = 2 << 20;

/// Writes what the body holds and tells what was written.
pub(crate) async fn upload(envd: &Envd, request: Request<RequestBody>) -> Result<Answer, Refusal> {
    let (parts, body) = request.into_parts();
    let query = Query::of(&parts.uri);
    let caller = Caller::admit(envd, &query, &parts.headers, Operation::Write)?;
    let mut content = Content::new(&parts.headers, body)?;
    let written = write(&caller, &query, &parts.headers, &mut content).await;
    // A form ends before its body does: the last chunk says only that nothing follows, and may come later.
    content.hear_out().await;
    Ok(json(StatusCode::OK, &written?))
}

async fn write(
    caller: &Caller,
    query: &Query,
    headers: &HeaderMap,
    content: &mut Content,
) -> Result<Vec<Written>, Refusal> {
    let metadata = Metadata::of(headers)?;
    let told = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media_type = told
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if media_type == "application/octet-stream" {
        if query.path.is_empty() {
            return Err(Refusal::bad(
                "path query parameter is required for raw body upload",
            ));
        }
        return Ok(vec![write_raw(caller, &query.path, metadata, content).await?]);
    }
    if !media_type.starts_with("multipart/") {
        let told: String = told.chars().take(TYPE_CHARS_SHOWN).collect();
        return Err(Refusal::bad(format!("unsupported content type: {told}")));
    }
    let (_, boundary) = told
        .split_once("boundary=")
        .ok_or_else(|| Refusal::bad("the form has no boundary"))?;
    let boundary = boundary
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .trim_matches('"');
    write_form(caller, &query.path, boundary, &metadata, content).await
}

async fn write_raw(
    caller: &Caller,
    path: &str,
    metadata: Metadata,
    content: &mut Content,
) -> Result<Written, Refusal> {
    // What cannot be unpacked from its first piece on must not empty a file.
    let mut next = content.next().await?;
    let mut writing = Writing::open(caller.place(path)?, caller.user.clone()).await?;
    while let Some(piece) = next {
        writing.write(piece).await?;
        next = content.next().await?;
    }
    writing.finish(metadata).await
}

async fn write_form(
    caller: &Caller,
    path: &str,
    boundary: &str,
    metadata: &Metadata,
    content: &mut Content,
) -> Result<Vec<Written>, Refusal> {
    let unread_bytes = AtomicUsize::new(0);
    let pieces = stream::try_unfold(content, async |content| match content.next().await {
        Ok(piece) => Ok(piece.map(|piece| (piece, content))),
        Err(refusal) => Err(io::Error::other(refusal.message().to_owned())),
    });
    let paced = Paced {
        pieces: Box::pin(pieces),
        rests: false,
        unread_bytes: &unread_bytes,
    };
    let mut form = Multipart::new(paced, boundary);
    let (mut written, mut places) = (Vec::new(), HashSet::new());
    while let Some(mut part) = form.next_field().await.map_err(broken)? {
        unread_bytes.store(0, Ordering::Relaxed);
        let Disposition { name, file_name } = Disposition::of(part.headers());
        if name != FILE_FIELD {
            while part.chunk().await.map_err(broken)?.is_some() {
                unread_bytes.store(0, Ordering::Relaxed);
            }
            continue;
        }
        let target = match path {
            "" => file_name
                .filter(|name| !name.is_empty())
                .ok_or_else(|| Refusal::bad("a part has neither path nor filename"))?,
            path => path.to_owned(),
        };
        let place = caller.place(&target)?;
        if !places.insert(place.clone()) {
            return Err(Refusal::bad(format!(
                "you cannot upload multiple files to the same path '{place}' at once"
            )));
        }
        let mut writing = Writing::open(place, caller.user.clone()).await?;
        while let Some(piece) = part.chunk().await.map_err(broken)? {
            unread_bytes.store(0, Ordering::Relaxed);
            writing.write(piece).await?;
        }
        written.push(writing.finish(metadata.clone()).await?);
    }
    Ok(written)
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
