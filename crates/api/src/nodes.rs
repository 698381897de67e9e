//! The machines that run sandboxes, for operators.
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use http::StatusCode;
use http::request::Parts;
use model::TeamId;
use ports::manager::{Drained, NodeWish};
use ports::node::{Held, HeldState, Report};
use wire::rest::{Capabilities, Node, NodeDetail, NodeDrain, NodeStatusChange};

use crate::Api;
use crate::auth::{Caller, Operator};
use crate::body::{Body, PathText, shown as quoted};
use crate::convert::time;
use crate::error::ApiError;

/// How long what cannot be moved is waited for, where that is not said.
const WITHIN: Duration = Duration::from_secs(3600);
/// No sandbox lives longer without being asked for, and a drain that takes longer is a cordon.
const WITHIN_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

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
    let id = parsed(&id)?;
    let nodes = api.parts.manager.nodes().await?;
    let report = nodes
        .iter()
        .find(|report| report.node == id)
        .ok_or_else(|| ApiError::not_found(format!("node {id} does not exist")))?;
    let seen = report.held.iter().filter(|held| onlooker.sees(held));
    let drained = match (onlooker.0, report.draining) {
        (None, Some(_)) => api.parts.manager.drained(id).await?,
        _ => None,
    };
    Ok(Json(NodeDetail {
        node: shown(report, &onlooker),
        sandboxes: seen.map(|held| held.order.sandbox.to_string()).collect(),
        drain: drained.map(drain),
    }))
}

/// Open a node for new sandboxes, close it, or have it emptied.
#[utoipa::path(post, path = "/nodes/{nodeID}", tag = "nodes", request_body = NodeStatusChange, params(("nodeID" = String, Path)),
    responses((status = 204, description = "The node remembers it.")))]
pub(crate) async fn set_status(
    State(api): State<Arc<Api>>,
    _: Operator,
    PathText(id): PathText,
    Body(body): Body<NodeStatusChange>,
) -> Result<StatusCode, ApiError> {
    let (id, wish) = (parsed(&id)?, wish(&body)?);
    api.parts.manager.set_node(id, wish).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn parsed(id: &str) -> Result<model::NodeId, ApiError> {
    id.parse()
        .map_err(|_| ApiError::invalid("Invalid node ID: it must be a UUID"))
}

fn wish(change: &NodeStatusChange) -> Result<NodeWish, ApiError> {
    let plain = match change.status.as_str() {
        "ready" => NodeWish::Ready,
        "cordoned" => NodeWish::Cordoned,
        "draining" => {
            let within = change.within_seconds.map_or(WITHIN, Duration::from_secs);
            if within > WITHIN_MAX {
                return Err(ApiError::invalid(format!(
                    "'withinSeconds' is at most {}",
                    WITHIN_MAX.as_secs()
                )));
            }
            return Ok(NodeWish::Draining {
                within,
                kills: change.kill.unwrap_or(false),
            });
        }
        found @ ("connecting" | "unhealthy" | "standby") => {
            return Err(ApiError::invalid(format!(
                "'status' cannot be set to '{found}', which is seen and not wished for: set 'ready', 'cordoned' or 'draining'"
            )));
        }
        other => {
            return Err(ApiError::invalid(format!(
                "'status' is 'ready', 'cordoned' or 'draining', and not '{}'",
                quoted(other)
            )));
        }
    };
    let stray = [
        ("withinSeconds", change.within_seconds.is_some()),
        ("kill", change.kill.is_some()),
    ];
    match stray.iter().find(|(_, is_there)| *is_there) {
        Some((name, _)) => Err(ApiError::invalid(format!(
            "'{name}' goes with the status 'draining' alone"
        ))),
        None => Ok(plain),
    }
}

fn drain(drained: Drained) -> NodeDrain {
    NodeDrain {
        deadline: time(drained.deadline),
        kill: drained.kills,
        moving: drained.moving,
        waiting: drained.waiting,
        left: drained.left,
        carried: drained.carried,
        is_over: drained.is_over,
    }
}

fn status(report: &Report) -> &'static str {
    match (report.draining, report.accepts) {
        (Some(_), _) => "draining",
        (None, false) => "cordoned",
        (None, true) => "ready",
    }
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
        status: status(report).to_owned(),
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
pub(crate) mod tests {
    use std::time::SystemTime;

    use model::{MiB, NodeId};
    use ports::runtime;

    use super::*;

    /// Of a node that holds nothing.
    pub(crate) fn report() -> Report {
        Report {
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
            draining: None,
            own: Vec::new(),
        }
    }

    #[test]
    fn a_node_tells_what_its_kind_of_machine_can_do() {
        let report = report();
        let told = serde_json::to_value(shown(&report, &Onlooker(None))).unwrap();
        let expected = serde_json::json!({
            "durableMemory": true, "freeze": true, "ownKernel": false,
            "network": true, "volumes": true, "roots": true, "portableBuilds": false,
        });
        assert_eq!(told["capabilities"], expected);
    }

    #[test]
    fn a_status_that_cannot_be_set_is_refused_by_name() {
        let change = |status: &str, within_seconds, kill| {
            wish(&NodeStatusChange {
                status: status.to_owned(),
                within_seconds,
                kill,
            })
        };
        assert_eq!(change("ready", None, None).unwrap(), NodeWish::Ready);
        assert_eq!(change("cordoned", None, None).unwrap(), NodeWish::Cordoned);
        let draining = |within, kills| NodeWish::Draining { within, kills };
        assert_eq!(change("draining", None, None).unwrap(), draining(WITHIN, false));
        let at_once = draining(Duration::ZERO, true);
        assert_eq!(change("draining", Some(0), Some(true)).unwrap(), at_once);
        for (status, within, kill, word) in [
            ("unhealthy", None, None, "unhealthy"),
            ("connecting", None, None, "connecting"),
            ("Ready", None, None, "Ready"),
            ("", None, None, "status"),
            ("ready", Some(5), None, "withinSeconds"),
            ("cordoned", None, Some(false), "kill"),
            ("draining", Some(604_801), None, "withinSeconds"),
        ] {
            let refused = change(status, within, kill).unwrap_err();
            assert!(
                refused.message().contains(word),
                "{status}: {}",
                refused.message()
            );
        }
    }
}
