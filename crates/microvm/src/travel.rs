//! Builds that go elsewhere, and that come from there: their disks, image by image, and their memory.
//!
//! ```text
//! record ──parts──▶ told, images open                                              ──▶ elsewhere
//! told ──assemble──▶ bounded ──▶ images that are not here ──▶ looked at ──▶ on record
//! ```
//!
//! Images and states have the same names everywhere: they are drawn at random, and one that a build names never changes. So one
//! that several builds share goes once, and is there once. What is told may be anybody's: it names nothing but them, and what they
//! say is seen by nobody but the machines that start from them. Whether memory fits, and is what was written, is found out by
//! whoever starts from it, as of memory that was always here.
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use model::{BuildId, SandboxId};
use ports::RuntimeError;
use ports::runtime::{PartError, PartImage, PartImages, Parts};
use ports::step::{At, Step};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::files::sync_dir;
use crate::house::House;
use crate::record::{FORM, Names, Origin};
use crate::vmm::{Build, Vmm};
use crate::work::off;

/// Builds that are told to be akin to one: not all of them are in the blobs.
const KIN_MAX: usize = 32;

/// A build, as it is told elsewhere.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told<D, M> {
    form: u32,
    disk: D,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    memory: Option<M>,
}

/// Of a build without memory.
fn none<M>() -> Option<M> {
    None
}

impl<V: Vmm> House<V> {
    /// What a build consists of. Blocks.
    pub(crate) fn parts(&self, build: BuildId) -> Result<Parts, RuntimeError> {
        let _turn = self.turn();
        let Build::<V> { disk, memory, .. } = self.build(build)?.ok_or(RuntimeError::NoBuild(build))?;
        let open = |(part, path): (PartImage, PathBuf)| {
            let image = fs::File::open(&path).at(format!("opening {}", path.display()))?;
            Ok((part, image))
        };
        let disks = self.disk_files(&disk).into_iter().map(open);
        let mut images: BTreeMap<_, _> = disks.collect::<Result<_, Step>>()?;
        let opened = memory.as_ref().map(|memory| {
            let files = self.memory_files(memory).into_iter().map(open);
            files.collect::<Result<Vec<_>, Step>>()
        });
        let memory = match opened.transpose() {
            Ok(files) => {
                images.extend(files.into_iter().flatten());
                memory
            }
            Err(lost) => {
                tracing::warn!(%build, error = %lost.source, "the memory of a build is not there, and goes nowhere");
                None
            }
        };
        let told = Told {
            form: FORM,
            disk,
            memory,
        };
        let record = serde_json::to_value(&told).map_err(std::io::Error::other);
        Ok(Parts {
            record: record.at("telling a build")?,
            given: Vec::new(),
            images,
        })
    }

    /// The images of a disk, and where they are, or are to be.
    fn disk_files(&self, disk: &V::Disk) -> Vec<(PartImage, PathBuf)> {
        let images = disk.images().into_iter();
        images
            .map(|id| (PartImage::Drawn(id), self.images.path(id)))
            .collect()
    }

    /// The files of memory, likewise.
    fn memory_files(&self, memory: &V::Memory) -> Vec<(PartImage, PathBuf)> {
        let files = V::memory_files(memory).into_iter();
        let part = |(state, file)| {
            let path = V::memory_file(self, state, file);
            (PartImage::Memory(state, file), path)
        };
        files.map(part).collect()
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
        let told = Told::<V::Disk, V::Memory>::deserialize(record)
            .map_err(|error| cannot("its record is not understood", Some(error.into())))?;
        if told.form != FORM {
            return Err(cannot(
                "its record has a form that this Atoll does not know",
                None,
            ));
        }
        V::is_possible(&told.disk, told.memory.as_ref()).map_err(|why| cannot(why, None))?;
        self.has_room()?;
        let brought = self.bring(build, told, images).await;
        if brought.is_err() {
            self.sweep_soon();
        }
        brought.map_err(|failed| match failed {
            Failed::Source(source) => cannot("an image of it cannot be had", Some(source.into())),
            Failed::Unfit(why) => cannot(why, None),
            Failed::Here(step) => step.into(),
        })
    }

