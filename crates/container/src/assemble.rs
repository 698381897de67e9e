//! Builds that go elsewhere, and that come from there: how their parts are put together.
//!
//! ```text
//! record ──parts──▶ told without paths of this machine, images open     ──▶ elsewhere
//! told ──assemble──▶ checked ──▶ images that are not here ──▶ finished ──▶ on record
//! ```
//!
//! What is told may be anybody's: no path in it leads out of this node's own layers, and it is bounded as a build of ours is.
//!
//! What is ours over an image's layers is made of them and of nothing else, so it does not travel: where it is not, it is made
//! again, under a name that is made of theirs. So what somebody tells is never found where an image's own is looked for.
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use model::{BuildId, MiB};
use ports::RuntimeError;
use ports::runtime::{PartImage, PartImages, Parts};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::build::{Build, FORM, Layer, Overlay};
use crate::house::House;
use crate::import::{self, OVER_IMAGE};
use crate::step::At;

/// Overlays of one root: ours have at most `/` and `/usr`.
const OVERLAYS_MAX: usize = 16;

/// A build, told without paths of this machine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    form: u32,
    overlays: Vec<ToldOverlay>,
    disk: Option<MiB>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToldOverlay {
    target: String,
    layers: Vec<ToldLayer>,
    upper: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum ToldLayer {
    /// That was made for a build, which must be there, unless it was made over given layers alone.
    Made { build: BuildId, part: PathBuf },
    /// The machine's own `/usr`, of builds whose other layers are made of this machine.
    Host,
    /// One that was given, by its place among [`Parts::given`].
    Given(usize),
    /// An upper of a sealed disk.
    Sealed { build: BuildId, upper: String },
}

/// An image that is on its way.
struct Coming {
    image: PartImage,
    partial: PathBuf,
    finished: PathBuf,
}

/// What is ours over an image's layers, on a node that does not have it.
struct OverImage {
    /// What it is called here.
    name: BuildId,
    /// The image's layers, the highest first.
    below: Vec<PathBuf>,
}

impl OverImage {
    fn new(below: Vec<PathBuf>) -> Self {
        let mut hash = Sha256::new_with_prefix(b"atoll over layers\0");
        for layer in &below {
            // A layer is called by the digest of what is in it.
            hash.update(layer.file_name().unwrap_or_default().as_encoded_bytes());
            hash.update(b"\0");
        }
        let hash = hash.finalize();
        let bytes = hash.first_chunk().expect("a hash is longer than an id");
        Self {
            name: BuildId(uuid::Builder::from_custom_bytes(*bytes).into_uuid()),
            below,
        }
    }
}

impl Told {
    /// Builds for which layers were made that it stands on.
    fn made(&self) -> Vec<BuildId> {
        let layers = self.overlays.iter().flat_map(|overlay| &overlay.layers);
        let of = layers.filter_map(|layer| match layer {
            ToldLayer::Made { build, .. } => Some(*build),
            _ => None,
        });
        of.collect()
    }
}

impl ToldOverlay {
    /// The build, and the layers below by their places among those that are given, where the layer at a place is ours over an
    /// image's.
    fn over_image(&self, at: usize) -> Option<(BuildId, Vec<usize>)> {
        let ToldLayer::Made { build, part } = self.layers.get(at)? else {
            return None;
        };
        let below = self.layers.get(at + 1..)?;
        let given = below.iter().map(|layer| match layer {
            ToldLayer::Given(n) => Some(*n),
            _ => None,
        });
        let given: Vec<usize> = given.collect::<Option<_>>()?;
        (part == Path::new(OVER_IMAGE) && !given.is_empty()).then_some((*build, given))
    }
}

impl House {
    /// What a build consists of.
    pub(crate) fn parts(&self, id: BuildId) -> Result<Parts, RuntimeError> {
        let _stay = self.builds.stay();
        let build = self.builds.get(id)?.ok_or(RuntimeError::NoBuild(id))?;
        let mut given = Vec::new();
        let mut images = BTreeMap::new();
        let open = |path: PathBuf| File::open(&path).at(format!("opening {}", path.display()));
        if build.disk.is_some() {
            images.insert(PartImage::Own, open(self.disks.of_build(id))?);
        }
        for sealed in build.sealed() {
            images.insert(PartImage::Sealed(sealed), open(self.disks.of_sealed(sealed))?);
        }
        let own = self.builds.all_layers();
        let mut tell = |layer: &Layer| match layer {
            Layer::Sealed { sealed, upper } => ToldLayer::Sealed {
                build: *sealed,
                upper: upper.clone(),
            },
            Layer::Dir(dir) => match made(dir, &own) {
                Some((build, part)) => ToldLayer::Made { build, part },
                None if dir == Path::new("/usr") => ToldLayer::Host,
                None => {
                    given.push(dir.clone());
                    ToldLayer::Given(given.len() - 1)
                }
            },
        };
        let overlays = build.overlays.iter().map(|overlay| ToldOverlay {
            target: overlay.target.clone(),
            layers: overlay.layers.iter().map(&mut tell).collect(),
            upper: overlay.upper.clone(),
        });
        let told = Told {
            form: FORM,
            overlays: overlays.collect(),
            disk: build.disk,
        };
        Ok(Parts {
            record: serde_json::to_value(&told).at("telling a build")?,
            given,
            images,
        })
    }

    /// Makes a build of parts, which are fetched if they are not here.
    pub(crate) async fn assemble(
        &self,
        id: BuildId,
        record: &serde_json::Value,
        given: Vec<PathBuf>,
        images: &dyn PartImages,
        sudo: &Path,
    ) -> Result<(), RuntimeError> {
        let _under_way = self.builds.begin(&[id]);
        if self.builds.has(id) {
            return Ok(());
        }
        let told = Told::deserialize(record).map_err(|error| RuntimeError::CannotAssemble {
            build: id,
            why: "its record is not understood".to_owned(),
            source: Some(error.into()),
        })?;
        // What was made for others stays until this one is on record.
        let _below = self.builds.begin(&told.made());
        let (build, ours) = self.understand(id, told, &given)?;
        // Neither are those cleared away that no record names yet.
        let ids = ours.iter().map(|over| over.name).chain(build.sealed());
        let _theirs = self.builds.begin(&ids.collect::<Vec<_>>());
        self.disks.has_room()?;
        let coming = self.missing(id, &build);
        let here = self.fetch(id, &coming, images).await;
        let done = here.and_then(|()| {
            failpoint::reach("container/parts-fetched");
            for over in &ours {
                let _alone = self.builds.making();
                let layers = self.builds.layers(over.name);
                import::over_image(&self.laying, &layers, &over.below, sudo)?;
            }
            failpoint::reach("container/image-laid");
            self.finish_assembly(id, &build, &coming)
        });
        if done.is_err() {
            for part in &coming {
                let _ = fs::remove_file(&part.partial);
            }
        }
        done
    }

    fn missing(&self, id: BuildId, build: &Build) -> Vec<Coming> {
        let own = build.disk.map(|_| (PartImage::Own, self.disks.of_build(id)));
        let sealed = build.sealed().into_iter();
        let sealed = sealed.map(|sealed| (PartImage::Sealed(sealed), self.disks.of_sealed(sealed)));
        let place = |(image, finished): (_, PathBuf)| Coming {
            image,
            partial: finished.with_extension("partial"),
            finished,
        };
        own.into_iter()
            .chain(sealed)
            .map(place)
            .filter(|part| !part.finished.exists())
            .collect()
    }

    async fn fetch(
        &self,
        id: BuildId,
        coming: &[Coming],
        images: &dyn PartImages,
    ) -> Result<(), RuntimeError> {
        for part in coming {
            let file = File::create(&part.partial).at(format!("making {}", part.partial.display()))?;
            images
                .write(part.image, file)
                .await
                .map_err(|source| RuntimeError::CannotAssemble {
                    build: id,
                    why: "the image of a disk cannot be had".to_owned(),
                    source: Some(source.into()),
                })?;
        }
        Ok(())
    }

    fn finish_assembly(&self, id: BuildId, build: &Build, coming: &[Coming]) -> Result<(), RuntimeError> {
        for part in coming {
            if part.image == PartImage::Own {
                let uppers = build.overlays.iter().map(|overlay| overlay.upper.as_str());
                self.disks.forget_origins(&part.partial, uppers)?;
            }
            self.disks.finish(&part.partial, &part.finished)?;
        }
        self.builds.put(id, build)?;
        failpoint::reach("container/build-recorded");
        Ok(())
    }

    /// What is told, as a build of this machine, with what is to be made for it; refused where it cannot be one.
    fn understand(
        &self,
        id: BuildId,
        told: Told,
        given: &[PathBuf],
    ) -> Result<(Build, Vec<OverImage>), RuntimeError> {
        let cannot = |why: String| RuntimeError::CannotAssemble {
            build: id,
            why,
            source: None,
        };
        if told.form > FORM {
            return Err(cannot(format!(
                "it has form {}, and this Atoll knows {FORM}",
                told.form
            )));
        }
        if told.overlays.is_empty() || told.overlays.len() > OVERLAYS_MAX {
            return Err(cannot(format!("it has {} overlays", told.overlays.len())));
        }
        let nth = |n: usize| {
            let found = given.get(n).cloned();
            found.ok_or_else(|| cannot(format!("layer {n} is not among those that were given")))
        };
        let here = |layer: ToldLayer| match layer {
            ToldLayer::Sealed { build, upper } if is_name(&upper) => {
                Ok(Layer::Sealed { sealed: build, upper })
            }
            ToldLayer::Host => Ok(Layer::Dir("/usr".into())),
            ToldLayer::Given(n) => nth(n).map(Layer::Dir),
            ToldLayer::Made { build, part } if is_within(&part) => {
                let dir = self.builds.layers(build).join(part);
                if !dir.is_dir() {
                    return Err(cannot(format!(
                        "it stands on build {build}, which was made on another machine and is not here"
                    )));
                }
                Ok(Layer::Dir(dir))
            }
            ToldLayer::Sealed { .. } | ToldLayer::Made { .. } => {
                Err(cannot("a name in it is none".to_owned()))
            }
        };
        let mut overlays = Vec::with_capacity(told.overlays.len());
        let mut ours = Vec::new();
        for overlay in told.overlays {
            let target = overlay.target.strip_prefix('/').unwrap_or("..");
            if !is_name(&overlay.upper) || !(target.is_empty() || is_within(Path::new(target))) {
                return Err(cannot("a name in it is none".to_owned()));
            }
            let over = (0..overlay.layers.len()).find_map(|at| Some((at, overlay.over_image(at)?)));
            let mut layers = overlay.layers;
            let mut laid = Vec::with_capacity(layers.len());
            if let Some((at, (build, below))) = over
                && !self.builds.layers(build).join(OVER_IMAGE).is_dir()
            {
                let below = below.into_iter().map(nth).collect::<Result<_, _>>()?;
                let over = OverImage::new(below);
                let rest = layers.split_off(at + 1);
                layers.pop();
                laid.extend(layers.into_iter().map(here).collect::<Result<Vec<_>, _>>()?);
                laid.push(Layer::Dir(self.builds.layers(over.name).join(OVER_IMAGE)));
                layers = rest;
                ours.push(over);
            }
            laid.extend(layers.into_iter().map(here).collect::<Result<Vec<_>, _>>()?);
            overlays.push(Overlay {
                target: overlay.target,
                layers: laid,
                upper: overlay.upper,
            });
        }
        let build = Build {
            disk: told.disk,
            ..Build::of(overlays)
        };
        build.is_bounded().map_err(cannot)?;
        Ok((build, ours))
    }
}

/// For which build a layer of ours was made, and which part of it.
fn made(dir: &Path, own: &Path) -> Option<(BuildId, PathBuf)> {
    let mut rest = dir.strip_prefix(own).ok()?.iter();
    let build = rest.next()?.to_str()?.parse().ok()?;
    Some((build, rest.collect()))
}

/// Whether a path stays where it begins.
fn is_within(path: &Path) -> bool {
    path.as_os_str().len() <= 4096
        && path.components().next().is_some()
        && path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whether it is one name.
fn is_name(name: &str) -> bool {
    is_within(Path::new(name)) && Path::new(name).components().count() == 1 && !name.contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out() {
        for name in ["", ".", "..", "a/b", "/a", "a/", "../a"] {
            assert!(!is_name(name), "{name}");
        }
        for path in ["", "..", "/", "/etc", "a/../../b", "../a"] {
            assert!(!is_within(Path::new(path)), "{path}");
        }
        assert!(is_name("root") && is_within(Path::new("root/usr")));
    }

    #[test]
    fn layers_of_ours_are_told_by_their_build() {
        let id = BuildId::random();
        let own = Path::new("/data/layers");
        let dir = own.join(id.to_string()).join("root");
        assert_eq!(made(&dir, own), Some((id, "root".into())));
        assert_eq!(made(Path::new("/data/images/layers/00"), own), None);
        assert_eq!(made(&own.join("odd/root"), own), None);
    }
}
