//! What a client's path means (contract 5.1), and the directories that it needs.
use std::borrow::Cow;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};
use rustix::io::Errno;

use crate::users::User;

/// Turns a client's path into an absolute one: empty is the default directory, `~` the user's home, a relative one
/// lies below the home. It is not cleaned: the kernel resolves it.
pub(crate) fn expand(path: &str, user: &User, default: Option<&str>) -> Result<String, String> {
    if path.contains('\0') {
        return Err("path contains a NUL byte".to_owned());
    }
    if path.is_empty() {
        return Ok(default.map_or_else(|| user.home.clone(), str::to_owned));
    }
    if path == "~" {
        return Ok(user.home.clone());
    }
    if let Some(rest) = path.strip_prefix("~/") {
        return Ok(join(&user.home, rest));
    }
    if path.starts_with('~') {
        return Err("cannot expand user-specific home dir".to_owned());
    }
    if path.starts_with('/') {
        Ok(path.to_owned())
    } else {
        Ok(join(&user.home, path))
    }
}

/// One path below another, with the dots of the lower one resolved by text, as clients expect to see it again.
pub(crate) fn join(base: &str, rest: &str) -> String {
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in rest.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The same place by a way that is open to us. The kernel may refuse root to follow a user's link in a directory of
/// everybody's (`fs.protected_symlinks`), but it lets everybody read where the link leads.
pub(crate) fn passable(path: &str) -> Cow<'_, str> {
    match rustix::fs::stat(path) {
        Err(Errno::ACCESS) => real(path).map_or(Cow::Borrowed(path), Cow::Owned),
        _ => Cow::Borrowed(path),
    }
}

/// [`passable`] for what lies at a path itself: its last part may be a link, and stays one.
pub(crate) fn passable_entry(path: &str) -> Cow<'_, str> {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rfind('/') {
        None | Some(0) => Cow::Borrowed(path),
        Some(slash) => match passable(&path[..slash]) {
            Cow::Borrowed(_) => Cow::Borrowed(path),
            Cow::Owned(parent) => Cow::Owned(format!("{parent}{}", &path[slash..])),
        },
    }
}

