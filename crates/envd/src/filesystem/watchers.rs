//! Watches of clients that come back to ask (contract 5.4: `CreateWatcher` and its like). They belong to no connection.
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use connectrpc::ConnectError;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use wire::envd::filesystem as proto;

use super::entry;
use super::watch::Watch;

/// Watches at once: as many as the kernel lets one user have (`fs.inotify.max_user_instances`).
const WATCHERS_MAX: usize = 128;
/// Events that wait for a client; it then learns that some were lost.
const EVENTS_MAX: usize = 16_384;
/// What they may take in memory, for one watcher and for all of them.
const EVENTS_BYTES_MAX: usize = 4_194_304;
const ALL_EVENTS_BYTES_MAX: usize = 16_777_216;
/// Where there is no room for another, one that nobody asked for this long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// All of them, by their names.
#[derive(Default)]
pub(super) struct Watchers(Mutex<Table>);

#[derive(Default)]
struct Table {
    watchers: HashMap<String, Watcher>,
    made: u64,
    /// What the events of all of them take.
    bytes: Arc<AtomicUsize>,
}

struct Watcher {
    queue: Arc<Mutex<Queue>>,
    task: AbortHandle,
    asked_at: Instant,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Queue {
    events: VecDeque<proto::FilesystemEvent>,
    bytes: usize,
    all_bytes: Arc<AtomicUsize>,
    /// Why there are no more.
    ended: Option<ConnectError>,
}

impl Queue {
    fn of(all_bytes: &Arc<AtomicUsize>) -> Self {
        Self {
            events: VecDeque::new(),
            bytes: 0,
            all_bytes: Arc::clone(all_bytes),
            ended: None,
        }
    }

    /// Keeps what happened; `false`: there is no room.
    fn keep(&mut self, events: Vec<proto::FilesystemEvent>) -> bool {
        let bytes: usize = events.iter().map(weight).sum();
        let all_bytes = self.all_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bytes += bytes;
        self.events.extend(events);
        self.events.len() <= EVENTS_MAX && self.bytes <= EVENTS_BYTES_MAX && all_bytes <= ALL_EVENTS_BYTES_MAX
    }

    fn take(&mut self) -> Vec<proto::FilesystemEvent> {
        let bytes = std::mem::take(&mut self.bytes);
        self.all_bytes.fetch_sub(bytes, Ordering::Relaxed);
        std::mem::take(&mut self.events).into()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.take();
    }
}

/// About what an event takes.
fn weight(event: &proto::FilesystemEvent) -> usize {
    /// Its fields without their text.
    const OVERHEAD: usize = 256;
    OVERHEAD + event.name.len() + event.entry.as_option().map_or(0, entry::weight)
}

impl Watchers {
    /// Whether there is room for another; an abandoned one makes room.
    pub(super) fn make_room(&self) -> Result<(), ConnectError> {
        let mut table = self.table();
        if table.watchers.len() < WATCHERS_MAX {
            return Ok(());
        }
        let oldest = table.watchers.iter().min_by_key(|(_, watcher)| watcher.asked_at);
        let abandoned = oldest.filter(|(_, watcher)| watcher.asked_at.elapsed() > FORGOTTEN_AFTER);
        let Some(id) = abandoned.map(|(id, _)| id.clone()) else {
            return Err(ConnectError::resource_exhausted(format!(
                "there are {WATCHERS_MAX} watchers already"
            )));
        };
        table.watchers.remove(&id);
        Ok(())
    }

    /// Collects what a watch tells, until it is asked for. Says under which name.
    pub(super) fn add(&self, watch: Watch) -> String {
        let mut table = self.table();
        let queue = Arc::new(Mutex::new(Queue::of(&table.bytes)));
        let task = tokio::spawn(collect(watch, Arc::clone(&queue))).abort_handle();
        table.made += 1;
        let id = format!("watcher-{}", table.made);
        table.watchers.insert(
            id.clone(),
            Watcher {
                queue,
                task,
                asked_at: Instant::now(),
            },
        );
        id
    }

    /// What happened since the last asking.
    pub(super) fn take(&self, id: &str) -> Result<Vec<proto::FilesystemEvent>, ConnectError> {
        let mut table = self.table();
        let watcher = table.watchers.get_mut(id).ok_or_else(|| missing(id))?;
        watcher.asked_at = Instant::now();
        let mut queue = watcher
            .queue
            .lock()
            .expect("nothing panics while it holds the events");
        if queue.events.is_empty()
            && let Some(error) = &queue.ended
        {
            return Err(ConnectError::new(
                error.code,
                error.message.clone().unwrap_or_default(),
            ));
        }
        Ok(queue.take())
    }

    pub(super) fn remove(&self, id: &str) -> Result<(), ConnectError> {
        self.table()
            .watchers
            .remove(id)
            .map(drop)
            .ok_or_else(|| missing(id))
    }

    /// Forgets all of them.
    pub(super) fn forget(&self) {
        self.table().watchers.clear();
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().expect("nothing panics while it holds the watchers")
    }
}

async fn collect(mut watch: Watch, queue: Arc<Mutex<Queue>>) {
    loop {
        let next = watch.next().await;
        let mut queue = queue.lock().expect("nothing panics while it holds the events");
        match next {
            Ok(events) => {
                if queue.keep(events) {
                    continue;
                }
                queue.take();
                queue.ended = Some(ConnectError::resource_exhausted(
                    "events were lost: the client did not ask for them",
                ));
                return;
            }
            Err(error) => {
                queue.ended = Some(error);
                return;
            }
        }
    }
}

fn missing(id: &str) -> ConnectError {
    ConnectError::not_found(format!("watcher with id {id} not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(count: usize) -> Vec<proto::FilesystemEvent> {
        let event = proto::FilesystemEvent {
            name: "n".repeat(4096),
            ..Default::default()
        };
        vec![event; count]
    }

    #[test]
    fn events_are_bounded_by_what_they_take_for_one_and_for_all() {
        let all_bytes = Arc::new(AtomicUsize::new(0));
        let queue = || Queue::of(&all_bytes);
        let mut one = queue();
        assert!(one.keep(events(900)));
        assert!(!one.keep(events(200)), "too many for one");
        assert_eq!(one.take().len(), 1100);
        assert!(one.keep(events(900)), "what was asked for makes room");
        let mut others: Vec<_> = (0..4).map(|_| queue()).collect();
        let kept = others
            .iter_mut()
            .filter_map(|other| other.keep(events(900)).then_some(()));
        assert_eq!(kept.count(), 3, "too many for all");
        drop((one, others));
        assert_eq!(all_bytes.load(Ordering::Relaxed), 0);
    }
}
