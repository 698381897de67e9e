//! `atoll sandbox`.
use std::process::ExitCode;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use sdk::{Connected, ListQuery};
use serde_json::json;
use wire::rest::{AutoResume, ConnectSandbox, NetworkConfig, NewSandbox, PauseSandbox, SandboxState};

use super::logs::{self, Logs};
use super::program::{self, Exec, Shell};
use super::{Endpoint, table};
use crate::out;

/// What can be done with sandboxes.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Creates a sandbox and prints its id.
    Create {
        /// From which template.
        #[arg(default_value = "base")]
        template: String,
        /// How long it lives, in seconds.
        #[arg(long, default_value_t = 300)]
        timeout: i64,
        /// A label, KEY=VALUE; may be given several times.
        #[arg(long, value_parser = pair)]
        metadata: Vec<(String, String)>,
        /// A variable of all its processes, KEY=VALUE; may be given several times.
        #[arg(long, short, value_parser = pair)]
        env: Vec<(String, String)>,
        /// Denies it the internet.
        #[arg(long)]
        no_internet: bool,
        /// An address or CIDR that it may not reach; may be given several times.
        #[arg(long)]
        deny: Vec<String>,
        /// An address or CIDR that it may reach all the same; may be given several times.
        #[arg(long)]
        allow: Vec<String>,
        /// Pauses it when its time is over, instead of killing it.
        #[arg(long)]
        auto_pause: bool,
        /// Lets traffic wake it.
        #[arg(long)]
        auto_resume: bool,
    },
    /// Lists sandboxes, running and paused.
    List {
        /// Only those that are at this.
        #[arg(long)]
        state: Option<StateFilter>,
        /// Only those with this label, KEY=VALUE; may be given several times.
        #[arg(long, value_parser = pair)]
        metadata: Vec<(String, String)>,
    },
    /// All about a sandbox.
    Info {
        /// Which.
        id: String,
    },
    /// Runs a program in a sandbox, and ends as it does.
    Exec(Exec),
    /// Opens a terminal in a sandbox.
    Shell(Shell),
    /// Ends sandboxes, running or paused.
    Kill {
        /// Which.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Pauses a sandbox.
    Pause {
        /// Which.
        id: String,
        /// Keeps the disk only: processes end, and a resume boots anew.
        #[arg(long)]
        disk_only: bool,
    },
    /// Resumes a paused sandbox.
    Resume {
        /// Which.
        id: String,
        /// Boots it from its disk, whatever else was kept.
        #[arg(long)]
        disk_only: bool,
        /// How long it lives from now, in seconds.
        #[arg(long, default_value_t = 300)]
        timeout: i64,
    },
    /// Reboots a running sandbox from its disk.
    Restart {
        /// Which.
        id: String,
    },
    /// Prints a sandbox's log.
    Logs(Logs),
    /// Prints what a sandbox uses.
    Metrics {
        /// Which.
        id: String,
    },
}

/// What a sandbox is at.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum StateFilter {
    /// It runs.
    Running,
    /// It is paused.
    Paused,
}

