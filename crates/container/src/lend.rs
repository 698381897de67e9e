//! Giving a machine the volumes that it was started with.
use std::io;
use std::os::fd::AsFd as _;

use model::VolumeMount;
use ports::RuntimeError;
use rustix::io::Errno;

use crate::house::House;
use crate::slot::Slot;
use crate::step::Step;
use crate::users::{USERS, first_user};
use crate::volumes::OWNER;

/// Volumes of one machine.
const VOLUMES_MAX: usize = 32;
/// A path of more bytes is not asked for in earnest.
const PATH_BYTES_MAX: usize = 1024;

impl House {
    /// Attaches volumes in a machine, those that lie within others after them.
    pub(crate) fn lend_volumes(&self, slot: &Slot, volumes: &[VolumeMount]) -> Result<(), RuntimeError> {
        let unsupported = |what: String| RuntimeError::Unsupported {
            runtime: "container",
            what,
        };
        if volumes.len() > VOLUMES_MAX {
            return Err(unsupported(format!(
                "more than {VOLUMES_MAX} volumes for one sandbox"
            )));
        }
        let mut sorted: Vec<&VolumeMount> = volumes.iter().collect();
        sorted.sort_by(|a, b| a.path.cmp(&b.path));
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(unsupported(format!("two volumes at {}", twice[0].path)));
        }
        for mount in &sorted {
            is_free(&mount.path).map_err(|why| unsupported(format!("a volume at {}: {why}", mount.path)))?;
        }
        let first = first_user(self.instance.number, slot.number);
        // With the host's root among them, who makes what is missing of a place on another volume.
        let (users, _) = self.launcher.users(first, USERS)?;
        for mount in sorted {
            let tree = self.volumes.lend(mount.volume, slot.number, users.as_fd())?;
            self.launcher
                .attach(slot.pidfd.as_fd(), tree.as_fd(), &mount.path, first + OWNER)
                .map_err(|failed| refused(failed, &mount.path))?;
        }
        Ok(())
    }
}

/// What stands in the way in the machine is told to whoever chose the place.
fn refused(failed: Step, path: &str) -> RuntimeError {
    let said = |errno: Errno| {
        failed.source.raw_os_error() == Some(io::Error::from(errno).raw_os_error().unwrap_or(0))
    };
    let why = if said(Errno::LOOP) {
        "a link lies on the way: name what it leads to"
    } else if said(Errno::NOTDIR) {
        "something that is no directory lies on the way"
    } else {
        return failed.into();
    };
    RuntimeError::Unsupported {
        runtime: "container",
        what: format!("a volume at {path}: {why}"),
    }
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
