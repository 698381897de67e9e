//! Memory that was written down: a state of QEMU's, and what it fits.
use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use model::MiB;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::command::Accel;
use ports::step::{At, Step};

/// What was written to at most so long ago may be written to again at what seems the same time: a tick is some milliseconds.
const SETTLES: Duration = Duration::from_secs(2);
/// Of a state, beside memory: devices, firmware, and the screen that nobody sees.
const BESIDE_BYTES_MAX: u64 = 1 << 30;
/// States that are remembered: some tens of bytes each.
const KNOWN_MAX: usize = 4096;
const UNPOISONED: &str = "nothing panics while it holds what is known";

/// What a state of memory is, and what it fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Its file.
    pub(crate) state: Uuid,
    pub(crate) length_bytes: u64,
    /// SHA-256 over all of it: QEMU's format has no checksum, and its reader trusts what it reads.
    pub(crate) digest: String,
    pub(crate) fits: Fits,
}

impl Memory {
    /// Whether ours could be so: what is not empty is there once, with what tells where it belongs, and so are devices.
    pub(crate) fn is_possible(&self) -> Result<(), &'static str> {
        let most = self
            .fits
            .memory
            .bytes()
            .saturating_mul(2)
            .saturating_add(BESIDE_BYTES_MAX);
        if self.length_bytes == 0 || self.length_bytes > most {
            return Err("its memory has a size that none has");
        }
        Ok(())
    }
}

/// What has to be the same where memory is brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fits {
    /// QEMU's version: the machine `q35` is another in each.
    pub(crate) qemu: String,
    pub(crate) accel: Accel,
    /// The host's processor, where the guest runs on it.
    pub(crate) processor: Option<String>,
    pub(crate) memory: MiB,
    pub(crate) cpus: u32,
    /// The guest's kernel and what comes with it.
    pub(crate) bundle: String,
    pub(crate) disk_bytes: u64,
    /// Whether its card is on a network: the card that the guest sees offers more then.
    #[serde(default)]
    pub(crate) network: bool,
}

impl Fits {
    /// Why memory that fits `self` does not fit `here`.
    pub(crate) fn differs_from(&self, here: &Fits) -> Option<String> {
        let told = |what: &str, was: &dyn std::fmt::Display, is: &dyn std::fmt::Display| {
            Some(format!("{what} was {was} and is {is}"))
        };
        let processor = |fits: &Fits| fits.processor.clone().unwrap_or_else(|| "emulated".to_owned());
        if self.qemu != here.qemu {
            return told("QEMU", &self.qemu, &here.qemu);
        }
        if self.accel != here.accel {
            return told("the accelerator", &self.accel.name(), &here.accel.name());
        }
        if self.processor != here.processor {
            return told("the processor", &processor(self), &processor(here));
        }
        if self.bundle != here.bundle {
            return told("the guest's kernel", &self.bundle, &here.bundle);
        }
        if self.memory != here.memory {
            return told("its size", &self.memory, &here.memory);
        }
        if self.cpus != here.cpus {
            return told("the number of its processors", &self.cpus, &here.cpus);
        }
        if self.disk_bytes != here.disk_bytes {
            return told(
                "the size of its disk, in bytes,",
                &self.disk_bytes,
                &here.disk_bytes,
            );
        }
        if self.network != here.network {
            let tell = |fits: &Fits| if fits.network { "there" } else { "not there" };
            return told("its network", &tell(self), &tell(here));
        }
        None
    }
}

/// Measures a state that was written, and makes it durable.
pub(crate) fn seal(path: &Path, state: Uuid, fits: Fits) -> Result<Memory, Step> {
    let step = || format!("sealing {}", path.display());
    let file = fs::File::open(path).at(step())?;
    file.sync_all().at(step())?;
    let (length_bytes, digest) = measure(&file).at(step())?;
    Ok(Memory {
        state,
        length_bytes,
        digest,
        fits,
    })
}

/// A state's file, as it was looked for.
#[derive(Debug)]
pub(crate) enum Found {
    /// It holds what was sealed.
    Whole(fs::File),
    /// It does not, and why.
    Damaged(String),
}

