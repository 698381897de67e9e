//! Containers and microVMs, as the node sees them: machines that start, stop, freeze and are dialled.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use model::{BuildId, ExecutionId, Kind, Memory, NetworkPolicy, Resources, SandboxId, VolumeMount};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use crate::guest::{DialError, Stream};

/// The machine to be started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Whose it is. Every host resource carries this name and the next.
    pub sandbox: SandboxId,
    /// Which incarnation.
    pub execution: ExecutionId,
    /// The root it starts from: a build that the runtime has, see [`Runtime::has_build`].
    pub build: BuildId,
    /// Its size.
    pub resources: Resources,
    /// What it may reach, in force before its first process runs.
    pub network: NetworkPolicy,
    /// Which disk it writes to.
    pub disk: DiskOrigin,
    /// Whether its processes go on where they were, if what it starts from holds their memory; else it boots.
    #[serde(default)]
    pub restore: bool,
    /// What is mounted into it.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
}

/// Where a machine's writable disk comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskOrigin {
    /// As its build says: a blank one, or a copy of the disk that belongs to the build.
    Fresh,
    /// As [`DiskOrigin::Fresh`], for a machine like which no other follows: none is prepared ahead for more of them.
    Single,
    /// The one that this sandbox's last machine left by [`Machine::stop`] with [`Disk::Keep`].
    Kept,
}

/// What becomes of the disk when a machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// Kept under the sandbox's id, all writes in it, until it is started from again or discarded.
    Keep,
    /// Gone with the machine.
    Discard,
}

/// How a machine's life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// [`Machine::stop`] was called.
    Stopped,
    /// Its first process ended by itself, or was killed from outside of Atoll.
    Died,
}

/// Use of a machine's resources at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time used since the start.
    pub cpu_time: Duration,
    /// Memory in use without reclaimable cache, bytes.
    pub memory_used_bytes: u64,
    /// Page cache that is charged to it, bytes.
    pub memory_cache_bytes: u64,
    /// Memory limit, bytes.
    pub memory_total_bytes: u64,
    /// Disk in use, bytes.
    pub disk_used_bytes: u64,
    /// Disk size, bytes.
    pub disk_total_bytes: u64,
    /// Processes and threads.
    pub tasks: u64,
    /// How often something inside was killed for want of memory.
    pub oom_kills: u64,
}

/// Room for disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that can still be written.
    pub free_bytes: u64,
}

/// What a runtime can do. What it cannot do it refuses by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Memory survives a restart of the host.
    pub durable_memory: bool,
    /// Memory survives in RAM while the host is up.
    pub freeze: bool,
    /// The guest has a kernel of its own.
    pub own_kernel: bool,
    /// Machines reach what lies outside, as far as their policy says.
    #[serde(default)]
    pub network: bool,
    /// Volumes are mounted into machines.
    #[serde(default)]
    pub volumes: bool,
    /// Roots are looked at from outside: [`Runtime::changes`], [`Runtime::export`].
    #[serde(default)]
    pub roots: bool,
    /// Builds are taken elsewhere and brought from there: [`Runtime::parts`], [`Runtime::assemble`].
    #[serde(default)]
    pub portable_builds: bool,
}

/// What recovery found.
pub struct Recovered {
    /// Machines that live on, with what they were started from, each frozen or not as it was.
    pub machines: Vec<(MachineSpec, Arc<dyn Machine>)>,
    /// Disks that were kept for sandboxes that have no machine.
    pub disks: Vec<SandboxId>,
    /// What was found and could not be adopted, and has been reclaimed.
    pub reclaimed: usize,
}

/// What a build consists of.
#[derive(Debug)]
pub struct Parts {
    /// How they are put together: for the same kind of runtime.
    pub record: serde_json::Value,
    /// Layers that were given to [`Runtime::import`], those of one place with the highest first.
    pub given: Vec<std::path::PathBuf>,
    /// Images, which do not change any more, open to be read.
    pub images: BTreeMap<PartImage, std::fs::File>,
}

