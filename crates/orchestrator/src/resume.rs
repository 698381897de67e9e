mod elsewhere;

use std::time::Duration;

use model::{BuildId, Event, ExecutionId, PauseMode, Phase, Sandbox, SandboxId, Seat, Team, TeamId};
use ports::manager::Granted;
use ports::node::OrderOrigin;
use ports::{ManagerError, Node, NodeError};
use tokio::time::Instant;

use crate::bring_up::{Flow, NotUp};
use crate::change::apply;
use crate::orchestrator::Orchestrator;
use crate::quota::check_life;
use crate::timeout::whole_micros;

/// How a paused sandbox is to be brought back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    /// How long it then lives.
    pub(crate) timeout: Duration,
    /// What is used of what the pause kept.
    pub(crate) mode: PauseMode,
    /// Whether the next wake takes this timeout again.
    pub(crate) remember: bool,
    /// Whether it is paused at its end from then on; as before, where it is not given.
    pub(crate) auto_pause: Option<bool>,
    /// What is done where its memory is wanted and the node that has it is away.
    pub(crate) without_home: WithoutHome,
    /// Whether nobody asked for it: it was paused to be moved, and is resumed only while that is so.
    pub(crate) is_move: bool,
}

/// What is done where memory is wanted that is on a node which is away, and the blobs hold the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WithoutHome {
    /// It boots on another node, and its log says so.
    Boot,
    /// The client is told, and asks for the disk alone if it likes.
    Refuse,
}

/// What a node starts a paused sandbox from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// What the pause left there, used in this mode.
    Kept(PauseMode),
    /// The copy of its disk that the blobs hold.
    Copy,
}

/// What a pause left.
#[derive(Debug, Clone, Copy)]
struct Left {
    snapshot: BuildId,
    kept: PauseMode,
    home: model::NodeId,
}

impl Left {
    fn of(sandbox: &Sandbox) -> Result<Self, ManagerError> {
        match sandbox.phase {
            Phase::Paused { snapshot, mode, home } => Ok(Self {
                snapshot,
                kept: mode,
                home,
            }),
            other => Err(ManagerError::Busy {
                id: sandbox.id,
                state: other.name(),
            }),
        }
    }
}

impl Orchestrator {
    /// Resumes a paused sandbox, with all that its pause kept.
    #[tracing::instrument(name = "sandbox.resume", skip_all, fields(%team, sandbox = %id))]
    pub(crate) async fn resume_sandbox(
        &self,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
        mode: PauseMode,
        auto_pause: Option<bool>,
    ) -> Result<Granted, ManagerError> {
        let (_locked, sandbox) = self.settled_now(team, id).await?;
        if sandbox.phase.is_routable() {
            return Err(ManagerError::AlreadyRunning(id));
        }
        let wish = Wish {
            timeout,
            mode,
            remember: true,
            auto_pause,
            // A resume asks for what was paused, so that it is told what is not there of it.
            without_home: WithoutHome::Refuse,
            is_move: false,
        };
        let sandbox = self.bring_back(sandbox, wish).await?;
        Ok(self.tokens().await?.grant(sandbox))
    }

