//! Builds out of directories: the layers of an image laid together into one tree, and that into a root disk.
//!
//! No mount is made and no root is needed for it: files are linked where the host's file system lets us, and copied where
//! not. With root, owners are those of the layers; without, everything belongs to whoever runs the daemon.
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use microvm::import::{disk, may_be_deeper, staged};
use microvm::record::FORM;
use model::BuildId;
use ports::step::{At, Step};
use rootfs::{dress, put};

use crate::disk::{Disk, Disks, Format};
use crate::house::House;
use crate::record::Build;

/// What a directory that hides those below it is marked with, by whoever could.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// Makes a build of layers, the lowest first.
pub(crate) fn layers(house: &House, build: BuildId, layers: &[PathBuf]) -> Result<(), Step> {
    staged(&house.vmm.config.data, |staging| {
        let root = staging.join("root");
        for layer in layers {
            lay(layer, &root, 0)?;
        }
        add_ours(&root, &staging.join("ours"))?;
        become_build(house, build, &root, staging)
    })
}

/// Lays over a root what every sandbox needs; `sudo` comes with the guest.
fn add_ours(root: &Path, ours: &Path) -> Result<(), Step> {
    let step = || format!("looking at {}", root.display());
    fs::create_dir(ours).at(format!("making {}", ours.display()))?;
    let seen = fs::File::open(root).at(step())?;
    rootfs::layer_over_image(seen.into(), ours, None)?;
    lay(ours, root, 0)
}

/// Makes a build of one directory.
pub(crate) fn root(house: &House, build: BuildId, dir: &Path) -> Result<(), Step> {
    staged(&house.vmm.config.data, |staging| {
        become_build(house, build, dir, staging)
    })
}

fn become_build(house: &House, build: BuildId, root: &Path, staging: &Path) -> Result<(), Step> {
    let step = || format!("making the root disk of build {build}");
    let image = staging.join("image");
    let size_bytes = disk(&image, root)?;
    let layer = Disks::draw(Format::Raw);
    let _pin = house.images.pin(layer.id);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o400)).at(step())?;
    fs::rename(&image, house.images.path(layer.id)).at(step())?;
    house.images.sync_names()?;
    let record = Build {
        form: FORM,
        disk: Disk {
            layers: vec![layer],
            size_bytes,
        },
        memory: None,
        origin: None,
    };
    let _turn = house.turn();
    house.book.builds.write(&build, &record)
}

/// Lays one thing of a layer over what is there.
fn lay(from: &Path, onto: &Path, depth: usize) -> Result<(), Step> {
    let step = || format!("laying {} over {}", from.display(), onto.display());
    may_be_deeper(depth).at(step())?;
    let about = fs::symlink_metadata(from).at(step())?;
    let below = fs::symlink_metadata(onto).ok();
    if is_whiteout(&about) {
        return remove(onto, below.as_ref()).at(step());
    }
    if !about.is_dir() {
        remove(onto, below.as_ref()).at(step())?;
        return put(from, onto, &about).at(step());
    }
    if below.as_ref().is_some_and(|below| !below.is_dir()) || is_opaque(from) {
        remove(onto, below.as_ref()).at(step())?;
    }
    match fs::create_dir(onto) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.at(step())?,
    }
    for entry in fs::read_dir(from).at(step())? {
        let entry = entry.at(step())?;
        lay(&entry.path(), &onto.join(entry.file_name()), depth + 1)?;
    }
    // Last, since what is laid into it changes its time.
    dress(onto, &about).at(step())
}

fn is_whiteout(about: &fs::Metadata) -> bool {
    about.file_type().is_char_device() && about.rdev() == 0
}

fn is_opaque(dir: &Path) -> bool {
    OPAQUE.iter().any(|name| {
        let mut value = [0; 4];
        let mark = rustix::fs::lgetxattr(dir, *name, value.as_mut_slice());
        mark.is_ok_and(|length| value.get(..length) == Some(b"y"))
    })
}

fn remove(path: &Path, about: Option<&fs::Metadata>) -> io::Result<()> {
    match about {
        None => Ok(()),
        Some(about) if about.is_dir() => fs::remove_dir_all(path),
        Some(_) => fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode};

    use super::*;

    fn tree(dir: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    #[test]
    fn what_a_layer_says_is_what_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let [low, high, root] = ["low", "high", "root"].map(|name| dir.path().join(name));
        tree(
            &low,
            &[
                ("a", "1"),
                ("dir/b", "2"),
                ("hidden/c", "3"),
                ("gone", "4"),
                ("turns/x", "5"),
            ],
        );
        tree(
            &high,
            &[("a", "new"), ("dir/d", "6"), ("hidden/e", "7"), ("turns", "file")],
        );
        fs::set_permissions(high.join("dir"), fs::Permissions::from_mode(0o1750)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", high.join("link")).unwrap();
        let marked = rustix::fs::lsetxattr(
            high.join("hidden"),
            OPAQUE[1],
            b"y",
            rustix::fs::XattrFlags::empty(),
        );
        let mode = Mode::empty();
        let whiteout = rustix::fs::mknodat(CWD, high.join("gone"), FileType::CharacterDevice, mode, 0);
        lay(&low, &root, 0).unwrap();
        lay(&high, &root, 0).unwrap();
        let read = |path: &str| fs::read_to_string(root.join(path)).ok();
        assert_eq!(read("a").as_deref(), Some("new"));
        assert_eq!(
            (read("dir/b").as_deref(), read("dir/d").as_deref()),
            (Some("2"), Some("6"))
        );
        assert_eq!(fs::metadata(root.join("dir")).unwrap().mode() & 0o7777, 0o1750);
        assert_eq!(read("turns").as_deref(), Some("file"));
        assert_eq!(
            fs::read_link(root.join("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        if marked.is_ok() {
            assert_eq!((read("hidden/c"), read("hidden/e").as_deref()), (None, Some("7")));
        }
        if whiteout.is_ok() {
            assert_eq!(read("gone"), None);
        }
        // The layers are as they were.
        assert_eq!(fs::read_to_string(low.join("a")).unwrap(), "1");
    }
}