/// Which image of a build's: of a disk, or of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartImage {
    /// The disk that its machines begin with a copy of.
    Own,
    /// A disk that was sealed for a build, this one or one below it.
    Sealed(BuildId),
    /// One whose name was drawn at random, and which is the same wherever it has that name.
    Drawn(Uuid),
    /// A file of memory, likewise.
    Memory(Uuid, MemoryFile),
}

/// Which file of memory that was written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryFile {
    /// All of it, or, beside [`MemoryFile::Devices`], the pages.
    Pages,
    /// How devices and processors were.
    Devices,
}

/// Why an image was not written.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// It may be had later.
    #[error("an image is not to be had at present")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It is not there, or not what it was, or cannot be written here.
    #[error("an image is not to be had")]
    Lost(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where the images of a build come from that is assembled.
#[async_trait]
pub trait PartImages: Send + Sync {
    /// Writes one into an empty file, durably.
    async fn write(&self, image: PartImage, into: std::fs::File) -> Result<(), PartError>;
}

/// Makes machines. One for each node.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// `container`, `qemu` or `firecracker`.
    fn name(&self) -> &'static str;
    /// What it can do.
    fn capabilities(&self) -> Capabilities;
    /// Finds what earlier runs of the daemon left, adopts the machines that live (identity proved by pidfd and start
    /// time, never by a bare pid) and reclaims everything else that carries this runtime's name. Called once, before
    /// anything else.
    async fn recover(&self) -> Result<Recovered, RuntimeError>;
    /// Whether machines can be started from `build`.
    async fn has_build(&self, build: BuildId) -> bool;
    /// Starts a machine and returns when its envd listens. On failure nothing of it is left, and a kept disk is as it
    /// was. Uses a prepared slot when one is there, and works without.
    async fn start(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, RuntimeError>;
    /// Makes a build of read-only layers, each the unpacked form of an image's, the lowest first, with whiteouts as
    /// overlayfs has them. They belong to whoever made them, and must stay as long as the build, or another that was made
    /// from it, is there.
    async fn import(&self, build: BuildId, layers: Vec<std::path::PathBuf>) -> Result<(), RuntimeError> {
        let _ = (build, layers);
        Err(self.cannot("images"))
    }
    /// Makes the build `into`, whose machines begin with blank disks over what lies on the disk of the build `from`: all
    /// of them share it. Its memory is not in it.
    async fn seal(&self, from: BuildId, into: BuildId) -> Result<(), RuntimeError> {
        let _ = (from, into);
        Err(self.cannot("template builds"))
    }
    /// Every build that is on this node.
    async fn builds(&self) -> Vec<BuildId> {
        Vec::new()
    }
    /// Removes builds that nobody starts from any more. What other builds and machines need of them stays. An unknown
    /// one is no error.
    async fn remove_builds(&self, builds: &[BuildId]) -> Result<(), RuntimeError> {
        let _ = builds;
        Ok(())
    }
    /// What a build needs of layers that were given to [`Runtime::import`]; empty for an unknown one.
    async fn layers_of(&self, build: BuildId) -> Vec<std::path::PathBuf> {
        let _ = build;
        Vec::new()
    }
    /// Builds whose disks a build's own are likely to share most of their blocks with, the likeliest first: what its disk
    /// began as a copy of, what was copied from the same disk before, and what it stands on. They may be gone by now. A few;
    /// none for an unknown one, and where the runtime does not know.
    async fn kin_of(&self, build: BuildId) -> Vec<BuildId> {
        let _ = build;
        Vec::new()
    }
    /// How much of machines' memory a build holds.
    async fn memory_of(&self, build: BuildId) -> Memory {
        let _ = build;
        Memory::None
    }
    /// What is another in the root of a build than in that of `since`, which it was made from.
    async fn changes(&self, build: BuildId, since: BuildId) -> Result<crate::root::Changes, RuntimeError> {
        let _ = (build, since);
        Err(self.cannot("telling what was changed in a root"))
    }
    /// The whole root of a build, as [`crate::root::ExportedRoot::tar`] says. The build may be removed meanwhile.
    async fn export(&self, build: BuildId) -> Result<crate::blobs::ByteStream, RuntimeError> {
        let _ = build;
        Err(self.cannot("exporting roots"))
    }
    /// What a build consists of, to be brought elsewhere; its memory, where that can be of use there. The build may be removed
    /// meanwhile.
    async fn parts(&self, build: BuildId) -> Result<Parts, RuntimeError> {
        let _ = build;
        Err(self.cannot("taking builds elsewhere"))
    }
    /// Makes a build of parts that [`Runtime::parts`] told, here or elsewhere. `record` may be anybody's. `given` are the
    /// directories that stand for [`Parts::given`], in order; `images` are asked for those that are not here. One that is there
    /// already is no error. On failure nothing of it is left.
    async fn assemble(
        &self,
        build: BuildId,
        record: &serde_json::Value,
        given: Vec<std::path::PathBuf>,
        images: &dyn PartImages,
    ) -> Result<(), RuntimeError> {
        let _ = (build, record, given, images);
        Err(self.cannot("taking builds from elsewhere"))
    }
    /// Makes the build `into` of the disk that is kept for a sandbox; that one, and the memory beside it, stay as they are, and
    /// nobody starts from them meanwhile. What is copied is durable when this returns. One that is there already is no error.
    /// [`RuntimeError::NoDisk`]: none is kept.
    async fn copy_kept(&self, sandbox: SandboxId, into: BuildId) -> Result<(), RuntimeError> {
        let _ = (sandbox, into);
        Err(self.cannot("copies of disks that are kept"))
    }
    /// How a runtime refuses what it does not offer.
    fn cannot(&self, what: &str) -> RuntimeError {
        RuntimeError::Unsupported {
            runtime: self.name(),
            what: what.to_owned(),
        }
    }
    /// Deletes the disk, and the memory, kept for `sandbox`. No disk is no error.
    async fn discard(&self, sandbox: SandboxId) -> Result<(), RuntimeError>;
    /// How many machines could be started from what is prepared ahead.
    fn slots_ready(&self) -> u32 {
        0
    }
    /// Room where machines' disks lie; `None` where that is the data directory like everything else.
    fn disk_space(&self) -> Option<DiskSpace> {
        None
    }
    /// Gives back what was prepared ahead. Machines live on: they are stopped one by one by their owner.
    async fn close(&self);
}

/// A running machine. Dropping the handle changes nothing: the machine lives until it is stopped or dies.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Whose it is.
    fn sandbox(&self) -> SandboxId;
    /// Which incarnation.
    fn execution(&self) -> ExecutionId;
    /// Opens a connection to envd's host-only socket, which nothing inside the sandbox can open.
    async fn envd(&self) -> Result<Box<dyn Stream>, DialError>;
    /// Opens a TCP connection to a port inside, as if from the sandbox's own loopback.
    async fn dial(&self, port: u16) -> Result<Box<dyn Stream>, DialError>;
    /// Puts a policy in force and cuts the connections that it forbids.
    async fn set_network(&self, policy: &NetworkPolicy) -> Result<(), RuntimeError>;
    /// Stops all processes in place, memory kept. Idempotent.
    async fn freeze(&self) -> Result<(), RuntimeError>;
    /// Lets them go on. Idempotent.
    async fn thaw(&self) -> Result<(), RuntimeError>;
    /// Whether it is frozen.
    fn is_frozen(&self) -> bool;
    /// Copies the machine at this instant into the build `into`: its disk and, with `memory`, its processes, both at the
    /// same instant. It goes on: what it sees of this is a pause of some milliseconds without memory. What is copied is
    /// durable when this returns. Returns how much memory was copied: a runtime that cannot copy memory copies none.
    /// [`RuntimeError::CannotCheckpoint`]: memory could not be copied; nothing is, and the machine goes on.
    async fn checkpoint(&self, into: BuildId, memory: bool) -> Result<Memory, RuntimeError> {
        let _ = memory;
        Err(RuntimeError::CannotCheckpoint {
            why: format!("this runtime makes no copies, so there is no {into}"),
        })
    }
    /// Writes disk and memory down under the sandbox's id, and ends: [`DiskOrigin::Kept`] with [`MachineSpec::restore`]
    /// goes on from there. [`RuntimeError::CannotCheckpoint`], also where the runtime cannot do this at all: the machine
    /// goes on.
    async fn hibernate(&self) -> Result<(), RuntimeError> {
        Err(RuntimeError::CannotCheckpoint {
            why: "this runtime cannot write memory down".to_owned(),
        })
    }
    /// Whether its processes went on from memory when it was started: its start command is among them.
    fn is_restored(&self) -> bool {
        false
    }
    /// Ends every process and gives back everything but, with [`Disk::Keep`], the disk. Works on a frozen or dead
    /// machine, and again on a stopped one. When it returns, no process of the machine is left.
    async fn stop(&self, disk: Disk) -> Result<(), RuntimeError>;
    /// What it uses now.
    async fn usage(&self) -> Result<Usage, RuntimeError>;
    /// Becomes `Some` when the machine's life is over.
    fn ended(&self) -> watch::Receiver<Option<Ended>>;
    /// When its first process was started.
    fn started_at(&self) -> SystemTime;
    /// Facts for an operator (`pid`, `cgroup`, `address`, …): shown, never parsed.
    fn facts(&self) -> BTreeMap<&'static str, String>;
}

