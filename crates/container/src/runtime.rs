//! The runtime: starting machines, and finding those of earlier daemons.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::{BuildId, Memory, MiB, SandboxId};
use ports::blobs::ByteStream;
use ports::root::Changes;
use ports::runtime::{Capabilities, DiskOrigin, DiskSpace, PartImages, Parts, Recovered};
use ports::{Machine, MachineSpec, Runtime, RuntimeError, VolumeFiles};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::build::{Build, LAYERS_MAX};
use crate::changes;
use crate::disk::RELEASED_WITHIN;
use crate::house::{Fate, Give, House, Shape};
use crate::import;
use crate::machine::{Container, Handle, panicked};
use crate::pool::Pool;
use crate::record::Record;
use crate::slot::Slot;
use crate::step::Step;

/// What the runtime is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its directory, absolute.
    pub data: PathBuf,
    /// The program `atoll-envd`, static.
    pub envd: PathBuf,
    /// The program `atoll-sudo`, static.
    pub sudo: PathBuf,
    /// The program `atoll-launcher`.
    pub launcher: PathBuf,
    /// Slots that are kept ready for each of the shapes last asked for.
    pub pool: usize,
    /// The program `criu`, for memory that outlives processes; without it there is none.
    pub criu: Option<PathBuf>,
}

/// What containers can do: with a CRIU that works here, or without.
#[must_use]
pub const fn capabilities(durable_memory: bool) -> Capabilities {
    Capabilities {
        durable_memory,
        freeze: true,
        own_kernel: false,
        network: true,
        volumes: true,
        roots: true,
        portable_builds: true,
    }
}

/// Slots that are under way are made and given back in milliseconds; what waits for a disk takes longer.
const CLOSED_WITHIN: Duration = Duration::from_secs(60);

/// Disks that are walked at once: each takes a thread for as long as its files last, whether or not its client waits.
const LOOKS_MAX: usize = 4;

/// Containers of this machine.
pub struct Containers {
    house: Arc<House>,
    pool: Arc<Pool>,
    sudo: PathBuf,
    /// Whose turn it is to look at the whole of a disk.
    looks: Arc<Semaphore>,
}

impl Containers {
    /// Opens the runtime's directory and starts its launcher. [`Runtime::recover`] comes next.
    ///
    /// # Errors
    /// The machine lacks something, or the directory cannot be used; `probe` says more.
    pub fn open(config: Config) -> Result<Self, RuntimeError> {
        let house = Arc::new(House::open(&config)?);
        Ok(Self {
            house,
            pool: Arc::new(Pool::new(config.pool)),
            sudo: config.sudo,
            looks: Arc::new(Semaphore::new(LOOKS_MAX)),
        })
    }

    /// Held for as long as the work goes on, which nobody may be waiting for any more.
    async fn turn_to_look(&self) -> OwnedSemaphorePermit {
        let turn = Arc::clone(&self.looks).acquire_owned().await;
        turn.expect("nobody closes it")
    }

    /// Makes a build of this machine's own `/usr` under a fresh root.
    ///
    /// # Errors
    /// The layers cannot be written, or `/usr` cannot be shared.
    pub async fn import_host(&self, build: BuildId) -> Result<(), RuntimeError> {
        let sudo = self.sudo.clone();
        self.make(build, move |_, layers| import::host(layers, &sudo))
            .await
    }

    /// Makes a build of a whole root in a directory, which must stay as it is.
    ///
    /// # Errors
    /// The layers cannot be written.
    pub async fn import_root(&self, build: BuildId, dir: PathBuf) -> Result<(), RuntimeError> {
        let sudo = self.sudo.clone();
        self.make(build, move |_, layers| import::root(layers, &dir, &sudo))
            .await
    }

