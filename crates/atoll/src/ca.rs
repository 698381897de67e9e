//! `atoll ca`: the certificates by which the processes of a fleet know each other.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use model::ClusterName;
use rpc::ca::Authority;
use rpc::identity::{Identity, Role};
use serde_json::json;

use crate::out;

/// What can be done with the authority. Its directory holds the key that makes certificates: keep it where no process of the
/// fleet runs, and give each process its own files only.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes the authority of a fleet.
    Init {
        /// Where.
        #[arg(long, default_value = "ca")]
        dir: PathBuf,
        /// The fleet's name: `cluster.name` of its configuration.
        #[arg(long)]
        cluster: ClusterName,
    },
    /// Issues a certificate: three files that a process is given. Issued again, it is renewed; a process reads them again by
    /// itself.
    Issue {
        /// Where the authority is.
        #[arg(long, default_value = "ca")]
        dir: PathBuf,
        /// What the process does: api, edge, orchestrator, node, admin.
        #[arg(long)]
        role: String,
        /// Its name; a node's is its id, which `atoll node-id` tells.
        #[arg(long)]
        name: String,
        /// How long it is good for, such as `24h`: five minutes to thirty days.
        #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// Where the files are written [default: the authority's directory].
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Has a new key sign from now on. What the old one signed stays good until `retire`: give everybody the new ca.pem, and
    /// issue certificates anew.
    Rotate {
        /// Where the authority is.
        #[arg(long, default_value = "ca")]
        dir: PathBuf,
    },
    /// Has nobody trust what an earlier key signed.
    Retire {
        /// Where the authority is.
        #[arg(long, default_value = "ca")]
        dir: PathBuf,
    },
}

impl Command {
    pub(crate) fn run(self, json: bool) -> Result<ExitCode> {
        let told = match self {
            Command::Init { dir, cluster } => {
                let authority = Authority::create(&dir, &cluster)?;
                json!({ "cluster": authority.cluster(), "dir": dir })
            }
            Command::Issue {
                dir,
                role,
                name,
                ttl,
                out,
            } => {
                let authority = Authority::open(&dir)?;
                let role: Role = role.parse()?;
                let identity = Identity::new(authority.cluster(), role, &name)?;
                let files = authority.issue_into(out.as_deref().unwrap_or(&dir), &identity, ttl)?;
                json!({
                    "identity": identity.to_string(),
                    "ca": files.trust,
                    "certificate": files.certificate,
                    "key": files.key,
                })
            }
            Command::Rotate { dir } => {
                let mut authority = Authority::open(&dir)?;
                authority.rotate()?;
                json!({ "cluster": authority.cluster(), "dir": dir })
            }
            Command::Retire { dir } => {
                let mut authority = Authority::open(&dir)?;
                authority.retire()?;
                json!({ "cluster": authority.cluster(), "dir": dir })
            }
        };
        if json {
            out::json(&told)?;
        } else {
            let told = told.as_object().context("an object was made")?;
            for (key, value) in told {
                out::line(format_args!("{key}: {}", value.as_str().unwrap_or_default()))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
