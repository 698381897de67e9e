//! This side's terminal, while a shell on the other side has it.
use std::io::{self, IsTerminal as _};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use sdk::TerminalSize;

/// Where nothing is known of the size.
const DEFAULT: TerminalSize = TerminalSize { cols: 80, rows: 24 };

/// A terminal in raw mode; it gets its old mode back with this.
pub(crate) struct Raw(Termios);

impl Raw {
    /// Puts standard input into raw mode, if it is a terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let input = io::stdin();
        if !input.is_terminal() {
            return Ok(None);
        }
        let old = tcgetattr(&input)?;
        let mut raw = old.clone();
        raw.make_raw();
        tcsetattr(&input, OptionalActions::Now, &raw)?;
        Ok(Some(Self(old)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// A terminal that does not show what is typed; it gets its old mode back with this.
pub(crate) struct Quiet(Termios);

impl Quiet {
    /// Quiets standard input, which is a terminal.
    pub(crate) fn enter() -> io::Result<Self> {
        let input = io::stdin();
        let old = tcgetattr(&input)?;
        let mut quiet = old.clone();
        quiet.local_modes -= LocalModes::ECHO;
        tcsetattr(&input, OptionalActions::Flush, &quiet)?;
        Ok(Self(old))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Its size now.
pub(crate) fn size() -> TerminalSize {
    match tcgetwinsize(io::stdin()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => TerminalSize {
            cols: size.ws_col,
            rows: size.ws_row,
        },
        _ => DEFAULT,
    }
}
