//! Machines of earlier daemons: found again, or ended for certain.
use super::ADOPTED_WITHIN;
use crate::api::Api;
use crate::api::request::InstanceState;
use crate::house::House;
use crate::jail::{Inside, take_back};
use crate::machine::{Vm, blocking, keep};
use crate::process::Process;
use crate::record::{self};
use model::ExecutionId;
use ports::RuntimeError;
use ports::step::{At, Step};
use std::io;
use std::sync::Arc;

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
        if record.wired && !self.config.network {
            tracing::warn!(sandbox = %spec.sandbox, "a machine has a network, which this daemon cannot hold to its policy; it is ended, and its disk is kept");
            return Ok(None);
        }
        let Some(process) = record.process.as_ref().and_then(Process::adopt) else {
            return Ok(None);
        };
        let mut record = record.clone();
        match self.look_at(&process, &mut record).await {
            Ok((api, frozen)) => {
                let (house, written) = (Arc::clone(self), record.clone());
                blocking(move || house.stake(&written)).await?;
                let vm = Vm::watch(Arc::clone(self), record, process, api, frozen);
                vm.serve_volumes_again().await;
                Ok(Some(vm))
            }
            Err(error) => {
                tracing::warn!(sandbox = %spec.sandbox, error = &error as &dyn std::error::Error, cause = %error.source, "a Firecracker that lives does not answer; it is ended, and its disk is kept");
                Ok(None)
            }
        }
    }

    /// Asks a Firecracker how it is, and brings what was begun with it to an end.
    pub(super) async fn look_at(
        &self,
        process: &Process,
        record: &mut record::Machine,
    ) -> Result<(Api, bool), Step> {
        let jail = self.jail(record);
        let api = process.listen(&jail.host(Inside::Api)).await?;
        let step = || "asking Firecracker how it is";
        let instance = api.instance(ADOPTED_WITHIN).await.at(step())?;
        if instance.id != record.spec.execution.to_string() {
            return Err(io::Error::other("it is another machine's")).at(step());
        }
        let mut frozen = match instance.state {
            InstanceState::Running => false,
            InstanceState::Paused => true,
            InstanceState::NotStarted => return Err(io::Error::other("it has no machine")).at(step()),
        };
        if std::mem::take(&mut record.stands) && frozen {
            api.resume().await.at("letting a machine go on")?;
            frozen = false;
        }
        if std::mem::take(&mut record.copy).state.is_some() {
            // Whatever was written: what Firecracker takes for written since is not known.
            record.base = None;
            jail.take_out()?;
        }
        Ok((api, frozen))
    }

    /// Ends what is left of a machine, and keeps its disk where somebody may want it.
    pub(super) async fn end_remains(
        self: &Arc<Self>,
        execution: ExecutionId,
        record: Option<record::Machine>,
    ) -> Result<(), RuntimeError> {
        if let Some(process) = record
            .as_ref()
            .and_then(|record| Process::adopt(record.process.as_ref()?))
        {
            process.kill();
            process.ended().await;
        }
        let house = Arc::clone(self);
        blocking(move || {
            house.end_all(&execution.to_string());
            if let Some(record) = record.filter(|record| record.up) {
                let kept = house.book.kept.read(&record.spec.sandbox)?;
                if kept.is_none_or(|kept| kept.execution != execution) {
                    let _ = take_back(&house.images.path(record.disk.image));
                    keep(&house, &record, execution, None)?;
                }
            }
            house.strike(execution, None)
        })
        .await
    }
}
