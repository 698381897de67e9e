//! A program in a lab: started by envd's process service, heard until it ends (contract 5.3).
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use model::recipe::Context;
use ports::Machine;
use serde::Deserialize;
use wire::envd::process as proto;
use wire::envd::process::process_event::Event as Told;
use wire::envd::process::process_event::data_event::Output;
use wire::envelope::{Envelope, Envelopes, wrap};

use super::connection::{self, Answer, ConnectionError};
use super::talk::cut;

const START: &str = "/process.Process/Start";
/// How often envd says that it is there while a program is quiet, in seconds (contract 2.5).
const KEEPALIVE: &str = "50";
/// Three of those.
const SILENCE_MAX: Duration = Duration::from_secs(150);
/// envd sends at most 32 KiB of output in a message, which JSON makes 44; twenty times that is not envd.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// What a refusal may say, in bytes.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// What runs every command (contract 4.2).
pub(super) const SHELL: &str = "/bin/bash";
/// Where programs are found, whatever a recipe has made of `PATH` (contract 4.2).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command line, and with what it runs.
#[derive(Debug, Clone)]
pub(super) struct Program<'a> {
    pub(super) command: &'a str,
    pub(super) user: &'a str,
    /// The user's home, where it is not set.
    pub(super) cwd: Option<&'a str>,
    pub(super) env: &'a [(String, String)],
}

impl<'a> Program<'a> {
    pub(super) fn new(command: &'a str, context: &'a Context) -> Self {
        Self {
            command,
            user: &context.user,
            cwd: context.workdir.as_deref(),
            env: &context.env,
        }
    }

    fn request(&self) -> proto::StartRequest {
        let envs = self.env.iter().map(|(name, value)| match name.as_str() {
            "PATH" => (name.clone(), format!("{value}:{PATH}")),
            _ => (name.clone(), value.clone()),
        });
        let config = proto::ProcessConfig {
            cmd: SHELL.to_owned(),
            args: ["-l", "-c", self.command].map(str::to_owned).into(),
            envs: envs.collect(),
            cwd: self.cwd.map(str::to_owned),
            ..Default::default()
        };
        proto::StartRequest {
            process: Some(config).into(),
            stdin: Some(false),
            ..Default::default()
        }
    }
}

/// Why a program was not heard to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    /// envd did not start it: the user or the directory is not there.
    #[error("{0}")]
    Refused(String),
    /// envd went away.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl ProgramError {
    fn garbled(why: impl std::fmt::Display) -> Self {
        Self::Connection(ConnectionError::Garbled(why.to_string()))
    }
}

/// What a program says, and how it ends.
#[derive(Debug)]
pub(super) enum Event {
    Stdout(Bytes),
    Stderr(Bytes),
    /// Nothing comes after this.
    End(Exit),
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exit {
    /// What it returned; -1 where a signal ended it.
    code: i32,
    exited: bool,
    /// In words: `exit status 3`, `signal: killed`.
    status: String,
}

impl Exit {
    pub(super) fn is_success(&self) -> bool {
        self.exited && self.code == 0
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.exited {
            return write!(f, "exit code {}", self.code);
        }
        f.write_str(&self.status)
    }
}

/// A program that runs. Dropping it does not end the program: only nobody listens any more.
#[derive(Debug)]
pub(super) struct Running {
    answer: Answer,
    envelopes: Envelopes,
    /// Since when envd is waited for.
    quiet_since: Option<tokio::time::Instant>,
}

/// Starts a program.
pub(super) async fn start(machine: &dyn Machine, program: &Program<'_>) -> Result<Running, ProgramError> {
    let body = serde_json::to_vec(&program.request()).map_err(ProgramError::garbled)?;
    let user = BASE64_STANDARD.encode(format!("{}:", program.user));
    let request = Request::builder()
        .method(Method::POST)
        .uri(START)
        .header(header::HOST, "envd")
        .header(header::CONTENT_TYPE, "application/connect+json")
        .header(header::AUTHORIZATION, format!("Basic {user}"))
        .header("connect-protocol-version", "1")
        .header("keepalive-ping-interval", KEEPALIVE)
        .body(Full::new(wrap(&body)))
        .map_err(ProgramError::garbled)?;
    let asked = tokio::time::timeout(SILENCE_MAX, connection::ask(machine, request)).await;
    let mut answer = asked.map_err(|_| ConnectionError::Silent(SILENCE_MAX))??;
    let kind = answer.head.headers.get(header::CONTENT_TYPE);
    let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/connect+json"));
    if answer.head.status.is_success() && is_stream {
        return Ok(Running {
            answer,
            envelopes: Envelopes::new(MESSAGE_BYTES_MAX),
            quiet_since: None,
        });
    }
    let status = answer.head.status;
    let told = answer.whole(REFUSAL_BYTES_MAX).await?;
    Err(ProgramError::Refused(
        match serde_json::from_slice::<Refusal>(&told) {
            Ok(refusal) => refusal.message(),
            Err(_) => format!("envd answered {status}"),
        },
    ))
}

/// What a Connect server says when it refuses.
#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
}

