//! How a fork of the launcher becomes CRIU: in the host's mounts, but for a `/run` of its own in which lies what a machine
//! is made of; for a restore in the machine's control groups; as the owner of the machine's users, with every capability.
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::FdFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags};
use rustix::net::RecvFlags;
use rustix::process::Uid;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySets, LinkNameSpaceType, ThreadNameSpaceType};
use serde::{Deserialize, Serialize};

use super::images;
use crate::launcher::message::{BootFailed, errno, send};
use crate::launcher::serve::DEVICES;
use crate::launcher::{COPY, TAR};
use crate::step::{At, Step};

/// What CRIU is started with. The descriptors that come along, in this order: the host's mount namespace, CRIU's end of its
/// line, the machine's group (v2), the `tasks` files of its other groups (v1), the mounts; or, for a dump, after the first
/// two the machine's pidfd.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Start {
    /// The program, by its path on the host.
    pub(crate) program: String,
    /// What it is started with beside its own libraries, see [`super::preload`].
    pub(crate) preload: String,
    /// The launcher, by its path on the host.
    pub(crate) launcher: String,
    /// Who owns the machine's user namespace.
    pub(crate) owner: u32,
    /// Whether a group (v2) comes along, in which it begins.
    pub(crate) unified: bool,
    /// How many `tasks` files come along: groups that it enters.
    pub(crate) tasks: usize,
    /// What CRIU found out about the kernel when it was last run.
    pub(crate) kernel: Vec<u8>,
    /// What is to be done.
    pub(crate) task: Task,
}

/// What CRIU is started for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Task {
    /// A dump of the machine with this first process.
    Dump(u32),
    /// A restore, with this in its `/run`.
    Restore(Stage),
}

/// What a machine is restored from, beside its images.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stage {
    /// The machine's name.
    pub(crate) hostname: String,
    /// Names of the mounts, each attached as `/run/<name>`. Among them [`WRITTEN`].
    pub(crate) mounts: Vec<String>,
}

/// Where CRIU keeps what it found out about the kernel.
pub(crate) const KERNEL: &str = "run/criu.kdat";
/// The mount of the images as they were written.
pub(crate) const WRITTEN: &str = "written";
/// Where the images of a restore are: those, with the users that the machine has now.
pub(crate) const IMAGES: &str = "/run/images";
/// Directories of the stage that cover others: (name, what is in it).
const COVERS: [(&str, &[&str]); 3] = [
    (EMPTY, &[]),
    ("class", &["net"]),
    ("devices", &["system", "virtual/net"]),
];
/// The one that covers what machines do not see of the host.
pub(crate) const EMPTY: &str = "empty";
/// The names of the directories that cover others.
pub(crate) fn covers() -> impl Iterator<Item = &'static str> {
    COVERS.iter().map(|(name, _)| *name)
}
/// Where the stage's device nodes are.
pub(crate) const NODES: &str = "dev";

/// Where the machine's group (v2) is among the descriptors.
pub(crate) const UNIFIED: usize = 2;

/// Becomes CRIU, or says on its line why not, and ends.
pub(crate) fn become_criu(start: &Start, fds: Vec<OwnedFd>) -> ! {
    let mut fds = fds.into_iter();
    if let (Some(host), Some(line)) = (fds.next(), fds.next()) {
        let failed = match prepare(start, &host, fds.collect()).and_then(|()| keep(&line)) {
            Ok(()) => exec(start, &line),
            Err(failed) => failed,
        };
        let told = BootFailed {
            step: failed.step.clone(),
            errno: errno(&failed.source),
        };
        let _ = send(&line, &told, &[]);
        // Ended with the request unread, it would be heard as a broken line.
        let _ = rustix::net::recv(&line, &mut [0; 1][..], RecvFlags::TRUNC);
    }
    #[expect(clippy::exit, reason = "a forked child has no caller to return to")]
    std::process::exit(1)
}

fn exec(start: &Start, line: &OwnedFd) -> Step {
    let arguments = [
        start.program.clone(),
        "swrk".to_owned(),
        line.as_raw_fd().to_string(),
    ];
    let environment = [format!("LD_PRELOAD={PRELOAD}"), format!("PATH={PROGRAMS}:{PATH}")];
    Step {
        step: format!("starting {}", start.program),
        source: linux::spawn::become_program(&start.program, &arguments, &environment),
    }
}

