//! Looking at templates (contract 4.3).
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use model::{Kind, Team, TemplateRef};
use ports::StoreError;
use wire::rest::{Alias, Template, TemplateDetail, TemplateTag};

use crate::Api;
use crate::auth::Caller;
use crate::body::{PathText, Query};
use crate::convert::time;
use crate::error::ApiError;

/// The tag that is meant when none is given.
const DEFAULT_TAG: &str = "default";

impl Api {
    /// The template that a team means by a name: its own first, then one that everybody may use.
    pub(crate) async fn visible_template(
        &self,
        team: &Team,
        name: &TemplateRef,
    ) -> Result<Option<model::Template>, StoreError> {
        let store = &self.parts.templates;
        let owner = match name.namespace.as_deref() {
            Some(slug) if slug != team.slug => self.parts.teams.team_by_slug(slug).await?.map(|team| team.id),
            _ => Some(team.id),
        };
        let visible = |template: &model::Template| template.team == team.id || template.public;
        if let Some(owner) = owner
            && let Some(found) = store.named(owner, &name.name).await?.filter(visible)
        {
            return Ok(Some(found));
        }
        if name.namespace.is_some() {
            return Ok(None);
        }
        if let Ok(id) = name.name.parse()
            && let Some(found) = store.get(id).await?.filter(visible)
        {
            return Ok(Some(found));
        }
        store.promoted(&name.name).await
    }
}

fn parse(text: &str) -> Result<TemplateRef, ApiError> {
    text.parse()
        .map_err(|error: model::TemplateRefError| ApiError::invalid(error.to_string()))
}

fn unknown(text: &str) -> ApiError {
    ApiError::not_found(format!(
        "template '{}' not found",
        text.chars().take(128).collect::<String>()
    ))
}

/// Templates of the team.
#[utoipa::path(get, path = "/templates", tag = "templates", params(("teamID" = Option<String>, Query)),
    responses((status = 200, description = "By creation.", body = Vec<Template>)))]
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    query: Query,
) -> Result<Json<Vec<Template>>, ApiError> {
    if let Some(team) = query.get("teamID").filter(|team| !team.is_empty())
        && team != caller.team.id.to_string()
    {
        return Err(ApiError::new(
            Kind::Forbidden,
            "the key does not belong to this team",
        ));
    }
    let own = api.parts.templates.list(caller.team.id).await?;
    Ok(Json(
        own.iter().map(|template| shown(template, &caller.team)).collect(),
    ))
}

/// Templates of the team.
#[utoipa::path(get, path = "/v2/templates", tag = "templates", params(("teamID" = Option<String>, Query)),
    responses((status = 200, description = "By creation.", body = Vec<Template>)))]
pub(crate) async fn list_v2(
    api: State<Arc<Api>>,
    caller: Caller,
    query: Query,
) -> Result<Json<Vec<Template>>, ApiError> {
    list(api, caller, query).await
}

/// One template.
#[utoipa::path(get, path = "/templates/{templateID}", tag = "templates", params(("templateID" = String, Path)),
    responses((status = 200, description = "The template.", body = TemplateDetail)))]
pub(crate) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(name): PathText,
) -> Result<Json<TemplateDetail>, ApiError> {
    let template = api
        .visible_template(&caller.team, &parse(&name)?)
        .await?
        .ok_or_else(|| unknown(&name))?;
    Ok(Json(TemplateDetail {
        template: shown(&template, &caller.team),
        builds: tags_of(&template),
    }))
}

/// What a name stands for.
#[utoipa::path(get, path = "/templates/aliases/{alias}", tag = "templates", params(("alias" = String, Path)),
    responses((status = 200, description = "It stands for a template.", body = Alias)))]
pub(crate) async fn alias(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(name): PathText,
) -> Result<Json<Alias>, ApiError> {
    let wanted = parse(&name)?;
    let template = api
        .visible_template(&caller.team, &wanted)
        .await?
        .ok_or_else(|| unknown(&name))?;
    if let Some(tag) = wanted.tag.filter(|tag| !template.tags.contains_key(tag)) {
        return Err(ApiError::not_found(format!(
            "tag '{tag}' does not exist for template '{}'",
            wanted.name
        )));
    }
    Ok(Json(Alias {
        template_id: template.id.to_string(),
        public: template.public,
    }))
}

/// Tags of a template.
#[utoipa::path(get, path = "/templates/{templateID}/tags", tag = "templates", params(("templateID" = String, Path)),
    responses((status = 200, description = "All tags.", body = Vec<TemplateTag>)))]
pub(crate) async fn tags(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(name): PathText,
) -> Result<Json<Vec<TemplateTag>>, ApiError> {
    let template = api
        .visible_template(&caller.team, &parse(&name)?)
        .await?
        .ok_or_else(|| unknown(&name))?;
    Ok(Json(tags_of(&template)))
}

fn tags_of(template: &model::Template) -> Vec<TemplateTag> {
    let tag = |(tag, build): (&String, &model::BuildId)| TemplateTag {
        tag: tag.clone(),
        build_id: build.to_string(),
        created_at: time(template.updated_at),
    };
    template.tags.iter().map(tag).collect()
}

fn shown(template: &model::Template, team: &Team) -> Template {
    let named = |name: &String| {
        if template.team == team.id {
            format!("{}/{name}", team.slug)
        } else {
            name.clone()
        }
    };
    Template {
        template_id: template.id.to_string(),
        build_id: template
            .tags
            .get(DEFAULT_TAG)
            .map(ToString::to_string)
            .unwrap_or_default(),
        cpu_count: template.resources.cpu,
        memory_mb: template.resources.memory.0,
        disk_size_mb: template.resources.disk.0,
        public: template.public,
        aliases: template.names.clone(),
        names: template.names.iter().map(named).collect(),
        created_at: time(template.created_at),
        updated_at: time(template.updated_at),
        created_by: None,
        last_spawned_at: template.last_spawned_at.map(time),
        spawn_count: template.spawn_count,
        build_count: template.build_count,
        envd_version: wire::ENVD_VERSION.to_owned(),
        build_status: "ready".to_owned(),
    }
}
