//! The face towards the API. Whatever has effects runs to its end, whether or not its client waits.
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use model::{Lifecycle, NetworkPolicy, PauseMode, SandboxId, TeamId};
use ports::manager::{Connected, Granted, Page};
use ports::node::Report;
use ports::store::SandboxQuery;
use ports::{CreateSandbox, LogLine, LogQuery, ManagerError, MetricSample, SandboxManager};

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
    }

    async fn resume(
        &self,
        team: TeamId,
        id: SandboxId,
        timeout: Duration,
        lifecycle: Option<Lifecycle>,
    ) -> Result<Granted, ManagerError> {
        self.detached(move |me| async move { me.resume_sandbox(team, id, timeout, lifecycle).await })
            .await
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
    }

    async fn restart(&self, team: TeamId, id: SandboxId) -> Result<Granted, ManagerError> {
        self.detached(move |me| async move { me.restart_sandbox(team, id).await })
            .await
    }

    async fn kill(&self, team: TeamId, id: SandboxId) -> Result<(), ManagerError> {
        self.detached(move |me| async move { me.kill_sandbox(team, id).await })
            .await
    }

    async fn get(&self, team: TeamId, id: SandboxId) -> Result<Granted, ManagerError> {
        self.get_sandbox(team, id).await
    }

    async fn list(&self, query: SandboxQuery) -> Result<Page, ManagerError> {
        self.list_sandboxes(query).await
    }

    async fn set_timeout(&self, team: TeamId, id: SandboxId, timeout: Duration) -> Result<(), ManagerError> {
        self.detached(move |me| async move { me.move_end(team, id, timeout, Move::To).await })
            .await
    }

    async fn refresh(&self, team: TeamId, id: SandboxId, timeout: Duration) -> Result<(), ManagerError> {
        self.detached(move |me| async move { me.move_end(team, id, timeout, Move::AtLeastTo).await })
            .await
    }

    async fn set_network(
        &self,
        team: TeamId,
        id: SandboxId,
        policy: NetworkPolicy,
    ) -> Result<(), ManagerError> {
        self.detached(move |me| async move { me.replace_network(team, id, policy).await })
            .await
    }

    async fn metrics(
        &self,
        team: TeamId,
        id: SandboxId,
        from: Option<SystemTime>,
        to: Option<SystemTime>,
    ) -> Result<Vec<MetricSample>, ManagerError> {
        self.samples(team, id, from, to).await
    }

    async fn logs(&self, team: TeamId, id: SandboxId, query: LogQuery) -> Result<Vec<LogLine>, ManagerError> {
        self.lines(team, id, query).await
    }

    async fn nodes(&self) -> Result<Vec<Report>, ManagerError> {
        Ok(self.reports().await)
    }
}
