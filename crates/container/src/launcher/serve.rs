//! The launcher's own process: one thread, hardly any memory, and a mount namespace with next to nothing in it, because
//! every machine begins as a copy of all three.
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use linux::clone::{Fork, SingleThreaded, namespace};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Mode};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use super::attach::attach;
use super::message::{Reply, Request, errno, receive, send};
use crate::boot;
use crate::criu::child;
use crate::step::{At, Step};

/// Where a machine's root is attached before it becomes the root.
pub(crate) const STAGE: &str = "/stage";
/// Device nodes that machines bind: (name, major, minor).
pub(crate) const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Serves the daemon on `socket` until it is gone. To be called first thing in a process of its own.
///
/// # Errors
/// The process has several threads, or may not do what a launcher does.
pub fn serve(socket: OwnedFd) -> Result<(), Step> {
    let alone = SingleThreaded::prove().at("counting the launcher's threads")?;
    // Whoever ends is forgotten at once: the daemon watches machines by their pidfds.
    linux::spawn::reap_automatically().at("ignoring SIGCHLD")?;
    let own_uts = fs::File::open("/proc/self/ns/uts").at("opening the launcher's uts namespace")?;
    furnish()?;
    let own_mounts = fs::File::open("/proc/self/ns/mnt").at("opening the launcher's mount namespace")?;
    let mut socket = Some(socket);
    while let Some(held) = socket.take() {
        let Some((request, fds)) = receive::<Request>(&held).at("receiving a request")? else {
            break;
        };
        let (reply, fds) = match request {
            Request::Skeleton { first_user, users } => match skeleton(&alone, fds.first(), first_user, users)
            {
                Ok(Made::Parent(pid, fds)) => (Reply::Skeleton { pid }, fds),
                Ok(Made::Child(control)) => {
                    drop((held, fds, own_uts, own_mounts));
                    boot::wait_and_boot(control);
                }
                Err(failed) => (refused(&failed), Vec::new()),
            },
            Request::Attach { path, owner } => match attach(&path, owner, &fds, own_mounts.as_fd()) {
                Ok(()) => (Reply::Done, Vec::new()),
                Err(failed) => (refused(&failed), Vec::new()),
            },
            Request::Rename(name) => match rename(&name, &fds, own_uts.as_fd()) {
                Ok(()) => (Reply::Done, Vec::new()),
                Err(failed) => (refused(&failed), Vec::new()),
            },
            Request::Users { first_user, users } => match both_users(&alone, first_user, users) {
                Ok(made) => (Reply::Done, made),
                Err(failed) => (refused(&failed), Vec::new()),
            },
            Request::LetPing => match let_ping(&alone, &fds) {
                Ok(()) => (Reply::Done, Vec::new()),
                Err(failed) => (refused(&failed), Vec::new()),
            },
            Request::Criu(start) => {
                let group = start.unified.then(|| fds.get(child::UNIFIED)).flatten();
                match linux::clone::fork(&alone, 0, group.map(AsFd::as_fd)).at("clone3 of CRIU") {
                    Ok(Fork::Child) => {
                        drop((held, own_uts));
                        child::become_criu(&start, fds);
                    }
                    Ok(Fork::Parent { pid, pidfd }) => (Reply::Started { pid }, vec![pidfd]),
                    Err(failed) => (refused(&failed), Vec::new()),
                }
            }
        };
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        send(&held, &reply, &borrowed).at("answering")?;
        socket = Some(held);
    }
    Ok(())
}

fn refused(failed: &Step) -> Reply {
    Reply::Failed {
        step: failed.step.clone(),
        errno: errno(&failed.source),
    }
}

enum Made {
    Parent(u32, Vec<OwnedFd>),
    Child(OwnedFd),
}

fn skeleton(
    alone: &SingleThreaded,
    cgroup: Option<&OwnedFd>,
    first_user: u32,
    users: u32,
) -> Result<Made, Step> {
    let disk_users = disk_users(alone, first_user, users)?;
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .at("making a control socket")?;
    let namespaces = namespace::USER
        | namespace::PID
        | namespace::MOUNT
        | namespace::NET
        | namespace::UTS
        | namespace::IPC;
    furnish_devices()?;
    // Its first user is nobody else's: what the kernel counts by owner is counted for each machine by itself.
    match linux::clone::fork_owned(alone, namespaces, cgroup.map(AsFd::as_fd), first_user)
        .at("clone3 of a machine")?
    {
        Fork::Child => Ok(Made::Child(theirs)),
        Fork::Parent { pid, pidfd } => {
            // Both sides of the map are ours to write: the child waits for its order.
            map_users(pid, &format!("0 {first_user} {users}\n"))?;
            Ok(Made::Parent(pid, vec![pidfd, ours, disk_users]))
        }
    }
}

/// One that maps a disk, and one that maps layers.
fn both_users(alone: &SingleThreaded, first_user: u32, users: u32) -> Result<Vec<OwnedFd>, Step> {
    let disk = disk_users(alone, first_user, users)?;
    Ok(vec![
        disk,
        empty_users(alone, &format!("0 {first_user} {users}\n"))?,
    ])
}

