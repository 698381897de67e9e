//! From a stored `Starting` to `Running`, or back to what was there before.
use model::{Event, Kind, Origin, Phase, Sandbox, SandboxId};
use ports::node::Order;
use ports::{ManagerError, Node, NodeError};
use tracing::Instrument as _;

use crate::change::apply;
use crate::failure;
use crate::nodes::{START_MAX, within};
use crate::orchestrator::Orchestrator;

/// Why nothing came up. What was there before is there again, or on its way.
pub(crate) enum NotUp {
    /// The node did not start it.
    Node(NodeError),
    /// It was ended, or could not be stored.
    Manager(ManagerError),
}

impl NotUp {
    pub(crate) fn public(self, id: SandboxId) -> ManagerError {
        match self {
            NotUp::Node(error) => failure::node(id, "starting the sandbox")(error),
            NotUp::Manager(error) => error,
        }
    }
}

impl Orchestrator {
    /// Starts what is stored as starting. `ready` sets what else is true of a running one.
    ///
    /// The route of a fresh one, of which nobody knows the id, is published while its node starts it. That of another follows
    /// the start: whoever knows the id and waits for a route is to find a sandbox behind it.
    pub(crate) async fn bring_up(
        &self,
        flow: Flow,
        starting: Sandbox,
        order: Order,
        node: &dyn Node,
        ready: impl Fn(&mut Sandbox) + Send + Sync,
    ) -> Result<Sandbox, NotUp> {
        let Phase::Starting { at, from } = starting.phase else {
            return Err(NotUp::Manager(failure::fault(
                "starting the sandbox",
                Kind::Internal,
                "it was not stored as starting",
            )));
        };
        let id = starting.id;
        let mut running = starting.clone();
        ready(&mut running);
        let publish = async {
            let published = flow.stage("route", self.publish(&running, at)).await;
            failpoint::reach("orchestrator/route-published");
            published
        };
        let start = self.start(flow, id, order, node);
        let is_unknown = matches!(from, Origin::Template(_));
        let (started, published) = if is_unknown {
            tokio::join!(start, publish)
        } else {
            match start.await {
                Ok(()) => (Ok(()), publish.await),
                Err(error) => (Err(error), Ok(())),
            }
        };
        if let Err(error) = started {
            self.undo(starting, node, &error).await;
            if is_unknown {
                // Whoever ended it meanwhile may have withdrawn its route before it was published.
                self.unpublish(id, at).await;
            }
            return Err(NotUp::Node(error));
        }
        let committed = match published {
            Ok(()) => self.commit(flow, &starting, from, ready).await,
            Err(error) => Err(error),
        };
        match committed {
            Ok(running) => {
                failpoint::reach("orchestrator/running-stored");
                Ok(running)
            }
            Err(error) => {
                self.give_up(starting, node).await;
                tracing::debug!(sandbox = %id, "it came up and was not wanted any more");
                Err(NotUp::Manager(error))
            }
        }
    }

    /// Has the node start it, with what the blobs hold of it where the node lacks that.
    async fn start(&self, flow: Flow, id: SandboxId, order: Order, node: &dyn Node) -> Result<(), NodeError> {
        let again = self.parts.config.stow.then(|| order.clone());
        let start = self.touching(id, within(START_MAX, "the start", node.start(order)));
        let mut started = flow.stage("node", start).await;
        if let (Err(NodeError::NoBuild(build)), Some(again)) = (&started, again) {
            let build = *build;
            let fetch = self.touching(id, self.fetch_for(node, build));
            started = match flow.stage("fetch", fetch).await {
                Ok(()) => {
                    self.touching(id, within(START_MAX, "the start", node.start(again)))
                        .await
                }
                Err(error) => Err(error),
            };
        }
        if started.is_ok() {
            failpoint::reach("orchestrator/node-started");
        }
        started
    }

