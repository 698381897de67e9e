//! Layers that go elsewhere: their archives in the blobs, and layers made of these.
//!
//! ```text
//! layer ──what it was unpacked from──▶ layers/<digest of these bytes>      brought once, whole or not at all
//! layers/<…> ──as from a registry──▶ unpacked, verified by both digests ──▶ layer, among those of the node
//! ```
//!
//! A layer that only mends what those below it imply (`mend.rs`) is made of them, wherever they are.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use model::Kind;
use ports::blobs::ByteStream;
use ports::{BlobError, Blobs};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::pipe::{self, PIECES_MAX, Piece};
use super::pull::{DOWNLOADS_MAX, limits};
use super::{Images, PullError, mend};
use crate::digest::Digest;
use crate::disk::layer_key;
use crate::layer::LayerError;
use crate::layers::{Facts, Hold, LayerArchive, MakeError};
use crate::manifest::LAYERS_MAX;

/// What is read of an archive at once.
const PIECE_BYTES: usize = 256 << 10;
/// An archive that breaks off so often in a row, without a byte in between, is given up.
const TRIES_MAX: u32 = 3;
/// How long it is waited before it is gone on with, the first time; each further time twice as long.
const PAUSE: Duration = Duration::from_millis(200);

/// Archives of layers, by the digest of what is in the layer.
pub type LayerArchives = BTreeMap<Digest, LayerArchive>;

/// Layers that are here. They stay while this is there, and ten minutes longer.
#[derive(Debug)]
pub struct LayersHere {
    /// Directories as overlayfs takes them, in the order in which they were asked for.
    pub paths: Vec<PathBuf>,
    _held: Vec<Hold>,
}

/// Why layers were not brought to the blobs, or from there.
#[derive(Debug, thiserror::Error)]
pub enum TravelError {
    /// It is not here, and the blobs were not given it.
    #[error("layer {0} is not here, and is not in the blobs")]
    Missing(Digest),
    /// The blobs do not hold it any more, or are away.
    #[error("the archive of layer {layer} is not to be had")]
    Blobs {
        /// Which.
        layer: Digest,
        /// Why.
        #[source]
        source: BlobError,
    },
    /// The blobs hold less than they were given.
    #[error("of the archive of layer {0} the blobs hold a part alone")]
    Cut(Digest),
    /// What was kept of it here is not what it was. It is forgotten.
    #[error("the archive of layer {0} that was kept here is not what it was; it is kept no longer")]
    Rotten(Digest),
    /// It is no layer that is taken, or the disk refused.
    #[error(transparent)]
    Layer(PullError),
}

impl TravelError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            TravelError::Missing(_) => Kind::NotFound,
            TravelError::Blobs { .. } => Kind::Unavailable,
            TravelError::Layer(error) if error.kind() == Kind::Unavailable => Kind::Unavailable,
            // No user has a part in what a node brings.
            TravelError::Cut(_) | TravelError::Rotten(_) | TravelError::Layer(_) => Kind::Internal,
        }
    }
}

pub(super) async fn stow(
    images: &Images,
    blobs: &dyn Blobs,
    layers: &[Digest],
    known: &LayerArchives,
    young: Duration,
) -> Result<LayerArchives, TravelError> {
    let mut there = LayerArchives::new();
    for (at, &layer) in layers.iter().enumerate() {
        if there.contains_key(&layer) {
            continue;
        }
        let of_blobs = |source| TravelError::Blobs { layer, source };
        if let Some(&archive) = known.get(&layer)
            && is_there(blobs, archive, None).await.map_err(of_blobs)?
        {
            there.insert(layer, archive);
            continue;
        }
        // Held until it is brought: then it is not evicted.
        let held = images.layers.find(layer);
        let kept = held
            .as_ref()
            .and_then(|(_, facts)| images.layers.archive(layer, facts));
        let Some((archive, file)) = kept else {
            if mend::name(&below(layers, at)) != layer {
                tracing::warn!(%layer, "a layer is here without what it was unpacked from: builds over it start only where it is");
            }
            continue;
        };
        if !is_there(blobs, archive, Some(young)).await.map_err(of_blobs)? {
            bring(images, blobs, layer, archive, file).await?;
        }
        there.insert(layer, archive);
    }
    Ok(there)
}

/// Those below one, the lowest first.
fn below(layers: &[Digest], at: usize) -> Vec<Digest> {
    layers[at + 1..].iter().rev().copied().collect()
}

