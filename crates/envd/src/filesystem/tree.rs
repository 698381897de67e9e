//! What the calls do to directories and entries.
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use connectrpc::ConnectError;
use wire::envd::filesystem as proto;

use super::entry::{self, Names};
use crate::paths::{make_dirs, make_parents, passable, passable_entry};
use crate::users::User;

/// Entries of one listing: each takes half a kilobyte here and in the answer.
const LISTED_MAX: usize = 100_000;
/// What they may take altogether: a name may be short and its path long.
const LISTED_BYTES_MAX: usize = 67_108_864;

pub(super) fn stat(path: &str) -> Result<proto::EntryInfo, ConnectError> {
    entry::look(path, &mut Names::default()).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            ConnectError::not_found(format!("file not found: {path}"))
        }
        _ => other("getting file info of", path, &error),
    })
}

/// Lists what lies below a directory, as deep as asked, in the order of names. The directory may be a link; links
/// below it are not followed.
pub(super) fn list(path: &str, depth: u32) -> Result<Vec<proto::EntryInfo>, ConnectError> {
    let place = passable(path);
    let found = fs::metadata(&*place).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            ConnectError::not_found(format!("path not found: {path}"))
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            ConnectError::failed_precondition(format!(
                "cyclic symlink or chain of more than 40 links at '{path}'"
            ))
        }
        _ => other("getting path info of", path, &error),
    })?;
    if !found.is_dir() {
        return Err(ConnectError::invalid_argument(format!(
            "path is not a directory: {path}"
        )));
    }
    let mut listed = Vec::new();
    let mut listed_bytes = 0;
    let mut names = Names::default();
    // Directories that are being read, outermost first.
    let mut open = vec![Level::read(Path::new(&*place).to_owned(), path)?];
    while let Some(level) = open.last_mut() {
        let Some((place, path)) = level.next() else {
            open.pop();
            continue;
        };
        // What has gone since it was listed is not listed.
        let Ok(entry) = entry::look_at(&place, &path, &mut names) else {
            continue;
        };
        let is_dir = entry.permissions.starts_with('d');
        if is_dir
            && open.len() < depth.max(1) as usize
            && let Ok(level) = Level::read(place, &path)
        {
            open.push(level);
        }
        listed_bytes += entry::weight(&entry);
        listed.push(entry);
        let waiting: usize = open.iter().map(|level| level.names.len()).sum();
        if listed.len() + waiting > LISTED_MAX || listed_bytes > LISTED_BYTES_MAX {
            return Err(too_many(&open[0].path));
        }
    }
    Ok(listed)
}

/// A directory that is being listed.
struct Level {
    place: PathBuf,
    /// As the client knows it.
    path: String,
    /// What is left of it, last name first.
    names: Vec<OsString>,
}

impl Level {
    fn read(place: PathBuf, path: &str) -> Result<Self, ConnectError> {
        let failed = |error| ConnectError::internal(format!("error reading directory '{path}': {error}"));
        let mut names = Vec::new();
        for entry in fs::read_dir(&place).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name());
            if names.len() > LISTED_MAX {
                return Err(too_many(path));
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Self {
            place,
            path: path.trim_end_matches('/').to_owned(),
            names,
        })
    }

    /// The next entry: where it is, and how the client knows it. A name that is no text is told as nearly as can be.
    fn next(&mut self) -> Option<(PathBuf, String)> {
        let name = self.names.pop()?;
        let path = format!("{}/{}", self.path, name.to_string_lossy());
        Some((self.place.join(name), path))
    }
}

fn too_many(path: &str) -> ConnectError {
    ConnectError::resource_exhausted(format!(
        "more than {LISTED_MAX} entries, or {LISTED_BYTES_MAX} bytes of them, below '{path}'"
    ))
}

