//! The machines that run sandboxes, for operators.
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use http::request::Parts;
use model::TeamId;
use ports::node::{Held, HeldState, Report};
use wire::rest::{Capabilities, Node, NodeDetail};

use crate::Api;
use crate::auth::{Caller, Operator};
use crate::body::PathText;
use crate::convert::time;
use crate::error::ApiError;

/// Who looks at the nodes: an operator, who sees all, or where the house knows no operators a team, which sees of others
/// not even how many sandboxes they have.
pub(crate) struct Onlooker(Option<TeamId>);

impl FromRequestParts<Arc<Api>> for Onlooker {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        if api.parts.admin_token.is_some() {
            Operator::from_request_parts(parts, api).await?;
            return Ok(Self(None));
        }
        let caller = Caller::from_request_parts(parts, api).await?;
        Ok(Self(Some(caller.team.id)))
    }
}

impl Onlooker {
    fn sees(&self, held: &Held) -> bool {
        self.0.is_none_or(|team| held.order.team == team)
    }
}

/// All nodes.
#[utoipa::path(get, path = "/nodes", tag = "nodes", responses((status = 200, description = "All nodes.", body = Vec<Node>)))]
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    onlooker: Onlooker,
) -> Result<Json<Vec<Node>>, ApiError> {
    let nodes = api.parts.manager.nodes().await?;
    Ok(Json(nodes.iter().map(|node| shown(node, &onlooker)).collect()))
}

/// One node with what it holds.
#[utoipa::path(get, path = "/nodes/{nodeID}", tag = "nodes", params(("nodeID" = String, Path)),
    responses((status = 200, description = "The node.", body = NodeDetail)))]
pub(crate) async fn get(
    State(api): State<Arc<Api>>,
    onlooker: Onlooker,
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
    let seen = report.held.iter().filter(|held| onlooker.sees(held));
    Ok(Json(NodeDetail {
        node: shown(report, &onlooker),
        sandboxes: seen.map(|held| held.order.sandbox.to_string()).collect(),
    }))
}

/// What a runtime can do, as it is told.
#[must_use]
pub fn capabilities(can: ports::runtime::Capabilities) -> Capabilities {
    Capabilities {
        durable_memory: can.durable_memory,
        freeze: can.freeze,
        own_kernel: can.own_kernel,
        network: can.network,
        volumes: can.volumes,
        roots: can.roots,
        portable_builds: can.portable_builds,
    }
}

fn shown(report: &Report, onlooker: &Onlooker) -> Node {
    let count = |wanted: fn(HeldState) -> bool| {
        let seen = report.held.iter().filter(|held| onlooker.sees(held));
        seen.filter(|held| wanted(held.state)).count()
    };
    let starting = count(|state| state == HeldState::Starting);
    Node {
        node_id: report.node.to_string(),
        status: if report.accepts { "ready" } else { "draining" }.to_owned(),
        runtime: report.runtime.clone(),
        capabilities: capabilities(report.capabilities),
        sandbox_count: count(|state| state == HeldState::Running),
        paused_count: count(|state| matches!(state, HeldState::Paused(..))),
        sandbox_starting_count: u32::try_from(starting).unwrap_or(u32::MAX),
        slots_ready: report.slots_ready,
        cpu_count: report.cpu_total,
        memory_total_mb: report.memory_total.0,
        memory_available_mb: report.memory_available.0,
        disk_total_mb: report.disk_total.0,
        disk_available_mb: report.disk_available.0,
        started_at: time(report.started_at),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use model::{MiB, NodeId};
    use ports::runtime;

    use super::*;

    #[test]
    fn a_node_tells_what_its_kind_of_machine_can_do() {
        let report = Report {
            node: NodeId::random(),
            runtime: "container".to_owned(),
            capabilities: runtime::Capabilities {
                durable_memory: true,
                freeze: true,
                own_kernel: false,
                network: true,
                volumes: true,
                roots: true,
                portable_builds: false,
            },
            started_at: SystemTime::UNIX_EPOCH,
            held: Vec::new(),
            cpu_total: 2,
            memory_total: MiB(2),
            memory_available: MiB(1),
            disk_total: MiB(2),
            disk_available: MiB(1),
            slots_ready: 0,
            starting: 0,
            accepts: true,
        };
        let told = serde_json::to_value(shown(&report, &Onlooker(None))).unwrap();
        let expected = serde_json::json!({
            "durableMemory": true, "freeze": true, "ownKernel": false,
            "network": true, "volumes": true, "roots": true, "portableBuilds": false,
        });
        assert_eq!(told["capabilities"], expected);
    }
}
