//! `network`: from the user's words to a policy, and back.
use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;
use model::{Cidr, NetworkPolicy};
use wire::rest::{NetworkConfig, NetworkUpdate};

use crate::Api;
use crate::auth::Caller;
use crate::body::{Body, PathSandbox};
use crate::error::ApiError;

/// Rules of one direction: a set of the firewall.
const RULES_MAX: usize = 1_000;

/// Refuses what is in the protocol and not supported here, by name.
pub(crate) fn refuse(name: &str, value: Option<&serde_json::Value>) -> Result<(), ApiError> {
    let empty = match value {
        None | Some(serde_json::Value::Null) => true,
        Some(serde_json::Value::Object(map)) => map.is_empty(),
        Some(serde_json::Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    };
    if empty {
        Ok(())
    } else {
        Err(ApiError::invalid(format!("'{name}' is not supported yet")))
    }
}

pub(crate) fn refuse_list<T>(name: &str, list: Option<&Vec<T>>) -> Result<(), ApiError> {
    if list.is_none_or(Vec::is_empty) {
        Ok(())
    } else {
        Err(ApiError::invalid(format!("'{name}' is not supported yet")))
    }
}

fn allowed(list: Option<Vec<String>>) -> Result<Vec<Cidr>, ApiError> {
    cidrs("network.allowOut", list, |text| {
        let domain = text.bytes().any(|b| b.is_ascii_alphabetic()) && !text.contains(':');
        if domain {
            format!(
                "'network.allowOut': domain rules such as '{text}' are not supported yet; give addresses or CIDRs"
            )
        } else {
            format!("invalid allowed CIDR {text}")
        }
    })
}

fn denied(list: Option<Vec<String>>) -> Result<Vec<Cidr>, ApiError> {
    cidrs("network.denyOut", list, |text| {
        format!("invalid denied CIDR {text}")
    })
}

fn cidrs(
    name: &str,
    list: Option<Vec<String>>,
    wrong: impl Fn(&str) -> String,
) -> Result<Vec<Cidr>, ApiError> {
    let list = list.unwrap_or_default();
    if list.len() > RULES_MAX {
        return Err(ApiError::invalid(format!(
            "'{name}' has more than {RULES_MAX} entries"
        )));
    }
    list.iter()
        .map(|text| {
            text.parse()
                .map_err(|_| ApiError::invalid(wrong(&text.chars().take(128).collect::<String>())))
        })
        .collect()
}

/// The policy of a new sandbox.
pub(crate) fn policy(config: NetworkConfig, internet: Option<bool>) -> Result<NetworkPolicy, ApiError> {
    refuse("network.rules", config.rules.as_ref())?;
    refuse("network.egressProxy", config.egress_proxy.as_ref())?;
    refuse_list("network.httpsPorts", config.https_ports.as_ref())?;
    refuse_list("network.dnsServers", config.dns_servers.as_ref())?;
    let mask_host = config.mask_request_host.as_deref().map(str::parse).transpose();
    Ok(NetworkPolicy {
        allow: allowed(config.allow_out)?,
        deny: denied(config.deny_out)?,
        internet,
        public_traffic: config.allow_public_traffic,
        mask_host: mask_host.map_err(|error: model::MaskHostError| {
            ApiError::invalid(format!("'network.maskRequestHost': {error}"))
        })?,
    })
}

/// The policy as the user would write it.
pub(crate) fn shown(policy: &NetworkPolicy) -> NetworkConfig {
    let texts = |list: &Vec<Cidr>| (!list.is_empty()).then(|| list.iter().map(Cidr::to_string).collect());
    NetworkConfig {
        allow_public_traffic: policy.public_traffic,
        allow_out: texts(&policy.allow),
        deny_out: texts(&policy.deny),
        mask_request_host: policy.mask_host.as_ref().map(|mask| mask.as_str().to_owned()),
        ..NetworkConfig::default()
    }
}

/// Replace the rules of a running sandbox.
#[utoipa::path(put, path = "/sandboxes/{sandboxID}/network", tag = "sandboxes", request_body = NetworkUpdate,
    params(("sandboxID" = String, Path)), responses((status = 204, description = "They are in force.")))]
pub(crate) async fn update(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    Body(update): Body<NetworkUpdate>,
) -> Result<StatusCode, ApiError> {
    refuse("rules", update.rules.as_ref())?;
    refuse("egressProxy", update.egress_proxy.as_ref())?;
    refuse_list("dnsServers", update.dns_servers.as_ref())?;
    let policy = NetworkPolicy {
        allow: allowed(update.allow_out)?,
        deny: denied(update.deny_out)?,
        internet: update.allow_internet_access,
        public_traffic: None,
        mask_host: None,
    };
    api.parts.manager.set_network(caller.team.id, id, policy).await?;
    Ok(StatusCode::NO_CONTENT)
}
