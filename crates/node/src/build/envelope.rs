//! Messages of a Connect stream: one byte of flags, four of length, the message (contract 5.2). The sender is a guest.
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

const HEAD_BYTES: usize = 5;
const COMPRESSED: u8 = 0b01;
const LAST: u8 = 0b10;
/// envd sends at most 32 KiB of output in a message, which JSON makes 44; twenty times that is not envd.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The stream is not what envd sends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Garbled {
    #[error("a message of {0} bytes")]
    TooLong(usize),
    #[error("a compressed message, which was not asked for")]
    Compressed,
}

/// One message of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Envelope {
    /// One of many.
    Message(Bytes),
    /// The last, which says whether all went well.
    End(Bytes),
}

/// Wraps the one message of a request.
pub(super) fn wrap(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("requests are far below 4 GiB");
    let mut wrapped = BytesMut::with_capacity(HEAD_BYTES + message.len());
    wrapped.put_u8(0);
    wrapped.put_u32(length);
    wrapped.put_slice(message);
    wrapped.freeze()
}

/// Bytes of a stream that are not whole messages yet.
#[derive(Debug, Default)]
pub(super) struct Envelopes(BytesMut);

impl Envelopes {
    /// Adds what arrived.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Takes the next whole message, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Envelope>, Garbled> {
        let Some(&[flags, a, b, c, d]) = self.0.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(Garbled::TooLong(length));
        }
        if flags & COMPRESSED != 0 {
            return Err(Garbled::Compressed);
        }
        if self.0.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        self.0.advance(HEAD_BYTES);
        let message = self.0.split_to(length).freeze();
        Ok(Some(if flags & LAST == 0 {
            Envelope::Message(message)
        } else {
            Envelope::End(message)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_same_however_the_stream_is_cut() {
        let stream: Vec<u8> = [&wrap(b"one")[..], &wrap(b""), b"\x02\x00\x00\x00\x02{}"].concat();
        for cut in 1..=stream.len() {
            let mut envelopes = Envelopes::default();
            let mut read = Vec::new();
            for piece in stream.chunks(cut) {
                envelopes.push(piece);
                while let Some(envelope) = envelopes.next().unwrap() {
                    read.push(envelope);
                }
            }
            let message = |text: &'static str| Envelope::Message(text.into());
            assert_eq!(
                read,
                [message("one"), message(""), Envelope::End("{}".into())],
                "{cut}"
            );
        }
    }

    #[test]
    fn messages_without_measure_and_compressed_ones_are_refused() {
        for (head, why) in [
            (b"\x00\xff\xff\xff\xff", Garbled::TooLong(0xffff_ffff)),
            (b"\x01\x00\x00\x00\x01", Garbled::Compressed),
        ] {
            let mut envelopes = Envelopes::default();
            envelopes.push(head);
            assert_eq!(envelopes.next(), Err(why));
        }
    }
}
