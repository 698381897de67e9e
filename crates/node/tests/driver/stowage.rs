//! Builds and their layers in the blobs: whole there before anything names them, and here before a build stands on them.
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use artifact::digest::Digest;
use artifact::disk::Description;
use artifact::{LayerArchive, LayerArchives, TravelError};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use model::recipe::RegistryCredentials;
use model::{BuildId, Kind};
use node::{HeldLayers, Image, ImageError, ImageSource, Resolved, Says};
use ports::blobs::{BlobError, Memory};
use ports::{Blobs, Node as _, NodeError};

use crate::world::{Content, Fault, World};

/// Layers without bytes: those that are here, and what is asked of them.
#[derive(Default)]
struct Layers {
    here: Mutex<BTreeSet<Digest>>,
    known: Mutex<Vec<LayerArchives>>,
    /// How many hold layers at this moment.
    held: Arc<AtomicUsize>,
}

/// Of a layer, as it would be called.
fn archive(layer: Digest) -> LayerArchive {
    LayerArchive {
        blob: Digest::of(layer.hex().as_bytes()),
        bytes: 5,
    }
}

fn key(layer: Digest) -> String {
    format!("layers/{}", archive(layer).blob.hex())
}

struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl ImageSource for Layers {
    async fn resolve(&self, _: &str, _: Option<&RegistryCredentials>) -> Result<Resolved, ImageError> {
        Err(ImageError::Refused("nothing is resolved here".to_owned()))
    }

    async fn pull(&self, _: &str, _: Option<&RegistryCredentials>, _: Says) -> Result<Image, ImageError> {
        Err(ImageError::Refused("nothing is pulled here".to_owned()))
    }

    async fn stow(
        &self,
        blobs: &dyn Blobs,
        layers: &[Digest],
        known: &LayerArchives,
        young: Duration,
    ) -> Result<LayerArchives, TravelError> {
        assert!(
            young > Duration::from_secs(6 * 3600),
            "longer than bringing one takes"
        );
        self.known.lock().unwrap().push(known.clone());
        for &layer in layers {
            let bytes = futures_util::stream::iter([Ok("bytes".into())]).boxed();
            let put = blobs.put(&key(layer), bytes).await;
            put.map_err(|source| TravelError::Blobs { layer, source })?;
        }
        Ok(layers.iter().map(|layer| (*layer, archive(*layer))).collect())
    }

    async fn fetch(
        &self,
        blobs: &dyn Blobs,
        layers: &[Digest],
        archives: &LayerArchives,
    ) -> Result<HeldLayers, TravelError> {
        for &layer in layers {
            if self.here.lock().unwrap().contains(&layer) {
                continue;
            }
            archives.get(&layer).ok_or(TravelError::Missing(layer))?;
            let got = blobs.get(&key(layer), None).await;
            drop(got.map_err(|source| TravelError::Blobs { layer, source })?);
            self.here.lock().unwrap().insert(layer);
        }
        self.held.fetch_add(1, Ordering::SeqCst);
        Ok(HeldLayers {
            paths: layers.iter().map(|layer| place(*layer)).collect(),
            held: Box::new(Held(Arc::clone(&self.held))),
        })
    }
}

fn place(layer: Digest) -> PathBuf {
    PathBuf::from("/images/layers").join(layer.hex())
}

/// A node with layers of its own, beside blobs of all.
struct Site {
    world: World,
    layers: Arc<Layers>,
}

impl Site {
    fn beside(blobs: &Arc<Memory>) -> Self {
        let world = World::new();
        let layers: Arc<Layers> = Arc::default();
        world.node.build_from(Arc::clone(&layers) as _);
        world.node.stow_in(Arc::clone(blobs) as _);
        Self { world, layers }
    }

    /// A build over layers that are here.
    fn build_over(&self, layers: &[Digest]) -> BuildId {
        self.layers.here.lock().unwrap().extend(layers);
        self.world.runtime.add_build(content(layers))
    }
}

fn content(layers: &[Digest]) -> Content {
    Content {
        disk: vec!["written".to_owned()],
        layers: layers.iter().map(|layer| place(*layer)).collect(),
        ..Content::default()
    }
}

fn two() -> [Digest; 2] {
    [Digest::of(b"high"), Digest::of(b"low")]
}

async fn described(blobs: &Memory, digest: &str) -> Description {
    Description::load(blobs, digest.parse().unwrap()).await.unwrap()
}

async fn count(blobs: &Memory, prefix: &str) -> usize {
    blobs.list(prefix).await.unwrap().len()
}

#[tokio::test]
async fn a_build_goes_to_another_node_with_its_layers() {
    let blobs: Arc<Memory> = Arc::default();
    let (here, there) = (Site::beside(&blobs), Site::beside(&blobs));
    let build = here.build_over(&two());
    let digest = here.world.node.stow_build(build, &[]).await.unwrap();
    let told = described(&blobs, &digest).await;
    assert_eq!(told.layers, two());
    assert_eq!(told.archives.len(), 2);
    there.world.node.fetch_build(build, &digest).await.unwrap();
    assert_eq!(there.world.runtime.content(build), Some(content(&two())));
    assert_eq!(there.layers.here.lock().unwrap().len(), 2);
    assert_eq!(
        there.layers.held.load(Ordering::SeqCst),
        0,
        "the build keeps them now"
    );
    // And on from there, beside what is there of it.
    there
        .world
        .node
        .stow_build(build, std::slice::from_ref(&digest))
        .await
        .unwrap();
    assert_eq!(
        there.layers.known.lock().unwrap()[0],
        told.archives,
        "those of its kin"
    );
    assert_eq!(count(&blobs, "layers").await, 2);
}

