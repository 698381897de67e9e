//! What the machine itself takes, and what others take on it: the floor and the peers beside every other figure.
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::figures::{Figures, Goal};
use crate::scale::Scale;

/// As much as the file figures move.
pub(crate) const FILE_BYTES: usize = 100 << 20;
/// A root like the `base` template's: the machine's own `/usr`, and links to what is in it.
const LINKS: [(&str, &str); 4] = [
    ("usr/bin", "bin"),
    ("usr/sbin", "sbin"),
    ("usr/lib", "lib"),
    ("usr/lib64", "lib64"),
];

pub(crate) fn measure(scale: Scale, figures: &mut Figures) -> Result<()> {
    figures.times(
        "floor: fork, exec and wait of `true`",
        Goal::NONE,
        repeat(scale.runs, &mut Command::new("true"))?,
    );
    let mut bwrap = Command::new("bwrap");
    bwrap.args(["--unshare-all", "--ro-bind", "/usr", "/usr"]);
    for (target, link) in LINKS {
        bwrap.args(["--symlink", target, &format!("/{link}")]);
    }
    bwrap.args(["--proc", "/proc", "--dev", "/dev", "true"]);
    figures.times(
        "peer: `bwrap --unshare-all … true` (no disk, network, limits or filter)",
        Goal::NONE,
        repeat(scale.runs, &mut bwrap)?,
    );
    figures.times(
        "peer: `crun run` of `true` (no disk, network, limits or filter)",
        Goal::NONE,
        crun_apart(scale.runs)?,
    );
    Ok(())
}

/// Times a program from its start to its end, many times.
fn repeat(runs: usize, program: &mut Command) -> Result<Vec<Duration>> {
    program.stdin(Stdio::null()).stdout(Stdio::null());
    (0..runs).map(|_| timed(program)).collect()
}

fn timed(program: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    let status = program
        .status()
        .with_context(|| format!("cannot run {program:?}: run `cargo xtask bench`"))?;
    ensure!(status.success(), "{program:?} ended with {status}");
    Ok(begun.elapsed())
}

/// crun refuses machines on which both versions of cgroups are in use, also where it is to make none: it runs where only
/// the first can be seen, in a mount namespace that is made once for all runs.
fn crun_apart(runs: usize) -> Result<Vec<Duration>> {
    let me = std::env::current_exe()?;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .args(["umount -l /sys/fs/cgroup/unified 2>/dev/null; exec \"$0\" crun \"$1\""])
        .arg(me)
        .arg(runs.to_string())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(
        output.status.success(),
        "crun's runs ended with {}",
        output.status
    );
    let seconds: Vec<f64> = serde_json::from_slice(&output.stdout)?;
    Ok(seconds.into_iter().map(Duration::from_secs_f64).collect())
}

/// How long crun takes for `true` in a root like the `base` template's, in seconds, as JSON.
pub(crate) fn crun(runs: usize) -> Result<String> {
    let bundle = std::env::temp_dir().join(format!("atoll-bench-{}", std::process::id()));
    let times = crun_in(&bundle, runs);
    fs::remove_dir_all(&bundle)?;
    let seconds: Vec<f64> = times?.iter().map(Duration::as_secs_f64).collect();
    Ok(serde_json::to_string(&seconds)?)
}

fn crun_in(bundle: &Path, runs: usize) -> Result<Vec<Duration>> {
    let root = bundle.join("rootfs");
    for dir in ["usr", "proc", "dev"] {
        fs::create_dir_all(root.join(dir))?;
    }
    for (target, link) in LINKS {
        symlink(target, root.join(link))?;
    }
    let namespaces =
        ["pid", "mount", "network", "uts", "ipc"].map(|kind| serde_json::json!({ "type": kind }));
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": true },
        "process": { "args": ["true"], "cwd": "/", "env": ["PATH=/usr/bin"], "user": { "uid": 0, "gid": 0 } },
        "mounts": [
            { "destination": "/usr", "source": "/usr", "type": "bind", "options": ["rbind", "ro"] },
            { "destination": "/proc", "source": "proc", "type": "proc" },
            { "destination": "/dev", "source": "tmpfs", "type": "tmpfs", "options": ["nosuid", "mode=755"] },
        ],
        "linux": { "namespaces": namespaces },
    });
    fs::write(bundle.join("config.json"), config.to_string())?;
    let once = |run| {
        let mut crun = Command::new("crun");
        crun.args(["--cgroup-manager=disabled", "run", "--bundle"])
            .arg(bundle)
            .arg(format!("atoll-bench-{}-{run}", std::process::id()))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        timed(&mut crun)
    };
    (0..runs).map(once).collect()
}

/// MiB per second of a plain copy through loopback TCP.
pub(crate) async fn loopback() -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let reading = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let (mut buffer, mut read) = (vec![0; 256 * 1024], 0);
        while read < FILE_BYTES {
            match stream.read(&mut buffer).await? {
                0 => break,
                n => read += n,
            }
        }
        anyhow::Ok(())
    });
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).await?;
    let chunk = vec![7; 256 * 1024];
    for _ in 0..FILE_BYTES / chunk.len() {
        stream.write_all(&chunk).await?;
    }
    reading.await??;
    Ok(rate(begun.elapsed()))
}

/// MiB per second of the file size.
pub(crate) fn rate(took: Duration) -> f64 {
    100.0 / took.as_secs_f64()
}
