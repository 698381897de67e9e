//! `atoll sandbox exec` and `shell`: a program inside, with this side's streams.
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use sdk::{Control, Event, Process, Program};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};

use super::{Endpoint, terminal};

/// Input that is carried at a time.
const CHUNK_BYTES_MAX: usize = 32 * 1024;

/// What `exec` is told.
#[derive(clap::Args)]
pub(crate) struct Exec {
    /// In which sandbox.
    id: String,
    /// As whom [default: the sandbox's user].
    #[arg(long, short)]
    user: Option<String>,
    /// Where [default: the sandbox's directory].
    #[arg(long)]
    cwd: Option<String>,
    /// KEY=VALUE; may be given several times.
    #[arg(long, short, value_parser = super::sandbox::pair)]
    env: Vec<(String, String)>,
    /// The program and its arguments. No shell reads them.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// What `shell` is told.
#[derive(clap::Args)]
pub(crate) struct Shell {
    /// In which sandbox.
    id: String,
    /// As whom [default: the sandbox's user].
    #[arg(long, short)]
    user: Option<String>,
}

/// Runs a program; its output is ours, what is piped to us is its input, its exit code is ours.
pub(crate) async fn exec(endpoint: &Endpoint, exec: Exec) -> Result<ExitCode> {
    let inside = endpoint.inside(&exec.id).await?;
    let piped = !std::io::stdin().is_terminal();
    let mut words = exec.command.into_iter();
    let program = Program {
        cmd: words.next().context("a program is missing")?,
        args: words.collect(),
        envs: exec.env.into_iter().collect::<BTreeMap<_, _>>(),
        cwd: exec.cwd,
        user: exec.user,
        stdin: piped,
        terminal: None,
    };
    let process = inside.start(program).await?;
    let control = process.control();
    let feeding = piped.then(|| tokio::spawn(feed(control)));
    let code = hear(process).await;
    if let Some(feeding) = feeding {
        feeding.abort();
    }
    code
}

/// Carries our input to the program until it ends, or the program does.
async fn feed(control: Control) -> Result<()> {
    let mut input = tokio::io::stdin();
    let mut chunk = vec![0; CHUNK_BYTES_MAX];
    loop {
        match input.read(&mut chunk).await? {
            0 => return Ok(control.close_stdin().await?),
            n => control.write(&chunk[..n]).await?,
        }
    }
}

async fn hear(mut process: Process) -> Result<ExitCode> {
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        match process.next().await? {
            Event::Stdout(bytes) | Event::Terminal(bytes) => {
                out.write_all(&bytes).await?;
                out.flush().await?;
            }
            Event::Stderr(bytes) => {
                err.write_all(&bytes).await?;
                err.flush().await?;
            }
            Event::End(exit) => return Ok(ExitCode::from(exit.code())),
        }
    }
}

/// Opens a terminal inside: what is typed goes there, and sizes follow ours.
pub(crate) async fn shell(endpoint: &Endpoint, shell: Shell) -> Result<ExitCode> {
    let inside = endpoint.inside(&shell.id).await?;
    let envs = [
        (
            "TERM",
            std::env::var("TERM").unwrap_or_else(|_| "xterm-256color".to_owned()),
        ),
        ("LANG", "C.UTF-8".to_owned()),
    ];
    let program = Program {
        cmd: "/bin/bash".to_owned(),
        args: vec!["-i".to_owned(), "-l".to_owned()],
        envs: envs
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        user: shell.user,
        terminal: Some(terminal::size()),
        ..Program::default()
    };
    let process = inside.start(program).await?;
    let _raw = terminal::Raw::enter()?;
    let (typing, sizing) = (
        tokio::spawn(type_in(process.control())),
        tokio::spawn(follow_size(process.control())),
    );
    let code = hear(process).await;
    typing.abort();
    sizing.abort();
    code
}

async fn type_in(control: Control) -> Result<()> {
    /// What a terminal sends when its input ends.
    const END_OF_INPUT: &[u8] = &[4];
    let mut input = tokio::io::stdin();
    let mut chunk = vec![0; CHUNK_BYTES_MAX];
    loop {
        match input.read(&mut chunk).await? {
            0 => return Ok(control.type_in(END_OF_INPUT).await?),
            n => control.type_in(&chunk[..n]).await?,
        }
    }
}

async fn follow_size(control: Control) -> Result<()> {
    let mut changed = signal(SignalKind::window_change())?;
    while changed.recv().await.is_some() {
        control.resize(terminal::size()).await?;
    }
    Ok(())
}
