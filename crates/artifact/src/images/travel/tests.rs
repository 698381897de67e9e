//! Layers go to the blobs whole or not at all, and nothing comes from there but what went.
#![expect(clippy::print_stderr, reason = "a test that does not run says so")]
use std::fs;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use ports::blobs::{BlobInfo, Memory};

use super::*;
use crate::policy::Policy;
use crate::testing::{Picture, Tar, gzip, own_architecture};

const DAY: Duration = Duration::from_secs(24 * 3600);

struct House {
    images: Images,
    dir: tempfile::TempDir,
}

impl House {
    fn new() -> Option<Self> {
        Self::with(Policy::default())
    }

    fn with(policy: Policy) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: unpacks layers, run it as root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path().join("images"), policy).unwrap();
        let images = images.keeping_archives(true);
        Some(Self { images, dir })
    }

    /// An image of these tars, from a file; its layers, the highest first, as a build names them.
    async fn import(&self, tars: &[Vec<u8>]) -> Vec<Digest> {
        let file = self.dir.path().join("image.tar");
        fs::write(&file, saved(tars)).unwrap();
        let (_, image) = self.images.import(&file, None, None).await.unwrap();
        let digest = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            format!("sha256:{name}").parse().unwrap()
        };
        image.layers.iter().rev().map(digest).collect()
    }

    /// How many there are of layers, facts and archives.
    fn counts(&self) -> [usize; 3] {
        let count = |part| {
            let part = self.dir.path().join("images").join(part);
            fs::read_dir(part).unwrap().count()
        };
        ["layers", "facts", "archives"].map(count)
    }

    async fn fetch(
        &self,
        blobs: &dyn Blobs,
        layers: &[Digest],
        archives: &LayerArchives,
    ) -> Result<LayersHere, TravelError> {
        self.images.fetch(blobs, layers, archives).await
    }

    async fn stow(&self, blobs: &dyn Blobs, layers: &[Digest]) -> Result<LayerArchives, TravelError> {
        self.images.stow(blobs, layers, &LayerArchives::new(), DAY).await
    }
}

macro_rules! house {
    () => {
        match House::new() {
            Some(house) => house,
            None => return,
        }
    };
}

/// What `docker save` writes: the lowest layer as it is, the others compressed.
fn saved(tars: &[Vec<u8>]) -> Vec<u8> {
    let picture = Picture::of(tars, own_architecture());
    let names: Vec<String> = (0..tars.len()).map(|at| format!("{at}/layer.tar")).collect();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["app:1"], "Layers": names}]);
    let mut whole = Tar::new()
        .file("config.json", &picture.config)
        .file("manifest.json", manifest.to_string().as_bytes());
    for (at, (name, tar)) in names.iter().zip(tars).enumerate() {
        let bytes = if at == 0 { tar.clone() } else { gzip(tar) };
        whole = whole.file(name, &bytes);
    }
    whole.end()
}

