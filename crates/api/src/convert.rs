//! From what is stored to what is told.
use std::time::{SystemTime, UNIX_EPOCH};

use model::{OnTimeout, Origin, PauseMode, Phase, Sandbox, State};
use ports::manager::Granted;
use wire::rest;

use crate::Api;

/// RFC 3339, to the microsecond.
pub(crate) fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_micros(at).to_string()
}

/// Seconds since the epoch.
pub(crate) fn unix(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

pub(crate) fn mode(mode: PauseMode) -> rest::PauseMode {
    match mode {
        PauseMode::Full => rest::PauseMode::Full,
        PauseMode::Filesystem => rest::PauseMode::Filesystem,
    }
}

pub(crate) fn memory(memory: model::Memory) -> rest::Memory {
    match memory {
        model::Memory::Durable => rest::Memory::Durable,
        model::Memory::Volatile => rest::Memory::Volatile,
        model::Memory::None => rest::Memory::None,
    }
}

impl Api {
    pub(crate) fn granted(&self, granted: &Granted) -> rest::Sandbox {
        let sandbox = &granted.sandbox;
        rest::Sandbox {
            template_id: sandbox.template.to_string(),
            sandbox_id: sandbox.id.to_string(),
            client_id: rest::CLIENT_ID.to_owned(),
            envd_version: wire::ENVD_VERSION.to_owned(),
            alias: sandbox.alias.clone(),
            envd_access_token: granted.envd_token.as_ref().map(|token| token.expose().clone()),
            traffic_access_token: granted.traffic_token.as_ref().map(|token| token.expose().clone()),
            domain: self.parts.domain.clone(),
        }
    }

    pub(crate) fn detail(&self, granted: &Granted) -> rest::SandboxDetail {
        let sandbox = &granted.sandbox;
        let pause_mode = match sandbox.phase {
            Phase::Paused { mode, .. }
            | Phase::Pausing { mode, .. }
            // Paused for its clients, until it runs.
            | Phase::Starting {
                from: Origin::Snapshot { mode, .. },
                ..
            } => Some(mode),
            _ => None,
        };
        rest::SandboxDetail {
            listed: listed(sandbox),
            envd_access_token: granted.envd_token.as_ref().map(|token| token.expose().clone()),
            allow_internet_access: sandbox.network.internet,
            domain: self.parts.domain.clone(),
            network: crate::network::shown(&sandbox.network),
            lifecycle: rest::Lifecycle {
                auto_resume: sandbox.lifecycle.auto_resume,
                on_timeout: match sandbox.lifecycle.on_timeout {
                    OnTimeout::Kill => rest::OnTimeout::Kill,
                    OnTimeout::Pause(_) => rest::OnTimeout::Pause,
                },
            },
            pause_mode: pause_mode.map(mode),
        }
    }
}

pub(crate) fn listed(sandbox: &Sandbox) -> rest::ListedSandbox {
    let state = match sandbox.phase.state() {
        Some(State::Paused) => rest::SandboxState::Paused,
        _ => rest::SandboxState::Running,
    };
    // What was kept is of use until it runs.
    let is_kept = matches!(
        sandbox.phase,
        Phase::Paused { .. }
            | Phase::Starting {
                from: Origin::Snapshot { .. },
                ..
            }
    );
    let mounted = |mount: &model::VolumeMount| rest::VolumeMount {
        name: mount.name.clone(),
        path: mount.path.clone(),
    };
    rest::ListedSandbox {
        template_id: sandbox.template.to_string(),
        sandbox_id: sandbox.id.to_string(),
        client_id: rest::CLIENT_ID.to_owned(),
        started_at: time(sandbox.started_at),
        end_at: time(sandbox.end_at),
        cpu_count: sandbox.resources.cpu,
        memory_mb: sandbox.resources.memory.0,
        disk_size_mb: sandbox.resources.disk.0,
        state,
        envd_version: wire::ENVD_VERSION.to_owned(),
        alias: sandbox.alias.clone(),
        metadata: sandbox.metadata.clone(),
        volume_mounts: sandbox.volumes.iter().map(mounted).collect(),
        memory: is_kept.then(|| memory(sandbox.kept)),
        envd_unresponsive_at_pause: sandbox.envd_unresponsive_at_pause.then_some(true),
    }
}
