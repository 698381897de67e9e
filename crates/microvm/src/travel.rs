//! Builds that go elsewhere, and that come from there: their disks, image by image, without memory.
//!
//! ```text
//! record ──parts──▶ told, images open                                              ──▶ elsewhere
//! told ──assemble──▶ bounded ──▶ images that are not here ──▶ looked at ──▶ on record
//! ```
//!
//! Images have the same names everywhere: they are drawn at random, and one that a build names never changes. So one that several
//! builds share goes once, and is there once. What is told may be anybody's: it names nothing but images, and what these say is
//! seen by nobody but the machines that start from them.
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::time::SystemTime;

use model::{BuildId, SandboxId};
use ports::RuntimeError;
use ports::runtime::{PartImage, PartImages, Parts};
use ports::step::{At, Step};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::files::Pin;
use crate::house::House;
use crate::record::{FORM, Names as _, Origin};
use crate::vmm::{Build, Vmm};
use crate::work::off;

/// Builds that are told to be akin to one.
const KIN_MAX: usize = 4;

/// A build, as it is told elsewhere.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told<D> {
    form: u32,
    disk: D,
}

impl<V: Vmm> House<V> {
    /// What a build consists of. Blocks.
    pub(crate) fn parts(&self, build: BuildId) -> Result<Parts, RuntimeError> {
        let _turn = self.turn();
        let disk = self.build(build)?.ok_or(RuntimeError::NoBuild(build))?.disk;
        let mut images = BTreeMap::new();
        for id in disk.images() {
            let path = self.images.path(id);
            let image = fs::File::open(&path).at(format!("opening the image {}", path.display()))?;
            images.insert(PartImage::Drawn(id), image);
        }
        let told = Told { form: FORM, disk };
        let record = serde_json::to_value(&told).map_err(std::io::Error::other);
        Ok(Parts {
            record: record.at("telling a build")?,
            given: Vec::new(),
            images,
        })
    }

    /// Makes a build of parts, of which those are fetched that are not here.
    pub(crate) async fn assemble(
        self: &Arc<Self>,
        build: BuildId,
        record: &serde_json::Value,
        images: &dyn PartImages,
    ) -> Result<(), RuntimeError> {
        let cannot = |why: &str, source| RuntimeError::CannotAssemble {
            build,
            why: why.to_owned(),
            source,
        };
        if self.build(build)?.is_some() {
            return Ok(());
        }
        let told = Told::<V::Disk>::deserialize(record)
            .map_err(|error| cannot("its record is not understood", Some(error.into())))?;
        if told.form != FORM {
            return Err(cannot(
                "its record has a form that this Atoll does not know",
                None,
            ));
        }
        V::is_possible(&told.disk).map_err(|why| cannot(why, None))?;
        self.has_room()?;
        let brought = self.bring(build, told.disk, images).await;
        if brought.is_err() {
            self.sweep_soon();
        }
        brought.map_err(|failed| match failed {
            Failed::Source(source) => cannot("the image of a disk cannot be had", Some(source)),
            Failed::Unfit(why) => cannot(why, None),
            Failed::Here(step) => step.into(),
        })
    }

    /// Makes a build of a disk, of which those images are fetched that are not here.
    async fn bring(
        self: &Arc<Self>,
        build: BuildId,
        disk: V::Disk,
        images: &dyn PartImages,
    ) -> Result<(), Failed> {
        // Neither what comes nor what is here is swept before it is on record.
        let names = disk.images();
        let _pins: Vec<Pin> = names.iter().map(|id| self.images.pin(*id)).collect();
        for id in names {
            if !self.images.path(id).exists() {
                self.fetch(id, images).await?;
            }
        }
        failpoint::reach("microvm/parts-fetched");
        V::is_sound(self, &disk).map_err(Failed::Unfit)?;
        let house = Arc::clone(self);
        let recorded = off(move || {
            house.images.sync_names()?;
            let assembled = Build::<V> {
                form: FORM,
                disk,
                memory: None,
                origin: None,
            };
            let _turn = house.turn();
            house.book.builds.write(&build, &assembled)
        });
        Ok(recorded.await?)
    }

    /// Has an image here: under its name when all of it is.
    async fn fetch(&self, id: Uuid, images: &dyn PartImages) -> Result<(), Failed> {
        let partial = Uuid::new_v4();
        let _pin = self.images.pin(partial);
        let path = self.images.path(partial);
        let made = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let file = made.at(format!("making the image {}", path.display()))?;
        let fetched = match images.write(PartImage::Drawn(id), file).await {
            Ok(()) => {
                let (from, into) = (path.clone(), self.images.path(id));
                let named =
                    off(move || fs::rename(&from, &into).at(format!("naming the image {}", into.display())));
                named.await.map_err(Failed::Here)
            }
            Err(source) => Err(Failed::Source(source)),
        };
        if fetched.is_err() {
            let _ = fs::remove_file(&path);
        }
        fetched
    }

    /// Makes a build of the disk that is kept for a sandbox: nobody writes to that, so it is the same. Blocks.
    pub(crate) fn copy_kept(&self, sandbox: SandboxId, into: BuildId) -> Result<(), RuntimeError> {
        let _turn = self.turn();
        if self.build(into)?.is_some() {
            return Ok(());
        }
        let kept = self.book.kept.read(&sandbox)?;
        let kept = kept.ok_or(RuntimeError::NoDisk(sandbox))?;
        let copied = Build::<V> {
            form: FORM,
            disk: kept.disk,
            memory: None,
            origin: kept.build.map(|build| Origin::now(sandbox, build)),
        };
        Ok(self.book.builds.write(&into, &copied)?)
    }

    /// Builds whose disks one shares most with, the likeliest first: those of the same sandbox, the newest of them, then what that
    /// began with, and what lies below that. Blocks.
    pub(crate) fn kin_of(&self, build: BuildId) -> Vec<BuildId> {
        let origin = |build: &BuildId| self.build(*build).ok().flatten().and_then(|record| record.origin);
        let Some(of) = origin(&build) else {
            return Vec::new();
        };
        let mut siblings: Vec<(SystemTime, BuildId)> = self
            .book
            .builds
            .all()
            .into_iter()
            .filter_map(|(other, record)| Some((other, record?.origin?)))
            .filter(|(other, theirs)| *other != build && theirs.sandbox == of.sandbox && theirs.at <= of.at)
            .map(|(other, theirs)| (theirs.at, other))
            .collect();
        siblings.sort();
        let mut kin: Vec<BuildId> = siblings
            .into_iter()
            .rev()
            .map(|(_, other)| other)
            .take(KIN_MAX / 2)
            .collect();
        let mut below = Some(of.build);
        while let Some(next) = below
            && kin.len() < KIN_MAX
            && !kin.contains(&next)
        {
            kin.push(next);
            below = origin(&next).map(|origin| origin.build);
        }
        kin
    }
}

/// Why a build is not here.
enum Failed {
    /// Where it comes from.
    Source(Box<dyn std::error::Error + Send + Sync>),
    /// What came is none.
    Unfit(&'static str),
    /// This node.
    Here(Step),
}

impl From<Step> for Failed {
    fn from(step: Step) -> Self {
        Self::Here(step)
    }
}
