//! What nodes hold of volumes against what is stored. What does not agree is contained, not mended: it is somebody's data.
//!
//! Files are asked of a volume's home alone, and sandboxes that have it start there alone. So a copy on another node, as of a
//! data directory that was copied, is used by nobody; and where the home has lost the files, whoever asks for them is told so.
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use model::{NodeId, Volume, VolumeId, VolumeState};
use ports::ManagerError;
use tokio::time::Instant;

use crate::failure;
use crate::orchestrator::Orchestrator;

/// How often nodes are asked which volumes they hold.
const PERIOD: Duration = Duration::from_secs(60);
/// A list of names.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// Nodes that are asked at once.
const AT_ONCE: usize = 32;

/// What does not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Wrong {
    /// The home of a volume does not have it.
    Lost { volume: VolumeId, home: NodeId },
    /// A node has a volume whose home is another.
    Twice {
        volume: VolumeId,
        home: NodeId,
        node: NodeId,
    },
    /// A node has a volume that nobody knows.
    Unknown { volume: VolumeId, node: NodeId },
}

impl Wrong {
    const fn name(self) -> &'static str {
        match self {
            Wrong::Lost { .. } => "lost",
            Wrong::Twice { .. } => "twice",
            Wrong::Unknown { .. } => "unknown",
        }
    }

    fn tell(self) {
        match self {
            Wrong::Lost { volume, home } => {
                tracing::error!(%volume, node = %home, "a volume has no files on its node: they were moved or lost. Whoever asks for it is told so; bring them back to that node, or delete the volume");
            }
            Wrong::Twice { volume, home, node } => {
                tracing::error!(%volume, %node, %home, "two nodes claim one volume: what its home has is used, and what the other has is not. Was a data directory copied? Remove the copy from the other node");
            }
            Wrong::Unknown { volume, node } => {
                tracing::warn!(%volume, %node, "a node has a volume that is not stored, as after a restore from a backup: it is used by nobody, and left where it is");
            }
        }
    }
}

/// What was told already, and when nodes were asked last.
#[derive(Default)]
pub(crate) struct Homes(Mutex<(HashSet<Wrong>, Option<Instant>)>);

impl Homes {
    fn is_due(&self) -> bool {
        let mut told = self
            .0
            .lock()
            .expect("nothing panics while it holds what was told");
        let is_due = told.1.is_none_or(|last| last.elapsed() >= PERIOD);
        if is_due {
            told.1 = Some(Instant::now());
        }
        is_due
    }

    /// What was not told yet. What is right again is told when it is wrong again.
    fn news(&self, wrongs: &BTreeSet<Wrong>) -> Vec<Wrong> {
        let mut told = self
            .0
            .lock()
            .expect("nothing panics while it holds what was told");
        let news = wrongs.iter().filter(|wrong| !told.0.contains(wrong));
        let news = news.copied().collect();
        told.0 = wrongs.iter().copied().collect();
        news
    }
}

/// What nodes hold.
type Held = BTreeMap<NodeId, BTreeSet<VolumeId>>;

/// What is stored: volumes, and what remains of those that were given up.
struct Stored {
    volumes: BTreeMap<VolumeId, Volume>,
    remains: BTreeSet<VolumeId>,
}

/// What does not agree. Volumes are made and deleted while nodes are asked: what counts was stored before, and is after.
fn judge(
    before: &Stored,
    after: &Stored,
    held: &Held,
    home: impl Fn(&Volume) -> Option<NodeId>,
) -> BTreeSet<Wrong> {
    let mut wrongs = BTreeSet::new();
    for (id, volume) in &before.volumes {
        let is_ready = |stored: &Volume| stored.state == VolumeState::Ready;
        let stays = is_ready(volume) && after.volumes.get(id).is_some_and(is_ready);
        let Some(home) = home(volume) else { continue };
        let is_missing = held.get(&home).is_some_and(|held| !held.contains(id));
        if stays && is_missing {
            wrongs.insert(Wrong::Lost { volume: *id, home });
        }
    }
    for (node, volumes) in held {
        for volume in volumes {
            let stored = after.volumes.get(volume).or_else(|| before.volumes.get(volume));
            let is_remains = before.remains.contains(volume) || after.remains.contains(volume);
            match stored.map(&home) {
                Some(Some(home)) if home != *node => {
                    wrongs.insert(Wrong::Twice {
                        volume: *volume,
                        home,
                        node: *node,
                    });
                }
                None if !is_remains => {
                    wrongs.insert(Wrong::Unknown {
                        volume: *volume,
                        node: *node,
                    });
                }
                _ => {}
            }
        }
    }
    wrongs
}

impl Orchestrator {
    async fn stored_volumes(&self) -> Result<Stored, ManagerError> {
        let step = "reading the volumes";
        let volumes = self.parts.volumes.all_volumes().await;
        let volumes = volumes.map_err(failure::store(step))?;
        // Behind them: what is given up meanwhile is in one of the two.
        let remains = self.parts.volumes.volume_remains().await;
        let remains = remains.map_err(failure::store(step))?;
        Ok(Stored {
            volumes: volumes.into_iter().map(|volume| (volume.id, volume)).collect(),
            remains: remains.into_iter().map(|volume| volume.id).collect(),
        })
    }

    /// Asks nodes which volumes they hold, now and then, and tells what does not agree with what is stored.
    pub(super) async fn look_at_homes(&self) -> Result<(), ManagerError> {
        if self.homes.is_due() {
            self.compare_homes().await?;
        }
        Ok(())
    }

    /// The same at once; how many do not agree.
    ///
    /// # Errors
    /// Where the store is away. A node that does not answer is left out.
    pub async fn compare_homes(&self) -> Result<usize, ManagerError> {
        let before = self.stored_volumes().await?;
        let nodes: Vec<NodeId> = self
            .parts
            .fleet
            .nodes()
            .borrow()
            .iter()
            .map(|node| node.id())
            .collect();
        let asked = nodes.into_iter().map(async |node| {
            let files = self.parts.volume_nodes.files_on(node)?;
            let held = tokio::time::timeout(TOLD_WITHIN, files.held()).await.ok()?.ok()?;
            Some((node, held.into_iter().collect::<BTreeSet<_>>()))
        });
        let answers = stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
        let held: Held = answers.filter_map(std::future::ready).collect().await;
        let after = self.stored_volumes().await?;
        let wrongs = judge(&before, &after, &held, |volume| self.home_of(volume));
        for name in ["lost", "twice", "unknown"] {
            let count = wrongs.iter().filter(|wrong| wrong.name() == name).count();
            #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2^52 volumes")]
            metrics::gauge!("atoll_volumes_contained", "why" => name).set(count as f64);
        }
        self.homes.news(&wrongs).into_iter().for_each(Wrong::tell);
        Ok(wrongs.len())
    }
}

#[cfg(test)]
mod tests;