/// A user namespace that maps a disk, and in which no process ever runs: the machine's users, and behind them the host's
/// root, as whom the kernel writes an overlay's own directories.
fn disk_users(alone: &SingleThreaded, first_user: u32, users: u32) -> Result<OwnedFd, Step> {
    empty_users(alone, &format!("0 {first_user} {users}\n{users} 0 1\n"))
}

/// The groups that may ping are told as the machine sees them, so by somebody in its namespaces.
fn let_ping(alone: &SingleThreaded, fds: &[OwnedFd]) -> Result<(), Step> {
    let step = "letting everybody ping";
    let machine = fds
        .first()
        .ok_or_else(|| io::Error::other("no pidfd came along"))
        .at(step)?;
    match linux::clone::fork(alone, 0, None).at("clone3 of a helper")? {
        Fork::Child => {
            let namespaces = ThreadNameSpaceType::USER | ThreadNameSpaceType::NETWORK;
            if rustix::thread::move_into_thread_name_spaces(machine.as_fd(), namespaces).is_ok() {
                boot::ping_for_all();
            }
            #[expect(clippy::exit, reason = "a forked child has no caller to return to")]
            std::process::exit(0)
        }
        Fork::Parent { pidfd, .. } => {
            let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut ended, None)).at(step)?;
            Ok(())
        }
    }
}

fn empty_users(alone: &SingleThreaded, map: &str) -> Result<OwnedFd, Step> {
    match linux::clone::fork(alone, namespace::USER, None).at("clone3 of a user namespace")? {
        Fork::Child => loop {
            std::thread::park();
        },
        Fork::Parent { pid, pidfd } => {
            let mapped = map_users(pid, map);
            let opened = fs::File::open(format!("/proc/{pid}/ns/user")).at("opening a user namespace");
            rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL)
                .at("ending a helper")?;
            mapped?;
            Ok(opened?.into())
        }
    }
}

fn map_users(pid: u32, map: &str) -> Result<(), Step> {
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), map).at(format!("writing the {file} of process {pid}"))?;
    }
    Ok(())
}

fn rename(name: &str, fds: &[OwnedFd], own_uts: std::os::fd::BorrowedFd<'_>) -> Result<(), Step> {
    let machine = fds
        .first()
        .ok_or_else(|| io::Error::other("no pidfd came along"))
        .at("naming a machine")?;
    rustix::thread::move_into_thread_name_spaces(
        machine.as_fd(),
        ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
    )
    .at("entering a uts namespace")?;
    let named = rustix::system::sethostname(name.as_bytes()).at("sethostname");
    // A launcher that stays in a machine's namespace would name the wrong ones from then on.
    rustix::thread::move_into_link_name_space(own_uts, Some(LinkNameSpaceType::HostNameAndNISDomainName))
        .at("leaving a uts namespace")?;
    named
}

/// Leaves the host's mounts for a namespace with a tmpfs, `/proc` and `/sys`. A machine may mount its own `/proc` and
/// `/sys` only where a whole one can be seen (`mount_too_revealing` of the kernel), until it has changed its root.
fn furnish() -> Result<(), Step> {
    linux::spawn::leave_mount_namespace().at("unsharing the mount namespace")?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private).at("making mounts private")?;
    let room = Path::new("/tmp");
    rustix::mount::mount(
        "tmpfs",
        room,
        "tmpfs",
        MountFlags::empty(),
        Some(c"mode=755,size=64k,nr_inodes=64"),
    )
    .at("mounting the launcher's tmpfs")?;
    for dir in ["proc", "sys", "dev", "stage"] {
        fs::create_dir(room.join(dir)).at("making the launcher's directories")?;
    }
    rustix::mount::mount_bind("/proc", room.join("proc")).at("binding /proc")?;
    rustix::mount::mount_bind("/sys", room.join("sys")).at("binding /sys")?;
    rustix::process::chdir(room).at("entering the launcher's tmpfs")?;
    rustix::process::pivot_root(".", ".").at("pivot_root of the launcher")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).at("leaving the host's mounts")?;
    rustix::process::chdir("/").at("entering /")?;
    Ok(())
}

/// Makes device nodes for the next machine. They are files of its own: on shared ones it would see, by inotify(7) and
/// flock(2), when others use theirs.
fn furnish_devices() -> Result<(), Step> {
    // The last machine has it in its copy of our mounts. Before the first there is none.
    let _ = rustix::mount::unmount("/dev", UnmountFlags::DETACH);
    rustix::mount::mount(
        "tmpfs",
        "/dev",
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some(c"mode=755,size=4k,nr_inodes=16"),
    )
    .at("mounting a machine's devices")?;
    for (name, major, minor) in DEVICES {
        let path = Path::new("/dev").join(name);
        let mode = Mode::from_raw_mode(0o666);
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::CharacterDevice, mode, device)
            .at(format!("making device {name}"))?;
        rustix::fs::chmod(&path, mode).at("opening a device to all")?;
    }
    Ok(())
}
