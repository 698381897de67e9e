//! A whole root for machines that have a disk of their own: those of this machine's packages that clients expect, and what
//! they need; or all of `/usr`, where there are no packages that we know of.
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ports::step::{At, Step};

use crate::host::{DIRECTORIES_OF_PROGRAMS, WANTED, furnish, names, program};
use crate::packages::{INFO, Packages, STATUS, owners};
use crate::tree::{dress, put};

/// What nobody misses who works with a machine by program: manuals, and messages in other languages.
const LEFT_OUT: [&str; 4] = [
    "usr/share/man/",
    "usr/share/info/",
    "usr/share/locale/",
    "usr/share/doc/",
];
/// Of the last of them this stays, as its licences ask.
const COPYRIGHT: &str = "copyright";
/// A package without which programs trust nobody.
const CERTIFICATES: &str = "ca-certificates";

/// Makes the root in the directory `root`, of links to this machine's own files where the file system lets us: it is to be
/// read, and not to be written to.
///
/// # Errors
/// It cannot be written, or `/usr` of this machine is not merged.
pub fn lean_host(root: &Path) -> Result<(), Step> {
    furnish(root)?;
    lean(Path::new("/"), root)?;
    for lib in ["usr/lib", "usr/local/lib"] {
        for python in names(&root.join(lib), |name| name.starts_with("python3")) {
            let mark = root.join(lib).join(python).join("EXTERNALLY-MANAGED");
            remove(&mark).at(format!("removing {}", mark.display()))?;
        }
    }
    let local = root.join("usr/local/bin");
    fs::create_dir_all(&local).at(format!("making {}", local.display()))?;
    let usr = root.join("usr");
    match (program(&usr, "python"), program(&usr, "python3")) {
        (None, Some(python3)) => {
            std::os::unix::fs::symlink(python3, local.join("python")).at("linking python")
        }
        _ => Ok(()),
    }
}

/// Fills `/usr` of `root` from that of the machine whose root is `host`.
fn lean(host: &Path, root: &Path) -> Result<(), Step> {
    let status = host.join(STATUS);
    let status = match fs::read_to_string(&status) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return whole(&host.join("usr"), &root.join("usr"));
        }
        read => read.at(format!("reading {}", status.display()))?,
    };
    let packages = Packages::parse(&status);
    let programs: BTreeSet<PathBuf> = WANTED
        .iter()
        .flat_map(|name| DIRECTORIES_OF_PROGRAMS.map(|dir| Path::new("usr").join(dir).join(name)))
        .collect();
    let wanted = owners(host, &programs).at("looking for the packages that are wanted")?;
    let chosen = packages.needed(|name| wanted.contains(name) || name == CERTIFICATES);
    let files = chosen.files(host).at("reading the lists of packages")?;
    for path in files.iter().filter(|path| is_taken(path)) {
        take(&host.join(path), &root.join(path))?;
        let compiled = Path::new("__pycache__");
        if path.extension().is_some_and(|end| end == "py") {
            // Of no list: what was compiled of it when it was installed, so that it need not be once more.
            let dir = path.parent().unwrap_or(path).join(compiled);
            if !root.join(&dir).exists() {
                whole(&host.join(&dir), &root.join(&dir))?;
            }
        }
    }
    alternatives(host, root)?;
    let step = || "telling dpkg which packages there are";
    if root.join(STATUS).exists() {
        fs::write(root.join(STATUS), chosen.status()).at(step())?;
    }
    for name in names(&root.join(INFO), |name| !chosen.has_info(name)) {
        fs::remove_file(root.join(INFO).join(name)).at(step())?;
    }
    Ok(())
}

fn is_taken(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let is_left_out = LEFT_OUT.iter().any(|left| text.starts_with(left));
    let leads_out = path
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    !leads_out && (!is_left_out || path.file_name().is_some_and(|name| name == COPYRIGHT))
}

/// Programs that are links into `/etc/alternatives`, which are of no package, and lead to what is there.
fn alternatives(host: &Path, root: &Path) -> Result<(), Step> {
    for dir in ["usr/bin", "usr/sbin"] {
        for name in names(&host.join(dir), |_| true) {
            let path = Path::new(dir).join(&name);
            let Ok(through) = fs::read_link(host.join(&path)) else {
                continue;
            };
            let Ok(through) = through.strip_prefix("/etc/alternatives") else {
                continue;
            };
            let target = fs::read_link(host.join("etc/alternatives").join(through));
            let is_there = target
                .ok()
                .and_then(|target| Some(root.join(target.strip_prefix("/").ok()?)))
                .is_some_and(|target| fs::symlink_metadata(target).is_ok());
            if is_there {
                take(&host.join(&path), &root.join(&path))?;
            }
        }
    }
    Ok(())
}

