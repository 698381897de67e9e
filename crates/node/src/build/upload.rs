//! A look at an upload that a COPY step did not take: whether it is the upload that is wrong. The guest's word is not
//! enough for that: it might have any upload of the team's removed.
use std::io::{self, Read};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use ports::blobs::ByteStream;
use tokio::sync::mpsc;

/// How long it is looked at. What takes longer is taken for whole: nothing depends on it but another upload.
const LOOKED_AT_WITHIN: Duration = Duration::from_secs(60);
/// Pieces that wait for whoever unpacks them.
const PIECES_MAX: usize = 4;

/// Whether an upload is no whole archive. Where it cannot be read to its end, nobody knows, and it counts as whole.
pub(super) async fn is_broken(mut upload: ByteStream) -> bool {
    let (tell, pieces) = mpsc::channel(PIECES_MAX);
    let looking = tokio::task::spawn_blocking(move || {
        let checked = artifact::check_archive(Pieces {
            pieces,
            piece: Bytes::new(),
            is_over: false,
        });
        checked.is_err_and(|error| !error.is_input())
    });
    let handing_over = async move {
        while let Some(piece) = upload.next().await {
            let Ok(piece) = piece else { return };
            // Nobody reads on: it is known by now.
            if tell.send(Some(piece)).await.is_err() {
                return;
            }
        }
        let _ = tell.send(None).await;
    };
    // When its time is over, what was to be handed over is gone, and whoever reads it ends by that.
    let looked = tokio::time::timeout(LOOKED_AT_WITHIN, async { tokio::join!(looking, handing_over).0 });
    matches!(looked.await, Ok(Ok(true)))
}

/// Pieces, and `None` behind the last, as something to read.
struct Pieces {
    pieces: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    is_over: bool,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.is_over {
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.is_over = true,
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let taken = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..taken]);
        Ok(taken)
    }
}
