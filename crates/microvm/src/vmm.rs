//! What each virtual machine monitor does its own way.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::{BuildId, SandboxId};
use ports::runtime::{Capabilities, MemoryFile};
use ports::step::Step;
use ports::{MachineSpec, RuntimeError};
use uuid::Uuid;

use crate::agent::Link;
use crate::house::House;
use crate::machine::Vm;
use crate::policy::{Cpus, Offered};
use crate::process::Process;
use crate::record::{self, Part};
use crate::start::Plan;

/// A machine's record under a VMM.
pub type Machine<V> = record::Machine<<V as Vmm>::Disk, <V as Vmm>::Own>;
/// A kept sandbox's.
pub type Kept<V> = record::Kept<<V as Vmm>::Disk, <V as Vmm>::Memory>;
/// A build's.
pub type Build<V> = record::Build<<V as Vmm>::Disk, <V as Vmm>::Memory>;

/// One virtual machine monitor, on this host: its programs, and what of the host its machines share.
///
/// What takes a house blocks, where it is not `async`, and is called where that is allowed. What is done of a step that fails is
/// undone by the flow that it is a step of.
#[async_trait]
pub trait Vmm: Send + Sync + Sized + 'static {
    /// The runtime's name, as users are told it.
    const NAME: &'static str;
    /// Which numbers of processors its machines have.
    const CPUS: Cpus;
    /// Whether a machine that is not known to stand is let go on all the same: it may stand unnoticed, and one that runs is not
    /// harmed by it.
    const GOES_ON_TWICE: bool;
    /// How long one has to end that was told to.
    const QUITS_WITHIN: Duration;

    /// What an operator says of it.
    type Config: Send;
    /// What was found out about it.
    type Probed;
    /// What a machine writes to, on record.
    type Disk: Part;
    /// Memory that was written down, on record.
    type Memory: Part;
    /// What it needs to know of a machine beside, on record.
    type Own: Part;
    /// The way to the VMM of one machine.
    type Monitor: Send + Sync;
    /// What was started and is not yet the machine that it is to be.
    type Begun: Send;
    /// What is made of a machine's disk where it is copied.
    type Copy: Copy + Send + Sync;
    /// How memory was written.
    type Written: Send;

    /// Finds out what it can do, and opens its directory.
    async fn open(config: Self::Config) -> Result<House<Self>, RuntimeError>;
    /// What was found out.
    fn probed(&self) -> &Self::Probed;
    /// Its directory.
    fn data(&self) -> &Path;
    /// What its machines can do, where the node has volumes.
    fn capabilities(&self) -> Capabilities;
    /// How long a guest has until its envd listens.
    fn boots_within(&self) -> Duration;
    /// Which policies are kept: those of a machine that is there, or of one that is to be.
    fn offered(&self, own: Option<&Self::Own>) -> Offered;

    /// Makes a build of layers, the lowest first.
    fn import(house: &House<Self>, build: BuildId, layers: &[PathBuf]) -> Result<(), Step>;
    /// Makes a build of one directory.
    fn import_root(house: &House<Self>, build: BuildId, dir: &Path) -> Result<(), Step>;
    /// Whether all of a disk is there.
    fn is_whole(house: &House<Self>, disk: &Self::Disk) -> bool;
    /// Whether there can be such a disk, and such memory, as somebody tells of them.
    ///
    /// # Errors
    /// Why there cannot.
    fn is_possible(disk: &Self::Disk, memory: Option<&Self::Memory>) -> Result<(), &'static str>;
    /// Whether a disk whose images came from elsewhere is one. Memory is looked at by whoever starts from it.
    ///
    /// # Errors
    /// Why it is none.
    fn is_sound(house: &House<Self>, disk: &Self::Disk) -> Result<(), &'static str>;
    /// The files of memory, by the names of their states.
    fn memory_files(memory: &Self::Memory) -> Vec<(Uuid, MemoryFile)>;
    /// Where one is: a state is that file, or a directory of such.
    fn memory_file(house: &House<Self>, state: Uuid, file: MemoryFile) -> PathBuf;
    /// How much can be written to a disk.
    fn size_bytes(disk: &Self::Disk) -> u64;

    /// Makes what a machine starts from as it has to be, before it is looked at.
    async fn make_ready(house: &Arc<House<Self>>, spec: &MachineSpec) -> Result<(), RuntimeError>;
    /// What is on record of a machine that is to begin: its own disk, of at least so many bytes, on or after that which it starts from,
    /// and the numbers that are its alone.
    fn draw(
        house: &House<Self>,
        spec: &MachineSpec,
        from: &Self::Disk,
        bytes_min: u64,
        memory: Option<&Self::Memory>,
    ) -> Result<(Self::Disk, Self::Own), RuntimeError>;
    /// Numbers that are on no record any more are free.
    fn give_back(&self, own: &Self::Own);
    /// Why memory can be that of no machine on this host.
    fn misfit_here(house: &House<Self>, memory: &Self::Memory) -> Option<String>;
    /// Why memory cannot be that of a machine.
    fn misfit(house: &House<Self>, memory: &Self::Memory, machine: &Machine<Self>) -> Option<String>;
    /// Makes what a machine has on the host, and starts its VMM.
    async fn spawn(
        house: &Arc<House<Self>>,
        plan: &Plan<Self>,
    ) -> Result<(Process, Self::Begun), RuntimeError>;
    /// Has a VMM that was started boot its machine, or bring its memory in, and run it.
    async fn begin(
        house: &Arc<House<Self>>,
        machine: &Machine<Self>,
        process: &Process,
        begun: &mut Self::Begun,
    ) -> Result<Self::Monitor, RuntimeError>;
    /// Waits until envd listens in a machine that was begun; one whose memory was brought back is made itself first.
    async fn come_up(vm: &Vm<Self>, begun: Self::Begun) -> io::Result<()>;
    /// The way to a machine's agent.
    fn link(house: &House<Self>, machine: &Machine<Self>) -> Link;

    /// What this version cannot do with a machine that is to stand and go on, by name.
    fn may_stand(&self, what: &str) -> Result<(), RuntimeError>;
    /// Has a machine stand.
    async fn pause(vm: &Vm<Self>) -> Result<(), Step>;
    /// Lets it go on.
    async fn go_on(vm: &Vm<Self>) -> Result<(), Step>;
    /// Tells a VMM to bring its disk to an end, and to go. Nothing, where it is ended as it is.
    async fn quit(vm: &Vm<Self>);
    /// Puts the policy in force that is on record.
    fn set_policy(house: &House<Self>, machine: &Machine<Self>) -> Result<(), Step>;
    /// Facts for an operator, beside those of all machines.
    fn facts(vm: &Vm<Self>, machine: &Machine<Self>) -> Vec<(&'static str, String)>;

    /// Names what a disk is copied into.
    fn draw_copy() -> Self::Copy;
    /// The images that a copy is made of, which are to stay until it is on record.
    fn images_of_copy(machine: &Machine<Self>, copy: Self::Copy) -> Vec<Uuid>;
    /// Notes on a machine's record what is being written of it, and whether it stands only for that.
    fn note_writing(
        machine: &mut Machine<Self>,
        copy: Option<Self::Copy>,
        state: Option<Uuid>,
        stands_for_it: bool,
    );
    /// Notes that nothing is being written any more; `copied`: what was.
    fn note_written(machine: &mut Machine<Self>, copied: Option<Self::Copy>);
    /// Makes ready for a copy, while a machine runs.
    fn prepare_copy(house: &House<Self>, machine: &Machine<Self>, copy: Self::Copy) -> Result<(), Step>;
    /// Copies the disk of a machine that stands.
    async fn copy_disk(vm: &Vm<Self>, copy: Self::Copy) -> Result<(), Step>;
    /// Writes the memory of a machine that stands.
    async fn write_state(vm: &Vm<Self>, state: Uuid) -> Result<Self::Written, Step>;
    /// What was copied of a machine, as it was before that was noted.
    fn copied(machine: &Machine<Self>, copy: Self::Copy) -> Self::Disk;
    /// Makes a disk durable that nobody writes to any more.
    fn settle(house: &House<Self>, disk: &Self::Disk) -> Result<(), Step>;
    /// Measures memory that was written, and makes it durable.
    fn seal(
        house: &House<Self>,
        machine: &Machine<Self>,
        state: Uuid,
        written: Self::Written,
    ) -> Result<Self::Memory, Step>;
    /// What is done after a copy of a machine has become a build.
    async fn after_copy(vm: &Vm<Self>, into: BuildId, build: &Build<Self>) -> Result<(), RuntimeError>;
    /// Makes what is kept of a sandbox better to start from, when there is time.
    fn tidy_kept_soon(house: &Arc<House<Self>>, sandbox: SandboxId);

    /// Takes a machine's network away, whose VMM has ended, and what that had of its disk.
    fn release(house: &House<Self>, machine: &Machine<Self>) -> Result<(), Step>;
    /// Removes all of the machine of this name that is neither its record, its disk nor its network. What is not there is no error.
    fn clear(house: &House<Self>, id: &str) -> Result<(), Step>;
    /// Ends every process of the machine of this name, whether or not it is on record which they are.
    fn end_all(house: &House<Self>, id: &str);
    /// Why a machine that lives cannot go on under this daemon.
    fn must_end(&self, own: &Self::Own) -> Option<&'static str>;
    /// Asks a VMM how its machine is, and brings what was begun with it to an end. Says whether it stands.
    async fn look_at(
        house: &Arc<House<Self>>,
        process: &Process,
        machine: &mut Machine<Self>,
    ) -> Result<(Self::Monitor, bool), Step>;
    /// Makes the disk of a machine that is over one that others can start from.
    fn salvage(house: &House<Self>, machine: &mut Machine<Self>);
    /// Puts what all machines share in place, in which these go on, and clears away what is nobody's.
    fn reopen(house: &House<Self>, living: &[Machine<Self>]) -> Result<(), Step>;
    /// Takes it back, when no machine is left.
    fn close(&self);
}