/// What tells whether a file was written to since it was measured. All of it is the kernel's to say: no user sets the time at
/// which a file last changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Mark {
    fn of(file: &fs::File) -> io::Result<Self> {
        let about = file.metadata()?;
        Ok(Self {
            device: about.dev(),
            inode: about.ino(),
            length: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        })
    }

    /// Whether anything that happens from now on gives it another time: the kernel's clock for files has ticks of its own.
    fn is_old(&self, settles: Duration) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let Ok(now) = i64::try_from(now.unwrap_or_default().as_secs()) else {
            return false;
        };
        let settles = i64::try_from(settles.as_secs()).unwrap_or(i64::MAX);
        [self.modified.0, self.changed.0]
            .into_iter()
            .all(|at| at.saturating_add(settles) <= now)
    }
}

/// States that this daemon has measured, each once for as long as nobody touches it.
#[derive(Debug)]
pub(crate) struct Measured {
    known: Mutex<HashMap<Uuid, (Mark, String)>>,
    settles: Duration,
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            settles: SETTLES,
        }
    }
}

impl Measured {
    /// Opens a state, and finds out whether it is the one that was sealed: whoever reads the file reads what was looked at.
    pub(crate) fn open(&self, path: &Path, memory: &Memory) -> Result<Found, Step> {
        let step = || format!("looking at {}", path.display());
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Found::Damaged("it is not there any more".to_owned()));
            }
            Err(error) => return Err(error).at(step()),
        };
        let before = Mark::of(&file).at(step())?;
        if before.length != memory.length_bytes {
            return Ok(Found::Damaged(format!(
                "it has {} bytes, and had {}",
                before.length, memory.length_bytes
            )));
        }
        if self.knows(memory, &before) {
            return Ok(Found::Whole(file));
        }
        // What somebody has mapped and written to shows in no time until it is on the disk; from then on the next write does.
        file.sync_all().at(step())?;
        let before = Mark::of(&file).at(step())?;
        let (_, digest) = measure(&file).at(step())?;
        if digest != memory.digest {
            return Ok(Found::Damaged("its content has changed".to_owned()));
        }
        let after = Mark::of(&file).at(step())?;
        if before == after && before.is_old(self.settles) {
            let mut known = self.known.lock().expect(UNPOISONED);
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            known.insert(memory.state, (before, digest));
        }
        Ok(Found::Whole(file))
    }

    fn knows(&self, memory: &Memory, mark: &Mark) -> bool {
        let known = self.known.lock().expect(UNPOISONED);
        let known = known.get(&memory.state);
        known.is_some_and(|(known, digest)| known == mark && *digest == memory.digest)
    }
}

