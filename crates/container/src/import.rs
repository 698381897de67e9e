//! Builds out of layers: this machine's own `/usr` under a fresh root, a root that somebody made, an image's. What of them is
//! ours is [`rootfs`]'s.
use std::fs;
use std::path::{Path, PathBuf};

use ports::step::{At, Step};

use crate::build::{Build, Layer, Overlay};
use crate::root::{Laying, view};

/// A build over the machine's own `/usr`.
pub(crate) fn host(layers: &Path, sudo: &Path) -> Result<Build, Step> {
    let partial = fresh(layers)?;
    rootfs::layers_of_host(&partial, sudo)?;
    finish(&partial, layers)?;
    Ok(Build::of(vec![
        overlay("/", "root", layers, []),
        overlay("/usr", "usr", layers, [PathBuf::from("/usr")]),
    ]))
}

/// A build over a whole root in a directory, which must stay as it is from now on.
pub(crate) fn root(layers: &Path, dir: &Path, sudo: &Path) -> Result<Build, Step> {
    let partial = fresh(layers)?;
    rootfs::layer_over(dir, &partial.join("root"), sudo)?;
    finish(&partial, layers)?;
    Ok(Build::of(vec![overlay("/", "root", layers, [dir.to_owned()])]))
}

/// A build over unpacked layers, the lowest first, which must stay as they are from now on.
pub(crate) fn image(laying: &Laying, layers: &Path, given: &[PathBuf], sudo: &Path) -> Result<Build, Step> {
    let below: Vec<PathBuf> = given.iter().rev().cloned().collect();
    over_image(laying, layers, &below, sudo)?;
    Ok(Build::of(vec![overlay("/", OVER_IMAGE, layers, below)]))
}

/// The part of a build's layers that is ours over an image's.
pub(crate) const OVER_IMAGE: &str = "root";

/// Makes what is ours over an image's layers, the highest first, as the kernel lays them. One that is there was made of the same,
/// and others may stand on it: it stays.
pub(crate) fn over_image(laying: &Laying, layers: &Path, below: &[PathBuf], sudo: &Path) -> Result<(), Step> {
    if layers.join(OVER_IMAGE).is_dir() {
        return Ok(());
    }
    let partial = fresh(layers)?;
    let own = partial.join(OVER_IMAGE);
    fs::create_dir(&own).at(format!("making {}", own.display()))?;
    {
        let mut laid = vec![own.clone()];
        laid.extend(below.iter().cloned());
        rootfs::layer_over_image(view(laying, laid)?, &own, Some(sudo))?;
    }
    finish(&partial, layers)
}

/// Ours, which is called `own`, over what is given, the highest first.
fn overlay(target: &str, own: &str, layers: &Path, given: impl IntoIterator<Item = PathBuf>) -> Overlay {
    let ours = Layer::Dir(layers.join(own));
    Overlay {
        target: target.into(),
        layers: [ours]
            .into_iter()
            .chain(given.into_iter().map(Layer::Dir))
            .collect(),
        upper: own.into(),
    }
}

fn fresh(layers: &Path) -> Result<PathBuf, Step> {
    let partial = layers.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).at(format!("making {}", partial.display()))?;
    Ok(partial)
}

fn finish(partial: &Path, layers: &Path) -> Result<(), Step> {
    let _ = fs::remove_dir_all(layers);
    fs::rename(partial, layers).at(format!("naming {}", layers.display()))
}
