//! Looking at snapshots (contract 3.5).
use std::cmp::Reverse;

use model::{TeamId, Template, TemplateId, TemplateOrigin, TemplateRef};
use ports::TemplateError;
use ports::templates::{SnapshotInfo, SnapshotQuery};

use super::names;
use crate::failure;
use crate::orchestrator::Orchestrator;

/// Whether a name, as a filter, means this template: one of its names, or its id.
fn is_named(template: &Template, name: &TemplateRef) -> bool {
    template.names.contains(&name.name) || name.name.parse::<TemplateId>() == Ok(template.id)
}

/// The snapshots that a template is, by tag; none for one that was built.
fn snapshots(template: &Template, query: &SnapshotQuery) -> Vec<SnapshotInfo> {
    let of_sandbox = match template.origin {
        TemplateOrigin::Build => false,
        TemplateOrigin::Snapshot(sandbox) => query.sandbox.is_none_or(|wanted| wanted == sandbox),
    };
    if !of_sandbox || !query.name.as_ref().is_none_or(|name| is_named(template, name)) {
        return Vec::new();
    }
    let tag = query.name.as_ref().and_then(|name| name.tag.as_ref());
    let wanted = template
        .tags
        .iter()
        .filter(|(named, _)| tag.is_none_or(|tag| tag == *named));
    wanted
        .map(|(tag, build)| SnapshotInfo {
            template: template.clone(),
            build: *build,
            tag: tag.clone(),
        })
        .collect()
}

impl Orchestrator {
    /// Snapshots of a team, newest first.
    pub(super) async fn list_snapshots(
        &self,
        team: TeamId,
        query: SnapshotQuery,
    ) -> Result<Vec<SnapshotInfo>, TemplateError> {
        if let Some(name) = &query.name {
            names::check_namespace(&self.team(team).await?, name)?;
        }
        let templates = self.parts.templates.list(team).await;
        let templates = templates.map_err(failure::store("reading the templates"))?;
        let mut found: Vec<_> = templates
            .iter()
            .flat_map(|template| snapshots(template, &query))
            .collect();
        found.sort_by_key(|info| {
            let taken = info
                .template
                .builds
                .get(&info.build)
                .map(|settings| settings.created_at);
            (Reverse(taken), info.template.id, info.tag.clone())
        });
        Ok(found)
    }
}
