//! The node's end of its blocks: who holds how much on this machine, and which of them are to be emptied.
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use model::{MiB, SandboxId};
use ports::scheduler::Size;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Bytes of a line that are read.
pub(super) const LINE_BYTES_MAX: u64 = 4096;
/// Blocks on one machine.
const HOLDS_MAX: usize = 1024;

/// What a block says to its node, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Said {
    /// It is there.
    Hold {
        id: String,
        allocation: String,
        cpu: u32,
        memory_mib: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sandbox: Option<SandboxId>,
    },
    /// It is to stop: the node is to empty it.
    Drain,
}

/// What the node says to a block, a line each.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Answered {
    /// It is counted.
    Held,
    /// Nothing is in it any more.
    Empty,
    /// It is not taken.
    Refused { why: String },
}

/// A block on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Which allocation it is.
    pub allocation: String,
    /// How much it holds.
    pub size: Size,
    /// For which sandbox alone it is, if it is.
    pub sandbox: Option<SandboxId>,
    /// It is to be emptied.
    pub draining: bool,
}

/// How much of blocks may be used: what those hold that do not drain, in sum.
#[must_use]
pub fn usable(holds: &BTreeMap<String, Hold>) -> Size {
    let stay = holds.values().filter(|hold| !hold.draining);
    stay.fold(Size::default(), |sum, hold| Size {
        cpu: sum.cpu.saturating_add(hold.size.cpu),
        memory: MiB(sum.memory.0.saturating_add(hold.size.memory.0)),
    })
}

/// The blocks of this machine, by their ids, as they come and go. One whose process ended is gone at once.
pub struct Holds {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    holds: watch::Sender<BTreeMap<String, Hold>>,
    /// Those that were found empty.
    emptied: watch::Sender<BTreeMap<String, String>>,
}

impl Holds {
    /// Listens to blocks at a socket, which root alone may open. What lies there is replaced.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(socket: &Path) -> std::io::Result<Self> {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
        let shared = Arc::new(Shared {
            holds: watch::Sender::default(),
            emptied: watch::Sender::default(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(accept(listener, Arc::clone(&shared), stop.clone()));
        Ok(Self {
            shared,
            _stop: stop.drop_guard(),
        })
    }

    /// All blocks, as a watched value.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<BTreeMap<String, Hold>> {
        self.shared.holds.subscribe()
    }

    /// Says that nothing is in a block any more, so that its process may end.
    pub fn emptied(&self, id: &str, allocation: &str) {
        let is_held = |hold: &Hold| hold.allocation == allocation;
        if !self.shared.holds.borrow().get(id).is_some_and(is_held) {
            return;
        }
        self.shared.emptied.send_modify(|emptied| {
            emptied.insert(id.to_owned(), allocation.to_owned());
        });
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Too many files are open: others may be closed meanwhile.
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            continue;
        };
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = serve(stream, &shared) => {}
            }
        });
    }
}

pub(super) async fn read_line<R: tokio::io::AsyncBufRead + Unpin>(lines: &mut R) -> Option<String> {
    let mut line = String::new();
    let read = lines.take(LINE_BYTES_MAX).read_line(&mut line).await.ok()?;
    // One that was cut is none.
    (read > 0 && line.ends_with('\n')).then_some(line)
}

pub(super) fn line(said: &impl Serialize) -> String {
    let text = serde_json::to_string(said).expect("an enum of texts and numbers is JSON");
    format!("{text}\n")
}

/// Takes a block out again when its process has ended, however it did.
struct Gone<'a>(&'a Shared, String, String);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.holds.send_if_modified(|holds| {
            // It may have come back already, by another line.
            let is_own = holds.get(&self.1).is_some_and(|hold| hold.allocation == self.2);
            if is_own {
                holds.remove(&self.1);
            }
            is_own
        });
        self.0.emptied.send_if_modified(|emptied| {
            if emptied.get(&self.1) == Some(&self.2) {
                emptied.remove(&self.1);
            }
            false
        });
    }
}

async fn serve(stream: UnixStream, shared: &Shared) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read);
    let Some(first) = read_line(&mut lines).await else {
        return;
    };
    let Ok(Said::Hold {
        id,
        allocation,
        cpu,
        memory_mib,
        sandbox,
    }) = serde_json::from_str(&first)
    else {
        return;
    };
    let size = Size {
        cpu,
        memory: MiB(memory_mib),
    };
    let mut why = String::new();
    shared.holds.send_if_modified(|holds| {
        if id.is_empty() || allocation.is_empty() || cpu == 0 || memory_mib == 0 {
            "it does not say which it is, or how large".clone_into(&mut why);
        } else if holds.len() >= HOLDS_MAX {
            "there are too many on this machine".clone_into(&mut why);
        } else if holds.get(&id).is_some_and(|hold| hold.allocation == allocation) {
            "its allocation is held already".clone_into(&mut why);
        } else {
            let hold = Hold {
                allocation: allocation.clone(),
                size,
                sandbox,
                draining: false,
            };
            holds.insert(id.clone(), hold);
        }
        why.is_empty()
    });
    if !why.is_empty() {
        let _ = write.write_all(line(&Answered::Refused { why }).as_bytes()).await;
        return;
    }
    let _gone = Gone(shared, id.clone(), allocation.clone());
    if write.write_all(line(&Answered::Held).as_bytes()).await.is_err() {
        return;
    }
    let Some(next) = read_line(&mut lines).await else {
        return;
    };
    if !matches!(serde_json::from_str(&next), Ok(Said::Drain)) {
        return;
    }
    let mut emptied = shared.emptied.subscribe();
    shared.holds.send_if_modified(|holds| {
        let hold = holds.get_mut(&id).filter(|hold| hold.allocation == allocation);
        hold.is_some_and(|hold| !std::mem::replace(&mut hold.draining, true))
    });
    let is_empty = tokio::select! {
        is_empty = async { emptied.wait_for(|emptied| emptied.get(&id) == Some(&allocation)).await.is_ok() } => is_empty,
        // Its process ended without waiting any longer.
        _ = read_line(&mut lines) => false,
    };
    if is_empty {
        let _ = write.write_all(line(&Answered::Empty).as_bytes()).await;
    }
}