pub(super) fn make(path: &str, user: &User) -> Result<proto::EntryInfo, ConnectError> {
    let occupied =
        || ConnectError::invalid_argument(format!("path already exists but it is not a directory: {path}"));
    match fs::metadata(&*passable(path)) {
        Ok(found) if found.is_dir() => {
            return Err(ConnectError::already_exists(format!(
                "directory already exists: {path}"
            )));
        }
        Ok(_) => return Err(occupied()),
        Err(_) => {}
    }
    let trimmed = if path.trim_end_matches('/').is_empty() {
        "/"
    } else {
        path.trim_end_matches('/')
    };
    // A link that leads nowhere is there as well.
    let leads_nowhere = || rustix::fs::stat(trimmed).err() == Some(rustix::io::Errno::NOENT);
    if rustix::fs::lstat(trimmed).is_ok() && leads_nowhere() {
        return Err(occupied());
    }
    make_dirs(trimmed, user).map_err(|error| changed("creating directory", path, &error))?;
    stat(path)
}

pub(super) fn rename(source: &str, destination: &str, user: &User) -> Result<proto::EntryInfo, ConnectError> {
    let from = passable_entry(source);
    if let Err(error) = fs::symlink_metadata(&*from)
        && error.kind() == io::ErrorKind::NotFound
    {
        return Err(ConnectError::not_found(format!(
            "source file not found: {source}"
        )));
    }
    make_parents(destination, user)
        .map_err(|error| changed("creating the parents of", destination, &error))?;
    fs::rename(&*from, &*passable_entry(destination)).map_err(|error| changed("renaming", source, &error))?;
    stat(destination)
}

/// Removes what is there, with all that is in it. What is not there needs no removing.
pub(super) fn remove(path: &str) -> Result<(), ConnectError> {
    if path.trim_end_matches('/').is_empty() {
        return Err(ConnectError::invalid_argument(
            "the root directory cannot be removed",
        ));
    }
    let place = passable_entry(path);
    let outcome = match fs::symlink_metadata(&*place) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(&*place),
        Ok(_) => fs::remove_file(&*place),
        Err(error) => Err(error),
    };
    match outcome {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Err(changed("removing", path, &error))
        }
        _ => Ok(()),
    }
}

fn changed(doing: &str, path: &str, error: &io::Error) -> ConnectError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ConnectError::internal(format!("error {doing} '{path}': not enough disk space available"))
        }
        _ => other(doing, path, error),
    }
}

/// A failure that no rule of a call speaks of: ours, unless nothing can have such a name.
pub(super) fn other(doing: &str, path: &str, error: &io::Error) -> ConnectError {
    let why = format!("error {doing} '{path}': {error}");
    match error.kind() {
        io::ErrorKind::InvalidFilename | io::ErrorKind::InvalidInput => ConnectError::invalid_argument(why),
        _ => ConnectError::internal(why),
    }
}

#[cfg(test)]
mod tests {
    use connectrpc::ErrorCode;

    use super::*;

