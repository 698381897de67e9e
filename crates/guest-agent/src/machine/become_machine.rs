//! The steps of the forked child, up to the exec of envd.
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use guest::boot::Settings;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};

use super::SOCKET;
use crate::boot::{self, BOOT_ID, ENVD, MACHINE, SUDO, mount};
use crate::console::say;
use crate::file;
use crate::step::{At as _, Step};

/// Where envd lies inside, as in every sandbox.
const ENVD_INSIDE: &str = "/run/atoll/agent";
/// Where `sudo` does.
const SUDO_INSIDE: &str = "/usr/local/bin/sudo";
/// The port on which envd serves clients inside.
const ENVD_PORT: &str = "49983";

/// Becomes the machine; returns only what failed.
pub(super) fn become_machine(settings: &Settings, ready: &OwnedFd) -> Step {
    match steps(settings, ready) {
        Ok(never) => match never {},
        Err(failed) => failed,
    }
}

fn steps(settings: &Settings, ready: &OwnedFd) -> Result<std::convert::Infallible, Step> {
    linux::spawn::leave_cgroup_namespace().at("unsharing the cgroup namespace")?;
    rustix::process::setsid().at("setsid")?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private).at("making mounts private")?;
    // Taken along from the outer root; each is attached when we are in our own.
    let (envd, sudo, boot_id) = (clone(ENVD)?, clone(&format!("{SUDO}/sudo"))?, clone(BOOT_ID)?);
    rustix::process::chdir(MACHINE).at("entering the root disk")?;
    rustix::process::pivot_root(".", ".").at("pivot_root")?;
    boot::leave_old_root()?;
    rustix::process::chdir("/").at("entering /")?;

    mount_kernel_views()?;
    attach(&envd, ENVD_INSIDE)?;
    if let Err(failed) = place_sudo(&sudo) {
        // An image may have made that place something else; it is a machine without our sudo then.
        say(format_args!("{failed}: {}", failed.source));
    }
    attach(&boot_id, "/proc/sys/kernel/random/boot_id")?;
    drop((envd, sudo, boot_id));
    identify(settings)?;
    exec_envd(ready)
}

fn clone(path: &str) -> Result<OwnedFd, Step> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, path, flags).at(format!("taking {path} along"))?;
    let read_only = linux::mount::Attributes {
        read_only: true,
        no_devices: true,
        ..linux::mount::Attributes::default()
    };
    linux::mount::set_attributes(tree.as_fd(), read_only).at(format!("making {path} read-only"))?;
    Ok(tree)
}

fn attach(tree: &OwnedFd, target: &str) -> Result<(), Step> {
    rustix::mount::move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .at(format!("attaching {target}"))
}

/// Whatever an image has there: a place for a mount is a directory.
fn place(dir: &str, mode: u32) -> Result<(), Step> {
    if !fs::symlink_metadata(dir).is_ok_and(|found| found.is_dir()) {
        let _ = fs::remove_file(dir);
        fs::create_dir_all(dir).at(format!("making {dir}"))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(mode))
            .at(format!("setting the mode of {dir}"))?;
    }
    Ok(())
}

fn mount_kernel_views() -> Result<(), Step> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let devices = MountFlags::NOSUID | MountFlags::NOEXEC;
    for dir in ["/proc", "/sys", "/dev", "/run", "/tmp"] {
        place(dir, 0o755)?;
    }
    mount("proc", "/proc", plain, c"")?;
    mount("sysfs", "/sys", plain, c"")?;
    mount("cgroup2", "/sys/fs/cgroup", plain, c"nsdelegate")?;
    mount("devtmpfs", "/dev", devices, c"")?;
    for dir in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        place(dir, 0o755)?;
    }
    mount(
        "devpts",
        "/dev/pts",
        devices,
        c"newinstance,ptmxmode=0666,mode=0620,gid=5",
    )?;
    let memory = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", "/dev/shm", memory, c"mode=1777,size=50%")?;
    mount("mqueue", "/dev/mqueue", plain, c"")?;
    mount("tmpfs", "/run", memory, c"mode=755,size=20%")?;
    fs::create_dir("/run/atoll").at("making /run/atoll")?;
    // envd's own corner is root's.
    fs::set_permissions("/run/atoll", fs::Permissions::from_mode(0o700)).at("closing /run/atoll")?;
    fs::create_dir(ENVD_INSIDE).at("making envd's place")?;
    let _ = fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777));
    Ok(())
}

/// Over a file of its own, where there was none.
fn place_sudo(sudo: &OwnedFd) -> Result<(), Step> {
    let (dir, name) = SUDO_INSIDE.rsplit_once('/').unwrap_or_default();
    fs::create_dir_all(dir).at(format!("making {dir}"))?;
    let root = file::root().at("opening /")?;
    let dir = file::directory(&root, dir).at(format!("opening {dir}"))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o755)).at(format!("making {SUDO_INSIDE}"))?;
    rustix::mount::move_mount(sudo, "", &dir, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .at(format!("attaching {SUDO_INSIDE}"))
}

/// What tells this machine from others.
fn identify(settings: &Settings) -> Result<(), Step> {
    rustix::system::sethostname(settings.hostname.as_bytes()).at("sethostname")?;
    fs::create_dir_all("/etc").at("making /etc")?;
    let root = file::root().at("opening /")?;
    let etc = file::directory(&root, "etc").at("opening /etc")?;
    let put = |name: &str, text: &str| file::put(&etc, name, text).at(format!("writing /etc/{name}"));
    let servers: String = settings
        .nameservers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    put("resolv.conf", &format!("{servers}options timeout:2 attempts:3\n"))?;
    // envd puts the machine's name into it.
    if fs::symlink_metadata("/etc/hosts").map_or(true, |hosts| !hosts.is_file() || hosts.len() == 0) {
        put(
            "hosts",
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
        )?;
    }
    put("hostname", &format!("{}\n", settings.hostname))?;
    put("machine-id", &format!("{}\n", settings.machine_id))
}

fn exec_envd(ready: &OwnedFd) -> Result<std::convert::Infallible, Step> {
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .at("opening /dev/null")?;
    // Its standard error stays the console: what it says there are last words.
    rustix::stdio::dup2_stdin(&null).at("dup2")?;
    rustix::stdio::dup2_stdout(&null).at("dup2")?;
    linux::spawn::close_on_exec_from(3).at("closing what came along")?;
    rustix::io::fcntl_setfd(ready, rustix::io::FdFlags::empty()).at("keeping the ready pipe")?;
    linux::spawn::default_signals().at("resetting signals")?;
    let program = format!("{ENVD_INSIDE}/envd");
    let failed: io::Error = Command::new(&program)
        .args(["--pid1", "--socket", SOCKET, "--port", ENVD_PORT, "--ready-fd"])
        .arg(ready.as_raw_fd().to_string())
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .exec();
    Err(failed).at(format!("exec of {program}"))
}
