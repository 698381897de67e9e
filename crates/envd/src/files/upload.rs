//! Writing files: `POST /files`, one as it is, or several as the parts of a form.
use std::collections::HashSet;
use std::io;

use crate::request_body::RequestBody;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, StatusCode, header};

use super::form::{self, Shelf};
use super::incoming::Content;
use super::metadata::Metadata;
use super::signature::Operation;
use super::writing::Writing;
use super::{Caller, Query, Written};
use crate::access::Refusal;
use crate::http::{Answer, Envd, json};

/// As much of a type as is told back to who sent it.
const TYPE_CHARS_SHOWN: usize = 128;

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
    let boundary = form::boundary(told)?;
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

/// Where the files of a form go: each to its place, and no two to one.
struct Disk<'a> {
    caller: &'a Caller,
    path: &'a str,
    metadata: &'a Metadata,
    places: HashSet<String>,
    written: Vec<Written>,
}

impl Shelf for Disk<'_> {
    type File = Writing;

    async fn open(&mut self, file_name: Option<String>) -> Result<Writing, Refusal> {
        let target = match self.path {
            "" => file_name
                .filter(|name| !name.is_empty())
                .ok_or_else(|| Refusal::bad("a part has neither path nor filename"))?,
            path => path.to_owned(),
        };
        let place = self.caller.place(&target)?;
        if !self.places.insert(place.clone()) {
            return Err(Refusal::bad(format!(
                "you cannot upload multiple files to the same path '{place}' at once"
            )));
        }
        Writing::open(place, self.caller.user.clone()).await
    }

    async fn write(&mut self, file: &mut Writing, piece: Bytes) -> Result<(), Refusal> {
        file.write(piece).await
    }

    async fn finish(&mut self, file: Writing) -> Result<(), Refusal> {
        self.written.push(file.finish(self.metadata.clone()).await?);
        Ok(())
    }
}

async fn write_form(
    caller: &Caller,
    path: &str,
    boundary: &str,
    metadata: &Metadata,
    content: &mut Content,
) -> Result<Vec<Written>, Refusal> {
    let pieces = stream::try_unfold(content, async |content| match content.next().await {
        Ok(piece) => Ok(piece.map(|piece| (piece, content))),
        Err(refusal) => Err(io::Error::other(refusal.message().to_owned())),
    });
    let mut disk = Disk {
        caller,
        path,
        metadata,
        places: HashSet::new(),
        written: Vec::new(),
    };
    form::read(pieces, boundary, &mut disk).await?;
    Ok(disk.written)
}
