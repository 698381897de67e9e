//! `atoll serve`: a process of a fleet, with the roles that it is told.
//!
//! ```text
//! api, orchestrator ──▶ control    stores, Redis, the use cases ──RPC──▶ nodes
//! edge ──▶ routes of Redis, the way through nodes, resume through the control plane
//! node ──▶ machines of this one machine, behind RPC
//! all ──▶ members: who is there, and that we are
//! ```
mod blocks;
mod control;
mod edge;
mod fleet;
mod members;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use clap::Args;
use rpc::tls::{Files, Tls};

use self::control::Control;
use self::members::Members;
use crate::admin::Ready;
use crate::data::DataDir;
use crate::host::Host;
use crate::settings::cluster::{ClusterSettings, Role};
use crate::settings::{Resolved, Settings};
use crate::tasks::{Tasks, signalled};
use crate::up::{listen, raise_descriptor_limit};
use crate::{admin, base, out, telemetry};

/// What a process of a fleet is told.
#[derive(Args)]
pub(crate) struct Options {
    /// What it is there for.
    #[arg(required = true, value_enum)]
    roles: Vec<Role>,
    #[command(flatten)]
    settings: Settings,
}

/// Serves until a signal. Sandboxes live on.
pub(crate) fn run(options: Options) -> Result<ExitCode> {
    let settings = options.settings.resolve()?;
    settings.check_listeners()?;
    raise_descriptor_limit();
    let mut roles = options.roles;
    roles.sort_unstable();
    roles.dedup();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("atoll")
        .build()?;
    runtime.block_on(serve(settings, &roles))?;
    Ok(ExitCode::SUCCESS)
}

/// Every role that this process has.
#[derive(Default)]
struct Served {
    control: Option<Arc<Control>>,
    host: Option<Host>,
}

#[async_trait]
impl Ready for Served {
    async fn ready(&self) -> Result<(), &'static str> {
        if let Some(control) = &self.control {
            control.ready().await?;
        }
        if let Some(host) = &self.host {
            host.ready().await?;
        }
        Ok(())
    }
}

async fn serve(settings: Resolved, roles: &[Role]) -> Result<()> {
    let cluster = settings.cluster.clone().context(
        "the configuration has no [cluster], which says what this process is a part of; `atoll up` is for one machine alone",
    )?;
    cluster.check(roles)?;
    let has = |role| roles.contains(&role);
    let telemetry = telemetry::start(&settings)?;
    let data = DataDir::open(&settings.data_dir)?;
    let admin_listener = listen("admin", settings.admin_listen).await?;
    let rpc_listener = tokio::net::TcpListener::bind(cluster.rpc_listen)
        .await
        .with_context(|| format!("cannot listen on {}, cluster.rpc_listen", cluster.rpc_listen))?;
    let api_listener = match has(Role::Api) {
        true => Some(listen("api", settings.api_listen).await?),
        false => None,
    };
    let edge_listener = match has(Role::Edge) {
        true => Some(listen("edge", settings.edge_listen).await?),
        false => None,
    };
    let mut tasks = Tasks::default();
    let opened = admin::begin(admin_listener, &telemetry, &mut tasks);
    let tls = identity(&cluster, roles)?;
    tasks.spawn("the watch over certificates", tls.clone().follow(tasks.stop()));
    let members = Arc::new(Members::open(&cluster).await?);
    let redis = control::redis(&cluster).await?;

    let mut services = rpc::Services::new();
    let mut served = Served::default();
    if has(Role::Api) || has(Role::Orchestrator) {
        let redis = redis.as_ref().context("[cluster.redis] was checked")?;
        let control = Control::open(&settings, &cluster, roles, &members, &tls, redis, &mut tasks).await?;
        services = services.wake(Arc::clone(&control.orchestrator) as _);
        served.control = Some(Arc::new(control));
    }
    if has(Role::Node) {
        let host = Host::open(&settings, &data).await?;
        base::ensure_here(&host.machines, base::of_fleet(&cluster.name)).await?;
        host.tend(&settings, &mut tasks);
        if let Some(nomad) = &cluster.nomad {
            let offering = blocks::listen(nomad, &cluster, Arc::clone(&host.node), tasks.stop())?;
            tasks.spawn("the watch over this machine's blocks", offering);
        }
        services = services
            .node(Arc::clone(&host.node) as _)
            .guest(Arc::clone(&host.node) as _)
            .volumes(host.machines.volume_files());
        served.host = Some(host);
    }
    if let Some(listener) = edge_listener {
        let redis = redis.as_ref().context("[cluster.redis] was checked")?;
        edge::serve(&settings, &members, &tls, redis, listener, &mut tasks).await?;
    }
    let stop = tasks.stop();
    tasks.spawn("RPC", async move {
        if let Err(error) = rpc::serve(rpc_listener, tls, services, stop).await {
            tracing::error!(error = &error as &dyn std::error::Error, "the RPC listener ended");
        }
    });
    if let (Some(listener), Some(control)) = (api_listener, &served.control) {
        let (api, stop) = (control.api(&settings), tasks.stop());
        tasks.spawn("the API", api.serve(listener, stop));
    }
    let served = Arc::new(served);
    let _ = opened.set(Arc::clone(&served) as _);
    members
        .join(&settings, &cluster, roles, served.host.as_ref())
        .await?;
    let named: Vec<_> = roles.iter().map(|role| role.name()).collect();
    out::say(format_args!(
        "ready as {} of the fleet {}; others reach it at {}",
        named.join(", "),
        cluster.name,
        cluster.advertised()
    ));

    let lasted = tasks.until(signalled()?).await;
    // First of all: nobody is to begin anything with it any more.
    members.leave().await;
    let ended = tasks.end().await;
    if let Some(host) = &served.host {
        host.close().await;
    }
    telemetry.flush();
    Ok(lasted.and(ended)?)
}

/// As whom this process comes to the others: its certificate must say one of its roles.
fn identity(cluster: &ClusterSettings, roles: &[Role]) -> Result<Tls> {
    let files = Files {
        trust: cluster.ca.clone(),
        certificate: cluster.certificate.clone(),
        key: cluster.key.clone(),
    };
    let tls = Tls::open(files).context("[cluster] names certificates that cannot be used")?;
    let own = tls.identity();
    anyhow::ensure!(
        *own.cluster() == cluster.name,
        "the certificate is one of the fleet {}, and cluster.name is {}",
        own.cluster(),
        cluster.name
    );
    anyhow::ensure!(
        roles.iter().all(|role| role.name() == own.role().as_str()),
        "the certificate is that of the role {}, and a process has the certificate of its role: start one for each role",
        own.role()
    );
    Ok(tls)
}
