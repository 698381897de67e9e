//! What this machine's QEMU can do, found out by trying: a `/dev/kvm` that opens says nothing of whether a guest runs.
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::command::Accel;
use crate::users::{self, User};

/// QEMU is up and gone again within a tenth of a second.
const TRIED_WITHIN: Duration = Duration::from_secs(20);
/// What is read of what it says.
const SAID_MAX_BYTES: u64 = 64 * 1024;
const SCRIPT: &[u8] =
    b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n{\"execute\":\"quit\"}\n";

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// QEMU's version, with the distribution's.
    pub version: String,
    /// What guests run on.
    pub accel: Accel,
    /// Why not on the processor; `None` when they do.
    pub why_not_kvm: Option<String>,
}

/// Tries what there is.
///
/// # Errors
/// QEMU cannot be started at all, in its own words.
pub async fn probe(program: &Path) -> Result<Probed, String> {
    let tried = match users::why_not_kvm() {
        Some(why) => Err(why),
        None => attempt(program, Accel::Kvm).await,
    };
    let why_not_kvm = match tried {
        Ok(version) => {
            return Ok(Probed {
                version,
                accel: Accel::Kvm,
                why_not_kvm: None,
            });
        }
        Err(why) => why,
    };
    Ok(Probed {
        version: attempt(program, Accel::Tcg).await?,
        accel: Accel::Tcg,
        why_not_kvm: Some(why_not_kvm),
    })
}

/// As whom machines run, if not as whoever the daemon is, starts a machine that stands, asks it how it is, and ends it. Answers with QEMU's version.
pub(crate) async fn attempt(program: &Path, accel: Accel) -> Result<String, String> {
    let tried = tokio::time::timeout(TRIED_WITHIN, talk(program, accel)).await;
    let (said, complained, success) = tried
        .map_err(|_| format!("it did not end within {TRIED_WITHIN:?}"))?
        .map_err(|error| format!("{}: {error}", program.display()))?;
    let mut answers = said
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let version = answers
        .next()
        .and_then(|greeting| version(&greeting["QMP"]["version"]));
    let stands = answers.any(|answer| answer["return"]["status"] == "prelaunch");
    match version {
        Some(version) if stands && success => Ok(version),
        _ => {
            let complained = complained.lines().map(str::trim).filter(|line| !line.is_empty());
            let why = complained.take(4).collect::<Vec<_>>().join("; ");
            Err(if why.is_empty() {
                "it ended without a word".to_owned()
            } else {
                why.chars().take(500).collect()
            })
        }
    }
}

/// The version in what QMP says of it.
pub(crate) fn version(said: &Value) -> Option<String> {
    let part = |name: &str| said["qemu"][name].as_u64();
    let package = said["package"].as_str().unwrap_or_default();
    let number = format!("{}.{}.{}", part("major")?, part("minor")?, part("micro")?);
    Ok::<_, ()>(format!("{number} {package}").trim().to_owned()).ok()
}

async fn talk(program: &Path, accel: Accel) -> io::Result<(String, String, bool)> {
    let cpu = match accel {
        Accel::Kvm => "host",
        Accel::Tcg => "max",
    };
    let mut command = tokio::process::Command::new(program);
    if let Some(User { uid, gid }) = User::trying(accel) {
        // What runs for root alone does not run for machines.
        command.uid(uid).gid(gid);
    }
    let mut child = command
        .args([
            "-S",
            "-M",
            "q35",
            "-accel",
            accel.name(),
            "-cpu",
            cpu,
            "-m",
            "64M",
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-qmp",
            "stdio",
        ])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Err(io::Error::other("a pipe was asked for, and is not there"));
    };
    let (mut out, mut err) = (stdout.take(SAID_MAX_BYTES), stderr.take(SAID_MAX_BYTES));
    // One that has ended already hears nothing: what it said before says why.
    let tell = async {
        let _ = stdin.write_all(SCRIPT).await;
    };
    let (_, heard, complaint) =
        tokio::join!(tell, out.read_to_end(&mut said), err.read_to_end(&mut complained));
    heard?;
    complaint?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&said), text(&complained), child.wait().await?.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_found_was_tried_and_what_was_not_says_why() {
        if std::process::Command::new("qemu-system-x86_64")
            .arg("--version")
            .output()
            .is_err()
        {
            crate::tests::not_run("qemu-system-x86_64 is not on PATH");
            return;
        }
        let found = probe(Path::new("qemu-system-x86_64")).await.unwrap();
        assert!(
            found.version.starts_with(|c: char| c.is_ascii_digit()),
            "{found:?}"
        );
        assert_eq!(
            found.accel == Accel::Kvm,
            found.why_not_kvm.is_none(),
            "{found:?}"
        );
        assert_ne!(found.why_not_kvm.as_deref(), Some(""));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_or_not_qemu_is_told() {
        let missing = probe(Path::new("/nowhere/qemu")).await.unwrap_err();
        assert!(missing.contains("/nowhere/qemu"), "{missing}");
        assert!(probe(Path::new("/bin/true")).await.is_err());
    }
}
