//! What the two sides of a stream into a sandbox say before its bytes: forty-four bytes there, two back.
//!
//! ```text
//! version 1 | what 1 | port 2 (big endian) | sandbox 21 | execution 16 | zero 3
//! verdict 1 | kind of the I/O error 1
//! ```
use std::io;

use model::{ExecutionId, SandboxId};
use ports::DialError;
use uuid::Uuid;

/// The version of this.
pub const VERSION: u8 = 1;
/// The length of what is said first.
pub const PREFACE_BYTES: usize = 44;
/// The length of its answer.
pub const ANSWER_BYTES: usize = 2;

const SANDBOX_AT: usize = 4;
const EXECUTION_AT: usize = 25;
const REST_AT: usize = 41;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preface {
    /// A stream to a port of an execution.
    Dial {
        /// Of which sandbox.
        sandbox: SandboxId,
        /// Which of its executions, and no other.
        execution: ExecutionId,
        /// Which port.
        port: u16,
    },
    /// Every byte is sent back, so that the other side sees that this one lives.
    Pulse,
}

/// Bytes that are no preface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPreface {
    /// Of another version.
    #[error("version {0} of a dial is not known")]
    Version(u8),
    /// It asks for something else.
    #[error("a dial for {0} is not known")]
    What(u8),
    /// It names no sandbox, or says more than it may.
    #[error("a dial does not parse")]
    Broken,
}

impl Preface {
    /// As bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; PREFACE_BYTES] {
        let mut bytes = [0; PREFACE_BYTES];
        bytes[0] = VERSION;
        match self {
            Preface::Dial {
                sandbox,
                execution,
                port,
            } => {
                bytes[1] = 1;
                bytes[2..SANDBOX_AT].copy_from_slice(&port.to_be_bytes());
                bytes[SANDBOX_AT..EXECUTION_AT].copy_from_slice(sandbox.as_str().as_bytes());
                bytes[EXECUTION_AT..REST_AT].copy_from_slice(execution.0.as_bytes());
            }
            Preface::Pulse => bytes[1] = 2,
        }
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    /// What they are not.
    pub fn of(bytes: &[u8; PREFACE_BYTES]) -> Result<Self, NoPreface> {
        if bytes[0] != VERSION {
            return Err(NoPreface::Version(bytes[0]));
        }
        if bytes[REST_AT..] != [0; PREFACE_BYTES - REST_AT] {
            return Err(NoPreface::Broken);
        }
        match bytes[1] {
            1 => {
                let sandbox = std::str::from_utf8(&bytes[SANDBOX_AT..EXECUTION_AT]).ok();
                let sandbox = sandbox.and_then(|text| text.parse().ok());
                let mut execution = [0; 16];
                execution.copy_from_slice(&bytes[EXECUTION_AT..REST_AT]);
                Ok(Preface::Dial {
                    sandbox: sandbox.ok_or(NoPreface::Broken)?,
                    execution: ExecutionId(Uuid::from_bytes(execution)),
                    port: u16::from_be_bytes([bytes[2], bytes[3]]),
                })
            }
            2 if bytes[2..REST_AT].iter().all(|byte| *byte == 0) => Ok(Preface::Pulse),
            2 => Err(NoPreface::Broken),
            what => Err(NoPreface::What(what)),
        }
    }
}

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// What follows are the stream's bytes.
    Open,
    /// [`DialError::Gone`].
    Gone,
    /// [`DialError::Closed`].
    Closed,
    /// [`DialError::Io`].
    Io(io::ErrorKind),
    /// The role of who asks does not allow it, or what is asked is not understood.
    Refused,
    /// There are too many streams.
    Full,
}

/// Kinds of errors that come back as they were; others are [`io::ErrorKind::Other`].
const KINDS: [io::ErrorKind; 12] = [
    io::ErrorKind::Other,
    io::ErrorKind::ConnectionRefused,
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::ConnectionAborted,
    io::ErrorKind::NotConnected,
    io::ErrorKind::TimedOut,
    io::ErrorKind::UnexpectedEof,
    io::ErrorKind::BrokenPipe,
    io::ErrorKind::PermissionDenied,
    io::ErrorKind::NotFound,
    io::ErrorKind::HostUnreachable,
    io::ErrorKind::NetworkUnreachable,
];

