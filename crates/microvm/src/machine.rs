//! A machine, as the node steers it.
//!
//! ```text
//! runs ──pause──▶ stands ──go on──▶ runs             freeze, thaw
//! runs ──pause──▶ stands ──write──▶ written ──┬─ go on ──▶ runs     checkpoint
//!                                             └─ quit               hibernate
//! ```
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guest::volumes::Lent;
use model::{BuildId, ExecutionId, NetworkPolicy};
use ports::RuntimeError;
use ports::runtime::{Disk as Fate, DiskOrigin, Ended, Usage};
use ports::step::{At, Step};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::agent::{Agent, Link, Name};
use crate::house::House;
use crate::process::Process;
use crate::record::{FORM, Origin};
use crate::vmm::{Build, Machine, Vmm};
use crate::work::{blocking, in_time, off};

mod handle;
mod volumes;

pub use handle::Handle;

/// A guest that runs answers in milliseconds; under emulation, with others beside it, in a second or two.
pub const GUEST_ANSWERS_WITHIN: Duration = Duration::from_secs(15);
/// What a guest has to bring to its disk may be much. One that does not come to an end loses what is on its way.
const SYNCED_WITHIN: Duration = Duration::from_secs(30);
const UNPOISONED: &str = "nothing panics while it holds this";

/// A machine that runs, or stands.
pub struct Vm<V: Vmm> {
    /// Where it is.
    pub house: Arc<House<V>>,
    /// Which it is.
    pub execution: ExecutionId,
    /// Its VMM.
    pub process: Arc<Process>,
    /// The way to its VMM.
    pub monitor: V::Monitor,
    /// The way to its agent.
    pub link: Link,
    /// Its volumes, as long as they are served.
    lent: Lent,
    /// As it is on disk, or is about to be.
    record: Mutex<Machine<V>>,
    /// Held by whoever stops, freezes or copies it; says whether it is gone.
    turn: tokio::sync::Mutex<bool>,
    frozen: AtomicBool,
    stopping: AtomicBool,
    ended: watch::Sender<Option<Ended>>,
    /// The last that its agent said of it.
    usage: Mutex<Usage>,
    /// Who its agent said it is.
    hello: Mutex<String>,
}

impl<V: Vmm> Vm<V> {
    /// Watches over a VMM from now on.
    pub(crate) fn watch(
        house: Arc<House<V>>,
        record: Machine<V>,
        process: Process,
        monitor: V::Monitor,
        frozen: bool,
    ) -> Arc<Self> {
        let vm = Arc::new(Self {
            link: V::link(&house, &record),
            lent: Lent::default(),
            execution: record.spec.execution,
            house,
            process: Arc::new(process),
            monitor,
            record: Mutex::new(record),
            turn: tokio::sync::Mutex::new(false),
            frozen: AtomicBool::new(frozen),
            stopping: AtomicBool::new(false),
            ended: watch::channel(None).0,
            usage: Mutex::default(),
            hello: Mutex::default(),
        });
        let (process, watched) = (Arc::clone(&vm.process), Arc::downgrade(&vm));
        tokio::spawn(async move {
            process.ended().await;
            if let Some(vm) = watched.upgrade() {
                let stopped = vm.stopping.load(Ordering::SeqCst);
                let how = if stopped { Ended::Stopped } else { Ended::Died };
                vm.ended.send_replace(Some(how));
            }
        });
        vm
    }

    /// Its record.
    pub fn record(&self) -> Machine<V> {
        self.record.lock().expect(UNPOISONED).clone()
    }

    /// Changes what is on record, on disk first.
    ///
    /// # Errors
    /// The disk failed; the record is as it was.
    pub async fn note(&self, change: impl FnOnce(&mut Machine<V>)) -> Result<Machine<V>, RuntimeError> {
        let mut record = self.record();
        change(&mut record);
        let (house, written) = (Arc::clone(&self.house), record.clone());
        blocking(move || house.stake(&written)).await?;
        self.record.lock().expect(UNPOISONED).clone_from(&record);
        Ok(record)
    }

    /// It is on record as one that was handed over.
    pub(crate) fn is_up(&self) {
        self.record.lock().expect(UNPOISONED).up = true;
    }

