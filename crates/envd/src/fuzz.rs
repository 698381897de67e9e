//! What holds for any bytes; fuzzers and tests ask the same.
use bytes::{Bytes, BytesMut};
use connectrpc::envelope::Envelope;
use futures_util::stream;

use crate::access::Refusal;
use crate::copy::archive::writing::Writer;
use crate::copy::archive::{Archive, Entry, Kind};
use crate::copy::links::Links;
use crate::copy::source::Source;
use crate::copy::upload::Unpacked;
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

/// The first line is the source of a COPY, the second byte from there says in pieces of which length the rest arrives,
/// which is an upload, packed or not. However it arrives, the same is read of it or it is refused; every path in it lies
/// within it, wherever its own links lead; no content is longer than what is read; and the rest, as the content of a
/// file in an archive, is read as it is.
///
/// # Panics
/// Where that does not hold.
pub fn upload(data: &[u8]) {
    let mut lines = data.splitn(2, |&byte| byte == b'\n');
    let glob = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let source = Source::parse(&glob);
    if let Ok(source) = &source {
        assert!(source.place().is_empty() || is_within(source.place()));
        assert_eq!(source.relative(source.place()), Some(&b""[..]));
    }
    let Some((&cut, upload)) = lines.next().and_then(<[u8]>::split_first) else {
        return;
    };
    let cut = usize::from(cut).max(1);
    let whole = unpack(upload, upload.len().max(1));
    let same = whole == unpack(upload, cut);
    assert!(same, "it is read by how it arrives");
    let mut links = Links::default();
    for (entry, content) in whole.into_iter().flatten() {
        assert!(entry.path.is_empty() || is_within(&entry.path));
        assert!(!entry.path.is_empty() || entry.kind == Kind::Directory);
        match &entry.kind {
            Kind::File { bytes } => assert_eq!(*bytes, content.len() as u64),
            Kind::Link(target) => assert!(!target.is_empty() && !target.contains(&0)),
            Kind::Same(other) => assert!(is_within(other)),
            Kind::Directory => assert!(content.is_empty()),
        }
        let Ok(path) = links.resolve(&entry.path) else {
            continue;
        };
        assert!(path.is_empty() || is_within(&path));
        if let Kind::Link(target) = &entry.kind {
            let _ = links.remember(&path, target);
        }
    }
    let mut writer = Writer::default();
    writer
        .directory(b"d", 0o750)
        .file(b"d/f", 0o640, upload)
        .link(b"d/l", b"../f");
    let read = unpack(&writer.end(), cut).expect("it was written as it should be");
    assert_eq!(read.len(), 3);
    assert_eq!((read[1].0.path.as_slice(), read[1].0.mode), (&b"d/f"[..], 0o640));
    assert_eq!(read[1].1, upload);
}

/// Whether a path is of names alone, and short enough for the kernel.
fn is_within(path: &[u8]) -> bool {
    let is_name = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0);
    path.split(|byte| *byte == b'/').all(is_name)
}

/// Everything in an upload that arrives in pieces; none, if it is refused.
fn unpack(upload: &[u8], cut: usize) -> Option<Vec<(Entry, Vec<u8>)>> {
    /// What a fuzzer's archive may come to before it is left alone: it may be packed a thousandfold.
    const CONTENT_BYTES_MAX: u64 = 1 << 20;
    let mut archive = Archive::new(Unpacked::of(Pieces { upload, cut }).ok()?);
    let (mut all, mut bytes) = (Vec::new(), 0);
    while let Some(entry) = archive.next().ok()? {
        if let Kind::File { bytes: more } = entry.kind {
            bytes += more;
            if bytes > CONTENT_BYTES_MAX {
                return None;
            }
        }
        let mut content = Vec::new();
        std::io::copy(&mut archive, &mut content).ok()?;
        all.push((entry, content));
    }
    Some(all)
}

/// Bytes that come a few at a time.
struct Pieces<'a> {
    upload: &'a [u8],
    cut: usize,
}

impl std::io::Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let room = buffer.len().min(self.cut);
        self.upload.read(&mut buffer[..room])
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
        replay("upload", upload);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn the_rules_hold_for_any_bytes(data in prop::collection::vec(any::<u8>(), 0..400)) {
            form(&data);
            frames(&data);
            upload(&data);
        }

        #[test]
        fn the_rules_hold_for_uploads_that_are_nearly_right(
            cut in 1_u8..255,
            entries in prop::collection::vec(
                (
                    prop::sample::select(vec!["a", "a/b", "./a//b", "..", "/a", "a/../b", "c", "."]),
                    prop::sample::select(vec!["a", "..", "/etc", "a/../../b", "c/.", ""]),
                    0..6,
                    prop::collection::vec(any::<u8>(), 0..600),
                ),
                0..6,
            ),
            broken in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let mut writer = Writer::default();
            for (path, target, kind, content) in &entries {
                let (path, target) = (path.as_bytes(), target.as_bytes());
                match kind {
                    0 => writer.file(path, 0o644, content),
                    1 => writer.directory(path, 0o755),
                    2 => writer.link(path, target),
                    3 => writer.same(path, target),
                    4 => writer.pax(b'x', &[("path", "c/d"), ("size", "7")]),
                    _ => writer.pax(b'x', &[("mtime", "1.5")]),
                };
            }
            let mut data = [b"src/*\n", &[cut][..], &writer.end()].concat();
            if let Some((at, byte)) = broken {
                let at = at.index(data.len());
                data[at] = byte;
            }
            upload(&data);
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
