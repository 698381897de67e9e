//! Builds out of layers: those of an image laid over one another, and what is seen then made into a root disk.
//!
//! They are laid over one another by the kernel, in a mount namespace that one thread has to itself: however that ends, nothing of it
//! is left. Owners are those of the layers.
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use microvm::import::{disk, staged};
use microvm::record::FORM;
use model::BuildId;
use ports::step::{At, Step};
use rustix::mount::{MountFlags, MountPropagationFlags};
use uuid::Uuid;

use crate::disk::{copy, through};
use crate::house::House;
use crate::jail::take_back;
use crate::record::{Build, Disk};

/// What the kernel lays over one another is told in one page.
const OPTIONS_BYTES_MAX: usize = 4000;

/// Makes a build of layers, the lowest first. Blocks.
pub(crate) fn layers(house: &House, build: BuildId, layers: &[PathBuf]) -> Result<(), Step> {
    staged(&house.vmm.config.data, |staging| {
        let image = staging.join("image");
        in_a_namespace(|| {
            let root = lay(layers, staging)?;
            disk(&image, &root).map(drop)
        })?;
        image_of(house, build, &image)
    })
}

/// Makes a build of one directory. Blocks.
pub(crate) fn root(house: &House, build: BuildId, dir: &Path) -> Result<(), Step> {
    staged(&house.vmm.config.data, |staging| {
        let image = staging.join("image");
        disk(&image, dir)?;
        image_of(house, build, &image)
    })
}

/// Makes a build of a copy of an image. Blocks.
pub(crate) fn image_of(house: &House, build: BuildId, from: &Path) -> Result<(), Step> {
    let image = Uuid::new_v4();
    let _pin = house.images.pin(image);
    let path = house.images.path(image);
    copy(from, &path, 0)?;
    through(&path)?;
    take_back(&path)?;
    house.images.sync_names()?;
    let about = fs::metadata(&path).at(format!("looking at {}", path.display()))?;
    let record = Build {
        form: FORM,
        disk: Disk {
            image,
            size_bytes: about.len(),
        },
        memory: None,
        origin: None,
    };
    let _turn = house.turn();
    house.book.builds.write(&build, &record)
}

/// Runs `work` on a thread whose mounts nobody else sees, and which go with it.
fn in_a_namespace(work: impl FnOnce() -> Result<(), Step> + Send) -> Result<(), Step> {
    let run = || {
        let step = || "leaving the mount namespace";
        linux::spawn::leave_mount_namespace().at(step())?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).at(step())?;
        work()
    };
    std::thread::scope(|scope| {
        let done = scope.spawn(run).join();
        done.map_err(|_| io::Error::other("a thread panicked"))
            .at("a task of the runtime")?
    })
}

/// Lays layers over one another, with what every sandbox needs on top; `sudo` comes with the guest. Says where they are seen.
fn lay(layers: &[PathBuf], staging: &Path) -> Result<PathBuf, Step> {
    let step = || format!("laying {} layers over one another", layers.len());
    // Short names, since all of them are told at once.
    let dir = staging.join("l");
    fs::create_dir(&dir).at(step())?;
    let mut names = vec!["empty".to_owned()];
    fs::create_dir(dir.join("empty")).at(step())?;
    for (n, layer) in layers.iter().enumerate() {
        std::os::unix::fs::symlink(layer, dir.join(n.to_string())).at(step())?;
        names.push(n.to_string());
    }
    // This thread's own, since it left the others' namespace.
    rustix::process::chdir(&dir).at(step())?;
    let seen = overlay(&names, &staging.join("seen"))?;
    let ours = dir.join("ours");
    fs::create_dir(&ours).at(step())?;
    let image = fs::File::open(&seen).at(step())?;
    rootfs::layer_over_image(image.into(), &ours, None)?;
    names.push("ours".to_owned());
    overlay(&names, &staging.join("root"))
}

/// Shows directories, named as from here, over one another, the lowest first.
fn overlay(names: &[String], at: &Path) -> Result<PathBuf, Step> {
    let step = || format!("mounting {} layers over one another", names.len());
    let lowest_last: Vec<&str> = names.iter().rev().map(String::as_str).collect();
    let options = format!("lowerdir={}", lowest_last.join(":"));
    if options.len() > OPTIONS_BYTES_MAX {
        return Err(io::Error::other("they are too many")).at(step());
    }
    fs::create_dir(at).at(step())?;
    let options = std::ffi::CString::new(options)
        .map_err(io::Error::from)
        .at(step())?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("overlay", at, "overlay", flags, Some(&*options)).at(step())?;
    Ok(at.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::fs::{CWD, FileType, Mode, XattrFlags};

    use super::*;

    fn tree(dir: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    #[test]
    fn what_a_layer_says_is_what_is_seen_and_nothing_is_left() {
        if !rustix::process::geteuid().is_root() {
            crate::tests::not_run("it takes root to mount");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let [low, high, staging] = ["low", "high", "staging"].map(|name| dir.path().join(name));
        tree(
            &low,
            &[
                ("a", "1"),
                ("dir/b", "2"),
                ("hidden/c", "3"),
                ("gone", "4"),
                ("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
            ],
        );
        tree(&high, &[("a", "new"), ("dir/d", "6"), ("hidden/e", "7")]);
        fs::set_permissions(high.join("dir"), fs::Permissions::from_mode(0o1750)).unwrap();
        let opaque = "trusted.overlay.opaque";
        rustix::fs::lsetxattr(high.join("hidden"), opaque, b"y", XattrFlags::empty()).unwrap();
        let device = FileType::CharacterDevice;
        rustix::fs::mknodat(CWD, high.join("gone"), device, Mode::empty(), 0).unwrap();
        fs::create_dir(&staging).unwrap();
        let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
        let layers = [low.clone(), high];
        in_a_namespace(|| {
            let root = lay(&layers, &staging)?;
            let read = |path: &str| fs::read_to_string(root.join(path)).ok();
            assert_eq!(read("a").as_deref(), Some("new"));
            assert_eq!(
                (read("dir/b").as_deref(), read("dir/d").as_deref()),
                (Some("2"), Some("6"))
            );
            assert_eq!((read("hidden/c"), read("hidden/e").as_deref()), (None, Some("7")));
            assert_eq!(read("gone"), None);
            assert!(root.join("proc").is_dir(), "what every sandbox needs");
            let mode = fs::metadata(root.join("dir")).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o1750);
            disk(&staging.join("image"), &root).map(drop)
        })
        .unwrap();
        assert!(!mounts().contains(staging.to_str().unwrap()));
        let image = fs::metadata(staging.join("image")).unwrap();
        assert!(image.len() > 256 << 20);
        // The layers are as they were.
        assert_eq!(fs::read_to_string(low.join("a")).unwrap(), "1");
        fs::remove_dir_all(staging.join("root")).unwrap();
        // One alone, and one that is not there.
        for (layers, ok) in [(vec![low], true), (vec!["/nowhere".into()], false)] {
            let staging = tempfile::tempdir_in(dir.path()).unwrap();
            let laid = in_a_namespace(|| lay(&layers, staging.path()).map(drop));
            assert_eq!(laid.is_ok(), ok, "{laid:?}");
        }
    }
}
