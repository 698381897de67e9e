//! Why a node did not do it, on the way. Causes stay where they happened: they are logged there.
use std::time::Duration;

use connectrpc::ConnectError;
use model::Kind;
use ports::NodeError;
use ports::builds::BuildError;
use wire::node as proto;

use crate::call::{Outcome, with_detail};
use crate::convert::{Malformed, from_kind, from_optional_json, kind, optional_json, parsed, span_nanos};
use crate::status::code;
use crate::words::word;

/// At what a node fails that is not reached.
pub(crate) const REACHING: &str = "reaching the node";
/// At what a node fails that says what cannot be.
pub(crate) const UNDERSTANDING: &str = "understanding the node";
/// What takes too long where the answer was lost: what is true now is not known.
pub(crate) const ANSWER: &str = "the answer of the node";

fn node_failure(error: &NodeError) -> proto::NodeFailure {
    use proto::NodeReason as R;
    let mut failure = proto::NodeFailure::default();
    let reason = match error {
        NodeError::Unknown => R::NODE_REASON_UNKNOWN,
        NodeError::MemoryLost => R::NODE_REASON_MEMORY_LOST,
        NodeError::MemoryUnusable(why) => {
            failure.text = (*why).to_owned();
            R::NODE_REASON_MEMORY_UNUSABLE
        }
        NodeError::NoBuild(build) => {
            failure.build = build.to_string();
            R::NODE_REASON_NO_BUILD
        }
        NodeError::NoVolume(volume) => {
            failure.text = volume.to_string();
            R::NODE_REASON_NO_VOLUME
        }
        NodeError::Busy(how) => {
            failure.text = (*how).to_owned();
            R::NODE_REASON_BUSY
        }
        NodeError::Full { what, retry_after } => {
            failure.text = (*what).to_owned();
            failure.retry_after = retry_after.map(span_nanos);
            R::NODE_REASON_FULL
        }
        NodeError::CannotCheckpoint(why) => {
            failure.text.clone_from(why);
            R::NODE_REASON_CANNOT_CHECKPOINT
        }
        NodeError::Refused(why) => {
            failure.text.clone_from(why);
            R::NODE_REASON_REFUSED
        }
        NodeError::Timeout(what) => {
            failure.text = (*what).to_owned();
            R::NODE_REASON_TIMEOUT
        }
        NodeError::Failed { step, .. } => {
            failure.text = (*step).to_owned();
            R::NODE_REASON_FAILED
        }
    };
    failure.reason = reason.into();
    failure.kind = kind(error.kind()).into();
    failure
}

/// What failed there; why, its log says.
#[derive(Debug, thiserror::Error)]
#[error("the log of the node tells why")]
struct There;

fn node_error(failure: proto::NodeFailure) -> NodeError {
    use proto::NodeReason as R;
    let text = &failure.text;
    match failure.reason.as_known() {
        Some(R::NODE_REASON_UNKNOWN) => NodeError::Unknown,
        Some(R::NODE_REASON_MEMORY_LOST) => NodeError::MemoryLost,
        Some(R::NODE_REASON_MEMORY_UNUSABLE) => NodeError::MemoryUnusable(word(text)),
        Some(R::NODE_REASON_NO_BUILD) => match parsed(&failure.build, "build id") {
            Ok(build) => NodeError::NoBuild(build),
            Err(malformed) => not_understood(malformed),
        },
        Some(R::NODE_REASON_NO_VOLUME) => match parsed(text, "volume id") {
            Ok(volume) => NodeError::NoVolume(volume),
            Err(malformed) => not_understood(malformed),
        },
        Some(R::NODE_REASON_BUSY) => NodeError::Busy(word(text)),
        Some(R::NODE_REASON_FULL) => NodeError::Full {
            what: word(text),
            retry_after: failure.retry_after.map(Duration::from_nanos),
        },
        Some(R::NODE_REASON_CANNOT_CHECKPOINT) => NodeError::CannotCheckpoint(failure.text),
        Some(R::NODE_REASON_REFUSED) => NodeError::Refused(failure.text),
        Some(R::NODE_REASON_TIMEOUT) => NodeError::Timeout(word(text)),
        // A newer node's reason that is not known here is a failure at its step.
        Some(R::NODE_REASON_FAILED) | None => NodeError::Failed {
            step: word(text),
            kind: from_kind(failure.kind),
            source: Box::new(There),
        },
    }
}