/// Leaves CRIU its line and its standard streams, and nothing else.
fn keep(line: &OwnedFd) -> Result<(), Step> {
    rustix::io::fcntl_setfd(line, FdFlags::empty()).at("keeping CRIU's line")?;
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .at("opening /dev/null")?;
    rustix::stdio::dup2_stdin(&null).at("dup2")?;
    rustix::stdio::dup2_stdout(&null).at("dup2")
}

fn prepare(start: &Start, host: &OwnedFd, fds: Vec<OwnedFd>) -> Result<(), Step> {
    linux::spawn::close_on_exec_from(3).at("closing what CRIU is not to have")?;
    let mut fds = fds.into_iter().skip(usize::from(start.unified));
    for tasks in fds.by_ref().take(start.tasks) {
        rustix::io::write(tasks, b"0").at("entering a cgroup")?;
    }
    match &start.task {
        Task::Restore(stage) => {
            // Made now, so that the machine's root of it is the group just entered.
            linux::spawn::leave_cgroup_namespace().at("unsharing the cgroup namespace")?;
            linux::spawn::leave_host_name_namespace().at("unsharing the host name")?;
            rustix::system::sethostname(stage.hostname.as_bytes()).at("sethostname")?;
        }
        // The name is nothing that CRIU has to restore where it has the same: only root itself may set it.
        Task::Dump(_) => {
            let machine = fds
                .next()
                .ok_or_else(|| io::Error::other("no pidfd came along"))
                .at("entering a host name")?;
            rustix::thread::move_into_thread_name_spaces(
                machine.as_fd(),
                ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
            )
            .at("entering a host name")?;
        }
    }
    rustix::thread::move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Mount))
        .at("entering the host's mounts")?;
    linux::spawn::leave_mount_namespace().at("unsharing the mount namespace")?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private).at("making mounts private")?;
    rustix::mount::mount(
        "tmpfs",
        "/run",
        "tmpfs",
        MountFlags::NOSUID,
        Some(c"mode=755,size=1m"),
    )
    .at("covering /run")?;
    furnish(start)?;
    if !Path::new(&start.program).starts_with("/tmp") {
        // CRIU makes directories there, which stay if it is killed.
        rustix::mount::mount(
            "tmpfs",
            "/tmp",
            "tmpfs",
            MountFlags::NOSUID,
            Some(c"mode=1777,size=1m"),
        )
        .at("covering /tmp")?;
    }
    if !start.kernel.is_empty() {
        fs::write(Path::new("/").join(KERNEL), &start.kernel).at("telling CRIU of the kernel")?;
    }
    match &start.task {
        Task::Restore(stage) => {
            set(stage, start.owner, &fds.collect::<Vec<_>>())?;
            show_images(start.owner)?;
        }
        Task::Dump(machine) => open_namespaces(*machine)?,
    }
    rustix::process::chdir("/").at("entering /")?;
    take_on(start.owner)
}

/// Where the programs are that CRIU runs, before all others.
const PROGRAMS: &str = "/run/bin";
/// Where all others are.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where the library is that CRIU is started with, so that whoever it becomes may read it.
const PRELOAD: &str = "/run/root.so";

/// Brings what CRIU and its children need. What they write with `tar` is a few files, which are not worth to be compressed:
/// before `tar` is one that leaves that out, and in the place of `gzip`, if it is run all the same, one that copies.
fn furnish(start: &Start) -> Result<(), Step> {
    fs::copy(&start.preload, PRELOAD).at(format!("copying {}", start.preload))?;
    fs::create_dir(PROGRAMS).at("making a directory of programs")?;
    for name in [TAR, COPY] {
        let place = Path::new(PROGRAMS).join(name);
        fs::File::create(&place).at("making a place for a program")?;
        rustix::mount::mount_bind(&start.launcher, &place).at(format!("binding {}", start.launcher))?;
    }
    Ok(())
}