/// What went wrong with a machine.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The build is not on this node.
    #[error("build {0} is not on this node")]
    NoBuild(BuildId),
    /// No disk is kept for the sandbox.
    #[error("no disk is kept for sandbox {0}")]
    NoDisk(SandboxId),
    /// A volume is not on this node.
    #[error("volume {0} is not on this node")]
    NoVolume(model::VolumeId),
    /// What runs inside cannot be written down; it runs on.
    #[error("its memory cannot be saved: {why}")]
    CannotCheckpoint {
        /// What stands in the way, and what to do.
        why: String,
    },
    /// What was to be assembled to a build cannot be: it is told where it came from.
    #[error("build {build} cannot be brought here: {why}")]
    CannotAssemble {
        /// Which.
        build: BuildId,
        /// Why not.
        why: String,
        /// What failed, where something did.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The memory that was kept does not fit this machine any more: another kernel, CPU or CRIU, or a broken image.
    #[error("the memory of {what} cannot be restored: {why}")]
    CannotRestore {
        /// Of what.
        what: String,
        /// Why not.
        why: String,
    },
    /// The option exists and this runtime does not offer it.
    #[error("the {runtime} runtime does not support {what}")]
    Unsupported {
        /// Which runtime.
        runtime: &'static str,
        /// What it does not offer.
        what: String,
    },
    /// A resource of the host is used up.
    #[error("the node is out of {0}")]
    Exhausted(&'static str),
    /// envd did not listen in time, or ended before it did.
    #[error("envd of sandbox {sandbox} did not come up: {detail}")]
    NotUp {
        /// Whose.
        sandbox: SandboxId,
        /// What was seen.
        detail: String,
    },
    /// The kernel refused a step.
    #[error("{step} failed")]
    Step {
        /// What was tried, with its operands.
        step: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl RuntimeError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            RuntimeError::NoBuild(_) | RuntimeError::NoDisk(_) | RuntimeError::NoVolume(_) => Kind::NotFound,
            RuntimeError::CannotCheckpoint { .. } | RuntimeError::CannotRestore { .. } => Kind::Conflict,
            RuntimeError::Unsupported { .. } => Kind::Invalid,
            RuntimeError::Exhausted(_) | RuntimeError::CannotAssemble { .. } => Kind::Unavailable,
            RuntimeError::NotUp { .. } | RuntimeError::Step { .. } => Kind::Internal,
        }
    }
}
