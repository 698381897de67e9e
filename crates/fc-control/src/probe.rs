//! What this host's Firecracker and jailer are, found out by running them.
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use crate::api::{Api, plain};
use crate::filter::{self, Toothless};
use crate::version::{Unfit, Version};

/// Each of them says its version in some ten milliseconds.
const TRIED_WITHIN: Duration = Duration::from_secs(20);
/// What is read of what they say.
const SAID_MAX_BYTES: u64 = 64 * 1024;
/// How often it is looked whether it listens.
const LOOK: Duration = Duration::from_millis(5);
/// The thread that serves the API.
const API_THREAD: &str = "fc_api";
/// Of a program header that names the dynamic linker.
const PT_INTERP: u32 = 3;
/// Of an executable's first header.
const HEAD_BYTES: usize = 64;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// Firecracker's version, and the jailer's.
    pub version: Version,
    /// The format in which it writes machines down.
    pub snapshot_format: String,
}

/// Why this host's Firecracker is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It does not run.
    #[error("{program} cannot be run: {why}")]
    Program {
        /// Which.
        program: PathBuf,
        /// What it said, or the kernel.
        why: String,
    },
    /// It is linked dynamically.
    #[error(
        "{0} is linked dynamically: it would not run in its jail, where there are no libraries, and such builds have no filter of \
         system calls; use the build for musl, as the releases are"
    )]
    Dynamic(PathBuf),
    /// Its version is not fit.
    #[error(transparent)]
    Version(#[from] Unfit),
    /// Firecracker and its jailer do not belong together.
    #[error("{firecracker} is of version {version}, and {jailer} of {jailers}: they have to be of the same")]
    Apart {
        /// Firecracker's program.
        firecracker: PathBuf,
        /// Its version.
        version: Version,
        /// The jailer's program.
        jailer: PathBuf,
        /// Its version.
        jailers: Version,
    },
    /// Its filter of system calls is none.
    #[error("{program} cannot be trusted with guests: {source}")]
    Filter {
        /// Which.
        program: PathBuf,
        /// Why not.
        source: Toothless,
    },
}

impl From<Unusable> for io::Error {
    fn from(unusable: Unusable) -> Self {
        io::Error::other(unusable)
    }
}

/// Runs both. `dir` is where the one that is tried listens for a moment. What the operator `accepted` is not refused.
pub async fn probe(
    firecracker: &Path,
    jailer: &Path,
    dir: &Path,
    accepted: &[String],
) -> Result<Probed, Unusable> {
    let version: Version = word(firecracker, "--version", "Firecracker ").await?.parse()?;
    version.is_fit(accepted)?;
    let jailers: Version = word(jailer, "--version", "Jailer ").await?.parse()?;
    if jailers != version {
        return Err(Unusable::Apart {
            firecracker: firecracker.to_owned(),
            version,
            jailer: jailer.to_owned(),
            jailers,
        });
    }
    for program in [firecracker, jailer] {
        let is_dynamic = is_dynamic(program).map_err(|error| unusable(program, &error.to_string()))?;
        if is_dynamic {
            return Err(Unusable::Dynamic(program.to_owned()));
        }
    }
    let snapshot_format = word(firecracker, "--snapshot-version", "v").await?;
    try_filter(firecracker, dir, &version).await?;
    Ok(Probed {
        version,
        snapshot_format,
    })
}

fn unusable(program: &Path, why: &str) -> Unusable {
    Unusable::Program {
        program: program.to_owned(),
        why: plain(why),
    }
}

/// What a program says, to this flag, on its first line, after `before`.
async fn word(program: &Path, flag: &str, before: &str) -> Result<String, Unusable> {
    let broken = |error: io::Error| unusable(program, &error.to_string());
    let mut child = tokio::process::Command::new(program)
        .arg(flag)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(broken)?;
    let stdout = child.stdout.take();
    let heard = async {
        let mut said = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(SAID_MAX_BYTES).read_to_end(&mut said).await?;
        }
        let status = child.wait().await?;
        io::Result::Ok((said, status))
    };
    let (said, status) = tokio::time::timeout(TRIED_WITHIN, heard)
        .await
        .map_err(|_| unusable(program, "it did not end"))?
        .map_err(broken)?;
    let said = String::from_utf8_lossy(&said);
    let word = said.lines().next().and_then(|line| line.strip_prefix(before));
    match word {
        Some(word) if status.success() => Ok(plain(word)),
        _ => Err(unusable(
            program,
            &format!("{flag} is answered by {said:?}, {status}"),
        )),
    }
}

