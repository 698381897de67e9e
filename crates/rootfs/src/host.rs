//! This machine's own `/usr` under a fresh root, and what Atoll adds to a root that somebody made.
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use ports::step::{At, Step};
use rustix::fs::{FileType, Mode};

/// The user of a sandbox (contract, section 9).
pub(crate) const USER: u32 = 1000;

/// Parts of `/etc` without which programs of `/usr` do not work, and which hold no secret: caches, certificates of public
/// authorities, tables. Neither accounts, keys, hosts nor the configuration of services.
const ETC: [&str; 40] = [
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

/// What the `base` template should offer, and what a machine may lack. `python` is ours to add where there is `python3`.
pub const WANTED: [&str; 13] = [
    "bash", "ls", "python3", "pip", "apt-get", "curl", "git", "tar", "gzip", "sed", "awk", "ps", "ss",
];

/// Programs of [`WANTED`] that this machine does not have in `/usr`.
#[must_use]
pub fn lacks() -> Vec<&'static str> {
    let usr = Path::new("/usr");
    WANTED
        .into_iter()
        .filter(|name| program(usr, name).is_none())
        .collect()
}

/// Directories of programs below a `/usr`, in the order in which they are looked at.
pub(crate) const DIRECTORIES_OF_PROGRAMS: [&str; 3] = ["local/bin", "bin", "sbin"];

/// Where a program lies below a `/usr`: `usr/…`, as a path of a whole root.
pub(crate) fn program(usr: &Path, name: &str) -> Option<PathBuf> {
    DIRECTORIES_OF_PROGRAMS
        .iter()
        .map(|dir| Path::new(dir).join(name))
        // A link may lead elsewhere in a root that is not ours.
        .find(|path| fs::symlink_metadata(usr.join(path)).is_ok())
        .map(|path| Path::new("/usr").join(path))
}

/// Writes two layers below `into`: `root`, a fresh root, and `usr`, which goes over this machine's own `/usr`.
///
/// # Errors
/// They cannot be written, or `/usr` cannot be shared.
pub fn layers_of_host(into: &Path, sudo: &Path) -> Result<(), Step> {
    let usr = into.join("usr");
    furnish(&into.join("root"))?;
    own_programs(Path::new("/usr"), &usr, sudo)?;
    hide_private(Path::new("/usr"), &usr)?;
    let_pip_install(Path::new("/usr"), &usr)
}

/// Writes a layer that goes over a whole root in a directory.
///
/// # Errors
/// It cannot be written.
pub fn layer_over(dir: &Path, own: &Path, sudo: &Path) -> Result<(), Step> {
    // What is in ours covers what is in theirs, with its mode.
    for place in ["", "usr"] {
        make_dir(&own.join(place), 0o755)?;
    }
    own_programs(&dir.join("usr"), &own.join("usr"), sudo)?;
    let_pip_install(&dir.join("usr"), &own.join("usr"))?;
    accounts(own, dir)
}

/// A root without a `/usr`.
pub(crate) fn furnish(root: &Path) -> Result<(), Step> {
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
    let python = names(Path::new("/etc"), |name| name.starts_with("python3"));
    for name in ETC.into_iter().map(str::to_owned).chain(python) {
        copy(&Path::new("/etc").join(&name), &root.join("etc").join(&name))?;
    }
    for name in ["var/lib/dpkg", "var/lib/rpm", "var/lib/ucf"] {
        copy(&Path::new("/").join(name), &root.join(name))?;
    }
    adapt_packages(root)?;
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

/// What the tables of packages say of this machine, and not of a sandbox.
fn adapt_packages(root: &Path) -> Result<(), Step> {
    // dpkg refuses all work over a user that is not there.
    rewrite(&root.join("var/lib/dpkg/statoverride"), |text| {
        overrides_of(text, PASSWD, GROUP)
    })?;
    for name in ["apt.conf.d", "sources.list", "sources.list.d"] {
        let mut open = vec![root.join("etc/apt").join(name)];
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(names(&path, |_| true).into_iter().map(|name| path.join(name)));
            } else {
                rewrite(&path, without_credentials)?;
            }
        }
    }
    Ok(())
}

