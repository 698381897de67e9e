//! What holds for any bytes; fuzzers and tests ask the same.
use wire::envelope::{Envelope, Envelopes, wrap};

use crate::rpc::MESSAGE_BYTES_MAX;

/// The first byte says in pieces of which length the rest arrives. However it arrives, the same messages are read, and
/// they are those that the lengths in it say.
///
/// # Panics
/// Where that does not hold.
pub fn envelopes(data: &[u8]) {
    let Some((&cut, stream)) = data.split_first() else {
        return;
    };
    let (whole, left) = read(stream, stream.len().max(1));
    let (pieces, left_of_pieces) = read(stream, usize::from(cut).max(1));
    assert_eq!(whole, pieces);
    let (expected, is_refused) = expected(stream);
    assert_eq!(whole.len(), expected.len());
    for (read, (is_end, message)) in whole.iter().zip(&expected) {
        match read {
            Envelope::Message(read) => assert!(!is_end && read == message),
            Envelope::End(read) => assert!(*is_end && read == message),
        }
    }
    match left {
        Some(left) => assert!(!is_refused && left_of_pieces == Some(left)),
        None => assert!(is_refused && left_of_pieces.is_none()),
    }
    // What is wrapped is what is read.
    let (again, _) = read(&wrap(stream), usize::from(cut).max(1));
    assert!(matches!(&again[..], [Envelope::Message(message)] if message == stream));
}

/// What a stream holds, and whether it ends within a message; nothing where it is refused.
fn read(stream: &[u8], cut: usize) -> (Vec<Envelope>, Option<bool>) {
    let (mut envelopes, mut found) = (Envelopes::new(MESSAGE_BYTES_MAX), Vec::new());
    for piece in stream.chunks(cut) {
        envelopes.push(piece);
        loop {
            match envelopes.take() {
                Ok(Some(envelope)) => found.push(envelope),
                Ok(None) => break,
                Err(_) => return (found, None),
            }
        }
    }
    (found, Some(envelopes.is_empty()))
}

/// Messages before the first that is compressed or longer than any, and whether there is such a one.
fn expected(mut stream: &[u8]) -> (Vec<(bool, Vec<u8>)>, bool) {
    let mut found = Vec::new();
    while stream.len() >= 5 {
        let length = u64::from(stream[1]) << 24
            | u64::from(stream[2]) << 16
            | u64::from(stream[3]) << 8
            | u64::from(stream[4]);
        if length > 4 * 1024 * 1024 || stream[0] % 2 == 1 {
            return (found, true);
        }
        let Some(message) = usize::try_from(length)
            .ok()
            .and_then(|length| stream.get(5..5 + length))
        else {
            break;
        };
        found.push((stream[0] & 2 != 0, message.to_vec()));
        stream = &stream[5 + message.len()..];
    }
    (found, false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rules_hold_for_every_seed() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/envelopes");
        let asked = std::fs::read_dir(seeds).unwrap().map(|seed| {
            envelopes(&std::fs::read(seed.unwrap().path()).unwrap());
        });
        assert!(asked.count() > 3);
    }

    proptest! {
        #[test]
        fn the_rules_hold_for_any_bytes(data in prop::collection::vec(any::<u8>(), 0..400)) {
            envelopes(&data);
        }

        #[test]
        fn the_rules_hold_for_what_is_nearly_right(
            cut in any::<u8>(),
            messages in prop::collection::vec((0_u8..4, 0_u8..20, prop::collection::vec(any::<u8>(), 0..20)), 0..6),
        ) {
            let mut data = vec![cut];
            for (flags, length, message) in messages {
                data.extend([flags, 0, 0, 0, length]);
                data.extend(message);
            }
            envelopes(&data);
        }
    }
}
