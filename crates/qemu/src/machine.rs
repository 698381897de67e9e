//! A machine, as the node steers it.
//!
//! ```text
//! runs ──stop──▶ stands ──cont──▶ runs             freeze, thaw
//! runs ──stop──▶ stands ──migrate──▶ written ──┬─ cont ──▶ runs     checkpoint; what was its disk is sealed
//!                                              └─ quit               hibernate
//! ```
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model::{BuildId, ExecutionId, NetworkPolicy};
use ports::RuntimeError;
use ports::runtime::{Disk as Fate, DiskOrigin, Ended, Usage};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use guest::volumes::Lent;

use crate::agent::{Agent, Link, Name};
use crate::command::{DISK_DEVICE, Sockets, node_name, overlay, set_path};
use crate::disk::{Disks, Format, Image};
use crate::house::House;
use crate::memory::{self, Memory};
use crate::process::Process;
use crate::qmp::{Qmp, QmpError};
use crate::record::{self, Build, FORM, Kept};
use ports::step::{At, Step};

mod handle;
mod volumes;

pub(crate) use handle::Handle;

/// A guest that runs answers in milliseconds; under emulation, with others beside it, in a second or two.
const GUEST_ANSWERS_WITHIN: Duration = Duration::from_secs(15);
/// What a guest has to bring to its disk may be much. One that does not come to an end loses what is on its way.
const SYNCED_WITHIN: Duration = Duration::from_secs(30);
/// Memory is written as fast as the host's disk takes it.
const MIGRATED_WITHIN: Duration = Duration::from_secs(600);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(10);
/// QEMU brings its images to an end, and goes.
const QUIT_WITHIN: Duration = Duration::from_secs(10);
const UNPOISONED: &str = "nothing panics while it holds this";

/// A machine that runs, or stands.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) house: Arc<House>,
    pub(crate) execution: ExecutionId,
    pub(crate) process: Arc<Process>,
    pub(crate) qmp: Qmp,
    pub(crate) link: Link,
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

impl std::fmt::Debug for House {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("House").finish_non_exhaustive()
    }
}