/// A node's answer that cannot be.
pub(crate) fn not_understood(malformed: Malformed) -> NodeError {
    NodeError::Failed {
        step: UNDERSTANDING,
        kind: Kind::Internal,
        source: Box::new(malformed),
    }
}

/// For the one who asked. What happened in the node is logged here, where it stops travelling.
pub(crate) fn to_wire(method: &'static str, error: &NodeError) -> ConnectError {
    if let NodeError::Failed { .. } = error {
        tracing::warn!(method, error = crate::causes(error), "a call to this node failed");
    }
    with_detail(code(error.kind()), error.to_string(), &node_failure(error))
}

/// What a call that was not answered well means. `what` is what takes too long.
pub(crate) fn from_outcome(what: &'static str, outcome: Outcome<proto::NodeFailure>) -> NodeError {
    match outcome {
        Outcome::Told(failure) => node_error(failure),
        Outcome::Refused(refusal) => refused(refusal),
        Outcome::Late => NodeError::Timeout(what),
        Outcome::Undone(error) => NodeError::Failed {
            step: REACHING,
            kind: undone_kind(&error),
            source: Box::new(error),
        },
        Outcome::Lost(error) => {
            tracing::warn!(
                what,
                error = crate::causes(&error),
                "the answer of a node was lost"
            );
            NodeError::Timeout(ANSWER)
        }
    }
}

fn undone_kind(error: &ConnectError) -> Kind {
    use connectrpc::ErrorCode as C;
    match error.code {
        C::Unimplemented => Kind::Unsupported,
        C::PermissionDenied => Kind::Forbidden,
        C::InvalidArgument => Kind::Invalid,
        _ if matches!(
            crate::call::failed(error),
            Some(crate::channel::CallFailed::Foreign(..))
        ) =>
        {
            Kind::Unsupported
        }
        _ => Kind::Unavailable,
    }
}

/// What it means that a peer let a call not in.
pub(crate) fn refused(refusal: proto::Refusal) -> NodeError {
    use proto::refusal::Reason as R;
    let kind = match refusal.reason.as_known() {
        Some(R::REASON_CALLS) => {
            return NodeError::Full {
                what: "calls",
                retry_after: refusal.retry_after.map(Duration::from_nanos),
            };
        }
        Some(R::REASON_ROLE) => Kind::Forbidden,
        Some(R::REASON_PROTOCOL | R::REASON_SERVICE) => Kind::Unsupported,
        Some(R::REASON_MESSAGE) => Kind::Invalid,
        Some(R::REASON_UNSPECIFIED) | None => Kind::Internal,
    };
    NodeError::Failed {
        step: "being let in by the node",
        kind,
        source: refusal.text.into(),
    }
}

fn build_failure(error: &BuildError) -> proto::BuildFailure {
    use proto::BuildReason as R;
    let (reason, text, step) = match error {
        BuildError::Recipe(why) => (R::BUILD_REASON_RECIPE, why.message.clone(), why.step.as_ref()),
        BuildError::Away(why) => (R::BUILD_REASON_AWAY, why.message.clone(), why.step.as_ref()),
        BuildError::Cancelled => (R::BUILD_REASON_CANCELLED, String::new(), None),
        BuildError::Node { step, .. } => (R::BUILD_REASON_NODE, (*step).to_owned(), None),
    };
    proto::BuildFailure {
        reason: reason.into(),
        text,
        step: optional_json(step),
        ..Default::default()
    }
}

fn build_error(failure: proto::BuildFailure) -> BuildError {
    use proto::BuildReason as R;
    let why = || model::BuildFailure {
        message: failure.text.clone(),
        step: from_optional_json(&failure.step, "step").unwrap_or_default(),
    };
    match failure.reason.as_known() {
        Some(R::BUILD_REASON_RECIPE) => BuildError::Recipe(why()),
        Some(R::BUILD_REASON_AWAY) => BuildError::Away(why()),
        Some(R::BUILD_REASON_CANCELLED) => BuildError::Cancelled,
        Some(R::BUILD_REASON_NODE) | None => BuildError::Node {
            step: word(&failure.text),
            source: Box::new(There),
        },
    }
}