impl Refusal {
    fn message(&self) -> String {
        cut(&self.message, 1024)
    }
}

impl Running {
    /// The next thing that it says or does. It may be dropped while it waits, and called again.
    pub(super) async fn next(&mut self) -> Result<Event, ProgramError> {
        loop {
            let message = match self.envelopes.take().map_err(ProgramError::garbled)? {
                Some(Envelope::Message(message)) => message,
                Some(Envelope::End(end)) => return Err(ended(&end)),
                None => {
                    let since = *self.quiet_since.get_or_insert_with(tokio::time::Instant::now);
                    let heard = tokio::time::timeout_at(since + SILENCE_MAX, self.answer.piece()).await;
                    self.quiet_since = None;
                    let piece = heard.map_err(|_| ConnectionError::Silent(SILENCE_MAX))??;
                    let piece = piece.ok_or_else(|| ProgramError::garbled("it ended too early"))?;
                    self.envelopes.push(&piece);
                    continue;
                }
            };
            let message: proto::StartResponse =
                serde_json::from_slice(&message).map_err(ProgramError::garbled)?;
            match message.event.into_option().and_then(|event| event.event) {
                Some(Told::Data(data)) => match data.output {
                    Some(Output::Stdout(bytes)) => return Ok(Event::Stdout(bytes.into())),
                    Some(Output::Stderr(bytes)) => return Ok(Event::Stderr(bytes.into())),
                    Some(Output::Pty(_)) | None => {}
                },
                Some(Told::End(end)) => {
                    return Ok(Event::End(Exit {
                        code: end.exit_code,
                        exited: end.exited,
                        status: cut(&end.status, 256),
                    }));
                }
                // A sign of life, or what a later envd may say.
                Some(Told::Keepalive(_) | Told::Start(_)) | None => {}
            }
        }
    }
}

/// A stream that ended before the program did: `{"error": {code, message}}`.
fn ended(end: &[u8]) -> ProgramError {
    #[derive(Deserialize)]
    struct End {
        error: Option<Refusal>,
    }
    match serde_json::from_slice::<End>(end) {
        Ok(End { error: Some(error) }) => ProgramError::Refused(explained(error.message())),
        Ok(End { error: None }) => ProgramError::garbled("it ended before the program did"),
        Err(error) => ProgramError::garbled(error),
    }
}

/// What envd says of a program that it cannot start, and what its owner can do.
fn explained(why: String) -> String {
    // ENOENT of the shell itself: what the shell does not find it tells by its own exit code.
    if why.contains("(os error 2)") {
        return format!("{why}; commands are run by {SHELL}, which the image must have");
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_recipe_is_never_all_that_there_is() {
        let context = Context {
            env: vec![
                ("PATH".to_owned(), "/x".to_owned()),
                ("A".to_owned(), "1".to_owned()),
            ],
            ..Context::default()
        };
        let request = Program::new("true", &context).request();
        let request = serde_json::to_value(&request).unwrap();
        let process = &request["process"];
        assert_eq!(process["args"], serde_json::json!(["-l", "-c", "true"]));
        assert_eq!(process["envs"]["PATH"], format!("/x:{PATH}"));
        assert_eq!(process["envs"]["A"], "1");
        assert_eq!(process.get("cwd"), None);
    }

    #[test]
    fn the_end_of_a_stream_says_why_nothing_ran() {
        let refused = ended(br#"{"error":{"code":"unauthenticated","message":"invalid username: 'x'"}}"#);
        assert_eq!(refused.to_string(), "invalid username: 'x'");
        assert!(matches!(ended(b"{}"), ProgramError::Connection(_)));
        assert!(matches!(ended(b"nonsense"), ProgramError::Connection(_)));
    }
}
