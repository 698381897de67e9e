//! What a client uploaded, on its way from the connection to whoever reads it where reading may block.
use std::io::{self, BufReader, Cursor, Read};

use bytes::{Buf as _, Bytes};
use flate2::bufread::MultiGzDecoder;
use tokio::sync::mpsc;

/// What is read ahead of whoever unpacks it.
const AHEAD_BYTES: usize = 64 * 1024;
/// How gzip begins (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A piece, or that it was the last.
pub(super) enum Piece {
    Data(Bytes),
    End,
}

/// The pieces, as something to read.
pub(super) struct Upload {
    pieces: mpsc::Receiver<Piece>,
    piece: Bytes,
    is_over: bool,
}

impl Upload {
    pub(super) fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self {
            pieces,
            piece: Bytes::new(),
            is_over: false,
        }
    }
}

impl Read for Upload {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.is_over {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(piece)) => self.piece = piece,
                Some(Piece::End) => self.is_over = true,
                // Whoever sends has gone without saying that this was all.
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let taken = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..taken]);
        Ok(taken)
    }
}

/// The archive itself, unpacked if it is packed.
pub(crate) enum Unpacked<R: Read> {
    Plain(BufReader<Begun<R>>),
    Gzip(Box<MultiGzDecoder<BufReader<Begun<R>>>>),
}

/// What was looked at, and the rest.
type Begun<R> = io::Chain<Cursor<Vec<u8>>, R>;

impl<R: Read> Unpacked<R> {
    /// Looks how it begins.
    pub(crate) fn of(mut packed: R) -> io::Result<Self> {
        let mut begin = Vec::with_capacity(GZIP.len());
        packed.by_ref().take(GZIP.len() as u64).read_to_end(&mut begin)?;
        let is_gzip = begin == GZIP;
        let all = BufReader::with_capacity(AHEAD_BYTES, Read::chain(Cursor::new(begin), packed));
        Ok(if is_gzip {
            Self::Gzip(Box::new(MultiGzDecoder::new(all)))
        } else {
            Self::Plain(all)
        })
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(plain) => plain.read(buffer),
            Self::Gzip(packed) => packed.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn pieces_are_read_to_the_end_that_was_said() {
        let (tell, pieces) = mpsc::channel(4);
        for text in ["ab", "", "c"] {
            tell.try_send(Piece::Data(Bytes::from(text))).ok().unwrap();
        }
        tell.try_send(Piece::End).ok().unwrap();
        let mut all = String::new();
        Upload::new(pieces).read_to_string(&mut all).unwrap();
        assert_eq!(all, "abc");
    }

    #[test]
    fn a_sender_that_goes_without_a_word_is_no_end() {
        let (tell, pieces) = mpsc::channel(4);
        tell.try_send(Piece::Data(Bytes::from("ab"))).ok().unwrap();
        drop(tell);
        let error = Upload::new(pieces).read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[test]
    fn what_is_packed_is_unpacked_and_what_is_not_is_not() {
        let unpack = |packed: &[u8]| {
            let mut all = Vec::new();
            Unpacked::of(packed)?.read_to_end(&mut all).map(|_| all)
        };
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"hello").unwrap();
        let packed = gzip.finish().unwrap();
        assert_eq!(unpack(&packed).unwrap(), b"hello");
        assert_eq!(unpack(&[&packed[..], &packed].concat()).unwrap(), b"hellohello");
        assert!(
            unpack(&packed[..packed.len() - 4]).is_err(),
            "a cut one is an error"
        );
        for plain in ["", "h", "hello"] {
            assert_eq!(unpack(plain.as_bytes()).unwrap(), plain.as_bytes());
        }
    }
}
