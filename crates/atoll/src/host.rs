//! What one machine does, whoever asks it: of `atoll up`, and of the role `node`. It knows no database and no Redis.
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use artifact::Images;
use node::LocalNode;
use ports::{Blobs, Node as _};

use crate::data::DataDir;
use crate::machines::Machines;
use crate::settings::Resolved;
use crate::tasks::Tasks;
use crate::{images, out};

/// The node answers in milliseconds; whoever asks for health waits for a few seconds.
const READY_WITHIN: Duration = Duration::from_secs(2);

/// This machine: its agent, what that runs sandboxes with, and what it makes them of.
pub(crate) struct Host {
    pub(crate) node: Arc<LocalNode>,
    pub(crate) machines: Machines,
    pub(crate) images: Images,
    pub(crate) blobs: Arc<dyn Blobs>,
}

impl Host {
    /// Takes over what earlier daemons left.
    pub(crate) async fn open(settings: &Resolved, data: &DataDir) -> Result<Self> {
        data.belong_to(settings.runtime.name())?;
        let machines = Machines::open(settings).await?;
        let can = machines.runtime().capabilities();
        anyhow::ensure!(
            can.portable_builds || !settings.blobs.hold_builds(),
            "the {} runtime cannot keep builds in the blobs: leave `builds` out of [blobs], or choose another --runtime",
            machines.runtime().name()
        );
        let node = agent(&machines, data)?;
        let images = Images::open(data.path().join("images"), settings.images.clone())
            .context("images cannot be kept: see [images] of the configuration")?
            .keeping_archives(settings.blobs.hold_builds());
        node.build_from(Arc::new(images.clone()));
        let found = node
            .recover()
            .await
            .context("what earlier daemons left cannot be recovered")?;
        if found != node::Found::default() {
            out::say(format_args!(
                "found {} running and {} paused sandboxes, cleared away {} remains",
                found.running, found.paused, found.reclaimed
            ));
        }
        let blobs = settings.blobs.open(data.path());
        let blobs: Arc<dyn Blobs> = Arc::new(blobs.context("the blobs cannot be opened")?);
        node.stow_in(Arc::clone(&blobs));
        Ok(Self {
            node,
            machines,
            images,
            blobs,
        })
    }

    /// Sees to it, until the tasks end: measures use, and evicts images that nobody uses.
    pub(crate) fn tend(&self, settings: &Resolved, tasks: &mut Tasks) {
        let (node, stop) = (Arc::clone(&self.node), tasks.stop());
        tasks.spawn("the watch over use", async move {
            stop.run_until_cancelled(node.watch_use()).await;
        });
        let (images, runtime) = (self.images.clone(), self.machines.runtime());
        tasks.spawn(
            "the eviction of images",
            images::evict_until(images, runtime, settings.image_cache_mib, tasks.stop()),
        );
    }

    /// Whether it can do what it is there for.
    pub(crate) async fn ready(&self) -> Result<(), &'static str> {
        match tokio::time::timeout(READY_WITHIN, self.node.report()).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err("the node does not report"),
        }
    }

    /// Gives back what was prepared ahead. Sandboxes live on.
    pub(crate) async fn close(&self) {
        self.machines.runtime().close().await;
    }
}

fn agent(machines: &Machines, data: &DataDir) -> Result<Arc<LocalNode>> {
    let config = node::Config {
        id: data.node_id()?,
        data: data.path().join("node"),
    };
    LocalNode::open(config, machines.runtime()).context("the node cannot be opened")
}

/// Ends everything that a machine holds, whose daemon does not run: for `atoll down`.
pub(crate) async fn end_all(settings: &Resolved, data: &DataDir) -> Result<usize> {
    let without_pool = Resolved {
        pool: 0,
        ..settings.clone()
    };
    let machines = Machines::open(&without_pool).await?;
    let node = agent(&machines, data)?;
    node.recover()
        .await
        .context("what the daemon left cannot be recovered")?;
    let held = node.report().await?.held;
    for one in &held {
        node.kill(one.order.sandbox, model::KillReason::Requested)
            .await
            .with_context(|| format!("sandbox {} cannot be ended", one.order.sandbox))?;
    }
    machines.runtime().close().await;
    Ok(held.len())
}
