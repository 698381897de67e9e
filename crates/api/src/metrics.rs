//! What sandboxes use.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use model::Kind;
use ports::MetricSample;
use wire::rest::{SandboxMetric, SandboxesMetrics};

use crate::auth::Caller;
use crate::body::{PathSandbox, Query, known_sandbox_id};
use crate::error::ApiError;
use crate::{Api, convert};

/// Sandboxes of one question.
const SANDBOXES_MAX: usize = 100;

fn second(query: &Query, name: &str) -> Result<Option<SystemTime>, ApiError> {
    let seconds: Option<u64> = query.parsed(name, "seconds since the epoch")?;
    let at = |seconds| {
        UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .ok_or_else(|| ApiError::invalid(format!("query parameter '{name}' is too late")))
    };
    seconds.map(at).transpose()
}

/// Use of resources over time.
#[utoipa::path(get, path = "/sandboxes/{sandboxID}/metrics", tag = "sandboxes",
    params(("sandboxID" = String, Path), ("start" = Option<i64>, Query, minimum = 0, description = "seconds since the epoch"), ("end" = Option<i64>, Query, minimum = 0)),
    responses((status = 200, description = "Samples, oldest first.", body = Vec<SandboxMetric>)))]
pub(crate) async fn of_one(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    query: Query,
) -> Result<Json<Vec<SandboxMetric>>, ApiError> {
    let (from, to) = (second(&query, "start")?, second(&query, "end")?);
    // The end is a second, and all of it.
    let to = to.map(|to| to + Duration::from_millis(999));
    let samples = api.parts.manager.metrics(caller.team.id, id, from, to).await?;
    Ok(Json(samples.iter().map(shown).collect()))
}

/// The newest use of several sandboxes.
#[utoipa::path(get, path = "/sandboxes/metrics", tag = "sandboxes",
    params(("sandbox_ids" = String, Query, description = "ids with commas, at most 100")),
    responses((status = 200, description = "By id; unknown ones are left out.", body = SandboxesMetrics)))]
pub(crate) async fn of_several(
    State(api): State<Arc<Api>>,
    caller: Caller,
    query: Query,
) -> Result<Json<SandboxesMetrics>, ApiError> {
    let ids = query
        .get("sandbox_ids")
        .ok_or_else(|| ApiError::invalid("query parameter 'sandbox_ids' is missing"))?;
    let ids: Vec<&str> = ids.split(',').filter(|id| !id.is_empty()).collect();
    if ids.len() > SANDBOXES_MAX {
        return Err(ApiError::invalid(format!(
            "query parameter 'sandbox_ids' holds more than {SANDBOXES_MAX}"
        )));
    }
    let mut sandboxes = BTreeMap::new();
    for id in ids {
        let Some(id) = known_sandbox_id(id)? else { continue };
        let samples = match api.parts.manager.metrics(caller.team.id, id, None, None).await {
            Ok(samples) => samples,
            Err(error) if error.kind() == Kind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        if let Some(newest) = samples.last() {
            sandboxes.insert(id.to_string(), shown(newest));
        }
    }
    Ok(Json(SandboxesMetrics { sandboxes }))
}

fn shown(sample: &MetricSample) -> SandboxMetric {
    SandboxMetric {
        timestamp: convert::time(sample.timestamp),
        timestamp_unix: convert::unix(sample.timestamp),
        cpu_count: sample.cpu_count,
        cpu_used_pct: sample.cpu_used_pct,
        mem_used: sample.mem_used,
        mem_total: sample.mem_total,
        mem_cache: sample.mem_cache,
        disk_used: sample.disk_used,
        disk_total: sample.disk_total,
    }
}