    async fn make(
        &self,
        build: BuildId,
        make: impl FnOnce(&House, &Path) -> Result<Build, Step> + Send + 'static,
    ) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        blocking(move || {
            let _under_way = house.builds.begin(&[build]);
            let _alone = house.builds.making();
            let made = make(&house, &house.builds.layers(build))?;
            Ok(house.builds.put(build, &made)?)
        })
        .await
    }

    /// The files in the volumes of this node.
    #[must_use]
    pub fn volume_files(&self) -> Arc<dyn VolumeFiles> {
        let house = Arc::clone(&self.house);
        let has_room = move || house.disks.has_room().is_ok();
        Arc::new(volumes::Files::new(Arc::clone(&self.house.volumes), has_room))
    }

    /// Keeps slots for this build ready from now on.
    pub fn prewarm(&self, build: BuildId, disk: MiB) {
        self.pool.want(Shape { build, disk });
        let house = Arc::clone(&self.house);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.house
                .work
                .spawn_blocking_on(move || house.try_memory(Shape { build, disk }), &runtime);
        }
    }

    /// Lays the layers of roots by path, as on kernels that do not take them by descriptor (before Linux 6.15). Without it
    /// what the kernel takes is found out.
    pub fn lay_by_path(&self) {
        self.house.laying.set_by_path();
    }

    /// Whether disks lie in a file that was made for them.
    #[must_use]
    pub fn disks_are_in_a_file(&self) -> bool {
        self.house.disks.volume().is_loop()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::task::spawn_blocking(work).await.map_err(panicked)?
}

#[async_trait]
impl Runtime for Containers {
    fn name(&self) -> &'static str {
        "container"
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(self.house.recall.works())
    }

    async fn recover(&self) -> Result<Recovered, RuntimeError> {
        let house = Arc::clone(&self.house);
        let (living, disks, reclaimed) = blocking(move || settle(&house)).await?;
        let mut machines: Vec<(MachineSpec, Arc<dyn Machine>)> = Vec::new();
        for (slot, spec) in living {
            let container = Container::watch(Arc::clone(&self.house), slot, spec.clone())?;
            machines.push((spec, Arc::new(Handle(container))));
        }
        self.house
            .work
            .spawn(Arc::clone(&self.pool).fill(Arc::clone(&self.house)));
        Ok(Recovered {
            machines,
            disks,
            reclaimed,
        })
    }

    fn slots_ready(&self) -> u32 {
        u32::try_from(self.pool.ready()).unwrap_or(u32::MAX)
    }

    fn disk_space(&self) -> Option<DiskSpace> {
        self.house.disks.volume().space().ok()
    }

    async fn has_build(&self, build: BuildId) -> bool {
        self.house.builds.has(build)
    }

    async fn start(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>, RuntimeError> {
        let (house, pool) = (Arc::clone(&self.house), Arc::clone(&self.pool));
        let started = self
            .house
            .work
            .spawn_blocking(move || Started::make(&house, &pool, spec));
        // If nobody waits any more, what comes of it is dropped, and given back.
        Ok(started.await.map_err(panicked)??.hand_over())
    }

    async fn import(&self, build: BuildId, layers: Vec<PathBuf>) -> Result<(), RuntimeError> {
        if layers.len() >= LAYERS_MAX {
            return Err(self.cannot(&format!(
                "an image of {} layers: at most {} can be laid on one another",
                layers.len(),
                LAYERS_MAX - 1
            )));
        }
        let sudo = self.sudo.clone();
        self.make(build, move |house, own| {
            import::image(&house.laying, own, &layers, &sudo)
        })
        .await
    }

    async fn seal(&self, from: BuildId, into: BuildId) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        // It goes on when nobody waits for it any more.
        let sealing = self.house.work.spawn_blocking(move || house.seal(from, into));
        sealing.await.map_err(panicked)?
    }

    async fn builds(&self) -> Vec<BuildId> {
        self.house.builds.all()
    }

    async fn remove_builds(&self, builds: &[BuildId]) -> Result<(), RuntimeError> {
        let (house, pool, builds) = (Arc::clone(&self.house), Arc::clone(&self.pool), builds.to_vec());
        let removing = self
            .house
            .work
            .spawn_blocking(move || house.remove_builds(&pool, &builds));
        removing.await.map_err(panicked)?
    }

    async fn layers_of(&self, build: BuildId) -> Vec<PathBuf> {
        let own = self.house.builds.all_layers();
        let Ok(Some(build)) = self.house.builds.get(build) else {
            return Vec::new();
        };
        let is_given = |dir: &&Path| !dir.starts_with(&own) && *dir != Path::new("/usr");
        build.dirs().filter(is_given).map(Path::to_owned).collect()
    }

    async fn kin_of(&self, build: BuildId) -> Vec<BuildId> {
        let record = self.house.builds.get(build).ok().flatten();
        record.map(|record| record.kin(build)).unwrap_or_default()
    }

    async fn memory_of(&self, build: BuildId) -> Memory {
        let build = self.house.builds.get(build);
        build.ok().flatten().map_or(Memory::None, |build| build.memory)
    }

    async fn changes(&self, build: BuildId, since: BuildId) -> Result<Changes, RuntimeError> {
        let turn = self.turn_to_look().await;
        let (house, pool) = (Arc::clone(&self.house), Arc::clone(&self.pool));
        let looking = self
            .house
            .work
            .spawn_blocking(move || changes::changes(&house, &pool, turn, build, since));
        looking.await.map_err(panicked)?
    }

    async fn export(&self, build: BuildId) -> Result<ByteStream, RuntimeError> {
        let turn = self.turn_to_look().await;
        let (house, pool) = (Arc::clone(&self.house), Arc::clone(&self.pool));
        let exporting = self
            .house
            .work
            .spawn_blocking(move || changes::export(&house, &pool, turn, build));
        exporting.await.map_err(panicked)?
    }

    async fn parts(&self, build: BuildId) -> Result<Parts, RuntimeError> {
        let house = Arc::clone(&self.house);
        blocking(move || house.parts(build)).await
    }

    async fn assemble(
        &self,
        build: BuildId,
        record: &serde_json::Value,
        given: Vec<PathBuf>,
        images: &dyn PartImages,
    ) -> Result<(), RuntimeError> {
        let assembled = self.house.assemble(build, record, given, images, &self.sudo);
        assembled.await
    }

    async fn copy_kept(&self, sandbox: SandboxId, into: BuildId) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        // It goes on when nobody waits for it any more.
        let copying = self
            .house
            .work
            .spawn_blocking(move || house.copy_kept(sandbox, into));
        copying.await.map_err(panicked)?
    }

    async fn discard(&self, sandbox: SandboxId) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        blocking(move || {
            house.disks.discard(sandbox)?;
            house.disks.forget_copies(sandbox);
            Ok(())
        })
        .await
    }

    async fn close(&self) {
        let slots = self.pool.close();
        for slot in slots {
            self.house.give_back_soon(slot.number, Fate::Discard);
        }
        self.house.work.close();
        if tokio::time::timeout(CLOSED_WITHIN, self.house.work.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                under_way = self.house.work.len(),
                "the runtime closes while slots are under way; they stay on record"
            );
        }
        let house = Arc::clone(&self.house);
        let _ = blocking(move || {
            // Where machines live on, these are in use and stay.
            house.sealed.unmount_all();
            let is_empty = house.records.all().is_empty();
            let patience = if is_empty { RELEASED_WITHIN } else { Duration::ZERO };
            house.volumes.unmount_all(patience);
            house.disks.volume().close(patience);
            house.cgroups.close();
            if is_empty {
                house.close_net();
            }
            Ok(())
        })
        .await;
    }
}

