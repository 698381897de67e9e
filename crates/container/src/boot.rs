//! How a skeleton becomes a machine: the steps of the forked child, up to the exec of envd.
//!
//! It holds all capabilities, but in its own user namespace only, and gives them up step by step: what remains at the
//! end is [`CAPABILITIES`] and the system calls of [`crate::syscalls`].
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::launcher::message::{Boot, BootFailed, errno, receive, send};
use crate::launcher::serve::{DEVICES, STAGE};
use crate::step::{At, Step};
use crate::syscalls;

/// What root may do in its sandbox: own files, change identities, bind low ports, signal. No administration of mounts,
/// networks or the kernel, no raw sockets, no tracing of others.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// Parts of `/proc` that tell of the host, or steer it: covered by nothing.
const MASKED_FILES: [&str; 18] = [
    "proc/cmdline",
    "proc/diskstats",
    "proc/interrupts",
    "proc/iomem",
    "proc/ioports",
    "proc/kallsyms",
    "proc/kcore",
    "proc/key-users",
    "proc/keys",
    "proc/kmsg",
    "proc/latency_stats",
    "proc/partitions",
    "proc/sched_debug",
    "proc/softirqs",
    "proc/swaps",
    "proc/sysrq-trigger",
    "proc/timer_list",
    "proc/vmallocinfo",
];
/// Directories that tell of the host: covered by an empty one.
const MASKED_DIRS: [&str; 18] = [
    "proc/acpi",
    "proc/asound",
    "proc/bus",
    "proc/driver",
    "proc/fs",
    "proc/irq",
    "proc/pressure",
    "proc/scsi",
    "proc/tty/driver",
    // Disks, and with them every sandbox's on the host.
    "sys/block",
    "sys/bus",
    "sys/dev",
    "sys/firmware",
    "sys/fs",
    "sys/hypervisor",
    "sys/kernel",
    "sys/module",
    "sys/power",
];
/// Directories of which no more is shown than this: the machine's own links, its processors and memory.
const SHOWN: [(&str, &[&str]); 2] = [
    ("sys/class", &["net"]),
    ("sys/devices", &["system", "virtual/net"]),
];

/// Waits on the control socket for the order to boot, and becomes the machine. Ends the process if the daemon goes away
/// or a step fails.
pub(crate) fn wait_and_boot(control: OwnedFd) -> ! {
    let failed = match receive::<Boot>(&control) {
        Ok(Some((boot, fds))) => match become_machine(&boot, fds) {
            Ok(never) => match never {},
            Err(failed) => failed,
        },
        Ok(None) | Err(_) =>
        {
            #[expect(
                clippy::exit,
                reason = "a forked child has no caller to return to, and nobody will ever ask"
            )]
            std::process::exit(0)
        }
    };
    let told = BootFailed {
        step: failed.step.clone(),
        errno: errno(&failed.source),
    };
    let _ = send(&control, &told, &[]);
    #[expect(clippy::exit, reason = "a forked child has no caller to return to")]
    std::process::exit(1)
}

fn become_machine(boot: &Boot, fds: Vec<OwnedFd>) -> Result<std::convert::Infallible, Step> {
    let mut fds = fds.into_iter();
    for tasks in fds.by_ref().take(boot.cgroups) {
        // Our own number: attaching oneself skips a lock of the kernel that costs milliseconds (cgroup v1).
        rustix::io::write(&tasks, b"0").at("entering a cgroup")?;
    }
    // Made only now, so that its root is the cgroup just entered.
    linux::spawn::leave_cgroup_namespace().at("unsharing the cgroup namespace")?;
    linux::spawn::become_root_of_namespace().at("becoming root of the user namespace")?;
    rustix::process::setsid().at("setsid")?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private).at("making mounts private")?;

    let mounts: Vec<OwnedFd> = fds.by_ref().take(boot.mounts.len()).collect();
    let ready = fds
        .next()
        .ok_or_else(|| io::Error::other("no ready pipe came along"))
        .at("receiving the boot order")?;
    attach_roots(boot, &mounts)?;
    drop(mounts);
    mount_kernel_views()?;
    mask()?;
    rustix::process::pivot_root(".", ".").at("pivot_root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).at("leaving the launcher's mounts")?;
    rustix::process::chdir("/").at("entering /")?;

    identify(boot)?;
    standard_streams()?;
    drop_rights()?;
    exec_envd(boot, &ready)
}

