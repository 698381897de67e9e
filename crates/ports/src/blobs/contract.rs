//! The laws of [`Blobs`], one function each, which every adapter's tests run: see [`crate::blob_contract`].
//!
//! Each function panics where its law is broken, as a test does, and leaves blobs behind. It may be run on a store that
//! holds other things.
use std::io;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::oneshot;

use super::{BlobError, Blobs, ByteStream, KEY_BYTES_MAX, PART_BYTES_MAX};
use crate::store::contract::join_all;

/// Makes the laws of [`Blobs`](crate::Blobs) tests of one adapter. The argument is a future of a fresh store in an
/// `Arc`, behind whatever must live as long as it.
#[macro_export]
macro_rules! blob_contract {
    ($make:expr) => {
        $crate::blob_contract! { @laws $make;
            what_is_put_is_got,
            a_place_is_no_blob,
            a_put_takes_the_place_of_what_was_there,
            a_blob_of_many_mib_is_got_as_it_was_put,
            a_part_is_cut_at_the_end,
            a_put_that_breaks_off_changes_nothing,
            a_put_that_is_given_up_changes_nothing,
            of_many_puts_one_stands_whole,
            who_has_begun_to_read_goes_on,
            a_list_goes_by_whole_parts_in_the_order_of_bytes,
            a_removed_blob_is_gone,
            a_text_that_is_no_name_is_refused,
            every_name_of_the_longest_kind_is_taken,
        }
    };
    (@laws $make:expr; $($law:ident,)*) => {
        $(
            #[tokio::test]
            async fn $law() {
                let (_kept, blobs) = $make.await;
                $crate::blobs::contract::$law(&*blobs).await;
            }
        )*
    };
}

/// A store's clock may differ from ours, and may count whole seconds only.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(60);

/// A name that no other test uses, below a place of its own.
fn place() -> String {
    format!("contract/{}", model::BuildId::random())
}

/// A stream of pieces.
fn pieces(pieces: impl IntoIterator<Item = Bytes>) -> ByteStream {
    let pieces: Vec<_> = pieces.into_iter().map(Ok).collect();
    stream::iter(pieces).boxed()
}

/// A stream of one text.
fn text(text: &str) -> ByteStream {
    pieces([Bytes::copy_from_slice(text.as_bytes())])
}

/// Bytes of which no two blocks are the same, and that differ by `seed`.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let words = (0..length.div_ceil(8) as u64).flat_map(|place| {
        let mixed = (place ^ (seed << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed ^ (mixed >> 29)).to_le_bytes()
    });
    words.take(length).collect()
}

async fn rest(bytes: ByteStream) -> Vec<u8> {
    let pieces: Vec<Bytes> = bytes.try_collect().await.unwrap();
    pieces.concat()
}

async fn got(blobs: &dyn Blobs, key: &str, part: Option<Range<u64>>) -> Vec<u8> {
    rest(blobs.get(key, part).await.unwrap()).await
}

async fn listed(blobs: &dyn Blobs, prefix: &str) -> Vec<String> {
    let infos = blobs.list(prefix).await.unwrap();
    infos.into_iter().map(|info| info.key).collect()
}

/// What is read is what was written, be it nothing; what was not written is missing.
pub async fn what_is_put_is_got(blobs: &dyn Blobs) {
    let place = place();
    let (full, empty, none) = (
        format!("{place}/full"),
        format!("{place}/empty"),
        format!("{place}/none"),
    );
    let began = SystemTime::now();
    let three = [&b"one"[..], b"", b"two"].map(Bytes::from_static);
    assert_eq!(blobs.put(&full, pieces(three)).await.unwrap(), 6);
    assert_eq!(blobs.put(&empty, pieces([])).await.unwrap(), 0);
    assert_eq!(got(blobs, &full, None).await, b"onetwo");
    assert_eq!(got(blobs, &empty, None).await, b"");
    let info = blobs.find(&full).await.unwrap().unwrap();
    assert_eq!((info.key, info.bytes), (full, 6));
    assert!(info.modified >= began - CLOCK_OFF_MAX);
    assert!(info.modified <= SystemTime::now() + CLOCK_OFF_MAX);
    assert_eq!(blobs.find(&empty).await.unwrap().unwrap().bytes, 0);
    assert!(matches!(blobs.get(&none, None).await, Err(BlobError::Missing(key)) if key == none));
    assert!(matches!(
        blobs.get(&none, Some(0..1)).await,
        Err(BlobError::Missing(_))
    ));
    assert_eq!(blobs.find(&none).await.unwrap(), None);
}

