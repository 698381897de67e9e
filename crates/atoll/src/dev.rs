//! `atoll dev cluster`: a whole fleet on one machine, for those who want to see one, and for the tests.
//!
//! ```text
//! PostgreSQL, Redis, Consul      of this machine's packages; on loopback and on the bridge
//! api ×2, orchestrator ×2, edge ×2
//! bridge ── network namespace ── node ×N
//! ```
//!
//! Whatever ends is started again, as a service manager would: to kill a process is how to see what a fleet makes of that.
mod layout;
mod network;
mod process;
mod programs;
mod services;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use tokio::signal::unix::{SignalKind, signal};

use self::layout::Layout;
use self::network::Network;
use self::process::Processes;
use self::programs::Programs;
use crate::data::{self, Credentials};
use crate::out;

/// The first start makes a volume and a base on each node; slow disks take their time.
const READY_WITHIN: Duration = Duration::from_secs(180);
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// For those who work on Atoll, or want to see it whole.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Starts a fleet on this machine: PostgreSQL, Redis, Consul, two of each role of the control plane, and nodes in network
    /// namespaces. It ends with this command, and nothing of it is left but its directory.
    Cluster(Options),
}

/// How large it is.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Where everything of it is kept. It must be readable for other users: PostgreSQL is not run by root.
    #[arg(long, default_value = "/var/lib/atoll-dev-cluster")]
    dir: PathBuf,
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=8))]
    nodes: u8,
    /// Address of the first API.
    #[arg(long, default_value = "127.0.0.1:3000")]
    api_listen: SocketAddr,
    /// Address of the first edge.
    #[arg(long, default_value = "127.0.0.1:3002")]
    edge_listen: SocketAddr,
    /// The program `consul` [default: the one on the PATH].
    #[arg(long, env = "ATOLL_CONSUL")]
    consul: Option<PathBuf>,
    /// The program CRIU, as for `atoll up`.
    #[arg(long, env = "ATOLL_CRIU")]
    criu: Option<PathBuf>,
    /// What nodes run: container, qemu or firecracker.
    #[arg(long, env = "ATOLL_RUNTIME", default_value = "container")]
    runtime: String,
}

impl Command {
    pub(crate) fn run(self, json: bool) -> Result<ExitCode> {
        let Self::Cluster(options) = self;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(cluster(&options, json))
    }
}

async fn cluster(options: &Options, json: bool) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("a fleet of network namespaces is made by root");
    }
    let programs = Programs::find(options.consul.as_deref())?;
    let layout = Layout::make(options)?;
    let network = Network::make(&layout)?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut processes = Processes::new(layout.dir.join("processes.json"));
    let started = tokio::select! {
        started = start(&layout, &programs, &mut processes) => started,
        _ = interrupt.recv() => Err(anyhow::anyhow!("stopped before it was ready")),
        _ = terminate.recv() => Err(anyhow::anyhow!("stopped before it was ready")),
    };
    let outcome = match started {
        Ok(credentials) => {
            out::say(format_args!(
                "ready: {} nodes; what each process says is in {}",
                layout.nodes.len(),
                layout.dir.display()
            ));
            // It serves all the same where nobody reads this.
            let _ = data::show(&credentials, json);
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            Ok(())
        }
        Err(error) => Err(error),
    };
    out::say("stopping, and ending all sandboxes");
    let ended = processes.end(&layout).await;
    network.remove();
    outcome.and(ended)?;
    Ok(ExitCode::SUCCESS)
}

async fn start(layout: &Layout, programs: &Programs, processes: &mut Processes) -> Result<Credentials> {
    services::start(layout, programs, processes).await?;
    layout.write_settings()?;
    layout.issue_certificates()?;
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let first = layout.control().next().context("there is a control plane")?;
    let settings = first.settings.display().to_string();
    process::run_once(
        &own,
        &["migrate", "--config", &settings, "--data-dir", &first.data()],
    )
    .await?;
    let made = process::run_once(
        &own,
        &[
            "bootstrap",
            "--json",
            "--config",
            &settings,
            "--data-dir",
            &first.data(),
        ],
    )
    .await?;
    let key: serde_json::Value = serde_json::from_str(&made).context("`atoll bootstrap` told no key")?;
    let key = key["key"]
        .as_str()
        .context("`atoll bootstrap` told no key")?
        .to_owned();
    for member in &layout.members {
        processes.start(member.spawn(&own)).await?;
    }
    let credentials = layout.credentials(key);
    std::fs::write(
        layout.dir.join("cluster.json"),
        serde_json::to_vec_pretty(&layout.told(&credentials))?,
    )?;
    let deadline = Instant::now() + READY_WITHIN;
    for member in &layout.members {
        while !process::is_ready(member.admin).await {
            if Instant::now() > deadline {
                bail!(
                    "{} was not ready in time: {}",
                    member.name,
                    member.log().display()
                );
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
    // A node is ready before everybody has heard of it.
    for api in layout.apis(&credentials)? {
        while api.nodes().await.map_or(0, |nodes| nodes.len()) < layout.nodes.len() {
            if Instant::now() > deadline {
                bail!("not every API has heard of all nodes in time");
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
    Ok(credentials)
}
