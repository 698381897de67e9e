//! Disks: images over one another, of which a machine writes to the uppermost alone.
//!
//! ```text
//! root of an image (raw) ◀── sealed by a copy (qcow2) ◀── … ◀── a machine's own (qcow2)
//! ```
//!
//! An image that another lies on is never written to again. Which lie on which is on record, and nowhere else: what an
//! image says of itself is not looked at. Whatever no record names is removed.
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use microvm::files::Files;
use ports::step::{At, Step};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::Lent;

pub(crate) mod flatten;
mod qcow2;

/// How an image is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    Raw,
    Qcow2,
}

/// An image, and where it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
}

/// An image of this node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub(crate) id: Uuid,
    pub(crate) format: Format,
}

/// Images over one another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The lowest first.
    pub(crate) layers: Vec<Layer>,
    /// How much can be written to it.
    pub(crate) size_bytes: u64,
}

impl Disk {
    /// With one more image on it, and at least so large.
    pub(crate) fn under(&self, top: Layer, size_bytes: u64) -> Self {
        let mut layers = self.layers.clone();
        layers.push(top);
        Self {
            layers,
            size_bytes: self.size_bytes.max(size_bytes),
        }
    }

    /// Whether ours could be so.
    pub(crate) fn is_possible(&self) -> Result<(), &'static str> {
        if self.layers.is_empty() || self.layers.len() > DEPTH_TOLD_MAX {
            return Err("it has as many images on one another as no disk has");
        }
        if self.size_bytes == 0 || self.size_bytes > DISK_BYTES_MAX {
            return Err("its disk has a size that none has");
        }
        // What is not ours alone to lay out is never on another.
        if self
            .layers
            .iter()
            .skip(1)
            .any(|layer| layer.format == Format::Raw)
        {
            return Err("an image in it hides those below it");
        }
        Ok(())
    }
}

/// Images that may lie on one another before they are made one. Each costs a machine that starts a file to be opened,
/// and each read of what was never written a look.
pub(crate) const DEPTH_MAX: usize = 8;
/// Disks on one another that a machine is still started on; above it they are made one first.
pub(crate) const DEPTH_STARTED_MAX: usize = 3 * DEPTH_MAX;
/// Disks on one another that are brought here: a machine that is copied again and again has many, until there is time to make
/// them one. QEMU could not open more than some hundreds.
const DEPTH_TOLD_MAX: usize = 256;
/// No disk is larger.
const DISK_BYTES_MAX: u64 = 4 << 40;
/// Of tables, and what becomes free while they grow.
const TABLES_BYTES_MAX: u64 = 256 << 20;

/// The images of a node.
#[derive(Debug)]
pub(crate) struct Disks {
    pub(crate) files: Files,
}

impl Disks {
    /// The name of an image that is not there yet.
    pub(crate) fn draw(format: Format) -> Layer {
        Layer {
            id: Uuid::new_v4(),
            format,
        }
    }

    #[cfg(test)]
    pub(crate) fn image(&self, layer: Layer) -> Image {
        Image {
            path: self.files.path(layer.id),
            format: layer.format,
        }
    }

    #[cfg(test)]
    pub(crate) fn images(&self, disk: &Disk) -> Vec<Image> {
        disk.layers.iter().map(|layer| self.image(*layer)).collect()
    }

    /// Whether all of its images are there.
    pub(crate) fn is_whole(&self, disk: &Disk) -> bool {
        !disk.layers.is_empty() && disk.layers.iter().all(|layer| self.files.path(layer.id).exists())
    }

    /// Whether each of its images is one of its kind, and no longer than one of that size can be. Its content is not looked at:
    /// what a machine of ours wrote is no better.
    pub(crate) fn is_sound(&self, disk: &Disk) -> Result<(), &'static str> {
        for layer in &disk.layers {
            let length = fs::metadata(self.files.path(layer.id)).map_or(u64::MAX, |about| about.len());
            let fits = match layer.format {
                Format::Raw => length > 0 && length <= disk.size_bytes,
                Format::Qcow2 => length <= file_bytes_max(disk.size_bytes) && self.is_image(*layer),
            };
            if !fits {
                return Err("an image in it is none of a disk of that size");
            }
        }
        Ok(())
    }

    /// Whether an image was made to its end.
    pub(crate) fn is_image(&self, layer: Layer) -> bool {
        fs::File::open(self.files.path(layer.id)).is_ok_and(|file| qcow2::is_image(&file))
    }

    /// Makes an image into which nothing was written, and no more than `size_bytes` can be.
    pub(crate) fn make(&self, layer: Layer, size_bytes: u64) -> Result<(), Step> {
        let path = self.files.path(layer.id);
        let mut options = fs::File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|file| qcow2::write_empty(&file, size_bytes))
            .at(format!("making the image {}", path.display()))
    }

    /// Opens an image for a QEMU, which cannot by itself: to read it, and to write to it where it is nobody else's.
    pub(crate) fn open_image(&self, layer: Layer, writable: bool) -> Result<Opened, Step> {
        let path = self.files.path(layer.id);
        let step = || format!("opening the image {}", path.display());
        let write = || fs::File::options().read(true).write(true).open(&path);
        Ok(Opened {
            format: layer.format,
            read: fs::File::open(&path).at(step())?.into(),
            write: writable.then(write).transpose().at(step())?.map(OwnedFd::from),
        })
    }

    /// The same for all of a disk's, of which the uppermost is written to.
    pub(crate) fn open_all(&self, disk: &Disk) -> Result<Vec<Opened>, Step> {
        let top = disk.layers.len().saturating_sub(1);
        let layers = disk.layers.iter().enumerate();
        layers
            .map(|(depth, layer)| self.open_image(*layer, depth == top))
            .collect()
    }
}

/// An image that is open.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) format: Format,
    pub(crate) read: OwnedFd,
    pub(crate) write: Option<OwnedFd>,
}

impl Opened {
    pub(crate) fn lent(&self) -> Lent {
        Lent {
            format: self.format,
            read: self.read.as_raw_fd(),
            write: self.write.as_ref().map(OwnedFd::as_raw_fd),
        }
    }

    pub(crate) fn into_descriptors(self) -> impl Iterator<Item = OwnedFd> {
        self.write.into_iter().chain([self.read])
    }
}

/// How long an image of so many bytes becomes at most: each cluster that is written is there once, with what leads to it.
pub(crate) fn file_bytes_max(size_bytes: u64) -> u64 {
    size_bytes
        .saturating_add(size_bytes / 16)
        .saturating_add(TABLES_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_made_once_and_is_its_owners_alone() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let disks = Disks {
            files: Files::open(dir.path().join("images")).unwrap(),
        };
        let layer = Disks::draw(Format::Qcow2);
        assert!(!disks.is_image(layer));
        disks.make(layer, 1 << 30).unwrap();
        assert!(disks.is_image(layer) && disks.files.used_bytes(layer.id) < 1 << 20);
        let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(disks.files.path(layer.id)), 0o600);
        let disk = Disk {
            layers: vec![layer],
            size_bytes: 1 << 30,
        };
        assert!(disks.is_whole(&disk));
        assert!(!disks.is_whole(&disk.under(Disks::draw(Format::Qcow2), 0)));
        let refused = disks.make(layer, 1 << 30).unwrap_err();
        assert_eq!(refused.source.kind(), std::io::ErrorKind::AlreadyExists);
        let cut_off = Disks::draw(Format::Qcow2);
        fs::write(disks.files.path(cut_off.id), "").unwrap();
        assert!(!disks.is_image(cut_off));
    }
}
