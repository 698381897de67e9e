//! From the kernel's hands to a machine that can be started.
use std::fs;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use guest::boot::Settings;
use linux::netlink::{Batch, Family, Socket};
use linux::rtnl;
use rustix::event::Timespec;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::step::{At as _, Step};

/// Where the root disk is mounted.
pub(crate) const MACHINE: &str = "/machine";
/// Where cgroups are.
pub(crate) const CGROUPS: &str = "/cgroup";
/// The programs that are brought into the machine, each in a directory of its own.
pub(crate) const ENVD: &str = "/agent/envd";
/// The other one.
pub(crate) const SUDO: &str = "/agent/sudo";
/// The boot's id as the machine sees it: the kernel's own is the same in all copies of one memory.
pub(crate) const BOOT_ID: &str = "/agent/boot_id";
/// Where our root is made.
const OUTER: &str = "/outer";
/// A device that has not come by then will not come.
const DEVICE_WITHIN_MS: u32 = 30_000;
const LOOK_EVERY_MS: u32 = 2;
/// Of the command line and of the list of modules.
const FILE_BYTES_MAX: u64 = 64 << 10;

pub(crate) fn mount_kernel_views() -> Result<(), Step> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, target, flags) in [
        ("devtmpfs", "/dev", MountFlags::NOSUID | MountFlags::NOEXEC),
        ("proc", "/proc", plain),
        ("sysfs", "/sys", plain),
    ] {
        let _ = fs::create_dir(target);
        mount(kind, target, flags, c"")?;
    }
    Ok(())
}

pub(crate) fn settings() -> Result<Settings, Step> {
    let line = read("/proc/cmdline")?;
    Settings::parse(&line)
        .map_err(io::Error::other)
        .at("reading the kernel's command line")
}

/// Loads what `/modules/order` lists, in that order.
pub(crate) fn load_modules() -> Result<(), Step> {
    for name in read("/modules/order")?.lines() {
        let path = format!("/modules/{name}");
        let file = fs::File::open(&path).at(format!("opening {path}"))?;
        match rustix::system::finit_module(&file, c"", 0) {
            // It is there, in the kernel itself.
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).at(format!("loading {name}")),
        }
    }
    Ok(())
}

/// Moves to a root in memory that holds what is still needed: the initramfs itself can neither be left by pivot_root(2) nor
/// freed.
pub(crate) fn leave_initramfs() -> Result<(), Step> {
    fs::create_dir(OUTER).at("making the outer root")?;
    mount(
        "tmpfs",
        OUTER,
        MountFlags::NODEV,
        c"mode=755,size=32m,nr_inodes=256",
    )?;
    for dir in [
        "dev",
        "proc",
        "sys",
        "agent",
        "agent/envd",
        "agent/sudo",
        "machine",
        "cgroup",
    ] {
        let dir = format!("{OUTER}/{dir}");
        fs::create_dir(&dir).at(format!("making {dir}"))?;
    }
    for (program, mode) in [("envd", 0o755), ("sudo", 0o4755)] {
        let (from, to) = (
            format!("/agent/{program}"),
            format!("{OUTER}/agent/{program}/{program}"),
        );
        fs::copy(&from, &to).at(format!("copying {from}"))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode)).at(format!("setting the mode of {to}"))?;
    }
    for dir in ["dev", "proc", "sys"] {
        rustix::mount::mount_move(format!("/{dir}"), format!("{OUTER}/{dir}"))
            .at(format!("moving /{dir}"))?;
    }
    // Its memory is the machine's from now on.
    for spent in ["/modules", "/agent"] {
        let _ = fs::remove_dir_all(spent);
    }
    let _ = fs::remove_file("/init");
    rustix::process::chdir(OUTER).at("entering the outer root")?;
    rustix::mount::mount_move(".", "/").at("moving the outer root")?;
    rustix::process::chroot(".").at("changing the root")?;
    rustix::process::chdir("/").at("entering /")
}

/// Brings up the loopback, and the network where there is one.
pub(crate) fn bring_up_network(settings: &Settings) -> Result<(), Step> {
    let socket = Socket::open(Family::Route).at("opening rtnetlink")?;
    let index = |name: &str| {
        let link = rtnl::link(&socket, name).and_then(|link| link.ok_or(io::ErrorKind::NotFound.into()));
        link.map(|link| link.index).at(format!("looking for {name}"))
    };
    let run = |batch: &Batch, what: &str| socket.run(batch).map_err(|refused| refused.error).at(what);
    let mut batch = Batch::default();
    rtnl::bring_up(&mut batch, index("lo")?, &rtnl::Up::default());
    run(&batch, "bringing up lo")?;
    if let Some(network) = settings.network {
        await_path("/sys/class/net/eth0")?;
        let eth0 = index("eth0")?;
        let mut batch = Batch::default();
        rtnl::add_address_within(&mut batch, eth0, network.address, network.prefix);
        rtnl::bring_up(&mut batch, eth0, &rtnl::Up::default());
        if let Some(gateway) = network.gateway {
            rtnl::add_route(
                &mut batch,
                std::net::Ipv4Addr::UNSPECIFIED,
                0,
                eth0,
                Some(gateway),
            );
        }
        run(&batch, "bringing up eth0")?;
    }
    // Everybody may ping without raw sockets, and take any port, as in every sandbox.
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 65535");
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    Ok(())
}