/// The lines of `statoverride` whose user and group are known, or are numbers.
fn overrides_of(text: &str, passwd: &str, group: &str) -> String {
    let known = |table: &str, name: &str| {
        name.starts_with('#')
            || table
                .lines()
                .any(|line| line.split(':').next().is_some_and(|known| known == name))
    };
    text.lines()
        .filter(|line| {
            let mut words = line.split(' ');
            let (user, of_group) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            known(passwd, user) && known(group, of_group)
        })
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// A text without what stands between `://` and `@`: who may use a package archive or a proxy is the host's secret.
fn without_credentials(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        clean.push_str(before);
        let end = after
            .find(|c: char| c == '/' || c == '"' || c == '\'' || c.is_whitespace())
            .unwrap_or(after.len());
        let authority = &after[..end];
        clean.push_str(authority.rsplit_once('@').map_or(authority, |(_, host)| host));
        rest = &after[end..];
    }
    clean.push_str(rest);
    clean
}

/// Replaces the text of a file that is there. Links stay: what they lead to is copied by itself, or is not ours.
fn rewrite(path: &Path, change: impl FnOnce(&str) -> String) -> Result<(), Step> {
    if !fs::symlink_metadata(path).is_ok_and(|about| about.is_file()) {
        return Ok(());
    }
    let step = || format!("adapting {}", path.display());
    let bytes = fs::read(path).at(step())?;
    let text = String::from_utf8_lossy(&bytes);
    let changed = change(&text);
    if changed == text {
        return Ok(());
    }
    fs::write(path, changed).at(step())
}

/// Names in a directory; none where there is no directory.
pub(crate) fn names(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| wanted(name))
        .collect()
}

/// Hides the mark by which a distribution keeps pip from its own packages ([PEP 668]): a sandbox's are its owner's, who
/// expects `pip install` to work.
///
/// [PEP 668]: https://peps.python.org/pep-0668/
fn let_pip_install(usr: &Path, layer: &Path) -> Result<(), Step> {
    for lib in ["lib", "local/lib"] {
        for python in names(&usr.join(lib), |name| name.starts_with("python3")) {
            let mark = Path::new(lib).join(python).join("EXTERNALLY-MANAGED");
            if fs::symlink_metadata(usr.join(&mark)).is_ok() {
                white_out(layer, &mark)?;
            }
        }
    }
    Ok(())
}

/// What Atoll adds to `/usr`: `sudo`, and `python` where there is only `python3`.
fn own_programs(usr: &Path, layer: &Path, sudo: &Path) -> Result<(), Step> {
    for dir in ["", "local", "local/bin"] {
        make_dir(&layer.join(dir), 0o755)?;
    }
    own_sudo(&layer.join("local/bin"), sudo)?;
    match (program(usr, "python"), program(usr, "python3")) {
        (None, Some(python3)) => symlink(python3, layer.join("local/bin/python")).at("linking python"),
        _ => Ok(()),
    }
}

pub(crate) fn own_sudo(bin: &Path, sudo: &Path) -> Result<(), Step> {
    let target = bin.join("sudo");
    fs::copy(sudo, &target).at(format!("copying {}", sudo.display()))?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o4755)).at("making sudo a setuid program")
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
    white_out_whole(&target)
}

/// Hides what has this path in the layers below.
pub(crate) fn white_out_whole(target: &Path) -> Result<(), Step> {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        target,
        FileType::CharacterDevice,
        Mode::empty(),
        0,
    )
    .at(format!("hiding {}", target.display()))
}

pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), Step> {
    fs::create_dir_all(path).at(format!("making {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).at(format!("opening {}", path.display()))
}

pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), Step> {
    fs::write(path, text).at(format!("writing {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).at(format!("opening {}", path.display()))
}

pub(crate) fn own(path: &Path, user: u32) -> Result<(), Step> {
    std::os::unix::fs::chown(path, Some(user), Some(user)).at(format!("giving away {}", path.display()))
}

/// Copies a file or a tree that is there, but nothing in it that others may not read, nor what lies below a directory that
/// they may not enter.
fn copy(from: &Path, to: &Path) -> Result<(), Step> {
    if fs::symlink_metadata(from).is_err() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).at(format!("making {}", parent.display()))?;
    }
    let run = |command: &mut Command| linux::program::run(command).at(format!("copying {}", from.display()));
    run(Command::new("cp")
        .args(["-a", "--reflink=auto", "--"])
        .arg(from)
        .arg(to))?;
    run(Command::new("find")
        .arg(to)
        .args(["-not", "-type", "l", "("])
        .args(["-not", "-perm", "-o=r"])
        .args(["-o", "-type", "d", "-not", "-perm", "-o=x"])
        .args([")", "-prune", "-exec", "rm", "-rf", "--", "{}", "+"]))
}

#[cfg(test)]
mod tests;
