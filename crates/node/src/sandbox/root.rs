//! The root of a sandbox that runs, looked at by way of a copy of its disk that nobody else sees.
use std::sync::Arc;

use model::{BuildId, ExecutionId, SandboxId};
use ports::blobs::ByteStream;
use ports::node::NodeError;
use ports::root::Changes;
use ports::{Runtime, RuntimeError};

use crate::node::LocalNode;
use crate::sandbox::bring_up::failed;

impl LocalNode {
    /// What an execution has changed against what it started from.
    pub(crate) async fn look_for_changes(
        self: &Arc<Self>,
        id: SandboxId,
        execution: ExecutionId,
    ) -> Result<Changes, NodeError> {
        self.with_copy(
            id,
            execution,
            "looking for changes",
            |runtime, copy, since| async move { runtime.changes(copy, since).await },
        )
        .await
    }

    /// The whole root of an execution.
    pub(crate) async fn export_root(
        self: &Arc<Self>,
        id: SandboxId,
        execution: ExecutionId,
    ) -> Result<ByteStream, NodeError> {
        self.with_copy(
            id,
            execution,
            "exporting the root",
            |runtime, copy, _| async move { runtime.export(copy).await },
        )
        .await
    }

    /// Does something with a copy of an execution's disk, and with what that started from. The copy is gone in the end: if
    /// the node is killed meanwhile, it is a build that nothing names, and is collected.
    async fn with_copy<T, F: Future<Output = Result<T, RuntimeError>>>(
        self: &Arc<Self>,
        id: SandboxId,
        execution: ExecutionId,
        step: &'static str,
        work: impl FnOnce(Arc<dyn Runtime>, BuildId, BuildId) -> F,
    ) -> Result<T, NodeError> {
        let since = self.find(id).ok_or(NodeError::Unknown)?.build();
        let copy = BuildId::random();
        let mut claim = self.in_use.claim();
        claim.add(since);
        claim.add(copy);
        self.copy(id, execution, copy, false).await?;
        failpoint::reach("node/copied-to-look");
        let done = work(Arc::clone(&self.runtime), copy, since).await;
        if let Err(error) = self.runtime.remove_builds(&[copy]).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(sandbox = %id, %copy, error, "a copy of a disk stays until it is collected");
        }
        done.map_err(failed(step))
    }
}
