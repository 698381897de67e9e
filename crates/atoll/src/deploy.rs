//! `atoll deploy nomad`: jobs of Nomad that run a fleet's processes.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use cluster::nomad::{Configuration, Deployment, render};

use crate::out;
use crate::settings::Settings;

/// What starts a fleet's processes.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Writes jobs of Nomad: api, edge and orchestrator as services, node on each machine, the migration as a batch. They are
    /// run by `nomad job run`, migrate first.
    Nomad(Box<Nomad>),
}

/// What the jobs are to say. `cluster.name` and the ports are the configuration's.
#[derive(Args)]
pub(crate) struct Nomad {
    #[command(flatten)]
    settings: Settings,
    /// Where they are written.
    #[arg(long, default_value = "nomad")]
    out: PathBuf,
    /// The program on the machines.
    #[arg(long, default_value = "/usr/local/bin/atoll")]
    program: String,
    /// The configuration on the machines.
    #[arg(long, default_value = "/etc/atoll/atoll.toml")]
    remote_config: String,
    /// Replicas of api, of edge, and of orchestrator.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    replicas: u32,
}

impl Command {
    pub(crate) fn run(self, json: bool) -> Result<ExitCode> {
        let Self::Nomad(options) = self;
        let settings = options.settings.resolve()?;
        let cluster = settings
            .cluster
            .as_ref()
            .context("the configuration has no [cluster]: there is no fleet to be deployed")?;
        let mut deployment = Deployment {
            cluster: cluster.name.clone(),
            program: options.program,
            configuration: Configuration::File(options.remote_config),
            data: settings.data_dir.display().to_string(),
            api_port: settings.api_listen.port(),
            edge_port: settings.edge_listen.port(),
            rpc_port: cluster.rpc_listen.port(),
            ..Deployment::default()
        };
        for share in [
            &mut deployment.api,
            &mut deployment.edge,
            &mut deployment.orchestrator,
        ] {
            share.count = options.replicas;
        }
        let files = render(&deployment)?;
        std::fs::create_dir_all(&options.out)
            .with_context(|| format!("cannot make {}", options.out.display()))?;
        let mut written = Vec::new();
        for file in files {
            let path = options.out.join(&file.name);
            std::fs::write(&path, file.content)
                .with_context(|| format!("cannot write {}", path.display()))?;
            written.push(path);
        }
        if json {
            out::json(&serde_json::json!({ "files": written }))?;
        } else {
            for path in &written {
                out::line(path.display())?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
