//! The face towards the API. Whatever has effects runs to its end, whether or not its client waits.
use async_trait::async_trait;
use model::recipe::Recipe;
use model::{Build, BuildId, TeamId, Template, TemplateId, TemplateRef};
use ports::blobs::ByteStream;
use ports::builds::{BuildLine, LinesQuery};
use ports::templates::{RegisterBuild, SnapshotInfo, SnapshotQuery};
use ports::{TemplateError, TemplateManager};

use crate::failure::{self, logged_of_template as logged};
use crate::orchestrator::Orchestrator;

#[async_trait]
impl TemplateManager for Orchestrator {
    async fn register(
        &self,
        team: TeamId,
        request: RegisterBuild,
    ) -> Result<(Template, Build), TemplateError> {
        self.detached(move |me| async move { me.register_build(team, request).await })
            .await
            .inspect_err(logged(team))
    }

    async fn has_upload(
        &self,
        team: TeamId,
        template: TemplateId,
        files: &str,
    ) -> Result<bool, TemplateError> {
        let found = self.find_upload(team, template, files).await;
        found.inspect_err(logged(team))
    }

    /// Ends with its client: what broke off is not stored.
    async fn upload(&self, team: TeamId, files: &str, bytes: ByteStream) -> Result<u64, TemplateError> {
        self.take_upload(team, files, bytes)
            .await
            .inspect_err(logged(team))
    }

    async fn start(
        &self,
        team: TeamId,
        template: TemplateId,
        build: BuildId,
        recipe: Recipe,
    ) -> Result<(), TemplateError> {
        self.detached(move |me| async move { me.start_build(team, template, build, recipe).await })
            .await
            .inspect_err(logged(team))
    }

    async fn cancel(&self, team: TeamId, template: TemplateId, build: BuildId) -> Result<(), TemplateError> {
        self.detached(move |me| async move { me.cancel_build(team, template, build).await })
            .await
            .inspect_err(logged(team))
    }

    async fn build(
        &self,
        team: TeamId,
        template: TemplateId,
        build: BuildId,
    ) -> Result<Build, TemplateError> {
        self.own_build(team, template, build)
            .await
            .inspect_err(logged(team))
    }

    async fn builds(&self, team: TeamId, template: TemplateId) -> Result<Vec<Build>, TemplateError> {
        let read = async {
            self.own_by_id(team, template).await?;
            let builds = self.parts.builds.builds_of(template).await;
            Ok(builds.map_err(failure::store("reading the builds"))?)
        };
        read.await.inspect_err(logged(team))
    }

    async fn lines(&self, build: BuildId, query: LinesQuery) -> Result<Vec<BuildLine>, TemplateError> {
        let lines = self.parts.builds.lines(build, query).await;
        Ok(lines.map_err(failure::store("reading the build's log"))?)
    }

    async fn tag(
        &self,
        team: TeamId,
        target: &TemplateRef,
        tags: Vec<String>,
    ) -> Result<BuildId, TemplateError> {
        let target = target.clone();
        self.detached(move |me| async move { me.tag_build(team, &target, tags).await })
            .await
            .inspect_err(logged(team))
    }

    async fn untag(&self, team: TeamId, name: &TemplateRef, tags: Vec<String>) -> Result<(), TemplateError> {
        let name = name.clone();
        self.detached(move |me| async move { me.untag_build(team, &name, tags).await })
            .await
            .inspect_err(logged(team))
    }

    async fn publish(
        &self,
        team: TeamId,
        name: &TemplateRef,
        public: bool,
    ) -> Result<Template, TemplateError> {
        let name = name.clone();
        self.detached(move |me| async move { me.publish_template(team, &name, public).await })
            .await
            .inspect_err(logged(team))
    }

    async fn delete(&self, team: TeamId, name: &TemplateRef) -> Result<(), TemplateError> {
        let name = name.clone();
        self.detached(move |me| async move { me.delete_template(team, &name).await })
            .await
            .inspect_err(logged(team))
    }

    async fn snapshots(
        &self,
        team: TeamId,
        query: SnapshotQuery,
    ) -> Result<Vec<SnapshotInfo>, TemplateError> {
        self.list_snapshots(team, query).await.inspect_err(logged(team))
    }
}
