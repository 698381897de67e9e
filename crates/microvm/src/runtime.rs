//! The runtime, as the node sees it: machines are started, and those of earlier daemons found; builds are there.
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::{BuildId, SandboxId};
use ports::runtime::{Capabilities, DiskSpace, PartImages, Parts, Recovered};
use ports::{MachineSpec, Runtime, RuntimeError, VolumeFiles};
use tokio::sync::oneshot;
use volumes::Files;

use crate::house::House;
use crate::import;
use crate::machine::Handle;
use crate::vmm::{Build, Vmm};
use crate::work::{blocking, panicked};

/// What is under way takes at most as long as a boot.
const CLOSED_WITHIN: Duration = Duration::from_secs(60);
/// Whoever looked into a volume lets go of it a moment later.
const UNMOUNTED_WITHIN: Duration = Duration::from_secs(2);

/// The virtual machines of this host under one VMM.
pub struct Microvms<V: Vmm> {
    /// What they share.
    pub house: Arc<House<V>>,
}

impl<V: Vmm> Microvms<V> {
    /// Finds out what this host's VMM can do, and opens the runtime's directory. [`Runtime::recover`] comes next.
    ///
    /// # Errors
    /// It cannot be used, or the directory cannot.
    pub async fn open(config: V::Config) -> Result<Self, RuntimeError> {
        Ok(Self::of(V::open(config).await?))
    }

    /// Those of a house that is open.
    #[must_use]
    pub fn of(house: House<V>) -> Self {
        Self {
            house: Arc::new(house),
        }
    }

    /// What was found out about the VMM.
    #[must_use]
    pub fn probed(&self) -> &V::Probed {
        self.house.vmm.probed()
    }

