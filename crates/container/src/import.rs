//! The first template: this machine's own `/usr`, read-only, under a fresh root; or a root that somebody made.
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FileType, Mode};

use crate::build::{Build, Overlay};
use crate::step::{At, Step};
use crate::volume::run;

/// The user of a sandbox (contract, section 9).
const USER: u32 = 1000;

/// Parts of `/etc` without which programs of `/usr` do not work, and which hold no secret: caches, certificates of public
/// authorities, tables. Neither accounts, keys, hosts nor the configuration of services.
const ETC: [&str; 42] = [
    "alternatives",
    "apt/apt.conf.d",
    "apt/preferences.d",
    "apt/sources.list",
    "apt/sources.list.d",
    "apt/trusted.gpg.d",
    "apt/keyrings",
    "bash_completion.d",
    "ca-certificates",
    "ca-certificates.conf",
    "debconf.conf",
    "debian_version",
    "default/locale",
    "deluser.conf",
    "adduser.conf",
    "dpkg",
    "emacs",
    "gai.conf",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "login.defs",
    "lsb-release",
    "magic",
    "mime.types",
    "os-release",
    "pam.conf",
    "pam.d",
    "perl",
    "profile.d",
    "protocols",
    "python3",
    "python3.11",
    "rpc",
    "services",
    "shells",
    "skel",
    "ssl",
    "terminfo",
];

/// What distributions expect of a root beside `/usr` and `/etc`.
const DIRS: [(&str, u32); 30] = [
    ("boot", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("home/user", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/backups", 0o755),
    ("var/cache", 0o755),
    ("var/cache/apt", 0o755),
    ("var/cache/apt/archives", 0o755),
    ("var/cache/apt/archives/partial", 0o700),
    ("var/lib", 0o755),
    ("var/lib/apt", 0o755),
    ("var/lib/apt/lists", 0o755),
    ("var/lib/apt/lists/partial", 0o700),
    ("var/lib/misc", 0o755),
    ("var/local", 0o755),
    ("var/log", 0o755),
    ("var/mail", 0o755),
    ("var/spool", 0o755),
];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
    daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
    bin:x:2:2:bin:/bin:/usr/sbin/nologin\n\
    sys:x:3:3:sys:/dev:/usr/sbin/nologin\n\
    man:x:6:12:man:/var/cache/man:/usr/sbin/nologin\n\
    mail:x:8:8:mail:/var/mail:/usr/sbin/nologin\n\
    www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
    _apt:x:42:65534::/nonexistent:/usr/sbin/nologin\n\
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
    user:x:1000:1000::/home/user:/bin/bash\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nmail:x:8:\nman:x:12:\n\
    sudo:x:27:user\nwww-data:x:33:\nshadow:x:42:\nutmp:x:43:\nstaff:x:50:\nusers:x:100:\nnogroup:x:65534:\nuser:x:1000:\n";
const SHADOW: &str = "root:*:19000:0:99999:7:::\n_apt:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\nuser:*:19000:0:99999:7:::\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n";
const PROFILE: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
    [ -d \"$HOME/.local/bin\" ] && PATH=\"$HOME/.local/bin:$PATH\"\nexport PATH\n\
    if [ -n \"$PS1\" ]; then\n  if [ \"$(id -u)\" -eq 0 ]; then PS1='\\u@\\h:\\w# '; else PS1='\\u@\\h:\\w$ '; fi\nfi\n\
    if [ -d /etc/profile.d ]; then\n  for i in /etc/profile.d/*.sh; do [ -r \"$i\" ] && . \"$i\"; done\n  unset i\nfi\n";

/// What the `base` template should offer, and what a machine may lack.
pub const WANTED: [&str; 10] = [
    "bash", "ls", "python3", "curl", "git", "tar", "gzip", "sed", "awk", "ps",
];

/// Programs of [`WANTED`] that this machine does not have in `/usr`.
#[must_use]
pub fn lacks() -> Vec<&'static str> {
    let has = |name: &&str| {
        ["usr/bin", "usr/local/bin", "usr/sbin"]
            .iter()
            .any(|dir| Path::new("/").join(dir).join(name).exists())
    };
    WANTED.into_iter().filter(|name| !has(name)).collect()
}

/// A build over the machine's own `/usr`.
pub(crate) fn host(layers: &Path, sudo: &Path) -> Result<Build, Step> {
    let partial = fresh(layers)?;
    let (root, usr) = (partial.join("root"), partial.join("usr"));
    furnish(&root)?;
    own_programs(&usr, sudo)?;
    hide_private(Path::new("/usr"), &usr)?;
    finish(&partial, layers)?;
    Ok(Build {
        overlays: vec![
            Overlay {
                target: "/".into(),
                layers: vec![layers.join("root")],
                upper: "root".into(),
            },
            Overlay {
                target: "/usr".into(),
                layers: vec![layers.join("usr"), "/usr".into()],
                upper: "usr".into(),
            },
        ],
    })
}

/// A build over a whole root in a directory, which must stay as it is from now on.
pub(crate) fn root(layers: &Path, dir: &Path, sudo: &Path) -> Result<Build, Step> {
    let partial = fresh(layers)?;
    let own = partial.join("root");
    own_programs(&own.join("usr"), sudo)?;
    accounts(&own, dir)?;
    finish(&partial, layers)?;
    let overlay = Overlay {
        target: "/".into(),
        layers: vec![layers.join("root"), dir.to_owned()],
        upper: "root".into(),
    };
    Ok(Build {
        overlays: vec![overlay],
    })
}

fn fresh(layers: &Path) -> Result<PathBuf, Step> {
    let partial = layers.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).at(format!("making {}", partial.display()))?;
    Ok(partial)
}

fn finish(partial: &Path, layers: &Path) -> Result<(), Step> {
    let _ = fs::remove_dir_all(layers);
    fs::rename(partial, layers).at(format!("naming {}", layers.display()))
}

fn furnish(root: &Path) -> Result<(), Step> {
    fs::create_dir_all(root).at("making a root")?;
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).at("opening a root")?;
    for (dir, mode) in DIRS {
        make_dir(&root.join(dir), mode)?;
    }
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        match fs::read_link(Path::new("/").join(name)) {
            Ok(target) => symlink(&target, root.join(name)).at(format!("linking /{name}"))?,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(io::Error::other(
                    "it is a directory of its own; only a merged /usr can be shared",
                ))
                .at(format!("using /{name} of this machine"));
            }
            Err(_) => {}
        }
    }
    for name in ETC {
        copy(&Path::new("/etc").join(name), &root.join("etc").join(name))?;
    }
    for name in ["var/lib/dpkg", "var/lib/rpm", "var/lib/ucf"] {
        copy(&Path::new("/").join(name), &root.join(name))?;
    }
    let etc = |name: &str, text: &str, mode: u32| write(&root.join("etc").join(name), text, mode);
    etc("passwd", PASSWD, 0o644)?;
    etc("group", GROUP, 0o644)?;
    etc("shadow", SHADOW, 0o600)?;
    etc("gshadow", "", 0o600)?;
    etc("nsswitch.conf", NSSWITCH, 0o644)?;
    etc("profile", PROFILE, 0o644)?;
    etc("bash.bashrc", "", 0o644)?;
    etc("hosts", "", 0o644)?;
    etc("resolv.conf", "", 0o644)?;
    etc("fstab", "", 0o644)?;
    symlink("/proc/mounts", root.join("etc/mtab")).at("linking /etc/mtab")?;
    symlink("/run", root.join("var/run")).at("linking /var/run")?;
    symlink("/run/lock", root.join("var/lock")).at("linking /var/lock")?;
    make_dir(&root.join("var/tmp"), 0o1777)?;
    own(&root.join("home/user"), USER)
}