/// Whether the blobs hold an archive, as far as that can be told without reading it, and no longer than that.
async fn is_there(
    blobs: &dyn Blobs,
    archive: LayerArchive,
    young: Option<Duration>,
) -> Result<bool, BlobError> {
    let Some(found) = blobs.find(&layer_key(archive.blob)).await? else {
        return Ok(false);
    };
    let age = SystemTime::now()
        .duration_since(found.modified)
        .unwrap_or_default();
    Ok(found.bytes == archive.bytes && young.is_none_or(|young| age < young))
}

async fn bring(
    images: &Images,
    blobs: &dyn Blobs,
    layer: Digest,
    archive: LayerArchive,
    file: File,
) -> Result<(), TravelError> {
    let begun = std::time::Instant::now();
    match blobs.put(&layer_key(archive.blob), checked(file, archive)).await {
        Ok(bytes) => {
            tracing::info!(%layer, bytes, took = ?begun.elapsed(), "a layer is in the blobs");
            Ok(())
        }
        Err(BlobError::Source(_, error)) if error.kind() == io::ErrorKind::InvalidData => {
            let forgotten = images.layers.forget_archive(layer);
            forgotten.map_err(|error| {
                TravelError::Layer(PullError::disk("removing the archive of a layer")(error))
            })?;
            Err(TravelError::Rotten(layer))
        }
        Err(source) => Err(TravelError::Blobs { layer, source }),
    }
}

/// The bytes of an archive that is kept; they end with an error where they are others than they were, so that nothing is stored.
fn checked(mut file: File, archive: LayerArchive) -> ByteStream {
    let (send, receive) = mpsc::channel(PIECES_MAX);
    tokio::task::spawn_blocking(move || {
        let mut hasher = Sha256::new();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let said = match file.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => {
                    hasher.update(&piece[..read]);
                    Ok(Bytes::copy_from_slice(&piece[..read]))
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let is_over = said.is_err();
            // Whoever has gone wants no more.
            if send.blocking_send(said).is_err() || is_over {
                return;
            }
        }
        if Digest::seen(hasher) != archive.blob {
            let _ = send.blocking_send(Err(io::ErrorKind::InvalidData.into()));
        }
    });
    let pieces = futures_util::stream::unfold(receive, |mut receive| async {
        receive.recv().await.map(|piece| (piece, receive))
    });
    pieces.boxed()
}

/// A layer that is here, with what is known of it.
type Here = (Hold, Facts);

pub(super) async fn fetch(
    images: &Images,
    blobs: &dyn Blobs,
    layers: &[Digest],
    archives: &LayerArchives,
) -> Result<LayersHere, TravelError> {
    let limit = images.policy.image_bytes_max;
    let too_large = |what: &str, limit| {
        TravelError::Layer(PullError::TooLarge {
            what: what.to_owned(),
            limit,
        })
    };
    if layers.len() > LAYERS_MAX {
        return Err(too_large("the number of a build's layers", LAYERS_MAX as u64));
    }
    let bytes = archives.values().map(|archive| archive.bytes);
    if bytes.fold(0, u64::saturating_add) > limit {
        return Err(too_large("what a build's layers are unpacked from", limit));
    }
    let coming = Coming {
        images,
        blobs,
        unpacking: TaskTracker::new(),
        left: AtomicU64::new(limit),
    };
    let wanted = layers.iter().map(|layer| (*layer, archives.get(layer).copied()));
    let wanted: Vec<_> = wanted.collect();
    let come = futures_util::stream::iter(wanted)
        .map(|(layer, archive)| coming.have(layer, archive))
        .buffered(DOWNLOADS_MAX)
        .try_collect::<Vec<Option<Here>>>()
        .await;
    // The others end when one has failed, and clear away what they made.
    coming.unpacking.close();
    coming.unpacking.wait().await;
    let mut here = come?;
    for at in (0..layers.len()).rev() {
        if here[at].is_none() {
            here[at] = Some(mended(images, layers, &here, at).await?);
        }
    }
    let here: Vec<Here> = here.into_iter().flatten().collect();
    if here
        .iter()
        .map(|(_, facts)| facts.bytes)
        .fold(0, u64::saturating_add)
        > limit
    {
        return Err(too_large("what a build's layers are", limit));
    }
    Ok(LayersHere {
        paths: layers.iter().map(|layer| images.layers.path(*layer)).collect(),
        _held: here.into_iter().map(|(hold, _)| hold).collect(),
    })
}