    /// Becomes `Some` when its VMM has ended.
    pub fn ended_receiver(&self) -> watch::Receiver<Option<Ended>> {
        self.ended.subscribe()
    }

    /// Ends a VMM whose machine was never handed over; what is on record is its owner's to clear away.
    pub(crate) async fn end_unheld(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.lent.end();
        self.link.hang_up().await;
        self.kill().await;
    }

    async fn kill(&self) {
        self.process.kill();
        let _ = self.ended.subscribe().wait_for(Option::is_some).await;
    }

    fn is_over(&self) -> bool {
        self.ended.borrow().is_some()
    }

    fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    /// Its agent, if it is there in time.
    async fn agent(&self) -> io::Result<Arc<dyn Agent>> {
        in_time(GUEST_ANSWERS_WITHIN, self.link.agent()).await
    }

    /// Makes a machine whose memory was brought back itself, before anything of it is served: another one drew the same random
    /// bytes, has the same name, and the time of then.
    ///
    /// # Errors
    /// It did not become itself.
    pub async fn become_itself(&self) -> io::Result<()> {
        let spec = self.record().spec;
        // What was kept of a sandbox is that sandbox, and nobody else's.
        let name = (spec.disk != DiskOrigin::Kept).then(|| Name::of(spec.sandbox));
        self.link.agent().await?.resume(name.as_ref()).await
    }

    /// Waits until envd listens.
    ///
    /// # Errors
    /// There is no agent, or it has none.
    pub async fn greet(&self) -> io::Result<()> {
        let said = self.link.agent().await?.hello().await?;
        *self.hello.lock().expect(UNPOISONED) = said;
        Ok(())
    }

    /// Lets a guest that runs bring what it wrote to its disk. One that cannot is not waited for.
    async fn sync(&self) {
        if self.is_frozen() || self.is_over() {
            return;
        }
        let synced = in_time(SYNCED_WITHIN, async { self.link.agent().await?.sync().await }).await;
        if let Err(error) = synced {
            tracing::warn!(execution = %self.execution, %error, "a machine did not bring everything to its disk");
        }
    }

    /// A clock stood with its machine.
    async fn set_clock(&self) {
        let told = in_time(GUEST_ANSWERS_WITHIN, async {
            self.link.agent().await?.resume(None).await
        });
        if let Err(error) = told.await {
            tracing::warn!(execution = %self.execution, %error, "the clock of a machine that stood was not set");
        }
    }

    /// Puts another policy in force, on record first.
    async fn set_network(&self, policy: NetworkPolicy) -> Result<(), RuntimeError> {
        let stopped = self.turn.lock().await;
        if *stopped {
            // Its slot may be somebody else's by now.
            return Err(io::Error::from(io::ErrorKind::NotFound))
                .at("changing the network of a machine that has ended")?;
        }
        let record = self.note(|record| record.spec.network = policy).await?;
        let house = Arc::clone(&self.house);
        blocking(move || V::set_policy(&house, &record)).await
    }

