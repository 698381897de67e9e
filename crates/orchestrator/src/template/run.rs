//! A build under way: one task from its start to its end.
use std::sync::Arc;
use std::time::Duration;

use model::recipe::{Base, Context, Recipe};
use model::{
    Build, BuildFailure, BuildId, BuildStatus, BuildStep, Memory, NodeId, Settings, TeamId, Template,
    TemplateRef,
};
use ports::builds::{BuildBase, BuildError, BuildOrder, BuildTalk, Built};
use ports::logs::Level;
use ports::store::find_template;
use ports::{ManagerError, Node};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::building::Running;
use super::change::failed;
use super::log::{self, Log};
use super::names::shown;
use super::shelf::Shelf;
use crate::failure;
use crate::orchestrator::Orchestrator;
use crate::placement::Wish;
use crate::timeout::whole_micros;
use crate::uses::Use;

/// Attempts of one build: the first, and those after a restart of the daemon or a fault of a node.
pub(crate) const ATTEMPTS_MAX: u32 = 3;
/// How long an attempt waits after a fault of a node.
const TRY_AGAIN: Duration = Duration::from_secs(2);
/// The longest build. Its steps are kept, so one that is started again goes on from there.
const BUILD_MAX: Duration = Duration::from_secs(3 * 3600);
/// How long a node may take to end a build that was cancelled. A cut one is cleared away by the node's next start.
const CANCEL_MAX: Duration = Duration::from_secs(30);
/// How often the end of a build is tried to be stored, and how long it waits in between: a store is away for moments.
const STORE_TRIES_MAX: u32 = 10;
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// Why an attempt has no result.
enum NotBuilt {
    /// Its owner is told.
    Failed(BuildFailure),
    /// A fault, or what it needs from elsewhere is not to be had now: another attempt may succeed.
    Fault(BuildFailure),
    /// It is to end.
    Cancelled,
}

impl From<ManagerError> for NotBuilt {
    fn from(error: ManagerError) -> Self {
        let source = &error as &dyn std::error::Error;
        tracing::error!(error = source, "a build met a fault");
        NotBuilt::Fault(failed(None, error.to_string()))
    }
}