/// Two layers of which the upper implies a directory that the lower has words on: so there is a third.
fn three() -> Vec<Vec<u8>> {
    vec![
        Tar::new().dir("etc").file("etc/low", &noise(40_000)).end(),
        Tar::new().file("etc/high", b"high").end(),
    ]
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 7_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

fn bytes(bytes: &[u8]) -> ByteStream {
    let whole = Bytes::copy_from_slice(bytes);
    futures_util::stream::iter([Ok(whole)]).boxed()
}

/// Blobs that break off what they are asked for, and count what they are given.
#[derive(Default)]
struct Odd {
    inner: Memory,
    /// Answers that break off, after some bytes.
    breaks: AtomicUsize,
    /// Whether answers that break off have no byte.
    is_empty: bool,
    puts: AtomicUsize,
    /// Whether nothing is taken.
    is_full: bool,
}

#[async_trait]
impl Blobs for Odd {
    async fn put(&self, key: &str, bytes: ByteStream) -> Result<u64, BlobError> {
        if self.is_full {
            return Err(BlobError::Away("it is full".into()));
        }
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.inner.put(key, bytes).await
    }

    async fn get(&self, key: &str, part: Option<Range<u64>>) -> Result<ByteStream, BlobError> {
        let is_cut = |left: usize| left.checked_sub(1);
        let cut = self
            .breaks
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, is_cut);
        let Ok(_) = cut else {
            return self.inner.get(key, part).await;
        };
        let some =
            part.map(|part| part.start..part.end.min(part.start + if self.is_empty { 0 } else { 9_000 }));
        let some = self.inner.get(key, some).await?;
        let end = futures_util::stream::iter([Err(io::ErrorKind::ConnectionReset.into())]);
        Ok(some.chain(end).boxed())
    }

    async fn find(&self, key: &str) -> Result<Option<BlobInfo>, BlobError> {
        self.inner.find(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<BlobInfo>, BlobError> {
        self.inner.list(prefix).await
    }

    async fn remove(&self, key: &str) -> Result<(), BlobError> {
        self.inner.remove(key).await
    }
}

#[tokio::test]
async fn layers_go_elsewhere_and_from_there_on() {
    let (here, there, beyond) = (house!(), house!(), house!());
    let layers = here.import(&three()).await;
    assert_eq!(
        (layers.len(), here.counts()),
        (3, [3, 3, 2]),
        "the third is made of the two"
    );
    let blobs = Memory::default();
    let archives = here.stow(&blobs, &layers).await.unwrap();
    assert_eq!(archives.keys().copied().collect::<Vec<_>>(), {
        let mut two = layers[1..].to_vec();
        two.sort_unstable();
        two
    });
    let stored = blobs.list("layers").await.unwrap();
    assert_eq!(stored.len(), 2);
    assert!(
        stored.iter().map(|blob| blob.bytes).sum::<u64>() < 42_000,
        "compressed: {stored:?}"
    );
    let come = there.fetch(&blobs, &layers, &archives).await.unwrap();
    let [mended, high, low] = &come.paths[..] else {
        panic!("{come:?}")
    };
    assert_eq!(fs::read(low.join("etc/low")).unwrap(), noise(40_000));
    assert_eq!(fs::read(high.join("etc/high")).unwrap(), b"high");
    assert!(mended.join("etc").is_dir());
    assert_eq!(there.counts(), here.counts());
    // And on: what came can be brought, and is the same.
    let others = Memory::default();
    assert_eq!(there.stow(&others, &layers).await.unwrap(), archives);
    let come = beyond.fetch(&others, &layers, &archives).await.unwrap();
    assert_eq!(come.paths.len(), 3);
    // Nothing is asked of the blobs for what is here.
    there.fetch(&Memory::default(), &layers, &archives).await.unwrap();
}

#[tokio::test]
async fn what_is_there_is_brought_again_only_where_it_might_be_swept() {
    let house = house!();
    let layers = house.import(&three()).await;
    let blobs = Odd::default();
    let puts = || blobs.puts.swap(0, Ordering::SeqCst);
    let archives = house.stow(&blobs, &layers).await.unwrap();
    assert_eq!(puts(), 2);
    assert_eq!(house.stow(&blobs, &layers).await.unwrap(), archives);
    assert_eq!(puts(), 0, "it is young");
    let none = LayerArchives::new();
    let again = house.images.stow(&blobs, &layers, &none, Duration::ZERO).await;
    assert_eq!((again.unwrap(), puts()), (archives.clone(), 2), "it is old");
    let again = house
        .images
        .stow(&blobs, &layers, &archives, Duration::ZERO)
        .await;
    assert_eq!(
        (again.unwrap(), puts()),
        (archives.clone(), 0),
        "others stand on it"
    );
    // Whatever is said of it, what is not there is brought.
    for blob in blobs.list("layers").await.unwrap() {
        blobs.remove(&blob.key).await.unwrap();
    }
    house.images.stow(&blobs, &layers, &archives, DAY).await.unwrap();
    assert_eq!(puts(), 2);
    for blob in blobs.list("layers").await.unwrap() {
        blobs.inner.put(&blob.key, bytes(b"cut")).await.unwrap();
    }
    house.images.stow(&blobs, &layers, &archives, DAY).await.unwrap();
    assert_eq!(puts(), 2, "what was cut is brought again");
}

#[tokio::test]
async fn an_archive_that_was_changed_is_refused_and_leaves_nothing() {
    let (here, there) = (house!(), house!());
    let layers = here.import(&three()).await;
    let blobs = Memory::default();
    let archives = here.stow(&blobs, &layers).await.unwrap();
    let low = archives[&layers[2]];
    let key = layer_key(low.blob);
    let right: Vec<Bytes> = blobs.get(&key, None).await.unwrap().try_collect().await.unwrap();
    let right = right.concat();
    let mut flipped = right.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let mut rubbish = noise(right.len());
    rubbish[0] = 0;
    let hostile = Tar::new().file("../outside", b"x").end();
    for wrong in [&flipped, &rubbish, &hostile, &right[..middle].to_vec()] {
        blobs.put(&key, bytes(wrong)).await.unwrap();
        let refused = there.fetch(&blobs, &layers, &archives).await.unwrap_err();
        assert!(
            matches!(refused, TravelError::Layer(_) | TravelError::Cut(_)),
            "{refused:?}"
        );
        assert_eq!(refused.kind(), Kind::Internal);
        assert!(!there.images.layers.path(layers[2]).exists());
        assert!(
            !there.images.layers.path(layers[0]).exists(),
            "nothing is mended over it"
        );
    }
    // Of another layer, as it went: its digest is another.
    let mut crossed = archives.clone();
    crossed.insert(layers[2], archives[&layers[1]]);
    blobs.put(&key, bytes(&right)).await.unwrap();
    let refused = there.fetch(&blobs, &layers, &crossed).await.unwrap_err();
    assert!(
        matches!(&refused, TravelError::Layer(PullError::Digest { expected, .. }) if *expected == layers[2]),
        "{refused:?}"
    );
    // A word more than it had is not read.
    blobs
        .put(&key, bytes(&[&right[..], b"more"].concat()))
        .await
        .unwrap();
    there.fetch(&blobs, &layers, &archives).await.unwrap();
    assert_eq!(there.counts(), here.counts(), "and nothing half");
}

#[tokio::test]
async fn what_is_neither_here_nor_there_is_named() {
    let (here, there) = (house!(), house!());
    let layers = here.import(&three()).await;
    let blobs = Memory::default();
    let archives = here.stow(&blobs, &layers).await.unwrap();
    let unknown = Digest::of(b"unknown");
    for (wanted, archives) in [(unknown, &archives), (layers[1], &LayerArchives::new())] {
        let missing = there.fetch(&blobs, &[wanted, layers[2]], archives).await;
        assert!(
            matches!(missing, Err(TravelError::Missing(layer)) if layer == wanted || layer == layers[2]),
            "{missing:?}"
        );
    }
    blobs.remove(&layer_key(archives[&layers[1]].blob)).await.unwrap();
    let lost = there.fetch(&blobs, &layers, &archives).await.unwrap_err();
    assert!(
        matches!(&lost, TravelError::Blobs { layer, source: BlobError::Missing(_) } if *layer == layers[1]),
        "{lost:?}"
    );
    assert_eq!(lost.kind(), Kind::Unavailable);
    // What mends others is not made without them.
    let alone = there.fetch(&blobs, &layers[..1], &archives).await;
    assert!(matches!(alone, Err(TravelError::Missing(layer)) if layer == layers[0]));
}

#[tokio::test]
async fn what_breaks_off_is_gone_on_with_and_given_up_in_the_end() {
    let (here, there) = (house!(), house!());
    let layers = here.import(&three()).await;
    let mut blobs = Odd::default();
    let archives = here.stow(&blobs, &layers).await.unwrap();
    blobs.breaks.store(4, Ordering::SeqCst);
    there.fetch(&blobs, &layers[2..], &archives).await.unwrap();
    assert_eq!(blobs.breaks.load(Ordering::SeqCst), 0);
    blobs.is_empty = true;
    blobs.breaks.store(usize::MAX, Ordering::SeqCst);
    let away = there.fetch(&blobs, &layers, &archives).await.unwrap_err();
    assert!(
        matches!(&away, TravelError::Blobs { layer, source: BlobError::Away(_) } if *layer == layers[1]),
        "{away:?}"
    );
    assert_eq!(there.counts(), [1, 1, 1], "the one that is whole");
    blobs.breaks.store(2, Ordering::SeqCst);
    there.fetch(&blobs, &layers, &archives).await.unwrap();
}

#[tokio::test]
async fn blobs_that_take_nothing_hold_nothing_and_it_is_tried_again() {
    let house = house!();
    let layers = house.import(&three()).await;
    let mut blobs = Odd {
        is_full: true,
        ..Odd::default()
    };
    let away = house.stow(&blobs, &layers).await.unwrap_err();
    assert_eq!(away.kind(), Kind::Unavailable);
    assert!(blobs.list("").await.unwrap().is_empty());
    blobs.is_full = false;
    assert_eq!(house.stow(&blobs, &layers).await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_archive_that_rotted_here_is_not_brought_and_comes_again_with_its_image() {
    let house = house!();
    let layers = house.import(&three()).await;
    let kept = house.dir.path().join("images/archives").join(layers[2].hex());
    let mut rotten = fs::read(&kept).unwrap();
    rotten[777] ^= 1;
    fs::write(&kept, rotten).unwrap();
    let blobs = Memory::default();
    let refused = house.stow(&blobs, &layers).await.unwrap_err();
    assert!(
        matches!(refused, TravelError::Rotten(layer) if layer == layers[2]),
        "{refused:?}"
    );
    let low = house.images.layers.find(layers[2]).unwrap();
    assert!(house.images.layers.archive(layers[2], &low.1).is_none());
    let left = house.stow(&blobs, &layers).await.unwrap();
    assert_eq!(
        left.keys().copied().collect::<Vec<_>>(),
        [layers[1]],
        "the other one is brought"
    );
    assert_eq!(blobs.list("").await.unwrap().len(), 1);
    house.import(&three()).await;
    assert_eq!(house.stow(&blobs, &layers).await.unwrap().len(), 2);
}

#[tokio::test]
async fn layers_of_before_get_an_archive_with_the_next_import() {
    let house = house!();
    let images = house.images.clone().keeping_archives(false);
    let before = House {
        images,
        dir: house.dir,
    };
    let layers = before.import(&three()).await;
    assert_eq!(
        before.counts(),
        [3, 3, 0],
        "nothing is kept where nothing travels"
    );
    assert!(before.stow(&Memory::default(), &layers).await.unwrap().is_empty());
    let house = House {
        images: before.images.clone().keeping_archives(true),
        dir: before.dir,
    };
    let held = house.images.layers.find(layers[2]).unwrap();
    assert_eq!(house.import(&three()).await, layers);
    assert_eq!(house.counts(), [3, 3, 2]);
    assert_eq!(house.stow(&Memory::default(), &layers).await.unwrap().len(), 2);
    let now = house.images.layers.find(layers[2]).unwrap();
    assert!(now.1.disk_bytes > held.1.disk_bytes, "it counts");
}

#[tokio::test]
async fn layers_are_bounded_as_those_of_a_registry_are() {
    let here = house!();
    let layers = here.import(&three()).await;
    let blobs = Memory::default();
    let archives = here.stow(&blobs, &layers).await.unwrap();
    let most = |image_bytes_max, layer_entries_max| Policy {
        image_bytes_max,
        layer_entries_max,
        ..Policy::default()
    };
    // Compressed; a layer; all of them; entries of one.
    for policy in [
        most(10_000, 99),
        most(40_500, 99),
        most(44_000, 99),
        most(1 << 30, 1),
    ] {
        let Some(small) = House::with(policy) else { return };
        let refused = small.fetch(&blobs, &layers, &archives).await;
        assert!(matches!(refused, Err(TravelError::Layer(_))), "{refused:?}");
    }
    let many = vec![layers[2]; LAYERS_MAX + 1];
    let refused = here.fetch(&blobs, &many, &archives).await;
    assert!(
        matches!(refused, Err(TravelError::Layer(PullError::TooLarge { .. }))),
        "{refused:?}"
    );
}
