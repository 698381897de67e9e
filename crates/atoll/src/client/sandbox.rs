//! `atoll sandbox`.
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use sdk::{Connected, ListQuery, LogsQuery};
use wire::rest::{
    AutoResume, ConnectSandbox, LogDirection, LogEntry, LogLevel, NetworkConfig, NewSandbox, PauseSandbox,
    SandboxState,
};

use super::program::{self, Exec, Shell};
use super::{Endpoint, print_json, table};

/// How often `logs --follow` asks.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// Lines that are asked for at a time.
const LINES_MAX: usize = 1_000;

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
    Logs {
        /// Whose.
        id: String,
        /// Goes on with what is said from now on.
        #[arg(long, short)]
        follow: bool,
        /// Lines that matter at least this much.
        #[arg(long)]
        level: Option<LevelFilter>,
    },
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

/// How much a line matters.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum LevelFilter {
    /// All lines.
    Debug,
    /// Ordinary events, and what follows.
    Info,
    /// Something is off, and what follows.
    Warn,
    /// Something failed.
    Error,
}

/// `KEY=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("'{text}' is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Command {
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
                    print_json(&made)?
                } else {
                    println!("{}", made.sandbox_id)
                }
            }
            Command::List { state, metadata } => list(endpoint, state, metadata, json).await?,
            Command::Info { id } => {
                let detail = api.sandbox(&id).await?;
                if json {
                    print_json(&detail)?
                } else {
                    println!("{}", serde_json::to_string_pretty(&detail)?)
                }
            }
            Command::Exec(exec) => return program::exec(endpoint, exec).await,
            Command::Shell(shell) => return program::shell(endpoint, shell).await,
            Command::Kill { ids } => return kill(endpoint, ids).await,
            Command::Pause { id, disk_only } => {
                api.pause(
                    &id,
                    PauseSandbox {
                        memory: Some(!disk_only),
                        ..PauseSandbox::default()
                    },
                )
                .await?;
                eprintln!("atoll: {id} is paused");
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
                eprintln!("atoll: {id} {word}");
                if json {
                    print_json(&sandbox)?;
                }
            }
            Command::Restart { id } => {
                let sandbox = api.restart(&id).await?;
                eprintln!("atoll: {id} runs again, from its disk");
                if json {
                    print_json(&sandbox)?;
                }
            }
            Command::Logs { id, follow, level } => logs(endpoint, &id, follow, level, json).await?,
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
        return print_json(&all);
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
    table::print(["ID", "STATE", "TEMPLATE", "STARTED", "ENDS"], &rows);
    Ok(())
}

/// Tries all, also after one could not be ended.
async fn kill(endpoint: &Endpoint, ids: Vec<String>) -> Result<ExitCode> {
    let api = endpoint.api()?;
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        match api.kill(&id).await {
            Ok(()) => eprintln!("atoll: {id} is ended"),
            Err(error) => {
                eprintln!("atoll: {id}: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

async fn logs(
    endpoint: &Endpoint,
    id: &str,
    follow: bool,
    level: Option<LevelFilter>,
    json: bool,
) -> Result<()> {
    let api = endpoint.api()?;
    let level = level.map(|level| match level {
        LevelFilter::Debug => LogLevel::Debug,
        LevelFilter::Info => LogLevel::Info,
        LevelFilter::Warn => LogLevel::Warn,
        LevelFilter::Error => LogLevel::Error,
    });
    let query = |cursor_ms| LogsQuery {
        cursor_ms,
        limit: Some(LINES_MAX),
        direction: Some(LogDirection::Forward),
        level,
    };
    let mut lines = api.logs(id, query(None)).await?;
    if json && !follow {
        return print_json(&lines);
    }
    let mut shown: Vec<LogEntry> = Vec::new();
    loop {
        // A cursor is a millisecond: what was said in the last one comes again.
        for line in lines
            .into_iter()
            .filter(|line| !shown.contains(line))
            .collect::<Vec<_>>()
        {
            if json {
                print_json(&line)?;
            } else {
                println!(
                    "{} {:<5} {}",
                    line.timestamp,
                    format!("{:?}", line.level).to_lowercase(),
                    line.message
                );
            }
            shown.push(line);
        }
        if !follow {
            return Ok(());
        }
        shown.drain(..shown.len().saturating_sub(LINES_MAX));
        tokio::time::sleep(FOLLOW_EVERY).await;
        let since = shown
            .last()
            .and_then(|line| humantime::parse_rfc3339(&line.timestamp).ok());
        let since_ms = since
            .and_then(|at| u64::try_from(at.duration_since(std::time::UNIX_EPOCH).ok()?.as_millis()).ok());
        lines = api.logs(id, query(since_ms)).await?;
    }
}

async fn metrics(endpoint: &Endpoint, id: &str, json: bool) -> Result<()> {
    let samples = endpoint.api()?.metrics(id).await?;
    if json {
        return print_json(&samples);
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
    table::print(["TIME", "CPU", "MEMORY", "DISK"], &rows);
    Ok(())
}
