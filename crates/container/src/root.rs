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

use crate::step::{At, Step};

/// The mounts of a root, to be attached in this order.
pub(crate) struct Root {
    pub(crate) targets: Vec<String>,
    pub(crate) mounts: Vec<OwnedFd>,
}

/// Layers of one place, each a directory on the host by now.
#[derive(Debug)]
pub(crate) struct Laid {
    /// Where it is mounted.
    pub(crate) target: String,
    /// The topmost first.
    pub(crate) layers: Vec<PathBuf>,
    /// Which upper of the disk it writes to; without one nothing is written.
    pub(crate) upper: Option<String>,
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

    fn overlays(&self, laid: &[Laid], of: Of<'_>) -> Result<Vec<OwnedFd>, Step> {
        if self.by_path.load(Ordering::Relaxed) {
            return by_path(laid, of);
        }
        match by_descriptor(laid, of) {
            // No such parameter, or no such mount.
            Err(refused) if refused.source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                let Ok(mounts) = by_path(laid, of) else {
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

/// Whose an overlay is.
#[derive(Debug, Clone, Copy)]
enum Of<'a> {
    /// A machine's: what it writes to, and its users.
    Machine(BorrowedFd<'a>, BorrowedFd<'a>),
    /// Ours, to look at what layers come to.
    Nobody,
}

/// What directories look like when they are laid on one another, the topmost first: read-only, attached nowhere, owned as
/// on the host. To be walked with `openat2(2)` within its root alone.
pub(crate) fn view(laying: &Laying, layers: Vec<PathBuf>) -> Result<OwnedFd, Step> {
    // One alone is no overlay that is only read, and hides nothing.
    if let [alone] = &layers[..] {
        let layer = tree(alone)?;
        let closed = Attributes {
            read_only: true,
            no_devices: true,
            ..Attributes::default()
        };
        set_attributes(layer.as_fd(), closed).at(format!("closing {}", alone.display()))?;
        return Ok(layer);
    }
    let laid = Laid {
        target: "/".to_owned(),
        layers,
        upper: None,
    };
    let mounts = laying.overlays(&[laid], Of::Nobody)?;
    let mount = mounts
        .into_iter()
        .next()
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
    mount.at("looking at layers")
}

/// Makes the mounts of a machine over these layers, whose users are `users`, that writes to `disk`.
pub(crate) fn assemble(
    laying: &Laying,
    laid: &[Laid],
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
        targets: laid.iter().map(|overlay| overlay.target.clone()).collect(),
        mounts: laying.overlays(laid, Of::Machine(disk, users))?,
    };
    let agent = tree(agent)?;
    set_attributes(
        agent.as_fd(),
        Attributes {
            read_only: true,
            no_devices: true,
            no_setuid: true,
            ..Attributes::default()
        },
    )
    .at("closing the agent's directory")?;
    root.mounts.push(agent);
    root.targets.push(crate::agent::INSIDE.to_owned());
    Ok(root)
}

fn by_descriptor(laid: &[Laid], of: Of<'_>) -> Result<Vec<OwnedFd>, Step> {
    let mount = |overlay: &Laid| {
        let context = open(overlay)?;
        // Held until the overlay is made: a detached mount is dissolved with its last descriptor.
        let mut layers = Vec::new();
        for path in &overlay.layers {
            let layer = layer(path, of)?;
            rustix::mount::fsconfig_set_fd(&context, "lowerdir+", layer.as_fd())
                .at(format!("laying {}", path.display()))?;
            layers.push(layer);
        }
        let disk = match of {
            Of::Machine(disk, _) => Some(PathBuf::from(format!("/proc/self/fd/{}", disk.as_raw_fd()))),
            Of::Nobody => None,
        };
        create(&context, overlay, disk.as_deref())
    };
    laid.iter().map(mount).collect()
}

/// A directory that is there whenever Atoll runs, to be covered where nobody sees it.
const HIDDEN: &str = "/run/atoll";
/// The longest text that a parameter of fsconfig(2) may have, with its end; mount(2) takes a page of them.
const PARAMETER_BYTES_MAX: usize = 256;

fn by_path(laid: &[Laid], of: Of<'_>) -> Result<Vec<OwnedFd>, Step> {
    // With the thread its mount namespace ends, and what is attached in it.
    std::thread::scope(|scope| {
        let hidden = scope.spawn(|| lay_hidden(laid, of));
        hidden
            .join()
            .map_err(|_| io::Error::other("a thread panicked"))
            .at("laying layers by path")?
    })
}

fn lay_hidden(laid: &[Laid], of: Of<'_>) -> Result<Vec<OwnedFd>, Step> {
    linux::spawn::leave_mount_namespace().at("unsharing the mount namespace of a thread")?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private).at("making mounts private")?;
    let layers: Vec<Vec<OwnedFd>> = laid
        .iter()
        .map(|overlay| overlay.layers.iter().map(|path| layer(path, of)).collect())
        .collect::<Result<_, Step>>()?;
    rustix::mount::mount("tmpfs", HIDDEN, "tmpfs", MountFlags::empty(), Some(c"mode=700"))
        .at(format!("covering {HIDDEN}"))?;
    let place = |name: &str| -> Result<PathBuf, Step> {
        let place = Path::new(HIDDEN).join(name);
        fs::create_dir(&place).at(format!("making {}", place.display()))?;
        Ok(place)
    };
    let attach = |mount: BorrowedFd<'_>, name: &str| -> Result<PathBuf, Step> {
        let place = place(name)?;
        rustix::mount::move_mount(mount, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .at(format!("attaching a mount at {}", place.display()))?;
        Ok(place)
    };
    let disk = match of {
        Of::Machine(disk, _) => Some(attach(disk, "disk")?),
        Of::Nobody => None,
    };
    let mount = |(i, (overlay, layers)): (usize, (&Laid, &Vec<OwnedFd>))| {
        let places: Vec<String> = layers
            .iter()
            .enumerate()
            .map(|(j, layer)| Ok(attach(layer.as_fd(), &format!("{i}.{j}"))?.display().to_string()))
            .collect::<Result<_, Step>>()?;
        let lower = places.join(":");
        if lower.len() >= PARAMETER_BYTES_MAX {
            return create_long(overlay, &lower, disk.as_deref(), &place(&format!("{i}"))?);
        }
        let context = open(overlay)?;
        rustix::mount::fsconfig_set_string(&context, "lowerdir", &*lower)
            .at(format!("laying the layers of {}", overlay.target))?;
        create(&context, overlay, disk.as_deref())
    };
    laid.iter().zip(&layers).enumerate().map(mount).collect()
}

fn open(overlay: &Laid) -> Result<OwnedFd, Step> {
    rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .at(format!("opening the overlay at {}", overlay.target))
}

/// What an overlay with an upper is told: the upper, and the room to work in.
fn writable(overlay: &Laid, disk: Option<&Path>) -> Option<[(&'static str, PathBuf); 2]> {
    let upper = disk?.join(overlay.upper.as_ref()?);
    Some([("upperdir", upper.join("upper")), ("workdir", upper.join("work"))])
}

/// A watch of a file can be written into a checkpoint only where files can be found again by handle.
const BY_HANDLE: [(&str, &str); 2] = [("index", "on"), ("nfs_export", "on")];

fn create(context: &OwnedFd, overlay: &Laid, disk: Option<&Path>) -> Result<OwnedFd, Step> {
    let configure = || -> rustix::io::Result<OwnedFd> {
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
        if let Some(writable) = writable(overlay, disk) {
            for (name, path) in writable {
                rustix::mount::fsconfig_set_string(context, name, path)?;
            }
            for (name, value) in BY_HANDLE {
                rustix::mount::fsconfig_set_string(context, name, value)?;
            }
        } else {
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        rustix::mount::fsconfig_create(context)?;
        rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    configure().at(format!("mounting the overlay at {}", overlay.target))
}

/// The same with more layers than fit into one parameter, by way of a place that nobody else sees.
fn create_long(overlay: &Laid, lower: &str, disk: Option<&Path>, place: &Path) -> Result<OwnedFd, Step> {
    let step = || format!("mounting the overlay at {}", overlay.target);
    let mut options = format!("lowerdir={lower}");
    let mut flags = MountFlags::NODEV;
    if let Some(writable) = writable(overlay, disk) {
        for (name, path) in writable {
            options.push_str(&format!(",{name}={}", path.display()));
        }
        for (name, value) in BY_HANDLE {
            options.push_str(&format!(",{name}={value}"));
        }
    } else {
        flags |= MountFlags::RDONLY;
    }
    let options = std::ffi::CString::new(options).at(step())?;
    rustix::mount::mount("overlay", place, "overlay", flags, Some(options.as_c_str())).at(step())?;
    tree(place)
}

/// A read-only layer, its owners mapped to the machine's users.
fn layer(path: &Path, of: Of<'_>) -> Result<OwnedFd, Step> {
    let layer = tree(path)?;
    let attributes = Attributes {
        read_only: true,
        id_map: match of {
            Of::Machine(_, users) => Some(users),
            Of::Nobody => None,
        },
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