/// What names begin with is no name.
pub async fn a_place_is_no_blob(blobs: &dyn Blobs) {
    let place = place();
    blobs.put(&format!("{place}/one"), text("here")).await.unwrap();
    assert_eq!(blobs.find(&place).await.unwrap(), None);
    assert!(matches!(
        blobs.get(&place, None).await,
        Err(BlobError::Missing(_))
    ));
}

/// The last put is what stands there, also where it is the shorter one.
pub async fn a_put_takes_the_place_of_what_was_there(blobs: &dyn Blobs) {
    let key = place();
    blobs.put(&key, text("the longer text")).await.unwrap();
    assert_eq!(blobs.put(&key, text("short")).await.unwrap(), 5);
    assert_eq!(got(blobs, &key, None).await, b"short");
    assert_eq!(blobs.find(&key).await.unwrap().unwrap().bytes, 5);
}

/// A blob that stores take in several requests is whole, and each part of it is at its place.
pub async fn a_blob_of_many_mib_is_got_as_it_was_put(blobs: &dyn Blobs) {
    let key = place();
    let whole = noise(1, (11 << 20) + 7);
    let stored = blobs
        .put(&key, pieces(whole.chunks(100_003).map(Bytes::copy_from_slice)))
        .await
        .unwrap();
    assert_eq!(stored, whole.len() as u64);
    assert!(got(blobs, &key, None).await == whole, "the blob is another one");
    for (start, end) in [
        (0, 1),
        ((5 << 20) - 1, (5 << 20) + 1),
        (3 << 20, (8 << 20) + 3),
        (11 << 20, (11 << 20) + 7),
    ] {
        let part = got(blobs, &key, Some(start as u64..end as u64)).await;
        assert!(part == whole[start..end], "{start}..{end} is another part");
    }
}

/// A part has the bytes that are there, and none where it lies behind the end or is empty.
pub async fn a_part_is_cut_at_the_end(blobs: &dyn Blobs) {
    let key = place();
    blobs.put(&key, text("0123456789")).await.unwrap();
    for (part, expected) in [
        (0..10, "0123456789"),
        (0..4, "0123"),
        (4..7, "456"),
        (9..10, "9"),
        (7..11, "789"),
        (7..u64::MAX, "789"),
        (0..0, ""),
        (4..4, ""),
        (10..10, ""),
        (10..20, ""),
        (11..12, ""),
        (u64::MAX - 1..u64::MAX, ""),
    ] {
        assert_eq!(
            got(blobs, &key, Some(part.clone())).await,
            expected.as_bytes(),
            "{part:?}"
        );
    }
    blobs.put(&key, pieces([])).await.unwrap();
    assert_eq!(got(blobs, &key, Some(0..5)).await, b"");
}

/// Bytes that end with an error are not stored, however many came before it.
pub async fn a_put_that_breaks_off_changes_nothing(blobs: &dyn Blobs) {
    let place = place();
    let (old, new) = (format!("{place}/old"), format!("{place}/new"));
    blobs.put(&old, text("kept")).await.unwrap();
    for length in [0, 3, 6 << 20] {
        for key in [&old, &new] {
            let broken = pieces(noise(2, length).chunks(1 << 20).map(Bytes::copy_from_slice))
                .chain(stream::iter([Err(io::Error::other("the client went away"))]));
            let outcome = blobs.put(key, broken.boxed()).await;
            assert!(matches!(outcome, Err(BlobError::Source(name, _)) if name == *key));
        }
    }
    assert_eq!(got(blobs, &old, None).await, b"kept");
    assert_eq!(blobs.find(&new).await.unwrap(), None);
    assert_eq!(listed(blobs, &place).await, [old]);
}

