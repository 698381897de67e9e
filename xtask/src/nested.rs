//! The ring `firecracker`: real Firecrackers, and nothing of the hardware that they need.
//!
//! ```text
//! this machine   the tests, with the official SDK          QEMU emulates a processor that has SVM
//!   └ house        `atoll up --runtime firecracker`          its own root, kernel, cgroups and network
//!       └ sandboxes  microVMs of the real `firecracker`       each in a jail of the real `jailer`
//!
//! root      what the house's machine boots from, made once of Debian's packages
//! machine   one run of it: disks, ports, what it tells
//! ```
//!
//! It is not among the rings that run by themselves: Firecracker is no package of Debian's, and everything in it is emulated
//! twice. `ATOLL_FIRECRACKER` names the program, beside which lies `jailer`.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::machine::Machine;
use self::root::Root;
use crate::build::Build;
use crate::shell::{cache, has};
use crate::tally::Tally;
use crate::{kernel, setup};

mod machine;
mod root;

/// What microVMs are held to, whichever runtime makes them.
const TESTS: [&str; 2] = [
    "tests/e2e/microvms/test_memory.py",
    "tests/e2e/microvms/test_limits.py",
];
/// An emulated machine stands still now and then, for no reason of ours: it is given one more chance, and no second.
const ATTEMPTS: u32 = 2;

/// How the suite runs tests of Python's: which, and with what in their environment.
type Tests = fn(&[&str], &BTreeMap<String, String>) -> Result<Tally>;

/// Runs the ring, or says aloud why it cannot.
pub(crate) fn run(tests: Tests) -> Result<Tally> {
    let firecracker = match firecracker() {
        Ok(firecracker) => firecracker,
        Err(why) => return Ok(skipped(&format!("{why:#}"))),
    };
    let Some(kernel) = kernel::have() else {
        return Ok(skipped("there is no kernel to boot"));
    };
    let programs = programs()?;
    let root = Root::have(&cache().join("nested"), &kernel)?;
    let mut attempt = 1;
    loop {
        let machine = Machine::start(&root, &programs, &firecracker);
        let is_last = attempt == ATTEMPTS;
        attempt += 1;
        let machine = match machine {
            Ok(machine) => machine,
            Err(error) if is_last => return Err(error),
            Err(error) => {
                eprintln!("nested: {error:#}; once more, with a fresh machine");
                continue;
            }
        };
        let tally = tests(&TESTS, &machine.env())?;
        if tally.failed == 0 {
            machine.end();
            return Ok(tally);
        }
        let answers = machine.answers();
        let log = machine.keep();
        eprintln!("nested: what the machine said is in {}", log.display());
        if answers || is_last {
            return Ok(tally);
        }
        eprintln!("nested: the machine answers no more; all tests once more, with a fresh one");
    }
}

/// The program, if the ring can run here.
fn firecracker() -> Result<PathBuf> {
    let program = std::env::var_os("ATOLL_FIRECRACKER")
        .context("ATOLL_FIRECRACKER does not name the program firecracker")?;
    let program = PathBuf::from(program);
    for program in [&program, &program.with_file_name("jailer")] {
        if !program.is_file() {
            bail!("there is no {}", program.display());
        }
    }
    for program in ["qemu-system-x86_64", "mmdebstrap", "mkfs.ext4", "setpriv"] {
        if !has(program) {
            bail!("there is no {program} on the PATH");
        }
    }
    if !setup::is_root() {
        bail!("a root of packages is made as root");
    }
    Ok(program)
}

fn skipped(why: &str) -> Tally {
    eprintln!("SKIPPED: the firecracker ring: NO microVM of Firecracker was tested: {why}");
    Tally {
        skipped: 1,
        ..Tally::default()
    }
}

/// The directory of Atoll's programs: one of before that `ATOLL_TEST_BIN_DIR` names, or a fresh one.
fn programs() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("ATOLL_TEST_BIN_DIR") {
        return Ok(PathBuf::from(dir));
    }
    let atoll = Build::Tested.atoll()?;
    atoll
        .parent()
        .map(Path::to_owned)
        .context("a program lies in a directory")
}