/// Mounts the root disk, and makes its file system as large as the disk: what was promised is there, or there is no machine.
pub(crate) fn mount_root(settings: &Settings) -> Result<(), Step> {
    let device = settings.root.device();
    await_path(&device)?;
    let size = fs::File::open(&device).and_then(|mut disk| disk.seek(io::SeekFrom::End(0)));
    let bytes = size.at(format!("measuring {device}"))?;
    // While it grows, tables of inodes may be left to be zeroed later; else they are zeroed at once, gigabytes of them.
    rustix::mount::mount(
        &device,
        MACHINE,
        "ext4",
        MountFlags::NOATIME,
        Some(c"init_itable"),
    )
    .at(format!("mounting {device}"))?;
    let root = fs::File::open(MACHINE).at("opening the root disk")?;
    let block_bytes = rustix::fs::fstatvfs(&root)
        .at("looking at the root disk")?
        .f_bsize;
    linux::ext4::grow(root.as_fd(), bytes / block_bytes.max(1)).at(format!(
        "growing the root disk's file system to the {bytes} bytes of {device}"
    ))?;
    // Later is never: checksums tell what is in use of a table, and no disk is to fill with zeroes behind its machine.
    rustix::mount::mount_remount(MACHINE, MountFlags::NOATIME, c"noinit_itable")
        .at("remounting the root disk")
}

/// Mounts cgroups, and makes what else is to be there beside the machine.
pub(crate) fn furnish() -> Result<(), Step> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("cgroup2", CGROUPS, plain, c"nsdelegate")?;
    // Each by itself: a kernel may be without one of them.
    for controller in ["cpu", "memory", "pids", "io"] {
        let _ = fs::write(
            format!("{CGROUPS}/cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
    let group = machine_cgroup();
    fs::create_dir(&group).at(format!("making {group}"))?;
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, link).at(format!("linking {link}"))?;
    }
    let _ = fs::remove_file("/dev/ptmx");
    symlink("pts/ptmx", "/dev/ptmx").at("linking /dev/ptmx")?;
    renew_boot_id()
}

/// The cgroup that the whole machine is in.
pub(crate) fn machine_cgroup() -> String {
    format!("{CGROUPS}/machine")
}

/// Writes a new boot id, which the machine sees in the kernel's place.
pub(crate) fn renew_boot_id() -> Result<(), Step> {
    // Each read of this file draws another.
    let id = read("/proc/sys/kernel/random/uuid")?;
    // In place, as this very file is bound inside.
    fs::write(BOOT_ID, id).at("writing the boot id")?;
    fs::set_permissions(BOOT_ID, fs::Permissions::from_mode(0o444)).at("opening the boot id to all")
}

/// Forgets the old root of a process that has just come to its own.
pub(crate) fn leave_old_root() -> Result<(), Step> {
    rustix::mount::unmount(".", UnmountFlags::DETACH).at("leaving the outer root")
}

/// Waits for the kernel to find a device.
pub(crate) fn await_path(path: &str) -> Result<(), Step> {
    for _ in 0..DEVICE_WITHIN_MS / LOOK_EVERY_MS {
        if Path::new(path).exists() {
            return Ok(());
        }
        pause();
    }
    Err(io::Error::from(io::ErrorKind::NotFound)).at(format!("waiting for {path}"))
}

/// Waits a moment: a device is found within a few of them, or was found before we looked.
pub(crate) fn pause() {
    let moment = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(LOOK_EVERY_MS) * 1_000_000,
    };
    let _ = rustix::event::poll(&mut [], Some(&moment));
}

/// How often one may pause until something is late.
pub(crate) const PAUSES_MAX: u32 = DEVICE_WITHIN_MS / LOOK_EVERY_MS;

pub(crate) fn mount(
    kind: &str,
    target: &str,
    flags: MountFlags,
    options: &std::ffi::CStr,
) -> Result<(), Step> {
    rustix::mount::mount(kind, target, kind, flags, Some(options)).at(format!("mounting {kind} at {target}"))
}

fn read(path: &str) -> Result<String, Step> {
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
        .at(format!("reading {path}"))?;
    Ok(text)
}
