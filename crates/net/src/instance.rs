//! Which of several daemons on one machine this is: the network, and all else that their sandboxes have on it, is told apart
//! by the number.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use ports::step::{At, Step};
use rustix::fs::FlockOperation;

/// As many runtimes have a number at a time. One of containers has a sixteenth of the 2^32 users for each, and the first
/// and last are the host's.
pub const INSTANCES_MAX: u32 = 14;
/// Where a runtime keeps a record of what lives, below its directory: slots of containers, microVMs.
const RECORDS: [&str; 2] = ["slots", "machines"];

const DIR: &str = "/run/atoll";

/// A number that no other runtime has while this one lives.
#[derive(Debug)]
pub struct Instance {
    /// The number, below [`INSTANCES_MAX`].
    pub number: u32,
    _lock: File,
}

impl Instance {
    /// Takes the number that the runtime of this directory had before, or one that belongs to nobody.
    ///
    /// # Errors
    /// All are taken, or `/run/atoll` cannot be written.
    pub fn take(data: &Path) -> Result<Self, Step> {
        Self::take_in(Path::new(DIR), data)
    }

    fn take_in(dir: &Path, data: &Path) -> Result<Self, Step> {
        fs::create_dir_all(dir).at(format!("making {}", dir.display()))?;
        let owner = fs::canonicalize(data).at(format!("looking at {}", data.display()))?;
        let mut free = None;
        for number in 0..INSTANCES_MAX {
            let path = dir.join(format!("instance-{number}"));
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .at(format!("opening {}", path.display()))?;
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let mut text = String::new();
            file.read_to_string(&mut text)
                .at(format!("reading {}", path.display()))?;
            let of = PathBuf::from(text.trim_end());
            if of == owner {
                return Ok(Self { number, _lock: file });
            }
            if free.is_none() && is_abandoned(&of) {
                free = Some((number, file));
            }
        }
        let (number, mut file) = free
            .ok_or_else(|| io::Error::other(format!("all {INSTANCES_MAX} are taken")))
            .at("taking an instance number")?;
        let write = |file: &mut File| -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", owner.display())
        };
        write(&mut file).at("writing the instance's owner")?;
        Ok(Self { number, _lock: file })
    }
}

/// Whether a runtime's directory has no record of something that may still live.
fn is_abandoned(data: &Path) -> bool {
    let is_empty = |records| fs::read_dir(data.join(records)).map_or(true, |mut all| all.next().is_none());
    data.as_os_str().is_empty() || RECORDS.into_iter().all(is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_number_and_one_with_records_is_not_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let [containers, machines, none] =
            ["containers", "machines", "none"].map(|name| dir.path().join(name));
        fs::create_dir_all(containers.join("slots")).unwrap();
        fs::create_dir_all(machines.join("machines")).unwrap();
        fs::create_dir_all(&none).unwrap();
        let take = |data: &Path| Instance::take_in(&run, data).unwrap();
        let (first, second) = (take(&containers), take(&machines));
        assert_eq!((first.number, second.number), (0, 1));
        drop((first, second));
        fs::write(containers.join("slots/3.json"), "{}").unwrap();
        fs::write(machines.join("machines/x.json"), "{}").unwrap();
        assert_eq!(take(&none).number, 2);
        assert_eq!(take(&machines).number, 1);
        fs::remove_file(containers.join("slots/3.json")).unwrap();
        let held = take(&none);
        assert_eq!(held.number, 2);
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        assert_eq!(take(&other).number, 0);
    }
}
