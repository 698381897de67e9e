//! Images that were imported: kept by name, until they are forgotten.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Image, Images, PullError, blocking, pull};
use crate::archive::{Archive, ArchiveError, check_platform, own_platform};
use crate::digest::Digest;
use crate::layers::write_whole;
use crate::manifest::{Config, ImageConfig, Platform};
use crate::reference::Reference;

/// An image that was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// What it is called, in full.
    pub name: String,
    /// Which it is.
    pub digest: Digest,
    /// How it is run.
    pub config: ImageConfig,
    /// When it was imported.
    pub imported_at: SystemTime,
    diffs: Vec<Digest>,
}

impl Imported {
    /// What its layers are known by, the lowest first.
    pub(super) fn diffs(&self) -> impl Iterator<Item = Digest> {
        self.diffs.iter().copied()
    }
}

fn dir(images: &Images) -> PathBuf {
    images.dir.join("imports")
}

fn path(images: &Images, name: &str) -> PathBuf {
    dir(images).join(format!("{}.json", Digest::of(name.as_bytes()).hex()))
}

pub(super) async fn import(
    images: &Images,
    from: &Path,
    image: Option<&str>,
    name: Option<&str>,
) -> Result<(Imported, Image), PullError> {
    let shown = from.display().to_string();
    let given = name.map(|name| images.reference(name)).transpose()?;
    let registry = images.policy.default_registry.clone();
    let (scratch, limit) = (images.dir.clone(), images.policy.image_bytes_max);
    let (place, wanted) = (from.to_owned(), image.map(str::to_owned));
    let opened = blocking(move || -> Result<_, ArchiveError> {
        let archive = Archive::open(&place, &scratch, limit)?;
        let found = archive.image(wanted.as_deref(), &registry)?;
        check_platform(&found)?;
        Ok((Arc::new(archive), found))
    });
    let (archive, found) = opened.await?.map_err(|error| of_archive(&shown, error))?;
    let wrong = |why: &str| PullError::Archive {
        path: shown.clone(),
        why: why.to_owned(),
    };
    let name = match (given, &found.name) {
        (Some(given), _) => given.to_string(),
        (None, Some(own)) => own.clone(),
        (None, None) => return Err(wrong("it does not say what it is called; give it a name")),
    };
    if name.contains('@') {
        return Err(wrong("a name with a digest cannot be given to it; give it a tag"));
    }
    let mut layers = Vec::with_capacity(found.layers.len());
    let mut left = limit;
    for layer in found.layers {
        let (store, archive) = (Arc::clone(&images.layers), Arc::clone(&archive));
        let (diff, blob, limits) = (layer.diff, layer.blob, pull::limits(images, left));
        let gate = store.gate(diff);
        let _turn = gate.lock().await;
        let (found, keeps) = (store.find(diff), images.keeps_archives);
        let is_enough = |facts| !keeps || store.archive(diff, facts).is_some();
        let there = match found {
            Some(there) if is_enough(&there.1) => there,
            // One that was made before archives were kept stays while it is made again for its archive.
            _found => {
                let path = shown.clone();
                let made = blocking(move || {
                    let input = archive.layer(&layer).map_err(|error| of_archive(&path, error))?;
                    let made = store.make(diff, blob, input, limits, keeps);
                    made.map_err(|error| PullError::layer(blob.unwrap_or(diff), error))
                });
                made.await??;
                let missing =
                    || PullError::disk(format!("finding layer {diff}"))(io::ErrorKind::NotFound.into());
                images.layers.find(diff).ok_or_else(missing)?
            }
        };
        left = left.saturating_sub(there.1.bytes);
        layers.push(there);
    }
    let imported = Imported {
        name: name.clone(),
        digest: found.digest,
        config: found.config.run.clone(),
        imported_at: SystemTime::now(),
        diffs: found.config.diffs.clone(),
    };
    let image = pull::assemble(images, &name, found.digest, found.config, layers).await?;
    let (record, place) = (imported.clone(), path(images, &name));
    blocking(move || write_whole(&place, &serde_json::to_vec(&record)?))
        .await?
        .map_err(PullError::disk(format!("writing down the image {name}")))?;
    Ok((imported, image))
}

pub(super) async fn all(images: &Images) -> Result<Vec<Imported>, PullError> {
    let dir = dir(images);
    let read = blocking(move || -> io::Result<Vec<Imported>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match fs::read(&path) {
                Ok(text) => all.push(serde_json::from_slice(&text)?),
                // It was forgotten just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        all.sort_by(|one: &Imported, other| one.name.cmp(&other.name));
        Ok(all)
    });
    read.await?
        .map_err(PullError::disk("reading which images were imported"))
}

/// The one that a name means, by its tag or its digest.
pub(super) async fn find(images: &Images, reference: &Reference) -> Result<Option<Imported>, PullError> {
    let name = reference.to_string();
    let is_it = |imported: &Imported| match reference.digest {
        None => imported.name == name,
        Some(digest) => {
            let of = |text: &str| Reference::parse(text, &images.policy.default_registry).ok();
            imported.digest == digest
                && of(&imported.name).is_some_and(|own| {
                    (own.registry, own.repository)
                        == (reference.registry.clone(), reference.repository.clone())
                })
        }
    };
    Ok(all(images).await?.into_iter().find(is_it))
}

pub(super) async fn open(images: &Images, imported: &Imported) -> Result<Image, PullError> {
    let mut layers = Vec::with_capacity(imported.diffs.len());
    for diff in imported.diffs() {
        let lost = || PullError::NotFound {
            registry: "this machine".to_owned(),
            repository: imported.name.clone(),
            what: format!("layer {diff}"),
        };
        layers.push(images.layers.find(diff).ok_or_else(lost)?);
    }
    let config = Config {
        platform: Platform::own(),
        run: imported.config.clone(),
        diffs: imported.diffs.clone(),
    };
    pull::assemble(images, &imported.name, imported.digest, config, layers).await
}

pub(super) async fn forget(images: &Images, name: &str) -> Result<bool, PullError> {
    let path = path(images, &images.reference(name)?.to_string());
    blocking(move || match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        done => done.map(|()| true),
    })
    .await?
    .map_err(PullError::disk(format!("forgetting the image {name}")))
}

fn of_archive(path: &str, error: ArchiveError) -> PullError {
    let path = path.to_owned();
    match error {
        ArchiveError::Wrong(why) => PullError::Archive { path, why },
        ArchiveError::Platform(offers) => PullError::Architecture {
            reference: path,
            wanted: own_platform(),
            offers,
        },
        ArchiveError::Digest {
            what,
            expected,
            found,
        } => PullError::Digest {
            what: format!("{what} of {path}"),
            expected,
            found,
        },
        ArchiveError::Read(source) => match source.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput => PullError::Archive {
                path,
                why: source.to_string(),
            },
            _ => PullError::disk(format!("reading {path}"))(source),
        },
    }
}