/// Where a path leads, found by reading the links on its way. What is missing at its end stays as it is.
pub(crate) fn real(path: &str) -> io::Result<String> {
    /// As many as the kernel follows.
    const LINKS_MAX: usize = 40;
    let mut links = 0;
    let mut missing = Vec::new();
    let mut place = PathBuf::from(path);
    loop {
        match fs::canonicalize(&place) {
            Ok(real) => {
                place = real;
                break;
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(error) => {
                let (Some(parent), Some(name)) = (place.parent(), place.file_name()) else {
                    return Err(error);
                };
                match fs::read_link(&place) {
                    Ok(_) if links == LINKS_MAX => return Err(Errno::LOOP.into()),
                    Ok(target) => {
                        links += 1;
                        place = parent.join(target);
                    }
                    Err(_) => {
                        missing.push(name.to_owned());
                        place = parent.to_owned();
                    }
                }
            }
        }
    }
    place.extend(missing.into_iter().rev());
    let text = place.into_os_string().into_string();
    text.map_err(|_| io::ErrorKind::InvalidFilename.into())
}

/// Makes the directories above a path, as the user's.
pub(crate) fn make_parents(path: &str, user: &User) -> io::Result<()> {
    match path.trim_end_matches('/').rsplit_once('/') {
        None | Some(("", _)) => Ok(()),
        Some((parent, _)) => make_dirs(parent, user),
    }
}

/// Makes a directory and those above it, as far as they are missing, as the user's.
pub(crate) fn make_dirs(path: &str, user: &User) -> io::Result<()> {
    // Paths are as deep as somebody likes, and a stack is not.
    let mut missing = Vec::new();
    let mut place = path;
    loop {
        match rustix::fs::stat(place) {
            Ok(found) if FileType::from_raw_mode(found.st_mode).is_dir() => break,
            Ok(_) => return Err(Errno::NOTDIR.into()),
            Err(Errno::NOENT) => {}
            Err(Errno::ACCESS) => {
                let real = real(place)?;
                if real == place {
                    return Err(Errno::ACCESS.into());
                }
                make_dirs(&real, user)?;
                break;
            }
            Err(error) => return Err(error.into()),
        }
        missing.push(place);
        match place.trim_end_matches('/').rsplit_once('/') {
            None | Some(("", _)) => break,
            Some((parent, _)) => place = parent,
        }
    }
    missing
        .into_iter()
        .rev()
        .try_for_each(|place| make_dir(place, user))
}

fn make_dir(path: &str, user: &User) -> io::Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) if is_root() => Ok(rustix::fs::chownat(
            CWD,
            path,
            uid(user),
            gid(user),
            AtFlags::SYMLINK_NOFOLLOW,
        )?),
        Ok(()) => Ok(()),
        // Somebody else was faster; or it is a link that leads nowhere.
        Err(Errno::EXIST) => match rustix::fs::stat(path) {
            Ok(found) if FileType::from_raw_mode(found.st_mode).is_dir() => Ok(()),
            _ => Err(Errno::EXIST.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// Gives a file to the user, where we may.
pub(crate) fn own(file: impl AsFd, user: &User) -> io::Result<()> {
    if is_root() {
        rustix::fs::fchown(file, uid(user), gid(user))?;
    }
    Ok(())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn uid(user: &User) -> Option<Uid> {
    Some(Uid::from_raw(user.uid))
}

fn gid(user: &User) -> Option<Gid> {
    Some(Gid::from_raw(user.gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expanded: &str) {
        let user = User {
            name: "user".into(),
            uid: 1000,
            gid: 1000,
            home: "/home/user".into(),
        };
        assert_eq!(expand(path, &user, Some("/work")).as_deref(), Ok(expanded));
    }

    #[test]
    fn paths_are_the_users() {
        check("", "/work");
        check("~", "/home/user");
        check("~/a", "/home/user/a");
        check("a/b", "/home/user/a/b");
        check("./a/../b", "/home/user/b");
        check("/etc//x/", "/etc//x/");
    }

    #[test]
    fn links_are_read_and_what_is_missing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        let at = |name: &str| format!("{}/{name}", base.display());
        fs::create_dir(at("dir")).unwrap();
        std::os::unix::fs::symlink("dir", at("link")).unwrap();
        std::os::unix::fs::symlink("dir/gone", at("nowhere")).unwrap();
        std::os::unix::fs::symlink("round", at("round")).unwrap();
        assert_eq!(real(&at("link")).unwrap(), at("dir"));
        assert_eq!(real(&at("link/new/er")).unwrap(), at("dir/new/er"));
        assert_eq!(real(&at("nowhere")).unwrap(), at("dir/gone"));
        assert!(real(&at("round")).is_err());
        assert_eq!(real("/").unwrap(), "/");
    }

    #[test]
    fn a_directory_is_made_however_deep_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let user = User::of_uid(rustix::process::geteuid().as_raw()).unwrap();
        let base = dir.path().to_str().unwrap();
        let deep = format!("{base}{}", "/d".repeat(2000));
        let made = std::thread::Builder::new()
            .stack_size(128 * 1024)
            .spawn(move || make_dirs(&deep, &user).map(|()| fs::metadata(deep).unwrap().is_dir()));
        assert!(made.unwrap().join().unwrap().unwrap());
        let user = User::of_uid(rustix::process::geteuid().as_raw()).unwrap();
        make_dirs(&format!("{base}/a//b/"), &user).unwrap();
        assert!(fs::metadata(format!("{base}/a/b")).unwrap().is_dir());
        // What is made for the test is removed from the inside: it is too deep to be removed from the outside.
        let mut inner = dir.path().join("d");
        let mut moved = 0;
        while inner.join("d").is_dir() {
            let next = dir.path().join(format!("m{moved}"));
            fs::rename(inner.join("d"), &next).unwrap();
            fs::remove_dir(&inner).unwrap();
            (inner, moved) = (next, moved + 1);
        }
        assert_eq!(moved, 1999);
    }

    #[test]
    fn another_users_home_is_not_expanded() {
        let user = User {
            name: "user".into(),
            uid: 1000,
            gid: 1000,
            home: "/home/user".into(),
        };
        assert!(expand("~root/x", &user, None).is_err());
        assert!(expand("a\0b", &user, None).is_err());
    }
}
