//! Signals that end this program, while a program inside must be ended before.
use std::io;
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Hears them from the moment that it is made.
pub(super) struct Signals {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

/// One that was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard(u8);

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The next one. It may be dropped while it waits, and called again.
    pub(super) async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.hangup.recv() => Heard(1),
            _ = self.interrupt.recv() => Heard(2),
            _ = self.quit.recv() => Heard(3),
            _ = self.terminate.recv() => Heard(15),
        }
    }
}

impl Heard {
    /// As a shell counts programs that a signal ended.
    pub(super) fn code(self) -> ExitCode {
        ExitCode::from(128 + self.0)
    }
}
