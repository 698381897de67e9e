//! Whether the node takes new sandboxes, and whether it is to be emptied: what an operator wants of it, on file, so that a
//! restart remembers. What is lost of it is lost with the node's directory, and then there is nothing to be emptied.
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use ports::node::{Draining, NodeError};
use serde::{Deserialize, Serialize};

/// The file, in the node's directory. A node that takes everything has none.
const FILE: &str = "admission.json";

/// What an operator wants of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Wish {
    accepts: bool,
    #[serde(default)]
    draining: Option<Draining>,
}

impl Wish {
    const OPEN: Self = Self {
        accepts: true,
        draining: None,
    };
    const CORDONED: Self = Self {
        accepts: false,
        draining: None,
    };
}

/// The wish that is in force.
pub(crate) struct Admission {
    path: PathBuf,
    wish: Mutex<Wish>,
}

impl Admission {
    /// Reads what is on file. One that is not understood closes the node: somebody wanted something of it.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        let path = data.join(FILE);
        let wish = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::error!(path = %path.display(), error = &error as &dyn std::error::Error, "whether new sandboxes are taken is not understood: none are, until that is set again");
                Wish::CORDONED
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Wish::OPEN,
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        };
        Ok(Self {
            path,
            wish: Mutex::new(wish),
        })
    }

    fn wish(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().expect("nothing panics while it holds the wish")
    }

    /// Whether new sandboxes are taken.
    pub(crate) fn accepts(&self) -> bool {
        self.wish().accepts
    }

    /// How the node is to be emptied, if it is.
    pub(crate) fn draining(&self) -> Option<Draining> {
        self.wish().draining
    }

    /// Why a new sandbox is not taken.
    pub(crate) fn refusal(&self) -> NodeError {
        let what = match self.draining() {
            Some(_) => "places: it is being emptied",
            None => "places: it is cordoned",
        };
        NodeError::Full {
            what,
            retry_after: None,
        }
    }

    /// Takes new ones from now on, or none.
    pub(crate) fn set_accepts(&self, accepts: bool) -> Result<(), NodeError> {
        self.set(if accepts { Wish::OPEN } else { Wish::CORDONED })
    }

    /// Takes none from now on, and says that it is to be emptied.
    pub(crate) fn drain(&self, how: Draining) -> Result<(), NodeError> {
        self.set(Wish {
            draining: Some(how),
            ..Wish::CORDONED
        })
    }

    /// On file first: who was told that it is so is not told otherwise after a restart.
    fn set(&self, wish: Wish) -> Result<(), NodeError> {
        // Held over the write, so that the file says what was said last.
        let mut now = self.wish();
        write(&self.path, &wish).map_err(|source| NodeError::Failed {
            step: "writing whether new sandboxes are taken",
            kind: model::Kind::Unavailable,
            source: Box::new(source),
        })?;
        *now = wish;
        Ok(())
    }
}

/// Replaces the file, whole or not at all, and on the disk: it is written once in months.
fn write(path: &Path, wish: &Wish) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let put = || {
        let mut file = File::create(&partial)?;
        file.write_all(&serde_json::to_vec(wish)?)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    let written = put();
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    const HOW: Draining = Draining {
        deadline: SystemTime::UNIX_EPOCH,
        kills: true,
    };

    fn look(dir: &Path) -> (bool, Option<Draining>) {
        let admission = Admission::open(dir).unwrap();
        (admission.accepts(), admission.draining())
    }

    #[test]
    fn a_wish_is_remembered_and_the_last_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look(dir.path()), (true, None));
        let later = Draining {
            deadline: SystemTime::UNIX_EPOCH + Duration::from_nanos(5_000_000_007),
            kills: false,
        };
        let admission = Admission::open(dir.path()).unwrap();
        admission.set_accepts(false).unwrap();
        assert_eq!(look(dir.path()), (false, None));
        for how in [HOW, later] {
            admission.drain(how).unwrap();
            assert_eq!(look(dir.path()), (false, Some(how)));
        }
        admission.set_accepts(false).unwrap();
        assert_eq!(look(dir.path()), (false, None));
        admission.set_accepts(true).unwrap();
        assert_eq!(look(dir.path()), (true, None));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "one file");
    }

    #[test]
    fn a_file_that_is_not_understood_closes_the_node_until_it_is_set_again() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{\"accepts\":tr", "[]"] {
            fs::write(dir.path().join(FILE), text).unwrap();
            assert_eq!(look(dir.path()), (false, None), "{text}");
        }
        Admission::open(dir.path()).unwrap().set_accepts(true).unwrap();
        assert_eq!(look(dir.path()), (true, None));
    }

    #[test]
    fn what_cannot_be_written_is_not_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let admission = Admission::open(dir.path()).unwrap();
        drop(dir);
        admission.drain(HOW).unwrap_err();
        assert!(admission.accepts() && admission.draining().is_none());
    }
}
