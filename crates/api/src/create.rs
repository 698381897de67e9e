//! Creating a sandbox (contract 3.4).
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::{HeaderMap, HeaderValue, StatusCode};
use model::{Lifecycle, OnTimeout, PauseMode, Quota};
use ports::CreateSandbox;
use sha2::{Digest as _, Sha256};
use wire::rest::{NewSandbox, Sandbox, VolumeMount};

use crate::Api;
use crate::auth::Caller;
use crate::body::Body;
use crate::error::ApiError;
use crate::network;

/// Labels and variables of one sandbox.
const PAIRS_MAX: usize = 1_024;
/// Keys and values together: envd is told the environment in one message, and lists carry the labels.
const PAIRS_BYTES_MAX: usize = 256 * 1024;
/// Each is a mount of its own in the sandbox.
const VOLUME_MOUNTS_MAX: usize = 32;
/// No path of Linux is longer.
const MOUNT_TEXT_BYTES_MAX: usize = 1_024;
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;

/// Which generation of the API a request speaks (contract, section 0).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

impl Version {
    /// How long a sandbox lives whose request does not say.
    pub(crate) const fn default_timeout(self) -> i64 {
        match self {
            Version::V1 => 15,
            Version::V2 => 300,
        }
    }
}

/// Create a sandbox (older clients).
#[utoipa::path(post, path = "/sandboxes", tag = "sandboxes", request_body = NewSandbox,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key with the same body has the same result; 1..255 of [a-z0-9-]."),
        ("X-Atoll-Allocation" = Option<String>, Header, description = "`own`: an allocation of its own of the scheduler's, which takes seconds; `shared` otherwise.")),
    responses((status = 201, description = "It is usable.", body = Sandbox),
        (status = 422, description = "The Idempotency-Key was used with a different request.", body = wire::rest::Error)))]
pub(crate) async fn create_v1(
    State(api): State<Arc<Api>>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<NewSandbox>,
) -> Result<(StatusCode, Json<Sandbox>), ApiError> {
    create(&api, &caller, Version::V1, &headers, body).await
}

/// Create a sandbox.
#[utoipa::path(post, path = "/v2/sandboxes", tag = "sandboxes", request_body = NewSandbox,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key with the same body has the same result; 1..255 of [a-z0-9-]."),
        ("X-Atoll-Allocation" = Option<String>, Header, description = "`own`: an allocation of its own of the scheduler's, which takes seconds; `shared` otherwise.")),
    responses((status = 201, description = "It is usable.", body = Sandbox),
        (status = 422, description = "The Idempotency-Key was used with a different request.", body = wire::rest::Error)))]
pub(crate) async fn create_v2(
    State(api): State<Arc<Api>>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<NewSandbox>,
) -> Result<(StatusCode, Json<Sandbox>), ApiError> {
    create(&api, &caller, Version::V2, &headers, body).await
}

async fn create(
    api: &Api,
    caller: &Caller,
    version: Version,
    headers: &HeaderMap,
    body: NewSandbox,
) -> Result<(StatusCode, Json<Sandbox>), ApiError> {
    let own_allocation = own_allocation(headers)?;
    let idempotency = idempotency(headers, &body, own_allocation)?;
    let request = CreateSandbox {
        idempotency,
        own_allocation,
        ..request(version, body, &caller.team.quota)?
    };
    let granted = api.parts.manager.create(caller.team.id, request).await?;
    Ok((StatusCode::CREATED, Json(api.granted(&granted))))
}

/// Whether the sandbox is to be an allocation of its own of the scheduler's.
fn own_allocation(headers: &HeaderMap) -> Result<bool, ApiError> {
    match headers.get("x-atoll-allocation").map(HeaderValue::as_bytes) {
        None | Some(b"shared") => Ok(false),
        Some(b"own") => Ok(true),
        Some(_) => Err(ApiError::invalid("X-Atoll-Allocation must be 'own' or 'shared'")),
    }
}

fn idempotency(
    headers: &HeaderMap,
    body: &NewSandbox,
    own_allocation: bool,
) -> Result<Option<(String, [u8; 32])>, ApiError> {
    let Some(key) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let key = key
        .to_str()
        .ok()
        .filter(|key| (1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.len()) && key.bytes().all(plain));
    let key =
        key.ok_or_else(|| ApiError::invalid("Idempotency-Key must be 1..255 characters of [a-z0-9-]"))?;
    // The parsed request, so that white space and the order of fields make no difference.
    let mut digest = Sha256::new_with_prefix(serde_json::to_vec(body).unwrap_or_default());
    if own_allocation {
        digest.update(b"own allocation");
    }
    let digest = digest.finalize();
    Ok(Some((key.to_owned(), digest.into())))
}