/// All of a file's bytes, from where it is to its end; afterwards it is at its beginning.
fn measure(mut file: &fs::File) -> io::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        length += read as u64;
        hash.update(buffer.get(..read).unwrap_or_default());
    }
    file.rewind()?;
    let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((length, digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits() -> Fits {
        Fits {
            qemu: "7.2.22".into(),
            accel: Accel::Tcg,
            processor: None,
            memory: MiB(512),
            cpus: 2,
            bundle: "abc".into(),
            disk_bytes: 1 << 30,
            network: true,
        }
    }

    #[test]
    fn what_does_not_fit_is_told_by_name() {
        let check = |here: Fits, why: Option<&str>| assert_eq!(fits().differs_from(&here).as_deref(), why);
        check(fits(), None);
        check(
            Fits {
                qemu: "9.0.0".into(),
                ..fits()
            },
            Some("QEMU was 7.2.22 and is 9.0.0"),
        );
        check(
            Fits {
                accel: Accel::Kvm,
                ..fits()
            },
            Some("the accelerator was tcg and is kvm"),
        );
        check(
            Fits {
                processor: Some("EPYC".into()),
                ..fits()
            },
            Some("the processor was emulated and is EPYC"),
        );
        check(
            Fits {
                bundle: "abd".into(),
                ..fits()
            },
            Some("the guest's kernel was abc and is abd"),
        );
        check(
            Fits {
                memory: MiB(513),
                ..fits()
            },
            Some("its size was 512 MiB and is 513 MiB"),
        );
        check(
            Fits { cpus: 4, ..fits() },
            Some("the number of its processors was 2 and is 4"),
        );
        check(
            Fits {
                disk_bytes: 1,
                ..fits()
            },
            Some("the size of its disk, in bytes, was 1073741824 and is 1"),
        );
        check(
            Fits {
                network: false,
                ..fits()
            },
            Some("its network was there and is not there"),
        );
    }

    fn why_not(measured: &Measured, path: &Path, memory: &Memory) -> Option<String> {
        match measured.open(path, memory).unwrap() {
            Found::Whole(mut file) => {
                let mut content = String::new();
                file.read_to_string(&mut content).unwrap();
                assert_eq!(content, "memory", "it is read from its beginning");
                None
            }
            Found::Damaged(why) => Some(why),
        }
    }

    #[test]
    fn what_was_changed_cut_off_or_lost_is_damaged_before_it_was_used_and_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let at_once = Measured {
            settles: Duration::ZERO,
            ..Measured::default()
        };
        for measured in [&Measured::default(), &at_once] {
            let damage: [(&dyn Fn(), &str); 4] = [
                (&|| fs::write(&path, "Memory").unwrap(), "changed"),
                (&|| fs::write(&path, "mem").unwrap(), "3 bytes"),
                (&|| fs::remove_file(&path).unwrap(), "not there"),
                (
                    &|| {
                        let other = dir.path().join("other");
                        fs::write(&other, "memorY").unwrap();
                        let times =
                            fs::FileTimes::new().set_modified(path.metadata().unwrap().modified().unwrap());
                        fs::File::options()
                            .write(true)
                            .open(&other)
                            .unwrap()
                            .set_times(times)
                            .unwrap();
                        fs::rename(other, &path).unwrap();
                    },
                    "changed",
                ),
            ];
            for (damage, told) in damage {
                for used_before in [false, true] {
                    fs::write(&path, "memory").unwrap();
                    let memory = seal(&path, Uuid::new_v4(), fits()).unwrap();
                    if used_before {
                        assert_eq!(why_not(measured, &path, &memory), None);
                        assert_eq!(why_not(measured, &path, &memory), None);
                    }
                    tick(&path);
                    damage();
                    let why = why_not(measured, &path, &memory).unwrap();
                    assert!(why.contains(told), "{why}");
                }
            }
        }
    }

    /// Waits until a file that is written now has another time than this one.
    fn tick(path: &Path) {
        let was = path.metadata().unwrap().modified().unwrap();
        let probe = path.with_extension("tick");
        while {
            fs::write(&probe, "x").unwrap();
            probe.metadata().unwrap().modified().unwrap() <= was
        } {}
    }

    #[test]
    fn a_state_is_measured_once_when_nobody_has_touched_it_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::write(&path, "memory").unwrap();
        let memory = seal(&path, Uuid::new_v4(), fits()).unwrap();
        let mark = || Mark::of(&fs::File::open(&path).unwrap()).unwrap();
        // It could be written to again within the same tick.
        let fresh = Measured::default();
        assert_eq!(why_not(&fresh, &path, &memory), None);
        assert!(!fresh.knows(&memory, &mark()));
        let settled = Measured {
            settles: Duration::ZERO,
            ..Measured::default()
        };
        assert_eq!(why_not(&settled, &path, &memory), None);
        assert!(settled.knows(&memory, &mark()));
        // Of another that was sealed under the same name nothing is known.
        let other = Memory {
            digest: "other".into(),
            ..memory.clone()
        };
        assert!(why_not(&settled, &path, &other).unwrap().contains("changed"));
        // A time that was set back is a change.
        tick(&path);
        let times = fs::FileTimes::new().set_modified(path.metadata().unwrap().modified().unwrap());
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_times(times)
            .unwrap();
        assert!(!settled.knows(&memory, &mark()));
        assert_eq!(why_not(&settled, &path, &memory), None);
    }
}