/// A machine that nobody holds yet. Dropped, it is given back.
struct Started {
    house: Arc<House>,
    /// `None` when it has been handed over.
    container: Option<Arc<Container>>,
    number: u32,
    fate: Fate,
    /// The sandbox whose kept disk and memory it goes on from.
    restored_from: Option<SandboxId>,
}

impl Started {
    fn make(house: &Arc<House>, pool: &Pool, spec: MachineSpec) -> Result<Self, RuntimeError> {
        let shape = Shape {
            build: spec.build,
            disk: spec.resources.disk,
        };
        let (slot, fate, restored_from) = match house.restored(&spec)? {
            // What it is restored from stays until it is handed over.
            Some(slot) => (
                slot,
                Fate::Discard,
                (spec.disk == DiskOrigin::Kept).then_some(spec.sandbox),
            ),
            None => {
                let (give, fate, ready) = match spec.disk {
                    DiskOrigin::Fresh => {
                        house.disks.has_room()?;
                        (Give::Fresh, Fate::Discard, ready(house, pool, shape))
                    }
                    DiskOrigin::Single => {
                        house.disks.has_room()?;
                        (Give::Fresh, Fate::Discard, None)
                    }
                    DiskOrigin::Kept => (Give::Kept(spec.sandbox), Fate::Keep(spec.sandbox), None),
                };
                let slot = ready.map_or_else(|| house.prepare(shape, give, spec.resources), Ok)?;
                (slot, fate, None)
            }
        };
        let number = slot.number;
        let claimed = Container::claim(house, &slot, &spec)
            .and_then(|()| Ok(Container::watch(Arc::clone(house), slot, spec)?));
        match claimed {
            Ok(container) => Ok(Self {
                house: Arc::clone(house),
                container: Some(container),
                number,
                fate,
                restored_from,
            }),
            Err(failed) => {
                house.give_back(number, fate);
                Err(failed)
            }
        }
    }