/// The request, with every rule of the contract applied that needs nobody else.
pub(crate) fn request(version: Version, body: NewSandbox, quota: &Quota) -> Result<CreateSandbox, ApiError> {
    let template = body
        .template_id
        .parse()
        .map_err(|error: model::TemplateRefError| ApiError::invalid(error.to_string()))?;
    network::refuse(
        "iam",
        body.iam.as_ref().and_then(|iam| iam.get("tokens").or(Some(iam))),
    )?;
    if !body
        .mcp
        .as_ref()
        .is_none_or(|mcp| mcp.is_object() || mcp.is_null())
    {
        return Err(ApiError::invalid("'mcp' must be an object"));
    }
    let secure = version == Version::V2 || body.secure.unwrap_or(false);
    let policy = network::policy(body.network.unwrap_or_default(), body.allow_internet_access)?;
    if policy.public_traffic == Some(false) && !secure {
        return Err(ApiError::invalid(
            "You cannot create a sandbox without public access unless you enable secure envd access via 'secure' flag.",
        ));
    }
    Ok(CreateSandbox {
        template,
        timeout: timeout(body.timeout.unwrap_or(version.default_timeout()), quota)?,
        lifecycle: lifecycle(
            body.auto_pause.unwrap_or(false),
            body.auto_pause_memory.unwrap_or(true),
            body.auto_resume.is_some_and(|resume| resume.enabled),
        )?,
        secure,
        network: policy,
        metadata: pairs("metadata", body.metadata)?,
        env: environment(body.env_vars)?,
        volumes: volumes(body.volume_mounts)?,
        idempotency: None,
        own_allocation: false,
        starts_per_second: quota.creates_per_second,
    })
}

/// A time to live that the team may have.
pub(crate) fn timeout(seconds: i64, quota: &Quota) -> Result<Duration, ApiError> {
    let seconds = u64::try_from(seconds)
        .ok()
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| ApiError::invalid("Timeout must be greater than 0"))?;
    if seconds > u64::from(quota.life_hours) * 3600 {
        return Err(ApiError::invalid(format!(
            "Timeout cannot be greater than {} hours",
            quota.life_hours
        )));
    }
    Ok(Duration::from_secs(seconds))
}

fn lifecycle(auto_pause: bool, keeps_memory: bool, auto_resume: bool) -> Result<Lifecycle, ApiError> {
    if !keeps_memory && !auto_pause {
        return Err(ApiError::invalid(
            "'autoPauseMemory: false' needs 'autoPause: true'",
        ));
    }
    if !keeps_memory && auto_resume {
        return Err(ApiError::invalid(
            "'autoPauseMemory: false' cannot be combined with 'autoResume': a pause without memory is not woken by traffic",
        ));
    }
    let mode = if keeps_memory {
        PauseMode::Full
    } else {
        PauseMode::Filesystem
    };
    let on_timeout = if auto_pause {
        OnTimeout::Pause(mode)
    } else {
        OnTimeout::Kill
    };
    Ok(Lifecycle {
        on_timeout,
        auto_resume,
    })
}

fn pairs(name: &str, map: Option<BTreeMap<String, String>>) -> Result<BTreeMap<String, String>, ApiError> {
    let map = map.unwrap_or_default();
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if map.len() > PAIRS_MAX || bytes > PAIRS_BYTES_MAX {
        return Err(ApiError::invalid(format!(
            "'{name}' has more than {PAIRS_MAX} entries or {PAIRS_BYTES_MAX} bytes"
        )));
    }
    Ok(map)
}

/// Which volumes there are, and which paths they may have, is the manager's to say.
fn volumes(mounts: Option<Vec<VolumeMount>>) -> Result<Vec<(String, String)>, ApiError> {
    let mounts = mounts.unwrap_or_default();
    if mounts.len() > VOLUME_MOUNTS_MAX {
        return Err(ApiError::invalid(format!(
            "'volumeMounts' has more than {VOLUME_MOUNTS_MAX} entries"
        )));
    }
    let too_long = |mount: &VolumeMount| mount.name.len().max(mount.path.len()) > MOUNT_TEXT_BYTES_MAX;
    if let Some(at) = mounts.iter().position(too_long) {
        return Err(ApiError::invalid(format!(
            "'volumeMounts[{at}]' holds a text of more than {MOUNT_TEXT_BYTES_MAX} bytes"
        )));
    }
    Ok(mounts.into_iter().map(|mount| (mount.name, mount.path)).collect())
}

