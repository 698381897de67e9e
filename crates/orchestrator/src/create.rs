use model::{ExecutionId, Origin, Phase, Sandbox, SandboxId, Seat, Team, TeamId};
use ports::manager::Granted;
use ports::node::OrderOrigin;
use ports::{CreateSandbox, ManagerError, Node, NodeError};
use tokio::time::Instant;

use crate::bring_up::{Flow, NotUp};
use crate::failure;
use crate::idempotency::First;
use crate::orchestrator::Orchestrator;
use crate::placement::Refusals;
use crate::quota::check_life;
use crate::resolve::Resolved;
use crate::timeout::whole_micros;

impl Orchestrator {
    /// Creates a sandbox, or answers as it did for the same idempotency key.
    #[tracing::instrument(name = "sandbox.create", skip_all, fields(%team, sandbox, execution, node))]
    pub(crate) async fn create_sandbox(
        &self,
        team: TeamId,
        mut request: CreateSandbox,
    ) -> Result<Granted, ManagerError> {
        let ticket = match request.idempotency.take() {
            None => None,
            Some((key, digest)) => match self.replies.begin(team, key, digest)? {
                First::Go(ticket) => Some(ticket),
                First::Done(id) => return self.granted_before(id).await,
            },
        };
        let began = Instant::now();
        let created = self.create_fresh(team, &request).await;
        // Within the span, which knows the ids.
        let created = created.inspect_err(failure::logged(team, None));
        let outcome = if created.is_ok() { "ok" } else { "failed" };
        metrics::histogram!("atoll_sandbox_create_seconds", "outcome" => outcome).record(began.elapsed());
        let sandbox = created?;
        if let Some(ticket) = ticket {
            ticket.answer(sandbox.id);
        }
        Ok(self.tokens().await?.grant(sandbox))
    }

    /// The sandbox that a key made: as it is now, also when it is over.
    async fn granted_before(&self, id: SandboxId) -> Result<Granted, ManagerError> {
        let sandbox = self.stored(id).await?;
        let sandbox = sandbox.ok_or(ManagerError::IdempotencyOutcomeUnknown)?;
        Ok(self.tokens().await?.grant(sandbox))
    }

    async fn create_fresh(&self, team: TeamId, request: &CreateSandbox) -> Result<Sandbox, ManagerError> {
        let _start = self.begin_start()?;
        let resolve = async { tokio::try_join!(self.team(team), self.resolve(team, &request.template)) };
        let (team, resolved) = Flow::Create.stage("resolve", resolve).await?;
        check_life(&team.quota, request.timeout)?;
        Flow::Create.stage("claim", self.take_start(&team)).await?;
        let mut refusals = Refusals::default();
        let fleet = self.parts.fleet.nodes().borrow().clone();
        for node in self.turn.candidates(&fleet) {
            match self.create_on(node.as_ref(), &team, &resolved, request).await {
                Ok(sandbox) => {
                    self.count_spawn(&sandbox);
                    return Ok(sandbox);
                }
                Err((_, NotUp::Node(NodeError::Full { what, .. }))) => refusals.count(what),
                Err((id, error)) => return Err(error.public(id)),
            }
        }
        Err(refusals.no_capacity())
    }

    /// One attempt on one node. Each is a sandbox of its own: clients see only the one that came up.
    async fn create_on(
        &self,
        node: &dyn Node,
        team: &Team,
        resolved: &Resolved,
        request: &CreateSandbox,
    ) -> Result<Sandbox, (SandboxId, NotUp)> {
        let at = Seat {
            node: node.id(),
            execution: ExecutionId::random(),
        };
        let sandbox = self.intend(at, team, resolved, request);
        let id = sandbox.id;
        let failed = |error| (id, NotUp::Manager(error));
        let span = tracing::Span::current();
        span.record("sandbox", id.as_str())
            .record("execution", at.execution.as_str())
            .record("node", tracing::field::display(at.node));
        let claim = self.ledger.claim(at.execution, team, sandbox.resources);
        let claim = claim.map_err(failed)?;
        let _locked = self.locks.lock(id).await;
        let order = self.order(
            &sandbox,
            &resolved.template,
            at,
            OrderOrigin::Fresh,
            sandbox.end_at,
        );
        let order = order.await.map_err(failed)?;
        let insert = Flow::Create.stage("store", self.parts.sandboxes.insert(&sandbox));
        insert
            .await
            .map_err(failure::store("storing the sandbox"))
            .map_err(failed)?;
        claim.keep();
        failpoint::reach("orchestrator/starting-stored");
        self.bring_up(Flow::Create, sandbox, order, node, |_| {})
            .await
            .map_err(|error| (id, error))
    }

    /// Counts the spawn behind the client's back: nobody waits for a statistic.
    fn count_spawn(&self, sandbox: &Sandbox) {
        let templates = std::sync::Arc::clone(&self.parts.templates);
        let (template, at) = (sandbox.template, sandbox.started_at);
        self.tasks.spawn(async move {
            if let Err(error) = templates.spawned(template, at).await {
                tracing::debug!(%template, %error, "a spawn was not counted");
            }
        });
    }

    /// What is stored before anything is done.
    fn intend(&self, at: Seat, team: &Team, resolved: &Resolved, request: &CreateSandbox) -> Sandbox {
        let started_at = whole_micros(self.now());
        Sandbox {
            id: SandboxId::random(),
            team: team.id,
            template: resolved.template.id,
            build: resolved.build,
            alias: resolved.alias.clone(),
            phase: Phase::Starting {
                at,
                from: Origin::Template(resolved.build),
            },
            version: 0,
            started_at,
            end_at: started_at + request.timeout,
            timeout_seconds: u32::try_from(request.timeout.as_secs()).unwrap_or(u32::MAX),
            resources: resolved.template.resources,
            metadata: request.metadata.clone(),
            env: request.env.clone(),
            lifecycle: request.lifecycle,
            network: request.network.clone(),
            secure: request.secure,
            envd_unresponsive_at_pause: false,
        }
    }
}
