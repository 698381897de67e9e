//! Looking at sandboxes.
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::{HeaderMap, HeaderName, HeaderValue};
use model::{State as SandboxState, TemplateId, TemplateRef};
use ports::store::SandboxQuery;
use wire::rest::{ListedSandbox, SandboxDetail};

use crate::auth::Caller;
use crate::body::{PathSandbox, Query};
use crate::error::ApiError;
use crate::{Api, convert, listing};

pub(crate) const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");
const TOTAL_RUNNING: HeaderName = HeaderName::from_static("x-total-running");

/// One sandbox.
#[utoipa::path(get, path = "/sandboxes/{sandboxID}", tag = "sandboxes",
    params(("sandboxID" = String, Path)), responses((status = 200, description = "All about it.", body = SandboxDetail)))]
pub(crate) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
) -> Result<Json<SandboxDetail>, ApiError> {
    let granted = api.parts.manager.get(caller.team.id, id).await?;
    Ok(Json(api.detail(&granted)))
}

/// Sandboxes of the team, running and paused.
#[utoipa::path(get, path = "/v2/sandboxes", tag = "sandboxes",
    params(("state" = Option<String>, Query, description = "running, paused, or both with a comma", pattern = "^((running|paused)(,(running|paused))*)?$"),
        ("metadata" = Option<String>, Query, description = "key=value pairs, each encoded, joined by &, and encoded again"),
        ("startedAfter" = Option<String>, Query, description = "RFC 3339", format = DateTime), ("template" = Option<String>, Query, description = "[namespace/]name, or an id"),
        ("order" = Option<String>, Query, pattern = "^(asc|desc)$"), ("limit" = Option<u32>, Query, minimum = 1, maximum = 100),
        ("nextToken" = Option<String>, Query, description = "X-Next-Token of the page before")),
    responses((status = 200, description = "A page; X-Next-Token leads to the next.", body = Vec<ListedSandbox>)))]
pub(crate) async fn list_v2(
    State(api): State<Arc<Api>>,
    caller: Caller,
    query: Query,
) -> Result<(HeaderMap, Json<Vec<ListedSandbox>>), ApiError> {
    let states = listing::states(query.get("state"))?;
    list(&api, &caller, &query, states).await
}

/// Running sandboxes of the team (older clients).
#[utoipa::path(get, path = "/sandboxes", tag = "sandboxes",
    params(("metadata" = Option<String>, Query)),
    responses((status = 200, description = "All that run.", body = Vec<ListedSandbox>)))]
pub(crate) async fn list_v1(
    State(api): State<Arc<Api>>,
    caller: Caller,
    query: Query,
) -> Result<Json<Vec<ListedSandbox>>, ApiError> {
    let wanted = SandboxQuery {
        team: caller.team.id,
        states: vec![SandboxState::Running],
        metadata: listing::metadata(query.get("metadata"))?,
        started_after: None,
        template: None,
        ascending: false,
        after: None,
        // It has no pages.
        limit: usize::MAX,
    };
    let page = api.parts.manager.list(wanted).await?;
    Ok(Json(page.sandboxes.iter().map(convert::listed).collect()))
}

async fn list(
    api: &Api,
    caller: &Caller,
    query: &Query,
    states: Vec<SandboxState>,
) -> Result<(HeaderMap, Json<Vec<ListedSandbox>>), ApiError> {
    let ascending = listing::ascending(query.get("order"))?;
    let wants_running = ports::manager::wants(&states, SandboxState::Running);
    let mut wanted = SandboxQuery {
        team: caller.team.id,
        states,
        metadata: listing::metadata(query.get("metadata"))?,
        started_after: listing::started_after(query.get("startedAfter"))?,
        template: None,
        ascending,
        after: query
            .get("nextToken")
            .map(|token| listing::cursor(token, ascending))
            .transpose()?,
        limit: listing::limit(query)?,
    };
    let mut headers = HeaderMap::new();
    if let Some(name) = query.get("template") {
        let name: TemplateRef = name
            .parse()
            .map_err(|error: model::TemplateRefError| ApiError::invalid(error.to_string()))?;
        if name.tag.is_some() {
            return Err(ApiError::invalid(
                "query parameter 'template' must be without a tag",
            ));
        }
        let template = api.visible_template(&caller.team, &name).await?;
        // Of a template that nobody knows there are no sandboxes; how many run is told all the same.
        wanted.template = Some(template.map_or_else(TemplateId::random, |template| template.id));
    }
    let page = api.parts.manager.list(wanted).await?;
    if let Some(next) = page.next {
        headers.insert(
            NEXT_TOKEN,
            HeaderValue::from_str(&listing::token(next, ascending)).unwrap_or(HeaderValue::from_static("")),
        );
    }
    if let Some(total) = page.total_running.filter(|_| wants_running) {
        headers.insert(TOTAL_RUNNING, HeaderValue::from(total));
    }
    Ok((
        headers,
        Json(page.sandboxes.iter().map(convert::listed).collect()),
    ))
}
