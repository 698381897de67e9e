//! The connections of the host, and how they are ended together: a checkpoint cannot be taken while there is one.
//!
//! ```text
//! Open ──▶ Closing ──▶ Aborting ──▶ Cut        each only if something is left of what was open before
//!          idle ones    streams      the rest
//!          end          end, told
//! ```
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use connectrpc::{ConnectError, RequestContext};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::watch;
use wire::host_calls::Quiesced;

/// How long a stream that was told of its end may take to say so.
const LAST_WORD_WITHIN: Duration = Duration::from_millis(500);
/// How long a connection that is cut may take to be gone: it is only a matter of being scheduled.
const CUT_WITHIN: Duration = Duration::from_secs(2);

/// How far the end of some connections has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// They are served.
    Open,
    /// A request under way comes to its end, and is the last one.
    Closing,
    /// What would never end is ended.
    Aborting,
    /// Whatever is left is dropped.
    Cut,
}

/// All connections of the host.
pub(crate) struct Lines {
    /// Those that came since the last call for quiet.
    shift: Mutex<Arc<Shift>>,
    /// One call for quiet at a time.
    turn: tokio::sync::Mutex<()>,
}

/// Connections that end together.
struct Shift {
    stage: watch::Sender<Stage>,
    open: watch::Sender<usize>,
}

impl Shift {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            stage: watch::channel(Stage::Open).0,
            open: watch::channel(0).0,
        })
    }
}

/// One connection's place. It is dropped after the connection.
pub(crate) struct Line(Arc<Place>);

/// What the requests of a connection hold of it.
#[derive(Clone)]
pub(crate) struct Caller(Arc<Place>);

struct Place {
    shift: Arc<Shift>,
    /// It asked for quiet, and is to hear that there is.
    is_spared: AtomicBool,
}

impl Lines {
    pub(crate) fn new() -> Self {
        Self {
            shift: Mutex::new(Shift::new()),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Counts a connection.
    pub(crate) fn enter(&self) -> Line {
        let shift = Arc::clone(&self.shift());
        shift.open.send_modify(|open| *open += 1);
        Line(Arc::new(Place {
            shift,
            is_spared: AtomicBool::new(false),
        }))
    }

    /// Ends all connections but the caller's, which ends when it has been answered.
    pub(crate) async fn quiesce(&self, caller: &Caller, grace: Duration) -> Quiesced {
        let _turn = self.turn.lock().await;
        caller.0.is_spared.store(true, Ordering::Release);
        let ending = std::mem::replace(&mut *self.shift(), Shift::new());
        // Where it came between two calls, it belongs to those that the first of them ended.
        let own = usize::from(Arc::ptr_eq(&ending, &caller.0.shift));
        let before = ending.open.borrow().saturating_sub(own);
        let stages = [
            (Stage::Closing, grace),
            (Stage::Aborting, LAST_WORD_WITHIN),
            (Stage::Cut, CUT_WITHIN),
        ];
        for (stage, within) in stages {
            ending.stage.send_replace(stage);
            let mut open = ending.open.subscribe();
            let quiet = open.wait_for(|open| *open <= own);
            if tokio::time::timeout(within, quiet).await.is_ok() {
                break;
            }
        }
        let left_over = ending.open.borrow().saturating_sub(own);
        let came_since = *self.shift().open.borrow();
        Quiesced {
            closed: before.saturating_sub(left_over),
            left: left_over + came_since,
        }
    }

    fn shift(&self) -> std::sync::MutexGuard<'_, Arc<Shift>> {
        self.shift
            .lock()
            .expect("nothing panics while it holds the connections")
    }
}

impl Line {
    /// What its requests hold of it.
    pub(crate) fn caller(&self) -> Caller {
        Caller(Arc::clone(&self.0))
    }

    /// Waits until it is to do more about its end than at `stage`.
    pub(crate) async fn after(&self, stage: Stage) -> Stage {
        let mut stages = self.0.shift.stage.subscribe();
        let next = stages.wait_for(|next| *next > stage).await.map(|next| *next);
        match next {
            Ok(next) if next < Stage::Cut || !self.0.is_spared.load(Ordering::Acquire) => next,
            _ => std::future::pending().await,
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.0.shift.open.send_modify(|open| *open -= 1);
    }
}

/// When a stream has to end; never, where its client is inside.
#[derive(Clone)]
pub(crate) struct HangUp(Option<watch::Receiver<Stage>>);

impl HangUp {
    /// Of a request.
    pub(crate) fn of(ctx: &RequestContext) -> Self {
        let caller = ctx.extensions().get::<Caller>();
        Self(caller.map(|caller| caller.0.shift.stage.subscribe()))
    }

