//! `atoll block`: what runs in an allocation of Nomad's, and holds its capacity for this machine's node by being there.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use cluster::nomad::{Holder, SOCKET, hold};
use model::{MiB, SandboxId};
use ports::scheduler::Size;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{out, tasks};

/// Which block it is, as Nomad tells it.
#[derive(Args)]
pub(crate) struct Options {
    /// Where the node of this machine listens.
    #[arg(long, default_value = SOCKET)]
    socket: PathBuf,
    /// The block's job.
    #[arg(long, env = "NOMAD_JOB_ID")]
    id: String,
    /// Its allocation.
    #[arg(long, env = "NOMAD_ALLOC_ID")]
    allocation: String,
    /// CPUs that it holds.
    #[arg(long, env = "NOMAD_META_atoll_cpu", value_parser = clap::value_parser!(u32).range(1..))]
    cpu: u32,
    /// Memory that it holds, MiB.
    #[arg(long, env = "NOMAD_META_atoll_memory_mib", value_parser = clap::value_parser!(u32).range(1..))]
    memory_mib: u32,
    /// The sandbox for which alone it is, if it is for one.
    #[arg(long, env = "NOMAD_META_atoll_sandbox", value_parser = sandbox, default_value = "", hide_default_value = true)]
    sandbox: MaybeSandbox,
}

/// Nomad sets what a block is not told to nothing.
type MaybeSandbox = Option<SandboxId>;

fn sandbox(text: &str) -> Result<MaybeSandbox, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let id = text
        .parse()
        .map_err(|_| format!("{text:?} is not the id of a sandbox"))?;
    Ok(Some(id))
}

/// Holds it until a signal; then until nothing is in it any more.
pub(crate) async fn run(options: Options, json: bool) -> Result<ExitCode> {
    let holder = Holder {
        id: options.id,
        allocation: options.allocation,
        size: Size {
            cpu: options.cpu,
            memory: MiB(options.memory_mib),
        },
        sandbox: options.sandbox,
    };
    let (stop, signalled) = (CancellationToken::new(), tasks::signalled()?);
    let told = stop.clone();
    tokio::spawn(async move {
        signalled.await;
        told.cancel();
    });
    let is_emptied = hold(&options.socket, &holder, stop).await;
    if json {
        out::json(&json!({ "blockID": holder.id, "emptied": is_emptied }))?;
    } else if is_emptied {
        out::say(format_args!("nothing is in the block {} any more", holder.id));
    } else {
        out::say(format_args!("no node was there to empty the block {}", holder.id));
    }
    Ok(ExitCode::SUCCESS)
}
