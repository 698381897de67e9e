//! Builds that this process has under way.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use model::BuildId;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Builds that are at work at a time; others wait for their turn. Each is a sandbox of full size, and most of them wait
/// for networks.
const AT_ONCE: usize = 8;

/// Builds under way, by id.
pub(crate) struct Building {
    tasks: Mutex<Tasks>,
    /// What each takes one of while it is at work.
    pub(crate) turn: Semaphore,
}

#[derive(Default)]
struct Tasks {
    running: HashMap<BuildId, Signals>,
    is_closed: bool,
}

#[derive(Clone, Default)]
struct Signals {
    /// Ends it.
    cancel: CancellationToken,
    /// It has ended.
    ended: CancellationToken,
}

impl Default for Building {
    fn default() -> Self {
        Self {
            tasks: Mutex::default(),
            turn: Semaphore::new(AT_ONCE),
        }
    }
}

/// A build under way. Dropped, it has ended.
pub(crate) struct Running {
    building: Arc<Building>,
    build: BuildId,
    signals: Signals,
}

impl Building {
    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks
            .lock()
            .expect("nothing panics while it holds the tasks")
    }

    /// Begins one: `None` where it is under way already, or nothing is begun any more.
    pub(crate) fn begin(self: &Arc<Self>, build: BuildId) -> Option<Running> {
        let mut tasks = self.tasks();
        if tasks.is_closed || tasks.running.contains_key(&build) {
            return None;
        }
        let signals = Signals::default();
        tasks.running.insert(build, signals.clone());
        drop(tasks);
        Some(Running {
            building: Arc::clone(self),
            build,
            signals,
        })
    }

    /// Whether it is under way in this process.
    pub(crate) fn has(&self, build: BuildId) -> bool {
        self.tasks().running.contains_key(&build)
    }

    /// Ends one, if it is under way; what is returned becomes cancelled when it has ended.
    pub(crate) fn cancel(&self, build: BuildId) -> Option<CancellationToken> {
        let signals = self.tasks().running.get(&build).cloned()?;
        signals.cancel.cancel();
        Some(signals.ended)
    }

    /// Ends all and lets none begin: they are as they are stored, and the next process goes on with them.
    pub(crate) fn close(&self) {
        let mut tasks = self.tasks();
        tasks.is_closed = true;
        for signals in tasks.running.values() {
            signals.cancel.cancel();
        }
    }

    /// Whether [`Building::close`] was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.tasks().is_closed
    }
}

impl Running {
    /// Becomes cancelled when it is to end.
    pub(crate) fn cancel(&self) -> &CancellationToken {
        &self.signals.cancel
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.building.tasks().running.remove(&self.build);
        self.signals.ended.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_under_way_once_and_none_after_the_close() {
        let building = Arc::new(Building::default());
        let id = BuildId::random();
        assert!(building.cancel(id).is_none());
        let running = building.begin(id).unwrap();
        assert!(building.begin(id).is_none() && building.has(id));
        let ended = building.cancel(id).unwrap();
        assert!(running.cancel().is_cancelled() && !ended.is_cancelled());
        drop(running);
        assert!(ended.is_cancelled() && !building.has(id));
        let running = building.begin(id).unwrap();
        building.close();
        assert!(running.cancel().is_cancelled() && building.is_closed());
        assert!(building.begin(BuildId::random()).is_none());
    }
}
