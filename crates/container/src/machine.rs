//! A claimed slot, as the node steers it.
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use async_trait::async_trait;
use model::{BuildId, ExecutionId, Memory, NetworkPolicy, SandboxId};
use ports::guest::{DialError, ENVD_PORT, Stream};
use ports::runtime::{Disk, Ended, Usage};
use ports::{Machine, MachineSpec, RuntimeError};
use rustix::process::Signal;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::criu::lines::Lines;
use crate::house::{Fate, House};
use crate::record::{Record, identity_of};
use crate::slot::Slot;
use crate::step::{At, Step};

/// A running container.
pub(crate) struct Container {
    pub(crate) house: Arc<House>,
    pub(crate) slot: Slot,
    pub(crate) spec: MachineSpec,
    /// Held by whoever stops its processes in place, or lets them go on.
    pub(crate) turn: Mutex<()>,
    /// Connections to its envd.
    pub(crate) lines: Lines,
    /// The policy in force.
    network: Mutex<NetworkPolicy>,
    frozen: AtomicBool,
    stopping: AtomicBool,
    /// Held by whoever stops it; says whether that is done.
    stopped: tokio::sync::Mutex<bool>,
    ended: watch::Sender<Option<Ended>>,
    started_at: SystemTime,
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container")
            .field("spec", &self.spec)
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

impl Container {
    /// Puts a prepared slot at the service of a sandbox: limits, policy and name, all before anybody talks to it.
    pub(crate) fn claim(house: &House, slot: &Slot, spec: &MachineSpec) -> Result<(), RuntimeError> {
        house.records.write(&record(slot, spec, false)?)?;
        failpoint::reach("container/claim-recorded");
        if slot.restored {
            // All that was in force before it ran.
            return Ok(());
        }
        slot.cgroup.limit(spec.resources)?;
        house.net()?.claim(slot.number, &spec.network)?;
        failpoint::reach("container/policy-in-force");
        if !spec.volumes.is_empty() {
            house.lend_volumes(slot, &spec.volumes)?;
            failpoint::reach("container/volumes-attached");
        }
        Ok(house.launcher.rename(slot.pidfd.as_fd(), spec.sandbox.as_str())?)
    }

