//! The root of a machine: overlays over read-only layers, whose owners are mapped to the machine's users.
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use linux::mount::{Attributes, set_attributes};
use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use crate::build::{Build, Overlay};
use crate::step::{At, Step};

/// The mounts of a root, to be attached in this order.
pub(crate) struct Root {
    pub(crate) targets: Vec<String>,
    pub(crate) mounts: Vec<OwnedFd>,
}

/// Makes the mounts of a machine of `build`, whose users are `users`, that writes to `disk`.
pub(crate) fn assemble(
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
        targets: Vec::new(),
        mounts: Vec::new(),
    };
    for overlay in &build.overlays {
        root.mounts.push(mount(overlay, disk, users)?);
        root.targets.push(overlay.target.clone());
    }
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

fn mount(overlay: &Overlay, disk: BorrowedFd<'_>, users: BorrowedFd<'_>) -> Result<OwnedFd, Step> {
    let step = |what: &str| format!("{what} the overlay at {}", overlay.target);
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).at(step("opening"))?;
    // Held until the overlay is made: a detached mount is dissolved with its last descriptor.
    let mut layers = Vec::new();
    for layer in &overlay.layers {
        let mount = tree(layer)?;
        let attributes = Attributes {
            read_only: true,
            id_map: Some(users),
            ..Attributes::default()
        };
        set_attributes(mount.as_fd(), attributes).at(format!("mapping the owners of {}", layer.display()))?;
        rustix::mount::fsconfig_set_fd(&context, "lowerdir+", mount.as_fd())
            .at(format!("laying {}", layer.display()))?;
        layers.push(mount);
    }
    let upper = format!("/proc/self/fd/{}/{}", disk.as_raw_fd(), overlay.upper);
    let configure = || -> rustix::io::Result<OwnedFd> {
        rustix::mount::fsconfig_set_string(&context, "upperdir", format!("{upper}/upper"))?;
        rustix::mount::fsconfig_set_string(&context, "workdir", format!("{upper}/work"))?;
        // A watch of a file can be written into a checkpoint only where files can be found again by handle.
        rustix::mount::fsconfig_set_string(&context, "index", "on")?;
        rustix::mount::fsconfig_set_string(&context, "nfs_export", "on")?;
        rustix::mount::fsconfig_create(&context)?;
        rustix::mount::fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NODEV,
        )
    };
    configure().at(step("mounting"))
}

fn tree(path: &Path) -> Result<OwnedFd, Step> {
    rustix::mount::open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .at(format!("cloning the mount of {}", path.display()))
}
