//! Looking at templates (contract 4.3).
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use http::{HeaderMap, HeaderValue};
use model::{Kind, Team, TemplateId, TemplateRef};
use ports::StoreError;
use ports::store::find_template;
use wire::rest::{Alias, Template, TemplateBuild, TemplateDetail, TemplateTag};

use crate::auth::Caller;
use crate::body::{PathText, Query};
use crate::convert::time;
use crate::error::ApiError;
use crate::sandboxes::NEXT_TOKEN;
use crate::{Api, listing};

/// The tag that is meant when none is given.
const DEFAULT_TAG: &str = "default";
/// The status of a build that sandboxes can be made of; others are not kept.
const READY: &str = "ready";

impl Api {
    /// The template that a team means by a name, if the team sees it.
    pub(crate) async fn visible_template(
        &self,
        team: &Team,
        name: &TemplateRef,
    ) -> Result<Option<model::Template>, StoreError> {
        find_template(&*self.parts.templates, &*self.parts.teams, team.id, name).await
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
    let own = own(&api, &caller, &query).await?;
    Ok(Json(
        own.iter().map(|template| shown(template, &caller.team)).collect(),
    ))
}

/// Templates of the team.
#[utoipa::path(get, path = "/v2/templates", tag = "templates",
    params(("teamID" = Option<String>, Query), ("limit" = Option<u32>, Query, minimum = 1, maximum = 100),
        ("nextToken" = Option<String>, Query, description = "X-Next-Token of the page before")),
    responses((status = 200, description = "A page, by creation; X-Next-Token leads to the next.", body = Vec<Template>)))]
pub(crate) async fn list_v2(
    State(api): State<Arc<Api>>,
    caller: Caller,
    query: Query,
) -> Result<(HeaderMap, Json<Vec<Template>>), ApiError> {
    let limit = listing::limit(&query)?;
    let after: Option<(SystemTime, TemplateId)> = query
        .get("nextToken")
        .map(|token| listing::place(token, true))
        .transpose()?;
    // As tokens tell times, so that none is seen twice or never.
    let place = |template: &model::Template| (time(template.created_at), template.id);
    let after = after.map(|(at, id)| (time(at), id));
    let mut page = own(&api, &caller, &query).await?;
    page.retain(|template| after.as_ref().is_none_or(|after| place(template) > *after));
    page.sort_by_key(place);
    let mut headers = HeaderMap::new();
    if page.len() > limit {
        page.truncate(limit);
        let last = &page[limit - 1];
        let token = listing::place_token(last.created_at, &last.id, true);
        headers.insert(
            NEXT_TOKEN,
            HeaderValue::from_str(&token).unwrap_or(HeaderValue::from_static("")),
        );
    }
    let shown = page.iter().map(|template| shown(template, &caller.team));
    Ok((headers, Json(shown.collect())))
}

/// The team's own templates, for a caller who may ask for them.
async fn own(api: &Api, caller: &Caller, query: &Query) -> Result<Vec<model::Template>, ApiError> {
    if let Some(team) = query.get("teamID").filter(|team| !team.is_empty())
        && team != caller.team.id.to_string()
    {
        return Err(ApiError::new(
            Kind::Forbidden,
            "the key does not belong to this team",
        ));
    }
    Ok(api.parts.templates.list(caller.team.id).await?)
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
        builds: builds_of(&template),
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

/// Each build that a tag names, once.
fn builds_of(template: &model::Template) -> Vec<TemplateBuild> {
    let ids: BTreeSet<String> = template.tags.values().map(ToString::to_string).collect();
    let build = |build_id| TemplateBuild {
        build_id,
        status: READY.to_owned(),
        created_at: time(template.created_at),
        updated_at: time(template.updated_at),
        finished_at: Some(time(template.updated_at)),
        cpu_count: template.resources.cpu,
        memory_mb: template.resources.memory.0,
        disk_size_mb: Some(template.resources.disk.0),
        envd_version: Some(wire::ENVD_VERSION.to_owned()),
    };
    ids.into_iter().map(build).collect()
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
        build_status: READY.to_owned(),
    }
}