impl Vm {
    /// Watches over a QEMU from now on.
    pub(crate) fn watch(
        house: Arc<House>,
        record: record::Machine,
        process: Process,
        qmp: Qmp,
        frozen: bool,
    ) -> Arc<Self> {
        let execution = record.spec.execution;
        let sockets = Sockets::within(&house.sockets_dir(execution));
        let vm = Arc::new(Self {
            link: Link::new(Arc::clone(&house.agents), sockets.line),
            lent: Lent::default(),
            house,
            execution,
            process: Arc::new(process),
            qmp,
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

    /// Ends a QEMU that was never handed over; what is on record is its owner's to clear away.
    pub(crate) async fn end_unheld(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.lent.end();
        self.link.hang_up().await;
        self.process.kill();
        let _ = self.ended.subscribe().wait_for(Option::is_some).await;
    }

    fn is_over(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Its agent, if it is there in time.
    async fn agent(&self) -> io::Result<Arc<dyn Agent>> {
        in_time(GUEST_ANSWERS_WITHIN, self.link.agent()).await
    }

    /// Waits until envd listens; a machine whose memory was brought back is made itself first.
    pub(crate) async fn come_up(&self, restored: bool) -> io::Result<()> {
        let agent = self.link.agent().await?;
        if restored {
            let spec = self.record().spec;
            // What was kept of a sandbox is that sandbox, and nobody else's.
            let name = (spec.disk != DiskOrigin::Kept).then(|| Name::of(spec.sandbox));
            agent.resume(name.as_ref()).await?;
        }
        let said = agent.hello().await?;
        *self.hello.lock().expect(UNPOISONED) = said;
        Ok(())
    }

    /// Lets a guest that runs bring what it wrote to its disk. One that cannot is not waited for.
    async fn sync(&self) {
        if self.frozen.load(Ordering::SeqCst) || self.is_over() {
            return;
        }
        let synced = in_time(SYNCED_WITHIN, async { self.link.agent().await?.sync().await }).await;
        if let Err(error) = synced {
            tracing::warn!(execution = %self.execution, %error, "a machine did not bring everything to its disk");
        }
    }

    async fn command(&self, command: &'static str, arguments: Value) -> Result<Value, Step> {
        let done = self.qmp.run(command, arguments).await;
        done.at(format!("having QEMU {command}"))
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
        blocking(move || match house.network.as_ref().zip(record.slot) {
            Some((network, slot)) => network.set_policy(slot, &record.spec.network),
            None => Ok(()),
        })
        .await
    }

    async fn freeze(&self) -> Result<(), RuntimeError> {
        let _turn = self.turn.lock().await;
        if self.frozen.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.sync().await;
        // It flushes its disk when it stops.
        self.command("stop", json!({})).await?;
        self.frozen.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn thaw(&self) -> Result<(), RuntimeError> {
        let _turn = self.turn.lock().await;
        let was_frozen = self.frozen.load(Ordering::SeqCst);
        self.command("cont", json!({})).await?;
        self.frozen.store(false, Ordering::SeqCst);
        if was_frozen {
            // Its clock stood with it.
            let told = in_time(GUEST_ANSWERS_WITHIN, async {
                self.link.agent().await?.resume(None).await
            })
            .await;
            if let Err(error) = told {
                tracing::warn!(execution = %self.execution, %error, "the clock of a thawed machine was not set");
            }
        }
        Ok(())
    }

    /// Has it stand to be written down, if it does not already: its memory waits for nothing then that was done.
    async fn stand(self: &Arc<Self>, stood: bool) -> Result<(), Step> {
        if !stood {
            self.lent.quiet().await;
        }
        let stands = self.command("stop", json!({})).await.map(drop);
        if stands.is_err() && !stood {
            self.serve_volumes();
        }
        stands
    }

    /// Writes the state of a machine that stands into a file.
    async fn write_state(&self, state: Uuid) -> Result<(), Step> {
        let path = self.house.states.path(state);
        let mut options = fs::File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let file = file.at(format!("making {}", path.display()))?;
        let step = || format!("writing memory to {}", path.display());
        self.qmp.hand_over("state", file.as_fd()).await.at(step())?;
        let started = async {
            // By itself it keeps a wire free for others.
            self.qmp
                .run("migrate-set-parameters", json!({ "max-bandwidth": 1_u64 << 40 }))
                .await?;
            self.qmp.run("migrate", json!({ "uri": "fd:state" })).await
        };
        if let Err(error) = started.await {
            let _ = self.qmp.run("closefd", json!({ "fdname": "state" })).await;
            return Err(error).at(step());
        }
        let migrated = migrated(&self.qmp).await;
        if migrated.is_err() {
            let _ = self.qmp.run("migrate_cancel", json!({})).await;
        }
        migrated.at(step())
    }

    /// Lays an empty image on its disk; what it wrote until now is written to no more.
    async fn seal_disk(&self, record: &record::Machine) -> Result<(), Step> {
        let depth = record.disk.layers.len();
        let next = record.next.ok_or_else(|| io::Error::other("none is on record"));
        let next = next.at("laying an image on a disk")?;
        let step = || "handing QEMU an image".to_owned();
        let opened = self.house.disks.open_image(next, true)?;
        let (read, write) = (&opened.read, opened.write.as_ref().expect("it was asked for"));
        let set = self.qmp.add(write.as_fd(), None).await.at(step())?;
        // When the next one is laid on it, it is read alone.
        self.qmp.add(read.as_fd(), Some(set)).await.at(step())?;
        let image = Image {
            path: set_path(set),
            format: next.format,
        };
        let added = self.command("blockdev-add", overlay(&image, depth)).await;
        if let Err(refused) = added {
            let _ = self.qmp.run("remove-fd", json!({ "fdset-id": set })).await;
            return Err(refused);
        }
        let order = json!({ "node": node_name(depth.saturating_sub(1)), "overlay": node_name(depth) });
        let laid = self.command("blockdev-snapshot", order).await;
        if laid.is_err() {
            let _ = self
                .qmp
                .run("blockdev-del", json!({ "node-name": node_name(depth) }))
                .await;
            let _ = self.qmp.run("remove-fd", json!({ "fdset-id": set })).await;
        }
        laid.map(drop)
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
        house.has_room()?;
        let next = Disks::draw(Format::Qcow2);
        let state = memory.then(Uuid::new_v4);
        let _pins = state.map(|state| house.states.pin(state));
        let stood = self.frozen.load(Ordering::SeqCst);
        let before = self.record();
        let _layers: Vec<_> = before
            .disk
            .layers
            .iter()
            .map(|layer| house.disks.files.pin(layer.id))
            .collect();
        self.note(|record| {
            record.next = Some(next);
            record.state = state;
            record.copying = !stood;
        })
        .await?;
        failpoint::reach("qemu/copying-recorded");
        self.sync().await;
        let copied = self.copy_standing(stood, state).await;
        let is_sealed = copied.is_ok();
        let noted = self
            .note(|record| {
                if is_sealed {
                    record.disk.layers.push(next);
                }
                record.next = None;
                record.state = None;
                record.copying = false;
            })
            .await;
        if !is_sealed {
            house.sweep_soon();
        }
        copied.map_err(|failed| match memory {
            true => cannot(format!("{failed}: {}", failed.source)),
            false => failed.into(),
        })?;
        noted?;
        failpoint::reach("qemu/copy-noted");
        let fits = house.fits(&before);
        let kept = Arc::clone(house);
        let made = blocking(move || {
            kept.disks.files.sync_names()?;
            let memory = match state {
                Some(state) => Some(memory::seal(&kept.states.path(state), state, fits)?),
                None => None,
            };
            kept.states.sync_names()?;
            let build = Build {
                form: FORM,
                disk: before.disk,
                memory,
            };
            let _turn = kept.turn();
            kept.book.builds.write(&into, &build)
        });
        made.await?;
        failpoint::reach("qemu/build-recorded");
        house.flatten_build_soon(into);
        Ok(if memory {
            model::Memory::Durable
        } else {
            model::Memory::None
        })
    }

    /// Stops it, copies it, and lets it go on if it did not stand before.
    async fn copy_standing(self: &Arc<Self>, stood: bool, state: Option<Uuid>) -> Result<(), Step> {
        let record = self.record();
        if let Some(next) = record.next {
            self.house.disks.make(next, record.disk.size_bytes)?;
        }
        let begun = Instant::now();
        self.stand(stood).await?;
        failpoint::reach("qemu/machine-stands");
        let copied = async {
            if let Some(state) = state {
                self.write_state(state).await?;
                failpoint::reach("qemu/memory-written");
            }
            self.seal_disk(&record).await
        };
        let copied = copied.await;
        failpoint::reach("qemu/disk-sealed");
        if !stood {
            self.command("cont", json!({})).await?;
            self.serve_volumes();
        }
        failpoint::reach("qemu/machine-goes-on");
        tracing::debug!(execution = %self.execution, stood = ?begun.elapsed(), "a machine was copied");
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
        let stood = self.frozen.load(Ordering::SeqCst);
        self.note(|record| {
            record.copying = !stood;
            record.state = Some(state);
        })
        .await?;
        failpoint::reach("qemu/hibernation-recorded");
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
            if !stood {
                self.command("cont", json!({})).await?;
                self.serve_volumes();
            }
            let noted = self.note(|record| {
                record.copying = false;
                record.state = None;
            });
            noted.await?;
            self.house.sweep_soon();
            return Err(cannot(format!("{failed}: {}", failed.source)));
        }
        // From here on what is kept is the sandbox.
        failpoint::reach("qemu/hibernation-kept");
        self.stopping.store(true, Ordering::SeqCst);
        self.end(true).await?;
        *stopped = true;
        let sandbox = self.record().spec.sandbox;
        self.house.flatten_kept_soon(sandbox);
        Ok(())
    }

    async fn write_down(self: &Arc<Self>, stood: bool, state: Uuid) -> Result<(), Step> {
        self.stand(stood).await?;
        failpoint::reach("qemu/hibernation-stands");
        self.write_state(state).await?;
        failpoint::reach("qemu/hibernation-written");
        let record = self.record();
        let (house, execution) = (Arc::clone(&self.house), self.execution);
        let fits = house.fits(&record);
        let sealed = tokio::task::spawn_blocking(move || {
            let memory = memory::seal(&house.states.path(state), state, fits)?;
            keep(&house, &record, execution, Some(memory))
        });
        sealed
            .await
            .map_err(|_| io::Error::other("a thread panicked"))
            .at("keeping memory")?
    }

    /// Ends QEMU, and removes everything but its images.
    async fn end(&self, gently: bool) -> Result<(), RuntimeError> {
        self.lent.end();
        self.link.hang_up().await;
        let mut ended = self.ended.subscribe();
        if gently && !self.is_over() {
            let quit = async {
                let _ = self.qmp.run_within("quit", json!({}), QUIT_WITHIN).await;
                let _ = ended.wait_for(Option::is_some).await;
            };
            let _ = tokio::time::timeout(QUIT_WITHIN, quit).await;
        }
        self.process.kill();
        let mut ended = self.ended.subscribe();
        let _ = ended.wait_for(Option::is_some).await;
        failpoint::reach("qemu/process-ended");
        let (house, record) = (Arc::clone(&self.house), self.record());
        blocking(move || house.strike(&record)).await?;
        failpoint::reach("qemu/record-removed");
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
            failpoint::reach("qemu/keep-recorded");
        }
        self.stopping.store(true, Ordering::SeqCst);
        if keeps {
            // Its images are to be whole before they are anybody's.
            let mut ended = self.ended.subscribe();
            let _ = self.qmp.run_within("quit", json!({}), QUIT_WITHIN).await;
            let gone = tokio::time::timeout(QUIT_WITHIN, ended.wait_for(Option::is_some))
                .await
                .is_ok();
            if !gone {
                self.process.kill();
                let _ = ended.wait_for(Option::is_some).await;
            }
            let (house, record, execution) = (Arc::clone(&self.house), self.record(), self.execution);
            blocking(move || keep(&house, &record, execution, None)).await?;
            failpoint::reach("qemu/disk-kept");
        }
        self.end(false).await?;
        *stopped = true;
        if keeps {
            let sandbox = self.record().spec.sandbox;
            self.house.flatten_kept_soon(sandbox);
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
        if self.frozen.load(Ordering::SeqCst) {
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
            disk_total_bytes: record.disk.size_bytes,
            ..asked.at("asking a machine what it uses")?
        };
        *self.usage.lock().expect(UNPOISONED) = usage;
        Ok(usage)
    }
}

/// Notes that a machine's disk, and memory, are its sandbox's from now on.
pub(crate) fn keep(
    house: &House,
    record: &record::Machine,
    execution: ExecutionId,
    memory: Option<Memory>,
) -> Result<(), Step> {
    house.disks.files.sync_names()?;
    house.states.sync_names()?;
    let kept = Kept {
        execution,
        disk: record.disk.clone(),
        memory,
    };
    let _turn = house.turn();
    house.book.kept.write(&record.spec.sandbox, &kept)
}

/// Waits until memory has been written, or brought in.
pub(crate) async fn migrated(qmp: &Qmp) -> Result<(), QmpError> {
    let deadline = Instant::now() + MIGRATED_WITHIN;
    loop {
        let now = qmp.run("query-migrate", json!({})).await?;
        match now["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                return Err(QmpError::Refused {
                    command: "migrate",
                    class: "migration".to_owned(),
                    desc: now["error-desc"].as_str().unwrap_or("unsaid").to_owned(),
                });
            }
            _ if Instant::now() >= deadline => {
                return Err(QmpError::Late {
                    command: "migrate",
                    within: MIGRATED_WITHIN,
                });
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// The node on which the disk's device is.
pub(crate) async fn top_node(qmp: &Qmp) -> Result<Option<String>, QmpError> {
    let devices = qmp.run("query-block", json!({})).await?;
    let devices = devices.as_array().map(Vec::as_slice).unwrap_or_default();
    let path = format!("/machine/peripheral/{DISK_DEVICE}/");
    let disk = devices.iter().find(|device| {
        device["qdev"]
            .as_str()
            .is_some_and(|qdev| qdev == DISK_DEVICE || qdev.starts_with(&path))
    });
    Ok(disk.and_then(|disk| Some(disk["inserted"]["node-name"].as_str()?.to_owned())))
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Step> + Send + 'static,
) -> Result<T, RuntimeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(panicked)?.map_err(Into::into)
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
