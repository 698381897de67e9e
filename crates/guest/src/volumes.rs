//! The volumes of one machine: attached in it by orders on its line, and served on a stream for each, which is dialled again
//! whenever it ends.
//!
//! ```text
//! give ──▶ served ──quiet──▶ nothing is under way ──serve──▶ served      around everything that writes memory down
//!             └──────────────────── end ───▶ nobody holds the volumes
//! ```
//!
//! While nobody serves a volume, whoever asks something of it in the machine waits, as with a disk that does not answer.
mod serve;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use model::{VolumeId, VolumeMount};
use ports::RuntimeError;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use volumes::{Export, Volumes};

use crate::line::{HEADER_BYTES_MAX, Header, Line, LineError, Nothing, Order, Reason};

/// What is under way is brought to its end within this time before memory is written down, as a rule at once. What is not may be
/// done a second time by whoever goes on from that memory.
const QUIET_WITHIN: Duration = Duration::from_secs(10);

/// A guest that runs answers in milliseconds.
const LOST_WITHIN: Duration = Duration::from_secs(30);
/// Between two attempts to reach one.
const LOST_AGAIN: Duration = Duration::from_millis(500);

/// The way to a machine, whenever it is needed.
#[async_trait]
pub trait Lines: Send + Sync {
    /// The line. Waits as long as the machine does not answer.
    ///
    /// # Errors
    /// The machine is not there now; it may be a moment later.
    async fn line(&self) -> io::Result<Line>;
}