/// `KEY=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("'{text}' is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Command {
    /// Whether standard output belongs to a program inside.
    pub(crate) const fn lends_output(&self) -> bool {
        matches!(self, Self::Exec(_) | Self::Shell(_))
    }

    pub(crate) async fn run(self, endpoint: &Endpoint, json: bool) -> Result<ExitCode> {
        let api = endpoint.api()?;
        match self {
            Command::Create {
                template,
                timeout,
                metadata,
                env,
                no_internet,
                deny,
                allow,
                auto_pause,
                auto_resume,
            } => {
                let list = |list: Vec<String>| (!list.is_empty()).then_some(list);
                let network = NetworkConfig {
                    allow_out: list(allow),
                    deny_out: list(deny),
                    ..NetworkConfig::default()
                };
                let wanted = NewSandbox {
                    template_id: template,
                    timeout: Some(timeout),
                    auto_pause: Some(auto_pause),
                    auto_resume: auto_resume.then_some(AutoResume { enabled: true }),
                    allow_internet_access: no_internet.then_some(false),
                    network: Some(network),
                    metadata: Some(metadata.into_iter().collect()),
                    env_vars: Some(env.into_iter().collect()),
                    ..NewSandbox::default()
                };
                let made = api.create(&wanted).await?;
                if json {
                    out::json(&made)?;
                } else {
                    out::line(made.sandbox_id)?;
                }
            }
            Command::List { state, metadata } => list(endpoint, state, metadata, json).await?,
            Command::Info { id } => {
                let detail = api.sandbox(&id).await?;
                if json {
                    out::json(&detail)?;
                } else {
                    out::line(serde_json::to_string_pretty(&detail)?)?;
                }
            }
            Command::Exec(exec) => return program::exec(endpoint, exec).await,
            Command::Shell(shell) => return program::shell(endpoint, shell).await,
            Command::Kill { ids } => return kill(endpoint, ids, json).await,
            Command::Pause { id, disk_only } => {
                api.pause(
                    &id,
                    PauseSandbox {
                        memory: Some(!disk_only),
                        ..PauseSandbox::default()
                    },
                )
                .await?;
                out::say(format_args!("{id} is paused"));
                if json {
                    out::json(&json!({ "sandboxID": id, "state": "paused" }))?;
                }
            }
            Command::Resume {
                id,
                disk_only,
                timeout,
            } => {
                let how = ConnectSandbox {
                    timeout: Some(timeout),
                    memory: disk_only.then_some(false),
                };
                let (word, sandbox) = match api.connect(&id, how).await? {
                    Connected::Running(sandbox) => ("was running", sandbox),
                    Connected::Resumed(sandbox) => ("runs again", sandbox),
                };
                out::say(format_args!("{id} {word}"));
                if json {
                    out::json(&sandbox)?;
                }
            }
            Command::Restart { id } => {
                let sandbox = api.restart(&id).await?;
                out::say(format_args!("{id} runs again, from its disk"));
                if json {
                    out::json(&sandbox)?;
                }
            }
            Command::Logs(wanted) => logs::run(endpoint, wanted, json).await?,
            Command::Metrics { id } => metrics(endpoint, &id, json).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(
    endpoint: &Endpoint,
    state: Option<StateFilter>,
    metadata: Vec<(String, String)>,
    json: bool,
) -> Result<()> {
    let api = endpoint.api()?;
    let states = state.map(|state| match state {
        StateFilter::Running => SandboxState::Running,
        StateFilter::Paused => SandboxState::Paused,
    });
    let mut query = ListQuery {
        states: states.into_iter().collect(),
        metadata: metadata.into_iter().collect(),
        ..ListQuery::default()
    };
    let mut all = Vec::new();
    loop {
        let page = api.sandboxes(&query).await?;
        all.extend(page.items);
        match page.next {
            Some(next) => query.next = Some(next),
            None => break,
        }
    }
    if json {
        return out::json(&all);
    }
    let rows: Vec<_> = all
        .into_iter()
        .map(|sandbox| {
            let state = if sandbox.state == SandboxState::Running {
                "running"
            } else {
                "paused"
            };
            let template = sandbox.alias.unwrap_or(sandbox.template_id);
            [
                sandbox.sandbox_id,
                state.to_owned(),
                template,
                sandbox.started_at,
                sandbox.end_at,
            ]
        })
        .collect();
    table::print(["ID", "STATE", "TEMPLATE", "STARTED", "ENDS"], &rows)
}

/// Tries all, also after one could not be ended.
async fn kill(endpoint: &Endpoint, ids: Vec<String>, json: bool) -> Result<ExitCode> {
    let api = endpoint.api()?;
    let (mut killed, mut failed) = (Vec::new(), Vec::new());
    for id in ids {
        match api.kill(&id).await {
            Ok(()) => {
                out::say(format_args!("{id} is ended"));
                killed.push(id);
            }
            Err(error) => {
                out::say(format_args!("{id}: {error}"));
                failed.push(json!({ "sandboxID": id, "error": error.to_string() }));
            }
        }
    }
    let code = if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    if json {
        out::json(&json!({ "killed": killed, "failed": failed }))?;
    }
    Ok(code)
}

async fn metrics(endpoint: &Endpoint, id: &str, json: bool) -> Result<()> {
    let samples = endpoint.api()?.metrics(id).await?;
    if json {
        return out::json(&samples);
    }
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let rows: Vec<_> = samples
        .into_iter()
        .map(|sample| {
            let memory = format!("{} of {}", mib(sample.mem_used), mib(sample.mem_total));
            let disk = format!("{} of {}", mib(sample.disk_used), mib(sample.disk_total));
            [
                sample.timestamp,
                format!("{:.1} %", sample.cpu_used_pct),
                memory,
                disk,
            ]
        })
        .collect();
    table::print(["TIME", "CPU", "MEMORY", "DISK"], &rows)
}