    /// Watches over a claimed slot from now on.
    pub(crate) fn watch(house: Arc<House>, slot: Slot, spec: MachineSpec) -> Result<Arc<Self>, Step> {
        let life = rustix::io::fcntl_dupfd_cloexec(&slot.pidfd, 0).at("duplicating a pidfd")?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; the descriptor is owned here, and nobody replaces it"
        )]
        let life: AsyncFd<OwnedFd> = AsyncFd::new(life).at("watching a pidfd")?;
        let container = Arc::new(Self {
            frozen: AtomicBool::new(slot.cgroup.is_frozen()),
            started_at: slot.started_at(),
            turn: Mutex::default(),
            lines: Lines::default(),
            network: Mutex::new(spec.network.clone()),
            house,
            slot,
            spec,
            stopping: AtomicBool::new(false),
            stopped: tokio::sync::Mutex::new(false),
            ended: watch::channel(None).0,
        });
        let watched = Arc::downgrade(&container);
        tokio::spawn(async move {
            let _ = life.readable().await;
            if let Some(container) = watched.upgrade() {
                let how = if container.stopping.load(Ordering::SeqCst) {
                    Ended::Stopped
                } else {
                    Ended::Died
                };
                container.ended.send_replace(Some(how));
            }
        });
        Ok(container)
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Step> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let this = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&this)).await;
        done.map_err(panicked)?.map_err(Into::into)
    }

    async fn stop(self: &Arc<Self>, disk: Disk) -> Result<(), RuntimeError> {
        let mut stopped = self.stopped.lock().await;
        if *stopped {
            return self.is_as_wanted(disk);
        }
        self.stopping.store(true, Ordering::SeqCst);
        let fate = match disk {
            Disk::Keep => Fate::Keep(self.spec.sandbox),
            Disk::Discard => Fate::Discard,
        };
        self.blocking(move |this| {
            if fate != Fate::Discard && this.slot.is_alive() {
                let _turn = this.turn();
                this.house
                    .records
                    .write(&record(&this.slot, &this.spec_now(), true)?)?;
                failpoint::reach("container/keep-recorded");
            }
            Ok(())
        })
        .await?;
        self.end(fate).await?;
        *stopped = true;
        self.is_as_wanted(disk)
    }

    /// Ends every process, and gives the slot back.
    async fn end(self: &Arc<Self>, fate: Fate) -> Result<(), RuntimeError> {
        self.blocking(move |this| {
            this.slot.cgroup.kill();
            let _ = rustix::process::pidfd_send_signal(&this.slot.pidfd, Signal::KILL);
            // What stands cannot die, in version 1.
            this.slot.cgroup.thaw()
        })
        .await?;
        let mut ended = self.ended.subscribe();
        // The first process ends when all others of its namespace have.
        let _ = ended.wait_for(Option::is_some).await;
        failpoint::reach("container/machine-ended");
        match fate {
            // Nobody waits for what is only cleared away.
            Fate::Discard => self.house.give_back_soon(self.slot.number, fate),
            Fate::Keep(_) => {
                self.blocking(move |this| this.house.free(this.slot.number, fate))
                    .await?;
            }
        }
        Ok(())
    }

    /// Writes it down, and ends it.
    async fn hibernate(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let mut stopped = self.stopped.lock().await;
        if *stopped {
            return self.is_as_wanted(Disk::Keep);
        }
        let this = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || this.write_down()).await;
        written.map_err(panicked)??;
        self.stopping.store(true, Ordering::SeqCst);
        self.end(Fate::Discard).await?;
        *stopped = true;
        Ok(())
    }

    /// Stops all of it where it is. Its disk is what is left if the host goes down: it is on the host's own disk before
    /// this is done.
    fn freeze(&self) -> Result<(), Step> {
        let _turn = self.turn.lock().expect(UNPOISONED);
        self.slot.cgroup.freeze()?;
        let safe = self.slot.write_back().at("writing a disk back");
        let safe = safe.and_then(|()| self.house.disks.write_through(self.slot.number));
        if safe.is_err() {
            let _ = self.slot.cgroup.thaw();
        } else {
            self.frozen.store(true, Ordering::SeqCst);
        }
        safe
    }

    /// Lets it go on.
    fn thaw(&self) -> Result<(), Step> {
        let _turn = self.turn.lock().expect(UNPOISONED);
        self.slot.cgroup.thaw()?;
        self.frozen.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Its turn to stop its processes in place, or to let them go on.
    pub(crate) fn turn(&self) -> std::sync::MutexGuard<'_, ()> {
        self.turn.lock().expect(UNPOISONED)
    }

    /// Whether it was told to stand.
    pub(crate) fn is_standing(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    /// Notes that it stands to be copied, or does so no longer.
    pub(crate) fn record_copying(&self, copying: bool) -> Result<(), Step> {
        let spec = self.spec_now();
        self.house.records.write(&Record {
            copying,
            ..record(&self.slot, &spec, false)?
        })
    }

    /// Notes that what is kept of it is all that counts: whoever finds it ends it.
    pub(crate) fn record_given_up(&self) -> Result<(), Step> {
        self.house.records.write(&Record {
            spec: None,
            ..record(&self.slot, &self.spec, false)?
        })
    }

    /// What it was started with, and its policy as it is by now.
    fn spec_now(&self) -> MachineSpec {
        let network = self.network.lock().expect(UNPOISONED).clone();
        MachineSpec {
            network,
            ..self.spec.clone()
        }
    }

    fn is_as_wanted(&self, disk: Disk) -> Result<(), RuntimeError> {
        if disk == Disk::Keep && !self.house.disks.is_kept(self.spec.sandbox) {
            return Err(RuntimeError::NoDisk(self.spec.sandbox));
        }
        Ok(())
    }
}

const UNPOISONED: &str = "nothing panics while it holds this";

/// What became of a step that panicked.
pub(crate) fn panicked(panic: tokio::task::JoinError) -> RuntimeError {
    RuntimeError::Step {
        step: "a blocking step".to_owned(),
        source: std::io::Error::other(panic),
    }
}

fn record(slot: &Slot, spec: &MachineSpec, keep: bool) -> Result<Record, Step> {
    Ok(Record {
        process: Some(identity_of(slot.pid)?),
        spec: Some(spec.clone()),
        keep,
        restored: slot.restored,
        ..Record::staked(slot.number, spec.build)
    })
}

/// The handle that the node holds: methods that move to the blocking pool need the machine by count.
pub(crate) struct Handle(pub(crate) Arc<Container>);

