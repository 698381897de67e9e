//! The connections into one execution: those in use, and those kept for the next request.
use std::sync::{Arc, Mutex};
use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use crate::cut::{Cuts, NoPlace, Ticket};
use crate::line::Line;

/// Idle connections kept for one execution: as many as a busy client uses at once. One more, and the oldest goes.
const IDLE_MAX: usize = 64;

/// How long a connection is kept for the next request. Each holds a descriptor here and one inside. Shorter than the
/// 30 s after which envd hangs up, so that a request which cannot be repeated never crosses that.
const IDLE_KEPT: Duration = Duration::from_secs(20);

/// Connections into one execution at once, in use or idle. Each takes a descriptor here, and most a client's place at a
/// listener, which is for all sandboxes: one that is flooded must not take them all.
pub(crate) const LINES_MAX: usize = 4096;

/// All lines into one execution, or to the API.
#[derive(Default)]
pub(crate) struct Lines {
    cuts: Arc<Cuts>,
    idle: Mutex<Vec<Parked>>,
}

struct Parked {
    line: Box<Line>,
    since: Instant,
}

const UNPOISONED: &str = "nothing panics while it holds the idle lines";

impl Lines {
    /// A place among the streams that end with the execution. Idle lines make room.
    pub(crate) fn enter(&self) -> Result<Ticket, NoPlace> {
        match self.cuts.enter_within(LINES_MAX) {
            Err(NoPlace::Taken) => {
                self.keep(|_| false);
                self.cuts.enter_within(LINES_MAX)
            }
            entered => entered,
        }
    }

    pub(crate) fn withdrawn(&self) -> bool {
        self.cuts.fired()
    }

    /// Cuts every stream and hangs up. Returns how many lines there were.
    pub(crate) fn withdraw(&self) -> usize {
        let cut = self.cuts.fire();
        let idle = std::mem::take(&mut *self.idle.lock().expect(UNPOISONED));
        drop(idle);
        cut
    }

    /// The line to `port` that was parked last and is still good.
    pub(crate) fn take(&self, port: u16, cx: &mut Context<'_>) -> Option<Box<Line>> {
        loop {
            let mut parked = {
                let mut idle = self.idle.lock().expect(UNPOISONED);
                let last = idle.iter().rposition(|parked| parked.line.port() == port)?;
                idle.remove(last)
            };
            if parked.since.elapsed() < IDLE_KEPT && parked.line.poll_free(cx) {
                return Some(parked.line);
            }
        }
    }

    /// Keeps a line for the next request, if it can carry one.
    pub(crate) fn park(&self, mut line: Box<Line>, cx: &mut Context<'_>) {
        if !line.poll_free(cx) {
            return;
        }
        let since = Instant::now();
        let oldest = {
            let mut idle = self.idle.lock().expect(UNPOISONED);
            // Read under the lock under which `withdraw` empties the list.
            if self.cuts.fired() {
                return;
            }
            let oldest = (idle.len() >= IDLE_MAX).then(|| idle.remove(0));
            idle.push(Parked { line, since });
            oldest
        };
        drop(oldest);
    }

    /// Hangs up the idle lines to `port`.
    pub(crate) fn hang_up(&self, port: u16) {
        self.keep(|parked| parked.line.port() != port);
    }

    /// Hangs up what has been idle for longer than [`IDLE_KEPT`].
    pub(crate) fn sweep(&self) {
        self.keep(|parked| parked.since.elapsed() < IDLE_KEPT);
    }

    fn keep(&self, keep: impl Fn(&Parked) -> bool) {
        let gone: Vec<_> = {
            let mut idle = self.idle.lock().expect(UNPOISONED);
            idle.extract_if(.., |parked| !keep(parked)).collect()
        };
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_in_use_are_counted_and_idle_ones_make_room() {
        let lines = Lines::default();
        let mut tickets: Vec<_> = (1..LINES_MAX).map(|_| lines.enter().expect("room")).collect();
        let (ours, _theirs) = tokio::io::duplex(64);
        let ticket = lines.enter().expect("room for the last");
        assert_eq!(lines.enter().err(), Some(NoPlace::Taken));
        let line = Line::open(Box::new(ours), ticket, 80).await.expect("a line");
        let mut line = Some(line);
        std::future::poll_fn(|cx| {
            if let Some(line) = line.take() {
                lines.park(line, cx);
            }
            std::task::Poll::Ready(())
        })
        .await;
        tickets.push(lines.enter().expect("the idle line's place"));
        assert_eq!(lines.enter().err(), Some(NoPlace::Taken));
        lines.withdraw();
        assert_eq!(lines.enter().err(), Some(NoPlace::Cut));
    }
}
