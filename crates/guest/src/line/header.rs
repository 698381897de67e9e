//! What a stream is for.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::HEADER_BYTES_MAX;

/// The first line of a stream, from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "snake_case")]
pub enum Header {
    /// To envd's host-only socket.
    Envd,
    /// To a TCP port on the machine's loopback.
    Port {
        /// Which.
        port: u16,
    },
    /// To what the machine's kernel asks of a volume: see [`frame`](super::frame). It ends an earlier stream to the same.
    Volume {
        /// Which of those that were attached.
        tag: u64,
    },
    /// An order to the agent itself, which answers it by one line.
    Agent(Order),
}

/// What the agent is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Order {
    /// Answered by a [`Hello`](super::Hello) as soon as envd listens: readiness without polling.
    Hello,
    /// Become another machine than the one that the memory was taken of. To be done before anything else is asked.
    Resume(Resume),
    /// Answered by a [`Usage`](super::Usage).
    Usage,
    /// Bring everything that was written to the disk.
    Sync,
    /// Lose every volume but these, by their tags: whoever is at one of the others is told that it is gone. A machine that was
    /// brought back from memory may have some that are another sandbox's.
    Volumes {
        /// Those that stay, where they are there.
        keep: Vec<u64>,
    },
    /// Attach a volume; one that is there is no error. A stream to it is opened next: nobody gets an answer of it before.
    Attach {
        /// What the host calls it.
        tag: u64,
        /// Where, in the machine.
        path: String,
    },
    /// End all processes, and the machine. Answered as soon as it begins.
    Shutdown {
        /// What processes have between SIGTERM and SIGKILL, milliseconds; at most a minute.
        #[serde(rename = "graceMs", default)]
        grace_ms: u64,
    },
}

/// What is renewed after memory was restored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resume {
    /// What the clock is set to, nanoseconds since 1970.
    pub unix_time_ns: u64,
    /// Random bytes for the kernel, base64 of at least [`Resume::ENTROPY_BYTES_MIN`].
    pub entropy: String,
    /// The machine's new name; as it was where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The machine's new id, 32 lower-case hexadecimal digits; as it was where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
}

impl std::fmt::Debug for Resume {
    /// Without the random bytes: whoever knows them can guess what is drawn next.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resume")
            .field("unix_time_ns", &self.unix_time_ns)
            .field("entropy", &"***")
            .field("hostname", &self.hostname)
            .field("machine_id", &self.machine_id)
            .finish()
    }
}

impl Resume {
    /// As many as the kernel's generator is seeded with.
    pub const ENTROPY_BYTES_MIN: usize = 32;
    /// The kernel hashes what it gets: more than this makes nothing more random.
    pub const ENTROPY_BYTES_MAX: usize = 512;

    /// For a clock and random bytes.
    #[must_use]
    pub fn new(now: SystemTime, entropy: &[u8]) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            unix_time_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
            entropy: STANDARD.encode(entropy),
            hostname: None,
            machine_id: None,
        }
    }

    /// With random bytes of the host's, and its clock.
    ///
    /// # Errors
    /// The system has no random bytes.
    #[cfg(feature = "host")]
    pub fn now() -> std::io::Result<Self> {
        use rand::TryRngCore as _;
        let mut entropy = [0; 64];
        rand::rngs::OsRng
            .try_fill_bytes(&mut entropy)
            .map_err(std::io::Error::other)?;
        Ok(Self::new(SystemTime::now(), &entropy))
    }

    /// The time, since 1970.
    #[must_use]
    pub const fn unix_time(&self) -> Duration {
        Duration::from_nanos(self.unix_time_ns)
    }

    /// The random bytes.
    ///
    /// # Errors
    /// In words, where they are too few or too many, or no base64.
    pub fn entropy(&self) -> Result<Vec<u8>, String> {
        let bytes = STANDARD
            .decode(&self.entropy)
            .map_err(|error| format!("the entropy is not base64: {error}"))?;
        let told = Self::ENTROPY_BYTES_MIN..=Self::ENTROPY_BYTES_MAX;
        if told.contains(&bytes.len()) {
            Ok(bytes)
        } else {
            Err(format!(
                "{} bytes of entropy, not {} to {}",
                bytes.len(),
                told.start(),
                told.end()
            ))
        }
    }
}

impl Header {
    /// As a line.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("strings and numbers are JSON");
        line.push(b'\n');
        line
    }

    /// Of a line, without its end.
    ///
    /// # Errors
    /// In words, where it is no header.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        if line.len() > HEADER_BYTES_MAX {
            return Err(format!("a header has at most {HEADER_BYTES_MAX} bytes"));
        }
        serde_json::from_slice(line).map_err(|error| format!("not a header: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, header: Header) {
        assert_eq!(Header::parse(line.as_bytes()).as_ref(), Ok(&header), "{line}");
        let again = header.to_line();
        assert_eq!(Header::parse(&again[..again.len() - 1]), Ok(header));
    }

    #[test]
    fn headers_are_what_the_protocol_says() {
        check(r#"{"to":"envd"}"#, Header::Envd);
        check(r#"{"to":"port","port":80}"#, Header::Port { port: 80 });
        check(r#"{"to":"agent","do":"hello"}"#, Header::Agent(Order::Hello));
        check(r#"{"to":"agent","do":"usage"}"#, Header::Agent(Order::Usage));
        check(r#"{"to":"agent","do":"sync"}"#, Header::Agent(Order::Sync));
        check(r#"{"to":"volume","tag":7}"#, Header::Volume { tag: 7 });
        check(
            r#"{"to":"agent","do":"volumes","keep":[18446744073709551615]}"#,
            Header::Agent(Order::Volumes { keep: vec![u64::MAX] }),
        );
        check(
            r#"{"to":"agent","do":"attach","tag":7,"path":"/data"}"#,
            Header::Agent(Order::Attach {
                tag: 7,
                path: "/data".into(),
            }),
        );
        check(
            r#"{"to":"agent","do":"shutdown","graceMs":7}"#,
            Header::Agent(Order::Shutdown { grace_ms: 7 }),
        );
        let resume = Resume {
            unix_time_ns: 1_000_000_007,
            entropy: "AA==".into(),
            hostname: Some("h".into()),
            machine_id: None,
        };
        check(
            r#"{"to":"agent","do":"resume","unixTimeNs":1000000007,"entropy":"AA==","hostname":"h"}"#,
            Header::Agent(Order::Resume(resume)),
        );
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for line in [
            "",
            "{}",
            "GET / HTTP/1.1",
            r#"{"to":"port"}"#,
            r#"{"to":"port","port":65536}"#,
            r#"{"to":"agent"}"#,
            r#"{"to":"agent","do":"exec"}"#,
        ] {
            assert!(Header::parse(line.as_bytes()).is_err(), "{line}");
        }
        let long = format!(r#"{{"to":"envd","x":"{}"}}"#, "x".repeat(HEADER_BYTES_MAX));
        assert!(Header::parse(long.as_bytes()).unwrap_err().contains("at most"));
    }

    #[test]
    fn too_little_randomness_is_refused_and_none_is_shown() {
        let with = |bytes: &[u8]| Resume::new(UNIX_EPOCH, bytes);
        assert_eq!(with(&[7; 32]).entropy(), Ok(vec![7; 32]));
        assert!(with(&[7; 31]).entropy().is_err());
        assert!(with(&[7; 513]).entropy().is_err());
        let shown = format!("{:?}", with(&[7; 32]));
        assert!(!shown.contains(&with(&[7; 32]).entropy), "{shown}");
    }
}
