//! Bytes on a serial port, between which a new beginning can be told at any time.
//!
//! A serial port does not say surely where one conversation ends and the next begins: a host that hangs up and calls again at
//! once may go unnoticed, bytes of the last conversation may still be under way, and a guest that is restored from memory is
//! in the middle of one that its new host never had. So the byte [`FLAG`] is kept out of what is transmitted (each is sent as
//! two others, as in HDLC), and begins a greeting:
//!
//! ```text
//! host    FLAG nonce \n ──▶            the last conversation, whatever it was at, is over for the guest
//!         ◀── FLAG nonce \n   guest    the same nonce: what came before is not for this host
//!         bytes, escaped  ◀─▶
//! ```
//!
//! A [`FLAG`] without a greeting means that there is no conversation any more.

/// Begins a greeting, and is nowhere else.
pub const FLAG: u8 = 0x7e;
/// Announces a byte that is sent as another.
const ESCAPE: u8 = 0x7d;
/// What makes the other byte of it.
const FLIP: u8 = 0x20;
/// A nonce in hexadecimal digits, which need no escape, and the end of the line.
const GREETING_BYTES: usize = 2 * NONCE_BYTES + 1;
const NONCE_BYTES: usize = 16;

/// Tells one conversation from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonce(pub [u8; NONCE_BYTES]);

impl Nonce {
    /// What begins its conversation.
    #[must_use]
    pub fn greeting(&self) -> Vec<u8> {
        use std::io::Write as _;
        let mut greeting = vec![FLAG];
        for byte in self.0 {
            write!(greeting, "{byte:02x}").expect("a vector takes everything");
        }
        greeting.push(b'\n');
        greeting
    }

    fn parse(greeting: &[u8]) -> Option<Self> {
        let digits = greeting.strip_suffix(b"\n")?;
        let digits = std::str::from_utf8(digits).ok()?;
        let is_own = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != 2 * NONCE_BYTES || !digits.bytes().all(is_own) {
            return None;
        }
        let mut nonce = [0; NONCE_BYTES];
        for (at, byte) in nonce.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Self(nonce))
    }
}

/// Appends bytes as they are sent.
pub fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| matches!(*byte, FLAG | ESCAPE)) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(&[ESCAPE, rest[at] ^ FLIP]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// What came, beside bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The conversation is over. A greeting may follow.
    Over,
    /// A conversation begins.
    Begins(Nonce),
}

/// Reads what [`encode`] and [`Nonce::greeting`] wrote.
#[derive(Debug, Default)]
pub struct Decoder {
    is_escaped: bool,
    /// What came of a greeting.
    greeting: Option<Vec<u8>>,
}

impl Decoder {
    /// Takes bytes from the front of `input` and appends what they mean to `out`, up to the next event. `None`: all of
    /// `input` was taken.
    pub fn next(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Option<Event> {
        while let Some((byte, rest)) = input.split_first() {
            if *byte == FLAG {
                *input = rest;
                self.is_escaped = false;
                self.greeting = Some(Vec::with_capacity(GREETING_BYTES));
                return Some(Event::Over);
            }
            if let Some(greeting) = &mut self.greeting {
                *input = rest;
                greeting.push(*byte);
                if greeting.len() == GREETING_BYTES {
                    let nonce = Nonce::parse(greeting);
                    // What is none is left for bytes of nobody's: there is no conversation until the next flag.
                    self.greeting = None;
                    if let Some(nonce) = nonce {
                        return Some(Event::Begins(nonce));
                    }
                }
            } else if self.is_escaped {
                *input = rest;
                self.is_escaped = false;
                out.push(byte ^ FLIP);
            } else if *byte == ESCAPE {
                *input = rest;
                self.is_escaped = true;
            } else {
                let plain = input.iter().position(|byte| matches!(*byte, FLAG | ESCAPE));
                let (plain, rest) = input.split_at(plain.unwrap_or(input.len()));
                out.extend_from_slice(plain);
                *input = rest;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(wire: &[u8], pieces: usize) -> (Vec<u8>, Vec<Event>) {
        let (mut decoder, mut out, mut events) = (Decoder::default(), Vec::new(), Vec::new());
        for mut piece in wire.chunks(pieces) {
            while let Some(event) = decoder.next(&mut piece, &mut out) {
                events.push(event);
            }
        }
        (out, events)
    }

    proptest! {
        #[test]
        fn what_was_sent_comes_however_it_is_cut(bytes: Vec<u8>, pieces in 1_usize..9) {
            let mut wire = Vec::new();
            encode(&bytes, &mut wire);
            prop_assert!(!wire.contains(&FLAG));
            prop_assert_eq!(decode(&wire, pieces), (bytes, vec![]));
        }

        #[test]
        fn a_greeting_is_understood_after_anything(noise: Vec<u8>, nonce: [u8; 16], pieces in 1_usize..9) {
            let mut wire = noise;
            wire.extend(Nonce(nonce).greeting());
            wire.push(b'x');
            let (out, events) = decode(&wire, pieces);
            prop_assert_eq!(events.last(), Some(&Event::Begins(Nonce(nonce))));
            prop_assert_eq!(out.last(), Some(&b'x'));
        }
    }

    #[test]
    fn a_greeting_that_is_none_begins_nothing() {
        let mut wire = vec![FLAG];
        wire.extend([b'X'; GREETING_BYTES]);
        assert_eq!(decode(&wire, 5).1, [Event::Over]);
    }
}
