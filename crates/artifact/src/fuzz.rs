//! What holds for any bytes; fuzzers and tests ask the same.
use std::io::Read;

use crate::layer::names;
use crate::layer::source::{Hashed, Plain};
use crate::manifest::{Config, Document, LAYERS_MAX, choose};
use crate::reference::Reference;
use crate::tar::{Archive, TarError, What};

/// More is not uncompressed for one input.
const BYTES_MAX: u64 = 1 << 20;

/// A tar: whatever comes out of it can be worked with, and no more bytes come out than went in.
///
/// # Panics
/// Where that does not hold.
pub fn tar(data: &[u8]) {
    let by_reading = entries(data);
    let mut archive = Archive::new(std::io::Cursor::new(data));
    let mut by_seeking = 0;
    while let Ok(Some(_)) = archive.next() {
        by_seeking += 1;
        if archive.seek_over().is_err() {
            break;
        }
    }
    // Who seeks does not see that the last entry is cut.
    assert!(by_seeking >= by_reading, "{by_seeking} {by_reading}");
}

/// Walks an archive; how many entries of it were whole.
fn entries(input: impl Read) -> usize {
    let mut archive = Archive::new(input);
    let mut whole = 0;
    let mut piece = [0; 700];
    loop {
        let entry = match archive.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => {
                let _ = archive.drain();
                return whole;
            }
            Err(error) => {
                assert!(error.to_string().len() < 300);
                return whole;
            }
        };
        assert!(!entry.path.is_empty() && !entry.path.contains(&0));
        assert!(entry.mode <= 0o7777 && entry.mtime.1 < 1_000_000_000 && entry.xattrs.len() <= 256);
        if let Ok(names) = names(&entry.path) {
            assert!(
                names
                    .iter()
                    .all(|name| !matches!(*name, b"" | b"." | b"..") && !name.contains(&b'/'))
            );
        }
        match &entry.what {
            What::File => {}
            What::Link(to) | What::Symlink(to) => assert!(!to.is_empty() && !to.contains(&0)),
            _ => assert_eq!(archive.left(), 0),
        }
        if entry.what != What::File {
            assert_eq!(archive.left(), 0);
        }
        let stored = archive.left();
        match &entry.pieces {
            Some(pieces) => {
                let mut end = 0;
                for piece in pieces {
                    assert!(piece.offset >= end);
                    end = piece.offset + piece.bytes;
                }
                assert!(end <= entry.size);
                assert_eq!(pieces.iter().map(|piece| piece.bytes).sum::<u64>(), stored);
            }
            None if entry.what == What::File => assert_eq!(entry.size, stored),
            None => {}
        }
        let mut read = 0;
        loop {
            match archive.read(&mut piece) {
                Ok(0) => break,
                Ok(more) => read += more as u64,
                Err(TarError::Cut(_) | TarError::Input(_)) => return whole,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(read, stored);
        whole += 1;
    }
}

/// A layer as it is sent: no more is uncompressed than is allowed, and what comes out is walked as a tar.
///
/// # Panics
/// Where that does not hold.
pub fn layer(data: &[u8]) {
    let mut blob = Hashed::new(data, u64::MAX);
    let Ok(Ok(plain)) = Plain::new(&mut blob) else {
        return;
    };
    let mut diff = Hashed::new(plain, BYTES_MAX);
    entries(&mut diff);
    let (_, bytes) = diff.seen();
    // One read goes beyond it, and ends it.
    assert!(bytes <= BYTES_MAX + (64 << 10), "{bytes}");
    let (_, sent) = blob.seen();
    assert!(sent <= data.len() as u64);
}

/// What a registry says of an image: a manifest or index, a configuration, and a name.
///
/// # Panics
/// Where that does not hold.
pub fn manifest(data: &[u8]) {
    match Document::parse(data) {
        Ok(Document::Manifest(manifest)) => {
            assert!((1..=LAYERS_MAX).contains(&manifest.layers.len()));
        }
        Ok(Document::Index(entries)) => {
            if let Err(offers) = choose(&entries) {
                assert!(
                    offers.len() <= 64
                        && offers
                            .iter()
                            .all(|offer| offer.len() < 500 && !offer.contains('\n'))
                );
            }
        }
        Err(error) => assert!(error.to_string().chars().count() < 400),
    }
    match Config::parse(data) {
        Ok(config) => {
            assert!(config.diffs.len() <= LAYERS_MAX);
            assert!(
                config
                    .run
                    .env
                    .iter()
                    .all(|(name, value)| !name.is_empty() && !name.contains('=') && !value.contains('\0'))
            );
        }
        Err(error) => assert!(error.to_string().chars().count() < 400),
    }
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(reference) = Reference::parse(text, "docker.io") {
            let full = reference.to_string();
            assert_eq!(
                Reference::parse(&full, "other.io").as_ref(),
                Ok(&reference),
                "{full}"
            );
            let url = format!(
                "https://{}/v2/{}/manifests/{}",
                reference.registry,
                reference.repository,
                reference.version()
            );
            let url: http::Uri = url.parse().expect("a name makes an address");
            assert_eq!(
                url.authority().map(http::uri::Authority::as_str),
                Some(reference.registry.as_str())
            );
        }
        let _ = crate::registry::auth::challenge(text);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Raw, Tar, gzip, zstd};

    fn seeds(name: &str, rule: fn(&[u8])) {
        let dir = format!("{}/../../fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
        let asked = std::fs::read_dir(dir)
            .unwrap()
            .map(|seed| rule(&std::fs::read(seed.unwrap().path()).unwrap()));
        assert!(asked.count() > 5);
    }

    #[test]
    fn the_rules_hold_for_every_seed() {
        seeds("tar", tar);
        seeds("layer", layer);
        seeds("manifest", manifest);
    }

    proptest! {
        #[test]
        fn the_rules_hold_for_any_bytes(data in prop::collection::vec(any::<u8>(), 0..2000)) {
            tar(&data);
            layer(&data);
            manifest(&data);
        }

        #[test]
        fn the_rules_hold_for_what_is_nearly_a_tar(
            flags in prop::collection::vec(prop::sample::select(b"\x000123456789gxLKSV7".to_vec()), 1..8),
            records in prop::collection::vec(("(path|size|mtime|GNU\\.sparse\\.(map|major|minor|size|offset|numbytes|realsize|name)|SCHILY\\.xattr\\.user\\.a)", "[0-9,./-]{0,9}"), 0..6),
            size in 0_u64..3000,
            change in (0_usize..6000, any::<u8>()),
        ) {
            let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (key.as_str(), value.as_bytes())).collect();
            let mut archive = Tar::new();
            for flag in &flags {
                archive = match flag {
                    b'x' | b'g' => archive.extended(*flag, &records),
                    _ => archive.raw(&Raw { path: b"a/b", flag: *flag, link: b"c", size: Some(size), body: &[b'1'; 900], ..Raw::PLAIN }),
                };
            }
            let mut bytes = archive.end();
            let (at, byte) = change;
            if let Some(there) = bytes.get_mut(at) {
                *there = byte;
            }
            tar(&bytes);
            layer(&gzip(&bytes));
            layer(&zstd(&bytes));
        }

        #[test]
        fn the_rules_hold_for_what_is_nearly_a_manifest(
            version in 0_u64..4, media in "(application/vnd\\.(oci|docker)[a-z.+0-9]{0,30})?",
            size in any::<i64>(), layers in 0_usize..4, cut in 0_usize..900,
        ) {
            let digest = crate::digest::Digest::of(b"");
            let descriptor = serde_json::json!({"mediaType": media, "digest": digest, "size": size});
            let all: Vec<_> = (0..layers).map(|_| descriptor.clone()).collect();
            for document in [
                serde_json::json!({"schemaVersion": version, "mediaType": media, "config": descriptor, "layers": all}),
                serde_json::json!({"schemaVersion": version, "mediaType": media, "manifests": all}),
                serde_json::json!({"os": "linux", "config": {"Env": [media, "a=b"], "User": media}, "rootfs": {"type": "layers", "diff_ids": [digest]}}),
            ] {
                let text = document.to_string();
                manifest(text.as_bytes());
                manifest(&text.as_bytes()[..cut.min(text.len())]);
            }
        }
    }
}
