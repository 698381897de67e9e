//! The sandbox that a build is done in: a machine like every other, that nobody else knows of.
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use model::{BuildId, BuildStep, ExecutionId, NetworkPolicy, Resources, SandboxId, TemplateId};
use ports::builds::BuildError;
use ports::runtime::{Disk, DiskOrigin};
use ports::{Machine, MachineSpec, Runtime};
use wire::init::Init;

use super::leash::{fault, refused};
use crate::envd;

/// What could not be ended is tried again after this long, then twice that, …
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// … and at last this often. A restart of the daemon ends what has no entry in the journal.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// A lab. Whatever becomes of it, its machine is ended.
pub(super) struct Lab {
    machine: Option<Arc<dyn Machine>>,
    runtime: Weak<dyn Runtime>,
    /// How often something was killed for want of memory, when that was last looked at.
    oom_kills: u64,
}

impl Lab {
    /// Starts a machine of a build, without the memory that the build may have.
    pub(super) async fn open(
        runtime: &Arc<dyn Runtime>,
        (template, resources): (Option<TemplateId>, Resources),
        build: BuildId,
        step: BuildStep,
    ) -> Result<Self, BuildError> {
        let spec = MachineSpec {
            sandbox: SandboxId::random(),
            execution: ExecutionId::random(),
            build,
            resources,
            network: NetworkPolicy::default(),
            disk: DiskOrigin::Single,
            restore: false,
            volumes: Vec::new(),
        };
        let init = init(&spec, template);
        tracing::debug!(sandbox = %spec.sandbox, %build, "starting the sandbox of a build");
        let machine = runtime
            .start(spec)
            .await
            .map_err(refused(step, "starting the build's sandbox"))?;
        // From here on it is ended, whatever happens.
        let mut lab = Self {
            machine: Some(machine),
            runtime: Arc::downgrade(runtime),
            oom_kills: 0,
        };
        failpoint::reach("node/build-machine-started");
        if let Err(error) = envd::init(lab.machine(), &init).await {
            lab.close().await;
            return Err(fault("telling the envd of the build's sandbox its settings")(
                error,
            ));
        }
        lab.oom_kills = lab.machine().usage().await.map_or(0, |usage| usage.oom_kills);
        Ok(lab)
    }

    pub(super) fn machine(&self) -> &dyn Machine {
        &**self
            .machine
            .as_ref()
            .expect("a lab has its machine until it is closed")
    }

    /// Whether its machine is no more.
    pub(super) fn has_ended(&self) -> bool {
        self.machine().ended().borrow().is_some()
    }

    /// Ends it. Where that fails, it is tried again, for as long as it takes.
    pub(super) async fn close(mut self) {
        let Some(machine) = &self.machine else { return };
        match machine.stop(Disk::Discard).await {
            Ok(()) => self.machine = None,
            Err(error) => {
                tracing::error!(sandbox = %machine.sandbox(), error = &error as &dyn std::error::Error, "the sandbox of a build could not be ended; it is tried again");
            }
        }
    }

    /// What stands in the way of programs in it, if that can be seen from outside: a full disk, a want of memory, its end.
    pub(super) async fn trouble(&mut self) -> Option<String> {
        let machine = self.machine();
        if machine.ended().borrow().is_some() {
            return Some("the build's sandbox ended by itself".to_owned());
        }
        let usage = machine.usage().await.ok()?;
        let before = std::mem::replace(&mut self.oom_kills, usage.oom_kills);
        let mib = |bytes: u64| bytes >> 20;
        if usage.oom_kills > before {
            return Some(format!(
                "it ran out of memory, of which it has {} MiB; give the template more",
                mib(usage.memory_total_bytes)
            ));
        }
        // Not to the last byte: file systems keep some for root, and for themselves.
        let is_full = usage.disk_total_bytes > 0
            && usage.disk_used_bytes >= usage.disk_total_bytes - usage.disk_total_bytes / 50;
        is_full.then(|| {
            format!(
                "its disk of {} MiB is full; leave less on it, or give the template more",
                mib(usage.disk_total_bytes)
            )
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some(machine) = self.machine.take() else {
            return;
        };
        // Where the daemon is ending, the next one ends it.
        let Ok(tasks) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let runtime = Weak::clone(&self.runtime);
        tasks.spawn(async move {
            let mut after = RETRY_FIRST;
            while runtime.strong_count() > 0 && machine.stop(Disk::Discard).await.is_err() {
                tokio::time::sleep(after).await;
                after = RETRY_MAX.min(after * 2);
            }
        });
    }
}

fn init(spec: &MachineSpec, template: Option<TemplateId>) -> Init {
    Init {
        timestamp: Some(humantime::format_rfc3339_nanos(SystemTime::now()).to_string()),
        default_user: Some("root".to_owned()),
        lifecycle_id: Some(spec.execution.to_string()),
        sandbox_id: Some(spec.sandbox.to_string()),
        template_id: template.map(|template| template.to_string()),
        hostname: Some(spec.sandbox.to_string()),
        cpu_count: Some(spec.resources.cpu),
        memory_bytes: Some(spec.resources.memory.bytes()),
        ..Init::default()
    }
}