/// A user `user` in a root that has none.
fn accounts(own_layer: &Path, dir: &Path) -> Result<(), Step> {
    let etc = own_layer.join("etc");
    make_dir(&etc, 0o755)?;
    for (name, line) in [
        ("passwd", "user:x:1000:1000::/home/user:/bin/bash\n"),
        ("group", "user:x:1000:\n"),
        ("shadow", "user:*:19000:0:99999:7:::\n"),
    ] {
        let source = dir.join("etc").join(name);
        let text = fs::read_to_string(&source).unwrap_or_default();
        if !text.lines().any(|line| line.starts_with("user:")) {
            let mode = if name == "shadow" { 0o600 } else { 0o644 };
            write(&etc.join(name), &format!("{text}{line}"), mode)?;
        }
    }
    make_dir(&own_layer.join("home"), 0o755)?;
    make_dir(&own_layer.join("home/user"), 0o755)?;
    own(&own_layer.join("home/user"), USER)
}

/// What Atoll adds to `/usr`: `sudo`, and `python` where there is only `python3`.
fn own_programs(usr: &Path, sudo: &Path) -> Result<(), Step> {
    for dir in ["", "local", "local/bin"] {
        make_dir(&usr.join(dir), 0o755)?;
    }
    let target = usr.join("local/bin/sudo");
    fs::copy(sudo, &target).at(format!("copying {}", sudo.display()))?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o4755)).at("making sudo a setuid program")?;
    symlink("/usr/bin/python3", usr.join("local/bin/python")).at("linking python")
}

/// Whiteouts, in our layer, for what only root may read on this machine: root of a sandbox is root of its layers.
fn hide_private(from: &Path, layer: &Path) -> Result<(), Step> {
    let device = fs::metadata(from).at("looking at /usr")?.dev();
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        for entry in fs::read_dir(from.join(&below)).into_iter().flatten().flatten() {
            let path = below.join(entry.file_name());
            let Ok(about) = entry.metadata() else { continue };
            let kind = about.file_type();
            // Others may not read it: and if it is a program that others may run, that is all they need.
            let private = !kind.is_symlink() && about.mode() & 0o004 == 0 && about.mode() & 0o001 == 0;
            if private {
                white_out(layer, &path)?;
            } else if kind.is_dir() && about.dev() == device {
                open.push(path);
            }
        }
    }
    Ok(())
}

fn white_out(layer: &Path, path: &Path) -> Result<(), Step> {
    let target = layer.join(path);
    let parent = target.parent().unwrap_or(layer);
    fs::create_dir_all(parent).at(format!("making {}", parent.display()))?;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &target,
        FileType::CharacterDevice,
        Mode::empty(),
        0,
    )
    .at(format!("hiding /usr/{}", path.display()))
}

fn make_dir(path: &Path, mode: u32) -> Result<(), Step> {
    fs::create_dir_all(path).at(format!("making {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).at(format!("opening {}", path.display()))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Step> {
    fs::write(path, text).at(format!("writing {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).at(format!("opening {}", path.display()))
}

fn own(path: &Path, user: u32) -> Result<(), Step> {
    std::os::unix::fs::chown(path, Some(user), Some(user)).at(format!("giving away {}", path.display()))
}

/// Copies a file or a tree that is there, but nothing in it that others may not read.
fn copy(from: &Path, to: &Path) -> Result<(), Step> {
    if fs::symlink_metadata(from).is_err() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).at(format!("making {}", parent.display()))?;
    }
    run(Command::new("cp")
        .args(["-a", "--reflink=auto", "--"])
        .arg(from)
        .arg(to))?;
    run(Command::new("find")
        .arg(to)
        .args(["-not", "-type", "l", "-not", "-perm", "-o=r", "-delete"]))
}
