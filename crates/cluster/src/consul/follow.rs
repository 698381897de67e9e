//! Following what Consul has, by questions that wait for news.
use std::fmt::Display;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ports::discovery::{DiscoveryError, Known};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::Agent;
use crate::peer::{next_index, pause, told};

/// Between two questions that wait for news: a fleet that changes all the time is read ten times a second.
const APART: Duration = Duration::from_millis(100);
/// Between two questions that do not wait, for they have no index.
const APART_UNINDEXED: Duration = Duration::from_secs(1);
/// The longest time until a Consul that failed is asked again.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Something that Consul has, whole, as of one answer.
pub(super) trait Followed: Clone + PartialEq + Send + Sync + 'static {
    /// Of what: which role's, say.
    type Of: Display + Send + Sync;

    /// Asks for it: at once, or, with an index, when something has changed; and the index of this answer.
    fn ask(
        agent: &Agent,
        of: &Self::Of,
        after: Option<u64>,
    ) -> impl Future<Output = Result<(Self, Option<u64>), DiscoveryError>> + Send;

    /// Where it says how well it is known.
    fn known(&mut self) -> &mut Known;
}

/// Follows it until nobody is left who could be told.
pub(super) async fn follow<T: Followed>(agent: Weak<Agent>, of: T::Of, view: watch::Sender<Arc<T>>) {
    let (mut index, mut failures) = (0, 0);
    loop {
        let Some(agent) = agent.upgrade() else { return };
        let stop = agent.stop.clone();
        let asked = Instant::now();
        let answer = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            answer = T::ask(&agent, &of, Some(index)) => answer,
        };
        drop(agent);
        let apart = match answer {
            Ok((found, answered)) => {
                failures = 0;
                index = next_index(index, answered);
                view.send_if_modified(|last| {
                    let is_news = **last != found;
                    if is_news {
                        *last = Arc::new(found);
                    }
                    is_news
                });
                let apart = if answered.is_some() {
                    APART
                } else {
                    APART_UNINDEXED
                };
                apart.saturating_sub(asked.elapsed())
            }
            Err(error) => {
                // An agent that comes back may have begun anew.
                index = 0;
                failures += 1;
                let why = told(&error);
                view.send_if_modified(|last| {
                    let mut stale = T::clone(last);
                    // That it is stale is news once; its reason may change every time.
                    if matches!(stale.known(), Known::Stale(_)) {
                        return false;
                    }
                    tracing::warn!(what = %of, error = why, "Consul does not tell; what was known last stays");
                    *stale.known() = Known::Stale(why);
                    *last = Arc::new(stale);
                    true
                });
                pause(failures, PAUSE_MAX)
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(apart) => {}
        }
    }
}
