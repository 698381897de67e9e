use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use model::{
    BuildId, ExecutionId, Kind, Lifecycle, Memory, NetworkPolicy, NodeId, Origin, Phase, Sandbox, SandboxId,
    Seat, Settings, Team, TeamId, TemplateId, VolumeMount,
};
use ports::manager::Granted;
use ports::node::OrderOrigin;
use ports::{CreateSandbox, ManagerError, Node, NodeError};
use tokio::time::Instant;

use crate::bring_up::{Flow, NotUp};
use crate::failure;
use crate::idempotency::{First, Ticket};
use crate::orchestrator::Orchestrator;
use crate::placement::{Needs, Wish};
use crate::quota::check_life;
use crate::resolve::Resolved;
use crate::timeout::whole_micros;
use crate::volume::lies;

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
            Some((key, digest)) => match self.begin_once(team, &key, digest).await? {
                First::Go(ticket) => Some(ticket),
                First::Done(id) => return self.granted_before(id).await,
            },
        };
        let began = Instant::now();
        let fresh = self.create_fresh(team, &request);
        let created = Ticket::keep_during(ticket.as_ref(), fresh).await;
        // Within the span, which knows the ids.
        let created = created.inspect_err(failure::logged(team, None));
        let outcome = if created.is_ok() { "ok" } else { "failed" };
        metrics::histogram!("atoll_sandbox_create_seconds", "outcome" => outcome).record(began.elapsed());
        let sandbox = created?;
        if let Some(ticket) = ticket {
            ticket.answer(sandbox.id).await;
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
        let using = self.uses.begin();
        let claim = Flow::Create.stage("claim", self.take_start(team, request.starts_per_second));
        let resolved = self.resolve_taken(team, &request.template, &using);
        let resolve = async { tokio::try_join!(self.team(team), claim, resolved) };
        let (team, (), resolved) = Flow::Create.stage("resolve", resolve).await?;
        check_life(&team.quota, request.timeout)?;
        let mut mounted = self.mounts_of(team.id, &request.volumes).await?;
        let design = Design::of(resolved, std::mem::take(&mut mounted.mounts), request);
        if request.own_allocation {
            return self.create_alone(&team, design).await;
        }
        if let Some(home) = mounted.home {
            return self.create_at_home(&team, &design, home).await;
        }
        let mut search = self.placement.search(Wish {
            build: Some(design.build),
            home: design.settings.home,
            ..Wish::new(team.id, design.settings.resources)
        });
        while let Some(place) = search.next_node() {
            let Some(node) = self.parts.fleet.node(place.node()) else {
                search.failed(place);
                continue;
            };
            match self.create_on(Flow::Create, node.as_ref(), &team, &design).await {
                Ok(sandbox) => {
                    place.keep();
                    self.count_spawn(&sandbox);
                    return Ok(sandbox);
                }
                Err((id, NotUp::Node(error))) => match elsewhere(&error, self.parts.config.shared) {
                    Some(Elsewhere::Full(what)) => search.refused(place, what),
                    Some(Elsewhere::Lacks) => {
                        search.lacking(place, "what it starts from");
                        if let Some(sandbox) = self.create_where_it_lies(&team, &design).await? {
                            return Ok(sandbox);
                        }
                    }
                    Some(Elsewhere::Away) => search.failed(place),
                    None => return Err(NotUp::Node(error).public(id)),
                },
                Err((id, error)) => return Err(error.public(id)),
            }
        }
        Err(search.no_capacity())
    }

    /// The only attempt where its volumes lie.
    async fn create_at_home(
        &self,
        team: &Team,
        design: &Design,
        home: NodeId,
    ) -> Result<Sandbox, ManagerError> {
        let refused = |why: &str| self.not_at_home(&design.volumes, home, why);
        let Some(node) = self.parts.fleet.node(home) else {
            return Err(refused("is away"));
        };
        let mut search = self.placement.search(Wish {
            build: Some(design.build),
            only: Some(home),
            needs: Needs::VOLUMES,
            ..Wish::new(team.id, design.settings.resources)
        });
        let Some(place) = search.next_node() else {
            return Err(refused(&search.why_not()));
        };
        match self.create_on(Flow::Create, node.as_ref(), team, design).await {
            Ok(sandbox) => {
                place.keep();
                self.count_spawn(&sandbox);
                Ok(sandbox)
            }
            Err((_, NotUp::Node(NodeError::NoVolume(lost)))) => {
                let is_it = |mount: &&VolumeMount| mount.volume == lost;
                let lost: Vec<_> = design.volumes.iter().filter(is_it).cloned().collect();
                Err(ManagerError::VolumeLost(format!(
                    "{}, which does not have its files any more: they were moved or lost",
                    lies(&lost, home)
                )))
            }
            Err((id, NotUp::Node(error))) => match elsewhere(&error, self.parts.config.shared) {
                Some(Elsewhere::Full(what)) => {
                    search.refused(place, what);
                    Err(refused(&format!("is out of {what}")))
                }
                Some(Elsewhere::Lacks) => Err(refused(
                    "has not got what the sandbox is started from, and the blobs have not got it yet",
                )),
                Some(Elsewhere::Away) => {
                    search.failed(place);
                    Err(refused("is away"))
                }
                None => Err(NotUp::Node(error).public(id)),
            },
            Err((id, error)) => Err(error.public(id)),
        }
    }

    /// An attempt where its build lies, which was made a moment ago and is not in the blobs yet; `None` where no node has it, or
    /// the one that has it is full.
    async fn create_where_it_lies(
        &self,
        team: &Team,
        design: &Design,
    ) -> Result<Option<Sandbox>, ManagerError> {
        let (held, _) = self.builds_on_nodes().await;
        for (node, builds) in held {
            if !builds.contains(&design.build) {
                continue;
            }
            self.placement.fetched(node.id(), design.build);
            match self.create_on(Flow::Create, node.as_ref(), team, design).await {
                Ok(sandbox) => {
                    self.count_spawn(&sandbox);
                    return Ok(Some(sandbox));
                }
                Err((id, NotUp::Node(error))) if elsewhere(&error, true).is_none() => {
                    return Err(NotUp::Node(error).public(id));
                }
                Err((_, NotUp::Node(_))) => {}
                Err((id, error)) => return Err(error.public(id)),
            }
        }
        Ok(None)
    }

    /// One attempt on one node. Each is a sandbox of its own: clients see only the one that came up.
    pub(crate) async fn create_on(
        &self,
        flow: Flow,
        node: &dyn Node,
        team: &Team,
        design: &Design,
    ) -> Result<Sandbox, (SandboxId, NotUp)> {
        let at = Seat {
            node: node.id(),
            execution: ExecutionId::random(),
        };
        let sandbox = design.intend(at, team, self.now());
        let id = sandbox.id;
        let failed = |error| (id, NotUp::Manager(error));
        let span = tracing::Span::current();
        span.record("sandbox", id.as_str())
            .record("execution", at.execution.as_str())
            .record("node", tracing::field::display(at.node));
        let claim = self.claim(at.execution, team, sandbox.resources).await;
        let claim = claim.map_err(failed)?;
        let _locked = self.locks.lock(id).await;
        let order = self.order(&sandbox, at, OrderOrigin::Fresh, sandbox.end_at);
        let order = order.await.map_err(failed)?;
        let insert = flow.stage("store", self.parts.sandboxes.insert(&sandbox));
        insert
            .await
            .map_err(failure::store("storing the sandbox"))
            .map_err(failed)?;
        claim.keep();
        failpoint::reach("orchestrator/starting-stored");
        if let Err(error) = self.are_there_still(&sandbox.volumes).await {
            self.not_begun(sandbox, node).await;
            return Err(failed(error));
        }
        self.bring_up(flow, sandbox, order, node, |_| {})
            .await
            .map_err(|error| (id, error))
    }

    /// Counts the spawn behind the client's back: nobody waits for a statistic.
    pub(crate) fn count_spawn(&self, sandbox: &Sandbox) {
        let templates = std::sync::Arc::clone(&self.parts.templates);
        let (template, at) = (sandbox.template, sandbox.started_at);
        self.tasks.spawn(async move {
            if let Err(error) = templates.spawned(template, at).await {
                tracing::debug!(%template, %error, "a spawn was not counted");
            }
        });
    }
}

