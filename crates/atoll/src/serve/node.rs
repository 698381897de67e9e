//! The role `node`: everything on one machine. It knows no database and no Redis.
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use artifact::Images;
use model::NodeId;
use node::LocalNode;
use ports::discovery::Capacity;
use ports::{Blobs, Node as _, VolumeFiles};

use super::members::Members;
use crate::data::DataDir;
use crate::images;
use crate::machines::Machines;
use crate::settings::Resolved;
use crate::settings::cluster::ClusterSettings;
use crate::tasks::Tasks;
use crate::{base, out};

/// The node answers in milliseconds; whoever asks for health waits for a few seconds.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// This machine's agent.
pub(crate) struct NodeRole {
    pub(crate) agent: Arc<LocalNode>,
    machines: Machines,
}

impl NodeRole {
    /// Takes over what earlier daemons left, and has a base to start from.
    pub(crate) async fn open(
        settings: &Resolved,
        cluster: &ClusterSettings,
        id: NodeId,
        data: &DataDir,
        tasks: &mut Tasks,
    ) -> Result<Self> {
        data.belong_to(settings.runtime.name())?;
        let machines = Machines::open(settings).await?;
        let can = machines.runtime().capabilities();
        anyhow::ensure!(
            can.portable_builds || !settings.blobs.hold_builds(),
            "the {} runtime cannot keep builds in the blobs: leave `builds` out of [blobs], or choose another --runtime",
            machines.runtime().name()
        );
        let config = node::Config {
            id,
            data: settings.data_dir.join("node"),
        };
        let agent = LocalNode::open(config, machines.runtime()).context("the node cannot be opened")?;
        let images = Images::open(settings.data_dir.join("images"), settings.images.clone())
            .context("images cannot be kept: see [images] of the configuration")?
            .keeping_archives(settings.blobs.hold_builds());
        agent.build_from(Arc::new(images.clone()));
        let found = agent
            .recover()
            .await
            .context("what earlier daemons left cannot be recovered")?;
        if found != node::Found::default() {
            out::say(format_args!(
                "found {} running and {} paused sandboxes, cleared away {} remains",
                found.running, found.paused, found.reclaimed
            ));
        }
        base::ensure_here(&machines, base::of_fleet(&cluster.name)).await?;
        let blobs: Arc<dyn Blobs> = Arc::new(
            settings
                .blobs
                .open(&settings.data_dir)
                .context("the blobs cannot be opened")?,
        );
        agent.stow_in(blobs);
        let (watching, stop) = (Arc::clone(&agent), tasks.stop());
        tasks.spawn("the watch over use", async move {
            stop.run_until_cancelled(watching.watch_use()).await;
        });
        let runtime = machines.runtime();
        tasks.spawn(
            "the eviction of images",
            images::evict_until(images, runtime, settings.image_cache_mib, tasks.stop()),
        );
        Ok(Self { agent, machines })
    }

    /// The files in its volumes.
    pub(crate) fn volume_files(&self) -> Arc<dyn VolumeFiles> {
        self.machines.volume_files()
    }

    /// Its name for ever.
    pub(crate) fn id(&self) -> NodeId {
        self.agent.id()
    }

    /// How much of it there is.
    pub(crate) async fn capacity(&self) -> Option<Capacity> {
        let report = self.agent.report().await.ok()?;
        Some(Members::capacity(
            report.cpu_total,
            report.memory_total,
            report.disk_total,
        ))
    }

    /// Whether it can do what it is there for.
    pub(crate) async fn ready(&self) -> Result<(), &'static str> {
        match tokio::time::timeout(READY_WITHIN, self.agent.report()).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err("the node does not report"),
        }
    }

    /// Gives back what was prepared ahead. Sandboxes live on.
    pub(crate) async fn close(&self) {
        self.machines.runtime().close().await;
    }
}

/// Ends everything that a node holds, whose daemon does not run: for `atoll down`.
pub(crate) async fn end_all(settings: &Resolved, data: &DataDir) -> Result<usize> {
    let without_pool = Resolved {
        pool: 0,
        ..settings.clone()
    };
    let machines = Machines::open(&without_pool).await?;
    let config = node::Config {
        id: data.node_id()?,
        data: settings.data_dir.join("node"),
    };
    let agent = LocalNode::open(config, machines.runtime()).context("the node cannot be opened")?;
    agent
        .recover()
        .await
        .context("what the daemon left cannot be recovered")?;
    let held = agent.report().await?.held;
    for one in &held {
        agent
            .kill(one.order.sandbox, model::KillReason::Requested)
            .await
            .with_context(|| format!("sandbox {} cannot be ended", one.order.sandbox))?;
    }
    machines.runtime().close().await;
    Ok(held.len())
}