    /// Stores that it runs.
    async fn commit(
        &self,
        flow: Flow,
        starting: &Sandbox,
        from: Origin,
        ready: impl Fn(&mut Sandbox) + Send + Sync,
    ) -> Result<Sandbox, ManagerError> {
        let edit = |sandbox: &mut Sandbox| {
            apply(sandbox, Event::Ready)?;
            ready(sandbox);
            Ok(())
        };
        flow.stage("commit", self.change(starting.clone(), edit))
            .await
            .map_err(|error| match (from, error) {
                // A client that never had an answer does not know the id: "not found" would be a riddle.
                (Origin::Template(_), ManagerError::NotFound(_)) => failure::fault(
                    "starting the sandbox",
                    Kind::Unavailable,
                    "it ended while it was starting",
                ),
                (_, error) => error,
            })
    }

    /// The node did not start it: a fresh one is gone, a paused one is paused. Where the node's answer does not say what
    /// it holds of what was there before, it is asked: whoever stored something else would lose the user's data.
    async fn undo(&self, starting: Sandbox, node: &dyn Node, error: &NodeError) {
        let id = starting.id;
        let outcome = if error.is_unclear() && starting.phase.state().is_some() {
            self.settle_failed_start(id).await
        } else {
            self.undo_clear(starting, node).await
        };
        if let Err(error) = outcome {
            tracing::error!(sandbox = %id, error = &error as &dyn std::error::Error, "a failed start was not undone; the reconciler does it");
            self.nudge.notify_one();
        }
    }

    /// The node was not asked: a fresh one is gone.
    pub(crate) async fn not_begun(&self, starting: Sandbox, node: &dyn Node) {
        if let Err(error) = self.undo_clear(starting, node).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a start that was not begun is stored; the reconciler undoes it"
            );
            self.nudge.notify_one();
        }
    }

    async fn undo_clear(&self, starting: Sandbox, node: &dyn Node) -> Result<(), ManagerError> {
        let id = starting.id;
        let failed = self
            .change(starting, |sandbox| apply(sandbox, Event::Failed))
            .await;
        match failed {
            Ok(Sandbox {
                phase: Phase::Paused { .. },
                ..
            }) => Ok(()),
            Ok(killing) => self.reap(killing).await,
            // Somebody ended it meanwhile: whatever came up after that kill is ended too.
            Err(ManagerError::NotFound(_)) => self.kill_on(node, id).await,
            Err(error) => Err(error),
        }
    }

    /// It came up, and that could not be stored: it was killed meanwhile, or the store is away.
    async fn give_up(&self, starting: Sandbox, node: &dyn Node) {
        let Phase::Starting { at, from } = starting.phase else {
            return;
        };
        self.unpublish(starting.id, at).await;
        // While the store is away nobody knows what is wanted of a resumed one, so it is kept for the reconciler.
        let ended = match self.stored(starting.id).await {
            Ok(Some(now)) => matches!(now.phase, Phase::Killing { .. } | Phase::Gone { .. }),
            Ok(None) => true,
            Err(_) => matches!(from, Origin::Template(_)),
        };
        if ended && let Err(error) = self.kill_on(node, starting.id).await {
            tracing::error!(sandbox = %starting.id, error = &error as &dyn std::error::Error, "a sandbox was left on its node; the reconciler ends it");
        }
        self.nudge.notify_one();
    }
}

/// What a sandbox is brought up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Create,
    Fork,
    Resume,
    Restart,
}

impl Flow {
    /// Times one stage of the flow.
    pub(crate) async fn stage<T>(self, name: &'static str, work: impl Future<Output = T>) -> T {
        let began = tokio::time::Instant::now();
        let outcome = work.instrument(tracing::debug_span!("stage", stage = name)).await;
        let histogram = match self {
            Flow::Create => metrics::histogram!("atoll_sandbox_create_stage_seconds", "stage" => name),
            Flow::Fork => metrics::histogram!("atoll_sandbox_fork_stage_seconds", "stage" => name),
            Flow::Resume => metrics::histogram!("atoll_sandbox_resume_stage_seconds", "stage" => name),
            Flow::Restart => metrics::histogram!("atoll_sandbox_restart_stage_seconds", "stage" => name),
        };
        histogram.record(began.elapsed());
        outcome
    }
}
