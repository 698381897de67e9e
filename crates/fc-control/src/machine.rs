//! A machine, as the node steers it.
//!
//! ```text
//! runs ──Paused──▶ stands ──Resumed──▶ runs                         freeze, thaw
//! runs ──Paused──▶ stands ──snapshot──▶ written ──┬─ Resumed ─▶ runs   checkpoint
//!                                                 └─ SIGKILL           hibernate
//! ```
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model::{BuildId, ExecutionId};
use ports::RuntimeError;
use ports::runtime::{Disk as Fate, DiskOrigin, Ended, Usage};
use ports::step::{At, Step};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use guest::volumes::Lent;

use crate::agent::{Agent, Name, by_vsock};
use crate::api::Api;
use crate::api::request::{SnapshotCreate, SnapshotType};
use crate::disk;
use crate::house::House;
use crate::jail::{Inside, Jail, take_back};
use crate::memory::{self, Memory, Pages, Place, Written};
use crate::process::Process;
use crate::record::{self, Base, Build, Copying, Disk, FORM, Kept};

mod handle;
mod volumes;

pub(crate) use handle::Handle;

/// A guest that runs answers in milliseconds; under emulation, with others beside it, in a second or two.
const GUEST_ANSWERS_WITHIN: Duration = Duration::from_secs(15);
/// What a guest has to bring to its disk may be much. One that does not come to an end loses what is on its way.
const SYNCED_WITHIN: Duration = Duration::from_secs(30);
/// How often a guest that was just brought back is called.
const LOOK: Duration = Duration::from_millis(10);
const UNPOISONED: &str = "nothing panics while it holds this";

/// A machine that runs, or stands.
pub(crate) struct Vm {
    pub(crate) house: Arc<House>,
    pub(crate) execution: ExecutionId,
    pub(crate) process: Arc<Process>,
    pub(crate) api: Api,
    pub(crate) jail: Jail,
    agent: Arc<dyn Agent>,
    /// Its volumes, as long as they are served.
    lent: Lent,
    /// As it is on disk, or is about to be.
    record: Mutex<record::Machine>,
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

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm")
            .field("execution", &self.execution)
            .field("process", &self.process.identity)
            .finish_non_exhaustive()
    }
}

