//! Machines of earlier daemons: found again, or ended for certain.
use std::path::Path;
use std::sync::Arc;

use ports::RuntimeError;
use ports::step::{At, Step};
use serde_json::json;

use super::ADOPTED_WITHIN;
use crate::command::{Sockets, node_name};
use crate::house::House;
use crate::machine::{Vm, blocking, keep, top_node};
use crate::process::{Process, end, started_with};
use crate::qmp::Qmp;
use crate::record;

impl House {
    /// Finds a machine again that an earlier daemon started, if it is up and is to go on.
    pub(super) async fn adopt(
        self: &Arc<Self>,
        record: &record::Machine,
    ) -> Result<Option<Arc<Vm>>, RuntimeError> {
        let spec = &record.spec;
        // What was written down, or was to be, is the sandbox.
        let given_up = self.book.kept.read(&spec.sandbox).ok().flatten();
        let given_up = given_up.is_some_and(|kept| kept.execution == spec.execution);
        if !record.up || record.keep || given_up {
            return Ok(None);
        }
        if record.slot.is_some() && self.network.is_none() {
            tracing::warn!(sandbox = %spec.sandbox, "a machine has a network, which this daemon cannot hold to its policy; it is ended, and its disk is kept");
            return Ok(None);
        }
        let Some(process) = record.process.as_ref().and_then(Process::adopt) else {
            return Ok(None);
        };
        if self.users.is_some() && record.user.is_none() {
            tracing::warn!(sandbox = %spec.sandbox, "a machine was started before QEMUs had users of their own: it goes on as root until it is paused");
        }
        let sockets = Sockets::within(&self.sockets_dir(spec.execution));
        let mut record = record.clone();
        let resumed =
            tokio::time::timeout(ADOPTED_WITHIN, self.look_at(&process, &sockets, &mut record)).await;
        match resumed {
            Ok(Ok((qmp, frozen))) => {
                let (house, written) = (Arc::clone(self), record.clone());
                blocking(move || house.stake(&written)).await?;
                failpoint::reach("qemu/machine-adopted");
                let vm = Vm::watch(Arc::clone(self), record, process, qmp, frozen);
                vm.serve_volumes_again().await;
                Ok(Some(vm))
            }
            Ok(Err(error)) => {
                tracing::warn!(sandbox = %spec.sandbox, error = &error as &dyn std::error::Error, cause = %error.source, "a QEMU that lives does not answer; it is ended, and its disk is kept");
                Ok(None)
            }
            Err(_) => {
                tracing::warn!(sandbox = %spec.sandbox, "a QEMU that lives does not answer in time; it is ended, and its disk is kept");
                Ok(None)
            }
        }
    }

    /// Asks a QEMU how it is, and brings what was begun with it to an end.
    pub(super) async fn look_at(
        &self,
        process: &Process,
        sockets: &Sockets,
        record: &mut record::Machine,
    ) -> Result<(Qmp, bool), Step> {
        let qmp = process.listen(&sockets.qmp, &sockets.serial).await?;
        if let Some(next) = record.next.take() {
            let depth = record.disk.layers.len();
            let top = top_node(&qmp).await.at("asking QEMU for its disk")?;
            if top == Some(node_name(depth)) {
                record.disk.layers.push(next);
            } else {
                // It may be there, and not laid on the disk: the next has the same name.
                let _ = qmp
                    .run("blockdev-del", json!({ "node-name": node_name(depth) }))
                    .await;
            }
        }
        if std::mem::take(&mut record.copying) {
            qmp.run("cont", json!({})).await.at("letting a machine go on")?;
        }
        record.state = None;
        let status = qmp
            .run("query-status", json!({}))
            .await
            .at("asking QEMU how it is")?;
        Ok((qmp, status["running"] != true))
    }

    /// Ends what is left of a machine, and keeps its disk where somebody may want it.
    pub(super) async fn end_remains(
        self: &Arc<Self>,
        execution: model::ExecutionId,
        record: Option<record::Machine>,
    ) -> Result<(), RuntimeError> {
        if let Some(process) = record
            .as_ref()
            .and_then(|record| Process::adopt(record.process.as_ref()?))
        {
            process.kill();
            process.ended().await;
        }
        let dir = self.sockets_dir(execution);
        let house = Arc::clone(self);
        blocking(move || {
            end_all(&dir);
            failpoint::reach("qemu/remains-ended");
            if let Some(mut record) = record.filter(|record| record.up) {
                let kept = house.book.kept.read(&record.spec.sandbox)?;
                let next = record.next.take();
                if let Some(next) = next.filter(|next| house.disks.is_image(*next)) {
                    // Whether or not it was laid on its disk: what was not holds nothing.
                    record.disk.layers.push(next);
                }
                if kept.is_none_or(|kept| kept.execution != execution) {
                    keep(&house, &record, execution, None)?;
                }
            }
            house.clear_away(execution)
        })
        .await
    }
}

/// Kills every process that was started for a directory of sockets, and waits for it.
pub(super) fn end_all(dir: &Path) {
    for pid in started_with(dir) {
        end(pid, || started_with(dir).contains(&pid));
    }
}
