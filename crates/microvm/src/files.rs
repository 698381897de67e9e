//! Things of one kind, whose names are drawn at random: images of disks, and states of memory. Each is a file, or a directory.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ports::step::{At, Step};
use uuid::Uuid;

const UNPOISONED: &str = "nothing panics while it holds the pins";

/// Where they are.
#[derive(Debug, Clone)]
pub struct Files {
    dir: PathBuf,
    /// Those that are made, or looked at, and are on no record yet or no more.
    pinned: Arc<Mutex<BTreeMap<Uuid, usize>>>,
}

/// While it is held, a thing stays.
#[derive(Debug)]
pub struct Pin {
    id: Uuid,
    pinned: Arc<Mutex<BTreeMap<Uuid, usize>>>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pinned = self.pinned.lock().expect(UNPOISONED);
        if let Some(count) = pinned.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                pinned.remove(&self.id);
            }
        }
    }
}

impl Files {
    /// Those in a directory, which is made.
    ///
    /// # Errors
    /// It cannot be made, or closed to others.
    pub fn open(dir: PathBuf) -> Result<Self, Step> {
        fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
        // Whoever reaches the directory above it by a way that is not closed gets no further.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
            .at(format!("closing {}", dir.display()))?;
        Ok(Self {
            dir,
            pinned: Arc::default(),
        })
    }

    /// Holds one, whether or not it is there yet.
    #[must_use]
    pub fn pin(&self, id: Uuid) -> Pin {
        *self.pinned.lock().expect(UNPOISONED).entry(id).or_default() += 1;
        Pin {
            id,
            pinned: Arc::clone(&self.pinned),
        }
    }

    /// Holds several.
    #[must_use]
    pub fn pin_all(&self, ids: impl IntoIterator<Item = Uuid>) -> Vec<Pin> {
        ids.into_iter().map(|id| self.pin(id)).collect()
    }

    /// Where one is.
    #[must_use]
    pub fn path(&self, id: Uuid) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// What can be measured of one that is a file.
    #[must_use]
    pub fn used_bytes(&self, id: Uuid) -> u64 {
        fs::metadata(self.path(id)).map_or(0, |about| about.blocks() * 512)
    }

    /// Removes what is neither named nor pinned. `named` must have been read after nothing that it does not name could be taken
    /// up any more.
    pub fn sweep(&self, named: &BTreeSet<Uuid>) -> usize {
        let mut removed = 0;
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let is_wanted = id.is_some_and(|id: Uuid| {
                named.contains(&id) || self.pinned.lock().expect(UNPOISONED).contains_key(&id)
            });
            if is_wanted {
                continue;
            }
            let gone = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
                _ => fs::remove_file(entry.path()),
            };
            removed += usize::from(gone.is_ok());
        }
        removed
    }

    /// Makes names durable.
    ///
    /// # Errors
    /// The disk failed.
    pub fn sync_names(&self) -> Result<(), Step> {
        sync_dir(&self.dir)
    }

    /// Room in the file system that they lie in: all, and what can still be written.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn space(&self) -> io::Result<(u64, u64)> {
        let space = rustix::fs::statvfs(&self.dir)?;
        Ok((space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize))
    }
}

/// The longest path of a Unix socket, with its end.
const SOCKET_PATH_MAX: usize = 107;

/// Whether a directory can be a runtime's: one below which the longest path of a socket has so many bytes.
///
/// # Errors
/// It cannot, and why.
pub fn is_fit(data: &Path, socket_bytes: usize) -> io::Result<()> {
    if !data.is_absolute() || data.to_str().is_none() {
        return Err(io::Error::other("it is to be an absolute path, in UTF-8"));
    }
    match socket_bytes.checked_sub(SOCKET_PATH_MAX) {
        None | Some(0) => Ok(()),
        Some(over) => Err(io::Error::other(format!(
            "sockets below it have paths that are {over} bytes too long; give a shorter directory"
        ))),
    }
}

/// Makes names in a directory durable.
///
/// # Errors
/// The disk failed.
pub fn sync_dir(dir: &Path) -> Result<(), Step> {
    fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .at(format!("writing {} through", dir.display()))
}

/// Removes a directory and all below it. One that is not there is no error.
///
/// # Errors
/// Something of it stays.
pub fn remove_dir(dir: &Path) -> Result<(), Step> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.at(format!("deleting {}", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_cannot_be_is_told() {
        let told = |data: &str, bytes| is_fit(Path::new(data), bytes).map_err(|why| why.to_string());
        assert_eq!(told("/data", SOCKET_PATH_MAX), Ok(()));
        assert!(told("data", 1).unwrap_err().contains("absolute"));
        assert!(
            told("/data", SOCKET_PATH_MAX + 3)
                .unwrap_err()
                .contains("3 bytes too long")
        );
    }

    #[test]
    fn what_nobody_names_or_holds_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("files")).unwrap();
        assert_eq!(fs::metadata(&files.dir).unwrap().mode() & 0o777, 0o700);
        let [named, held, lost] = std::array::from_fn(|_| Uuid::new_v4());
        fs::write(files.path(named), "x").unwrap();
        for id in [held, lost] {
            fs::create_dir(files.path(id)).unwrap();
            fs::write(files.path(id).join("memory"), "x").unwrap();
        }
        fs::write(files.dir.join("stray"), "x").unwrap();
        let (first, second) = (files.pin(held), files.pin(held));
        drop(first);
        let names = BTreeSet::from([named]);
        assert_eq!(files.sweep(&names), 2);
        assert!(files.path(named).exists() && files.path(held).exists());
        drop(second);
        assert_eq!(files.sweep(&names), 1);
        assert!(files.path(named).exists() && !files.path(held).exists());
    }
}
