//! What holds for any bytes; fuzzers and tests ask the same.
use bytes::{Bytes, BytesMut};
use connectrpc::envelope::Envelope;
use futures_util::stream;

use crate::access::Refusal;
use crate::files::form::{self, Shelf};
use crate::http::MESSAGE_BYTES_MAX;

/// Files of a form in memory.
#[derive(Debug, Default, PartialEq, Eq)]
struct Memory(Vec<(Option<String>, Vec<u8>)>);

impl Shelf for Memory {
    type File = (Option<String>, Vec<u8>);

    async fn open(&mut self, file_name: Option<String>) -> Result<Self::File, Refusal> {
        Ok((file_name, Vec::new()))
    }

    async fn write(&mut self, file: &mut Self::File, piece: Bytes) -> Result<(), Refusal> {
        file.1.extend_from_slice(&piece);
        Ok(())
    }

    async fn finish(&mut self, file: Self::File) -> Result<(), Refusal> {
        self.0.push(file);
        Ok(())
    }
}

/// The first line ends a `Content-Type`, the second byte from there says in pieces of which length the rest arrives.
/// However it arrives, the same files are read or it is refused; and the rest, as the content of a file in a form, is
/// read as it is.
///
/// # Panics
/// Where that does not hold.
pub fn form(data: &[u8]) {
    let mut lines = data.splitn(2, |&byte| byte == b'\n');
    let told = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let Some((&cut, body)) = lines.next().and_then(<[u8]>::split_first) else {
        return;
    };
    let cut = usize::from(cut).max(1);
    if let Ok(boundary) = form::boundary(&format!("multipart/form-data; boundary={told}")) {
        let whole = read(body, body.len().max(1), boundary);
        assert_eq!(whole, read(body, cut, boundary));
        if let Some(Memory(files)) = whole {
            let bytes: usize = files.iter().map(|(_, content)| content.len()).sum();
            assert!(bytes <= body.len());
        }
    }
    // Nothing within a part's content is its end, but its boundary.
    let boundary = "b7f0a5e0d8c14b62";
    if body
        .windows(boundary.len())
        .any(|found| found == boundary.as_bytes())
    {
        return;
    }
    let head = "Content-Disposition: form-data; name=\"file\"; filename=\"/a b\"\r\n\r\n";
    let made = [
        format!("--{boundary}\r\n{head}").as_bytes(),
        body,
        format!("\r\n--{boundary}--\r\n").as_bytes(),
    ]
    .concat();
    let expected = Memory(vec![(Some("/a b".to_owned()), body.to_vec())]);
    assert_eq!(read(&made, cut, boundary), Some(expected));
}

/// The files of a form; none, if it is refused.
fn read(body: &[u8], cut: usize, boundary: &str) -> Option<Memory> {
    let pieces: Vec<_> = body
        .chunks(cut)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    let mut memory = Memory::default();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let outcome = runtime.expect("a runtime of one thread").block_on(form::read(
        stream::iter(pieces),
        boundary,
        &mut memory,
    ));
    outcome.is_ok().then_some(memory)
}

/// Messages of a call, as they are cut out of its body: those that the lengths in it say, none longer than any may be,
/// and read again when they are written again.
///
/// # Panics
/// Where that does not hold.
pub fn frames(data: &[u8]) {
    let mut left = BytesMut::from(data);
    let mut place = 0;
    loop {
        let before = left.len();
        match Envelope::decode_with_limit(&mut left, MESSAGE_BYTES_MAX) {
            Ok(Some(envelope)) => {
                let length = envelope.data.len();
                assert!(length <= MESSAGE_BYTES_MAX && before - left.len() == 5 + length);
                assert_eq!(envelope.flags, data[place]);
                assert_eq!(&envelope.data[..], &data[place + 5..place + 5 + length]);
                assert_eq!(&envelope.encode()[..], &data[place..place + 5 + length]);
                place += 5 + length;
            }
            Ok(None) => {
                let head = data[place..].first_chunk::<5>();
                let wanted = head.map_or(5, |&[_, a, b, c, d]| {
                    5 + u32::from_be_bytes([a, b, c, d]) as usize
                });
                assert!(left.len() == before && before < wanted && wanted <= 5 + MESSAGE_BYTES_MAX);
                break;
            }
            Err(_) => {
                let &[_, a, b, c, d] = data[place..].first_chunk().expect("a head was refused");
                assert!(u32::from_be_bytes([a, b, c, d]) as usize > MESSAGE_BYTES_MAX);
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn replay(name: &str, property: fn(&[u8])) {
        let seeds = format!("{}/../../fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
        let asked = std::fs::read_dir(seeds).unwrap().map(|seed| {
            property(&std::fs::read(seed.unwrap().path()).unwrap());
        });
        assert!(asked.count() > 3);
    }

    #[test]
    fn the_rules_hold_for_every_seed() {
        replay("form", form);
        replay("frames", frames);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn the_rules_hold_for_any_bytes(data in prop::collection::vec(any::<u8>(), 0..400)) {
            form(&data);
            frames(&data);
        }

        #[test]
        fn the_rules_hold_for_forms_that_are_nearly_right(
            cut in 1_u8..40,
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "--b", "\r\n", "--", "Content-Disposition: form-data; name=\"file\"; filename=\"f\"", "x", "\n", "\r",
                    "Content-Type: text/plain", ":", "\r\n\r\n", "--b\r\n", "--b--\r\n",
                ]),
                0..20,
            ),
        ) {
            let data = [b"b\n", &[cut][..], pieces.concat().as_bytes()].concat();
            form(&data);
        }

        #[test]
        fn the_rules_hold_for_frames_that_are_nearly_right(
            messages in prop::collection::vec((any::<u8>(), 0_u8..20, prop::collection::vec(any::<u8>(), 0..20)), 0..6),
        ) {
            let mut data = Vec::new();
            for (flags, length, message) in messages {
                data.extend([flags, 0, 0, 0, length]);
                data.extend(message);
            }
            frames(&data);
        }
    }
}
