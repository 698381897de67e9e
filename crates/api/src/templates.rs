//! Templates: looking at them, changing and removing them (contract 3.5 and 4.3).
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use http::{HeaderMap, HeaderValue, StatusCode};
use model::{Build, BuildId, Kind, Resources, Team, TemplateId, TemplateOrigin, TemplateRef};
use ports::store::find_template;
use ports::{StoreError, TemplateError};
use wire::rest::{
    Alias, BuildStatus, ChangeTemplate, ChangedTemplate, Template, TemplateBuild, TemplateDetail,
};

use crate::auth::Caller;
use crate::body::{Body, PathText, Query};
use crate::builds::shown_status;
use crate::convert::time;
use crate::error::ApiError;
use crate::sandboxes::NEXT_TOKEN;
use crate::{Api, listing};

/// The id of a build that is not there.
const NO_BUILD: &str = "00000000-0000-0000-0000-000000000000";

impl Api {
    /// The template that a team means by a name, if the team sees it.
    pub(crate) async fn visible_template(
        &self,
        team: &Team,
        name: &TemplateRef,
    ) -> Result<Option<model::Template>, StoreError> {
        find_template(&*self.parts.templates, &*self.parts.teams, team.id, name).await
    }

    /// The template that a team means by a text, whoever owns it.
    pub(crate) async fn seen_template(&self, team: &Team, text: &str) -> Result<model::Template, ApiError> {
        let template = self.visible_template(team, &parse(text)?).await?;
        template.ok_or_else(|| unknown(text))
    }

    /// The template that a team means by a text, where it is its own: what others publish is not for it to change.
    pub(crate) async fn own_template(&self, team: &Team, text: &str) -> Result<model::Template, ApiError> {
        let template = self.seen_template(team, text).await?;
        if template.team == team.id {
            Ok(template)
        } else {
            Err(TemplateError::Forbidden(cut(text)).into())
        }
    }

    /// Builds of a template of the team's own, newest first.
    pub(crate) async fn builds_of(&self, template: &model::Template) -> Result<Vec<Build>, ApiError> {
        let builds = self
            .parts
            .templates_manager
            .builds(template.team, template.id)
            .await;
        match builds {
            Ok(builds) => Ok(builds),
            // Removed a moment ago.
            Err(error) if error.kind() == Kind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

pub(crate) fn parse(text: &str) -> Result<TemplateRef, ApiError> {
    text.parse()
        .map_err(|error: model::TemplateRefError| ApiError::invalid(error.to_string()))
}

fn cut(text: &str) -> String {
    text.chars().take(128).collect()
}

pub(crate) fn unknown(text: &str) -> ApiError {
    TemplateError::NotFound(cut(text)).into()
}

/// Templates of the team.
#[utoipa::path(get, path = "/templates", tag = "templates", params(("teamID" = Option<String>, Query)),
    responses((status = 200, description = "By creation.", body = Vec<Template>)))]
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    query: Query,
) -> Result<Json<Vec<Template>>, ApiError> {
    let mut templates = Vec::new();
    for template in own(&api, &caller, &query).await? {
        templates.push(api.listed(&template, &caller.team).await?);
    }
    Ok(Json(templates))
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
    let mut templates = Vec::with_capacity(page.len());
    for template in &page {
        templates.push(api.listed(template, &caller.team).await?);
    }
    Ok((headers, Json(templates)))
}

/// The team's own templates, for a caller who may ask for them. Snapshots have a list of their own.
async fn own(api: &Api, caller: &Caller, query: &Query) -> Result<Vec<model::Template>, ApiError> {
    own_team(&caller.team, query.get("teamID"))?;
    let mut own = api.parts.templates.list(caller.team.id).await?;
    own.retain(|template| template.origin == TemplateOrigin::Build);
    Ok(own)
}

