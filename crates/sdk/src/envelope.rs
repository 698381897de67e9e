//! Messages of a Connect stream: one byte of flags, four of length, the message (contract 5.2).
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::error::CallError;

const HEAD_BYTES: usize = 5;
const COMPRESSED: u8 = 0b01;
const LAST: u8 = 0b10;
/// envd sends at most 32 KiB of output in a message, which JSON makes 44; a hundred times that is a broken server.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// One message of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Envelope {
    /// One of many.
    Message(Bytes),
    /// The last, which says whether all went well.
    End(Bytes),
}

/// Wraps the one message of a request.
pub(crate) fn wrap(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("requests are far below 4 GiB");
    let mut wrapped = BytesMut::with_capacity(HEAD_BYTES + message.len());
    wrapped.put_u8(0);
    wrapped.put_u32(length);
    wrapped.put_slice(message);
    wrapped.freeze()
}

/// Bytes of a stream that are not whole messages yet.
#[derive(Debug, Default)]
pub(crate) struct Envelopes(BytesMut);

impl Envelopes {
    /// Adds what arrived.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Takes the next whole message, if there is one.
    pub(crate) fn next(&mut self) -> Result<Option<Envelope>, CallError> {
        let Some(&[flags, a, b, c, d]) = self.0.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(CallError::garbled(format!("a message of {length} bytes")));
        }
        if flags & COMPRESSED != 0 {
            return Err(CallError::garbled(
                "a compressed message, which was not asked for",
            ));
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

    /// Whether the stream broke within a message.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(envelopes: &mut Envelopes) -> Vec<Envelope> {
        std::iter::from_fn(|| envelopes.next().expect("well formed")).collect()
    }

    proptest! {
        #[test]
        fn messages_are_the_same_however_the_stream_is_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
            cut in 1usize..64,
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| wrap(message)).collect();
            let mut envelopes = Envelopes::default();
            let mut read = Vec::new();
            for piece in stream.chunks(cut) {
                envelopes.push(piece);
                read.extend(all(&mut envelopes));
            }
            let expected: Vec<Envelope> = messages.into_iter().map(|message| Envelope::Message(message.into())).collect();
            prop_assert_eq!(read, expected);
            prop_assert!(envelopes.is_empty());
        }

        #[test]
        fn no_bytes_break_the_reader(stream in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut envelopes = Envelopes::default();
            envelopes.push(&stream);
            while let Ok(Some(_)) = envelopes.next() {}
        }
    }

    #[test]
    fn the_last_message_is_told_from_the_others() {
        let mut envelopes = Envelopes::default();
        envelopes.push(b"\x00\x00\x00\x00\x02{}\x02\x00\x00\x00\x02{}");
        assert_eq!(
            all(&mut envelopes),
            [Envelope::Message("{}".into()), Envelope::End("{}".into())]
        );
    }

    #[test]
    fn messages_without_measure_and_compressed_ones_are_refused() {
        for head in [b"\x00\xff\xff\xff\xff", b"\x01\x00\x00\x00\x01"] {
            let mut envelopes = Envelopes::default();
            envelopes.push(head);
            assert!(matches!(envelopes.next(), Err(CallError::Garbled { .. })));
        }
    }
}
