//! What this machine can do for containers, and what it lacks.
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use linux::mount::{Attributes, set_attributes};
use rustix::mount::OpenTreeFlags;

use crate::cgroup::Cgroups;
use crate::{criu, volume};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// How to get it, where it is not.
    pub hint: Option<String>,
}

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, and could be better.
    Poor,
    /// Nothing runs without it.
    Missing,
}

impl Check {
    /// A check whose outcome is known.
    #[must_use]
    pub fn new(
        name: &'static str,
        good: bool,
        otherwise: Verdict,
        found: impl Into<String>,
        hint: &str,
    ) -> Self {
        Self {
            name,
            verdict: if good { Verdict::Good } else { otherwise },
            found: found.into(),
            hint: (!good).then(|| hint.to_owned()),
        }
    }
}

/// Looks at everything that the container runtime stands on. Changes nothing that stays.
#[must_use]
pub fn look(data: &Path) -> Vec<Check> {
    let mut checks = vec![root(), user_namespaces(), cgroups()];
    checks.extend(file_systems());
    checks.extend(tools());
    checks.push(shared_usr());
    checks.push(disks(data));
    checks.push(mapped_owners(data));
    checks.extend(network());
    checks.push(programs());
    checks
}

fn root() -> Check {
    let is_root = rustix::process::geteuid().is_root();
    Check::new(
        "privilege",
        is_root,
        Verdict::Missing,
        if is_root { "root" } else { "an ordinary user" },
        "start Atoll as root: it makes mounts, links and firewall rules",
    )
}

fn user_namespaces() -> Check {
    let max: u64 = fs::read_to_string("/proc/sys/user/max_user_namespaces")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    Check::new(
        "user namespaces",
        max > 0,
        Verdict::Missing,
        format!("at most {max}"),
        "sysctl -w user.max_user_namespaces=65536, on a kernel with CONFIG_USER_NS",
    )
}

fn cgroups() -> Check {
    match Cgroups::describe() {
        Ok((versions, lacks)) => {
            let found = if lacks.is_empty() {
                versions
            } else {
                format!("{versions}, without {}", lacks.join(", "))
            };
            Check::new(
                "cgroups",
                lacks.is_empty(),
                Verdict::Missing,
                found,
                "mount /sys/fs/cgroup with the memory, cpu and pids controllers",
            )
        }
        Err(error) => Check::new(
            "cgroups",
            false,
            Verdict::Missing,
            error.to_string(),
            "mount /proc and /sys/fs/cgroup",
        ),
    }
}

fn file_systems() -> Vec<Check> {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has = |name: &str| {
        known
            .lines()
            .any(|line| line.trim_start_matches("nodev").trim() == name)
    };
    let check = |name: &'static str, kind: &str| {
        // A module that is not loaded yet is loaded by the first mount.
        let module = Path::new("/sys/module").join(kind).exists() || has(kind);
        let found = if module { "there" } else { "not loaded" };
        Check::new(
            name,
            module,
            Verdict::Poor,
            found,
            &format!("modprobe {kind}, if the first start says that {kind} cannot be mounted"),
        )
    };
    let mut checks = vec![
        check("overlay", "overlay"),
        check("ext4", "ext4"),
        check("XFS", "xfs"),
    ];
    let control = Path::new("/dev/loop-control").exists();
    checks.push(Check::new(
        "loop devices",
        control,
        Verdict::Missing,
        if control { "there" } else { "no /dev/loop-control" },
        "modprobe loop",
    ));
    checks
}

fn tools() -> Vec<Check> {
    let dirs = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let check = |name: &'static str, package: &str| {
        let found = dirs
            .iter()
            .map(|dir| Path::new(dir).join(name))
            .find(|path| path.exists());
        let text = found
            .as_ref()
            .map_or_else(|| "not installed".to_owned(), |path| path.display().to_string());
        Check::new(
            name,
            found.is_some(),
            Verdict::Missing,
            text,
            &format!("install the package {package} (apt-get install {package}, dnf install {package})"),
        )
    };
    vec![check("mkfs.ext4", "e2fsprogs"), check("mkfs.xfs", "xfsprogs")]
}

fn shared_usr() -> Check {
    let merged = fs::read_link("/bin").is_ok();
    let found = if merged {
        "merged: it can be shared as the base template"
    } else {
        "not merged"
    };
    Check::new(
        "/usr",
        merged,
        Verdict::Poor,
        found,
        "/bin, /sbin and /lib must lead into /usr (Debian: apt-get install usrmerge); `base` is made of it",
    )
}

