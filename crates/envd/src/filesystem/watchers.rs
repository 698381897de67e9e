//! Watches of clients that come back to ask (contract 5.4: `CreateWatcher` and its like). They belong to no connection.
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use connectrpc::ConnectError;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use wire::envd::filesystem as proto;

use super::watch::Watch;

/// Watches at once: as many as the kernel lets one user have (`fs.inotify.max_user_instances`).
const WATCHERS_MAX: usize = 128;
/// Events that wait for a client; it then learns that some were lost.
const EVENTS_MAX: usize = 16_384;
/// Where there is no room for another, one that nobody asked for this long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// All of them, by their names.
#[derive(Default)]
pub(super) struct Watchers(Mutex<Table>);

#[derive(Default)]
struct Table {
    watchers: HashMap<String, Watcher>,
    made: u64,
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

#[derive(Default)]
struct Queue {
    events: VecDeque<proto::FilesystemEvent>,
    /// Why there are no more.
    ended: Option<ConnectError>,
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
        let queue = Arc::new(Mutex::new(Queue::default()));
        let task = tokio::spawn(collect(watch, Arc::clone(&queue))).abort_handle();
        let mut table = self.table();
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
        Ok(std::mem::take(&mut queue.events).into())
    }

    pub(super) fn remove(&self, id: &str) -> Result<(), ConnectError> {
        self.table()
            .watchers
            .remove(id)
            .map(drop)
            .ok_or_else(|| missing(id))
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
            Ok(events) if queue.events.len() + events.len() <= EVENTS_MAX => queue.events.extend(events),
            Ok(_) => {
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
