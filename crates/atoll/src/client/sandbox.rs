//! `atoll sandbox`.
use std::process::ExitCode;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use sdk::{Connected, ListQuery};
use serde_json::json;
use wire::rest::{
    AutoResume, ConnectSandbox, ForkSandbox, Memory, NetworkConfig, NewSandbox, NewSnapshot, PauseSandbox,
    SandboxChangeKind, SandboxState, VolumeEntryKind, VolumeMount,
};

use super::copy::Copy;
use super::export::Export;
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
        /// The same, by name.
        #[arg(long = "template", value_name = "TEMPLATE", conflicts_with = "template")]
        from: Option<String>,
        /// A volume that it has at a path, NAME:/path; may be given several times.
        #[arg(long, value_name = "NAME:/PATH", value_parser = mount)]
        volume: Vec<VolumeMount>,
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
    /// Takes a snapshot of a running sandbox, which goes on, and prints its id: sandboxes are created from it.
    Snapshot {
        /// Which.
        id: String,
        /// What the snapshot is called, NAME or NAME:TAG.
        #[arg(long)]
        name: Option<String>,
        /// Keeps the disk only: what is created from it boots.
        #[arg(long)]
        disk_only: bool,
    },
    /// Starts copies of a running sandbox, which goes on, and prints their ids.
    Fork {
        /// Which.
        id: String,
        /// How many.
        #[arg(long, default_value_t = 1)]
        count: i64,
        /// How long they live, in seconds.
        #[arg(long, default_value_t = 300)]
        timeout: i64,
    },
    /// Lists what a running sandbox changed against its template: A for added, M for modified, D for deleted.
    Diff {
        /// Which.
        id: String,
    },
    /// Makes an image of a running sandbox's whole root, which goes on: what `image import` takes.
    Export(Export),
    /// Copies files between this machine and a sandbox, ID:/path.
    Cp {
        #[command(flatten)]
        copy: Copy,
        /// As whom, there [default: the sandbox's user].
        #[arg(long, short)]
        user: Option<String>,
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

/// `NAME:/path`.
fn mount(text: &str) -> Result<VolumeMount, String> {
    match text.split_once(':') {
        Some((name, path)) if !name.is_empty() && path.starts_with('/') => Ok(VolumeMount {
            name: name.to_owned(),
            path: path.to_owned(),
        }),
        _ => Err(format!("'{text}' is not NAME:/path")),
    }
}

impl Command {
    /// Whether standard output belongs to a program inside, or to a file.
    pub(crate) const fn lends_output(&self) -> bool {
        match self {
            Self::Exec(_) | Self::Shell(_) => true,
            Self::Cp { copy, .. } => copy.lends_output(),
            _ => false,
        }
    }

    pub(crate) async fn run(self, endpoint: &Endpoint, json: bool) -> Result<ExitCode> {
        let api = endpoint.api()?;
        match self {
            Command::Create {
                template,
                from,
                volume,
                timeout,
                metadata,
                env,
                no_internet,
                deny,
                allow,
                auto_pause,
                auto_resume,
            } => {
                let network = NetworkConfig {
                    allow_out: given(allow),
                    deny_out: given(deny),
                    ..NetworkConfig::default()
                };
                let wanted = NewSandbox {
                    template_id: from.unwrap_or(template),
                    volume_mounts: given(volume),
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
            Command::Snapshot { id, name, disk_only } => {
                snapshot(endpoint, &id, name, disk_only, json).await?
            }
            Command::Fork { id, count, timeout } => return fork(endpoint, &id, count, timeout, json).await,
            Command::Diff { id } => diff(endpoint, &id, json).await?,
            Command::Export(export) => export.run(endpoint, json).await?,
            Command::Cp { copy, user } => copy.sandbox(endpoint, user, json).await?,
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

/// A list that says nothing is none.
fn given<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

async fn snapshot(
    endpoint: &Endpoint,
    id: &str,
    name: Option<String>,
    disk_only: bool,
    json: bool,
) -> Result<()> {
    let wanted = NewSnapshot {
        name,
        memory: Some(!disk_only),
    };
    let taken = endpoint.api()?.snapshot(id, &wanted).await?;
    let memory = match taken.memory {
        Memory::None if disk_only => "it holds the disk",
        Memory::None => "it holds the disk: memory cannot be kept here, and what is created from it boots",
        Memory::Volatile => "it holds disk and memory, the latter until the machine goes down",
        Memory::Durable => "it holds disk and memory",
    };
    out::say(memory);
    if json {
        return out::json(&taken);
    }
    out::line(taken.snapshot_id)
}

async fn diff(endpoint: &Endpoint, id: &str, json: bool) -> Result<()> {
    let told = endpoint.api()?.changes(id).await?;
    if told.truncated {
        out::say("there are more changes than are told");
    }
    if json {
        return out::json(&told);
    }
    let mut lines = String::new();
    for change in &told.changes {
        let kind = match change.kind {
            SandboxChangeKind::Added => 'A',
            SandboxChangeKind::Modified => 'M',
            SandboxChangeKind::Deleted => 'D',
        };
        let slash = if change.file == VolumeEntryKind::Directory {
            "/"
        } else {
            ""
        };
        // What a sandbox calls its files must not steer a terminal.
        let path: String = change.path.chars().flat_map(plain).collect();
        lines.push_str(&format!("{kind} {path}{slash}\n"));
    }
    out::text(&lines)
}

/// A character as it is, or in words where it has a meaning for terminals.
fn plain(letter: char) -> impl Iterator<Item = char> {
    let spelled = letter.is_control().then(|| letter.escape_default());
    let own = spelled.is_none().then_some(letter);
    spelled.into_iter().flatten().chain(own)
}

/// All copies are told of, also where some have not come up.
async fn fork(endpoint: &Endpoint, id: &str, count: i64, timeout: i64, json: bool) -> Result<ExitCode> {
    let wanted = ForkSandbox {
        timeout: Some(timeout),
        count: Some(count),
    };
    let copies = endpoint.api()?.fork(id, wanted).await?;
    let is_whole = copies.iter().all(|copy| copy.sandbox.is_some());
    for copy in &copies {
        match (&copy.sandbox, &copy.error) {
            (Some(sandbox), _) if !json => out::line(&sandbox.sandbox_id)?,
            (None, Some(error)) => out::say(format_args!("a copy has not come up: {}", error.message)),
            (None, None) => out::say("a copy has not come up, and the server does not say why"),
            (Some(_), _) => {}
        }
    }
    if json {
        out::json(&copies)?;
    }
    Ok(if is_whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
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