/// Takes a tree.
fn whole(from: &Path, to: &Path) -> Result<(), Step> {
    let mut open = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = open.pop() {
        if !take(&from, &to)? {
            continue;
        }
        for entry in fs::read_dir(&from).into_iter().flatten().flatten() {
            open.push((entry.path(), to.join(entry.file_name())));
        }
    }
    Ok(())
}

/// Takes one thing, unless others may not read it, or it is there; whether it is a directory that was taken.
fn take(from: &Path, to: &Path) -> Result<bool, Step> {
    let step = || format!("copying {}", from.display());
    let about = match fs::symlink_metadata(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        about => about.at(step())?,
    };
    let kind = about.file_type();
    // A program that others may run and not read is all that they need.
    let is_private = !kind.is_symlink() && about.mode() & 0o005 == 0;
    if is_private || !(kind.is_dir() || kind.is_file() || kind.is_symlink()) {
        return Ok(false);
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).at(step())?;
    }
    if kind.is_dir() {
        if !to.is_dir() {
            fs::create_dir(to).at(step())?;
        }
        dress(to, &about).at(step())?;
        return Ok(true);
    }
    match put(from, to, &about) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        put => put.at(step()).map(|()| false),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn machine(with_packages: bool) -> tempfile::TempDir {
        let host = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = host.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for path in [
            "usr/bin/mawk",
            "usr/bin/llvm",
            "usr/share/doc/mawk/README",
            "usr/share/doc/mawk/copyright",
        ] {
            write(path, path);
        }
        write("usr/lib/python3/m.py", "1");
        write("usr/lib/python3/__pycache__/m.pyc", "1");
        write("usr/lib/secret", "1");
        fs::set_permissions(
            host.path().join("usr/lib/secret"),
            fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        fs::create_dir_all(host.path().join("etc/alternatives")).unwrap();
        for (name, leads_to) in [("awk", "/usr/bin/mawk"), ("cc", "/usr/bin/gcc")] {
            std::os::unix::fs::symlink(leads_to, host.path().join("etc/alternatives").join(name)).unwrap();
            let through = Path::new("/etc/alternatives").join(name);
            std::os::unix::fs::symlink(through, host.path().join("usr/bin").join(name)).unwrap();
        }
        if with_packages {
            let status = "Package: mawk\nEssential: yes\nStatus: install ok installed\n\nPackage: llvm\nStatus: install ok installed\n";
            write(STATUS, status);
            let list = "/usr\n/usr/bin\n/usr/bin/mawk\n/usr/lib/secret\n/usr/lib/python3/m.py\n/usr/share/doc/mawk/README\n/usr/share/doc/mawk/copyright\n/usr/../etc/shadow\n";
            write(&format!("{INFO}/mawk.list"), list);
            write(&format!("{INFO}/llvm.list"), "/usr/bin/llvm\n");
        }
        host
    }

    fn files(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut open = vec![root.to_owned()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    open.push(entry.path());
                } else {
                    found.push(entry.path().strip_prefix(root).unwrap().display().to_string());
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn a_root_has_what_is_needed_and_nothing_that_others_may_not_read() {
        let (host, root) = (machine(true), tempfile::tempdir().unwrap());
        lean(host.path(), root.path()).unwrap();
        let expected = [
            "usr/bin/awk",
            "usr/bin/mawk",
            "usr/lib/python3/__pycache__/m.pyc",
            "usr/lib/python3/m.py",
            "usr/share/doc/mawk/copyright",
        ];
        assert_eq!(files(root.path()), expected);
    }

    #[test]
    fn without_packages_it_is_the_whole_of_usr() {
        let (host, root) = (machine(false), tempfile::tempdir().unwrap());
        lean(host.path(), root.path()).unwrap();
        let found = files(root.path());
        assert!(found.contains(&"usr/bin/llvm".to_owned()) && !found.contains(&"usr/lib/secret".to_owned()));
    }
}
