//! From a name to directories: manifest, configuration, layers.
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use model::recipe::RegistryCredentials;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::pipe::{self, Piece};
use super::{Image, Images, Progress, PullError, PullEvent, imported, mend};
use crate::digest::Digest;
use crate::layer::{LayerError, Limits, Unpacked};
use crate::layers::{Facts, Hold, MakeError};
use crate::manifest::{ACCEPT, Config, DOCUMENT_BYTES_MAX, Descriptor, Document, Manifest, Platform, choose};
use crate::reference::Reference;
use crate::registry::blob::{Fetched, Sink};
use crate::registry::{AskError, Seat, pause};

/// Layers that come at once.
pub(super) const DOWNLOADS_MAX: usize = 3;
/// An index leads to a manifest; some lead to another index first.
const INDEXES_MAX: usize = 3;
/// A registry that limits how often it is asked is waited for so long at most.
const WAITED_MAX: Duration = Duration::from_secs(60);
/// So often is told how much has come.
const TOLD_EVERY_BYTES: u64 = 4 << 20;

/// An image in a registry, once it is known which.
struct Found {
    digest: Digest,
    manifest: Manifest,
}

/// Whom to ask for an image, and for what.
struct Way<'a> {
    images: &'a Images,
    reference: &'a Reference,
    seats: Vec<Seat<'a>>,
    /// Layers on their way to disk.
    unpacking: TaskTracker,
    /// Bytes that those layers may be that have not come yet. Those that come at once may each be so many: what is too large is
    /// found out at the latest when it is put together.
    left: AtomicU64,
}

pub(super) async fn resolve(
    images: &Images,
    text: &str,
    credentials: Option<&RegistryCredentials>,
) -> Result<Digest, PullError> {
    let reference = images.reference(text)?;
    if let Some(known) = imported::find(images, &reference).await? {
        return Ok(known.digest);
    }
    let way = Way::new(images, &reference, credentials).await?;
    Ok(way.find().await?.digest)
}

pub(super) async fn pull(
    images: &Images,
    text: &str,
    credentials: Option<&RegistryCredentials>,
    progress: Option<&Progress>,
) -> Result<Image, PullError> {
    let reference = images.reference(text)?;
    if let Some(known) = imported::find(images, &reference).await? {
        return imported::open(images, &known).await;
    }
    let way = Way::new(images, &reference, credentials).await?;
    let found = way.find().await?;
    let bytes = found
        .manifest
        .layers
        .iter()
        .map(|layer| layer.size)
        .fold(0, u64::saturating_add);
    tell(
        progress,
        PullEvent::Resolved {
            digest: found.digest,
            layers: found.manifest.layers.len(),
            bytes,
        },
    );
    let limit = images.policy.image_bytes_max;
    if bytes > limit {
        return Err(PullError::TooLarge {
            what: format!("{reference}"),
            limit,
        });
    }
    let config = way.config(&found.manifest.config).await?;
    let layers = paired(&found.manifest.layers, &config, &reference)?;
    let made = futures_util::stream::iter(layers)
        .map(|(layer, diff)| way.layer(layer, diff, progress))
        .buffered(DOWNLOADS_MAX)
        .try_collect::<Vec<_>>()
        .await;
    // The others end when one has failed, and clear away what they made: whoever hears of it finds nothing of it.
    way.unpacking.close();
    way.unpacking.wait().await;
    assemble(images, &reference, found.digest, config, made?).await
}

/// Each layer with what it is known by uncompressed.
pub(super) fn paired(
    layers: &[Descriptor],
    config: &Config,
    reference: &impl ToString,
) -> Result<Vec<(Descriptor, Digest)>, PullError> {
    let own = Platform::own();
    if !config.platform.is_own() {
        return Err(PullError::Architecture {
            reference: reference.to_string(),
            wanted: own.to_string(),
            offers: vec![config.platform.to_string()],
        });
    }
    if config.diffs.len() != layers.len() {
        let why = format!(
            "it has {} layers, and its configuration {}",
            layers.len(),
            config.diffs.len()
        );
        return Err(PullError::Manifest {
            reference: reference.to_string(),
            why,
        });
    }
    Ok(layers.iter().cloned().zip(config.diffs.iter().copied()).collect())
}

/// Puts an image together of layers that are there.
pub(super) async fn assemble(
    images: &Images,
    reference: &impl ToString,
    digest: Digest,
    config: Config,
    layers: Vec<(Hold, Facts)>,
) -> Result<Image, PullError> {
    let limit = images.policy.image_bytes_max;
    if layers
        .iter()
        .map(|(_, facts)| facts.bytes)
        .fold(0, u64::saturating_add)
        > limit
    {
        return Err(PullError::TooLarge {
            what: reference.to_string(),
            limit,
        });
    }
    // What hides everything has nothing below it.
    let first = layers.iter().rposition(|(_, facts)| facts.hides_all).unwrap_or(0);
    let diffs = config.diffs[first..].to_vec();
    let (mut held, facts): (Vec<Hold>, Vec<Facts>) = layers.into_iter().skip(first).unzip();
    let mut paths: Vec<_> = diffs.iter().map(|diff| images.layers.path(*diff)).collect();
    if let Some((path, hold)) = mend::mend(images, &diffs, &facts).await? {
        paths.push(path);
        held.push(hold);
    }
    Ok(Image {
        digest,
        config: config.run,
        layers: paths,
        _held: held,
    })
}

