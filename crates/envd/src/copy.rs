//! COPY steps of a build (contract 4.2): an upload of the client's, put into the sandbox's files.
//!
//! ```text
//! upload ──▶ archive ──▶ links     where an entry lies, as the archive's own links lead
//! (gzip)     (tar)  └──▶ source    what of it is copied: everything below the glob's fixed part
//!                   └──▶ step      onto what: a file or link to an exact place, a directory's content into another
//!                          └──▶ tree, place     one entry after the other, with its directories and owner
//! ```
//!
//! **Invariants.** Nothing is held in memory whole but names, and those within bounds. A path of the archive leads
//! nowhere but below the destination; links that were in the sandbox before are followed, as they are its own.
pub(crate) mod archive;
pub(crate) mod links;
mod owner;
mod place;
pub(crate) mod source;
mod step;
mod tree;
pub(crate) mod upload;

use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use tokio::sync::{Semaphore, mpsc};
use wire::host_calls::Copy;

use self::archive::Archive;
use self::step::{CopyError, Step};
use self::upload::{Piece, Unpacked, Upload};
use crate::access::Refusal;
use crate::http::{Answer, json};
use crate::request_body::RequestBody;

/// Pieces of an upload that wait for the disk; then the client waits.
const PIECES_MAX: usize = 4;
/// After the end of the archive, writers fill up to a record, of 10 KiB most often; and a node that is refused is heard
/// out within reason, so that it reads the refusal and not a broken connection.
const REST_BYTES_MAX: usize = 64 << 20;
const REST_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

/// Copies at a time: each has a thread of its own, of which there are few.
static PLACES: Semaphore = Semaphore::const_new(2);

/// Carries out a COPY step. The body is the upload.
pub(crate) async fn copy(request: Request<RequestBody>) -> Result<Answer, Refusal> {
    let (parts, mut body) = request.into_parts();
    let told = Copy::of_query(parts.uri.query().unwrap_or_default());
    let outcome = match told {
        Ok(told) => {
            let _place = PLACES.acquire().await;
            carry_out(told, &mut body).await
        }
        Err(wrong) => Err(Refusal::bad(wrong.to_string())),
    };
    hear_out(&mut body).await;
    outcome.map(|copied| json(StatusCode::OK, &copied))
}

async fn carry_out(told: Copy, body: &mut RequestBody) -> Result<wire::host_calls::Copied, Refusal> {
    let (tell, pieces) = mpsc::channel(PIECES_MAX);
    let work = tokio::task::spawn_blocking(move || {
        let step = Step::of(&told)?;
        let unpacked = Unpacked::of(Upload::new(pieces)).map_err(archive::ArchiveError::Read)?;
        step.carry_out(&mut Archive::new(unpacked))
    });
    let broken = hand_over(body, tell).await;
    let outcome = work
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    match broken {
        // What the archive looked like without the rest is not what went wrong.
        Some(error) => Err(Refusal::bad(format!("the upload did not arrive: {error}"))),
        None => outcome.map_err(refusal),
    }
}

/// Hands the body over, as long as somebody reads it. What broke, if it did not arrive.
async fn hand_over(body: &mut RequestBody, tell: mpsc::Sender<Piece>) -> Option<std::io::Error> {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = tell.closed() => return None,
        };
        let piece = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Piece::Data(data),
                Err(_trailers) => continue,
            },
            Some(Err(error)) => return Some(error),
            None => Piece::End,
        };
        let is_end = matches!(piece, Piece::End);
        if tell.send(piece).await.is_err() || is_end {
            return None;
        }
    }
}

async fn hear_out(body: &mut RequestBody) {
    let rest = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, bytes::Bytes::len);
            if bytes > REST_BYTES_MAX {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(REST_WITHIN, rest).await;
}

fn refusal(error: CopyError) -> Refusal {
    let status = match &error {
        CopyError::Place { error, .. } if is_full(error) => StatusCode::INSUFFICIENT_STORAGE,
        CopyError::Place { error, .. } if !is_users(error) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    };
    Refusal::new(status, error.to_string())
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(error.kind(), K::StorageFull | K::QuotaExceeded)
}

/// What the step, the upload or the sandbox's own files are the reason of.
fn is_users(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(
        error.kind(),
        K::NotFound
            | K::NotADirectory
            | K::IsADirectory
            | K::AlreadyExists
            | K::PermissionDenied
            | K::InvalidFilename
            | K::InvalidInput
            | K::FileTooLarge
            | K::ReadOnlyFilesystem
            | K::ResourceBusy
            | K::TooManyLinks
    ) || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