/// A put that nobody waits for any more stores nothing.
pub async fn a_put_that_is_given_up_changes_nothing(blobs: &dyn Blobs) {
    let place = place();
    let (old, new) = (format!("{place}/old"), format!("{place}/new"));
    blobs.put(&old, text("kept")).await.unwrap();
    for length in [3, 6 << 20] {
        for key in [&old, &new] {
            let (taken, was_taken) = oneshot::channel();
            let first = pieces(noise(3, length).chunks(1 << 20).map(Bytes::copy_from_slice));
            let stuck = stream::once(async move {
                let _ = taken.send(());
                std::future::pending().await
            });
            let put = blobs.put(key, first.chain(stuck).boxed());
            match select(put, was_taken).await {
                Either::Right((Ok(()), put)) => drop(put),
                Either::Right((Err(_), _)) => panic!("the bytes were dropped before their end"),
                Either::Left((outcome, _)) => panic!("{outcome:?}, although the bytes have not ended"),
            }
        }
    }
    assert_eq!(got(blobs, &old, None).await, b"kept");
    assert_eq!(blobs.find(&new).await.unwrap(), None);
    assert_eq!(listed(blobs, &place).await, [old.as_str()]);
    // Nor does it stand in the way.
    blobs.put(&new, text("new")).await.unwrap();
    assert_eq!(got(blobs, &new, None).await, b"new");
}

/// Of puts at the same time one stands there in the end, and no mixture.
pub async fn of_many_puts_one_stands_whole(blobs: &dyn Blobs) {
    let key = place();
    let wholes: Vec<_> = (0..8).map(|seed| noise(seed, 300_000)).collect();
    let puts = wholes.iter().map(|whole| {
        let slowly = stream::iter(
            whole
                .chunks(10_000)
                .map(Bytes::copy_from_slice)
                .collect::<Vec<_>>(),
        )
        .then(|piece| async {
            tokio::task::yield_now().await;
            Ok(piece)
        });
        blobs.put(&key, slowly.boxed())
    });
    for outcome in join_all(puts).await {
        assert_eq!(outcome.unwrap(), 300_000);
    }
    let stored = got(blobs, &key, None).await;
    assert!(
        wholes.contains(&stored),
        "a mixture of {} bytes stands there",
        stored.len()
    );
}

/// A reader gets the blob whole that stood there when he began.
pub async fn who_has_begun_to_read_goes_on(blobs: &dyn Blobs) {
    let key = place();
    let whole = noise(4, 3 << 20);
    blobs
        .put(&key, pieces([Bytes::from(whole.clone())]))
        .await
        .unwrap();
    let mut reading = blobs.get(&key, None).await.unwrap();
    let mut read = reading.next().await.unwrap().unwrap().to_vec();
    blobs.put(&key, text("new")).await.unwrap();
    read.extend(rest(reading).await);
    assert!(read == whole, "{} bytes of something else", read.len());
    let reading = blobs.get(&key, None).await.unwrap();
    blobs.remove(&key).await.unwrap();
    assert_eq!(rest(reading).await, b"new");
}

/// A prefix means whole parts, with or without a `/` at its end, at any depth.
pub async fn a_list_goes_by_whole_parts_in_the_order_of_bytes(blobs: &dyn Blobs) {
    let place = place();
    let keys = ["a-b/x", "a.b", "a/0", "a/b/c", "a/b/d", "a/bc", "a0", "ab/c", "b"];
    for key in keys.iter().rev() {
        blobs.put(&format!("{place}/{key}"), text(key)).await.unwrap();
    }
    for (prefix, expected) in [
        ("", &keys[..]),
        ("/", &keys),
        ("/a", &["a/0", "a/b/c", "a/b/d", "a/bc"]),
        ("/a/", &["a/0", "a/b/c", "a/b/d", "a/bc"]),
        ("/a/b", &["a/b/c", "a/b/d"]),
        ("/a/b/c", &[]),
        ("/c", &[]),
    ] {
        let expected: Vec<_> = expected.iter().map(|key| format!("{place}/{key}")).collect();
        assert_eq!(
            listed(blobs, &format!("{place}{prefix}")).await,
            expected,
            "{prefix:?}"
        );
    }
    let mut all = listed(blobs, "").await;
    all.retain(|key| key.starts_with(&place));
    assert_eq!(all.len(), keys.len());
    let infos = blobs.list(&place).await.unwrap();
    assert!(infos.iter().all(|info| info.key.ends_with('b') || info.bytes > 0));
    assert_eq!(infos[0].bytes, 5);
}