/// The one at a place, if it is what mends those below it.
async fn mended(
    images: &Images,
    layers: &[Digest],
    here: &[Option<Here>],
    at: usize,
) -> Result<Here, TravelError> {
    let layer = layers[at];
    let below = below(layers, at);
    if mend::name(&below) != layer {
        return Err(TravelError::Missing(layer));
    }
    let facts = here[at + 1..].iter().rev().flatten();
    let facts: Vec<Facts> = facts.map(|(_, facts)| facts.clone()).collect();
    let made = mend::mend(images, &below, &facts).await;
    let made = made.map_err(TravelError::Layer)?;
    // What made it holds it until it is found.
    let found = made.and_then(|_made| images.layers.find(layer));
    found.ok_or(TravelError::Missing(layer))
}

/// Layers on their way here.
struct Coming<'a> {
    images: &'a Images,
    blobs: &'a dyn Blobs,
    /// Those on their way to disk.
    unpacking: TaskTracker,
    /// Bytes that those may be that have not come yet, as with a pull.
    left: AtomicU64,
}

impl Coming<'_> {
    /// A layer, fetched if it is not there; `None` where there is nothing to fetch it from.
    async fn have(&self, layer: Digest, archive: Option<LayerArchive>) -> Result<Option<Here>, TravelError> {
        let layers = &self.images.layers;
        let gate = layers.gate(layer);
        let _turn = gate.lock().await;
        if let Some(there) = layers.find(layer) {
            return Ok(Some(there));
        }
        let Some(archive) = archive else { return Ok(None) };
        let begun = std::time::Instant::now();
        let bytes = self.fetch(layer, archive).await?;
        let less = |left: u64| Some(left.saturating_sub(bytes));
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        tracing::info!(%layer, bytes = archive.bytes, took = ?begun.elapsed(), "a layer came from the blobs");
        let found = layers.find(layer).ok_or(TravelError::Missing(layer))?;
        Ok(Some(found))
    }

    /// Makes a layer of its archive; how many bytes it is, uncompressed.
    async fn fetch(&self, layer: Digest, archive: LayerArchive) -> Result<u64, TravelError> {
        let place = pipe::place().await;
        let (send, pipe) = pipe::pipe();
        let limits = limits(self.images, self.left.load(Ordering::Relaxed));
        let held = (place, self.unpacking.token());
        let unpacking = pipe::make(self.images, (layer, archive.blob), pipe, limits, held);
        let pouring = async {
            let poured = self.pour(layer, archive, &send).await;
            if poured.is_ok() {
                // Who has gone knows why.
                let _ = send.send(Piece::End).await;
            }
            drop(send);
            poured
        };
        let (poured, unpacked) = tokio::join!(pouring, unpacking);
        match (poured, unpacked.map_err(TravelError::Layer)?) {
            (_, Ok(unpacked)) => Ok(unpacked.bytes),
            // What broke off broke off for a reason that the blobs know.
            (Err(error), Err(MakeError::Layer(LayerError::Input(_)))) => Err(error),
            (_, Err(error)) => Err(TravelError::Layer(PullError::layer(layer, error))),
        }
    }

    /// Sends an archive through the pipe; what breaks off is gone on with where it broke off.
    async fn pour(
        &self,
        layer: Digest,
        archive: LayerArchive,
        into: &mpsc::Sender<Piece>,
    ) -> Result<(), TravelError> {
        let (mut at, mut tries) = (0, 0);
        loop {
            let from = at;
            let Err(error) = self.pour_from(&mut at, layer, archive, into).await else {
                return Ok(());
            };
            tries = if at > from { 1 } else { tries + 1 };
            let is_lost = matches!(
                error,
                TravelError::Blobs {
                    source: BlobError::Missing(_),
                    ..
                }
            );
            if is_lost || tries >= TRIES_MAX {
                return Err(error);
            }
            tracing::debug!(%layer, at, %error, "a layer broke off, and goes on");
            tokio::time::sleep(PAUSE * 2_u32.pow(tries - 1)).await;
        }
    }

    async fn pour_from(
        &self,
        at: &mut u64,
        layer: Digest,
        archive: LayerArchive,
        into: &mpsc::Sender<Piece>,
    ) -> Result<(), TravelError> {
        let away = |source| TravelError::Blobs { layer, source };
        let part = *at..archive.bytes;
        let got = self.blobs.get(&layer_key(archive.blob), Some(part)).await;
        let mut pieces = got.map_err(away)?;
        while *at < archive.bytes {
            let piece = pieces.try_next().await;
            let piece = piece.map_err(|error| away(BlobError::Away(error.into())))?;
            let Some(mut piece) = piece else {
                return Err(TravelError::Cut(layer));
            };
            let left = usize::try_from(archive.bytes - *at).unwrap_or(usize::MAX);
            piece.truncate(left);
            *at += piece.len() as u64;
            if into.send(Piece::Bytes(piece)).await.is_err() {
                // Who has gone knows why.
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
