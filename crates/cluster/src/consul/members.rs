//! Reading who is there, once and again and again.
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ports::discovery::{DiscoveryError, Found, Known, MEMBERS_MAX, Members, Role};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::Agent;
use super::record::{Entry, found};
use crate::peer::{next_index, pause, told};

/// Between two questions that wait for news: a fleet that changes all the time is read ten times a second.
pub(super) const APART: Duration = Duration::from_millis(100);
/// Between two questions that do not wait, for they have no index.
pub(super) const APART_UNINDEXED: Duration = Duration::from_secs(1);
/// The longest time until a Consul that failed is asked again.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(10);

impl Agent {
    /// All instances of a role, and the index of this answer: at once, or, with an index, when something has changed.
    pub(super) async fn members(
        &self,
        role: Role,
        after: Option<u64>,
    ) -> Result<(Members, Option<u64>), DiscoveryError> {
        let what = format!("tell who is {role}");
        let path = ["v1", "health", "service", &self.name(role)];
        let answer = self.read(&what, &path, Vec::new(), after).await?;
        if answer.status != 200 {
            return Err(self.refused(&what, &answer));
        }
        let entries: Vec<Value> = answer.json().map_err(|error| self.failed(&what, error))?;
        Ok((self.understood(role, entries), answer.number("x-consul-index")))
    }

    fn understood(&self, role: Role, entries: Vec<Value>) -> Members {
        let mut refused = entries.len().saturating_sub(MEMBERS_MAX);
        let mut by_id: BTreeMap<String, (u64, Found)> = BTreeMap::new();
        for entry in entries.into_iter().take(MEMBERS_MAX) {
            let entry = serde_json::from_value::<Entry>(entry).map_err(|error| error.to_string());
            let read = entry.and_then(|entry| {
                let modified = entry.service.modified;
                Ok((modified, found(&self.config.cluster, role, entry)?))
            });
            match read {
                Ok((modified, found)) => {
                    let id = found.instance.id.clone();
                    // Two agents were told of one id: whoever came last is believed, for it may have moved.
                    let former = by_id.get(&id).map(|(modified, _)| *modified);
                    if let Some(former) = former {
                        refused += 1;
                        tracing::warn!(%role, id, "two of one id are registered");
                        if former > modified {
                            continue;
                        }
                    }
                    by_id.insert(id, (modified, found));
                }
                Err(why) => {
                    refused += 1;
                    tracing::debug!(%role, why, "an entry of Consul's is left out");
                }
            }
        }
        Members {
            found: by_id.into_values().map(|(_, found)| found).collect(),
            known: Known::Current,
            refused,
        }
    }
}

/// Watches a role until nobody is left who could be told.
pub(super) async fn follow(agent: Weak<Agent>, role: Role, view: watch::Sender<Arc<Members>>) {
    let (mut index, mut failures) = (0, 0);
    loop {
        let Some(agent) = agent.upgrade() else { return };
        let stop = agent.stop.clone();
        let asked = Instant::now();
        let members = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            members = agent.members(role, Some(index)) => members,
        };
        drop(agent);
        let apart = match members {
            Ok((members, answered)) => {
                failures = 0;
                index = next_index(index, answered);
                view.send_if_modified(|known| {
                    let is_news = **known != members;
                    if is_news {
                        *known = Arc::new(members);
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
                view.send_if_modified(|known| {
                    // That it is stale is news once; its reason may change every time.
                    let is_news = !matches!(known.known, Known::Stale(_));
                    if is_news {
                        tracing::warn!(%role, error = why, "Consul does not tell who is there; the last known stay");
                        Arc::make_mut(known).known = Known::Stale(why);
                    }
                    is_news
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
