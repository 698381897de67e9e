//! Builds that this process has under way.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use model::{BuildId, TeamId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Builds that are at work at a time; others wait for their turn. Each is a sandbox of full size, and most of them wait
/// for networks.
const AT_ONCE: usize = 8;
/// Those of one team: a build may take an hour, and one team's must not keep everybody else waiting for so long.
const OWN_AT_ONCE: usize = 6;

/// Builds under way, by id.
pub(crate) struct Building {
    tasks: Mutex<Tasks>,
    all: Arc<Semaphore>,
    /// Of teams that have builds at work, or waiting to be.
    own: Mutex<HashMap<TeamId, Weak<Semaphore>>>,
}

/// A build's turn to be at work. It ends when this is dropped.
pub(crate) struct Turn {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
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
            all: Arc::new(Semaphore::new(AT_ONCE)),
            own: Mutex::default(),
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

    /// Waits until a build of a team may be at work.
    pub(crate) async fn turn(&self, team: TeamId) -> Turn {
        const NEVER: &str = "they are never closed";
        let own = self.turns_of(team).acquire_owned().await.expect(NEVER);
        let all = Arc::clone(&self.all).acquire_owned().await.expect(NEVER);
        Turn { _own: own, _all: all }
    }

    fn turns_of(&self, team: TeamId) -> Arc<Semaphore> {
        let mut own = self.own.lock().expect("nothing panics while it holds the turns");
        if let Some(turns) = own.get(&team).and_then(Weak::upgrade) {
            return turns;
        }
        own.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(OWN_AT_ONCE));
        own.insert(team, Arc::downgrade(&turns));
        turns
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

    #[tokio::test(start_paused = true)]
    async fn a_team_s_builds_leave_turns_for_others() {
        let building = Building::default();
        let now = async |team| {
            let turn = building.turn(team);
            tokio::time::timeout(std::time::Duration::from_secs(1), turn)
                .await
                .ok()
        };
        let (greedy, other) = (TeamId::random(), TeamId::random());
        let mut turns = Vec::new();
        while let Some(turn) = now(greedy).await {
            turns.push(turn);
        }
        assert_eq!(turns.len(), OWN_AT_ONCE);
        let others = [now(other).await, now(TeamId::random()).await];
        assert!(others.iter().all(Option::is_some) && now(other).await.is_none());
        turns.pop();
        assert!(now(greedy).await.is_some());
    }
}
