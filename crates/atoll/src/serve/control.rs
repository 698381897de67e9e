//! The roles `api` and `orchestrator`: the same use cases, over the same stores. What tells them apart is who answers clients,
//! and who works in the background.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use api::{Api, ApiParts};
use cluster::nomad::Nomad;
use cluster::redis::Redis;
use model::NodeId;
use orchestrator::{Orchestrator, Parts, bootstrap};
use ports::{Blobs, Clock, ResourceScheduler, SandboxManager};
use rpc::node::RemoteNode;
use rpc::tls::Tls;
use rpc::volumes::RemoteVolumes;
use sql::Stores;

use super::fleet::{Connect, Discovered, Reached};
use super::members::Members;
use crate::base;
use crate::migrate::database;
use crate::settings::Resolved;
use crate::settings::cluster::{ClusterSettings, Role};
use crate::tasks::Tasks;

/// The database answers in milliseconds; whoever asks for health waits for a few seconds.
const READY_WITHIN: Duration = Duration::from_secs(2);
/// The reconciler passes every five seconds, and one pass may end many sandboxes.
const PASS_WITHIN: Duration = Duration::from_secs(60);

/// A process of the control plane.
pub(crate) struct Control {
    pub(crate) orchestrator: Arc<Orchestrator>,
    stores: Stores,
    redis: Redis,
    is_background: bool,
}

/// The Redis that the settings name, if they do.
pub(crate) async fn redis(cluster: &ClusterSettings) -> Result<Option<Redis>> {
    let Some(settings) = &cluster.redis else {
        return Ok(None);
    };
    let ca = settings.ca.as_deref().map(std::fs::read).transpose();
    let config = cluster::redis::Config {
        url: settings.url.clone(),
        cluster: cluster.name.clone(),
        ca: ca.context("cluster.redis.ca cannot be read")?,
        identity: None,
    };
    Ok(Some(Redis::connect(config).await?))
}

impl Control {
    /// Opens everything, and begins to work in the background where that is a role of it.
    pub(crate) async fn open(
        settings: &Resolved,
        cluster: &ClusterSettings,
        roles: &[Role],
        members: &Members,
        tls: &Tls,
        redis: &Redis,
        tasks: &mut Tasks,
    ) -> Result<Self> {
        let stores = Stores::open(&database(settings)?).await?;
        let team = bootstrap::default_team(&*stores.teams, settings.quota)
            .await
            .context("the default team cannot be made")?;
        base::register(&*stores.templates, team.id, base::of_fleet(&cluster.name)).await?;
        let blobs: Arc<dyn Blobs> = Arc::new(
            settings
                .blobs
                .open(&settings.data_dir)
                .context("the blobs cannot be opened")?,
        );
        let fleet = Discovered::new();
        let tls = tls.clone();
        let connect: Connect = Box::new(move |node: NodeId, address: SocketAddr| {
            let at = address.to_string();
            Reached {
                node: RemoteNode::connect(node, &at, &tls),
                volumes: RemoteVolumes::connect(node, &at, &tls),
            }
        });
        tasks.spawn(
            "the watch over nodes",
            Arc::clone(&fleet).follow(members.watch(Role::Node), connect, tasks.stop()),
        );
        let is_background = roles.contains(&Role::Orchestrator);
        let scheduler: Option<Arc<dyn ResourceScheduler>> = match &cluster.nomad {
            Some(nomad) => {
                let nomad = Nomad::connect(nomad.config(&cluster.name)?).await;
                Some(nomad.context("[cluster.nomad] cannot be used")?)
            }
            None => None,
        };
        let orchestrator = Orchestrator::new(Parts {
            sandboxes: Arc::clone(&stores.sandboxes),
            templates: Arc::clone(&stores.templates),
            builds: Arc::clone(&stores.builds),
            volumes: Arc::clone(&stores.volumes),
            volume_nodes: Arc::clone(&fleet) as _,
            blobs,
            teams: Arc::clone(&stores.teams),
            catalog: redis.catalog(),
            limits: redis.limits(),
            shares: redis.shares(),
            idempotency: redis.idempotency(),
            bus: redis.bus(),
            fleet,
            scheduler: scheduler.clone(),
            clock: clock(),
            config: orchestrator::Config {
                stow: settings.blobs.hold_builds(),
                shared: true,
                runs_builds: is_background,
                overcommit: cluster.overcommit()?,
                node_lost_after: cluster.node_lost_after(),
                ..settings.volumes.config()
            },
        });
        let stop = tasks.stop();
        if is_background {
            tasks.spawn("the orchestrator", Arc::clone(&orchestrator).run(stop));
        } else {
            tasks.spawn("the use cases", Arc::clone(&orchestrator).serve(stop));
        }
        if is_background && let Some((nomad, scheduler)) = cluster.nomad.as_ref().zip(scheduler) {
            let capacity = nomad.capacity(cluster.overcommit()?);
            tasks.spawn(
                "the watch over capacity",
                Arc::clone(&orchestrator).keep_capacity(scheduler, capacity, tasks.stop()),
            );
        }
        Ok(Self {
            orchestrator,
            stores,
            redis: redis.clone(),
            is_background,
        })
    }

    /// What answers clients.
    pub(crate) fn api(&self, settings: &Resolved) -> Arc<Api> {
        Api::new(ApiParts {
            manager: Arc::clone(&self.orchestrator) as Arc<dyn SandboxManager>,
            teams: Arc::clone(&self.stores.teams),
            templates: Arc::clone(&self.stores.templates),
            templates_manager: Arc::clone(&self.orchestrator) as _,
            volumes: Arc::clone(&self.orchestrator) as _,
            volume_files: self.orchestrator.volume_files(),
            limits: self.redis.limits(),
            clock: clock(),
            domain: None,
            public_url: None,
            tls_host: None,
            admin_token: settings.admin_token.clone(),
        })
    }

    /// Whether it can do what it is there for. Without Redis it can: what runs stays reachable, and bounds are those of each
    /// process.
    pub(crate) async fn ready(&self) -> Result<(), &'static str> {
        let teams = tokio::time::timeout(READY_WITHIN, self.stores.teams.teams()).await;
        if !matches!(teams, Ok(Ok(_))) {
            return Err("the database does not answer");
        }
        let passed = self.orchestrator.last_pass();
        if self.is_background && passed.is_none_or(|past| past > PASS_WITHIN) {
            return Err("the reconciler has not come to an end for long");
        }
        Ok(())
    }
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(ports::clock::System)
}