    fn hand_over(mut self) -> Arc<dyn Machine> {
        let container = self.container.take().expect("it is handed over once");
        if let Some(sandbox) = self.restored_from {
            self.house.let_go_of_kept(sandbox);
        }
        Arc::new(Handle(container))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.container.take().is_some() {
            self.house.give_back_soon(self.number, self.fate);
        }
    }
}

/// A slot of the pool that lives still.
fn ready(house: &Arc<House>, pool: &Pool, shape: Shape) -> Option<Slot> {
    std::iter::from_fn(|| pool.take(shape)).find(|slot| {
        let alive = slot.is_alive();
        if !alive {
            house.give_back_soon(slot.number, Fate::Discard);
        }
        alive
    })
}

type Living = Vec<(Slot, MachineSpec)>;

/// Sorts what is on record, and what is not, into machines that live and remains that are cleared away.
fn settle(house: &House) -> Result<(Living, Vec<SandboxId>, usize), RuntimeError> {
    // What earlier daemons mounted is found again when it is needed.
    house.sealed.unmount_all();
    house.volumes.recover();
    house.disks.sweep_kept();
    let (mut living, mut dead) = (Vec::new(), Vec::new());
    for (number, record) in house.records.all() {
        let copying = record.as_ref().is_some_and(|record| record.copying);
        let claimed = record
            .as_ref()
            .and_then(|record| Some((record.process.as_ref()?, record.spec.as_ref()?, record.keep)));
        let adopted = claimed.filter(|(.., keep)| !keep).and_then(|(process, spec, _)| {
            let shape = Shape {
                build: spec.build,
                disk: spec.resources.disk,
            };
            let restored = record.as_ref().is_some_and(|record| record.restored);
            Slot::adopt(house, number, process, shape, restored)
                .ok()
                .map(|slot| (slot, spec.clone()))
        });
        match adopted {
            Some(machine) => {
                house.is_taken(number);
                // What is kept of whoever lives is of an earlier day.
                house.disks.discard(machine.1.sandbox)?;
                for volume in &machine.1.volumes {
                    house.volumes.is_lent(volume.volume, &number.to_string());
                }
                if copying {
                    machine.0.cgroup.thaw()?;
                    let record = record.expect("a machine is adopted by its record");
                    house.records.write(&Record {
                        copying: false,
                        ..record
                    })?;
                }
                living.push(machine);
            }
            // Whoever lost its machine may still want its disk: its owner decides.
            None => dead.push((
                number,
                record
                    .and_then(|record| record.owner())
                    .map_or(Fate::Discard, Fate::Keep),
            )),
        }
    }
    let known: BTreeSet<u32> = living
        .iter()
        .map(|(slot, _)| slot.number)
        .chain(dead.iter().map(|(number, _)| *number))
        .collect();
    let unknown: BTreeSet<u32> = house
        .cgroups
        .slots()
        .into_iter()
        .chain(house.disks.slots())
        .filter(|n| !known.contains(n))
        .collect();
    dead.extend(unknown.into_iter().map(|number| (number, Fate::Discard)));

    let adopted: Vec<_> = living
        .iter()
        .map(|(slot, spec)| (slot.number, spec.network.clone()))
        .collect();
    house.open_net(&adopted)?;
    let reclaimed = dead.len();
    for (number, fate) in dead {
        if !house.give_back(number, fate) {
            house.is_taken(number);
        }
    }
    if let Err(error) = house.clear_builds() {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            cause = %error.source,
            "what no build needs stays"
        );
    }
    let kept = house.disks.all_kept();
    let there = living.iter().map(|(_, spec)| spec.sandbox);
    house
        .disks
        .sweep_copies(&there.chain(kept.iter().copied()).collect());
    let swept = house.net()?.sweep()?;
    tracing::debug!(reclaimed, swept, "cleared away what earlier daemons left");
    Ok((living, kept, reclaimed))
}
