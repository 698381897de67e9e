//! As whom QEMUs run. Where the daemon is root each machine's has a user and a group of its own, of which nobody else is; where
//! it is not, they run as whoever the daemon is.
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;

use ports::RuntimeError;
use serde::{Deserialize, Serialize};

use crate::command::Accel;

/// Above the users of containers, which end at `0xEFFF_FFFF`, and below the number that is nobody's, `0xFFFF_FFFF`. Accounts of
/// hosts, also those for other containers, are below 2^31.
const FIRST: u32 = 0xF000_0000;
/// Users of one instance, of which there are fourteen: the first is that of QEMUs without a machine, the others are machines'.
const USERS: u32 = 0x1_0000;
const KVM: &str = "/dev/kvm";
const UNPOISONED: &str = "nothing panics while it holds the users";

/// Whom a QEMU runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    /// The same number; or the group that `/dev/kvm` is open to, where that is needed.
    pub(crate) gid: u32,
}

impl User {
    fn numbered(number: u32, group: Option<u32>) -> Self {
        Self {
            uid: number,
            gid: group.unwrap_or(number),
        }
    }

    /// Whom QEMU is tried as: nobody else's data is there then. `None` where the daemon is not root.
    pub(crate) fn trying(accel: Accel) -> Option<Self> {
        is_root().then(|| Self::numbered(FIRST, group(accel).unwrap_or_default()))
    }
}

/// The users of an instance's machines.
#[derive(Debug)]
pub(crate) struct Users {
    first: u32,
    /// A group that all share.
    group: Option<u32>,
    /// Those of machines that are on record.
    taken: Mutex<BTreeSet<u32>>,
}

impl Users {
    pub(crate) fn of(instance: u32, accel: Accel) -> Self {
        Self {
            first: FIRST + instance * USERS,
            group: group(accel).unwrap_or_default(),
            taken: Mutex::default(),
        }
    }

    /// Whom a QEMU without a machine runs as, which reads what machines wrote. One at a time.
    pub(crate) fn without_machine(&self) -> User {
        User::numbered(self.first, None)
    }

    /// The first that is nobody's.
    pub(crate) fn draw(&self) -> Result<User, RuntimeError> {
        let mut taken = self.taken.lock().expect(UNPOISONED);
        let mut all = self.first + 1..self.first + USERS;
        let number = all
            .find(|number| !taken.contains(number))
            .ok_or(RuntimeError::Exhausted("users"))?;
        taken.insert(number);
        Ok(User::numbered(number, self.group))
    }

    /// One is a machine's that an earlier daemon started.
    pub(crate) fn take(&self, user: User) {
        self.taken.lock().expect(UNPOISONED).insert(user.uid);
    }

    /// One that is on no record any more, and as whom nothing runs, is free.
    pub(crate) fn give_back(&self, user: User) {
        self.taken.lock().expect(UNPOISONED).remove(&user.uid);
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The group that QEMUs have to be of. An error where none opens what they need.
fn group(accel: Accel) -> Result<Option<u32>, String> {
    match (accel, fs::metadata(Path::new(KVM))) {
        (Accel::Kvm, Ok(about)) => group_for(about.gid(), about.mode()),
        // What is not there is told by QEMU.
        _ => Ok(None),
    }
}

fn group_for(gid: u32, mode: u32) -> Result<Option<u32>, String> {
    let is_open_to = |class: u32| (mode >> class) & 0o6 == 0o6;
    match (is_open_to(0), is_open_to(3), gid) {
        (true, ..) => Ok(None),
        // Root's group has files of the host's.
        (false, true, 1..) => Ok(Some(gid)),
        _ => Err(format!(
            "QEMU runs as a user of its own, and {KVM} (group {gid}, mode {:o}) is open to root alone; give it to a group \
             that may read and write it, as udev does: chgrp kvm {KVM} && chmod 660 {KVM}",
            mode & 0o777
        )),
    }
}

/// Why a user of ours cannot have the processor, as far as `/dev/kvm` tells.
pub(crate) fn why_not_kvm() -> Option<String> {
    if !is_root() {
        return None;
    }
    group(Accel::Kvm).err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_machines_are_apart_from_one_another_and_from_everybody() {
        let [first, last] = [0, net::INSTANCES_MAX - 1].map(|instance| Users::of(instance, Accel::Tcg));
        let (one, two) = (first.draw().unwrap(), first.draw().unwrap());
        assert_eq!((one.uid, two.uid), (0xF000_0001, 0xF000_0002));
        assert_eq!((one.uid, two.uid), (one.gid, two.gid));
        assert_ne!(first.without_machine(), one);
        first.give_back(one);
        first.take(two);
        assert_eq!(first.draw().unwrap(), one);
        for number in last.first + 1..last.first + USERS - 1 {
            last.take(User::numbered(number, None));
        }
        assert!(last.draw().unwrap().uid < u32::MAX - 1);
        assert!(matches!(last.draw(), Err(RuntimeError::Exhausted("users"))));
    }

    #[test]
    fn the_processor_is_reached_by_everybody_or_by_a_group_and_never_as_roots() {
        assert_eq!(group_for(0, 0o20666), Ok(None));
        assert_eq!(group_for(107, 0o20660), Ok(Some(107)));
        assert_eq!(group_for(107, 0o20666), Ok(None));
        for (gid, mode) in [(0, 0o20600), (0, 0o20660), (107, 0o20640), (107, 0o20600)] {
            let why = group_for(gid, mode).unwrap_err();
            assert!(why.contains("chgrp"), "{why}");
        }
    }
}
