//! Copies of running sandboxes that others start from (contract 3.5).
use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use http::{HeaderMap, HeaderValue, StatusCode};
use model::{BuildId, Team};
use ports::templates::{SnapshotInfo, SnapshotQuery};
use wire::rest::{NewSnapshot, Snapshot};

use crate::auth::Caller;
use crate::body::{Body, PathSandbox, Query, known_sandbox_id};
use crate::builds::own_namespace;
use crate::convert::{memory, time};
use crate::error::ApiError;
use crate::sandboxes::NEXT_TOKEN;
use crate::{Api, listing, recipe};

/// Take a snapshot of a running sandbox, which goes on.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/snapshots", tag = "snapshots", request_body = NewSnapshot,
    params(("sandboxID" = String, Path)),
    responses((status = 201, description = "Sandboxes can be created from it.", body = Snapshot)))]
pub(crate) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    Body(body): Body<NewSnapshot>,
) -> Result<(StatusCode, Json<Snapshot>), ApiError> {
    let name = body.name.as_deref().map(recipe::name).transpose()?;
    if let Some(name) = &name {
        own_namespace(&caller.team, name.namespace.as_deref())?;
        name.tag.as_deref().map(recipe::tag).transpose()?;
    }
    let manager = &api.parts.manager;
    let taken = manager
        .snapshot(caller.team.id, id, name, body.memory.unwrap_or(true))
        .await?;
    Ok((StatusCode::CREATED, Json(shown(&taken, &caller.team))))
}

/// Snapshots of the team.
#[utoipa::path(get, path = "/snapshots", tag = "snapshots",
    params(("sandboxID" = Option<String>, Query), ("name" = Option<String>, Query, max_length = 256, description = "[namespace/]name[:tag], or an id"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100), ("nextToken" = Option<String>, Query, description = "X-Next-Token of the page before")),
    responses((status = 200, description = "A page, newest first; X-Next-Token leads to the next.", body = Vec<Snapshot>)))]
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    query: Query,
) -> Result<(HeaderMap, Json<Vec<Snapshot>>), ApiError> {
    let limit = listing::limit(&query)?;
    let after: Option<(SystemTime, Name)> = query
        .get("nextToken")
        .map(|token| listing::place(token, false))
        .transpose()?;
    let name = query.get("name").map(recipe::name).transpose()?;
    let mut headers = HeaderMap::new();
    let sandbox = match query.get("sandboxID").map(known_sandbox_id).transpose()? {
        // Nobody's, so that there are no snapshots of it.
        Some(None) => return Ok((headers, Json(Vec::new()))),
        sandbox => sandbox.flatten(),
    };
    let wanted = SnapshotQuery { sandbox, name };
    let mut page = api
        .parts
        .templates_manager
        .snapshots(caller.team.id, wanted)
        .await?;
    page.sort_by_cached_key(Place::of);
    if let Some((at, Name { build, tag })) = after {
        let after = Place(Reverse(time(at)), build, tag);
        page.retain(|snapshot| Place::of(snapshot) > after);
    }
    if page.len() > limit {
        page.truncate(limit);
        let last = &page[limit - 1];
        let name = Name {
            build: last.build,
            tag: last.tag.clone(),
        };
        let token = listing::place_token(taken_at(last), &name, false);
        headers.insert(
            NEXT_TOKEN,
            HeaderValue::from_str(&token).unwrap_or(HeaderValue::from_static("")),
        );
    }
    let shown = page.iter().map(|snapshot| shown(snapshot, &caller.team));
    Ok((headers, Json(shown.collect())))
}

fn taken_at(snapshot: &SnapshotInfo) -> SystemTime {
    let settings = snapshot.template.builds.get(&snapshot.build);
    settings.map_or(snapshot.template.updated_at, |settings| settings.created_at)
}

fn shown(snapshot: &SnapshotInfo, team: &Team) -> Snapshot {
    let SnapshotInfo { template, build, tag } = snapshot;
    let names: Vec<String> = template
        .names
        .iter()
        .map(|name| format!("{}/{name}:{tag}", team.slug))
        .collect();
    let id = names.first().cloned();
    let kept = template.builds.get(build).map(|settings| settings.memory);
    Snapshot {
        snapshot_id: id.unwrap_or_else(|| format!("{}:{tag}", template.id)),
        names,
        memory: memory(kept.unwrap_or_default()),
    }
}

/// Where a snapshot stands in the list, in the order of the list.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place(Reverse<String>, BuildId, String);

impl Place {
    fn of(snapshot: &SnapshotInfo) -> Self {
        Self(
            Reverse(time(taken_at(snapshot))),
            snapshot.build,
            snapshot.tag.clone(),
        )
    }
}

/// A build by one of its tags, as tokens carry it: tags may hold what separates the parts of a token.
#[derive(Debug)]
struct Name {
    build: BuildId,
    tag: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.build, hex::encode(&self.tag))
    }
}

impl FromStr for Name {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (build, tag) = text.split_once('.').ok_or(())?;
        let tag = String::from_utf8(hex::decode(tag).map_err(|_| ())?).map_err(|_| ())?;
        Ok(Self {
            build: build.parse().map_err(|_| ())?,
            tag,
        })
    }
}