/// What was removed is gone, and a second removal is no error.
pub async fn a_removed_blob_is_gone(blobs: &dyn Blobs) {
    let place = place();
    let (gone, kept) = (format!("{place}/gone"), format!("{place}/kept"));
    blobs.put(&gone, text("gone")).await.unwrap();
    blobs.put(&kept, text("kept")).await.unwrap();
    blobs.remove(&gone).await.unwrap();
    blobs.remove(&gone).await.unwrap();
    assert_eq!(blobs.find(&gone).await.unwrap(), None);
    assert!(matches!(blobs.get(&gone, None).await, Err(BlobError::Missing(_))));
    assert_eq!(listed(blobs, &place).await, [kept.as_str()]);
    blobs.put(&gone, text("again")).await.unwrap();
    assert_eq!(got(blobs, &gone, None).await, b"again");
}

/// No operation takes a name that could mean something else to a disk, and none of the bytes are read.
pub async fn a_text_that_is_no_name_is_refused(blobs: &dyn Blobs) {
    let long = "a/".repeat(KEY_BYTES_MAX / 2) + "a";
    let long_part = "a".repeat(PART_BYTES_MAX + 1);
    for name in [
        "/", "/a", "a//b", ".", "..", "../a", "a/../b", "a/..", "a/./b", "A", "a b", "a\\b", "a\0", "ä",
        "a%2fb", "a#1", "a\n", "a:b", &long, &long_part,
    ] {
        let refused = |outcome: Result<(), BlobError>| matches!(outcome, Err(BlobError::Name(_)));
        let unread = stream::once(async { panic!("the bytes were read") });
        assert!(
            refused(blobs.put(name, unread.boxed()).await.map(drop)),
            "{name:?}"
        );
        assert!(refused(blobs.get(name, None).await.map(drop)), "{name:?}");
        assert!(refused(blobs.find(name).await.map(drop)), "{name:?}");
        assert!(refused(blobs.remove(name).await), "{name:?}");
        assert!(refused(blobs.list(name).await.map(drop)), "{name:?}");
    }
    for name in ["", "a/"] {
        assert!(
            matches!(blobs.find(name).await, Err(BlobError::Name(_))),
            "{name:?}"
        );
        assert!(blobs.list(name).await.is_ok(), "{name:?}");
    }
}

/// The longest parts, the longest name, and every character.
pub async fn every_name_of_the_longest_kind_is_taken(blobs: &dyn Blobs) {
    let place = place();
    let long_part = "z".repeat(PART_BYTES_MAX);
    let mut long = place.clone();
    while long.len() + 1 + PART_BYTES_MAX <= KEY_BYTES_MAX {
        long = format!("{long}/{long_part}");
    }
    long = format!("{long}/{}", "0".repeat(KEY_BYTES_MAX - long.len() - 1));
    let odd = ["...", ".a", "-", "_", "abcdefghijklmnopqrstuvwxyz0123456789._-"]
        .map(|part| format!("{place}/{part}"));
    let mut keys: Vec<_> = odd.into_iter().chain([long]).collect();
    for key in &keys {
        blobs.put(key, text("here")).await.unwrap();
        assert_eq!(got(blobs, key, None).await, b"here");
    }
    keys.sort_unstable();
    assert_eq!(listed(blobs, &place).await, keys);
}