/// For the one who ordered the build.
pub(crate) fn build_to_wire(error: &BuildError) -> ConnectError {
    let kind = match error {
        BuildError::Recipe(_) => Kind::Invalid,
        BuildError::Away(_) => Kind::Unavailable,
        BuildError::Cancelled => Kind::Conflict,
        BuildError::Node { .. } => {
            tracing::warn!(
                error = crate::causes(error),
                "a build failed by a fault of this node"
            );
            Kind::Internal
        }
    };
    with_detail(code(kind), error.to_string(), &build_failure(error))
}

/// What a build means that was not answered well.
pub(crate) fn build_from_outcome(outcome: Outcome<proto::BuildFailure>) -> BuildError {
    let node = |step, source: Box<dyn std::error::Error + Send + Sync>| BuildError::Node { step, source };
    match outcome {
        Outcome::Told(failure) => build_error(failure),
        Outcome::Refused(refusal) => node("ordering a build", Box::new(refused(refusal))),
        Outcome::Late => node("building", "it took too long".into()),
        Outcome::Undone(error) => node(REACHING, Box::new(error)),
        Outcome::Lost(error) => node("hearing from the node that builds", Box::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use buffa::Message as _;
    use model::{BuildId, VolumeId};

    use super::*;

    fn every_error() -> Vec<NodeError> {
        let mut all = vec![
            NodeError::Unknown,
            NodeError::MemoryLost,
            NodeError::MemoryUnusable("it is of another kernel"),
            NodeError::NoBuild(BuildId::random()),
            NodeError::NoVolume(VolumeId::random()),
            NodeError::Busy("pausing"),
            NodeError::Full {
                what: "disk",
                retry_after: Some(Duration::from_nanos(1_234_567_891)),
            },
            NodeError::Full {
                what: "slots",
                retry_after: None,
            },
            NodeError::CannotCheckpoint("it has a device open".to_owned()),
            NodeError::Refused("this runtime has no volumes".to_owned()),
            NodeError::Timeout("starting"),
        ];
        all.extend(Kind::ALL.map(|kind| NodeError::Failed {
            step: "making its network",
            kind,
            source: "a secret of the node".into(),
        }));
        all
    }

    #[test]
    fn every_error_comes_back_as_it_was_but_for_its_cause() {
        for error in every_error() {
            let wire = to_wire("Start", &error);
            let Outcome::<proto::NodeFailure>::Told(told) = Outcome::of(wire.clone()) else {
                panic!("{error:?} is not told");
            };
            let back = node_error(told);
            assert_eq!(back.to_string(), error.to_string());
            assert_eq!(std::mem::discriminant(&back), std::mem::discriminant(&error));
            assert_eq!(back.kind(), error.kind());
            assert_eq!(back.is_unclear(), error.is_unclear());
            if let (NodeError::Full { retry_after, .. }, NodeError::Full { retry_after: was, .. }) =
                (&back, &error)
            {
                assert_eq!(retry_after, was);
            }
            assert!(!String::from_utf8_lossy(&wire.to_json()).contains("secret"));
        }
    }

    #[test]
    fn a_reason_of_a_newer_node_is_a_failure_at_its_step() {
        let newer = proto::NodeFailure {
            reason: buffa::EnumValue::from(77),
            text: "folding space".to_owned(),
            kind: proto::Kind::KIND_CONFLICT.into(),
            ..Default::default()
        };
        let newer = proto::NodeFailure::decode_from_slice(&newer.encode_to_vec()).unwrap();
        let error = node_error(newer);
        assert_eq!(error.to_string(), "folding space failed");
        assert_eq!(error.kind(), Kind::Conflict);
    }

    #[test]
    fn every_error_of_a_build_comes_back_as_it_was_but_for_its_cause() {
        let why = |step| model::BuildFailure {
            message: "exit code 1".to_owned(),
            step,
        };
        for error in [
            BuildError::Recipe(why(Some(model::BuildStep::Step(3)))),
            BuildError::Away(why(None)),
            BuildError::Cancelled,
            BuildError::Node {
                step: "making a lab",
                source: "a secret of the node".into(),
            },
        ] {
            let wire = build_to_wire(&error);
            let Outcome::<proto::BuildFailure>::Told(told) = Outcome::of(wire) else {
                panic!("{error:?} is not told");
            };
            let back = build_error(told);
            assert_eq!(back.to_string(), error.to_string());
            if let (
                BuildError::Recipe(back) | BuildError::Away(back),
                BuildError::Recipe(was) | BuildError::Away(was),
            ) = (&back, &error)
            {
                assert_eq!(back, was);
            }
        }
    }
}