    /// Makes a build of a disk and memory, of which that is fetched that is not here. Memory that fits no machine here is not; nor
    /// is a disk lost because its memory is.
    async fn bring(
        self: &Arc<Self>,
        build: BuildId,
        told: Told<V::Disk, V::Memory>,
        images: &dyn PartImages,
    ) -> Result<(), Failed> {
        let (disk, mut memory) = (told.disk, told.memory);
        if let Some(why) = memory.as_ref().and_then(|memory| V::misfit_here(self, memory)) {
            tracing::info!(%build, why, "the memory of a build does not fit this machine, and is not brought here");
            memory = None;
        }
        // Neither what comes nor what is here is swept before it is on record.
        let house = Arc::clone(self);
        let names = (
            disk.images(),
            memory.as_ref().map(Names::states).unwrap_or_default(),
        );
        let pins = off(move || {
            let _turn = house.turn();
            Ok((house.images.pin_all(names.0), house.states.pin_all(names.1)))
        });
        let _pins = pins.await?;
        self.fetch_all(self.disk_files(&disk), images).await?;
        if let Some(coming) = &memory {
            match self.fetch_all(self.memory_files(coming), images).await {
                Err(Failed::Source(lost @ PartError::Lost(_))) => {
                    let error = &lost as &dyn std::error::Error;
                    tracing::warn!(%build, error, "the memory of a build is lost; its sandboxes boot");
                    memory = None;
                }
                fetched => fetched?,
            }
        }
        failpoint::reach("microvm/parts-fetched");
        V::is_sound(self, &disk).map_err(Failed::Unfit)?;
        let house = Arc::clone(self);
        let recorded = off(move || {
            house.images.sync_names()?;
            house.states.sync_names()?;
            let assembled = Build::<V> {
                form: FORM,
                disk,
                memory,
                origin: None,
            };
            let _turn = house.turn();
            house.book.builds.write(&build, &assembled)
        });
        Ok(recorded.await?)
    }

    async fn fetch_all(
        &self,
        files: Vec<(PartImage, PathBuf)>,
        images: &dyn PartImages,
    ) -> Result<(), Failed> {
        for (part, path) in files {
            if !path.exists() {
                self.fetch(part, path, images).await?;
            }
        }
        Ok(())
    }

    /// Has an image here: under its name when all of it is.
    async fn fetch(&self, part: PartImage, path: PathBuf, images: &dyn PartImages) -> Result<(), Failed> {
        let partial = Uuid::new_v4();
        let files = match part {
            PartImage::Memory(..) => &self.states,
            _ => &self.images,
        };
        let _pin = files.pin(partial);
        let coming = files.path(partial);
        let made = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&coming);
        let file = made.at(format!("making {}", coming.display()))?;
        let fetched = match images.write(part, file).await {
            Ok(()) => {
                let from = coming.clone();
                off(move || come_to_rest(&from, &path))
                    .await
                    .map_err(Failed::Here)
            }
            Err(source) => Err(Failed::Source(source)),
        };
        if fetched.is_err() {
            let _ = fs::remove_file(&coming);
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

/// Gives a file that is whole its place, from which nobody writes to it.
fn come_to_rest(from: &Path, into: &Path) -> Result<(), Step> {
    let step = || format!("moving {} to {}", from.display(), into.display());
    fs::set_permissions(from, fs::Permissions::from_mode(0o444)).at(step())?;
    let dir = into.parent().unwrap_or(into);
    fs::create_dir_all(dir).at(step())?;
    fs::rename(from, into).at(step())?;
    sync_dir(dir)
}

/// Why a build is not here.
enum Failed {
    /// Where it comes from.
    Source(PartError),
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
