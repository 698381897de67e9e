//! What all machines of a node share.
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use model::{BuildId, ExecutionId, SandboxId};
use ports::RuntimeError;
use ports::runtime::DiskOrigin;
use ports::step::{At, Step};
use tokio_util::task::TaskTracker;
use volumes::Volumes;

use crate::files::Files;
use crate::record::{Book, FORM};
use crate::vmm::{Build, Kept, Machine, Vmm};

/// Below it nothing is started: guests that find their disks full by surprise lose what they wrote.
const FREE_MIN_BYTES: u64 = 64 << 20;
const UNPOISONED: &str = "nothing panics while it holds the book";

/// A node's machines, disks and records.
pub struct House<V: Vmm> {
    /// By what machines are run.
    pub vmm: V,
    /// What is on record.
    pub book: Book<V::Disk, V::Memory, V::Own>,
    /// Images of disks.
    pub images: Files,
    /// States of memory.
    pub states: Files,
    /// The node's volumes; `None` where the daemon is not root: then there are none.
    pub volumes: Option<Arc<Volumes>>,
    /// What goes on when nobody waits for it any more.
    pub work: TaskTracker,
    /// Held from looking at what a machine starts from until that is on the machine's record, and while files are swept.
    turn: Mutex<()>,
}

impl<V: Vmm> House<V> {
    /// One in a directory that is there, and in which its images are.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(data: &Path, images: Files, vmm: V) -> Result<Self, Step> {
        let is_root = rustix::process::geteuid().is_root();
        let volumes = is_root.then(|| Volumes::open(data, data.join("volumes/images")));
        Ok(Self {
            vmm,
            book: Book::open(data)?,
            images,
            states: Files::open(data.join("states"))?,
            volumes: volumes.transpose()?.map(Arc::new),
            work: TaskTracker::new(),
            turn: Mutex::default(),
        })
    }

    /// While it is held, nobody takes up what is on record, and nothing is swept.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().expect(UNPOISONED)
    }

    pub(crate) fn has_room(&self) -> Result<(), RuntimeError> {
        let (_, free) = self.images.space().at("looking for room for disks")?;
        if free < FREE_MIN_BYTES {
            return Err(RuntimeError::Exhausted("disk"));
        }
        Ok(())
    }

    /// What a machine starts from: a disk, and memory where there is some.
    ///
    /// # Errors
    /// There is none.
    pub fn origin(
        &self,
        build: BuildId,
        sandbox: SandboxId,
        disk: DiskOrigin,
    ) -> Result<(V::Disk, Option<V::Memory>), RuntimeError> {
        Ok(match disk {
            DiskOrigin::Fresh | DiskOrigin::Single => {
                let build = self.build(build)?.ok_or(RuntimeError::NoBuild(build))?;
                (build.disk, build.memory)
            }
            DiskOrigin::Kept => {
                let kept = self.book.kept.read(&sandbox)?;
                let kept = kept.ok_or(RuntimeError::NoDisk(sandbox))?;
                (kept.disk, kept.memory)
            }
        })
    }

    /// The record of a build, if it is one that is understood and all of it is there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn build(&self, build: BuildId) -> Result<Option<Build<V>>, Step> {
        let record = self.book.builds.read(&build)?;
        Ok(record.filter(|record| record.form == FORM && V::is_whole(self, &record.disk)))
    }

    /// Puts a machine on record, with what it is started from and with.
    ///
    /// # Errors
    /// The disk failed.
    pub fn stake(&self, machine: &Machine<V>) -> Result<(), Step> {
        self.book.machines.write(&machine.spec.execution, machine)
    }

    /// Notes that a machine's disk, and memory, are its sandbox's from now on.
    ///
    /// # Errors
    /// The disk failed.
    pub fn keep(&self, machine: &Machine<V>, memory: Option<V::Memory>) -> Result<(), Step> {
        V::settle(self, &machine.disk)?;
        self.images.sync_names()?;
        self.states.sync_names()?;
        let kept = Kept::<V> {
            execution: machine.spec.execution,
            build: Some(machine.spec.build),
            disk: machine.disk.clone(),
            memory,
        };
        let _turn = self.turn();
        self.book.kept.write(&machine.spec.sandbox, &kept)
    }

    /// Removes images and states that no record names.
    pub(crate) fn sweep(&self) {
        let _turn = self.turn();
        match self.book.named() {
            Ok((images, states)) => {
                self.images.sweep(&images);
                self.states.sweep(&states);
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                cause = %error.source,
                "disks that nothing needs stay, because a record cannot be read"
            ),
        }
    }

    /// The same, when there is time.
    pub fn sweep_soon(self: &Arc<Self>) {
        let house = Arc::clone(self);
        self.work.spawn_blocking(move || house.sweep());
    }

    /// Takes the network away of a machine whose process has ended, clears it away, and then removes its record; its numbers are
    /// free from then on. Blocks.
    ///
    /// # Errors
    /// Something of it stays, and so does its record.
    pub fn strike(&self, machine: &Machine<V>) -> Result<(), Step> {
        V::release(self, machine)?;
        failpoint::reach("microvm/network-unplugged");
        self.clear_away(machine.spec.execution)?;
        self.vmm.give_back(&machine.own);
        Ok(())
    }

    /// Clears a machine away that is over, then removes its record. Blocks.
    pub(crate) fn clear_away(&self, execution: ExecutionId) -> Result<(), Step> {
        let id = execution.to_string();
        V::clear(self, &id)?;
        self.book.machines.remove(&execution)?;
        if let Some(volumes) = &self.volumes {
            volumes.take_back(&id);
        }
        Ok(())
    }
}
