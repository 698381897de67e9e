//! Messages of a Connect stream: one byte of flags, four of length, the message (contract 5.2).
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

const HEAD_BYTES: usize = 5;
const COMPRESSED: u8 = 0b01;
const LAST: u8 = 0b10;

/// The stream is not what was asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Garbled {
    /// Longer than whoever reads has room for.
    #[error("a message of {0} bytes")]
    TooLong(usize),
    /// In a form that was not offered.
    #[error("a compressed message, which was not asked for")]
    Compressed,
}

/// One message of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Envelope {
    /// One of many.
    Message(Bytes),
    /// The last, which says whether all went well.
    End(Bytes),
}

/// Wraps the one message of a request.
///
/// # Panics
/// For one of 4 GiB or more.
#[must_use]
pub fn wrap(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("requests are far below 4 GiB");
    let mut wrapped = BytesMut::with_capacity(HEAD_BYTES + message.len());
    wrapped.put_u8(0);
    wrapped.put_u32(length);
    wrapped.put_slice(message);
    wrapped.freeze()
}

/// Bytes of a stream that are not whole messages yet.
#[derive(Debug)]
pub struct Envelopes {
    rest: BytesMut,
    message_bytes_max: usize,
}

impl Envelopes {
    /// None yet. A longer message than `message_bytes_max` is refused before room is made for it.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            rest: BytesMut::new(),
            message_bytes_max,
        }
    }

    /// Adds what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// Takes the next whole message, if there is one.
    ///
    /// # Errors
    /// See [`Garbled`]: what follows is not understood either.
    pub fn take(&mut self) -> Result<Option<Envelope>, Garbled> {
        let Some(&[flags, a, b, c, d]) = self.rest.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > self.message_bytes_max {
            return Err(Garbled::TooLong(length));
        }
        if flags & COMPRESSED != 0 {
            return Err(Garbled::Compressed);
        }
        if self.rest.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        self.rest.advance(HEAD_BYTES);
        let message = self.rest.split_to(length).freeze();
        Ok(Some(if flags & LAST == 0 {
            Envelope::Message(message)
        } else {
            Envelope::End(message)
        }))
    }

    /// Whether the stream broke within a message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fresh() -> Envelopes {
        Envelopes::new(1 << 20)
    }

    fn all(envelopes: &mut Envelopes) -> Vec<Envelope> {
        std::iter::from_fn(|| envelopes.take().expect("well formed")).collect()
    }

    proptest! {
        #[test]
        fn messages_are_the_same_however_the_stream_is_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
            cut in 1usize..64,
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| wrap(message)).collect();
            let mut envelopes = fresh();
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
            let mut envelopes = fresh();
            envelopes.push(&stream);
            while let Ok(Some(_)) = envelopes.take() {}
        }
    }

    #[test]
    fn the_last_message_is_told_from_the_others() {
        let mut envelopes = fresh();
        envelopes.push(b"\x00\x00\x00\x00\x02{}\x02\x00\x00\x00\x02{}");
        assert_eq!(
            all(&mut envelopes),
            [Envelope::Message("{}".into()), Envelope::End("{}".into())]
        );
    }

    #[test]
    fn messages_without_measure_and_compressed_ones_are_refused() {
        for (head, why) in [
            (b"\x00\xff\xff\xff\xff", Garbled::TooLong(0xffff_ffff)),
            (b"\x00\x00\x10\x00\x01", Garbled::TooLong((1 << 20) + 1)),
            (b"\x01\x00\x00\x00\x01", Garbled::Compressed),
        ] {
            let mut envelopes = fresh();
            envelopes.push(head);
            assert_eq!(envelopes.take(), Err(why));
        }
    }
}
