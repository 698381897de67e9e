//! What the machine itself takes: the floor under every other figure.
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::figures::Figures;

const RUNS: usize = 100;
/// As much as the file figures move.
pub(crate) const FILE_BYTES: usize = 100 << 20;

pub(crate) async fn measure(figures: &mut Figures) -> Result<()> {
    figures.times(
        "floor: fork, exec and wait of `true`",
        (0..RUNS).map(|_| timed(&["true"])).collect::<Result<_>>()?,
    );
    let bwrap = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"];
    if let Ok(first) = timed(&bwrap) {
        let rest = (1..RUNS).map(|_| timed(&bwrap)).collect::<Result<Vec<_>>>()?;
        figures.times(
            "peer: `bwrap --unshare-all` of `true` (no disk, network, limits or filter)",
            [vec![first], rest].concat(),
        );
    } else {
        eprintln!("bench: SKIPPED bwrap: it is not installed");
    }
    figures.one("floor: 100 MiB through loopback TCP", loopback().await?, "MiB/s");
    Ok(())
}

fn timed(command: &[&str]) -> Result<Duration> {
    let begun = Instant::now();
    let status = Command::new(command[0])
        .args(&command[1..])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "{} ended with {status}", command[0]);
    Ok(begun.elapsed())
}

async fn loopback() -> Result<f64> {
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