/// Whether an executable needs a dynamic linker. One for 64 bits and little-endian, as Firecracker's are.
fn is_dynamic(program: &Path) -> io::Result<bool> {
    let mut file = fs::File::open(program)?;
    let mut head = Vec::with_capacity(HEAD_BYTES);
    (&mut file).take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    if head.len() < HEAD_BYTES || !head.starts_with(b"\x7fELF\x02\x01") {
        return Err(io::Error::other("it is no executable for this machine"));
    }
    let number = |bytes: &[u8]| -> u64 {
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    let field = |at: usize, length: usize| number(head.get(at..at + length).unwrap_or_default());
    let (table, size, count) = (field(0x20, 8), field(0x36, 2), field(0x38, 2));
    for header in 0..count {
        file.seek(SeekFrom::Start(table.saturating_add(header * size)))?;
        let mut kind = [0; 4];
        file.read_exact(&mut kind)?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Starts one that has no machine yet, and looks at the filter that its API's thread has.
async fn try_filter(program: &Path, dir: &Path, version: &Version) -> Result<(), Unusable> {
    let socket = dir.join("api.sock");
    let _ = fs::remove_file(&socket);
    let mut child = tokio::process::Command::new(program)
        .args(["--id", "atoll-check", "--level", "Error", "--api-sock"])
        .arg(&socket)
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| unusable(program, &error.to_string()))?;
    let looked = async {
        let pid = child.id().ok_or_else(|| unusable(program, "it has ended"))?;
        let api = Api::new(&socket);
        let deadline = Instant::now() + TRIED_WITHIN;
        while api.listens().await.is_err() {
            if Instant::now() >= deadline || !matches!(child.try_wait(), Ok(None)) {
                return Err(unusable(program, "its API does not listen"));
            }
            tokio::time::sleep(LOOK).await;
        }
        let said = api.version().await;
        let said = said.map_err(|error| unusable(program, &error.to_string()))?;
        if said.parse::<Version>()? != *version {
            let why = format!("it says that it is {version}, and its API that it is {said}");
            return Err(unusable(program, &why));
        }
        let thread = thread_named(pid, API_THREAD)
            .ok_or_else(|| unusable(program, &format!("it has no thread {API_THREAD}")))?;
        let looked = tokio::task::spawn_blocking(move || filter::look_at(thread)).await;
        looked
            .map_err(|error| unusable(program, &error.to_string()))?
            .map_err(|source| Unusable::Filter {
                program: program.to_owned(),
                source,
            })
    };
    let looked = looked.await;
    let _ = child.kill().await;
    let _ = fs::remove_file(&socket);
    looked
}

fn thread_named(pid: u32, name: &str) -> Option<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    threads.into_iter().find_map(|thread| {
        let told = fs::read_to_string(thread.path().join("comm")).ok()?;
        (told.trim() == name).then(|| thread.file_name().to_str()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        // By somebody else: a file that anybody here has open to write, and may have handed on to a child, is not executed.
        let written = std::process::Command::new("/bin/sh")
            .args([
                "-c",
                "printf '%s\\n' '#!/bin/sh' \"$1\" > \"$0\" && chmod 755 \"$0\"",
            ])
            .args([path.as_os_str(), text.as_ref()])
            .status();
        assert!(written.unwrap().success());
        path
    }

    async fn refused(firecracker: &str, jailer: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let firecracker = script(dir.path(), "firecracker", firecracker);
        let jailer = script(dir.path(), "jailer", jailer);
        let refused = probe(&firecracker, &jailer, dir.path(), &[]).await;
        refused.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn what_is_no_fit_firecracker_is_told_why() {
        let check = |told: String, why: &str| assert!(told.contains(why), "{told}");
        let nowhere = Path::new("/nowhere/firecracker");
        let told = probe(nowhere, nowhere, Path::new("/tmp"), &[]).await.unwrap_err();
        check(told.to_string(), "/nowhere/firecracker cannot be run");
        check(refused("echo hello", "").await, "--version is answered by");
        check(refused("exit 3", "").await, "exit status: 3");
        check(refused("echo Firecracker vx", "").await, "no version");
        check(refused("echo Firecracker v1.15.0", "").await, "too old");
        check(refused("echo Firecracker v1.16.1", "").await, "CVE-2026-122192");
        let fit = "echo Firecracker v1.16.2";
        check(
            refused(fit, "echo Jailer v1.16.3").await,
            "have to be of the same",
        );
        check(
            refused(fit, "echo Jailer v1.16.2").await,
            "no executable for this machine",
        );
        check(
            refused("yes Firecracker v1.16.2 | head -c 10000000", "false").await,
            "--version is answered by",
        );
    }

    #[test]
    fn a_program_with_a_dynamic_linker_is_known() {
        assert!(is_dynamic(Path::new("/bin/sh")).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let short = dir.path().join("short");
        fs::write(&short, b"\x7fELF\x02\x01").unwrap();
        assert!(is_dynamic(&short).is_err());
        // A static one: its only header is no linker's.
        let mut head = vec![0; 64 + 56];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (head[0x20], head[0x36], head[0x38], head[64]) = (64, 56, 1, 1);
        let path = dir.path().join("static");
        fs::write(&path, &head).unwrap();
        assert!(!is_dynamic(&path).unwrap());
        head[64] = 3;
        fs::write(&path, &head).unwrap();
        assert!(is_dynamic(&path).unwrap());
    }

    #[test]
    fn the_processor_has_a_name() {}

    /// The real ones, where whoever runs the tests has them.
    #[tokio::test]
    async fn the_real_ones_are_fit_or_told_why() {
        let Some((firecracker, jailer)) = crate::tests::real() else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let accepted = ["CVE-2026-122192", "firecracker-6100", "development-build"].map(str::to_owned);
        let found = probe(&firecracker, &jailer, dir.path(), &accepted).await.unwrap();
        crate::tests::tell(&format!("found {found:?}"));
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
    }

    /// One that was built for a GNU target, where whoever runs the tests has one.
    #[tokio::test]
    async fn an_empty_filter_is_found_out() {
        let Some(program) = std::env::var_os("ATOLL_TEST_FIRECRACKER_GNU").map(PathBuf::from) else {
            crate::tests::not_run(
                "ATOLL_TEST_FIRECRACKER_GNU names no Firecracker that was built for a GNU target",
            );
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let version = word(&program, "--version", "Firecracker ").await.unwrap();
        let refused = try_filter(&program, dir.path(), &version.parse().unwrap()).await;
        let told = refused.unwrap_err().to_string();
        assert!(told.contains("lets execve, ") && told.contains("musl"), "{told}");
        crate::tests::tell(&told);
        assert!(is_dynamic(&program).unwrap());
    }
}