#[async_trait]
impl Machine for Handle {
    fn sandbox(&self) -> SandboxId {
        self.0.spec.sandbox
    }

    fn execution(&self) -> ExecutionId {
        self.0.spec.execution
    }

    async fn envd(&self) -> Result<Box<dyn Stream>, DialError> {
        if self.0.ended.borrow().is_some() {
            return Err(DialError::Gone);
        }
        let stream = self.0.lines.connect(&self.0.slot.socket_path()).await;
        stream
            .map(|stream| Box::new(stream) as Box<dyn Stream>)
            .map_err(|source| DialError::Io {
                port: ENVD_PORT,
                source,
            })
    }

    async fn dial(&self, port: u16) -> Result<Box<dyn Stream>, DialError> {
        if self.0.ended.borrow().is_some() {
            return Err(DialError::Gone);
        }
        let net = self.0.house.net().map_err(|failed| DialError::Io {
            port,
            source: failed.source,
        })?;
        match net.dial(self.0.slot.pidfd.as_fd(), port).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                Err(DialError::Closed(port))
            }
            Err(source) => Err(DialError::Io { port, source }),
        }
    }

    async fn set_network(&self, policy: &NetworkPolicy) -> Result<(), RuntimeError> {
        let policy = policy.clone();
        self.0
            .blocking(move |this| {
                // Not while the record says something that is about to pass.
                let _turn = this.turn.lock().expect(UNPOISONED);
                this.network.lock().expect(UNPOISONED).clone_from(&policy);
                this.house
                    .records
                    .write(&record(&this.slot, &this.spec_now(), false)?)?;
                this.house.net()?.set_policy(this.slot.number, &policy)
            })
            .await
    }

    async fn freeze(&self) -> Result<(), RuntimeError> {
        self.0.blocking(Container::freeze).await
    }

    async fn thaw(&self) -> Result<(), RuntimeError> {
        self.0.blocking(Container::thaw).await
    }

    fn is_frozen(&self) -> bool {
        self.0.is_standing()
    }

    async fn checkpoint(&self, into: BuildId, memory: bool) -> Result<Memory, RuntimeError> {
        let container = Arc::clone(&self.0);
        // It goes on when nobody waits for it any more: what stands is let go on.
        let copying = self
            .0
            .house
            .work
            .spawn_blocking(move || container.checkpoint(into, memory));
        copying.await.map_err(panicked)?
    }

    async fn hibernate(&self) -> Result<(), RuntimeError> {
        let container = Arc::clone(&self.0);
        // It goes on when nobody waits for it any more.
        let hibernating = self
            .0
            .house
            .work
            .spawn(async move { container.hibernate().await });
        hibernating.await.map_err(panicked)?
    }

    fn is_restored(&self) -> bool {
        self.0.slot.restored
    }

    async fn stop(&self, disk: Disk) -> Result<(), RuntimeError> {
        let container = Arc::clone(&self.0);
        // It goes on when nobody waits for it any more: whoever asks again waits for its end.
        let stopping = self.0.house.work.spawn(async move { container.stop(disk).await });
        stopping.await.map_err(panicked)?
    }

    async fn usage(&self) -> Result<Usage, RuntimeError> {
        self.0
            .blocking(|this| {
                let used = this.slot.cgroup.used();
                let (disk_used_bytes, disk_total_bytes) = this.slot.disk_use().at("measuring a disk")?;
                Ok(Usage {
                    cpu_time: used.cpu,
                    memory_used_bytes: used.memory_bytes,
                    memory_cache_bytes: used.cache_bytes,
                    memory_total_bytes: this.spec.resources.memory.bytes(),
                    disk_used_bytes,
                    disk_total_bytes,
                    tasks: used.tasks,
                    oom_kills: used.oom_kills,
                })
            })
            .await
    }

    fn ended(&self) -> watch::Receiver<Option<Ended>> {
        self.0.ended.subscribe()
    }

    fn started_at(&self) -> SystemTime {
        self.0.started_at
    }

    fn facts(&self) -> BTreeMap<&'static str, String> {
        let slot = &self.0.slot;
        BTreeMap::from([
            ("pid", slot.pid.to_string()),
            ("slot", slot.number.to_string()),
            (
                "disk",
                self.0.house.disks.of_slot(slot.number).display().to_string(),
            ),
            ("link", net::link_name(self.0.house.instance.number, slot.number)),
        ])
    }
}
