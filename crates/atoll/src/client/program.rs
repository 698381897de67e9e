//! `atoll sandbox exec` and `shell`: a program inside, with this side's streams.
use std::collections::BTreeMap;
use std::future::pending;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use model::Kind;
use sdk::{CallError, Control, Program, Signal};
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{self, SignalKind, signal};

use super::{Endpoint, conversation, terminal};

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
    conversation::hold(inside.start(program), Signal::Terminate, async move |control| {
        if piped { feed(control).await } else { Ok(()) }
    })
    .await
}

/// Carries our input to the program, until it ends or the program takes no more.
async fn feed(control: Control) -> Result<()> {
    let mut input = tokio::io::stdin();
    let mut chunk = vec![0; CHUNK_BYTES_MAX];
    loop {
        let bytes = input
            .read(&mut chunk)
            .await
            .context("cannot read standard input")?;
        let carried = match bytes {
            0 => control.close_stdin().await,
            bytes => control.write(&chunk[..bytes]).await,
        };
        if !goes_on(carried)? || bytes == 0 {
            return Ok(());
        }
    }
}

/// Whether the program may take more input. One that has ended, or closed its input, takes none and waits for none; one
/// that merely cannot be reached would wait for ever.
fn goes_on(carried: Result<(), CallError>) -> Result<bool> {
    match carried {
        Ok(()) => Ok(true),
        Err(CallError::Refused {
            kind: Kind::NotFound | Kind::Invalid | Kind::Conflict | Kind::Internal,
            ..
        }) => Ok(false),
        Err(error) => Err(error).context("the program's input cannot be carried to it"),
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
    // Before the size is read: a change after that is told.
    let resized = signal(SignalKind::window_change())?;
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
    // Shells that talk to people ignore the request to end. When they are killed, the kernel hangs up what they run.
    conversation::hold(inside.start(program), Signal::Kill, async move |control| {
        at_terminal(&control, resized).await
    })
    .await
}

/// Holds this side's terminal. It gets its own mode back when this is dropped.
async fn at_terminal(control: &Control, resized: unix::Signal) -> Result<()> {
    let _raw = terminal::Raw::enter().context("the terminal cannot be made raw")?;
    let typing = async {
        type_in(control).await?;
        pending().await
    };
    tokio::select! {
        typed = typing => typed,
        () = follow_size(control, resized) => Ok(()),
    }
}

async fn type_in(control: &Control) -> Result<()> {
    /// What a terminal sends when its input ends.
    const END_OF_INPUT: &[u8] = &[4];
    let mut input = tokio::io::stdin();
    let mut chunk = vec![0; CHUNK_BYTES_MAX];
    loop {
        let bytes = input.read(&mut chunk).await.context("cannot read the terminal")?;
        let typed = match bytes {
            0 => control.type_in(END_OF_INPUT).await,
            bytes => control.type_in(&chunk[..bytes]).await,
        };
        if !goes_on(typed)? || bytes == 0 {
            return Ok(());
        }
    }
}

async fn follow_size(control: &Control, mut resized: unix::Signal) {
    while resized.recv().await.is_some() {
        // A size that did not arrive is worth no shell; the next one may.
        let _ = control.resize(terminal::size()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: Kind) -> Result<(), CallError> {
        Err(CallError::Refused {
            kind,
            message: String::new(),
            error_code: None,
        })
    }

    #[test]
    fn a_program_that_takes_no_more_is_told_from_one_that_cannot_be_reached() {
        assert!(goes_on(Ok(())).unwrap());
        assert!(!goes_on(refused(Kind::NotFound)).unwrap());
        assert!(!goes_on(refused(Kind::Internal)).unwrap());
        assert!(goes_on(refused(Kind::Unavailable)).is_err());
        assert!(goes_on(refused(Kind::Unauthenticated)).is_err());
        assert!(goes_on(Err(CallError::Unended)).is_err());
    }
}
