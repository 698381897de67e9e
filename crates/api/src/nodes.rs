//! The machines that run sandboxes, for operators.
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use ports::node::{HeldState, Report};
use wire::rest::{Node, NodeDetail};

use crate::Api;
use crate::auth::Caller;
use crate::body::PathText;
use crate::convert::time;
use crate::error::ApiError;

/// All nodes.
#[utoipa::path(get, path = "/nodes", tag = "nodes", responses((status = 200, description = "All nodes.", body = Vec<Node>)))]
pub(crate) async fn list(State(api): State<Arc<Api>>, _: Caller) -> Result<Json<Vec<Node>>, ApiError> {
    Ok(Json(api.parts.manager.nodes().await?.iter().map(shown).collect()))
}

/// One node with what it holds of the caller's team.
#[utoipa::path(get, path = "/nodes/{nodeID}", tag = "nodes", params(("nodeID" = String, Path)),
    responses((status = 200, description = "The node.", body = NodeDetail)))]
pub(crate) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(id): PathText,
) -> Result<Json<NodeDetail>, ApiError> {
    let id: model::NodeId = id
        .parse()
        .map_err(|_| ApiError::invalid("Invalid node ID: it must be a UUID"))?;
    let nodes = api.parts.manager.nodes().await?;
    let report = nodes
        .iter()
        .find(|report| report.node == id)
        .ok_or_else(|| ApiError::not_found(format!("node {id} does not exist")))?;
    let own = report
        .held
        .iter()
        .filter(|held| held.order.team == caller.team.id);
    Ok(Json(NodeDetail {
        node: shown(report),
        sandboxes: own.map(|held| held.order.sandbox.to_string()).collect(),
    }))
}

fn shown(report: &Report) -> Node {
    let paused = report
        .held
        .iter()
        .filter(|held| matches!(held.state, HeldState::Paused(..)))
        .count();
    let running = report
        .held
        .iter()
        .filter(|held| held.state == HeldState::Running)
        .count();
    Node {
        node_id: report.node.to_string(),
        status: if report.accepts { "ready" } else { "draining" }.to_owned(),
        runtime: report.runtime.clone(),
        sandbox_count: running,
        paused_count: paused,
        sandbox_starting_count: report.starting,
        slots_ready: report.slots_ready,
        cpu_count: report.cpu_total,
        memory_total_mb: report.memory_total.0,
        memory_available_mb: report.memory_available.0,
        disk_total_mb: report.disk_total.0,
        disk_available_mb: report.disk_available.0,
        started_at: time(report.started_at),
    }
}