#[tokio::test]
async fn layers_are_held_until_a_build_stands_on_them() {
    let blobs: Arc<Memory> = Arc::default();
    let (here, there) = (Site::beside(&blobs), Site::beside(&blobs));
    let build = here.build_over(&two());
    let digest = here.world.node.stow_build(build, &[]).await.unwrap();
    let go: Arc<tokio::sync::Notify> = Arc::default();
    there.world.runtime.at("assemble", Fault::Wait(Arc::clone(&go)));
    let (node, told) = (Arc::clone(&there.world.node), digest.clone());
    let fetching = tokio::spawn(async move { node.fetch_build(build, &told).await });
    while there.layers.held.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    go.notify_one();
    fetching.await.unwrap().unwrap();
    assert_eq!(there.layers.held.load(Ordering::SeqCst), 0);
    // A failure gives them back, too.
    let again = Site::beside(&blobs);
    again.world.runtime.at("assemble", Fault::Fail);
    again.world.node.fetch_build(build, &digest).await.unwrap_err();
    assert_eq!(again.layers.held.load(Ordering::SeqCst), 0);
    assert_eq!(again.world.runtime.content(build), None);
}

#[tokio::test]
async fn a_layer_that_is_nowhere_is_a_build_that_is_not_there() {
    let blobs: Arc<Memory> = Arc::default();
    let (here, there) = (Site::beside(&blobs), Site::beside(&blobs));
    let build = here.build_over(&two());
    let digest = here.world.node.stow_build(build, &[]).await.unwrap();
    // As an earlier Atoll told of it: layers by name alone.
    let told = described(&blobs, &digest)
        .await
        .with_archives(LayerArchives::new());
    let without = told.put(&*blobs).await.unwrap().to_string();
    let missing = there.world.node.fetch_build(build, &without).await;
    assert!(
        matches!(missing, Err(NodeError::NoBuild(of)) if of == build),
        "{missing:?}"
    );
    // Nor is it started where nobody keeps layers.
    let bare = World::new();
    bare.node.stow_in(Arc::clone(&blobs) as _);
    let missing = bare.node.fetch_build(build, &digest).await;
    assert!(
        matches!(missing, Err(NodeError::NoBuild(of)) if of == build),
        "{missing:?}"
    );
    // Lost, or away: that may pass.
    blobs.remove(&key(two()[1])).await.unwrap();
    let lost = there.world.node.fetch_build(build, &digest).await;
    assert!(
        matches!(
            lost,
            Err(NodeError::Failed {
                kind: Kind::Unavailable,
                ..
            })
        ),
        "{lost:?}"
    );
    assert_eq!(there.world.runtime.content(build), None);
    // What has come needs not come again.
    blobs.remove(&key(two()[0])).await.unwrap();
    there.layers.here.lock().unwrap().insert(two()[1]);
    there.world.node.fetch_build(build, &digest).await.unwrap();
}

/// Blobs that take no more after some puts, as if the node had died there.
struct Ending {
    inner: Memory,
    left: AtomicUsize,
}

#[async_trait]
impl Blobs for Ending {
    async fn put(&self, key: &str, bytes: ports::blobs::ByteStream) -> Result<u64, BlobError> {
        let less = |left: usize| left.checked_sub(1);
        let taken = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        taken.map_err(|_| BlobError::Away("it ended".into()))?;
        self.inner.put(key, bytes).await
    }
    async fn get(
        &self,
        key: &str,
        part: Option<std::ops::Range<u64>>,
    ) -> Result<ports::blobs::ByteStream, BlobError> {
        self.inner.get(key, part).await
    }
    async fn find(&self, key: &str) -> Result<Option<ports::blobs::BlobInfo>, BlobError> {
        self.inner.find(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ports::blobs::BlobInfo>, BlobError> {
        self.inner.list(prefix).await
    }
    async fn remove(&self, key: &str) -> Result<(), BlobError> {
        self.inner.remove(key).await
    }
}

#[tokio::test]
async fn wherever_it_ends_nothing_names_what_is_not_there() {
    // Two layers, a pack, a manifest, the description.
    for ends_after in 0..=5 {
        let blobs = Arc::new(Ending {
            inner: Memory::default(),
            left: AtomicUsize::new(ends_after),
        });
        let world = World::new();
        let layers: Arc<Layers> = Arc::default();
        world.node.build_from(Arc::clone(&layers) as _);
        world.node.stow_in(Arc::clone(&blobs) as _);
        let build = world.runtime.add_build(content(&two()));
        let stowed = world.node.stow_build(build, &[]).await;
        assert_eq!(stowed.is_ok(), ends_after == 5, "{ends_after}: {stowed:?}");
        let named = usize::from(ends_after == 5);
        assert_eq!(count(&blobs.inner, "builds").await, named, "{ends_after}");
        assert_eq!(
            count(&blobs.inner, "layers").await,
            ends_after.min(2),
            "layers come first"
        );
        // Another daemon goes on.
        blobs.left.store(usize::MAX, Ordering::SeqCst);
        let digest = world.node.stow_build(build, &[]).await.unwrap();
        let told = described(&blobs.inner, &digest).await;
        for archive in told.archives.values() {
            let found = blobs.find(&format!("layers/{}", archive.blob.hex())).await;
            assert!(found.unwrap().is_some());
        }
        // What is young stays, whatever is named.
        assert_eq!(world.node.sweep_stowed(&[digest]).await.unwrap(), 0);
    }
}
