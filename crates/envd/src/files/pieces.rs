//! Memory for pieces of a file on their way out, used again as soon as one has been sent.
//!
//! A piece is larger than what allocators keep at hand: a fresh one for each is a map of fresh pages, and clearing those
//! takes as long as carrying the content.
use std::sync::{Arc, Mutex};

use bytes::Bytes;

/// As many as are on their way at once: one that is read, one that waits, and what the connection holds.
const SPARES_MAX: usize = 4;

/// The spare pieces of one transfer.
#[derive(Debug, Clone, Default)]
pub(super) struct Pieces(Arc<Mutex<Vec<Vec<u8>>>>);

struct Lent {
    piece: Vec<u8>,
    home: Pieces,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.put(std::mem::take(&mut self.piece));
    }
}

const UNPOISONED: &str = "nothing panics while it holds the spares";

impl Pieces {
    /// An empty piece that takes so many bytes.
    pub(super) fn take(&self, bytes: usize) -> Vec<u8> {
        let mut piece = self.0.lock().expect(UNPOISONED).pop().unwrap_or_default();
        piece.clear();
        piece.reserve_exact(bytes);
        piece
    }

    /// Takes back what is not sent.
    pub(super) fn put(&self, piece: Vec<u8>) {
        let mut spares = self.0.lock().expect(UNPOISONED);
        if spares.len() < SPARES_MAX {
            spares.push(piece);
        }
    }

    /// A piece on its way: it comes back when nobody reads it any more.
    pub(super) fn lend(&self, piece: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent {
            piece,
            home: self.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_that_was_sent_is_used_again() {
        let pieces = Pieces::default();
        let mut piece = pieces.take(1 << 18);
        piece.extend_from_slice(b"content");
        let memory = piece.as_ptr();
        let sent = pieces.lend(piece);
        let kept = sent.slice(3..);
        drop(sent);
        let other = pieces.take(1 << 18);
        assert_ne!(other.as_ptr(), memory, "somebody reads it still");
        assert_eq!(kept, "tent");
        drop(kept);
        let again = pieces.take(1 << 18);
        assert!(again.is_empty());
        assert_eq!(again.as_ptr(), memory);
    }
}
