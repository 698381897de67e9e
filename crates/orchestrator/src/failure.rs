//! How failures below look to clients: the step and the kind, never the inner cause.
use model::{Kind, Refused, SandboxId, TeamId};
use ports::{BlobError, ManagerError, NodeError, StoreError, TemplateError, VolumeError};

/// The way in which something below failed, as the way in which a request fails: what was not found down there, or was
/// not allowed, is not the object of the request. Only whether another try may help goes through.
fn of_ours(kind: Kind) -> Kind {
    match kind {
        Kind::Unavailable | Kind::Timeout => kind,
        _ => Kind::Internal,
    }
}

/// A failed read or write.
pub(crate) fn store(step: &'static str) -> impl FnOnce(StoreError) -> ManagerError {
    move |error| ManagerError::Failed {
        step,
        kind: of_ours(error.kind()),
        source: error.into(),
    }
}

/// Logs a fault once, where it leaves this crate: clients are told neither its cause nor where it is.
pub(crate) fn logged(team: TeamId, id: Option<SandboxId>) -> impl Fn(&ManagerError) {
    move |error| {
        if error.is_fault() {
            let sandbox = id.map(tracing::field::display);
            tracing::error!(%team, sandbox, error = error as &dyn std::error::Error, "a request failed");
        }
    }
}

/// The same for what is wished for a template: of its errors, only those of the manager are faults.
pub(crate) fn logged_of_template(team: TeamId) -> impl Fn(&TemplateError) {
    move |error| {
        if let TemplateError::Manager(error) = error {
            logged(team, None)(error);
        }
    }
}

/// The same for what is wished for a volume.
pub(crate) fn logged_of_volume(team: TeamId) -> impl Fn(&VolumeError) {
    move |error| {
        if let VolumeError::Manager(error) = error {
            logged(team, None)(error);
        }
    }
}

/// Blobs that are not to be had.
pub(crate) fn blobs(step: &'static str) -> impl FnOnce(BlobError) -> ManagerError {
    move |error| ManagerError::Failed {
        step,
        kind: of_ours(error.kind()),
        source: error.into(),
    }
}

/// A node that did not do it.
pub(crate) fn node(id: SandboxId, step: &'static str) -> impl FnOnce(NodeError) -> ManagerError {
    move |error| match error {
        NodeError::MemoryLost => ManagerError::MemoryLost(id),
        NodeError::MemoryUnusable(why) => ManagerError::MemoryUnusable { id, why },
        NodeError::Busy(state) => ManagerError::Busy { id, state },
        NodeError::Full { what, .. } => ManagerError::NoCapacity(format!("its node is out of {what}")),
        NodeError::Timeout(what) => ManagerError::Timeout(what),
        NodeError::CannotCheckpoint(why) => ManagerError::CannotCheckpoint { id, why },
        NodeError::Refused(why) => ManagerError::Invalid(why),
        NodeError::NoVolume(volume) => ManagerError::VolumeLost(format!(
            "its node does not have the files of volume {volume} any more: they were moved or lost"
        )),
        // The id was found and is there: that its node does not hold it is no fault of the request.
        NodeError::Unknown | NodeError::NoBuild(_) => ManagerError::Failed {
            step,
            kind: Kind::Unavailable,
            source: error.into(),
        },
        NodeError::Failed { kind, .. } => ManagerError::Failed {
            step,
            kind: of_ours(kind),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client is told of a node that failed in some way.
    fn check(below: Kind, told: Kind) {
        let error = node(SandboxId::random(), "mounting the disk")(NodeError::Failed {
            step: "opening the image",
            kind: below,
            source: "no such file".into(),
        });
        assert_eq!(error.kind(), told, "{below:?}");
        assert!(error.is_fault() && !error.to_string().contains("no such file"));
    }

    #[test]
    fn what_a_node_does_not_find_is_a_fault_and_not_the_clients_object() {
        for below in Kind::ALL {
            let told = match below {
                Kind::Unavailable | Kind::Timeout => below,
                _ => Kind::Internal,
            };
            check(below, told);
        }
    }

    #[test]
    fn a_store_that_is_away_may_be_asked_again_and_one_that_is_wrong_is_a_fault() {
        let away = store("reading")(StoreError::Away("locked".into()));
        assert_eq!(away.kind(), Kind::Unavailable);
        assert!(away.retry_after().is_some());
        for error in [StoreError::Missing, StoreError::Conflict] {
            let error = store("reading")(error);
            assert_eq!((error.kind(), error.retry_after()), (Kind::Internal, None));
        }
    }
}
