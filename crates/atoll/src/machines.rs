//! The runtime that was chosen, and what of it is not a runtime's: where its first template comes from.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use container::Containers;
use fc_control::Firecrackers;
use model::{BuildId, MiB, Resources};
use ports::{Runtime, VolumeFiles};
use qemu::Qemus;

use crate::kernel;
use crate::no_volumes::NoVolumes;
use crate::out;
use crate::settings::{Resolved, RuntimeKind};

/// What makes this node's machines.
#[derive(Clone)]
pub(crate) enum Machines {
    /// Namespaces.
    Containers(Arc<Containers>),
    /// Virtual machines under QEMU; where their roots are put together.
    Qemu(Arc<Qemus>, PathBuf),
    /// Virtual machines under Firecracker; where their roots are put together.
    Firecracker(Arc<Firecrackers>, PathBuf),
}

impl Machines {
    /// Opens the runtime that the settings name.
    pub(crate) async fn open(settings: &Resolved) -> Result<Self> {
        match settings.runtime {
            RuntimeKind::Container => {
                let containers = Containers::open(container_config(settings)?).context(
                    "the container runtime cannot be opened; `atoll doctor` says what this machine lacks",
                )?;
                Ok(Self::Containers(Arc::new(containers)))
            }
            RuntimeKind::Qemu => {
                let config = qemu_config(settings)?;
                let data = config.data.clone();
                let qemus = Qemus::open(config).await.context(
                    "the QEMU runtime cannot be opened; `atoll doctor` says what this machine lacks",
                )?;
                let probed = qemus.probed();
                if let Some(why) = &probed.why_not_kvm {
                    out::say(format_args!(
                        "QEMU {} emulates the processor, which is many times slower than KVM: {why}",
                        probed.version
                    ));
                }
                Ok(Self::Qemu(Arc::new(qemus), data))
            }
            RuntimeKind::Firecracker => {
                let config = firecracker_config(settings)?;
                let data = config.data.clone();
                let firecrackers = Firecrackers::open(config).await.context(
                    "the Firecracker runtime cannot be opened; `atoll doctor` says what this machine lacks",
                )?;
                Ok(Self::Firecracker(Arc::new(firecrackers), data))
            }
        }
    }

    /// As the node sees it.
    pub(crate) fn runtime(&self) -> Arc<dyn Runtime> {
        match self {
            Self::Containers(containers) => Arc::clone(containers) as _,
            Self::Qemu(qemus, _) => Arc::clone(qemus) as _,
            Self::Firecracker(firecrackers, _) => Arc::clone(firecrackers) as _,
        }
    }

    /// The files of volumes.
    pub(crate) fn volume_files(&self) -> Arc<dyn VolumeFiles> {
        let files = match self {
            Self::Containers(containers) => Some(containers.volume_files()),
            Self::Qemu(qemus, _) => qemus.volume_files(),
            Self::Firecracker(firecrackers, _) => firecrackers.volume_files(),
        };
        files.unwrap_or_else(|| {
            Arc::new(NoVolumes(format!(
                "the {} runtime without root",
                self.runtime().name()
            )))
        })
    }

    /// Makes a build of this machine's own programs, of which sandboxes of this size will start.
    pub(crate) async fn import_host(&self, build: BuildId, resources: Resources) -> Result<()> {
        match self {
            Self::Containers(containers) => Ok(containers.import_host(build).await?),
            Self::Qemu(_, data) | Self::Firecracker(_, data) => {
                self.import_lean(data, build, resources).await
            }
        }
    }

    /// A root disk of this machine's packages, a machine that has booted from it, and that one's memory.
    async fn import_lean(&self, data: &Path, build: BuildId, resources: Resources) -> Result<()> {
        let staging = data.join("staging").join(format!("host-{build}"));
        let root = staging.join("root");
        std::fs::create_dir_all(&staging).with_context(|| format!("cannot make {}", staging.display()))?;
        let cold = BuildId::random();
        let made = async {
            let filled = root.clone();
            tokio::task::spawn_blocking(move || rootfs::lean_host(&filled)).await??;
            self.import_root(cold, root).await
        };
        let made = made.await;
        let cleared = std::fs::remove_dir_all(&staging);
        made?;
        cleared.with_context(|| format!("cannot remove {}", staging.display()))?;
        out::say("booting a machine of it once, from whose memory sandboxes go on");
        let runtime = self.runtime();
        let warmed = node::warm(&runtime, cold, build, resources).await;
        runtime.remove_builds(&[cold]).await?;
        warmed?;
        Ok(())
    }

    async fn import_root(&self, build: BuildId, root: PathBuf) -> Result<()> {
        match self {
            Self::Containers(containers) => containers.import_root(build, root).await?,
            Self::Qemu(qemus, _) => qemus.import_root(build, root).await?,
            Self::Firecracker(firecrackers, _) => firecrackers.import_root(build, root).await?,
        }
        Ok(())
    }

    /// Keeps machines of a build ready from now on, where the runtime prepares any.
    pub(crate) fn prewarm(&self, build: BuildId, disk: MiB) {
        if let Self::Containers(containers) = self {
            containers.prewarm(build, disk);
        }
    }
}

/// The programs that lie beside this one.
fn container_config(settings: &Resolved) -> Result<container::Config> {
    Ok(container::Config {
        data: settings.data_dir.join("container"),
        envd: beside("atoll-envd")?,
        sudo: beside("atoll-sudo")?,
        launcher: beside("atoll-launcher")?,
        pool: settings.pool,
        criu: settings.criu.clone(),
    })
}

fn qemu_config(settings: &Resolved) -> Result<qemu::Config> {
    let bundle = kernel::bundle(settings)?;
    let has_network = rustix::process::geteuid().is_root();
    if !has_network {
        out::say("without root, sandboxes reach nothing outside");
    }
    Ok(qemu::Config {
        data: settings.data_dir.join("qemu"),
        qemu: settings.qemu.clone(),
        guest: qemu::Guest::from(&bundle),
        network: has_network,
        offline: !has_network,
        boots_within: qemu::Config::BOOTS_WITHIN,
    })
}

fn firecracker_config(settings: &Resolved) -> Result<fc_control::Config> {
    let bundle = kernel::bundle(settings)?;
    Ok(fc_control::Config {
        // Paths of its sockets are long.
        data: settings.data_dir.join("fc"),
        firecracker: settings.firecracker.clone(),
        jailer: settings.firecracker.with_file_name("jailer"),
        guest: fc_control::Guest::from(&bundle),
        network: true,
        offline: false,
        // 169.254.169.254 is nobody's: whoever asks there asks for a cloud's secrets.
        metadata: false,
        differences: true,
        accepted: settings.firecracker_accepts.clone(),
        boots_within: fc_control::Config::BOOTS_WITHIN,
    })
}

/// A program beside this one.
pub(crate) fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let path = own.with_file_name(name);
    anyhow::ensure!(
        path.exists(),
        "{} is missing: it belongs beside {}",
        path.display(),
        own.display()
    );
    Ok(path)
}