/// Why another node may do what one did not.
#[derive(Debug, PartialEq, Eq)]
enum Elsewhere {
    /// It is out of something.
    Full(&'static str),
    /// It has not got what is started from, and the blobs have not got it either.
    Lacks,
    /// It is not to be reached.
    Away,
}

/// Whether a start that failed on one node is worth a try on another. Where there are others: what one node lacks another may
/// have.
fn elsewhere(error: &NodeError, shared: bool) -> Option<Elsewhere> {
    match error {
        NodeError::Full { what, .. } => Some(Elsewhere::Full(what)),
        NodeError::NoBuild(_) if shared => Some(Elsewhere::Lacks),
        error if shared && error.kind() == Kind::Unavailable => Some(Elsewhere::Away),
        _ => None,
    }
}

/// What a sandbox is made as.
#[derive(Debug)]
pub(crate) struct Design {
    /// Which it is, where that was said before it is made.
    pub(crate) id: Option<SandboxId>,
    /// Its base.
    pub(crate) template: TemplateId,
    /// What it starts from.
    pub(crate) build: BuildId,
    /// The name by which clients see its base.
    pub(crate) alias: Option<String>,
    /// What it begins as.
    pub(crate) settings: Settings,
    /// How long it lives.
    pub(crate) timeout: Duration,
    /// What it does without being asked.
    pub(crate) lifecycle: Lifecycle,
    /// Whether envd asks for the access token.
    pub(crate) secure: bool,
    /// What it may reach.
    pub(crate) network: NetworkPolicy,
    /// Its labels.
    pub(crate) metadata: BTreeMap<String, String>,
    /// Environment of all of its processes, beside that of its settings.
    pub(crate) env: BTreeMap<String, String>,
    /// What is mounted into it.
    pub(crate) volumes: Vec<VolumeMount>,
}

impl Design {
    fn of(resolved: Resolved, volumes: Vec<VolumeMount>, request: &CreateSandbox) -> Self {
        Self {
            id: None,
            template: resolved.template.id,
            build: resolved.build,
            alias: resolved.alias,
            settings: resolved.settings,
            timeout: request.timeout,
            lifecycle: request.lifecycle,
            secure: request.secure,
            network: request.network.clone(),
            metadata: request.metadata.clone(),
            env: request.env.clone(),
            volumes,
        }
    }

    /// What is stored before anything is done.
    fn intend(&self, at: Seat, team: &Team, now: SystemTime) -> Sandbox {
        let started_at = whole_micros(now);
        Sandbox {
            id: self.id.unwrap_or_else(SandboxId::random),
            team: team.id,
            template: self.template,
            build: self.build,
            alias: self.alias.clone(),
            phase: Phase::Starting {
                at,
                from: Origin::Template(self.build),
            },
            version: 0,
            started_at,
            end_at: started_at + self.timeout,
            timeout_seconds: u32::try_from(self.timeout.as_secs()).unwrap_or(u32::MAX),
            resources: self.settings.resources,
            metadata: self.metadata.clone(),
            env: self.env.clone(),
            lifecycle: self.lifecycle,
            settings: self.settings.clone(),
            volumes: self.volumes.clone(),
            kept: Memory::None,
            moving: None,
            network: self.network.clone(),
            secure: self.secure,
            envd_unresponsive_at_pause: false,
        }
    }
}
