//! What the bus and the metrics are told of a write.
use std::collections::BTreeMap;

use model::{BuildId, Origin, PauseMode, Phase, Sandbox};
use ports::Happening;

use crate::orchestrator::Orchestrator;

/// What happened, and its details.
type News = (&'static str, BTreeMap<&'static str, String>);

/// What a write means to those outside; most writes mean nothing to them.
fn news(before: &Sandbox, after: &Sandbox) -> Option<News> {
    let mode = |mode| match mode {
        PauseMode::Full => "full",
        PauseMode::Filesystem => "filesystem",
    };
    match (before.phase, after.phase) {
        (
            Phase::Starting {
                from: Origin::Template(_),
                ..
            },
            Phase::Running { .. },
        ) => Some((
            "sandbox.created",
            BTreeMap::from([("template", after.template.to_string())]),
        )),
        (
            Phase::Starting {
                at,
                from: Origin::Snapshot { build, .. },
            },
            Phase::Running { .. },
        ) if build == BuildId(at.execution.0) => Some((
            "sandbox.updated",
            BTreeMap::from([("what", "restarted".to_owned())]),
        )),
        (
            Phase::Starting {
                from: Origin::Snapshot { mode: from, .. },
                ..
            },
            Phase::Running { .. },
        ) => Some((
            "sandbox.resumed",
            BTreeMap::from([("mode", mode(from).to_owned())]),
        )),
        (
            Phase::Pausing { .. } | Phase::Running { .. } | Phase::Snapshotting { .. },
            Phase::Paused { mode: kept, .. },
        ) => Some((
            "sandbox.paused",
            BTreeMap::from([("mode", mode(kept).to_owned())]),
        )),
        (Phase::Running { .. }, Phase::Running { .. }) => {
            let network = before.network != after.network;
            let what = if network { "network" } else { "timeout" };
            Some(("sandbox.updated", BTreeMap::from([("what", what.to_owned())])))
        }
        (Phase::Gone { .. }, Phase::Gone { .. }) => None,
        (_, Phase::Gone { why }) => Some(("sandbox.killed", BTreeMap::from([("why", why.to_string())]))),
        _ => None,
    }
}

impl Orchestrator {
    /// Tells everybody what a write means.
    pub(crate) async fn tell(&self, before: &Sandbox, after: &Sandbox) {
        let Some((what, details)) = news(before, after) else {
            return;
        };
        metrics::counter!("atoll_sandbox_happenings_total", "what" => what).increment(1);
        if let Phase::Gone { why } = after.phase {
            metrics::counter!("atoll_sandbox_ends_total", "why" => why.to_string()).increment(1);
        }
        let execution = after
            .phase
            .seat()
            .or(before.phase.seat())
            .map(|seat| seat.execution);
        tracing::info!(sandbox = %after.id, team = %after.team, execution = ?execution, ?details, "{what}");
        let (at, team, sandbox) = (self.now(), after.team, after.id);
        self.parts
            .bus
            .publish(Happening {
                at,
                team,
                sandbox,
                execution,
                what: what.into(),
                details: details
                    .into_iter()
                    .map(|(name, value)| (name.into(), value))
                    .collect(),
            })
            .await;
    }
}