    fn tree() -> (tempfile::TempDir, impl Fn(&str) -> String) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap().to_owned();
        (dir, move |name: &str| format!("{root}/{name}"))
    }

    fn root() -> User {
        User::of_uid(0).unwrap()
    }

    #[test]
    fn a_listing_is_in_the_order_of_names_and_as_deep_as_asked() {
        let (_dir, at) = tree();
        fs::create_dir_all(at("a/b/c")).unwrap();
        fs::write(at("a/z"), "").unwrap();
        fs::write(at("b"), "").unwrap();
        std::os::unix::fs::symlink("a", at("link")).unwrap();
        let paths = |from: &str, depth| {
            let listed = list(&at(from), depth).unwrap();
            listed.into_iter().map(|entry| entry.path).collect::<Vec<_>>()
        };
        assert_eq!(paths(".", 0), ["./a", "./b", "./link"].map(&at));
        assert_eq!(paths("link", 2), ["link/b", "link/b/c", "link/z"].map(&at));
        assert_eq!(
            paths(".", 9),
            ["./a", "./a/b", "./a/b/c", "./a/z", "./b", "./link"].map(&at)
        );
    }

    #[test]
    fn names_that_are_no_text_are_listed_with_what_is_below_them() {
        use std::os::unix::ffi::OsStrExt as _;
        let (dir, at) = tree();
        let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"odd\xff"));
        fs::create_dir(&odd).unwrap();
        fs::write(odd.join("below"), "").unwrap();
        let listed = list(&at(""), 2).unwrap();
        let paths: Vec<_> = listed.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, [at("odd\u{fffd}"), at("odd\u{fffd}/below")]);
    }

    #[test]
    fn a_users_link_in_a_directory_of_everybodys_leads_root_as_well() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_dir, at) = tree();
        fs::create_dir(at("tmp")).unwrap();
        fs::set_permissions(at("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::create_dir(at("work")).unwrap();
        fs::write(at("work/file"), "").unwrap();
        std::os::unix::fs::symlink(at("work"), at("tmp/link")).unwrap();
        std::os::unix::fs::lchown(at("tmp/link"), Some(1000), Some(1000)).unwrap();
        let listed = list(&at("tmp/link"), 1).unwrap();
        assert_eq!(listed[0].path, at("tmp/link/file"));
        assert_eq!(stat(&at("tmp/link/file")).unwrap().path, at("tmp/link/file"));
        assert_eq!(
            make(&at("tmp/link"), &root()).unwrap_err().code,
            ErrorCode::AlreadyExists
        );
        make(&at("tmp/link/new/er"), &root()).unwrap();
        assert!(fs::exists(at("work/new/er")).unwrap());
        rename(&at("tmp/link/file"), &at("tmp/link/new/file"), &root()).unwrap();
        remove(&at("tmp/link/new")).unwrap();
        assert!(!fs::exists(at("work/new")).unwrap());
    }

    #[test]
    fn what_cannot_be_listed_says_why() {
        let (_dir, at) = tree();
        fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        let code = |name: &str| list(&at(name), 1).unwrap_err().code;
        assert_eq!(code("missing"), ErrorCode::NotFound);
        assert_eq!(code("file"), ErrorCode::InvalidArgument);
        assert_eq!(code("loop"), ErrorCode::FailedPrecondition);
    }

    #[test]
    fn directories_are_made_once() {
        let (_dir, at) = tree();
        fs::write(at("file"), "").unwrap();
        assert_eq!(make(&at("x/y/"), &root()).unwrap().permissions, "drwxr-xr-x");
        assert_eq!(
            make(&at("x/y"), &root()).unwrap_err().code,
            ErrorCode::AlreadyExists
        );
        assert_eq!(
            make(&at("file"), &root()).unwrap_err().code,
            ErrorCode::InvalidArgument
        );
        assert_eq!(
            make(&at("file/x"), &root()).unwrap_err().code,
            ErrorCode::Internal
        );
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        assert_eq!(
            make(&at("dangling"), &root()).unwrap_err().code,
            ErrorCode::InvalidArgument
        );
        assert!(make(&at("dangling/x"), &root()).is_err());
    }

    #[test]
    fn a_move_makes_parents_and_replaces_files() {
        let (_dir, at) = tree();
        fs::write(at("file"), "new").unwrap();
        fs::write(at("old"), "old").unwrap();
        rename(&at("file"), &at("old"), &root()).unwrap();
        let moved = rename(&at("old"), &at("deep/er/file"), &root()).unwrap();
        assert_eq!(moved.path, at("deep/er/file"));
        assert_eq!(fs::read_to_string(at("deep/er/file")).unwrap(), "new");
        assert_eq!(
            rename(&at("gone"), &at("x"), &root()).unwrap_err().code,
            ErrorCode::NotFound
        );
    }

    #[test]
    fn what_is_not_there_needs_no_removing() {
        let (_dir, at) = tree();
        fs::create_dir_all(at("a/b")).unwrap();
        remove(&at("a")).unwrap();
        remove(&at("a")).unwrap();
        assert!(!fs::exists(at("a")).unwrap());
        assert_eq!(remove("//").unwrap_err().code, ErrorCode::InvalidArgument);
    }
}
