//! Protocol buffers, as much as CRIU's requests, answers and one of its images need
//! ([encoding](https://protobuf.dev/programming-guides/encoding/)).
use std::io;

/// A message that is being written.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            let [low, ..] = value.to_le_bytes();
            self.0.push(low | 0x80);
            value >>= 7;
        }
        let [low, ..] = value.to_le_bytes();
        self.0.push(low);
    }

    fn key(&mut self, field: u32, kind: u32) {
        self.varint(u64::from(field << 3 | kind));
    }

    /// A number, or the number of one of several choices.
    pub(crate) fn number(&mut self, field: u32, value: u64) -> &mut Self {
        self.key(field, VARINT);
        self.varint(value);
        self
    }

    /// True; what is false is left out.
    pub(crate) fn yes(&mut self, field: u32) -> &mut Self {
        self.number(field, 1)
    }

    /// Text, or a message in this one.
    pub(crate) fn bytes(&mut self, field: u32, value: &[u8]) -> &mut Self {
        self.key(field, BYTES);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

const VARINT: u32 = 0;
const BYTES: u32 = 2;

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    pub(crate) fn number(self) -> Option<u64> {
        match self {
            Value::Number(number) => Some(number),
            Value::Bytes(_) => None,
        }
    }

    pub(crate) fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            Value::Number(_) => None,
        }
    }

    pub(crate) fn text(self) -> Option<String> {
        self.bytes()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }
}

/// The fields of a message, in their order. What is not a message is an error.
pub(crate) fn fields(mut message: &[u8]) -> io::Result<Vec<(u32, Value<'_>)>> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let field = u32::try_from(key >> 3).map_err(|_| broken())?;
        let value = match u32::try_from(key & 7).map_err(|_| broken())? {
            VARINT => Value::Number(varint(&mut message)?),
            BYTES => {
                let length = usize::try_from(varint(&mut message)?).map_err(|_| broken())?;
                let (bytes, rest) = message.split_at_checked(length).ok_or_else(broken)?;
                message = rest;
                Value::Bytes(bytes)
            }
            // Numbers of a fixed size; none of what is read here has any.
            _ => return Err(broken()),
        };
        found.push((field, value));
    }
    Ok(found)
}

fn varint(message: &mut &[u8]) -> io::Result<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first().ok_or_else(broken)?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(broken())
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is no such message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut inner = Writer::default();
        inner.number(1, 300).yes(2);
        let inner = inner.done();
        let mut outer = Writer::default();
        outer.number(68, u64::MAX).bytes(2, &inner).bytes(3, b"name");
        let outer = outer.done();
        let read = fields(&outer).unwrap();
        assert_eq!(read[0], (68, Value::Number(u64::MAX)));
        assert_eq!(read[2].1.text().as_deref(), Some("name"));
        let inner = fields(read[1].1.bytes().unwrap()).unwrap();
        assert_eq!(inner, [(1, Value::Number(300)), (2, Value::Number(1))]);
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for broken in [&[0x80][..], &[0x0a, 5, 1], &[0x0b], &[0x0d, 0, 0, 0, 0]] {
            assert!(fields(broken).is_err(), "{broken:?}");
        }
    }
}
