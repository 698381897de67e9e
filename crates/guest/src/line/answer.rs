//! What the agent says to a header.
use std::io;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

/// As JSON, no character takes more than six bytes.
const ERROR_CHARS_MAX: usize = 500;

/// The answer to a header, of which `T` is told where it was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer<T> {
    /// It was not carried out.
    Refused(Refusal),
    /// It was.
    Done(Done<T>),
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done<T> {
    /// Always.
    #[serde(deserialize_with = "yes")]
    pub ok: bool,
    /// What there is to tell.
    #[serde(flatten)]
    pub told: T,
}

fn yes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    if bool::deserialize(deserializer)? {
        Ok(true)
    } else {
        Err(D::Error::custom("what was not done has a reason"))
    }
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// In words.
    pub error: String,
    /// For programs.
    #[serde(default)]
    pub reason: Reason,
}

/// Why a header was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nothing listens there.
    Closed,
    /// The machine has ended, or is about to.
    Ended,
    /// It cannot be, for what is in the machine: whoever asked is told why.
    Unfit,
    /// It is told in words alone.
    #[default]
    #[serde(other)]
    Failed,
}

/// Nothing more to tell than that it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nothing {}

/// Who is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// The agent's version.
    pub agent: String,
    /// The kernel's release.
    pub kernel: String,
    /// Since the kernel booted, milliseconds.
    pub uptime_ms: u64,
}

/// Use of a machine's resources in the terms of the port `Runtime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// CPU time used since the start, microseconds.
    pub cpu_time_us: u64,
    /// Memory in use without reclaimable cache, bytes.
    pub memory_used_bytes: u64,
    /// Page cache, bytes.
    pub memory_cache_bytes: u64,
    /// Memory that the kernel has, bytes.
    pub memory_total_bytes: u64,
    /// Disk in use, bytes.
    pub disk_used_bytes: u64,
    /// Disk size, bytes.
    pub disk_total_bytes: u64,
    /// Processes and threads.
    pub tasks: u64,
    /// How often something inside was killed for want of memory.
    pub oom_kills: u64,
}

impl Usage {
    /// CPU time used since the start.
    #[must_use]
    pub const fn cpu_time(&self) -> Duration {
        Duration::from_micros(self.cpu_time_us)
    }
}

#[cfg(feature = "host")]
impl From<Usage> for ports::runtime::Usage {
    fn from(usage: Usage) -> Self {
        Self {
            cpu_time: usage.cpu_time(),
            memory_used_bytes: usage.memory_used_bytes,
            memory_cache_bytes: usage.memory_cache_bytes,
            memory_total_bytes: usage.memory_total_bytes,
            disk_used_bytes: usage.disk_used_bytes,
            disk_total_bytes: usage.disk_total_bytes,
            tasks: usage.tasks,
            oom_kills: usage.oom_kills,
        }
    }
}

impl<T> Answer<T> {
    /// That it was done.
    pub const fn done(told: T) -> Self {
        Self::Done(Done { ok: true, told })
    }

    /// That it was not: the reason is shortened to what fits into a line.
    pub fn refused(reason: Reason, error: impl Into<String>) -> Self {
        let mut error: String = error.into();
        if let Some((end, _)) = error.char_indices().nth(ERROR_CHARS_MAX) {
            error.truncate(end);
        }
        Self::Refused(Refusal { error, reason })
    }
}

impl<T: Serialize> Answer<T> {
    /// As a line.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("answers hold strings and numbers");
        line.push(b'\n');
        line
    }
}

impl<T: DeserializeOwned> Answer<T> {
    /// Of a line, without its end.
    ///
    /// # Errors
    /// It is no answer.
    pub fn parse(line: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(line)
    }
}

/// Reads one line of at most `bytes_max`, and returns it without its end.
///
/// # Errors
/// `UnexpectedEof` where the stream ends before the line does, `InvalidData` where the line is longer.
pub async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        let buffer = reader.fill_buf().await?;
        if buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        if line.len() + part.len() > bytes_max {
            let message = format!("a line of more than {bytes_max} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        line.extend_from_slice(part);
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_what_the_protocol_says() {
        let usage = Usage {
            tasks: 3,
            ..Usage::default()
        };
        let line = Answer::done(usage).to_line();
        assert!(line.starts_with(br#"{"ok":true,"#), "{line:?}");
        assert_eq!(Answer::parse(&line).unwrap(), Answer::done(usage));
        let refused: Answer<Usage> =
            Answer::parse(br#"{"error":"port 7 is not open","reason":"closed"}"#).unwrap();
        assert_eq!(refused, Answer::refused(Reason::Closed, "port 7 is not open"));
        let newer: Answer<Usage> = Answer::parse(br#"{"error":"no","reason":"a new one"}"#).unwrap();
        assert_eq!(newer, Answer::refused(Reason::Failed, "no"));
        assert!(Answer::<Usage>::parse(b"{}").is_err());
        assert!(Answer::<Usage>::parse(br#"{"ok":true}"#).is_err());
        assert!(Answer::<Nothing>::parse(br#"{"ok":false}"#).is_err());
    }

    #[tokio::test]
    async fn a_line_is_bounded_and_what_follows_stays() {
        let mut input = tokio::io::BufReader::with_capacity(3, &b"abcde\nrest"[..]);
        assert_eq!(read_line(&mut input, 5).await.unwrap(), b"abcde");
        let early = read_line(&mut input, 5).await.unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::UnexpectedEof);
        let mut endless = tokio::io::BufReader::new(tokio::io::repeat(b'x'));
        let long = read_line(&mut endless, 4096).await.unwrap_err();
        assert_eq!(long.kind(), io::ErrorKind::InvalidData);
    }
}
