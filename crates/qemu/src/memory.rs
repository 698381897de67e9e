//! Memory that was written down: a state of QEMU's, and what it fits.
use std::fs;
use std::io::Read as _;
use std::path::Path;

use model::MiB;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::command::Accel;
use ports::step::{At, Step};

/// What a state of memory is, and what it fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Its file.
    pub(crate) state: Uuid,
    pub(crate) length_bytes: u64,
    /// SHA-256 over all of it: QEMU's format has no checksum, and its reader trusts what it reads.
    pub(crate) digest: String,
    pub(crate) fits: Fits,
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
    let (length_bytes, digest) = measure(path)?;
    Ok(Memory {
        state,
        length_bytes,
        digest,
        fits,
    })
}

/// Why a state is not the one that was sealed.
pub(crate) fn is_damaged(path: &Path, memory: &Memory) -> Result<Option<String>, Step> {
    let length = match fs::metadata(path) {
        Ok(about) => about.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Some("it is not there any more".to_owned()));
        }
        Err(error) => return Err(error).at(format!("looking at {}", path.display())),
    };
    if length != memory.length_bytes {
        return Ok(Some(format!(
            "it has {length} bytes, and had {}",
            memory.length_bytes
        )));
    }
    let (_, digest) = measure(path)?;
    Ok((digest != memory.digest).then(|| "its content has changed".to_owned()))
}

fn measure(path: &Path) -> Result<(u64, String), Step> {
    let step = || format!("reading {}", path.display());
    let mut file = fs::File::open(path).at(step())?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        let read = file.read(&mut buffer).at(step())?;
        if read == 0 {
            break;
        }
        length += read as u64;
        hash.update(buffer.get(..read).unwrap_or_default());
    }
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

    #[test]
    fn what_was_changed_cut_off_or_lost_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::write(&path, "memory").unwrap();
        let memory = seal(&path, Uuid::new_v4(), fits()).unwrap();
        assert_eq!(is_damaged(&path, &memory).unwrap(), None);
        fs::write(&path, "Memory").unwrap();
        assert!(is_damaged(&path, &memory).unwrap().unwrap().contains("changed"));
        fs::write(&path, "mem").unwrap();
        assert!(is_damaged(&path, &memory).unwrap().unwrap().contains("3 bytes"));
        fs::remove_file(&path).unwrap();
        assert!(is_damaged(&path, &memory).unwrap().unwrap().contains("not there"));
    }
}