/// Why a machine was not given its volumes.
#[derive(Debug, thiserror::Error)]
pub enum GiveError {
    /// What is in the machine stands in the way.
    #[error("a volume at {path}: {why}")]
    Unfit {
        /// Where.
        path: String,
        /// In words.
        why: String,
    },
    /// The machine cannot be reached.
    #[error("giving a machine its volumes failed")]
    Line(#[source] LineError),
    /// Nor its line.
    #[error("reaching a machine to give it its volumes failed")]
    Io(#[source] io::Error),
}

impl GiveError {
    /// As the runtime of this name tells it.
    #[must_use]
    pub fn told_by(self, runtime: &'static str) -> RuntimeError {
        match self {
            unfit @ Self::Unfit { .. } => RuntimeError::Unsupported {
                runtime,
                what: unfit.to_string(),
            },
            failed => RuntimeError::Step {
                step: "giving a machine its volumes".to_owned(),
                source: io::Error::other(failed),
            },
        }
    }
}

/// One volume at one place.
#[derive(Debug, Clone)]
struct Given {
    tag: u64,
    path: String,
    export: Arc<Export>,
}

/// The volumes of a machine.
#[derive(Debug, Default)]
pub struct Lent {
    given: Mutex<Vec<Given>>,
    serving: Mutex<Vec<Serving>>,
}

/// A volume that is served.
#[derive(Debug)]
struct Serving {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Lent {
    /// Has the volumes of a machine mounted on the host, for `holder`. Blocks.
    ///
    /// # Errors
    /// One is not there, or cannot be mounted. What was mounted until then is the holder's to give back.
    pub fn of(store: &Arc<Volumes>, mounts: &[VolumeMount], holder: &str) -> Result<Self, RuntimeError> {
        let mut given = Vec::new();
        let mut sorted: Vec<_> = mounts.iter().collect();
        // Those that lie within others after them.
        sorted.sort_by(|a, b| a.path.cmp(&b.path));
        for mount in sorted {
            given.push(Given {
                tag: tag(mount.volume, &mount.path),
                path: mount.path.clone(),
                export: store.export(mount.volume, holder)?,
            });
        }
        Ok(Self {
            given: Mutex::new(given),
            serving: Mutex::default(),
        })
    }

    /// Takes these in the place of none.
    pub fn take(&self, other: &Self) {
        *lock(&self.given) = std::mem::take(&mut *lock(&other.given));
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        lock(&self.given).is_empty()
    }

    /// Gives a machine its volumes, and has it lose those that are not its own, and serves them from then on. `restored`: its memory
    /// was brought back, and may be another's. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// See [`GiveError`].
    pub async fn give(&self, lines: &Arc<dyn Lines>, restored: bool) -> Result<(), GiveError> {
        let given = lock(&self.given).clone();
        if given.is_empty() && !restored {
            return Ok(());
        }
        let keep = given.iter().map(|given| given.tag).collect();
        let lose = Order::Volumes { keep };
        if given.is_empty() {
            // Nobody waits for that: what it may have answers nobody as it is.
            tokio::spawn(have_lost(Arc::clone(lines), lose));
            return Ok(());
        }
        let line = lines.line().await.map_err(GiveError::Io)?;
        if restored {
            let Nothing {} = line.order(lose).await.map_err(GiveError::Line)?;
        }
        for given in given {
            let order = Order::Attach {
                tag: given.tag,
                path: given.path.clone(),
            };
            let unfit = |why: String| GiveError::Unfit {
                path: given.path.clone(),
                why,
            };
            if Header::Agent(order.clone()).to_line().len() > HEADER_BYTES_MAX {
                return Err(unfit("the path is too long".to_owned()));
            }
            let Nothing {} = line.order(order).await.map_err(|error| match error {
                LineError::Refused {
                    reason: Reason::Unfit,
                    said,
                    ..
                } => unfit(said),
                error => GiveError::Line(error),
            })?;
            // Others may lie within it.
            self.serve_one(&given, lines);
        }
        Ok(())
    }

    /// Serves all of them from now on.
    pub fn serve(&self, lines: &Arc<dyn Lines>) {
        let given = lock(&self.given).clone();
        lock(&self.serving).clear();
        for given in &given {
            self.serve_one(given, lines);
        }
    }

    fn serve_one(&self, given: &Given, lines: &Arc<dyn Lines>) {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(serve::serve(
            given.tag,
            Arc::clone(&given.export),
            Arc::clone(lines),
            stopped,
        ));
        lock(&self.serving).push(Serving { stop, task });
    }

    /// Has everything that is under way brought to its end, and serves nothing until [`Lent::serve`].
    pub async fn quiet(&self) {
        let mut serving = std::mem::take(&mut *lock(&self.serving));
        for one in &serving {
            one.stop.send_replace(true);
        }
        let all = async {
            for one in &mut serving {
                // One that broke is over as well.
                let _ = (&mut one.task).await;
            }
        };
        if tokio::time::timeout(QUIET_WITHIN, all).await.is_err() {
            tracing::warn!(
                "what a machine asked of its volumes was not done in time: it may be done twice by what goes on from its memory"
            );
        }
    }

    /// Lets go of the volumes: nothing is served any more.
    pub fn end(&self) {
        lock(&self.serving).clear();
        lock(&self.given).clear();
    }
}

/// Has a machine lose volumes, and asks again where it cannot be reached: whoever waits for one there would wait for ever.
async fn have_lost(lines: Arc<dyn Lines>, lose: Order) {
    let until_lost = async {
        loop {
            if let Ok(line) = lines.line().await
                && line.order::<Nothing>(lose.clone()).await.is_ok()
            {
                break;
            }
            tokio::time::sleep(LOST_AGAIN).await;
        }
    };
    if tokio::time::timeout(LOST_WITHIN, until_lost).await.is_err() {
        tracing::debug!("a machine was not told that it has no volumes: it has ended, or may wait for them");
    }
}

fn lock<T>(what: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a machine calls a volume at a place: the same in every machine that has it there, and no other's.
fn tag(volume: VolumeId, path: &str) -> u64 {
    let digest = Sha256::digest(format!("{volume}\0{path}"));
    digest[..8]
        .iter()
        .fold(0, |tag, byte| tag << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests;
