//! The command line. It is the container runtime's to write, so it is small.
use std::os::fd::RawFd;
use std::path::PathBuf;

/// What the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// It is the first process of a sandbox.
    pub(crate) pid1: bool,
    /// Where the host-only socket is made.
    pub(crate) socket: PathBuf,
    /// The TCP port for clients inside; 0 for any free one, absent for none.
    pub(crate) port: Option<u16>,
    /// Where one byte is written when it listens.
    pub(crate) ready_fd: Option<RawFd>,
    /// Serves peers of its own process namespace on the host-only socket: for tests without namespaces.
    pub(crate) accept_local_peers: bool,
}

impl Arguments {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self {
            pid1: false,
            socket: PathBuf::from("/run/atoll/envd.sock"),
            port: None,
            ready_fd: None,
            accept_local_peers: false,
        };
        let mut rest = arguments;
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--pid1" => parsed.pid1 = true,
                "--accept-local-peers" => parsed.accept_local_peers = true,
                "--socket" => parsed.socket = value()?.into(),
                "--port" => parsed.port = Some(number(&argument, &value()?)?),
                "--ready-fd" => parsed.ready_fd = Some(number(&argument, &value()?)?),
                other => return Err(format!("unknown argument {other}")),
            }
        }
        Ok(parsed)
    }
}

fn number<T: std::str::FromStr>(argument: &str, text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("{argument} takes a number, not '{text}'"))
}
