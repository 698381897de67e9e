//! The face towards the API. Whatever has effects runs to its end, whether or not its client waits.
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use model::{NetworkPolicy, NodeId, PauseMode, SandboxId, TeamId, TemplateRef};
use ports::manager::{Connected, Drained, Granted, NodeWish, Page};
use ports::node::Report;
use ports::root::{Changes, ExportedRoot};
use ports::store::SandboxQuery;
use ports::templates::SnapshotInfo;
use ports::{CreateSandbox, LogLine, LogQuery, ManagerError, MetricSample, SandboxManager};

use crate::failure::logged;
use crate::orchestrator::Orchestrator;
use crate::timeout::Move;

#[async_trait]
impl SandboxManager for Orchestrator {
    async fn create(&self, team: TeamId, request: CreateSandbox) -> Result<Granted, ManagerError> {
        self.detached(move |me| async move { me.create_sandbox(team, request).await })
            .await
    }

    async fn connect(
        &self,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
        mode: PauseMode,
    ) -> Result<Connected, ManagerError> {
        self.detached(move |me| async move { me.connect_sandbox(team, id, timeout, mode).await })
            .await
            .inspect_err(logged(team, Some(id)))
    }

    async fn resume(
        &self,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
        mode: PauseMode,
        auto_pause: Option<bool>,
    ) -> Result<Granted, ManagerError> {
        self.detached(move |me| async move { me.resume_sandbox(team, id, timeout, mode, auto_pause).await })
            .await
            .inspect_err(logged(team, Some(id)))
    }

    async fn pause(
        &self,
        team: TeamId,
        id: SandboxId,
        mode: PauseMode,
        require_healthy: bool,
    ) -> Result<(), ManagerError> {
        self.detached(move |me| async move { me.pause_sandbox(team, id, mode, require_healthy).await })
            .await
            .inspect_err(logged(team, Some(id)))
    }

    async fn restart(&self, team: TeamId, id: SandboxId) -> Result<Granted, ManagerError> {
        self.detached(move |me| async move { me.restart_sandbox(team, id).await })
            .await
            .inspect_err(logged(team, Some(id)))
    }

    async fn snapshot(
        &self,
        team: TeamId,
        id: SandboxId,
        name: Option<TemplateRef>,
        memory: bool,
    ) -> Result<SnapshotInfo, ManagerError> {
        self.detached(move |me| async move { me.snapshot_sandbox(team, id, name, memory).await })
            .await
            .inspect_err(logged(team, Some(id)))
    }

    async fn fork(
        &self,
        team: TeamId,
        id: SandboxId,
        count: u32,
        timeout: Duration,
    ) -> Result<Vec<Result<Granted, ManagerError>>, ManagerError> {
        self.detached(move |me| async move { me.fork_sandbox(team, id, count, timeout).await })
            .await
            .inspect_err(logged(team, Some(id)))
    }

    async fn changes(&self, team: TeamId, id: SandboxId) -> Result<Changes, ManagerError> {
        self.detached(move |me| async move { me.changes_of(team, id).await })
            .await
            .inspect_err(logged(team, Some(id)))
    }

    async fn export(&self, team: TeamId, id: SandboxId) -> Result<ExportedRoot, ManagerError> {
        self.detached(move |me| async move { me.export_of(team, id).await })
            .await
            .inspect_err(logged(team, Some(id)))
    }

    async fn kill(&self, team: TeamId, id: SandboxId) -> Result<(), ManagerError> {
        self.detached(move |me| async move { me.kill_sandbox(team, id).await })
            .await
            .inspect_err(logged(team, Some(id)))
    }

    async fn get(&self, team: TeamId, id: SandboxId) -> Result<Granted, ManagerError> {
        let granted = self.get_sandbox(team, id).await;
        granted.inspect_err(logged(team, Some(id)))
    }

    async fn list(&self, query: SandboxQuery) -> Result<Page, ManagerError> {
        let team = query.team;
        self.list_sandboxes(query).await.inspect_err(logged(team, None))
    }

    async fn set_timeout(&self, team: TeamId, id: SandboxId, timeout: Duration) -> Result<(), ManagerError> {
        self.detached(move |me| async move { me.move_end(team, id, timeout, Move::To).await })
            .await
            .inspect_err(logged(team, Some(id)))
    }

    async fn refresh(&self, team: TeamId, id: SandboxId, timeout: Duration) -> Result<(), ManagerError> {
        self.detached(move |me| async move { me.move_end(team, id, timeout, Move::AtLeastTo).await })
            .await
            .inspect_err(logged(team, Some(id)))
    }

    async fn set_network(
        &self,
        team: TeamId,
        id: SandboxId,
        policy: NetworkPolicy,
    ) -> Result<(), ManagerError> {
        self.detached(move |me| async move { me.replace_network(team, id, policy).await })
            .await
            .inspect_err(logged(team, Some(id)))
    }

    async fn metrics(
        &self,
        team: TeamId,
        id: SandboxId,
        from: Option<SystemTime>,
        to: Option<SystemTime>,
    ) -> Result<Vec<MetricSample>, ManagerError> {
        let samples = self.samples(team, id, from, to).await;
        samples.inspect_err(logged(team, Some(id)))
    }

    async fn logs(&self, team: TeamId, id: SandboxId, query: LogQuery) -> Result<Vec<LogLine>, ManagerError> {
        let lines = self.lines(team, id, query).await;
        lines.inspect_err(logged(team, Some(id)))
    }

    async fn nodes(&self) -> Result<Vec<Report>, ManagerError> {
        Ok(self.reports().await)
    }

    async fn set_node(&self, node: NodeId, wish: NodeWish) -> Result<(), ManagerError> {
        let told = self.detached(move |me| async move { me.set_admission(node, wish).await });
        told.await.inspect_err(|error| {
            if error.is_fault() {
                let error = error as &dyn std::error::Error;
                tracing::error!(%node, error, "a node was not told what an operator wants of it");
            }
        })
    }

    async fn drained(&self, node: NodeId) -> Result<Option<Drained>, ManagerError> {
        self.how_drained(node).await
    }
}