    /// Makes a build of a whole root in a directory.
    ///
    /// # Errors
    /// Its disk cannot be made.
    pub async fn import_root(&self, build: BuildId, dir: PathBuf) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        blocking(move || V::import_root(&house, build, &dir)).await
    }

    /// The files in the volumes of this node; `None` where the daemon is not root, and there are none.
    #[must_use]
    pub fn volume_files(&self) -> Option<Arc<dyn VolumeFiles>> {
        let (house, volumes) = (Arc::clone(&self.house), self.house.volumes.clone()?);
        let has_room = move || house.has_room().is_ok();
        Some(Arc::new(Files::new(volumes, has_room)))
    }

    /// Unmounts what earlier daemons mounted, before any of it is used again.
    async fn recover_volumes(&self) -> Result<(), RuntimeError> {
        let Some(volumes) = self.house.volumes.clone() else {
            return Ok(());
        };
        blocking(move || {
            volumes.recover();
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl<V: Vmm> Runtime for Microvms<V> {
    fn name(&self) -> &'static str {
        V::NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            volumes: self.house.volumes.is_some(),
            ..self.house.vmm.capabilities()
        }
    }

    async fn recover(&self) -> Result<Recovered, RuntimeError> {
        let mut recovered = Recovered {
            machines: Vec::new(),
            disks: Vec::new(),
            reclaimed: 0,
        };
        self.recover_volumes().await?;
        let mut living = Vec::new();
        for (execution, record) in self.house.book.machines.all() {
            let adopted = match &record {
                Some(record) => self.house.adopt(record).await?,
                None => None,
            };
            if let Some(vm) = adopted {
                let machine = vm.record();
                // What is kept of whoever lives is of an earlier day.
                self.house.book.kept.remove(&machine.spec.sandbox)?;
                recovered
                    .machines
                    .push((machine.spec.clone(), Arc::new(Handle(vm))));
                living.push(machine);
                continue;
            }
            self.house.end_remains(execution, record).await?;
            recovered.reclaimed += 1;
        }
        let sandboxes: BTreeSet<SandboxId> = living.iter().map(|machine| machine.spec.sandbox).collect();
        let house = Arc::clone(&self.house);
        blocking(move || {
            V::reopen(&house, &living)?;
            import::clear(house.vmm.data())?;
            house.sweep();
            Ok(())
        })
        .await?;
        let kept = self.house.book.kept.all().into_iter().map(|(sandbox, _)| sandbox);
        recovered.disks = kept.filter(|sandbox| !sandboxes.contains(sandbox)).collect();
        for sandbox in &recovered.disks {
            V::tidy_kept_soon(&self.house, *sandbox);
        }
        Ok(recovered)
    }

    async fn has_build(&self, build: BuildId) -> bool {
        self.house.build(build).ok().flatten().is_some()
    }

    async fn start(&self, spec: MachineSpec) -> Result<Arc<dyn ports::Machine>, RuntimeError> {
        let house = Arc::clone(&self.house);
        let (tell, told) = oneshot::channel();
        self.house.work.spawn(async move {
            // If nobody waits any more, what comes of it is dropped, and given back.
            let _ = tell.send(house.bring_up(spec).await);
        });
        let started = told.await.map_err(|_| RuntimeError::Step {
            step: "starting a machine".to_owned(),
            source: io::Error::other("the task panicked"),
        })?;
        started?.hand_over()
    }

    async fn import(&self, build: BuildId, layers: Vec<PathBuf>) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        let work = &self.house.work;
        let importing = work.spawn_blocking(move || V::import(&house, build, &layers));
        Ok(importing.await.map_err(panicked)??)
    }

    async fn builds(&self) -> Vec<BuildId> {
        let builds = self.house.book.builds.all().into_iter();
        builds.map(|(build, _)| build).collect()
    }

    async fn remove_builds(&self, builds: &[BuildId]) -> Result<(), RuntimeError> {
        let (house, builds) = (Arc::clone(&self.house), builds.to_vec());
        blocking(move || {
            {
                let _turn = house.turn();
                for build in &builds {
                    house.book.builds.remove(build)?;
                }
            }
            house.sweep();
            Ok(())
        })
        .await
    }

    async fn seal(&self, from: BuildId, into: BuildId) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        blocking(move || {
            let _turn = house.turn();
            // No machine writes to its build's disk: a build over another is the same disk, without its memory.
            let Some(build) = house.build(from)? else {
                return Ok(false);
            };
            let sealed = Build::<V> {
                memory: None,
                ..build
            };
            house.book.builds.write(&into, &sealed)?;
            Ok(true)
        })
        .await?
        .then_some(())
        .ok_or(RuntimeError::NoBuild(from))
    }

    async fn parts(&self, build: BuildId) -> Result<Parts, RuntimeError> {
        let house = Arc::clone(&self.house);
        let telling = tokio::task::spawn_blocking(move || house.parts(build));
        telling.await.map_err(panicked)?
    }

    async fn assemble(
        &self,
        build: BuildId,
        record: &serde_json::Value,
        given: Vec<PathBuf>,
        images: &dyn PartImages,
    ) -> Result<(), RuntimeError> {
        if !given.is_empty() {
            return Err(RuntimeError::CannotAssemble {
                build,
                why: "its disks stand on layers of images, as no machine's here do".to_owned(),
                source: None,
            });
        }
        self.house.assemble(build, record, images).await
    }

    async fn copy_kept(&self, sandbox: SandboxId, into: BuildId) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        let copying = tokio::task::spawn_blocking(move || house.copy_kept(sandbox, into));
        copying.await.map_err(panicked)?
    }

    async fn kin_of(&self, build: BuildId) -> Vec<BuildId> {
        let house = Arc::clone(&self.house);
        let kin = tokio::task::spawn_blocking(move || house.kin_of(build)).await;
        kin.unwrap_or_default()
    }

    async fn memory_of(&self, build: BuildId) -> model::Memory {
        let build = self.house.build(build).ok().flatten();
        if build.is_some_and(|build| build.memory.is_some()) {
            model::Memory::Durable
        } else {
            model::Memory::None
        }
    }

    async fn discard(&self, sandbox: SandboxId) -> Result<(), RuntimeError> {
        let house = Arc::clone(&self.house);
        blocking(move || {
            {
                let _turn = house.turn();
                house.book.kept.remove(&sandbox)?;
            }
            house.sweep();
            Ok(())
        })
        .await
    }

    fn disk_space(&self) -> Option<DiskSpace> {
        let (total_bytes, free_bytes) = self.house.images.space().ok()?;
        Some(DiskSpace {
            total_bytes,
            free_bytes,
        })
    }

    async fn close(&self) {
        self.house.work.close();
        let all = self.house.work.wait();
        if tokio::time::timeout(CLOSED_WITHIN, all).await.is_err() {
            tracing::warn!(
                under_way = self.house.work.len(),
                "the runtime closes while machines are under way; they stay on record"
            );
        }
        let house = Arc::clone(&self.house);
        let _ = blocking(move || {
            if house.book.machines.all().is_empty() {
                if let Some(volumes) = &house.volumes {
                    volumes.unmount_all(UNMOUNTED_WITHIN);
                }
                house.vmm.close();
            }
            Ok(())
        })
        .await;
    }
}