/// Attaches the root at the stage and enters it, then the mounts below.
fn attach_roots(boot: &Boot, mounts: &[OwnedFd]) -> Result<(), Step> {
    for (mount, target) in mounts.iter().zip(&boot.mounts) {
        let (place, base) = if target == "/" {
            (STAGE, "/")
        } else {
            (target.trim_start_matches('/'), ".")
        };
        if target != "/" {
            let _ = fs::create_dir_all(Path::new(base).join(place));
        }
        rustix::mount::move_mount(mount, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .at(format!("attaching {target}"))?;
        if target == "/" {
            rustix::process::chdir(STAGE).at("entering the stage")?;
            for dir in ["proc", "sys", "dev", "run", "tmp"] {
                let _ = fs::create_dir(dir);
            }
            // What lives in memory only, for each boot anew. envd's own corner is root's.
            mount_fs(
                "tmpfs",
                "run",
                MountFlags::NOSUID | MountFlags::NODEV,
                c"mode=755,size=16m,nr_inodes=4k",
            )?;
            fs::create_dir("run/atoll").at("making /run/atoll")?;
            fs::set_permissions("run/atoll", fs::Permissions::from_mode(0o700)).at("closing /run/atoll")?;
        }
    }
    Ok(())
}

fn mount_fs(kind: &str, target: &str, flags: MountFlags, options: &std::ffi::CStr) -> Result<(), Step> {
    rustix::mount::mount(kind, target, kind, flags, Some(options)).at(format!("mounting {kind} at /{target}"))
}

fn mount_kernel_views() -> Result<(), Step> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_fs("proc", "proc", plain, c"")?;
    mount_fs("sysfs", "sys", plain | MountFlags::RDONLY, c"")?;
    mount_fs(
        "tmpfs",
        "dev",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=755,size=64k,nr_inodes=128",
    )?;
    for (name, ..) in DEVICES {
        let target = format!("dev/{name}");
        fs::File::create(&target).at(format!("making /{target}"))?;
        rustix::mount::mount_bind(format!("/dev/{name}"), &target).at(format!("binding /{target}"))?;
    }
    for dir in ["dev/pts", "dev/shm", "dev/mqueue"] {
        fs::create_dir(dir).at(format!("making /{dir}"))?;
    }
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_fs(
        "devpts",
        "dev/pts",
        terminals,
        c"newinstance,ptmxmode=0666,mode=0620,gid=5",
    )?;
    // Shared memory is the machine's memory, and its limit is the machine's; without a size of its own it would show
    // half of the host's.
    mount_fs(
        "tmpfs",
        "dev/shm",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=1777,size=2g,nr_inodes=256k",
    )?;
    mount_fs("mqueue", "dev/mqueue", plain, c"")?;
    for (link, target) in [
        ("dev/ptmx", "pts/ptmx"),
        ("dev/fd", "/proc/self/fd"),
        ("dev/stdin", "/proc/self/fd/0"),
        ("dev/stdout", "/proc/self/fd/1"),
        ("dev/stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, link).at(format!("linking /{link}"))?;
    }
    Ok(())
}

fn mask() -> Result<(), Step> {
    for file in MASKED_FILES.iter().filter(|file| Path::new(file).exists()) {
        rustix::mount::mount_bind("/dev/null", *file).at(format!("masking /{file}"))?;
    }
    // One empty directory for all of them.
    let mut empty = None;
    for dir in MASKED_DIRS.iter().filter(|dir| Path::new(dir).is_dir()) {
        if let Some(empty) = empty {
            rustix::mount::mount_bind(empty, *dir).at(format!("masking /{dir}"))?;
        } else {
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount_fs("tmpfs", dir, flags, c"size=0,nr_inodes=2,mode=555")?;
            empty = Some(*dir);
        }
    }
    for (dir, kept) in SHOWN {
        show_only(dir, kept)?;
    }
    // The kernel's settings can be read; those that belong to the machine were set before.
    rustix::mount::mount_bind("proc/sys", "proc/sys").at("binding /proc/sys")?;
    Ok(())
}

/// Covers a directory by one in which there is nothing but these of its parts, as they were.
fn show_only(dir: &str, kept: &[&str]) -> Result<(), Step> {
    let parts: Vec<(PathBuf, OwnedFd)> = kept
        .iter()
        .map(|part| Path::new(dir).join(part))
        .filter(|part| part.is_dir())
        .map(|part| {
            let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree =
                rustix::mount::open_tree(CWD, &part, clone).at(format!("opening /{}", part.display()))?;
            Ok((part, tree))
        })
        .collect::<Result<_, Step>>()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_fs("tmpfs", dir, flags, c"size=4k,nr_inodes=8,mode=555")?;
    for (part, tree) in parts {
        fs::create_dir_all(&part).at(format!("making /{}", part.display()))?;
        rustix::mount::move_mount(&tree, "", CWD, &part, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .at(format!("showing /{}", part.display()))?;
    }
    rustix::mount::mount_remount(dir, flags | MountFlags::RDONLY, c"").at(format!("closing /{dir}"))
}

/// What tells this machine and this boot from others.
fn identify(boot: &Boot) -> Result<(), Step> {
    rustix::system::sethostname(boot.hostname.as_bytes()).at("sethostname")?;
    fs::create_dir_all("/etc").at("making /etc")?;
    let servers: String = boot
        .nameservers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    put(
        "/etc/resolv.conf",
        &format!("{servers}options timeout:2 attempts:3\n"),
    )?;
    if fs::metadata("/etc/hosts").map_or(true, |hosts| hosts.len() == 0) {
        put(
            "/etc/hosts",
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
        )?;
    }
    // These get the machine's name when it is claimed. What lies in a layer is copied up when it is opened to be written: now,
    // when nobody waits.
    for named in ["/etc/hostname", "/etc/hosts"] {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let _ = rustix::fs::open(named, flags, Mode::empty());
    }
    let machine_id = "/etc/machine-id";
    if boot.is_new || read_small(machine_id).is_none_or(|id| id.trim().len() != 32) {
        put(machine_id, &format!("{}\n", boot.machine_id))?;
    }
    let _ = fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777));
    fs::write("/run/atoll/boot_id", format!("{}\n", boot.boot_id)).at("writing the boot id")?;
    rustix::mount::mount_bind("/run/atoll/boot_id", "/proc/sys/kernel/random/boot_id")
        .at("binding the boot id")?;
    let proc_sys = rustix::fs::open("/proc/sys", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .at("opening /proc/sys")?;
    rustix::fs::chmod("/run/atoll/boot_id", Mode::from_raw_mode(0o444)).at("opening the boot id to all")?;
    let read_only = linux::mount::Attributes {
        read_only: true,
        no_setuid: true,
        no_devices: true,
        ..linux::mount::Attributes::default()
    };
    ping_for_all();
    linux::mount::set_attributes(proc_sys.as_fd(), read_only).at("making /proc/sys read-only")
}

/// The files that are looked at here hold a line or two.
const FILE_BYTES_MAX: u64 = 4096;

/// What a file holds that the machine may have made what it likes: neither is a link followed, nor a pipe waited for, nor
/// more read than such a file has.
fn read_small(path: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let about = file.metadata().ok()?;
    if !about.is_file() || about.len() > FILE_BYTES_MAX {
        return None;
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Sees to it that a file is a regular one with this text, whatever was there: a link could lead anywhere.
fn put(path: &str, text: &str) -> Result<(), Step> {
    if read_small(path).is_some_and(|old| old == text) {
        return Ok(());
    }
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
        fs::remove_dir_all(path).at(format!("clearing {path}"))?;
    }
    let _ = fs::remove_file(path);
    fs::File::create_new(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .at(format!("writing {path}"))
}

/// Lets everybody inside ping without raw sockets ([icmp(7)](https://man7.org/linux/man-pages/man7/icmp.7.html)).
pub(crate) fn ping_for_all() {
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 65535");
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
}

fn standard_streams() -> Result<(), Step> {
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .at("opening /dev/null")?;
    rustix::stdio::dup2_stdin(&null).at("dup2")?;
    rustix::stdio::dup2_stdout(&null).at("dup2")?;
    rustix::stdio::dup2_stderr(&null).at("dup2")
}

/// The filter is loaded while `CAP_SYS_ADMIN` is held, so that setuid programs keep their meaning; then it is given up.
fn drop_rights() -> Result<(), Step> {
    for capability in CapabilitySet::all().difference(CAPABILITIES).iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A capability that this kernel does not know cannot be had.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error).at("dropping a capability"),
        }
    }
    syscalls::filter().load().at("loading the system call filter")?;
    let kept = CapabilitySets {
        effective: CAPABILITIES,
        permitted: CAPABILITIES,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, kept).at("giving up capabilities")
}

fn exec_envd(boot: &Boot, ready: &OwnedFd) -> Result<std::convert::Infallible, Step> {
    // Whoever started the daemon may have left descriptors open, of directories even: none is to arrive inside.
    linux::spawn::close_on_exec_from(3).at("closing what came down from the host")?;
    rustix::io::fcntl_setfd(ready, rustix::io::FdFlags::empty()).at("keeping the ready pipe")?;
    let (program, arguments) = boot
        .envd
        .split_first()
        .ok_or_else(|| io::Error::other("no program"))
        .at("starting envd")?;
    linux::spawn::default_signals().at("resetting signals")?;
    let failed = Command::new(program)
        .args(arguments)
        .args(["--ready-fd", &ready.as_raw_fd().to_string()])
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .exec();
    Err(failed).at(format!("exec of {program}"))
}

#[cfg(test)]
mod tests;