/// That a request which names a team names that of its key.
pub(crate) fn own_team(team: &Team, named: Option<&str>) -> Result<(), ApiError> {
    match named.filter(|named| !named.is_empty()) {
        Some(named) if named != team.id.to_string() => Err(ApiError::new(
            Kind::Forbidden,
            "the key does not belong to this team",
        )),
        _ => Ok(()),
    }
}

/// One template, with a page of its builds.
#[utoipa::path(get, path = "/templates/{templateID}", tag = "templates",
    params(("templateID" = String, Path), ("limit" = Option<u32>, Query, minimum = 1, maximum = 100),
        ("nextToken" = Option<String>, Query, description = "X-Next-Token of the page before")),
    responses((status = 200, description = "The template, with its builds, newest first; X-Next-Token leads to more.", body = TemplateDetail)))]
pub(crate) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(name): PathText,
    query: Query,
) -> Result<(HeaderMap, Json<TemplateDetail>), ApiError> {
    let limit = listing::limit(&query)?;
    let after: Option<(SystemTime, BuildId)> = query
        .get("nextToken")
        .map(|token| listing::place(token, false))
        .transpose()?;
    let template = api.seen_template(&caller.team, &name).await?;
    let builds = if template.team == caller.team.id {
        api.builds_of(&template).await?
    } else {
        Vec::new()
    };
    let mut page: Vec<((String, BuildId), TemplateBuild)> = builds
        .iter()
        .map(|build| ((time(build.created_at), build.id), shown_build(build)))
        .collect();
    // Builds of which no history is kept: the base, snapshots.
    let unrecorded = template
        .builds
        .iter()
        .filter(|(id, _)| builds.iter().all(|build| build.id != **id));
    page.extend(unrecorded.map(|(id, settings)| ((time(settings.created_at), *id), ready(*id, settings))));
    page.sort_by(|(one, _), (other, _)| other.cmp(one));
    if let Some((at, id)) = after {
        let after = (time(at), id);
        page.retain(|(place, _)| *place < after);
    }
    let mut headers = HeaderMap::new();
    if page.len() > limit {
        page.truncate(limit);
        let (at, id) = &page[limit - 1].0;
        let at = humantime::parse_rfc3339(at).unwrap_or(SystemTime::UNIX_EPOCH);
        let token = listing::place_token(at, id, false);
        headers.insert(
            NEXT_TOKEN,
            HeaderValue::from_str(&token).unwrap_or(HeaderValue::from_static("")),
        );
    }
    Ok((
        headers,
        Json(TemplateDetail {
            template: shown(&template, &caller.team, &builds),
            builds: page.into_iter().map(|(_, build)| build).collect(),
        }),
    ))
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

/// Make a template public, or private again (older clients).
#[utoipa::path(patch, path = "/templates/{templateID}", tag = "templates", request_body = ChangeTemplate,
    params(("templateID" = String, Path)), responses((status = 200, description = "It is changed.")))]
pub(crate) async fn change_v1(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(name): PathText,
    Body(change): Body<ChangeTemplate>,
) -> Result<StatusCode, ApiError> {
    changed(&api, &caller.team, &name, change).await?;
    Ok(StatusCode::OK)
}

/// Make a template public, or private again.
#[utoipa::path(patch, path = "/v2/templates/{templateID}", tag = "templates", request_body = ChangeTemplate,
    params(("templateID" = String, Path)), responses((status = 200, description = "It is changed.", body = ChangedTemplate)))]
pub(crate) async fn change_v2(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(name): PathText,
    Body(change): Body<ChangeTemplate>,
) -> Result<Json<ChangedTemplate>, ApiError> {
    let template = changed(&api, &caller.team, &name, change).await?;
    Ok(Json(ChangedTemplate {
        names: namespaced(&template, &caller.team),
    }))
}

async fn changed(
    api: &Api,
    team: &Team,
    name: &str,
    change: ChangeTemplate,
) -> Result<model::Template, ApiError> {
    let template = api.own_template(team, name).await?;
    let Some(public) = change.public else {
        return Ok(template);
    };
    let manager = &api.parts.templates_manager;
    Ok(manager.publish(team.id, &parse(name)?, public).await?)
}