impl Verdict {
    /// As bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; ANSWER_BYTES] {
        match self {
            Verdict::Open => [0, 0],
            Verdict::Gone => [1, 0],
            Verdict::Closed => [2, 0],
            Verdict::Io(kind) => {
                let number = KINDS.iter().position(|known| *known == kind).unwrap_or(0);
                [3, u8::try_from(number).unwrap_or(0)]
            }
            Verdict::Refused => [4, 0],
            Verdict::Full => [5, 0],
        }
    }

    /// From bytes. What a newer node says is an error of its own kind.
    #[must_use]
    pub fn of(bytes: [u8; ANSWER_BYTES]) -> Self {
        match bytes {
            [0, _] => Verdict::Open,
            [1, _] => Verdict::Gone,
            [2, _] => Verdict::Closed,
            [4, _] => Verdict::Refused,
            [5, _] => Verdict::Full,
            [_, kind] => {
                let kind = KINDS.get(usize::from(kind)).copied();
                Verdict::Io(kind.unwrap_or(io::ErrorKind::Other))
            }
        }
    }

    /// What it means that a stream was not opened.
    #[must_use]
    pub fn of_error(error: &DialError) -> Self {
        match error {
            DialError::Gone => Verdict::Gone,
            DialError::Closed(_) => Verdict::Closed,
            DialError::Io { source, .. } => Verdict::Io(source.kind()),
        }
    }

    /// Whether there is a stream; why not, where there is none.
    ///
    /// # Errors
    /// Why there is none.
    pub fn told(self, port: u16) -> Result<(), DialError> {
        let io = |source| Err(DialError::Io { port, source });
        match self {
            Verdict::Open => Ok(()),
            Verdict::Gone => Err(DialError::Gone),
            Verdict::Closed => Err(DialError::Closed(port)),
            Verdict::Io(kind) => io(io::Error::new(kind, "the node could not make the connection")),
            Verdict::Refused => io(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the node does not let this process in",
            )),
            Verdict::Full => io(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "the node has no room for more streams",
            )),
        }
    }
}

/// What holds for any bytes; fuzzers and tests ask the same.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz {
    use super::{ANSWER_BYTES, PREFACE_BYTES, Preface, Verdict};

    /// What is read is said again in the same bytes, and every verdict is one.
    ///
    /// # Panics
    /// Where that does not hold.
    pub fn preface(data: &[u8]) {
        if let Some(bytes) = data.first_chunk::<PREFACE_BYTES>()
            && let Ok(preface) = Preface::of(bytes)
        {
            assert_eq!(preface.bytes(), *bytes);
        }
        if let Some(bytes) = data.first_chunk::<ANSWER_BYTES>() {
            let verdict = Verdict::of(*bytes);
            assert_eq!(Verdict::of(verdict.bytes()), verdict);
            assert_eq!(verdict.told(1).is_ok(), bytes[0] == 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_preface_is_read_as_it_was_said() {
        let dial = Preface::Dial {
            sandbox: SandboxId::random(),
            execution: ExecutionId::random(),
            port: 49_983,
        };
        for preface in [dial, Preface::Pulse] {
            assert_eq!(Preface::of(&preface.bytes()), Ok(preface));
        }
    }

    #[test]
    fn what_is_no_preface_is_refused() {
        let dial = Preface::Dial {
            sandbox: SandboxId::random(),
            execution: ExecutionId::random(),
            port: 1,
        };
        let with = |at: usize, byte| {
            let mut bytes = dial.bytes();
            bytes[at] = byte;
            Preface::of(&bytes)
        };
        assert_eq!(with(0, 2), Err(NoPreface::Version(2)));
        assert_eq!(with(1, 9), Err(NoPreface::What(9)));
        assert_eq!(with(1, 2), Err(NoPreface::Broken));
        assert_eq!(with(SANDBOX_AT, b'I'), Err(NoPreface::Broken));
        assert_eq!(with(SANDBOX_AT + 3, 0xff), Err(NoPreface::Broken));
        assert_eq!(with(PREFACE_BYTES - 1, 1), Err(NoPreface::Broken));
    }

    #[test]
    fn every_error_of_a_dial_comes_back() {
        let io = |kind: io::ErrorKind| DialError::Io {
            port: 80,
            source: kind.into(),
        };
        let errors = KINDS.map(io).into_iter();
        for error in errors.chain([DialError::Gone, DialError::Closed(80)]) {
            let told = Verdict::of(Verdict::of_error(&error).bytes())
                .told(80)
                .unwrap_err();
            assert_eq!(told.to_string(), error.to_string());
            if let (DialError::Io { source, .. }, DialError::Io { source: was, .. }) = (&told, &error) {
                assert_eq!(source.kind(), was.kind());
            }
        }
    }

    proptest! {
        #[test]
        fn the_rules_hold_for_any_bytes(data in prop::collection::vec(any::<u8>(), 0..60)) {
            fuzz::preface(&data);
        }

        #[test]
        fn the_rules_hold_for_what_is_nearly_right(at in 0..PREFACE_BYTES, byte in any::<u8>()) {
            let dial = Preface::Dial {
                sandbox: SandboxId::random(),
                execution: ExecutionId::random(),
                port: 8080,
            };
            let mut bytes = dial.bytes();
            bytes[at] = byte;
            fuzz::preface(&bytes);
        }
    }
}
