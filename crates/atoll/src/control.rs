//! A word with the running daemon: one line over a socket in the data directory, answered by one line of JSON.
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::house::House;

const SOCKET: &str = "control.sock";
/// Commands are words.
const LINE_BYTES_MAX: u64 = 64;
/// Ending a thousand sandboxes takes seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);

/// What a daemon says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) pid: u32,
    pub(crate) version: String,
    pub(crate) runtime: String,
    pub(crate) started_at: String,
    pub(crate) api_url: String,
    pub(crate) sandbox_url: String,
    pub(crate) running: usize,
    pub(crate) paused: usize,
    pub(crate) slots_ready: u32,
}

/// The daemon's answer to `down`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) ended: usize,
    pub(crate) error: Option<String>,
}

/// Listens until `shutdown`. After `down` has been answered, it cancels `shutdown` itself.
pub(crate) async fn serve(house: Arc<House>, shutdown: CancellationToken) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = house.data.path().join(SOCKET);
    let _ = std::fs::remove_file(&path);
    let short = Short::of(house.data.path())?;
    let listener = tokio::net::UnixListener::bind(short.path())
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.map(|(stream, _)| stream),
            () = shutdown.cancelled() => return Ok(()),
        };
        let Ok(stream) = stream else { continue };
        let (house, shutdown) = (Arc::clone(&house), shutdown.clone());
        tokio::spawn(async move {
            if let Err(error) = answer(&house, stream, &shutdown).await {
                tracing::warn!("the control socket: {error:#}");
            }
        });
    }
}

async fn answer(
    house: &House,
    mut stream: tokio::net::UnixStream,
    shutdown: &CancellationToken,
) -> Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    tokio::io::BufReader::new(read.take(LINE_BYTES_MAX))
        .read_line(&mut line)
        .await?;
    let is_down = line.trim() == "down";
    let answer = match line.trim() {
        "status" => serde_json::to_string(&house.status().await?)?,
        "down" => serde_json::to_string(&house.end_sandboxes().await)?,
        other => bail!("unknown command {other:?}"),
    };
    write.write_all(format!("{answer}\n").as_bytes()).await?;
    if is_down {
        shutdown.cancel();
    }
    Ok(())
}

/// Asks the daemon of a data directory.
pub(crate) fn ask<T: for<'de> Deserialize<'de>>(data: &Path, command: &str) -> Result<T> {
    let short = Short::of(data)?;
    let mut stream = UnixStream::connect(short.path())
        .with_context(|| format!("no daemon answers at {}", data.join(SOCKET).display()))?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("the daemon's answer to {command} is broken"))
}

/// A path of the socket that fits into a socket address, however long the data directory's is.
struct Short(std::fs::File);

impl Short {
    fn of(data: &Path) -> Result<Self> {
        std::fs::File::open(data)
            .map(Self)
            .with_context(|| format!("cannot open {}", data.display()))
    }
    fn path(&self) -> String {
        format!("/proc/self/fd/{}/{SOCKET}", self.0.as_raw_fd())
    }
}
