//! Giving a machine the volumes that it was started with.
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use linux::mount::{Attributes, set_attributes};
use model::{VolumeId, VolumeMount};
use ports::RuntimeError;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use volumes::OWNER;

use crate::house::House;
use crate::slot::Slot;
use crate::step::{At, Step};
use crate::users::{USERS, first_user};

impl House {
    /// Attaches volumes in a machine, those that lie within others after them.
    pub(crate) fn lend_volumes(&self, slot: &Slot, volumes: &[VolumeMount]) -> Result<(), RuntimeError> {
        let unsupported = |what: String| RuntimeError::Unsupported {
            runtime: "container",
            what,
        };
        let sorted = volumes::checked(volumes).map_err(|bad| unsupported(bad.to_string()))?;
        let first = first_user(self.instance.number, slot.number);
        // With the host's root among them, who makes what is missing of a place on another volume.
        let (users, _) = self.launcher.users(first, USERS)?;
        for mount in sorted {
            let tree = self.lend(mount.volume, slot.number, users.as_fd())?;
            self.launcher
                .attach(slot.pidfd.as_fd(), tree.as_fd(), &mount.path, first + OWNER)
                .map_err(|failed| refused(failed, &mount.path))?;
        }
        Ok(())
    }

    /// A mount of a volume for a machine, owners mapped to its users, attached nowhere. The volume is in use from then on.
    pub(crate) fn lend(
        &self,
        id: VolumeId,
        slot: u32,
        users: BorrowedFd<'_>,
    ) -> Result<OwnedFd, RuntimeError> {
        let place = self.volumes.lend(id, &slot.to_string())?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, &place, flags)
            .at(format!("cloning the mount of {}", place.display()))?;
        let attributes = Attributes {
            id_map: Some(users),
            no_devices: true,
            setuid_again: true,
            ..Attributes::default()
        };
        set_attributes(tree.as_fd(), attributes).at(format!("mapping the owners of volume {id}"))?;
        Ok(tree)
    }
}

/// What stands in the way in the machine is told to whoever chose the place.
fn refused(failed: Step, path: &str) -> RuntimeError {
    let said = |errno: Errno| {
        failed.source.raw_os_error() == Some(io::Error::from(errno).raw_os_error().unwrap_or(0))
    };
    let why = if said(Errno::LOOP) {
        "a link lies on the way: name what it leads to"
    } else if said(Errno::NOTDIR) {
        "something that is no directory lies on the way"
    } else {
        return failed.into();
    };
    RuntimeError::Unsupported {
        runtime: "container",
        what: format!("a volume at {path}: {why}"),
    }
}
