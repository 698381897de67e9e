//! Where a sandbox may have volumes.
use std::fmt;

use model::VolumeMount;

/// Volumes of one machine.
const VOLUMES_MAX: usize = 32;
/// A path of more bytes is not asked for in earnest.
const PATH_BYTES_MAX: usize = 1024;

/// Why a machine is not given its volumes, told to whoever chose the places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadMount {
    /// More than a machine has.
    TooMany,
    /// Two at the same path.
    Twice(String),
    /// Nothing can be mounted there.
    Path {
        /// Where.
        path: String,
        /// In words.
        why: &'static str,
    },
}

impl fmt::Display for BadMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => write!(f, "more than {VOLUMES_MAX} volumes for one sandbox"),
            Self::Twice(path) => write!(f, "two volumes at {path}"),
            Self::Path { path, why } => write!(f, "a volume at {path}: {why}"),
        }
    }
}

impl std::error::Error for BadMount {}

/// The mounts in the order in which they are made: those that lie within others after them.
///
/// # Errors
/// See [`BadMount`]: what the paths themselves say.
pub fn checked(mounts: &[VolumeMount]) -> Result<Vec<&VolumeMount>, BadMount> {
    if mounts.len() > VOLUMES_MAX {
        return Err(BadMount::TooMany);
    }
    let mut sorted: Vec<&VolumeMount> = mounts.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0].path == pair[1].path) {
        return Err(BadMount::Twice(twice[0].path.clone()));
    }
    for mount in &sorted {
        is_free(&mount.path).map_err(|why| BadMount::Path {
            path: mount.path.clone(),
            why,
        })?;
    }
    Ok(sorted)
}

/// Whether a volume may be attached at a path, as far as the path says it.
fn is_free(path: &str) -> Result<(), &'static str> {
    let Some(below) = path.strip_prefix('/') else {
        return Err("the path is not absolute");
    };
    if below.is_empty() {
        return Err("the root is the sandbox's own");
    }
    if path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err("the path is too long, or holds a zero byte");
    }
    let names: Vec<&str> = below.split('/').collect();
    if names
        .iter()
        .any(|name| matches!(*name, "" | "." | "..") || name.len() > 255)
    {
        return Err("the path is not clean");
    }
    match names.as_slice() {
        ["proc" | "sys" | "dev", ..] => Err("the kernel's own files are there"),
        ["run"] | ["run", "atoll", ..] => Err("Atoll's own files are there"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_go_where_they_cover_nothing_that_the_sandbox_runs_by() {
        for path in [
            "/data",
            "/mnt/a/b",
            "/home/user/x",
            "/run/x",
            "/procs",
            "/usr/local/share/x",
        ] {
            assert_eq!(is_free(path), Ok(()), "{path}");
        }
        for path in [
            "",
            "data",
            "/",
            "//",
            "/a/",
            "/a//b",
            "/a/../b",
            "/./a",
            "/proc",
            "/proc/sys",
            "/sys",
            "/dev/shm",
            "/run",
            "/run/atoll",
            "/run/atoll/agent",
            "/a\0b",
        ] {
            assert!(is_free(path).is_err(), "{path}");
        }
    }
}