/// Opens a machine's namespaces for CRIU, and puts links to what was opened in the place of those of `/proc`.
///
/// CRIU finds out whether all of them belong to the machine's users by entering them as root of the machine, who may not
/// open them: envd lets nobody look at it, and the memory of a process that was restored belongs to the host.
fn open_namespaces(machine: u32) -> Result<(), Step> {
    let links = format!("/proc/{machine}/ns");
    let step = || format!("opening the namespaces of process {machine}");
    let mut opened = Vec::new();
    for link in fs::read_dir(&links).at(step())? {
        let link = link.at(step())?;
        let tells = fs::read_link(link.path()).at(step())?;
        // CRIU is to have it: the exec does not close it.
        let namespace = rustix::fs::open(link.path(), OFlags::RDONLY, Mode::empty()).at(step())?;
        opened.push((link.file_name(), tells, namespace.into_raw_fd()));
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", &links, "tmpfs", flags, Some(c"mode=755,size=64k")).at(step())?;
    for (name, tells, namespace) in opened {
        let links = Path::new(&links);
        symlink(&tells, links.join(name)).at(step())?;
        match symlink(format!("../../self/fd/{namespace}"), links.join(tells)) {
            // Two links tell the same: that of a process, and that of its children.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.at(step())?,
        }
    }
    Ok(())
}

/// Lays out what a machine is made of.
fn set(stage: &Stage, owner: u32, mounts: &[OwnedFd]) -> Result<(), Step> {
    let run = Path::new("/run");
    for (name, mount) in stage.mounts.iter().zip(mounts) {
        let place = run.join(name);
        fs::create_dir(&place).at(format!("making {}", place.display()))?;
        rustix::mount::move_mount(mount, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .at(format!("attaching a mount at {}", place.display()))?;
    }
    // Of the machine's root, as when it boots.
    let options = CString::new(format!("mode=555,size=4k,nr_inodes=8,uid={owner},gid={owner}"));
    let options = options.at("mounting covers")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (name, parts) in COVERS {
        let place = run.join(name);
        let step = || format!("making the cover {}", place.display());
        fs::create_dir(&place).at(step())?;
        rustix::mount::mount("tmpfs", &place, "tmpfs", flags, Some(options.as_c_str())).at(step())?;
        for part in parts {
            let mut path = place.clone();
            for step_down in Path::new(part) {
                path.push(step_down);
                fs::create_dir(&path).at(step())?;
                chown(&path, Some(owner), Some(owner)).at(step())?;
            }
        }
        rustix::mount::mount_remount(&place, flags | MountFlags::RDONLY, c"").at(step())?;
    }
    // Of its own, as when it boots: see `furnish_devices` of the launcher.
    let nodes = run.join(NODES);
    fs::create_dir(&nodes).at("making the stage's devices")?;
    rustix::mount::mount(
        "tmpfs",
        &nodes,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some(c"mode=755,size=4k,nr_inodes=16"),
    )
    .at("mounting the stage's devices")?;
    for (name, major, minor) in DEVICES {
        let path = nodes.join(name);
        let mode = Mode::from_raw_mode(0o666);
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, device)
            .at(format!("making device {name}"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).at("opening a device to all")?;
    }
    Ok(())
}

/// Shows the images as they are, but for the one that says who the machine's users are on the host.
fn show_images(owner: u32) -> Result<(), Step> {
    let step = "laying out images";
    fs::create_dir(IMAGES).at(step)?;
    for image in fs::read_dir(Path::new("/run").join(WRITTEN)).at(step)? {
        let image = image.at(step)?;
        let (name, place) = (image.file_name(), Path::new(IMAGES).join(image.file_name()));
        if images::tells_users(&name) {
            let told = fs::read(image.path()).at(step)?;
            let told = images::with_users(&told, owner).at(step)?;
            fs::write(place, told).at(step)?;
        } else {
            // Relative: when CRIU reads it, the root is the machine's.
            symlink(Path::new("..").join(WRITTEN).join(&name), place).at(step)?;
        }
    }
    Ok(())
}

/// Becomes this user, with every capability that there is, in a way that outlives the exec.
fn take_on(owner: u32) -> Result<(), Step> {
    let wrong = || format!("becoming user {owner} with all capabilities");
    rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP).at(wrong())?;
    let owner = Uid::from_raw(owner);
    rustix::thread::set_thread_res_uid(owner, owner, owner).at(wrong())?;
    let permitted = rustix::thread::capabilities(None).at(wrong())?.permitted;
    let all = CapabilitySets {
        effective: permitted,
        permitted,
        inheritable: permitted,
    };
    rustix::thread::set_capabilities(None, all).at(wrong())?;
    for capability in permitted.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true).at(wrong())?;
    }
    rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::empty()).at(wrong())
}
