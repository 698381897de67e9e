//! Writing down the memory of a machine: beside a copy of its disk that becomes a build, or is kept for its sandbox.
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use model::{BuildId, Memory, MiB, SandboxId};
use ports::RuntimeError;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{Criu, Dump, Failed, memory};
use crate::agent;
use crate::house::House;
use crate::machine::Container;
use crate::slot::{Slot, open_root};
use crate::step::{At, Step};
use crate::users::first_user;

impl Container {
    /// Copies the disk, and what its processes are into a directory that is not there yet, both at one instant. The machine
    /// goes on, and stands if it stood.
    pub(crate) fn copy_with_memory(&self, into: BuildId, memory: &Path) -> Result<Memory, RuntimeError> {
        let Some(criu) = self.house.recall.proven(&self.house, self.slot.shape) else {
            return self.copy_disk(into).map(|()| Memory::None);
        };
        let stood = self.is_standing();
        if stood {
            // Whoever stands cannot let go of its connections. What it does meanwhile is a few milliseconds of its life.
            self.slot.cgroup.thaw()?;
        }
        let (gate, are_gone) = self.lines.cut(self.slot.pid);
        let dumped = if are_gone {
            self.house
                .dump(&criu, &self.slot, self.spec.resources.memory, memory, || {
                    self.copy_standing(into)
                })
        } else {
            Err(is_held())
        };
        drop(gate);
        if stood {
            self.slot.cgroup.freeze()?;
        }
        let disks = &self.house.disks;
        finish_both(memory, dumped?, || disks.settle_through(&disks.copy_of(into)))?;
        failpoint::reach("container/memory-written");
        Ok(Memory::Durable)
    }

    /// Writes memory and disk down under the sandbox's id, and ends everything. Where that fails the machine goes on.
    pub(crate) fn write_down(&self) -> Result<(), RuntimeError> {
        let Some(criu) = self.house.recall.proven(&self.house, self.slot.shape) else {
            return Err(cannot(self.house.recall.why_not()));
        };
        let sandbox = self.spec.sandbox;
        let disks = &self.house.disks;
        disks.has_room()?;
        self.write_ahead()?;
        let _turn = self.turn();
        let stood = self.is_standing();
        self.record_copying(true)?;
        failpoint::reach("container/hibernation-recorded");
        if stood {
            self.slot.cgroup.thaw()?;
        }
        let (gate, are_gone) = self.lines.cut(self.slot.pid);
        let written = if are_gone {
            let memory = self.spec.resources.memory;
            self.house
                .write_down(&criu, &self.slot, (sandbox, memory))
                // From here on what is kept is the sandbox, and the slot is nobody's.
                .and_then(|()| {
                    self.record_given_up()?;
                    failpoint::reach("container/hibernation-given-up");
                    Ok(())
                })
        } else {
            Err(is_held())
        };
        drop(gate);
        if written.is_err() {
            let _ = disks.discard(sandbox);
            if stood {
                self.slot.cgroup.freeze()?;
            } else {
                self.slot.cgroup.thaw()?;
            }
            self.record_copying(false)?;
        }
        written
    }
}

impl House {
    /// Writes the memory of a slot down, with the memory limit that its machine has. Its envd has no connections.
    pub(crate) fn dump(
        &self,
        criu: &Criu,
        slot: &Slot,
        limit: MiB,
        images: &Path,
        at_stop: impl FnOnce() -> Result<(), Step>,
    ) -> Result<memory::Manifest, RuntimeError> {
        let machine = memory::Machine {
            address: self.net()?.address(slot.number),
            agent: self.agent_of(slot)?,
            memory: limit,
        };
        let dump = Dump {
            pid: slot.pid,
            pidfd: slot.pidfd.as_fd(),
            owner: first_user(self.instance.number, slot.number),
            machine,
            images,
        };
        criu.dump(&self.launcher, dump, at_stop).map_err(|failed| {
            let _ = memory::remove(images);
            match failed {
                Failed::Cannot(why) => cannot(why),
                Failed::Step(step) => step.into(),
            }
        })
    }

    /// Writes memory and disk of a slot down for a sandbox. From the instant on of which they are it stands. Finished or
    /// not, it is to be ended or to be let go on by the caller.
    pub(crate) fn write_down(
        &self,
        criu: &Criu,
        slot: &Slot,
        (sandbox, limit): (SandboxId, MiB),
    ) -> Result<(), RuntimeError> {
        let disks = &self.disks;
        let partial = disks.kept_memory(sandbox).with_extension("partial");
        memory::remove(&partial)?;
        let manifest = self.dump(criu, slot, limit, &partial, || {
            slot.write_back().at("writing a disk back")?;
            disks.begin_kept(slot.number, sandbox)?;
            failpoint::reach("container/hibernation-disk-copied");
            // What it would do from here on it is to do once, when it goes on.
            slot.cgroup.stand()?;
            failpoint::reach("container/hibernation-stands");
            Ok(())
        })?;
        failpoint::reach("container/hibernation-dumped");
        finish_both(&partial, manifest, || disks.settle_kept(sandbox))?;
        failpoint::reach("container/hibernation-written");
        disks.commit_kept(sandbox, slot.shape.build)?;
        failpoint::reach("container/hibernation-kept");
        Ok(())
    }

    /// The directory of the envd that a machine runs: an earlier daemon may have brought another than ours.
    fn agent_of(&self, slot: &Slot) -> Result<PathBuf, Step> {
        let step = || format!("finding the envd of slot {}", slot.number);
        let root = open_root(slot.pid, &slot.pidfd).at(step())?;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat2(&root, agent::INSIDE, flags, Mode::empty(), inside).at(step())?;
        let runs = rustix::fs::fstat(&dir).at(step())?;
        let brought = self.agent.parent().unwrap_or(&self.agent);
        fs::read_dir(brought)
            .at(step())?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| {
                fs::metadata(path).is_ok_and(|about| about.dev() == runs.st_dev && about.ino() == runs.st_ino)
            })
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .at(step())
    }
}

/// Finishes images, and a disk beside them.
fn finish_both(
    images: &Path,
    manifest: memory::Manifest,
    disk: impl FnOnce() -> Result<(), Step> + Send,
) -> Result<(), Step> {
    std::thread::scope(|scope| {
        let disk = scope.spawn(disk);
        let memory = memory::finish(images, manifest);
        disk.join()
            .map_err(|_| io::Error::other("a thread panicked"))
            .at("settling a disk")?
            .and(memory)
    })
}

fn cannot(why: String) -> RuntimeError {
    RuntimeError::CannotCheckpoint { why }
}

fn is_held() -> RuntimeError {
    cannot("envd does not let go of a connection from outside".to_owned())
}
