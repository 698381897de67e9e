//! What this process knows of the fleet, for placement: who is there, and, where many place on the same nodes, what these say
//! of themselves.
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use ports::Node;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::nodes::{WORD_MAX, within};
use crate::orchestrator::Orchestrator;
use crate::placement::{Facts, Place, Policy};

/// How often nodes are asked. What this process itself places is known at once.
const PERIOD: Duration = Duration::from_secs(2);
/// Every so many times they are asked which builds they hold, too.
const BUILDS_EVERY: u32 = 5;
/// Nodes that are asked at once.
const AT_ONCE: usize = 64;

/// How nodes are chosen: where this process is alone with its nodes, they say themselves when they are full.
pub(crate) fn policy(config: &Config) -> Policy {
    if !config.shared {
        return Policy::embedded();
    }
    Policy {
        overcommit: config.overcommit,
        ..Policy::default()
    }
}

impl Orchestrator {
    /// Notes who is in the fleet.
    pub(crate) fn see_fleet(&self) {
        let fleet = self.parts.fleet.nodes();
        let ids: Vec<_> = fleet.borrow().iter().map(|node| node.id()).collect();
        self.placement.fleet(&ids);
    }

    /// Asks nodes how they are, until `shutdown`.
    pub(crate) async fn watch_fleet(self: Arc<Self>, shutdown: CancellationToken) {
        let mut fleet = self.parts.fleet.nodes();
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut round = 0_u32;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = fleet.changed() => if changed.is_err() { return },
                _ = ticks.tick() => {}
            }
            self.see_fleet();
            let nodes = fleet.borrow_and_update().clone();
            let with_builds = round.is_multiple_of(BUILDS_EVERY);
            let asked: Vec<_> = nodes
                .iter()
                .map(|node| self.ask(node, with_builds).boxed())
                .collect();
            let all = stream::iter(asked).buffer_unordered(AT_ONCE).collect::<Vec<()>>();
            if shutdown.run_until_cancelled(all).await.is_none() {
                return;
            }
            round = round.wrapping_add(1);
        }
    }

    async fn ask(&self, node: &Arc<dyn Node>, with_builds: bool) {
        let (id, asked_at) = (node.id(), self.placement.now());
        match within(WORD_MAX, "the report", node.report()).await {
            Ok(report) => {
                let place = Place {
                    zone: self.parts.fleet.zone(id),
                    protocol: 1,
                };
                self.placement.report(id, Facts::of(&report, place), asked_at);
                self.note_admission(&report);
            }
            // Who does not report for long gets nothing new.
            Err(error) => tracing::debug!(node = %id, %error, "a node did not report"),
        }
        // Of a node that is new here it is asked at once: until then it would look worse than all others.
        let with_builds = with_builds || !self.placement.knows_builds(id);
        if with_builds && let Ok(builds) = within(WORD_MAX, "the list of builds", node.builds()).await {
            self.placement.holds(id, builds);
        }
    }
}
