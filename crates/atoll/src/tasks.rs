//! The daemon's tasks. Each runs until it is told to stop; one that ends before is a fault of the daemon, which then stops
//! as a whole: sandboxes live on, and whoever watches over the daemon starts it again.
use std::collections::HashMap;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// What is under way when the daemon stops ends within this time: each role bounds its own, and this is for the one that
/// does not.
const GRACE: Duration = Duration::from_secs(30);

/// Tasks that live and end together.
#[derive(Default)]
pub(crate) struct Tasks {
    set: JoinSet<()>,
    names: HashMap<Id, &'static str>,
    stop: CancellationToken,
}

/// Why the daemon stops, though nobody asked for it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    EndedEarly(&'static str),
    Panicked(&'static str),
    Stuck(&'static str),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::EndedEarly(name) => write!(f, "{name} ended by itself")?,
            Fault::Panicked(name) => write!(f, "{name} panicked")?,
            Fault::Stuck(name) => write!(f, "{name} did not end in time")?,
        }
        write!(
            f,
            "; the log may say why, sandboxes live on, and `atoll up` takes them over"
        )
    }
}

impl std::error::Error for Fault {}

/// Waits until the process is told to end: by an interrupt, or by whoever watches over it.
pub(crate) fn signalled() -> std::io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

impl Tasks {
    /// What every task is told by to stop.
    pub(crate) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Adds one.
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Returns when `end` is ready or a task has asked all to stop, or with the first task that ended before.
    pub(crate) async fn until(&mut self, end: impl Future<Output = ()>) -> Result<(), Fault> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Ok(()),
            () = end => Ok(()),
            Some(ended) = self.set.join_next_with_id() => Err(match ended {
                // It may have asked all to stop, and then ended.
                Ok(_) if self.stop.is_cancelled() => return Ok(()),
                Ok((id, ())) => Fault::EndedEarly(self.name(id)),
                Err(panic) => self.panicked(&panic),
            }),
        }
    }

    /// Tells all to stop, and waits for them.
    pub(crate) async fn end(mut self) -> Result<(), Fault> {
        self.stop.cancel();
        let deadline = tokio::time::Instant::now() + GRACE;
        let mut first = Ok(());
        loop {
            match tokio::time::timeout_at(deadline, self.set.join_next_with_id()).await {
                Ok(None) => return first,
                Ok(Some(Ok((id, ())))) => {
                    self.names.remove(&id);
                }
                Ok(Some(Err(panic))) => first = first.and(Err(self.panicked(&panic))),
                Err(_) => {
                    let stuck = self.names.values().next().copied();
                    return first.and(stuck.map_or(Ok(()), |name| Err(Fault::Stuck(name))));
                }
            }
        }
    }

    fn panicked(&mut self, panic: &JoinError) -> Fault {
        Fault::Panicked(self.name(panic.id()))
    }

    fn name(&mut self, id: Id) -> &'static str {
        self.names
            .remove(&id)
            .expect("every task has a name until it ends")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks() -> Tasks {
        let mut tasks = Tasks::default();
        tasks.spawn("the patient one", tasks.stop().cancelled_owned());
        tasks
    }

    #[tokio::test]
    async fn a_task_that_ends_or_panics_ends_the_daemon_by_name() {
        let mut early = tasks();
        early.spawn("the hasty one", async {});
        let ended = early.until(std::future::pending()).await;
        assert_eq!(ended, Err(Fault::EndedEarly("the hasty one")));
        assert_eq!(early.end().await, Ok(()));

        let mut broken = tasks();
        broken.spawn("the broken one", async { panic!("a test's panic") });
        let ended = broken.until(std::future::pending()).await;
        assert_eq!(ended, Err(Fault::Panicked("the broken one")));
    }

    #[tokio::test]
    async fn a_task_may_ask_all_to_stop() {
        let mut tasks = tasks();
        let stop = tasks.stop();
        tasks.spawn("the control socket", async move { stop.cancel() });
        assert_eq!(tasks.until(std::future::pending()).await, Ok(()));
        assert_eq!(tasks.end().await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_nobody_for_ever() {
        let mut tasks = tasks();
        tasks.spawn("the stuck one", std::future::pending());
        assert_eq!(tasks.until(async {}).await, Ok(()));
        assert_eq!(tasks.end().await, Err(Fault::Stuck("the stuck one")));
    }
}
