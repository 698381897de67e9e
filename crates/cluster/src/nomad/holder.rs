//! What runs in an allocation: a process that holds the capacity by being there, and says so to the node's daemon.
use std::path::Path;
use std::time::Duration;

use model::SandboxId;
use ports::scheduler::Size;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::holds::{Answered, Said, line, read_line};

/// How soon the node's daemon is looked for again, which may be starting anew.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Which block it is, as Nomad told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The block's id: `NOMAD_JOB_ID`.
    pub id: String,
    /// Its allocation: `NOMAD_ALLOC_ID`.
    pub allocation: String,
    /// How much it holds.
    pub size: Size,
    /// For which sandbox alone, if for one: `NOMAD_META_atoll_sandbox`.
    pub sandbox: Option<SandboxId>,
}

/// Holds a block until told to stop; then has the node empty it, and returns when nothing is in it any more. `true`: it was emptied;
/// `false`: no daemon was there to say so, and nothing of it can be in use by one. The caller bounds the wait: Nomad kills the
/// process when its time to stop is over.
pub async fn hold(socket: &Path, holder: &Holder, stop: CancellationToken) -> bool {
    loop {
        let line = tokio::select! {
            biased;
            () = stop.cancelled() => return drain(socket, holder).await,
            line = open(socket, holder) => line,
        };
        if let Some((mut lines, mut write)) = line {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    if emptied(&mut lines, &mut write).await {
                        return true;
                    }
                    return drain(socket, holder).await;
                }
                // The daemon is gone, or starts anew: its sandboxes live, and it is told again.
                _ = read_line(&mut lines) => {}
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(AGAIN_AFTER) => {}
        }
    }
}

type Line = (BufReader<OwnedReadHalf>, OwnedWriteHalf);

/// Tells the daemon of the block; `None` where it does not listen, or does not take it.
async fn open(socket: &Path, holder: &Holder) -> Option<Line> {
    let (read, mut write) = UnixStream::connect(socket).await.ok()?.into_split();
    let said = Said::Hold {
        id: holder.id.clone(),
        allocation: holder.allocation.clone(),
        cpu: holder.size.cpu,
        memory_mib: holder.size.memory.0,
        sandbox: holder.sandbox,
    };
    write.write_all(line(&said).as_bytes()).await.ok()?;
    let mut lines = BufReader::new(read);
    match serde_json::from_str(&read_line(&mut lines).await?).ok()? {
        Answered::Held => Some((lines, write)),
        Answered::Refused { why } => {
            tracing::warn!(id = holder.id, why, "the node does not take this block");
            None
        }
        Answered::Empty => None,
    }
}

async fn emptied(lines: &mut BufReader<OwnedReadHalf>, write: &mut OwnedWriteHalf) -> bool {
    if write.write_all(line(&Said::Drain).as_bytes()).await.is_err() {
        return false;
    }
    let Some(answer) = read_line(lines).await else {
        return false;
    };
    matches!(serde_json::from_str(&answer), Ok(Answered::Empty))
}

/// Has a daemon empty the block that came back meanwhile. A daemon that starts anew may take some seconds.
async fn drain(socket: &Path, holder: &Holder) -> bool {
    for _ in 0..20 {
        if let Some((mut lines, mut write)) = open(socket, holder).await
            && emptied(&mut lines, &mut write).await
        {
            return true;
        }
        sleep(AGAIN_AFTER).await;
    }
    false
}
