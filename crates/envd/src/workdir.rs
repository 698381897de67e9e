//! WORKDIR steps of a build (contract 4.2).
use std::io;

use wire::host_calls::{EnterWorkdir, Entered};

use crate::access::Refusal;
use crate::paths::{join, make_dirs};
use crate::users::User;

/// No path is longer (`PATH_MAX`).
const PATH_BYTES_MAX: usize = 4095;

/// Makes a directory, where it is missing, as the user's. Blocks.
pub(crate) fn enter(step: &EnterWorkdir) -> Result<Entered, Refusal> {
    let path = resolve(&step.path, step.previous.as_deref()).map_err(Refusal::bad)?;
    let user = User::find(&step.user)
        .ok_or_else(|| Refusal::bad(format!("the user '{}' of the build does not exist", step.user)))?;
    match make_dirs(&path, &user) {
        Ok(()) => Ok(Entered { path }),
        Err(error) => Err(refusal(&path, &error)),
    }
}

/// What a shell's `cd` and `pwd` would say: dots are resolved by text, links stay.
fn resolve(path: &str, previous: Option<&str>) -> Result<String, String> {
    if path.is_empty() || path.contains('\0') {
        return Err("WORKDIR needs a path".to_owned());
    }
    let base = if path.starts_with('/') {
        "/"
    } else {
        previous.unwrap_or("/")
    };
    let resolved = join("/", &join(base, path));
    if resolved.len() > PATH_BYTES_MAX {
        return Err(format!(
            "the path of WORKDIR is longer than {PATH_BYTES_MAX} bytes"
        ));
    }
    Ok(resolved)
}

fn refusal(path: &str, error: &io::Error) -> Refusal {
    use http::StatusCode;
    use io::ErrorKind as K;
    let (status, why) = match error.kind() {
        K::StorageFull | K::QuotaExceeded => (
            StatusCode::INSUFFICIENT_STORAGE,
            "the disk of the sandbox is full".to_owned(),
        ),
        K::NotADirectory | K::AlreadyExists => (
            StatusCode::BAD_REQUEST,
            "something that is no directory is in its way".to_owned(),
        ),
        K::PermissionDenied | K::ReadOnlyFilesystem | K::InvalidFilename | K::NotFound => {
            (StatusCode::BAD_REQUEST, error.to_string())
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            (StatusCode::BAD_REQUEST, error.to_string())
        }
        _ => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    Refusal::new(
        status,
        format!("the directory '{path}' of WORKDIR cannot be made: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_lies_below_the_one_before() {
        let check = |path: &str, previous: Option<&str>, resolved: &str| {
            assert_eq!(resolve(path, previous).as_deref(), Ok(resolved), "{path}");
        };
        check("app", None, "/app");
        check("app", Some("/srv/"), "/srv/app");
        check("../app", Some("/srv/a"), "/srv/app");
        check("/app/", Some("/srv"), "/app");
        check("//app/./x/../y", None, "/app/y");
        check("../..", Some("/a"), "/");
        check(".", Some("/a/b"), "/a/b");
        check("~", Some("/a"), "/a/~");
        assert!(resolve("", Some("/a")).is_err());
        assert!(resolve("a\0", None).is_err());
        assert!(resolve(&"a/".repeat(4096), None).is_err());
    }

    #[test]
    fn missing_directories_are_made_and_files_are_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        let enter_at = |path: &str| {
            enter(&EnterWorkdir {
                path: path.to_owned(),
                previous: Some(root.to_owned()),
                user: "root".to_owned(),
            })
        };
        let made = enter_at("a/b/../c").unwrap().path;
        assert_eq!(made, format!("{root}/a/c"));
        assert!(std::fs::metadata(made).unwrap().is_dir());
        std::fs::write(format!("{root}/file"), "").unwrap();
        assert!(enter_at("file").unwrap_err().message().contains("no directory"));
        assert!(enter_at("file/x").unwrap_err().message().contains("no directory"));
        let nobody = EnterWorkdir {
            path: "/x".to_owned(),
            previous: None,
            user: "nobody-has-this-name".to_owned(),
        };
        assert!(
            enter(&nobody)
                .unwrap_err()
                .message()
                .contains("nobody-has-this-name")
        );
    }
}
