//! Talking to one run of CRIU: a request, its questions on the way, its answer
//! ([criu-rpc](https://criu.org/RPC); the numbers are those of its `images/rpc.proto`).
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::wire::{self, Value, Writer};
use crate::launcher::message::{BootFailed, error};
use crate::step::{At, Step};

/// Requests of these kinds (`criu_req_type`).
const DUMP: u64 = 1;
const RESTORE: u64 = 2;
const NOTIFY: u64 = 6;
/// A message holds options and names of files, never content.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Between two words of CRIU lies at most the writing, or the reading, of all memory. Less than a start may take: who waits for it
/// is told, and what hangs is ended before it is asked for again.
const SPEAKS_WITHIN: Duration = Duration::from_secs(45);

/// What is asked of CRIU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Dump,
    Restore,
}

/// How it came out.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is done.
    Done,
    /// CRIU could not do it. Its first error, where it tells one.
    Failed(Option<String>),
}

/// Our end of a line to CRIU.
#[derive(Debug)]
pub(crate) struct Line(OwnedFd);

impl Line {
    /// Both ends.
    pub(crate) fn new() -> Result<(Self, OwnedFd), Step> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .at("making CRIU's line")?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&ours, direction, Some(SPEAKS_WITHIN)).at("bounding CRIU's words")?;
        }
        Ok((Self(ours), theirs))
    }

    /// Asks, and hears: `on` is told of each stage that CRIU comes to, with the first process where it tells it. Where that
    /// fails, CRIU gives up and undoes what it has done.
    pub(crate) fn ask(
        &self,
        what: Ask,
        options: Vec<u8>,
        mut on: impl FnMut(&str, Option<u32>) -> Result<(), Step>,
    ) -> Result<Outcome, Step> {
        let kind = match what {
            Ask::Dump => DUMP,
            Ask::Restore => RESTORE,
        };
        let mut request = Writer::default();
        request.number(1, kind).bytes(2, &options);
        self.send(&request.done())?;
        let mut refused = None;
        loop {
            let message = self.receive()?;
            if message.first() == Some(&b'{') {
                let failed: BootFailed =
                    serde_json::from_slice(&message).at("reading why CRIU does not run")?;
                return Err(Step {
                    step: failed.step,
                    source: error(failed.errno),
                });
            }
            let heard = Heard::of(&message).at("reading CRIU's answer")?;
            if heard.kind != NOTIFY {
                if let Some(refused) = refused {
                    return Err(refused);
                }
                return Ok(if heard.success {
                    Outcome::Done
                } else {
                    Outcome::Failed(heard.error)
                });
            }
            let done = match &refused {
                None => on(&heard.script, heard.pid),
                Some(_) => Ok(()),
            };
            let mut answer = Writer::default();
            answer
                .number(1, NOTIFY)
                .number(3, u64::from(done.is_ok() && refused.is_none()));
            refused = refused.or(done.err());
            self.send(&answer.done())?;
        }
    }

    fn send(&self, message: &[u8]) -> Result<(), Step> {
        rustix::net::send(&self.0, message, SendFlags::NOSIGNAL)
            .map(drop)
            .at("talking to CRIU")
    }

    fn receive(&self) -> Result<Vec<u8>, Step> {
        let mut message = vec![0; MESSAGE_BYTES_MAX];
        let (length, _) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(self.0.as_fd(), &mut message[..], RecvFlags::empty())
        })
        .map_err(|errno| match errno {
            rustix::io::Errno::AGAIN => io::Error::from(io::ErrorKind::TimedOut),
            errno => errno.into(),
        })
        .at("hearing CRIU")?;
        if length == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof)).at("hearing CRIU, which has ended,");
        }
        message.truncate(length);
        Ok(message)
    }
}

/// A message of CRIU (`criu_resp`).
#[derive(Debug, Default)]
struct Heard {
    kind: u64,
    success: bool,
    pid: Option<u32>,
    script: String,
    error: Option<String>,
}

impl Heard {
    fn of(message: &[u8]) -> io::Result<Self> {
        let mut heard = Self::default();
        let pid_of = |value: Value<'_>| value.number().and_then(|pid| u32::try_from(pid).ok());
        for (field, value) in wire::fields(message)? {
            match field {
                1 => heard.kind = value.number().unwrap_or_default(),
                2 => heard.success = value.number() == Some(1),
                5 => {
                    for (field, value) in wire::fields(value.bytes().unwrap_or_default())? {
                        match field {
                            1 => heard.script = value.text().unwrap_or_default(),
                            2 => heard.pid = pid_of(value),
                            _ => {}
                        }
                    }
                }
                9 => heard.error = value.text(),
                _ => {}
            }
        }
        Ok(heard)
    }
}