/// Remove a template, or a snapshot, that no sandbox uses.
#[utoipa::path(delete, path = "/templates/{templateID}", tag = "templates", params(("templateID" = String, Path, description = "an id, or [namespace/]name[:tag]")),
    responses((status = 204, description = "It is gone.")))]
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(name): PathText,
) -> Result<StatusCode, ApiError> {
    let manager = &api.parts.templates_manager;
    manager.delete(caller.team.id, &parse(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn shown_build(build: &Build) -> TemplateBuild {
    TemplateBuild {
        build_id: build.id.to_string(),
        status: shown_status(&build.status),
        created_at: time(build.created_at),
        updated_at: time(build.updated_at),
        finished_at: build.finished_at.map(time),
        cpu_count: build.resources.cpu,
        memory_mb: build.resources.memory.0,
        disk_size_mb: Some(build.resources.disk.0),
        envd_version: Some(wire::ENVD_VERSION.to_owned()),
    }
}

fn ready(id: BuildId, settings: &model::Settings) -> TemplateBuild {
    TemplateBuild {
        build_id: id.to_string(),
        status: BuildStatus::Ready,
        created_at: time(settings.created_at),
        updated_at: time(settings.created_at),
        finished_at: Some(time(settings.created_at)),
        cpu_count: settings.resources.cpu,
        memory_mb: settings.resources.memory.0,
        disk_size_mb: Some(settings.resources.disk.0),
        envd_version: Some(wire::ENVD_VERSION.to_owned()),
    }
}

/// The names of a template as others would write them.
pub(crate) fn namespaced(template: &model::Template, team: &Team) -> Vec<String> {
    let named = |name: &String| {
        if template.team == team.id {
            format!("{}/{name}", team.slug)
        } else {
            name.clone()
        }
    };
    template.names.iter().map(named).collect()
}

/// What a template is known by: what is meant when no tag is given; before there is such a build, the newest.
struct Meant {
    build: String,
    status: BuildStatus,
    resources: Resources,
}

fn meant(template: &model::Template, builds: &[Build]) -> Meant {
    let newest = || {
        template
            .builds
            .iter()
            .max_by_key(|(_, settings)| settings.created_at)
    };
    let tagged = template.tagged(None);
    if let Some((id, settings)) = tagged.or_else(|| newest().map(|(id, settings)| (*id, settings))) {
        return Meant {
            build: id.to_string(),
            status: BuildStatus::Ready,
            resources: settings.resources,
        };
    }
    let newest = builds.iter().max_by_key(|build| build.created_at);
    Meant {
        build: newest.map_or_else(|| NO_BUILD.to_owned(), |build| build.id.to_string()),
        status: newest.map_or(BuildStatus::Waiting, |build| shown_status(&build.status)),
        resources: newest.map(|build| build.resources).unwrap_or_default(),
    }
}

impl Api {
    async fn listed(&self, template: &model::Template, team: &Team) -> Result<Template, ApiError> {
        // Only one that nothing can be created from yet is known by its builds.
        let builds = if template.builds.is_empty() {
            self.builds_of(template).await?
        } else {
            Vec::new()
        };
        Ok(shown(template, team, &builds))
    }
}

fn shown(template: &model::Template, team: &Team, builds: &[Build]) -> Template {
    let meant = meant(template, builds);
    Template {
        template_id: template.id.to_string(),
        build_id: meant.build,
        cpu_count: meant.resources.cpu,
        memory_mb: meant.resources.memory.0,
        disk_size_mb: meant.resources.disk.0,
        public: template.public,
        aliases: template.names.clone(),
        names: namespaced(template, team),
        created_at: time(template.created_at),
        updated_at: time(template.updated_at),
        created_by: None,
        last_spawned_at: template.last_spawned_at.map(time),
        spawn_count: template.spawn_count,
        build_count: template.build_count,
        envd_version: wire::ENVD_VERSION.to_owned(),
        build_status: meant.status,
    }
}
