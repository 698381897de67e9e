//! What the calls do to directories and entries.
use std::fs;
use std::io;

use connectrpc::ConnectError;
use wire::envd::filesystem as proto;

use super::entry::{self, Names};
use crate::paths::{make_dirs, make_parents};
use crate::users::User;

/// Entries of one listing: each takes half a kilobyte here and in the answer.
const LISTED_MAX: usize = 100_000;

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
    let found = fs::metadata(path).map_err(|error| match error.kind() {
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
    let mut names = Names::default();
    // Directories that are being read, outermost first, each with what is left of it, last name first.
    let mut open = vec![sorted(path)?];
    while let Some(level) = open.last_mut() {
        let Some(entry) = level.pop() else {
            open.pop();
            continue;
        };
        // What has gone since it was listed is not listed.
        let Ok(entry) = entry::look(&entry, &mut names) else {
            continue;
        };
        let is_dir = entry.permissions.starts_with('d');
        if is_dir
            && open.len() < depth.max(1) as usize
            && let Ok(level) = sorted(&entry.path)
        {
            open.push(level);
        }
        listed.push(entry);
        if listed.len() > LISTED_MAX {
            return Err(ConnectError::resource_exhausted(format!(
                "more than {LISTED_MAX} entries below '{path}'"
            )));
        }
    }
    Ok(listed)
}

/// The paths in a directory, last name first.
fn sorted(dir: &str) -> Result<Vec<String>, ConnectError> {
    let failed = |error| ConnectError::internal(format!("error reading directory '{dir}': {error}"));
    let prefix = dir.trim_end_matches('/');
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        paths.push(format!("{prefix}/{}", name.to_string_lossy()));
        if paths.len() > LISTED_MAX {
            return Err(ConnectError::resource_exhausted(format!(
                "more than {LISTED_MAX} entries in '{dir}'"
            )));
        }
    }
    paths.sort_unstable_by(|a, b| b.cmp(a));
    Ok(paths)
}

pub(super) fn make(path: &str, user: &User) -> Result<proto::EntryInfo, ConnectError> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(ConnectError::already_exists(format!(
                "directory already exists: {path}"
            )));
        }
        Ok(_) => {
            return Err(ConnectError::invalid_argument(format!(
                "path already exists but it is not a directory: {path}"
            )));
        }
        Err(_) => {}
    }
    let trimmed = if path.trim_end_matches('/').is_empty() {
        "/"
    } else {
        path.trim_end_matches('/')
    };
    make_dirs(trimmed, user).map_err(|error| changed("creating directory", path, &error))?;
    stat(path)
}

pub(super) fn rename(source: &str, destination: &str, user: &User) -> Result<proto::EntryInfo, ConnectError> {
    if let Err(error) = fs::symlink_metadata(source)
        && error.kind() == io::ErrorKind::NotFound
    {
        return Err(ConnectError::not_found(format!(
            "source file not found: {source}"
        )));
    }
    make_parents(destination, user)
        .map_err(|error| changed("creating the parents of", destination, &error))?;
    fs::rename(source, destination).map_err(|error| changed("renaming", source, &error))?;
    stat(destination)
}

/// Removes what is there, with all that is in it. What is not there needs no removing.
pub(super) fn remove(path: &str) -> Result<(), ConnectError> {
    if path.trim_end_matches('/').is_empty() {
        return Err(ConnectError::invalid_argument(
            "the root directory cannot be removed",
        ));
    }
    let outcome = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
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
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ConnectError::resource_exhausted(
            format!("error {doing} '{path}': not enough disk space available"),
        ),
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