    /// Brings a paused sandbox back; the caller holds its lock. Where that fails, it is paused as before.
    pub(crate) async fn bring_back(&self, paused: Sandbox, wish: Wish) -> Result<Sandbox, ManagerError> {
        let began = Instant::now();
        let left = Left::of(&paused)?;
        let id = paused.id;
        let _start = self.begin_start()?;
        let with_memory = left.kept == PauseMode::Full && wish.mode == PauseMode::Full;
        let home = self.sight_of(left.home, with_memory).await;
        if home.is_some() && with_memory && paused.envd_unresponsive_at_pause {
            return Err(ManagerError::GuestUnresponsive(id));
        }
        if home.is_none() {
            self.check_elsewhere(&paused, left, wish).await?;
        }
        let team = self.team(paused.team).await?;
        check_life(&team.quota, wish.timeout)?;
        self.take_start(team.id, team.quota.creates_per_second).await?;
        let may_boot = wish.without_home == WithoutHome::Boot;
        let is_to_leave = home.is_some()
            && paused.volumes.is_empty()
            && self.is_better_elsewhere(left.home, with_memory, may_boot, self.now())
            && self.is_stowed(left.snapshot).await?;
        let mut paused = paused;
        if is_to_leave {
            match self.bring_back_elsewhere(paused, left, &team, wish).await {
                Ok(running) => {
                    metrics::histogram!("atoll_sandbox_resume_seconds").record(began.elapsed());
                    return Ok(running);
                }
                Err(error) => {
                    tracing::debug!(sandbox = %id, error = &error as &dyn std::error::Error, "it is resumed at home, which is to be emptied");
                    paused = self.still_paused(id, left).await?;
                }
            }
        }
        let running = match home {
            Some(home) => {
                let mode = if with_memory {
                    PauseMode::Full
                } else {
                    PauseMode::Filesystem
                };
                let brought = self
                    .bring_back_on(home.as_ref(), paused, &team, wish, Source::Kept(mode))
                    .await;
                match brought {
                    // It has lost what it held: another disk in the machine, say.
                    Err(NotUp::Node(NodeError::Unknown)) if self.is_stowed(left.snapshot).await? => {
                        let paused = self.still_paused(id, left).await?;
                        self.check_elsewhere(&paused, left, wish).await?;
                        self.bring_back_elsewhere(paused, left, &team, wish).await?
                    }
                    brought => brought.map_err(|error| error.public(id))?,
                }
            }
            None => self.bring_back_elsewhere(paused, left, &team, wish).await?,
        };
        metrics::histogram!("atoll_sandbox_resume_seconds").record(began.elapsed());
        Ok(running)
    }

    /// One attempt on one node.
    async fn bring_back_on(
        &self,
        node: &dyn Node,
        paused: Sandbox,
        team: &Team,
        wish: Wish,
        source: Source,
    ) -> Result<Sandbox, NotUp> {
        let left = Left::of(&paused).map_err(NotUp::Manager)?;
        let at = Seat {
            node: node.id(),
            execution: ExecutionId::random(),
        };
        let claim = self.claim(at.execution, team, paused.resources).await;
        let claim = claim.map_err(NotUp::Manager)?;
        let started_at = whole_micros(self.now());
        let end_at = started_at + wish.timeout;
        let ready = move |sandbox: &mut Sandbox| {
            sandbox.started_at = started_at;
            sandbox.end_at = end_at;
            if wish.remember {
                sandbox.timeout_seconds = u32::try_from(wish.timeout.as_secs()).unwrap_or(u32::MAX);
            }
            if let Some(auto_pause) = wish.auto_pause {
                sandbox.lifecycle = sandbox.lifecycle.with_auto_pause(auto_pause);
            }
            sandbox.envd_unresponsive_at_pause = false;
            sandbox.moving = None;
            if source == Source::Copy {
                // Its disk is over this one from now on; what it was over before may not be where it is.
                sandbox.build = left.snapshot;
            }
        };
        // The node is told of the sandbox as it will be.
        let mut running = paused.clone();
        ready(&mut running);
        let (origin, uses) = match source {
            Source::Kept(mode) => (OrderOrigin::Paused(left.snapshot, mode), wish.mode),
            // Its home has what it had, if this comes to nothing: memory too.
            Source::Copy => (OrderOrigin::Fresh, left.kept),
        };
        let order = self.order(&running, at, origin, end_at).await;
        let order = order.map_err(NotUp::Manager)?;
        let starting = self
            .change(paused, |sandbox| {
                if wish.is_move && !sandbox.is_moving() {
                    return Err(ManagerError::Busy {
                        id: sandbox.id,
                        state: sandbox.phase.name(),
                    });
                }
                apply(sandbox, Event::Resume(at, uses))
            })
            .await
            .map_err(NotUp::Manager)?;
        claim.keep();
        failpoint::reach("orchestrator/resuming-stored");
        self.bring_up(Flow::Resume, starting, order, node, ready).await
    }

    /// The sandbox, if it is paused as before by now.
    async fn still_paused(&self, id: SandboxId, left: Left) -> Result<Sandbox, ManagerError> {
        let sandbox = self.stored(id).await?.ok_or(ManagerError::NotFound(id))?;
        if sandbox.phase.state().is_none() {
            return Err(ManagerError::NotFound(id));
        }
        let now = Left::of(&sandbox)?;
        if now.snapshot != left.snapshot {
            return Err(ManagerError::Busy {
                id,
                state: "being changed",
            });
        }
        Ok(sandbox)
    }
}
