//! The runtime that was chosen, and what of it is not a runtime's: where its first template comes from.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use container::Containers;
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
    /// Virtual machines under QEMU; where its roots are put together.
    Qemu(Arc<Qemus>, PathBuf),
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
        }
    }

    /// As the node sees it.
    pub(crate) fn runtime(&self) -> Arc<dyn Runtime> {
        match self {
            Self::Containers(containers) => Arc::clone(containers) as _,
            Self::Qemu(qemus, _) => Arc::clone(qemus) as _,
        }
    }

    /// The files of volumes.
    pub(crate) fn volume_files(&self) -> Arc<dyn VolumeFiles> {
        match self {
            Self::Containers(containers) => Arc::clone(containers) as _,
            Self::Qemu(..) => Arc::new(NoVolumes("qemu")),
        }
    }

    /// Makes a build of this machine's own programs, of which sandboxes of this size will start.
    pub(crate) async fn import_host(&self, build: BuildId, resources: Resources) -> Result<()> {
        match self {
            Self::Containers(containers) => Ok(containers.import_host(build).await?),
            Self::Qemu(qemus, data) => import_lean(qemus, data, build, resources).await,
        }
    }

    /// Keeps machines of a build ready from now on, where the runtime prepares any.
    pub(crate) fn prewarm(&self, build: BuildId, disk: MiB) {
        if let Self::Containers(containers) = self {
            containers.prewarm(build, disk);
        }
    }
}

/// A root disk of this machine's packages, a machine that has booted from it, and that one's memory.
async fn import_lean(qemus: &Arc<Qemus>, data: &Path, build: BuildId, resources: Resources) -> Result<()> {
    let staging = data.join("staging").join(format!("host-{build}"));
    let root = staging.join("root");
    std::fs::create_dir_all(&staging).with_context(|| format!("cannot make {}", staging.display()))?;
    let cold = BuildId::random();
    let made = async {
        let filled = root.clone();
        tokio::task::spawn_blocking(move || rootfs::lean_host(&filled)).await??;
        qemus.import_root(cold, root).await?;
        anyhow::Ok(())
    };
    let made = made.await;
    let cleared = std::fs::remove_dir_all(&staging);
    made?;
    cleared.with_context(|| format!("cannot remove {}", staging.display()))?;
    out::say("booting a machine of it once, from whose memory sandboxes go on");
    let runtime: Arc<dyn Runtime> = Arc::clone(qemus) as _;
    let warmed = node::warm(&runtime, cold, build, resources).await;
    runtime.remove_builds(&[cold]).await?;
    warmed?;
    Ok(())
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
        qemu_img: settings.qemu.with_file_name("qemu-img"),
        guest: qemu::Guest::from(&bundle),
        network: has_network,
        offline: !has_network,
        boots_within: qemu::Config::BOOTS_WITHIN,
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