fn environment(map: Option<BTreeMap<String, String>>) -> Result<BTreeMap<String, String>, ApiError> {
    let map = pairs("envVars", map)?;
    match map
        .iter()
        .find(|(key, value)| key.is_empty() || key.contains(['=', '\0']) || value.contains('\0'))
    {
        Some((key, _)) => {
            let key: String = key.chars().take(64).collect();
            Err(ApiError::invalid(format!(
                "'envVars': {key:?} is no variable: names are not empty and hold no '=', and nothing holds NUL"
            )))
        }
        None => Ok(map),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(json: &str) -> NewSandbox {
        serde_json::from_str(json).unwrap()
    }

    #[track_caller]
    fn refused(json: &str, names: &str) {
        let error = request(Version::V1, body(json), &Quota::default()).unwrap_err();
        assert!(format!("{error:?}").contains(names), "{error:?}");
    }

    #[test]
    fn the_two_versions_differ_in_their_defaults() {
        let v1 = request(Version::V1, body(r#"{"templateID":"base"}"#), &Quota::default()).unwrap();
        let v2 = request(Version::V2, body(r#"{"templateID":"base"}"#), &Quota::default()).unwrap();
        assert_eq!((v1.timeout.as_secs(), v1.secure), (15, false));
        assert_eq!((v2.timeout.as_secs(), v2.secure), (300, true));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        refused(
            r#"{"templateID":"base","iam":{"tokens":{"a":{"audience":"b"}}}}"#,
            "iam",
        );
        refused(
            r#"{"templateID":"base","network":{"rules":{"a.com":[]}}}"#,
            "network.rules",
        );
        refused(
            r#"{"templateID":"base","network":{"egressProxy":{"address":"x"}}}"#,
            "network.egressProxy",
        );
        refused(
            r#"{"templateID":"base","network":{"httpsPorts":[1]}}"#,
            "network.httpsPorts",
        );
        refused(
            r#"{"templateID":"base","network":{"dnsServers":["1.1.1.1"]}}"#,
            "network.dnsServers",
        );
        refused(
            r#"{"templateID":"base","network":{"allowOut":["*.example.com"]}}"#,
            "domain rules",
        );
    }

    #[test]
    fn volumes_are_mounted_by_name() {
        let json =
            r#"{"templateID":"base","volumeMounts":[{"name":"a","path":"/a"},{"name":"b","path":"/b"}]}"#;
        for version in [Version::V1, Version::V2] {
            let asked = request(version, body(json), &Quota::default()).unwrap();
            let expected = [("a", "/a"), ("b", "/b")].map(|(name, path)| (name.to_owned(), path.to_owned()));
            assert_eq!(asked.volumes, expected);
        }
        let mount = json!({"name": "a", "path": "/a"});
        let many = json!({"templateID": "base", "volumeMounts": vec![mount; VOLUME_MOUNTS_MAX + 1]});
        refused(&many.to_string(), "volumeMounts");
        let long = json!({"templateID": "base", "volumeMounts": [{"name": "a", "path": "/".repeat(5_000)}]});
        refused(&long.to_string(), "volumeMounts[0]");
    }

    #[test]
    fn rules_that_contradict_each_other_are_refused() {
        refused(r#"{"templateID":"base","autoPauseMemory":false}"#, "autoPause");
        refused(
            r#"{"templateID":"base","autoPause":true,"autoPauseMemory":false,"autoResume":{"enabled":true}}"#,
            "autoResume",
        );
        refused(
            r#"{"templateID":"base","network":{"allowPublicTraffic":false}}"#,
            "secure",
        );
        refused(r#"{"templateID":"base","timeout":0}"#, "greater than 0");
        refused(r#"{"templateID":"base","timeout":999999999}"#, "hours");
        refused(r#"{"templateID":"b a"}"#, "Invalid template reference");
        refused(
            r#"{"templateID":"base","network":{"denyOut":["example.com"]}}"#,
            "invalid denied CIDR example.com",
        );
        refused(r#"{"templateID":"base","envVars":{"A=B":"x"}}"#, "envVars");
    }
}
