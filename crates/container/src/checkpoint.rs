//! Copies of a machine that goes on: its disk and, where that can be had, its memory, at one instant. And of a disk that is kept
//! for one that is no more.
//!
//! ```text
//! write back, running ──▶ on record ──▶ stand ──▶ [memory] ──▶ write back the rest ──▶ clone ──▶ go on
//!                                                                                              │
//!                                    on record as a build ◀── durable ◀── journal done ◀───────┘
//! ```
//!
//! While it stands there is little to write: most was written before. Its file system is not frozen: that waits for all
//! processors (38 ms, whatever there is to do), and with every process standing and everything written back nothing is
//! missing but what its journal knows. So the copy is that of a disk whose machine lost its power when it was at rest; it
//! is mounted for a moment before it is anybody's, so that no machine that begins with it has to do its journal.
use std::fs;
use std::time::{Duration, Instant};

use model::{BuildId, Memory, MiB, SandboxId};
use ports::RuntimeError;

use crate::build::{Build, FORM, lineage};
use crate::house::House;
use crate::machine::Container;
use crate::step::{At, Step};

/// What is left to be written when a round takes no longer than this is written in a pause that nobody minds.
const ROUND_WORTH_IT: Duration = Duration::from_millis(10);
/// A machine that writes as fast as its disk takes it is never done.
const ROUNDS_MAX: usize = 5;

impl Container {
    /// Copies the machine into the build `into`.
    pub(crate) fn checkpoint(&self, into: BuildId, memory: bool) -> Result<Memory, RuntimeError> {
        let house = &self.house;
        house.disks.has_room()?;
        let from = self.spec.build;
        let over = house.builds.get(from)?.ok_or(RuntimeError::NoBuild(from))?;
        let _under_way = house.builds.begin(&[into]);
        let remembered = house.disks.memory_of_build(into);
        let copied = self.write_ahead().and_then(|()| {
            let _turn = self.turn.lock().expect(UNPOISONED);
            if memory {
                return self.copy_with_memory(into, &remembered);
            }
            self.copy_disk(into).map(|()| Memory::None)
        });
        let kept = copied.and_then(|memory| {
            house.finish_copy(self.spec.sandbox, into, (from, over), memory)?;
            Ok(memory)
        });
        if kept.is_err() {
            house.drop_copy(into);
        }
        kept
    }

    /// Lets most of what it has written come to its image while it runs.
    pub(crate) fn write_ahead(&self) -> Result<(), RuntimeError> {
        if self.is_standing() {
            return Ok(());
        }
        for _ in 0..ROUNDS_MAX {
            let begun = Instant::now();
            self.slot.write_back().at("writing a disk back")?;
            if begun.elapsed() < ROUND_WORTH_IT {
                break;
            }
        }
        Ok(())
    }

    /// Copies the disk alone.
    pub(crate) fn copy_disk(&self, into: BuildId) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let standing = Standing::of(self)?;
        let copied = self.copy_standing(into);
        standing.go_on()?;
        tracing::debug!(sandbox = %self.spec.sandbox, stood = ?begun.elapsed(), "a machine was copied");
        Ok(copied?)
    }

    /// Copies the disk of a machine that stands.
    pub(crate) fn copy_standing(&self, into: BuildId) -> Result<(), Step> {
        self.slot.write_back().at("writing a disk back")?;
        self.house.disks.clone_of(self.slot.number, into)
    }
}

impl House {
    /// Copies the disk that is kept for a sandbox into the build `into`. Nobody starts from it meanwhile.
    pub(crate) fn copy_kept(&self, sandbox: SandboxId, into: BuildId) -> Result<(), RuntimeError> {
        let _under_way = self.builds.begin(&[into]);
        if self.builds.has(into) {
            return Ok(());
        }
        if !self.disks.is_kept(sandbox) {
            return Err(RuntimeError::NoDisk(sandbox));
        }
        self.disks.has_room()?;
        let from = self.disks.over_of(sandbox).ok_or(RuntimeError::NoDisk(sandbox))?;
        let over = self.builds.get(from)?.ok_or(RuntimeError::NoBuild(from))?;
        let copied = self.disks.clone_kept(sandbox, into).map_err(Into::into);
        let copied = copied.and_then(|()| self.finish_copy(sandbox, into, (from, over), Memory::None));
        if copied.is_err() {
            self.drop_copy(into);
        }
        copied
    }

    /// Makes a build of a copy of a sandbox's disk, which is over another build.
    fn finish_copy(
        &self,
        sandbox: SandboxId,
        into: BuildId,
        (from, over): (BuildId, Build),
        memory: Memory,
    ) -> Result<(), RuntimeError> {
        failpoint::reach("container/disk-copied");
        let partial = self.disks.copy_of(into);
        // Beside memory it was, while that was written through.
        if memory == Memory::None {
            self.disks.settle(&partial)?;
        }
        let bytes = fs::metadata(&partial)
            .at(format!("looking at {}", partial.display()))?
            .len();
        self.disks.finish(&partial, &self.disks.of_build(into))?;
        failpoint::reach("container/copy-finished");
        let build = Build {
            form: FORM,
            lineage: lineage(&self.disks.copies_of(sandbox), Some((from, &over))),
            overlays: over.overlays,
            disk: Some(MiB(u32::try_from(bytes >> 20).unwrap_or(u32::MAX))),
            memory,
        };
        self.builds.put(into, &build)?;
        failpoint::reach("container/build-recorded");
        if let Err(error) = self.disks.note_copy(sandbox, into) {
            // The next one is brought to the blobs whole, and that is all.
            tracing::debug!(%sandbox, error = &error as &dyn std::error::Error, "a copy is not noted");
        }
        Ok(())
    }

    /// Leaves nothing of a copy that came to nothing.
    fn drop_copy(&self, into: BuildId) {
        let _ = fs::remove_file(self.disks.copy_of(into));
        let _ = fs::remove_file(self.disks.of_build(into));
        let _ = fs::remove_dir_all(self.disks.memory_of_build(into));
    }
}

/// A machine that stands to be copied. If the daemon dies meanwhile, whoever finds it lets it go on.
struct Standing<'a> {
    container: &'a Container,
    /// It stood before: then it is left so.
    stood: bool,
    goes_on: bool,
}

impl<'a> Standing<'a> {
    fn of(container: &'a Container) -> Result<Self, Step> {
        let stood = container.is_standing();
        if !stood {
            container.record_copying(true)?;
            failpoint::reach("container/copying-recorded");
        }
        let standing = Self {
            container,
            stood,
            goes_on: false,
        };
        if !stood {
            container.slot.cgroup.freeze()?;
            failpoint::reach("container/machine-stands");
        }
        Ok(standing)
    }

    fn go_on(mut self) -> Result<(), Step> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Step> {
        if self.stood || std::mem::replace(&mut self.goes_on, true) {
            return Ok(());
        }
        self.container.slot.cgroup.thaw()?;
        self.container.record_copying(false)
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a machine that was copied could not be let go on"
            );
        }
    }
}

const UNPOISONED: &str = "nothing panics while it holds this";
