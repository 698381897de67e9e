use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use ports::blobs::{Blobs, Memory};
use ports::runtime::{MemoryFile, PartImage};
use proptest::prelude::*;
use uuid::Uuid;

use super::manifest::BLOCK_BYTES;
use super::*;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Bytes that do not compress, different for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

fn image(size: u64, writes: &[(u64, Vec<u8>)]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    for (at, bytes) in writes {
        file.write_all_at(bytes, *at).unwrap();
    }
    file
}

async fn restored(blobs: &dyn Blobs, manifest: &Manifest) -> (Vec<u8>, File) {
    let file = tempfile::tempfile().unwrap();
    restore(blobs, manifest, file.try_clone().unwrap()).await.unwrap();
    (whole(&file), file)
}

fn whole(file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut from_start = file.try_clone().unwrap();
    std::io::Seek::rewind(&mut from_start).unwrap();
    from_start.read_to_end(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn a_disk_comes_back_as_it_was_with_its_holes() {
    let blobs = Memory::default();
    let size = 40 * BLOCK + 5000;
    let source = image(
        size,
        &[
            (0, b"super".to_vec()),
            (3 * BLOCK - 7, noise(1, 300_000)),
            (20 * BLOCK, vec![7; BLOCK_BYTES * 3]),
            (size - 4, b"tail".to_vec()),
        ],
    );
    let manifest = publish(&blobs, source.try_clone().unwrap(), None).await.unwrap();
    assert_eq!(manifest.size_bytes(), size);
    let (bytes, file) = restored(&blobs, &manifest).await;
    assert_eq!(bytes, whole(&source));
    assert!(
        file.metadata().unwrap().blocks() * 512 < size / 2,
        "holes stay holes"
    );
    assert_eq!(load(&blobs, manifest.digest()).await.unwrap(), manifest);
}

#[tokio::test]
async fn what_the_base_holds_is_not_brought_again() {
    let blobs = Memory::default();
    let base = image(64 * BLOCK, &[(0, noise(1, 32 * BLOCK_BYTES))]);
    let first = publish(&blobs, base.try_clone().unwrap(), None).await.unwrap();
    let before: u64 = blobs
        .list("packs")
        .await
        .unwrap()
        .iter()
        .map(|pack| pack.bytes)
        .sum();
    base.write_all_at(&noise(2, BLOCK_BYTES), 5 * BLOCK).unwrap();
    let second = publish(&blobs, base.try_clone().unwrap(), Some(&first))
        .await
        .unwrap();
    let after: u64 = blobs
        .list("packs")
        .await
        .unwrap()
        .iter()
        .map(|pack| pack.bytes)
        .sum();
    assert!(after - before <= BLOCK, "{before} {after}");
    assert_eq!(restored(&blobs, &second).await.0, whole(&base));
    assert_ne!(restored(&blobs, &first).await.0, whole(&base));
    let again = publish(&blobs, base, Some(&second)).await.unwrap();
    assert_eq!(again.blocks.len(), second.blocks.len());
}

async fn stored(blobs: &dyn Blobs) -> u64 {
    let packs = blobs.list("packs").await.unwrap();
    packs.iter().map(|pack| pack.bytes).sum()
}

#[tokio::test]
async fn a_base_that_is_broken_is_as_good_as_none() {
    let blobs = Memory::default();
    // Two packs, so that one may be missing.
    let disk = image(130 * BLOCK, &[(0, noise(1, 130 * BLOCK_BYTES))]);
    let base = publish(&blobs, disk.try_clone().unwrap(), None).await.unwrap();
    assert!(is_whole(&blobs, base.digest()).await.unwrap());
    let packs = blobs.list("packs").await.unwrap();
    assert_eq!(packs.len(), 2);
    // Gone, and cut short.
    for (pack, left) in packs.iter().zip([None, Some(1000)]) {
        blobs.remove(&pack.key).await.unwrap();
        if let Some(left) = left {
            let bytes = futures_util::stream::iter([Ok(noise(9, left).into())]).boxed();
            blobs.put(&pack.key, bytes).await.unwrap();
        }
        assert!(!is_whole(&blobs, base.digest()).await.unwrap());
        let again = publish(&blobs, disk.try_clone().unwrap(), Some(&base))
            .await
            .unwrap();
        assert_eq!(restored(&blobs, &again).await.0, whole(&disk));
        assert!(is_whole(&blobs, again.digest()).await.unwrap());
    }
    blobs.remove(&disk_key(base.digest())).await.unwrap();
    assert!(!is_whole(&blobs, base.digest()).await.unwrap());
}

#[tokio::test]
async fn what_came_with_a_base_that_is_swept_stays_for_those_that_share_it() {
    let blobs = Memory::default();
    let disk = image(140 * BLOCK, &[(0, noise(1, 140 * BLOCK_BYTES))]);
    let mut base: Option<Manifest> = None;
    let mut descriptions = Vec::new();
    for generation in 0..4 {
        disk.write_all_at(&noise(100 + generation, BLOCK_BYTES), generation * 40 * BLOCK)
            .unwrap();
        let next = publish(&blobs, disk.try_clone().unwrap(), base.as_ref())
            .await
            .unwrap();
        let mut description = Description::new("container", serde_json::json!({}), Vec::new());
        description.add(PartImage::Own, next.digest());
        descriptions.push(description.put(&blobs).await.unwrap());
        base = Some(next);
    }
    let newest = base.unwrap();
    assert!(stored(&blobs).await <= 144 * BLOCK);
    let grace = Duration::from_secs(60);
    let living = BTreeSet::from([descriptions[3]]);
    let swept = sweep(&blobs, &living, SystemTime::now() + grace * 2, grace)
        .await
        .unwrap();
    assert!(swept.blobs >= 6, "three descriptions, three manifests: {swept:?}");
    assert_eq!(restored(&blobs, &newest).await.0, whole(&disk));
    assert!(is_whole(&blobs, newest.digest()).await.unwrap());
}

#[tokio::test]
async fn blocks_that_are_alike_are_kept_once() {
    let blobs = Memory::default();
    let block = noise(9, BLOCK_BYTES);
    // More than a pack of them, so that the second half is found in the first.
    let writes: Vec<_> = (0..400).map(|n| (n * BLOCK, block.clone())).collect();
    let manifest = publish(&blobs, image(400 * BLOCK, &writes), None).await.unwrap();
    let stored: u64 = blobs
        .list("packs")
        .await
        .unwrap()
        .iter()
        .map(|pack| pack.bytes)
        .sum();
    assert!(stored <= 17 << 20, "{stored}");
    assert_eq!(manifest.data_bytes(), 400 * BLOCK);
    assert_eq!(restored(&blobs, &manifest).await.0.len(), 400 * BLOCK_BYTES);
}

#[tokio::test]
async fn a_blob_that_was_changed_is_refused() {
    let blobs = Memory::default();
    let manifest = publish(&blobs, image(4 * BLOCK, &[(0, noise(1, 3 * BLOCK_BYTES))]), None)
        .await
        .unwrap();
    let [pack] = &blobs.list("packs").await.unwrap()[..] else {
        panic!("one pack")
    };
    for rubbish in [noise(2, usize::try_from(pack.bytes).unwrap()), b"short".to_vec()] {
        let bytes = futures_util::stream::iter([Ok(rubbish.into())]).boxed();
        blobs.put(&pack.key, bytes).await.unwrap();
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(
            restore(&blobs, &manifest, file).await,
            Err(DiskError::Forged(_))
        ));
    }
    let key = disk_key(manifest.digest());
    blobs
        .put(&key, futures_util::stream::iter([Ok("x".into())]).boxed())
        .await
        .unwrap();
    assert!(matches!(
        load(&blobs, manifest.digest()).await,
        Err(DiskError::Forged(_))
    ));
    blobs.remove(&key).await.unwrap();
    assert!(matches!(
        load(&blobs, manifest.digest()).await,
        Err(DiskError::Blobs(_))
    ));
}

#[tokio::test]
async fn blocks_are_fetched_one_by_one() {
    let blobs = Arc::new(Memory::default());
    let written = noise(3, BLOCK_BYTES);
    let manifest = publish(&*blobs, image(9 * BLOCK, &[(4 * BLOCK, written.clone())]), None)
        .await
        .unwrap();
    let lazy = Lazy::new(blobs, manifest);
    assert_eq!(lazy.block(4).await.unwrap().unwrap(), written);
    for zeros in [0, 3, 5, 8, 9, u32::MAX] {
        assert_eq!(lazy.block(zeros).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_sweep_removes_what_nobody_refers_to_and_nothing_young() {
    let blobs = Memory::default();
    let disk = image(8 * BLOCK, &[(0, noise(1, 8 * BLOCK_BYTES))]);
    let first = publish(&blobs, disk.try_clone().unwrap(), None).await.unwrap();
    disk.write_all_at(&noise(2, BLOCK_BYTES), 0).unwrap();
    let second = publish(&blobs, disk, Some(&first)).await.unwrap();
    let grace = Duration::from_secs(60);
    let (now, later) = (SystemTime::now(), SystemTime::now() + grace * 2);
    let mut description = Description::new("container", serde_json::json!({}), Vec::new());
    description.add(PartImage::Own, second.digest());
    let living = BTreeSet::from([description.put(&blobs).await.unwrap()]);
    assert_eq!(
        sweep(&blobs, &living, now, grace).await.unwrap(),
        Swept::default()
    );
    let swept = sweep(&blobs, &living, later, grace).await.unwrap();
    assert_eq!(swept.blobs, 1, "the first's manifest; its pack is shared");
    restored(&blobs, &second).await;
    // One that is young is nobody's yet, and may be somebody's soon.
    let grace_for_description = SystemTime::now().duration_since(now).unwrap() + grace * 2;
    let swept = sweep(&blobs, &BTreeSet::new(), later, grace_for_description).await;
    assert_eq!(swept.unwrap(), Swept::default());
    let swept = sweep(&blobs, &BTreeSet::new(), later, grace).await.unwrap();
    assert_eq!(swept.blobs, 4);
    // A living description that is not there: nothing is known, so nothing is removed.
    publish(&blobs, image(BLOCK, &[(0, vec![1])]), None)
        .await
        .unwrap();
    assert!(sweep(&blobs, &living, later, grace).await.is_err());
    assert_eq!(blobs.list("").await.unwrap().len(), 2);
}

/// A layer's archive that is there, as a build names it.
async fn archive(blobs: &dyn Blobs, text: &'static str) -> (Digest, crate::LayerArchive) {
    let archive = crate::LayerArchive {
        blob: Digest::of(text.as_bytes()),
        bytes: text.len() as u64,
    };
    let bytes = futures_util::stream::iter([Ok(text.into())]).boxed();
    blobs.put(&layer_key(archive.blob), bytes).await.unwrap();
    (Digest::of(format!("in {text}").as_bytes()), archive)
}

#[tokio::test]
async fn archives_of_layers_stay_while_a_build_stands_on_them() {
    let blobs = Memory::default();
    let shared = archive(&blobs, "of two").await;
    let (one, other) = (
        archive(&blobs, "of one").await,
        archive(&blobs, "of the other").await,
    );
    archive(&blobs, "of nobody").await;
    let stand_on = |layers: Vec<(Digest, crate::LayerArchive)>| {
        let names = layers.iter().map(|(layer, _)| *layer).collect();
        let description = Description::new("container", serde_json::json!({}), names);
        description.with_archives(layers.into_iter().collect())
    };
    let first = stand_on(vec![shared, one]).put(&blobs).await.unwrap();
    let second = stand_on(vec![shared, other]).put(&blobs).await.unwrap();
    let grace = Duration::from_secs(60);
    let left = async |living: &[Digest], now| {
        let living: BTreeSet<Digest> = living.iter().copied().collect();
        sweep(&blobs, &living, now, grace).await.unwrap();
        blobs.list("layers").await.unwrap().len()
    };
    let later = SystemTime::now() + grace * 2;
    assert_eq!(left(&[], SystemTime::now()).await, 4, "all are young");
    assert_eq!(left(&[first, second], later).await, 3);
    assert_eq!(left(&[second], later).await, 2);
    assert!(blobs.find(&layer_key(shared.1.blob)).await.unwrap().is_some());
    assert_eq!(left(&[], later).await, 0);
}

#[tokio::test]
async fn an_old_archive_stays_for_a_description_that_is_not_noted_yet() {
    let blobs = Memory::default();
    let layer = archive(&blobs, "of one").await;
    let grace = Duration::from_secs(60);
    // It is older than what names it.
    tokio::time::sleep(Duration::from_millis(30)).await;
    let between = SystemTime::now();
    tokio::time::sleep(Duration::from_millis(30)).await;
    let description = Description::new("container", serde_json::json!({}), vec![layer.0]);
    let description = description.with_archives([layer].into());
    description.put(&blobs).await.unwrap();
    sweep(&blobs, &BTreeSet::new(), between + grace, grace)
        .await
        .unwrap();
    assert_eq!(blobs.list("layers").await.unwrap().len(), 1);
}

/// Blobs in which something was brought anew since they were listed.
struct Since(Memory);

#[async_trait::async_trait]
impl Blobs for Since {
    async fn put(&self, key: &str, bytes: ports::blobs::ByteStream) -> Result<u64, ports::BlobError> {
        self.0.put(key, bytes).await
    }
    async fn get(
        &self,
        key: &str,
        part: Option<std::ops::Range<u64>>,
    ) -> Result<ports::blobs::ByteStream, ports::BlobError> {
        self.0.get(key, part).await
    }
    async fn find(&self, key: &str) -> Result<Option<ports::blobs::BlobInfo>, ports::BlobError> {
        self.0.find(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ports::blobs::BlobInfo>, ports::BlobError> {
        let mut all = self.0.list(prefix).await?;
        for blob in &mut all {
            blob.modified -= Duration::from_secs(3600);
        }
        Ok(all)
    }
    async fn remove(&self, key: &str) -> Result<(), ports::BlobError> {
        self.0.remove(key).await
    }
}

#[tokio::test]
async fn what_was_brought_anew_since_it_was_listed_is_not_swept() {
    let blobs = Since(Memory::default());
    archive(&blobs, "of one").await;
    let swept = sweep(
        &blobs,
        &BTreeSet::new(),
        SystemTime::now(),
        Duration::from_secs(60),
    )
    .await;
    assert_eq!(swept.unwrap(), Swept::default());
}

#[tokio::test]
async fn what_names_archives_says_so_by_its_form() {
    let blobs = Memory::default();
    let without = Description::new("container", serde_json::json!({}), vec![Digest::of(b"l")]);
    let with = without.clone().with_archives([archive(&blobs, "a").await].into());
    // Neither would those be kept by whoever does not know them.
    let [mut drawn, mut memory] = [without.clone(), with.clone()];
    drawn.add(PartImage::Drawn(Uuid::nil()), Digest::of(b"drawn"));
    memory.add(
        PartImage::Memory(Uuid::nil(), MemoryFile::Pages),
        Digest::of(b"memory"),
    );
    let memory = memory.with_archives([archive(&blobs, "a").await].into());
    let all = [
        (&without, 1, false),
        (&with, 2, true),
        (&drawn, 3, false),
        (&memory, 3, true),
    ];
    for (description, form, words) in all {
        let digest = description.put(&blobs).await.unwrap();
        assert_eq!(Description::load(&blobs, digest).await.unwrap(), *description);
        let bytes = super::restore::read_whole(&blobs, description_key(digest), digest, 1 << 20).await;
        let told: serde_json::Value = serde_json::from_slice(&bytes.unwrap()).unwrap();
        assert_eq!(
            (&told["form"], told.get("archives").is_some()),
            (&form.into(), words)
        );
    }
    let newer = br#"{"form":4,"runtime":"container","record":{},"layers":[],"own":null,"sealed":{}}"#;
    let key = description_key(Digest::of(newer));
    let bytes = futures_util::stream::iter([Ok(newer[..].into())]).boxed();
    blobs.put(&key, bytes).await.unwrap();
    assert!(matches!(
        Description::load(&blobs, Digest::of(newer)).await,
        Err(DiskError::Description(_))
    ));
}

#[tokio::test]
async fn a_description_is_known_by_its_digest() {
    let blobs = Memory::default();
    let mut description = Description::new("container", serde_json::json!({"a": 1}), vec![Digest::of(b"l")]);
    let sealed = model::BuildId::random();
    description.add(PartImage::Own, Digest::of(b"own"));
    description.add(PartImage::Sealed(sealed), Digest::of(b"sealed"));
    let state = Uuid::from_u128(7);
    for (file, of) in [(MemoryFile::Pages, "pages"), (MemoryFile::Devices, "devices")] {
        description.add(PartImage::Memory(state, file), Digest::of(of.as_bytes()));
    }
    let digest = description.put(&blobs).await.unwrap();
    let found = Description::load(&blobs, digest).await.unwrap();
    assert_eq!(found, description);
    assert_eq!(found.disk(PartImage::Sealed(sealed)), Some(Digest::of(b"sealed")));
    let pages = Some(Digest::of(b"pages"));
    assert_eq!(found.disk(PartImage::Memory(state, MemoryFile::Pages)), pages);
    assert_eq!(found.only_memory(MemoryFile::Pages), pages);
    assert_eq!(found.disk(PartImage::Drawn(state)), None);
    assert_eq!(found.disks().len(), 4);
    let base = PartImage::Memory(Uuid::nil(), MemoryFile::Pages);
    description.add(base, Digest::of(b"base"));
    assert_eq!(description.only_memory(MemoryFile::Pages), None);
    // Another's words under its name.
    let other = Description::new("qemu", serde_json::json!({}), Vec::new());
    let key = description_key(other.put(&blobs).await.unwrap());
    let bytes = blobs.get(&key, None).await.unwrap();
    blobs.put(&description_key(digest), bytes).await.unwrap();
    assert!(matches!(
        Description::load(&blobs, digest).await,
        Err(DiskError::Forged(_))
    ));
    let odd = Description::new("container", serde_json::json!("x".repeat(300 << 10)), Vec::new());
    assert!(
        odd.put(&blobs).await.is_err(),
        "what could not be read is not written"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_disk_comes_back(size in 1u64..6 * BLOCK, writes in prop::collection::vec((0u64..6 * BLOCK, 0u64..4, 1usize..200_000), 0..6)) {
        let writes: Vec<_> = writes
            .into_iter()
            .filter(|(at, ..)| *at < size)
            .map(|(at, seed, length)| (at, noise(seed, length.min(usize::try_from(size - at).unwrap()))))
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let blobs = Memory::default();
            let source = image(size, &writes);
            let manifest = publish(&blobs, source.try_clone().unwrap(), None).await.unwrap();
            assert_eq!(restored(&blobs, &manifest).await.0, whole(&source));
        });
    }

    #[test]
    fn what_is_brought_beside_a_base_is_no_more_than_what_is_another(
        first in prop::collection::vec((0u64..9, 0u64..4, 1usize..300_000), 0..5),
        edits in prop::collection::vec((0u64..9 * BLOCK, 0u64..6, 0usize..200_000), 0..5),
        grown in 0u64..3 * BLOCK,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let blobs = Memory::default();
            let size = 10 * BLOCK + 777;
            let fits = |at: u64, length: usize, size: u64| length.min(usize::try_from(size.saturating_sub(at)).unwrap());
            let first: Vec<_> = first.iter().map(|&(block, seed, length)| (block * BLOCK, noise(seed, fits(block * BLOCK, length, size)))).collect();
            let source = image(size, &first);
            let before = whole(&source);
            let base = publish(&blobs, source.try_clone().unwrap(), None).await.unwrap();
            let held = stored(&blobs).await;
            source.set_len(size + grown).unwrap();
            for (at, seed, length) in edits {
                // What is deleted inside is zeros again.
                let length = fits(at, length, size + grown);
                let bytes = if seed == 0 { vec![0; length] } else { noise(seed + 10, length) };
                source.write_all_at(&bytes, at).unwrap();
            }
            let after = whole(&source);
            let blocks = |bytes: &[u8]| -> Vec<Vec<u8>> {
                let padded = |block: &[u8]| [block, &vec![0; BLOCK_BYTES - block.len()]].concat();
                bytes.chunks(BLOCK_BYTES).map(padded).collect()
            };
            let old: BTreeSet<_> = blocks(&before).into_iter().collect();
            let is_new = |block: &Vec<u8>| block.iter().any(|&byte| byte != 0) && !old.contains(block);
            let changed = blocks(&after).iter().filter(|block| is_new(block)).count() as u64;
            let next = publish(&blobs, source.try_clone().unwrap(), Some(&base)).await.unwrap();
            assert!(stored(&blobs).await - held <= changed * BLOCK);
            assert_eq!(restored(&blobs, &next).await.0, after);
            assert_eq!(restored(&blobs, &base).await.0, before);
        });
    }

    #[test]
    fn no_bytes_are_more_than_a_manifest(bytes in prop::collection::vec(any::<u8>(), 0..300), flips in prop::collection::vec((0usize..200, any::<u8>()), 0..4)) {
        let _ = Manifest::decode(&bytes);
        let block = super::manifest::Block { index: 1, pack: 0, offset: 0, length: 9, digest: Digest::of(b"x") };
        let real = Manifest { size: 2 * BLOCK, packs: vec![Digest::of(b"p")], blocks: vec![block] };
        let mut bytes = real.encode();
        assert_eq!(Manifest::decode(&bytes).as_ref(), Ok(&real));
        for (at, value) in flips {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        if let Ok(read) = Manifest::decode(&bytes) {
            assert_eq!(read.encode(), bytes);
        }
        bytes.pop();
        assert!(Manifest::decode(&bytes).is_err());
    }
}