impl Vm {
    /// Watches over a Firecracker from now on.
    pub(crate) fn watch(
        house: Arc<House>,
        record: record::Machine,
        process: Process,
        api: Api,
        frozen: bool,
    ) -> Arc<Self> {
        let jail = house.jail(&record);
        let vm = Arc::new(Self {
            agent: by_vsock(&jail.host(Inside::Vsock)),
            lent: Lent::default(),
            execution: record.spec.execution,
            house,
            process: Arc::new(process),
            api,
            jail,
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

    pub(crate) fn record(&self) -> record::Machine {
        self.record.lock().expect(UNPOISONED).clone()
    }

    /// Changes what is on record, on disk first.
    pub(crate) async fn note(
        &self,
        change: impl FnOnce(&mut record::Machine),
    ) -> Result<record::Machine, RuntimeError> {
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

    pub(crate) fn ended_receiver(&self) -> watch::Receiver<Option<Ended>> {
        self.ended.subscribe()
    }

    /// Ends a Firecracker that was never handed over; what is on record is its owner's to clear away.
    pub(crate) async fn end_unheld(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.lent.end();
        self.process.kill();
        let _ = self.ended.subscribe().wait_for(Option::is_some).await;
    }

    fn is_over(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Makes a machine whose memory was brought back itself, before anything of it is served: another one drew the same random
    /// bytes, has the same name, and the time of then. Its vsock may need a moment to notice that it is another.
    pub(crate) async fn become_itself(&self) -> io::Result<()> {
        let spec = self.record().spec;
        // What was kept of a sandbox is that sandbox, and nobody else's.
        let name = (spec.disk != DiskOrigin::Kept).then(|| Name::of(spec.sandbox));
        let deadline = Instant::now() + GUEST_ANSWERS_WITHIN;
        loop {
            match self.agent.resume(name.as_ref()).await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(error) => {
                    tracing::debug!(execution = %self.execution, %error, "a restored guest does not answer yet")
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until envd listens.
    pub(crate) async fn come_up(&self) -> io::Result<()> {
        let said = self.agent.hello().await?;
        *self.hello.lock().expect(UNPOISONED) = said;
        Ok(())
    }

    /// Lets a guest that runs bring what it wrote to its disk. One that cannot is not waited for.
    async fn sync(&self) {
        if self.frozen.load(Ordering::SeqCst) || self.is_over() {
            return;
        }
        if let Err(error) = in_time(SYNCED_WITHIN, self.agent.sync()).await {
            tracing::warn!(execution = %self.execution, %error, "a machine did not bring everything to its disk");
        }
    }

    async fn pause(&self) -> Result<(), Step> {
        self.api.pause().await.at("having a machine stand")
    }

    /// Has it stand to be written down, if it does not already: its memory waits for nothing then that was done.
    async fn stand(self: &Arc<Self>, stood: bool) -> Result<(), Step> {
        if !stood {
            self.lent.quiet().await;
        }
        let stands = self.pause().await;
        if stands.is_err() && !stood {
            self.serve_volumes();
        }
        stands
    }

    async fn go_on(&self) -> Result<(), Step> {
        self.api.resume().await.at("letting a machine go on")
    }

    async fn freeze(&self) -> Result<(), RuntimeError> {
        let _turn = self.turn.lock().await;
        if self.frozen.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.may_stand("freezing")?;
        self.sync().await;
        self.pause().await?;
        self.frozen.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Nobody reaches a machine any more that only stood, under Firecrackers with a fault that the operator accepted.
    fn may_stand(&self, what: &str) -> Result<(), RuntimeError> {
        let version = &self.house.probed.version;
        if version.is_deaf_after_standing() {
            return Err(crate::runtime::unsupported(format!(
                "{what} under Firecracker {version} ({})",
                crate::version::DEAF
            )));
        }
        Ok(())
    }

    async fn thaw(&self) -> Result<(), RuntimeError> {
        let _turn = self.turn.lock().await;
        if !self.frozen.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.go_on().await?;
        self.frozen.store(false, Ordering::SeqCst);
        self.set_clock().await;
        Ok(())
    }

    /// A clock stood with its machine.
    async fn set_clock(&self) {
        if let Err(error) = in_time(GUEST_ANSWERS_WITHIN, self.agent.resume(None)).await {
            tracing::warn!(execution = %self.execution, %error, "the clock of a machine that stood was not set");
        }
    }

    /// Has Firecracker write down a machine that stands. Only what differs from what it knows already, where that is `since`.
    async fn write_state(&self, id: Uuid, since: Option<&Base>) -> Result<(), Step> {
        let place = Place::of(&self.house.states, id);
        let (jail, lent) = (self.jail.clone(), place.clone());
        off(move || {
            jail.take_out()?;
            lent.make()?;
            jail.lend_out(&lent.state(), &lent.memory())
        })
        .await?;
        let create = SnapshotCreate {
            snapshot_type: match since {
                Some(_) => SnapshotType::Diff,
                None => SnapshotType::Full,
            },
            snapshot_path: Inside::OutState.path(),
            mem_file_path: Inside::OutMemory.path(),
        };
        let written = self.api.snapshot(&create).await;
        let jail = self.jail.clone();
        let taken = off(move || {
            jail.take_out()?;
            take_back(&place.state())?;
            take_back(&place.memory())
        });
        let taken = taken.await;
        written.at("writing memory down")?;
        taken
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
            self.may_stand("copying without memory")?;
        }
        house.has_room()?;
        let (image, state) = (Uuid::new_v4(), memory.then(Uuid::new_v4));
        let _pins = (
            house.images.pin(image),
            state.map(|state| house.states.pin(state)),
        );
        let stood = self.frozen.load(Ordering::SeqCst);
        let before = self
            .note(|record| {
                record.copy = Copying {
                    image: Some(image),
                    state,
                };
                record.stands = !stood;
                // What Firecracker takes for written is another from here on.
                record.base = record.base.take().filter(|_| !memory);
            })
            .await?;
        self.sync().await;
        let copied = self.copy_standing(stood, image, state).await;
        // Sealed while the machine runs already.
        let sealed = match copied {
            Ok(()) => self.seal_copy(&before, image, state).await,
            Err(failed) => Err(failed),
        };
        let base = sealed.as_ref().ok().and_then(|memory| base_of(memory.as_ref()));
        let is_made = sealed.is_ok();
        let made = match sealed {
            Ok(memory) => {
                let kept = Arc::clone(house);
                let disk = Disk {
                    image,
                    size_bytes: before.disk.size_bytes,
                };
                let build = Build {
                    form: FORM,
                    disk,
                    memory,
                };
                off(move || {
                    let _turn = kept.turn();
                    kept.book.builds.write(&into, &build)
                })
                .await
            }
            Err(failed) => Err(failed),
        };
        let noted = self.note(|record| {
            record.copy = Copying::default();
            record.stands = false;
            record.base = base.or(record.base.take());
        });
        let noted = noted.await;
        if !is_made {
            house.sweep_soon();
        }
        made.map_err(|failed| match memory {
            true => cannot(format!("{failed}: {}", failed.source)),
            false => failed.into(),
        })?;
        noted?;
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
        image: Uuid,
        state: Option<Uuid>,
    ) -> Result<(), Step> {
        let begun = Instant::now();
        let own = self.house.images.path(self.record().disk.image);
        let copy = self.house.images.path(image);
        self.stand(stood).await?;
        let copied = async {
            if let Some(state) = state {
                self.write_state(state, None).await?;
            }
            off(move || {
                disk::copy(&own, &copy, 0)?;
                take_back(&copy)
            })
            .await
        };
        let copied = copied.await;
        if !stood {
            self.go_on().await?;
            self.serve_volumes();
        }
        tracing::debug!(execution = %self.execution, stood = ?begun.elapsed(), "a machine was copied");
        if !stood {
            self.set_clock().await;
        }
        copied
    }

    async fn seal_copy(
        &self,
        record: &record::Machine,
        image: Uuid,
        state: Option<Uuid>,
    ) -> Result<Option<Memory>, Step> {
        let (house, fits) = (Arc::clone(&self.house), self.house.fits(record));
        off(move || {
            through(&house.images.path(image))?;
            house.images.sync_names()?;
            state
                .map(|id| memory::seal(&house.known, &house.states, id, Written::Whole, fits))
                .transpose()
        })
        .await
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
        let stood = self.frozen.load(Ordering::SeqCst);
        self.note(|record| {
            record.stands = !stood;
            record.copy = Copying {
                image: None,
                state: Some(state),
            };
        })
        .await?;
        self.sync().await;
        if let Err(failed) = self.write_down(stood, state).await {
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
                self.serve_volumes();
                self.set_clock().await;
            }
            let noted = self.note(|record| {
                record.stands = false;
                record.copy = Copying::default();
                // Whatever was written: what Firecracker takes for written since is not known.
                record.base = None;
            });
            noted.await?;
            self.house.sweep_soon();
            return Err(cannot(format!("{failed}: {}", failed.source)));
        }
        // From here on what is kept is the sandbox.
        self.stopping.store(true, Ordering::SeqCst);
        self.end().await?;
        *stopped = true;
        let sandbox = self.record().spec.sandbox;
        self.house.whole_kept_soon(sandbox);
        Ok(())
    }

    async fn write_down(self: &Arc<Self>, stood: bool, state: Uuid) -> Result<(), Step> {
        self.stand(stood).await?;
        let record = self.record();
        let since = record.base.clone().filter(|_| self.house.config.differences);
        self.write_state(state, since.as_ref()).await?;
        let (house, execution) = (Arc::clone(&self.house), self.execution);
        let fits = self.house.fits(&record);
        let written = match since {
            Some(base) => Written::Since {
                base: base.id,
                base_pages: base.pages,
            },
            None => Written::Whole,
        };
        off(move || {
            let memory = memory::seal(&house.known, &house.states, state, written, fits)?;
            keep(&house, &record, execution, Some(memory))
        })
        .await
    }

    /// Ends Firecracker, and removes everything of it but its disk.
    async fn end(&self) -> Result<(), RuntimeError> {
        self.lent.end();
        self.process.kill();
        let mut ended = self.ended.subscribe();
        let _ = ended.wait_for(Option::is_some).await;
        let (house, execution) = (Arc::clone(&self.house), self.execution);
        let record::Machine { slot, disk, .. } = self.record();
        blocking(move || {
            // It may be nobody's any more, and be swept away.
            let _ = take_back(&house.images.path(disk.image));
            house.strike(execution, Some(slot))
        })
        .await?;
        self.house.sweep_soon();
        Ok(())
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
        }
        self.stopping.store(true, Ordering::SeqCst);
        if keeps {
            // Its disk is to be whole before it is anybody's.
            self.process.kill();
            let mut ended = self.ended.subscribe();
            let _ = ended.wait_for(Option::is_some).await;
            let (house, record, execution) = (Arc::clone(&self.house), self.record(), self.execution);
            blocking(move || keep(&house, &record, execution, None)).await?;
        }
        self.end().await?;
        *stopped = true;
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
        if self.frozen.load(Ordering::SeqCst) {
            return Ok(self.usage.lock().expect(UNPOISONED).to_owned());
        }
        let asked = in_time(GUEST_ANSWERS_WITHIN, self.agent.usage()).await;
        let record = self.record();
        let usage = Usage {
            // Both are ours to say: a guest sees its kernel's share.
            memory_total_bytes: record.spec.resources.memory.bytes(),
            disk_total_bytes: record.disk.size_bytes,
            ..asked.at("asking a machine what it uses")?
        };
        *self.usage.lock().expect(UNPOISONED) = usage;
        Ok(usage)
    }
}

fn base_of(memory: Option<&Memory>) -> Option<Base> {
    match memory {
        Some(Memory {
            id,
            pages: Pages::Whole(pages),
            ..
        }) => Some(Base {
            id: *id,
            pages: pages.clone(),
        }),
        _ => None,
    }
}

fn through(path: &Path) -> Result<(), Step> {
    std::fs::File::open(path)
        .and_then(|file| file.sync_all())
        .at(format!("writing {} through", path.display()))
}

/// Notes that a machine's disk, and memory, are its sandbox's from now on.
pub(crate) fn keep(
    house: &House,
    record: &record::Machine,
    execution: ExecutionId,
    memory: Option<Memory>,
) -> Result<(), Step> {
    let image = house.images.path(record.disk.image);
    through(&image)?;
    house.images.sync_names()?;
    let kept = Kept {
        execution,
        disk: record.disk,
        memory,
    };
    let _turn = house.turn();
    house.book.kept.write(&record.spec.sandbox, &kept)
}

/// Work that blocks, off the runtime.
pub(crate) async fn off<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Step> + Send + 'static,
) -> Result<T, Step> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other).at("a task of the runtime")?
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Step> + Send + 'static,
) -> Result<T, RuntimeError> {
    Ok(off(work).await?)
}

/// The same for what tells of itself what failed.
async fn blocking_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::task::spawn_blocking(work).await.map_err(panicked)?
}

pub(crate) fn panicked(error: tokio::task::JoinError) -> RuntimeError {
    RuntimeError::Step {
        step: "a task of the runtime".to_owned(),
        source: io::Error::other(error),
    }
}

pub(crate) async fn in_time<T>(within: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {within:?}"));
    tokio::time::timeout(within, work).await.map_err(|_| late())?
}

fn cannot(why: impl Into<String>) -> RuntimeError {
    RuntimeError::CannotCheckpoint { why: why.into() }
}
