//! Machines of earlier daemons: found again, or ended for certain.
use std::sync::Arc;

use model::ExecutionId;
use ports::RuntimeError;

use crate::house::House;
use crate::machine::Vm;
use crate::process::Process;
use crate::vmm::{Machine, Vmm};
use crate::work::blocking;

impl<V: Vmm> House<V> {
    /// Finds a machine again that an earlier daemon started, if it is up and is to go on.
    pub(crate) async fn adopt(
        self: &Arc<Self>,
        record: &Machine<V>,
    ) -> Result<Option<Arc<Vm<V>>>, RuntimeError> {
        let spec = &record.spec;
        // What was written down, or was to be, is the sandbox.
        let given_up = self.book.kept.read(&spec.sandbox).ok().flatten();
        let given_up = given_up.is_some_and(|kept| kept.execution == spec.execution);
        if !record.up || record.keep || given_up {
            return Ok(None);
        }
        if let Some(why) = self.vmm.must_end(&record.own) {
            tracing::warn!(sandbox = %spec.sandbox, why, "a machine cannot go on; it is ended, and its disk is kept");
            return Ok(None);
        }
        let Some(process) = record.process.as_ref().and_then(Process::adopt) else {
            return Ok(None);
        };
        let mut machine = record.clone();
        match V::look_at(self, &process, &mut machine).await {
            Ok((monitor, stands)) => {
                let (house, written) = (Arc::clone(self), machine.clone());
                blocking(move || house.stake(&written)).await?;
                failpoint::reach("microvm/machine-adopted");
                let vm = Vm::watch(Arc::clone(self), machine, process, monitor, stands);
                vm.serve_volumes_again().await;
                Ok(Some(vm))
            }
            Err(error) => {
                tracing::warn!(sandbox = %spec.sandbox, runtime = V::NAME, error = &error as &dyn std::error::Error, cause = %error.source, "a machine that lives does not answer; it is ended, and its disk is kept");
                Ok(None)
            }
        }
    }

    /// Ends what is left of a machine, and keeps its disk where somebody may want it.
    pub(crate) async fn end_remains(
        self: &Arc<Self>,
        execution: ExecutionId,
        record: Option<Machine<V>>,
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
            V::end_all(&house, &execution.to_string());
            failpoint::reach("microvm/remains-ended");
            if let Some(mut machine) = record.filter(|record| record.up) {
                let kept = house.book.kept.read(&machine.spec.sandbox)?;
                if kept.is_none_or(|kept| kept.execution != execution) {
                    V::salvage(&house, &mut machine);
                    house.keep(&machine, None)?;
                }
            }
            house.clear_away(execution)
        })
        .await
    }
}