fn disks(data: &Path) -> Check {
    let dir = nearest(data);
    let native = volume::shares_extents(dir);
    let free = rustix::fs::statvfs(dir).map_or(0, |space| (space.f_bavail * space.f_frsize) >> 30);
    let how = if native {
        "shares extents by itself"
    } else {
        "does not share extents: disks lie in an XFS volume in a file"
    };
    Check::new(
        "disk",
        native,
        Verdict::Poor,
        format!("{free} GiB free at {}, which {how}", dir.display()),
        "a data directory on XFS or btrfs is faster for programs that call fsync much",
    )
}

/// The directory that is there, of this one and those above it.
fn nearest(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"))
}

/// Layers belong to the host's root, and inside to the sandbox's: by mounts that map owners, of `/usr` and of the data.
fn mapped_owners(data: &Path) -> Check {
    let found = [Path::new("/usr"), nearest(data)].into_iter().find_map(|dir| {
        try_mapping(dir)
            .err()
            .map(|error| format!("not at {}: {error}", dir.display()))
    });
    Check::new(
        "mounts with mapped owners",
        found.is_none(),
        Verdict::Missing,
        found.unwrap_or_else(|| "there".to_owned()),
        "Linux 5.19 or newer, with /usr and the data directory (--data-dir) on ext4, XFS or btrfs",
    )
}

fn try_mapping(dir: &Path) -> io::Result<()> {
    // Nobody can be asked for a user namespace but a process in one.
    let mut holder = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", "echo; read _"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut tried = || {
        let mut told = [0];
        let out = holder.stdout.as_mut();
        out.ok_or(io::ErrorKind::BrokenPipe)?.read_exact(&mut told)?;
        let users = fs::File::open(format!("/proc/{}/ns/user", holder.id()))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(rustix::fs::CWD, dir, flags)?;
        let mapped = Attributes {
            id_map: Some(users.as_fd()),
            ..Attributes::default()
        };
        set_attributes(tree.as_fd(), mapped)
    };
    let outcome = tried();
    let _ = holder.kill();
    let _ = holder.wait();
    outcome
}

fn network() -> Vec<Check> {
    let lacks = net::probe();
    let mut checks: Vec<Check> = lacks
        .iter()
        .map(|lack| Check {
            name: "network",
            verdict: if lack.is_fatal() {
                Verdict::Missing
            } else {
                Verdict::Poor
            },
            found: lack.to_string(),
            hint: None,
        })
        .collect();
    if checks.is_empty() {
        checks.push(Check::new(
            "network",
            true,
            Verdict::Missing,
            "nftables, veth and forwarding are there",
            "",
        ));
    }
    checks
}

/// Whether memory outlives processes here: by what the daemon of this directory, which is the runtime's own, found out when
/// it tried.
#[must_use]
pub fn memory(data: &Path, criu: Option<&Path>) -> Check {
    let hint = "install CRIU 4.2 or newer (Debian: apt-get install criu from sid; `cargo xtask criu` of a clone of Atoll gets \
                a private one), and name it by --criu or ATOLL_CRIU; until then pauses keep memory in RAM, and snapshots and \
                forks hold disks alone";
    let check = |good: bool, found: String| Check::new("memory", good, Verdict::Poor, found, hint);
    let Some(program) = criu else {
        return check(
            false,
            "no CRIU: it does not outlive the host, and is not copied".to_owned(),
        );
    };
    match criu::version(program) {
        Err(failed) => {
            let why = std::error::Error::source(&failed).map(ToString::to_string);
            check(false, format!("{failed}: {}", why.unwrap_or_default()))
        }
        Ok(version) => {
            let tried = criu::recall::Tried::read(data).filter(|tried| tried.criu == version);
            match tried.map(|tried| tried.why_not) {
                None => check(
                    true,
                    format!("CRIU {version} is there; whether it works here is tried when Atoll starts"),
                ),
                Some(None) => check(
                    true,
                    format!("CRIU {version} has written a sandbox down and brought it back"),
                ),
                Some(Some(why)) => check(false, format!("CRIU {version} does not work here: {why}")),
            }
        }
    }
}

fn programs() -> Check {
    let lacks = rootfs::lacks();
    let found = if lacks.is_empty() {
        "all that clients expect".to_owned()
    } else {
        format!("without {}", lacks.join(", "))
    };
    Check::new(
        "programs of the base template",
        lacks.is_empty(),
        Verdict::Poor,
        found,
        "install them on this machine (Debian: apt-get install python3-pip git curl procps): sandboxes of `base` see \
         its /usr",
    )
}