    async fn hung_up(&mut self) {
        if let Some(stages) = &mut self.0
            && stages.wait_for(|stage| *stage >= Stage::Aborting).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    /// The same stream, as long as its connection may be there; then it says that it was aborted.
    pub(crate) fn end<T: Send + 'static>(
        self,
        told: impl Stream<Item = Result<T, ConnectError>> + Send + 'static,
    ) -> impl Stream<Item = Result<T, ConnectError>> + Send + 'static {
        stream::unfold(Some((Box::pin(told), self)), |state| async move {
            let (mut told, mut hang_up) = state?;
            tokio::select! {
                biased;
                () = hang_up.hung_up() => Some((Err(aborted()), None)),
                next = told.next() => Some((next?, Some((told, hang_up)))),
            }
        })
    }
}

fn aborted() -> ConnectError {
    ConnectError::aborted("the sandbox is being saved: connect again, what runs in it goes on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idle_lines_end_at_once_and_others_when_their_grace_is_over() {
        let lines = Arc::new(Lines::new());
        let asking = lines.enter();
        let (idle, busy, deaf) = (lines.enter(), lines.enter(), lines.enter());
        tokio::spawn(async move {
            assert_eq!(idle.after(Stage::Open).await, Stage::Closing);
        });
        tokio::spawn(async move {
            assert_eq!(busy.after(Stage::Closing).await, Stage::Aborting);
        });
        tokio::spawn(async move {
            assert_eq!(deaf.after(Stage::Aborting).await, Stage::Cut);
        });
        let begun = tokio::time::Instant::now();
        let quiet = lines.quiesce(&asking.caller(), Duration::from_secs(1)).await;
        assert_eq!(quiet, Quiesced { closed: 3, left: 0 });
        assert_eq!(begun.elapsed(), Duration::from_secs(1) + LAST_WORD_WITHIN);
        let cut = tokio::time::timeout(Duration::from_secs(9), asking.after(Stage::Aborting)).await;
        assert!(cut.is_err(), "who asked is to hear the answer");
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_later_is_served_and_told_of() {
        let lines = Lines::new();
        let asking = lines.enter();
        let before = lines.enter();
        let caller = asking.caller();
        let (quiet, later) = tokio::join!(lines.quiesce(&caller, Duration::ZERO), async {
            before.after(Stage::Closing).await;
            drop(before);
            lines.enter()
        });
        assert_eq!(quiet, Quiesced { closed: 1, left: 1 });
        let told = tokio::time::timeout(Duration::from_secs(9), later.after(Stage::Open)).await;
        assert!(told.is_err());
        let again = lines.quiesce(&later.caller(), Duration::ZERO).await;
        assert_eq!(again, Quiesced { closed: 0, left: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_by_saying_that_it_was_aborted() {
        let lines = Lines::new();
        let (asking, line) = (lines.enter(), lines.enter());
        let mut ctx = RequestContext::new(http::HeaderMap::new());
        ctx.extensions_mut().insert(line.caller());
        let inside = HangUp::of(&RequestContext::new(http::HeaderMap::new()));
        let endless = || stream::iter([Ok(1)]).chain(stream::pending());
        let mut told = Box::pin(HangUp::of(&ctx).end(endless()));
        let mut inside = Box::pin(inside.end(endless()));
        assert_eq!(told.next().await.unwrap().unwrap(), 1);
        assert_eq!(inside.next().await.unwrap().unwrap(), 1);
        let caller = asking.caller();
        let quiet = lines.quiesce(&caller, Duration::from_secs(1));
        let ended = async {
            let last = told.next().await.unwrap().unwrap_err();
            assert_eq!(last.code, connectrpc::ErrorCode::Aborted);
            assert!(told.next().await.is_none());
            drop(line);
        };
        let (quiet, ()) = tokio::join!(quiet, ended);
        assert_eq!(quiet, Quiesced { closed: 1, left: 0 });
        let more = tokio::time::timeout(Duration::from_secs(9), inside.next()).await;
        assert!(more.is_err(), "inside nobody is in the way");
    }
}
