//! Which of several daemons on one machine this is: names and users of its sandboxes are told apart by the number.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::step::{At, Step};

/// Users of sandboxes: each instance has a sixteenth of the 2^32, and the first and last are the host's.
pub(crate) const INSTANCES_MAX: u32 = 14;
/// Slots of an instance: 65 536 users each.
pub(crate) const SLOTS_MAX: u32 = 4096;
/// Users of one sandbox.
pub(crate) const USERS: u32 = 65_536;

const DIR: &str = "/run/atoll";

/// A number that no other daemon has while this one lives.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) number: u32,
    _lock: File,
}

impl Instance {
    /// Takes the number that `data` had before, or one that belongs to nobody.
    pub(crate) fn take(data: &Path) -> Result<Self, Step> {
        fs::create_dir_all(DIR).at(format!("making {DIR}"))?;
        let owner = fs::canonicalize(data).at(format!("looking at {}", data.display()))?;
        let mut free = None;
        for number in 0..INSTANCES_MAX {
            let path = PathBuf::from(format!("{DIR}/instance-{number}"));
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

/// Whether a data directory holds no slot that may still live.
fn is_abandoned(data: &Path) -> bool {
    data.as_os_str().is_empty()
        || fs::read_dir(data.join("slots")).map_or(true, |mut slots| slots.next().is_none())
}

/// The first of a slot's users on the host.
pub(crate) fn first_user(instance: u32, slot: u32) -> u32 {
    (instance + 1) * (SLOTS_MAX * USERS) + slot * USERS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_of_all_slots_are_apart_and_none_is_the_hosts() {
        assert_eq!(first_user(0, 0), 0x1000_0000);
        assert_eq!(first_user(0, SLOTS_MAX - 1) + USERS, first_user(1, 0));
        assert!(
            first_user(INSTANCES_MAX - 1, SLOTS_MAX - 1)
                .checked_add(USERS - 1)
                .unwrap()
                < 0xF000_0000
        );
    }
}
