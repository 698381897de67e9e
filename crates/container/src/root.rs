//! The root of a machine: overlays over read-only layers, whose owners are mapped to the machine's users.
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use linux::mount::{Attributes, set_attributes};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags,
};

use crate::build::{Build, Overlay};
use crate::step::{At, Step};

/// The mounts of a root, to be attached in this order.
pub(crate) struct Root {
    pub(crate) targets: Vec<String>,
    pub(crate) mounts: Vec<OwnedFd>,
}

/// How layers are told to the kernel.
///
/// By descriptors of mounts that are attached nowhere, which takes Linux 6.15; else by paths, for which each must be
/// attached for a moment in a mount namespace that nobody else sees.
#[derive(Debug, Default)]
pub(crate) struct Laying {
    by_path: AtomicBool,
}

impl Laying {
    pub(crate) fn set_by_path(&self) {
        self.by_path.store(true, Ordering::Relaxed);
    }

    fn overlays(
        &self,
        build: &Build,
        disk: BorrowedFd<'_>,
        users: BorrowedFd<'_>,
    ) -> Result<Vec<OwnedFd>, Step> {
        if self.by_path.load(Ordering::Relaxed) {
            return by_path(build, disk, users);
        }
        match by_descriptor(build, disk, users) {
            // No such parameter, or no such mount.
            Err(refused) if refused.source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                let Ok(mounts) = by_path(build, disk, users) else {
                    return Err(refused);
                };
                tracing::info!("this kernel takes layers by path only");
                self.set_by_path();
                Ok(mounts)
            }
            made => made,
        }
    }
}

/// Makes the mounts of a machine of `build`, whose users are `users`, that writes to `disk`.
pub(crate) fn assemble(
    laying: &Laying,
    build: &Build,
    disk: BorrowedFd<'_>,
    disk_users: BorrowedFd<'_>,
    users: BorrowedFd<'_>,
    agent: &Path,
) -> Result<Root, Step> {
    // What lies on a disk is owned as the machine sees it, so that the disk serves in any slot.
    let mapped = Attributes {
        id_map: Some(disk_users),
        no_devices: true,
        ..Attributes::default()
    };
    set_attributes(disk, mapped).at("mapping the owners on the disk")?;
    let mut root = Root {
        targets: build
            .overlays
            .iter()
            .map(|overlay| overlay.target.clone())
            .collect(),
        mounts: laying.overlays(build, disk, users)?,
    };
    let agent = tree(agent)?;
    set_attributes(
        agent.as_fd(),
        Attributes {
            read_only: true,
            no_devices: true,
            no_setuid: true,
            id_map: None,
        },
    )
    .at("closing the agent's directory")?;
    root.mounts.push(agent);
    root.targets.push(crate::agent::INSIDE.to_owned());
    Ok(root)
}

fn by_descriptor(build: &Build, disk: BorrowedFd<'_>, users: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Step> {
    let mount = |overlay: &Overlay| {
        let context = open(overlay)?;
        // Held until the overlay is made: a detached mount is dissolved with its last descriptor.
        let mut layers = Vec::new();
        for path in &overlay.layers {
            let layer = layer(path, users)?;
            rustix::mount::fsconfig_set_fd(&context, "lowerdir+", layer.as_fd())
                .at(format!("laying {}", path.display()))?;
            layers.push(layer);
        }
        let disk = format!("/proc/self/fd/{}", disk.as_raw_fd());
        create(&context, overlay, Path::new(&disk))
    };
    build.overlays.iter().map(mount).collect()
}

/// A directory that is there whenever Atoll runs, to be covered where nobody sees it.
const HIDDEN: &str = "/run/atoll";

fn by_path(build: &Build, disk: BorrowedFd<'_>, users: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Step> {
    // With the thread its mount namespace ends, and what is attached in it.
    std::thread::scope(|scope| {
        let hidden = scope.spawn(|| lay_hidden(build, disk, users));
        hidden
            .join()
            .map_err(|_| io::Error::other("a thread panicked"))
            .at("laying layers by path")?
    })
}

fn lay_hidden(build: &Build, disk: BorrowedFd<'_>, users: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Step> {
    linux::spawn::leave_mount_namespace().at("unsharing the mount namespace of a thread")?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private).at("making mounts private")?;
    let layers: Vec<Vec<OwnedFd>> = build
        .overlays
        .iter()
        .map(|overlay| overlay.layers.iter().map(|path| layer(path, users)).collect())
        .collect::<Result<_, Step>>()?;
    rustix::mount::mount("tmpfs", HIDDEN, "tmpfs", MountFlags::empty(), Some(c"mode=700"))
        .at(format!("covering {HIDDEN}"))?;
    let attach = |mount: BorrowedFd<'_>, name: &str| -> Result<PathBuf, Step> {
        let place = Path::new(HIDDEN).join(name);
        fs::create_dir(&place).at(format!("making {}", place.display()))?;
        rustix::mount::move_mount(mount, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .at(format!("attaching a mount at {}", place.display()))?;
        Ok(place)
    };
    let disk = attach(disk, "disk")?;
    let mount = |(i, (overlay, layers)): (usize, (&Overlay, &Vec<OwnedFd>))| {
        let places: Vec<String> = layers
            .iter()
            .enumerate()
            .map(|(j, layer)| Ok(attach(layer.as_fd(), &format!("{i}.{j}"))?.display().to_string()))
            .collect::<Result<_, Step>>()?;
        let context = open(overlay)?;
        rustix::mount::fsconfig_set_string(&context, "lowerdir", places.join(":"))
            .at(format!("laying the layers of {}", overlay.target))?;
        create(&context, overlay, &disk)
    };
    build
        .overlays
        .iter()
        .zip(&layers)
        .enumerate()
        .map(mount)
        .collect()
}

fn open(overlay: &Overlay) -> Result<OwnedFd, Step> {
    rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .at(format!("opening the overlay at {}", overlay.target))
}

fn create(context: &OwnedFd, overlay: &Overlay, disk: &Path) -> Result<OwnedFd, Step> {
    let upper = disk.join(&overlay.upper);
    let configure = || -> rustix::io::Result<OwnedFd> {
        rustix::mount::fsconfig_set_string(context, "upperdir", upper.join("upper"))?;
        rustix::mount::fsconfig_set_string(context, "workdir", upper.join("work"))?;
        // A watch of a file can be written into a checkpoint only where files can be found again by handle.
        rustix::mount::fsconfig_set_string(context, "index", "on")?;
        rustix::mount::fsconfig_set_string(context, "nfs_export", "on")?;
        rustix::mount::fsconfig_create(context)?;
        rustix::mount::fsmount(
            context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NODEV,
        )
    };
    configure().at(format!("mounting the overlay at {}", overlay.target))
}

/// A read-only layer, its owners mapped to the machine's users.
fn layer(path: &Path, users: BorrowedFd<'_>) -> Result<OwnedFd, Step> {
    let layer = tree(path)?;
    let attributes = Attributes {
        read_only: true,
        id_map: Some(users),
        ..Attributes::default()
    };
    set_attributes(layer.as_fd(), attributes).at(format!("mapping the owners of {}", path.display()))?;
    Ok(layer)
}

fn tree(path: &Path) -> Result<OwnedFd, Step> {
    rustix::mount::open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .at(format!("cloning the mount of {}", path.display()))
}