impl Orchestrator {
    /// Begins the task of a build, unless it has one or the process is about to end: then the next process begins it.
    pub(super) fn run_build(&self, build: &Build) {
        let Some(running) = self.building.begin(build.id) else {
            return;
        };
        let me = self.arc();
        let (id, team, template, runner) = (build.id, build.team, build.template, build.runner);
        let span = tracing::info_span!("template.build", build = %id, %team, %template);
        let task = async move {
            let began = Instant::now();
            let using = Arc::new(me.uses.begin());
            match me.claim_build(id, runner).await {
                Ok(true) => {}
                // Another process has it, or it is over; or the store is away, and it is looked at again.
                Ok(false) | Err(_) => return,
            }
            let outcome = tokio::select! {
                outcome = me.carry_out_build((team, id), &running, &using) => outcome,
                () = me.keep_build(id, running.cancel()) => return,
            };
            if let Err(error) = outcome {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    "the end of a build was not stored; the reconciler goes on with it"
                );
            }
            if me.building.is_closed() {
                me.release_build(id).await;
            }
            metrics::histogram!("atoll_template_build_seconds").record(began.elapsed());
        };
        self.tasks.spawn(task.instrument(span));
    }

    /// Runs a build until it is over, or is to end.
    async fn carry_out_build(
        &self,
        (team, id): (TeamId, BuildId),
        running: &Running,
        using: &Arc<Use>,
    ) -> Result<(), ManagerError> {
        if !using.take(id) {
            return Ok(());
        }
        let (builds, clock) = (self.parts.builds.clone(), self.parts.clock.clone());
        let log = Log::open(builds, clock, id).await;
        let mut log = log.map_err(failure::store("reading the build's log"))?;
        let _turn = tokio::select! {
            turn = self.building.turn(team) => turn,
            () = running.cancel().cancelled() => return Ok(()),
        };
        let mut why = match log.attempts() {
            0 => String::new(),
            _ => ": the server went down while it was building; steps that are kept are not run again"
                .to_owned(),
        };
        let mut at = None;
        loop {
            let stored = self.parts.builds.build(id).await;
            let stored = stored.map_err(failure::store("reading the build"))?;
            let Some(build) = stored.filter(|build| build.status == BuildStatus::Building) else {
                return Ok(());
            };
            if self.is_tagged(&build).await? {
                return self.finish_build(&build, None, &mut log).await;
            }
            if log.attempts() >= ATTEMPTS_MAX {
                let message = format!("the build did not come to its end in {ATTEMPTS_MAX} attempts{why}");
                return self.fail_build(id, failed(at, message), &mut log).await;
            }
            let begun = log.begin_attempt(ATTEMPTS_MAX, &why).await;
            begun.map_err(failure::store("writing the build's log"))?;
            match self.build_once(&build, running.cancel(), &mut log, using).await {
                Ok(built) => {
                    failpoint::reach("orchestrator/node-built");
                    return self.finish_build(&build, Some(built), &mut log).await;
                }
                Err(NotBuilt::Failed(failure)) => return self.fail_build(id, failure, &mut log).await,
                Err(NotBuilt::Cancelled) if self.building.is_closed() => {
                    log.say(
                        Level::Info,
                        None,
                        "the server is shutting down; the build goes on after its start",
                    )
                    .await;
                    return Ok(());
                }
                Err(NotBuilt::Cancelled) => {
                    return self
                        .fail_build(id, failed(None, "the build was cancelled"), &mut log)
                        .await;
                }
                Err(NotBuilt::Fault(fault)) => {
                    log.say(Level::Warn, fault.step, fault.message.clone()).await;
                    why = format!(": {}", fault.message);
                    at = fault.step;
                    tokio::select! {
                        () = running.cancel().cancelled() => {}
                        () = tokio::time::sleep(TRY_AGAIN) => {}
                    }
                }
            }
        }
    }

    /// Whether its template names it already: an earlier process died before it could say that it is ready.
    async fn is_tagged(&self, build: &Build) -> Result<bool, ManagerError> {
        let template = self.parts.templates.get(build.template).await;
        let template = template.map_err(failure::store("reading the template"))?;
        Ok(template.is_some_and(|template| template.builds.contains_key(&build.id)))
    }

    /// One attempt, on one node after another where they take no more.
    async fn build_once(
        &self,
        build: &Build,
        cancel: &CancellationToken,
        log: &mut Log,
        using: &Arc<Use>,
    ) -> Result<Built, NotBuilt> {
        let recipe = build.recipe.clone();
        let recipe = recipe.ok_or_else(|| NotBuilt::Failed(failed(None, "the build has no recipe")))?;
        let base = self.base_of(build.team, &recipe, using).await?;
        let fleet = self.parts.fleet.nodes().borrow().clone();
        let mut search = self.placement.search(Wish {
            build: base.as_ref().map(|base| base.build),
            home: workshop(build.team, fleet.iter().map(|node| node.id())),
            ..Wish::new(build.team, build.resources)
        });
        let place = search.next_node();
        let node = place
            .as_ref()
            .and_then(|place| self.parts.fleet.node(place.node()));
        let Some(node) = node else {
            return Err(NotBuilt::Fault(failed(
                None,
                "there is no node that can build it now",
            )));
        };
        let at = node.id();
        let note = |build: &mut Build| {
            if build.status == BuildStatus::Building {
                build.node = Some(at);
            }
            Ok::<_, ManagerError>(())
        };
        let noted = self.edit_build(build.id, note).await?;
        if noted.is_none_or(|build| build.status != BuildStatus::Building) {
            return Err(NotBuilt::Cancelled);
        }
        failpoint::reach("orchestrator/build-placed");
        if let Some(base) = &base {
            self.bring_base(node.as_ref(), base.build).await;
        }
        let order = BuildOrder {
            build: build.id,
            team: build.team,
            template: build.template,
            resources: build.resources,
            recipe,
            base,
        };
        self.build_on(node.as_ref(), order, cancel, log, using).await
    }

    /// Has on the node what is to be built on, where the blobs hold it. Where it cannot be had the node says so.
    async fn bring_base(&self, node: &dyn Node, base: BuildId) {
        if !self.parts.config.stow || node.builds().await.is_ok_and(|there| there.contains(&base)) {
            return;
        }
        if let Err(error) = self.fetch_for(node, base).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(node = %node.id(), build = %base, error, "what is to be built on was not brought to the node");
        }
    }

    /// Has a node build, and writes what it tells.
    async fn build_on(
        &self,
        node: &dyn Node,
        order: BuildOrder,
        cancel: &CancellationToken,
        log: &mut Log,
        using: &Arc<Use>,
    ) -> Result<Built, NotBuilt> {
        let (sender, lines) = mpsc::channel(log::CAPACITY);
        let stop = cancel.child_token();
        let talk = BuildTalk {
            lines: sender,
            cancel: stop.clone(),
            shelf: Arc::new(Shelf::new(self.arc(), order.team, Arc::clone(using))),
        };
        let done = CancellationToken::new();
        let build = async {
            let mut building = node.build(order, talk);
            let outcome = tokio::select! {
                outcome = &mut building => Some(outcome),
                () = stop.cancelled() => None,
                () = tokio::time::sleep(BUILD_MAX) => {
                    stop.cancel();
                    let _ = timeout(CANCEL_MAX, &mut building).await;
                    done.cancel();
                    let hours = BUILD_MAX.as_secs() / 3600;
                    return Err(NotBuilt::Failed(failed(None, format!("the build took longer than {hours} hours"))));
                }
            };
            let outcome = match outcome {
                Some(outcome) => outcome,
                None => timeout(CANCEL_MAX, &mut building)
                    .await
                    .unwrap_or(Err(BuildError::Cancelled)),
            };
            done.cancel();
            outcome.map_err(not_built)
        };
        let (outcome, ()) = tokio::join!(build, log.follow(lines, done.clone()));
        outcome
    }

    /// What a build starts from, where that is a template. A base that is not there is the owner's fault, and told as
    /// one of the base.
    async fn base_of(
        &self,
        team: TeamId,
        recipe: &Recipe,
        using: &Use,
    ) -> Result<Option<BuildBase>, NotBuilt> {
        let Base::Template(reference) = &recipe.from else {
            return Ok(None);
        };
        let (templates, teams) = (&*self.parts.templates, &*self.parts.teams);
        let found = find_template(templates, teams, team, reference).await;
        let found = found.map_err(failure::store("reading the base template"))?;
        let base = found.ok_or_else(|| no_base(format!("template '{}' not found", shown(reference))))?;
        let base = base_from(&base, reference)?;
        if !using.take(base.build) {
            return Err(NotBuilt::Fault(failed(
                None,
                "the base template was changed in this moment",
            )));
        }
        Ok(Some(base))
    }

    /// Lets the build's tags name it, then stores that it is ready. `built`: `None` where they name it already.
    async fn finish_build(
        &self,
        build: &Build,
        built: Option<Built>,
        log: &mut Log,
    ) -> Result<(), ManagerError> {
        // While this is held nobody cancels it, deletes its template, or starts another.
        let _locked = self.template_locks.lock(build.template).await;
        // Noted when it was placed, after the caller has read it.
        let placed = self.parts.builds.build(build.id).await;
        let at = placed.ok().flatten().and_then(|build| build.node);
        let settings = built.map(|built| settings(build, at, built, whole_micros(self.now())));
        log.say(Level::Info, Some(BuildStep::Finalize), "the template is ready")
            .await;
        let mut tries = 0;
        loop {
            match self.store_result(build, settings.as_ref()).await {
                Ok(()) => return Ok(()),
                Err(error) if tries >= STORE_TRIES_MAX || self.building.is_closed() => return Err(error),
                Err(_) => {
                    tries += 1;
                    tokio::time::sleep(STORE_AGAIN).await;
                }
            }
        }
    }

    async fn store_result(&self, build: &Build, settings: Option<&Settings>) -> Result<(), ManagerError> {
        let stored = self.parts.builds.build(build.id).await;
        let stored = stored.map_err(failure::store("reading the build"))?;
        if stored.is_none_or(|stored| stored.status != BuildStatus::Building) {
            // It was cancelled, or its template deleted: what was built is collected.
            return Ok(());
        }
        if let Some(settings) = settings {
            let tag = |template: &mut Template| {
                template.tag(build.tags.iter().cloned(), build.id, settings.clone());
                Ok::<_, ManagerError>(true)
            };
            if self.edit_template(build.template, tag).await?.is_none() {
                let why = failed(None, "the template was deleted while it was built");
                self.end_build(build.id, BuildStatus::Failed(why)).await?;
                return Ok(());
            }
            failpoint::reach("orchestrator/build-tagged");
        }
        self.end_build(build.id, BuildStatus::Ready).await?;
        failpoint::reach("orchestrator/build-ready");
        if self.parts.config.shared {
            // Other nodes have it from there, and are asked for it soon.
            self.tasks.spawn(self.arc().stow_in_background());
        }
        tracing::info!("a template is built");
        metrics::counter!("atoll_template_builds_total", "outcome" => "ready").increment(1);
        Ok(())
    }

    /// Stores that a build has failed. One that was cancelled keeps what was told of that.
    async fn fail_build(&self, id: BuildId, why: BuildFailure, log: &mut Log) -> Result<(), ManagerError> {
        let stored = self.parts.builds.build(id).await;
        let stored = stored.map_err(failure::store("reading the build"))?;
        let told = match stored.map(|build| build.status) {
            None => return Ok(()),
            Some(BuildStatus::Failed(told)) => told,
            Some(_) => why,
        };
        log.say(Level::Error, told.step, told.message.clone()).await;
        let mut tries = 0;
        while let Err(error) = self.end_build(id, BuildStatus::Failed(told.clone())).await {
            if tries >= STORE_TRIES_MAX || self.building.is_closed() {
                return Err(error);
            }
            tries += 1;
            tokio::time::sleep(STORE_AGAIN).await;
        }
        failpoint::reach("orchestrator/build-failed");
        tracing::info!(
            step = told.step.map(tracing::field::display),
            reason = told.message,
            "a build failed"
        );
        metrics::counter!("atoll_template_builds_total", "outcome" => "failed").increment(1);
        Ok(())
    }
}