impl<'a> Way<'a> {
    async fn new(
        images: &'a Images,
        reference: &'a Reference,
        credentials: Option<&RegistryCredentials>,
    ) -> Result<Self, PullError> {
        if !images.policy.allows(&reference.registry) {
            return Err(PullError::Denied {
                registry: reference.registry.clone(),
            });
        }
        let basic = match credentials {
            Some(credentials) => Some(images.client.basic(credentials).await?),
            None => None,
        };
        let servers = images.policy.servers(&reference.registry);
        let last = servers.len().saturating_sub(1);
        let seats = servers
            .into_iter()
            .enumerate()
            .map(|(at, server)| {
                let basic = basic.clone().filter(|_| server.is_origin);
                Seat::new(server, &reference.repository, basic, at == last)
            })
            .collect();
        Ok(Self {
            images,
            reference,
            seats,
            unpacking: TaskTracker::new(),
            left: AtomicU64::new(images.policy.image_bytes_max),
        })
    }

    /// The manifest for this machine.
    async fn find(&self) -> Result<Found, PullError> {
        let mut wanted = self.reference.version();
        let mut expected = self.reference.digest;
        for _ in 0..=INDEXES_MAX {
            let bytes = self
                .document("manifests", &wanted, expected, ACCEPT, DOCUMENT_BYTES_MAX)
                .await?;
            let digest = Digest::of(&bytes);
            match Document::parse(&bytes).map_err(PullError::manifest(self.reference))? {
                Document::Manifest(manifest) => return Ok(Found { digest, manifest }),
                Document::Index(index) => {
                    let chosen = choose(&index).map_err(|offers| PullError::Architecture {
                        reference: self.reference.to_string(),
                        wanted: Platform::own().to_string(),
                        offers,
                    })?;
                    wanted = chosen.digest.to_string();
                    expected = Some(chosen.digest);
                }
            }
        }
        Err(PullError::Manifest {
            reference: self.reference.to_string(),
            why: "its index leads to an index, and so on".to_owned(),
        })
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Config, PullError> {
        let name = descriptor.digest.to_string();
        let bytes = self
            .document("blobs", &name, Some(descriptor.digest), "*/*", descriptor.size)
            .await?;
        Config::parse(&bytes).map_err(PullError::manifest(self.reference))
    }

    /// A document from the first server that has it as it should be.
    async fn document(
        &self,
        kind: &str,
        name: &str,
        expected: Option<Digest>,
        accept: &str,
        limit: u64,
    ) -> Result<Bytes, PullError> {
        let mut last = None;
        for seat in self.seats.iter().filter(|seat| !seat.is_away()) {
            match self.ask(seat, kind, name, accept, limit).await {
                Ok(bytes) => {
                    let found = Digest::of(&bytes);
                    match expected {
                        Some(expected) if expected != found => {
                            let what = format!("what {} has of {}", seat.server.authority, self.reference);
                            last = Some(PullError::Digest {
                                what,
                                expected,
                                found,
                            });
                        }
                        _ => return Ok(bytes),
                    }
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("a policy names at least one server"))
    }

    async fn ask(
        &self,
        seat: &Seat<'_>,
        kind: &str,
        name: &str,
        accept: &str,
        limit: u64,
    ) -> Result<Bytes, PullError> {
        let mut tries = 0;
        loop {
            match self
                .images
                .client
                .document(seat, &format!("{kind}/{name}"), accept, limit)
                .await
            {
                Ok(bytes) => return Ok(bytes),
                Err(AskError::Never(error)) => return Err(error),
                Err(AskError::Status(status, says)) => return Err(seat.refused(status, &says, name)),
                Err(AskError::Again { why, after, is_limit }) => {
                    tries += 1;
                    let registry = seat.server.authority.clone();
                    let is_long = is_limit && after.is_none_or(|after| after > WAITED_MAX);
                    if tries >= seat.tries_max() || is_long {
                        seat.give_up();
                        return Err(if is_limit {
                            PullError::Limited { registry, why }
                        } else {
                            PullError::Away { registry, why }
                        });
                    }
                    tracing::debug!(%registry, why, "a registry is asked again");
                    tokio::time::sleep(pause(tries, after)).await;
                }
            }
        }
    }

    /// A layer, fetched if it is not there.
    async fn layer(
        &self,
        layer: Descriptor,
        diff: Digest,
        progress: Option<&Progress>,
    ) -> Result<(Hold, Facts), PullError> {
        let layers = &self.images.layers;
        let gate = layers.gate(diff);
        let _turn = gate.lock().await;
        // Stays while it is fetched again for its archive: it was made before archives were kept.
        let there = layers.find(diff);
        if let Some((_, facts)) = &there
            && (!self.images.keeps_archives || layers.archive(diff, facts).is_some())
        {
            tell(progress, PullEvent::Present { layer: layer.digest });
            return Ok(there.expect("it was found"));
        }
        let mut seats: Vec<&Seat<'_>> = self.seats.iter().collect();
        loop {
            match self.fetch(&seats, &layer, diff, progress).await {
                // A mirror that has something else under this name: the next one may have the right bytes.
                Err(
                    PullError::Digest { .. }
                    | PullError::Layer {
                        source: LayerError::Input(_),
                        ..
                    },
                ) if seats.len() > 1 => {
                    seats.remove(0);
                }
                Err(error) => {
                    let there = there.ok_or(error)?;
                    // It is what it was before: builds over it start where it is.
                    tracing::warn!(layer = %diff, "a layer that is here was not fetched again for its archive");
                    tell(progress, PullEvent::Present { layer: layer.digest });
                    return Ok(there);
                }
                Ok(unpacked) => {
                    let less = |left: u64| Some(left.saturating_sub(unpacked.bytes));
                    let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                    tell(
                        progress,
                        PullEvent::Unpacked {
                            layer: layer.digest,
                            bytes: unpacked.bytes,
                        },
                    );
                    return layers.find(diff).ok_or_else(|| {
                        PullError::disk(format!("finding layer {diff}"))(io::ErrorKind::NotFound.into())
                    });
                }
            }
        }
    }

    async fn fetch(
        &self,
        seats: &[&Seat<'_>],
        layer: &Descriptor,
        diff: Digest,
        progress: Option<&Progress>,
    ) -> Result<Unpacked, PullError> {
        let place = pipe::place().await;
        let (send, pipe) = pipe::pipe();
        let limits = limits(self.images, self.left.load(Ordering::Relaxed));
        let held = (place, self.unpacking.token());
        let unpacking = pipe::make(self.images, (diff, layer.digest), pipe, limits, held);
        let mut sink = Pieces {
            send: Some(send),
            layer: layer.digest,
            total: layer.size,
            bytes: 0,
            told: 0,
            progress,
        };
        let name = layer.digest.to_string();
        let fetching = async {
            let fetched = self.images.client.blob(seats, &name, layer.size, &mut sink).await;
            sink.end(matches!(fetched, Ok(Fetched::Whole))).await;
            fetched
        };
        let (fetched, unpacked) = tokio::join!(fetching, unpacking);
        match (fetched, unpacked?) {
            (_, Ok(unpacked)) => Ok(unpacked),
            // What broke off broke off for a reason that the download knows.
            (Err(error), Err(MakeError::Layer(LayerError::Input(_)))) => Err(error),
            (_, Err(error)) => Err(PullError::layer(layer.digest, error)),
        }
    }
}

/// How much one layer may be.
pub(super) fn limits(images: &Images, bytes: u64) -> Limits {
    Limits {
        bytes,
        entries: images.policy.layer_entries_max,
    }
}

pub(super) fn tell(progress: Option<&Progress>, event: PullEvent) {
    if let Some(progress) = progress {
        // Who does not keep up sees the next one.
        let _ = progress.try_send(event);
    }
}

/// The network's end of the pipe.
struct Pieces<'a> {
    send: Option<mpsc::Sender<Piece>>,
    layer: Digest,
    total: u64,
    bytes: u64,
    told: u64,
    progress: Option<&'a Progress>,
}

impl Pieces<'_> {
    async fn end(&mut self, is_whole: bool) {
        if let Some(send) = self.send.take()
            && is_whole
        {
            // Who has gone knows why.
            let _ = send.send(Piece::End).await;
        }
    }
}

impl Sink for Pieces<'_> {
    async fn take(&mut self, bytes: Bytes) -> ControlFlow<()> {
        self.bytes += bytes.len() as u64;
        if self.bytes >= self.told + TOLD_EVERY_BYTES || self.bytes == self.total {
            self.told = self.bytes;
            tell(
                self.progress,
                PullEvent::Progress {
                    layer: self.layer,
                    bytes: self.bytes,
                    total: self.total,
                },
            );
        }
        match &self.send {
            Some(send) if send.send(Piece::Bytes(bytes)).await.is_ok() => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }

    fn broke(&mut self, why: &str, at: u64) {
        tell(
            self.progress,
            PullEvent::Again {
                layer: self.layer,
                bytes: at,
                why: why.to_owned(),
            },
        );
    }
}
