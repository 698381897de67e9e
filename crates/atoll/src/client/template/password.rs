//! The password of a registry: never an argument, which everybody on the machine could read.
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use anyhow::{Context as _, Result, bail};
use model::Secret;

use crate::client::terminal;

/// Where it is looked for first.
const VARIABLE: &str = "ATOLL_REGISTRY_PASSWORD";
/// A token is shorter.
const BYTES_MAX: u64 = 64 << 10;

/// Out of the environment, or the first line of standard input. A terminal does not show it.
pub(super) fn ask(user: &str) -> Result<Secret<String>> {
    if let Ok(password) = std::env::var(VARIABLE) {
        return given(&password);
    }
    let quiet = if io::stdin().is_terminal() {
        let _ = write!(io::stderr(), "Password of {user}: ");
        Some(terminal::Quiet::enter().context("the terminal would show the password")?)
    } else {
        None
    };
    let mut line = String::new();
    let read = io::stdin().lock().take(BYTES_MAX).read_line(&mut line);
    if quiet.is_some() {
        let _ = writeln!(io::stderr());
    }
    read.context("cannot read the password from standard input")?;
    given(line.trim_end_matches(['\r', '\n']))
}

fn given(password: &str) -> Result<Secret<String>> {
    if password.is_empty() {
        bail!("the registry's password is missing: it is read from {VARIABLE}, or from standard input");
    }
    Ok(Secret::new(password.to_owned()))
}
