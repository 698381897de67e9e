//! Attaching a volume among the machine's mounts, and detaching it there, by threads that stay there and end.
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags};
use rustix::thread::LinkNameSpaceType;

use super::relay::Relay;
use crate::machine::Machine;

/// Who owns what has to be made of the way to a volume: `user` of every sandbox.
const OWNER: u32 = 1000;

/// Why a volume was not attached.
#[derive(Debug)]
pub(crate) enum Refused {
    /// What is in the machine stands in the way.
    Unfit(&'static str),
    /// Something else.
    Failed(String),
}

/// Makes a file system of which nobody has asked anything yet, and attaches it. What is on its way off at the same place is
/// waited for.
pub(super) async fn attach(
    machine: &Arc<Machine>,
    path: &str,
    going: Option<JoinHandle<()>>,
) -> Result<Relay, Refused> {
    let failed = |what: &str, error: &io::Error| Refused::Failed(format!("{what}: {error}"));
    let (device, tree) = make().map_err(|error| failed("making a file system", &error))?;
    let relay = Relay::of(device, tree).map_err(|error| failed("watching a file system", &error))?;
    let tree = relay
        .tree
        .try_clone()
        .map_err(|error| failed("taking a file system along", &error))?;
    let (tell, told) = tokio::sync::oneshot::channel();
    let (mounts, place) = (among(machine), path.to_owned());
    let attaching = std::thread::Builder::new()
        .name("attach".to_owned())
        .spawn(move || {
            if let Some(going) = going {
                let _ = going.join();
            }
            let attached = enter(mounts).and_then(|()| {
                let place = linux::mount::place(&place, OWNER)?;
                Ok(linux::mount::attach(tree.as_fd(), place.as_fd())?)
            });
            let _ = tell.send(attached);
        });
    attaching.map_err(|error| failed("starting a thread", &error))?;
    let attached = told
        .await
        .unwrap_or_else(|_| Err(io::Error::other("its thread broke")));
    match attached {
        Ok(()) => Ok(relay),
        Err(error) => Err(match Errno::from_io_error(&error) {
            Some(Errno::LOOP) => Refused::Unfit("a link lies on the way: name what it leads to"),
            Some(Errno::NOTDIR) => Refused::Unfit("something that is no directory lies on the way"),
            _ => failed("attaching it", &error),
        }),
    }
}

/// Takes away what is attached at a place, whoever is in it.
pub(super) fn detach(machine: &Arc<Machine>, path: &str) -> io::Result<JoinHandle<()>> {
    let (mounts, place) = (among(machine), path.to_owned());
    std::thread::Builder::new()
        .name("detach".to_owned())
        .spawn(move || {
            // Root inside may have moved it: then it is dead where it is.
            let _ = enter(mounts)
                .map(|()| rustix::mount::unmount(&*place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW));
        })
}

fn among(machine: &Machine) -> io::Result<OwnedFd> {
    machine.mounts.try_clone()
}

/// Moves the calling thread among the machine's mounts; it does not come back.
fn enter(mounts: io::Result<OwnedFd>) -> io::Result<()> {
    linux::mount::own_directories()?;
    rustix::thread::move_into_link_name_space(mounts?.as_fd(), Some(LinkNameSpaceType::Mount))?;
    Ok(())
}

/// A FUSE file system, attached nowhere, and the device by which its kernel asks.
fn make() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let device = rustix::fs::openat(CWD, "/dev/fuse", flags, Mode::empty())?;
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let number = device.as_raw_fd().to_string();
    for (key, value) in [
        ("source", "volume"),
        ("subtype", "atoll"),
        ("fd", &number),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    ] {
        rustix::mount::fsconfig_set_string(&context, key, value)?;
    }
    // The kernel here looks who may do what, for all users alike.
    for flag in ["default_permissions", "allow_other"] {
        rustix::mount::fsconfig_set_flag(&context, flag)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let tree = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    Ok((device, tree))
}