    async fn freeze(&self) -> Result<(), RuntimeError> {
        let _turn = self.turn.lock().await;
        if self.is_frozen() {
            return Ok(());
        }
        self.house.vmm.may_stand("freezing")?;
        self.sync().await;
        V::pause(self).await?;
        self.frozen.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn thaw(&self) -> Result<(), RuntimeError> {
        let _turn = self.turn.lock().await;
        let was_frozen = self.is_frozen();
        if was_frozen || V::GOES_ON_TWICE {
            V::go_on(self).await?;
        }
        self.frozen.store(false, Ordering::SeqCst);
        if was_frozen {
            self.set_clock().await;
        }
        Ok(())
    }

    async fn checkpoint(
        self: &Arc<Self>,
        into: BuildId,
        memory: bool,
    ) -> Result<model::Memory, RuntimeError> {
        let stopped = self.turn.lock().await;
        if *stopped || self.is_over() {
            return Err(cannot("the machine has ended"));
        }
        let house = &self.house;
        if !memory {
            house.vmm.may_stand("copying without memory")?;
        }
        house.has_room()?;
        let (copy, state) = (V::draw_copy(), memory.then(Uuid::new_v4));
        let stood = self.is_frozen();
        let before = self.record();
        let images = V::images_of_copy(&before, copy).into_iter();
        let _pins = (
            images.map(|id| house.images.pin(id)).collect::<Vec<_>>(),
            state.map(|state| house.states.pin(state)),
        );
        self.note(|record| V::note_writing(record, Some(copy), state, !stood))
            .await?;
        failpoint::reach("microvm/copying-recorded");
        self.sync().await;
        let written = self.copy_standing(stood, copy, state).await;
        let copied = written.is_ok().then_some(copy);
        let noted = self.note(|record| V::note_written(record, copied)).await;
        if copied.is_none() {
            house.sweep_soon();
        }
        let written = written.map_err(|failed| match memory {
            true => cannot(format!("{failed}: {}", failed.source)),
            false => failed.into(),
        })?;
        noted?;
        failpoint::reach("microvm/copy-noted");
        let kept = Arc::clone(house);
        // While the machine runs already.
        let made = blocking(move || {
            let disk = V::copied(&before, copy);
            V::settle(&kept, &disk)?;
            kept.images.sync_names()?;
            let memory = match state.zip(written) {
                Some((state, written)) => Some(V::seal(&kept, &before, state, written)?),
                None => None,
            };
            kept.states.sync_names()?;
            let build = Build::<V> {
                form: FORM,
                disk,
                memory,
                origin: Some(Origin::now(before.spec.sandbox, before.spec.build)),
            };
            let _turn = kept.turn();
            kept.book.builds.write(&into, &build)?;
            Ok(build)
        });
        let made = made.await;
        if made.is_err() {
            house.sweep_soon();
        }
        let build = made?;
        failpoint::reach("microvm/build-recorded");
        V::after_copy(self, into, &build).await?;
        Ok(if memory {
            model::Memory::Durable
        } else {
            model::Memory::None
        })
    }

    /// Has it stand, copies it, and lets it go on if it did not stand before.
    async fn copy_standing(
        self: &Arc<Self>,
        stood: bool,
        copy: V::Copy,
        state: Option<Uuid>,
    ) -> Result<Option<V::Written>, Step> {
        let (house, record) = (Arc::clone(&self.house), self.record());
        off(move || V::prepare_copy(&house, &record, copy)).await?;
        let begun = Instant::now();
        self.stand(stood).await?;
        failpoint::reach("microvm/machine-stands");
        let copied = async {
            let written = match state {
                Some(state) => {
                    let written = V::write_state(self, state).await?;
                    failpoint::reach("microvm/memory-written");
                    Some(written)
                }
                None => None,
            };
            V::copy_disk(self, copy).await?;
            Ok(written)
        };
        let copied = copied.await;
        failpoint::reach("microvm/disk-copied");
        if !stood {
            self.go_on().await?;
        }
        failpoint::reach("microvm/machine-goes-on");
        tracing::debug!(execution = %self.execution, stood = ?begun.elapsed(), "a machine was copied");
        if !stood {
            self.set_clock().await;
        }
        copied
    }

    async fn hibernate(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let mut stopped = self.turn.lock().await;
        if *stopped {
            return self.is_as_wanted(Fate::Keep);
        }
        if self.is_over() {
            return Err(cannot("the machine has ended"));
        }
        self.house.has_room()?;
        let state = Uuid::new_v4();
        let _pin = self.house.states.pin(state);
        let stood = self.is_frozen();
        self.note(|record| V::note_writing(record, None, Some(state), !stood))
            .await?;
        failpoint::reach("microvm/hibernation-recorded");
        self.sync().await;
        if let Err(failed) = self.write_down(stood, state).await {
            self.go_on_after_all(stood).await?;
            return Err(cannot(format!("{failed}: {}", failed.source)));
        }
        // From here on what is kept is the sandbox.
        failpoint::reach("microvm/hibernation-kept");
        self.stopping.store(true, Ordering::SeqCst);
        self.end(true).await?;
        *stopped = true;
        V::tidy_kept_soon(&self.house, self.record().spec.sandbox);
        Ok(())
    }

    async fn write_down(self: &Arc<Self>, stood: bool, state: Uuid) -> Result<(), Step> {
        self.stand(stood).await?;
        failpoint::reach("microvm/hibernation-stands");
        let written = V::write_state(self, state).await?;
        failpoint::reach("microvm/hibernation-written");
        let (house, record) = (Arc::clone(&self.house), self.record());
        off(move || {
            let memory = V::seal(&house, &record, state, written)?;
            house.keep(&record, Some(memory))
        })
        .await
    }

    /// Lets a machine that could not be written down be the sandbox again.
    async fn go_on_after_all(self: &Arc<Self>, stood: bool) -> Result<(), RuntimeError> {
        let (house, execution) = (Arc::clone(&self.house), self.execution);
        let sandbox = self.record().spec.sandbox;
        // It may be on record although that did not come to its end: then it is this machine that has it now.
        blocking(move || {
            let _turn = house.turn();
            let kept = house.book.kept.read(&sandbox)?;
            match kept.filter(|kept| kept.execution == execution) {
                Some(_) => house.book.kept.remove(&sandbox),
                None => Ok(()),
            }
        })
        .await?;
        if !stood && !self.is_over() {
            self.go_on().await?;
            self.set_clock().await;
        }
        self.note(|record| V::note_written(record, None)).await?;
        self.house.sweep_soon();
        Ok(())
    }

    /// Ends its VMM, and removes everything of it but its disk.
    async fn end(&self, gently: bool) -> Result<(), RuntimeError> {
        self.lent.end();
        self.link.hang_up().await;
        if gently {
            self.quit().await;
        }
        self.kill().await;
        failpoint::reach("microvm/process-ended");
        let (house, record) = (Arc::clone(&self.house), self.record());
        blocking(move || house.strike(&record)).await?;
        failpoint::reach("microvm/record-removed");
        self.house.sweep_soon();
        Ok(())
    }

    /// Has its VMM end by itself, if it does that in time.
    async fn quit(&self) {
        if self.is_over() {
            return;
        }
        let mut ended = self.ended.subscribe();
        let quit = async {
            V::quit(self).await;
            let _ = ended.wait_for(Option::is_some).await;
        };
        let _ = tokio::time::timeout(V::QUITS_WITHIN, quit).await;
    }

    pub(crate) async fn stop(self: &Arc<Self>, disk: Fate) -> Result<(), RuntimeError> {
        let mut stopped = self.turn.lock().await;
        if *stopped {
            return self.is_as_wanted(disk);
        }
        let keeps = disk == Fate::Keep;
        if keeps {
            self.sync().await;
            self.note(|record| record.keep = true).await?;
            failpoint::reach("microvm/keep-recorded");
        }
        self.stopping.store(true, Ordering::SeqCst);
        if keeps {
            // Its disk is to be whole before it is anybody's.
            self.quit().await;
            self.kill().await;
            let (house, record) = (Arc::clone(&self.house), self.record());
            blocking(move || house.keep(&record, None)).await?;
            failpoint::reach("microvm/disk-kept");
        }
        self.end(false).await?;
        *stopped = true;
        if keeps {
            V::tidy_kept_soon(&self.house, self.record().spec.sandbox);
        }
        Ok(())
    }

    fn is_as_wanted(&self, disk: Fate) -> Result<(), RuntimeError> {
        let sandbox = self.record().spec.sandbox;
        if disk == Fate::Keep && self.house.book.kept.read(&sandbox)?.is_none() {
            return Err(RuntimeError::NoDisk(sandbox));
        }
        Ok(())
    }

    async fn usage(&self) -> Result<Usage, RuntimeError> {
        if self.is_frozen() {
            return Ok(self.usage.lock().expect(UNPOISONED).to_owned());
        }
        let asked = in_time(GUEST_ANSWERS_WITHIN, async {
            self.link.agent().await?.usage().await
        })
        .await;
        let record = self.record();
        let usage = Usage {
            // Both are ours to say: a guest sees its kernel's share.
            memory_total_bytes: record.spec.resources.memory.bytes(),
            disk_total_bytes: V::size_bytes(&record.disk),
            ..asked.at("asking a machine what it uses")?
        };
        *self.usage.lock().expect(UNPOISONED) = usage;
        Ok(usage)
    }
}

fn cannot(why: impl Into<String>) -> RuntimeError {
    RuntimeError::CannotCheckpoint { why: why.into() }
}
