//! The machine's end that the node holds.
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use model::{BuildId, ExecutionId, NetworkPolicy, SandboxId};
use ports::RuntimeError;
use ports::guest::{DialError, ENVD_PORT, Stream};
use ports::runtime::{Disk as Fate, Ended, Usage};
use tokio::sync::watch;

use super::{GUEST_ANSWERS_WITHIN, UNPOISONED, Vm};
use crate::policy;
use crate::start::unsupported;
use crate::vmm::Vmm;
use crate::work::panicked;

/// What the node holds.
pub struct Handle<V: Vmm>(pub Arc<Vm<V>>);

impl<V: Vmm> Handle<V> {
    /// Carries something out to its end, whether or not anybody waits for it.
    async fn through<T: Send + 'static, F: Future<Output = Result<T, RuntimeError>> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Vm<V>>) -> F,
    ) -> Result<T, RuntimeError> {
        let work = work(Arc::clone(&self.0));
        self.0.house.work.spawn(work).await.map_err(panicked)?
    }
}

#[async_trait]
impl<V: Vmm> ports::Machine for Handle<V> {
    fn sandbox(&self) -> SandboxId {
        self.0.record().spec.sandbox
    }

    fn execution(&self) -> ExecutionId {
        self.0.execution
    }

    async fn envd(&self) -> Result<Box<dyn Stream>, DialError> {
        self.dial(ENVD_PORT).await
    }

    async fn dial(&self, port: u16) -> Result<Box<dyn Stream>, DialError> {
        if self.0.is_over() {
            return Err(DialError::Gone);
        }
        let dialled = async {
            let agent = self
                .0
                .agent()
                .await
                .map_err(|source| DialError::Io { port, source })?;
            agent.dial(port).await
        };
        let late = |_| DialError::Io {
            port,
            source: io::ErrorKind::TimedOut.into(),
        };
        tokio::time::timeout(GUEST_ANSWERS_WITHIN, dialled)
            .await
            .map_err(late)?
    }

    async fn set_network(&self, policy: &NetworkPolicy) -> Result<(), RuntimeError> {
        let offered = self.0.house.vmm.offered(Some(&self.0.record().own));
        if let Some(what) = policy::refused_network(policy, offered) {
            return Err(unsupported::<V>(what));
        }
        let policy = policy.clone();
        self.through(|vm| async move { vm.set_network(policy).await })
            .await
    }

    async fn freeze(&self) -> Result<(), RuntimeError> {
        self.through(|vm| async move { vm.freeze().await }).await
    }

    async fn thaw(&self) -> Result<(), RuntimeError> {
        self.through(|vm| async move { vm.thaw().await }).await
    }

    fn is_frozen(&self) -> bool {
        self.0.is_frozen()
    }

    async fn checkpoint(&self, into: BuildId, memory: bool) -> Result<model::Memory, RuntimeError> {
        self.through(|vm| async move { vm.checkpoint(into, memory).await })
            .await
    }

    async fn hibernate(&self) -> Result<(), RuntimeError> {
        self.through(|vm| async move { vm.hibernate().await }).await
    }

    fn is_restored(&self) -> bool {
        self.0.record().restored
    }

    async fn stop(&self, disk: Fate) -> Result<(), RuntimeError> {
        self.through(|vm| async move { vm.stop(disk).await }).await
    }

    async fn usage(&self) -> Result<Usage, RuntimeError> {
        self.0.usage().await
    }

    fn ended(&self) -> watch::Receiver<Option<Ended>> {
        self.0.ended.subscribe()
    }

    fn started_at(&self) -> SystemTime {
        self.0.record().started_at
    }

    fn facts(&self) -> BTreeMap<&'static str, String> {
        let mut facts: BTreeMap<_, _> = V::facts(&self.0, &self.0.record()).into_iter().collect();
        facts.insert("pid", self.0.process.identity.pid.to_string());
        facts.insert("guest", self.0.hello.lock().expect(UNPOISONED).clone());
        facts
    }
}