/// Where a team's builds are best made: where those before them were, whose steps are kept there. The same for as long as that node
/// is there, and spread over the teams (rendezvous hashing).
fn workshop(team: TeamId, nodes: impl Iterator<Item = NodeId>) -> Option<NodeId> {
    let weight = |node: &NodeId| {
        let mut hasher = Sha256::new();
        hasher.update(team.0.as_bytes());
        hasher.update(node.0.as_bytes());
        hasher.finalize()
    };
    nodes.max_by_key(weight)
}

fn not_built(error: BuildError) -> NotBuilt {
    match error {
        BuildError::Recipe(failure) => NotBuilt::Failed(failure),
        BuildError::Away(failure) => NotBuilt::Fault(failure),
        BuildError::Cancelled => NotBuilt::Cancelled,
        fault @ BuildError::Node { .. } => {
            let error = &fault as &dyn std::error::Error;
            tracing::error!(error, "a node did not build a template");
            NotBuilt::Fault(failed(
                None,
                format!("{fault}: that is a fault of the server, which has logged it"),
            ))
        }
    }
}

fn no_base(message: String) -> NotBuilt {
    NotBuilt::Failed(failed(Some(BuildStep::Base), message))
}

fn base_from(base: &Template, reference: &TemplateRef) -> Result<BuildBase, NotBuilt> {
    let tag = reference.tag.as_deref();
    let Some((build, settings)) = base.tagged(tag) else {
        let tag = tag.unwrap_or(Template::DEFAULT_TAG);
        return Err(no_base(format!(
            "tag '{tag}' does not exist for template '{}'",
            shown(reference)
        )));
    };
    let env = settings
        .env
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()));
    Ok(BuildBase {
        build,
        context: Context {
            user: settings.user.clone(),
            workdir: settings.workdir.clone(),
            env: env.collect(),
        },
        start: settings.start.clone(),
    })
}

