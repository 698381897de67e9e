//! A program inside with this side's streams, until it ends or we must.
//!
//! ```text
//! starting ─▶ holding ─▶ the program ends                                     ─▶ its exit code
//!                  └───▶ a signal │ nobody reads │ input cannot be carried    ─▶ the program is ended, then ours
//! ```
use std::future::Future;
use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use sdk::{CallError, Control, Event, Exit, Process, Signal};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::signals::Signals;
use crate::out;

/// How long a program may take to end after it was asked to, before it is killed; a second signal is not as patient.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Shows what a program says, while `carry` brings it what is said to it; its exit code is ours. If we end before it
/// does, it is ended too: by `ending`, and by force where that is not enough.
pub(super) async fn hold<C: Future<Output = Result<()>>>(
    starting: impl Future<Output = Result<Process, CallError>>,
    ending: Signal,
    carry: impl FnOnce(Control) -> C,
) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let mut starting = pin!(starting);
    let mut process = tokio::select! {
        started = &mut starting => started?,
        signal = signals.next() => {
            // It may run already, and nobody but us would know.
            if let Ok(Ok(process)) = timeout(ENDS_WITHIN, starting).await {
                end(process, ending, &mut signals).await;
            }
            return Ok(signal.code());
        }
    };
    let left = {
        let mut carrying = pin!(carry(process.control()));
        let mut hearing = pin!(hear(&mut process));
        let mut is_carried = false;
        loop {
            tokio::select! {
                biased;
                signal = signals.next() => break Ok(signal.code()),
                carried = &mut carrying, if !is_carried => match carried {
                    Ok(()) => is_carried = true,
                    Err(error) => break Err(error),
                },
                // Where the sandbox is not heard any more, there is nobody to end it there either.
                heard = &mut hearing => match heard? {
                    Heard::End(exit) => return Ok(ExitCode::from(exit.code())),
                    Heard::Unwritten(error) => break out::unwritten(error),
                },
            }
        }
    };
    end(process, ending, &mut signals).await;
    left
}

/// How listening ended.
enum Heard {
    /// With the program.
    End(Exit),
    /// What it said could not be passed on.
    Unwritten(io::Error),
}

/// Passes on what the program says. It may be dropped, and called again.
async fn hear(process: &mut Process) -> Result<Heard, CallError> {
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        let written = match process.next().await? {
            Event::Stdout(bytes) | Event::Terminal(bytes) => match out.write_all(&bytes).await {
                Ok(()) => out.flush().await,
                unwritten => unwritten,
            },
            Event::Stderr(bytes) => match err.write_all(&bytes).await {
                Ok(()) => err.flush().await,
                unwritten => unwritten,
            },
            Event::End(exit) => return Ok(Heard::End(exit)),
        };
        if let Err(error) = written {
            return Ok(Heard::Unwritten(error));
        }
    }
}

/// Ends a program, and shows what it says meanwhile.
async fn end(mut process: Process, ending: Signal, signals: &mut Signals) {
    let control = process.control();
    let willingly = async {
        let _ = control.signal(ending).await;
        match hear(&mut process).await {
            Ok(Heard::Unwritten(_)) => process.wait().await.map(drop),
            heard => heard.map(drop),
        }
    };
    let ended = tokio::select! {
        biased;
        _ = signals.next() => false,
        ended = timeout(ENDS_WITHIN, willingly) => matches!(ended, Ok(Ok(()))),
    };
    if ended {
        return;
    }
    match timeout(ENDS_WITHIN, control.signal(Signal::Kill)).await {
        // Refused: it has just ended.
        Ok(Ok(()) | Err(CallError::Refused { .. })) => {}
        _ => out::say("the program inside could not be told to end, and may still run"),
    }
}
