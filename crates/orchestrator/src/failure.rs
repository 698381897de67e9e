//! How failures below look to clients: the step and the kind, never the inner cause.
use model::{Kind, Refused, SandboxId};
use ports::{ManagerError, NodeError, StoreError};

/// A failed read or write.
pub(crate) fn store(step: &'static str) -> impl FnOnce(StoreError) -> ManagerError {
    move |error| ManagerError::Failed {
        step,
        kind: error.kind(),
        source: error.into(),
    }
}

/// A node that did not do it.
pub(crate) fn node(id: SandboxId, step: &'static str) -> impl FnOnce(NodeError) -> ManagerError {
    move |error| match error {
        NodeError::MemoryLost => ManagerError::MemoryLost(id),
        NodeError::Busy(state) => ManagerError::Busy { id, state },
        NodeError::Full { what, .. } => ManagerError::NoCapacity(format!("its node is out of {what}")),
        NodeError::Timeout(what) => ManagerError::Timeout(what),
        // The id was found and is there: that its node does not hold it is no fault of the request.
        NodeError::Unknown => ManagerError::Failed {
            step,
            kind: Kind::Unavailable,
            source: error.into(),
        },
        NodeError::Failed { kind, .. } => ManagerError::Failed {
            step,
            kind,
            source: error.into(),
        },
    }
}

/// An event that the sandbox's phase does not take.
pub(crate) fn refused(id: SandboxId) -> impl FnOnce(Refused) -> ManagerError {
    move |refused| match refused.phase.state() {
        None => ManagerError::NotFound(id),
        Some(_) => ManagerError::Busy {
            id,
            state: refused.phase.name(),
        },
    }
}

/// A fault with a text for a cause.
pub(crate) fn fault(step: &'static str, kind: Kind, cause: &'static str) -> ManagerError {
    ManagerError::Failed {
        step,
        kind,
        source: cause.into(),
    }
}