/// What sandboxes of a build begin as.
fn settings(build: &Build, at: Option<NodeId>, built: Built, created_at: std::time::SystemTime) -> Settings {
    Settings {
        resources: build.resources,
        env: built.context.env.into_iter().collect(),
        user: built.context.user,
        workdir: built.context.workdir,
        start: built.start,
        memory: built.memory,
        home: at.filter(|_| built.memory != Memory::None),
        created_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_s_builds_are_made_where_those_before_them_were_while_that_node_is_there() {
        let nodes: Vec<_> = (0..8).map(|_| NodeId::random()).collect();
        let teams: Vec<_> = (0..64).map(|_| TeamId::random()).collect();
        let of = |team: TeamId, nodes: &[NodeId]| workshop(team, nodes.iter().copied());
        for team in &teams {
            let first = of(*team, &nodes).unwrap();
            let gone: Vec<_> = nodes.iter().copied().filter(|node| *node != nodes[0]).collect();
            if first != nodes[0] {
                assert_eq!(of(*team, &gone), Some(first));
            }
        }
        let used: std::collections::HashSet<_> = teams.iter().map(|team| of(*team, &nodes)).collect();
        assert!(used.len() > 4, "they are spread: {}", used.len());
        assert_eq!(of(teams[0], &[]), None);
    }
}
