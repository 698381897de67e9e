use std::collections::BTreeMap;

use bytes::Bytes;
use wire::envd::process as proto;
use wire::envd::process::process_event::Event as Told;
use wire::envd::process::process_event::data_event::Output;

use crate::error::CallError;
use crate::rpc::{self, Messages};
use crate::sandbox::SandboxClient;
use crate::transport::ANSWER_WITHIN;

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters in a line.
    pub cols: u16,
    /// Lines.
    pub rows: u16,
}

/// A program that is to be started.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// The command: a path, or a name that is looked for in `PATH`.
    pub cmd: String,
    /// Its arguments, as they are: no shell reads them.
    pub args: Vec<String>,
    /// Environment on top of the sandbox's.
    pub envs: BTreeMap<String, String>,
    /// Where it starts; the sandbox's default where nothing is said.
    pub cwd: Option<String>,
    /// As whom it runs; the sandbox's default where nothing is said.
    pub user: Option<String>,
    /// Whether [`Control::write`] can reach its standard input, which is `/dev/null` otherwise.
    pub stdin: bool,
    /// Runs it on a terminal of this size.
    pub terminal: Option<TerminalSize>,
}

impl Program {
    pub(crate) fn into_request(self) -> proto::StartRequest {
        let config = proto::ProcessConfig {
            cmd: self.cmd,
            args: self.args,
            envs: self.envs.into_iter().collect(),
            cwd: self.cwd,
            ..Default::default()
        };
        proto::StartRequest {
            process: Some(config).into(),
            pty: self.terminal.map(pty).into(),
            stdin: Some(self.stdin),
            ..Default::default()
        }
    }
}

fn pty(size: TerminalSize) -> proto::PTY {
    let size = proto::pty::Size {
        cols: size.cols.into(),
        rows: size.rows.into(),
        ..Default::default()
    };
    proto::PTY {
        size: Some(size).into(),
        ..Default::default()
    }
}

/// What a program says, and how it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It wrote to its standard output.
    Stdout(Bytes),
    /// It wrote to its standard error.
    Stderr(Bytes),
    /// Its terminal shows this.
    Terminal(Bytes),
    /// It ended; nothing comes after this.
    End(Exit),
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// What it returned; -1 where a signal ended it.
    pub exit_code: i32,
    /// Whether it ended by itself.
    pub exited: bool,
    /// In words: `exit status 3`, `signal: killed`.
    pub status: String,
}

/// Signals as envd names them (contract 5.3).
const SIGNALS: [(&str, u8); 12] = [
    ("hangup", 1),
    ("interrupt", 2),
    ("quit", 3),
    ("illegal instruction", 4),
    ("aborted", 6),
    ("bus error", 7),
    ("floating point exception", 8),
    ("killed", 9),
    ("segmentation fault", 11),
    ("broken pipe", 13),
    ("alarm clock", 14),
    ("terminated", 15),
];

impl Exit {
    /// The status as a shell counts it: what the program returned, or 128 and the number of the signal that ended it.
    #[must_use]
    pub fn code(&self) -> u8 {
        if self.exited {
            return self.exit_code.to_le_bytes()[0];
        }
        let name = self.status.strip_prefix("signal: ").unwrap_or_default();
        let named = SIGNALS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number);
        let number = named.or_else(|| {
            name.strip_prefix("signal ")
                .and_then(|number| number.parse().ok())
        });
        number
            .filter(|number| (1..=64).contains(number))
            .map_or(u8::MAX, |number| 128 + number)
    }
}

/// What can be sent to a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Please end.
    Terminate,
    /// End.
    Kill,
}

/// A program that runs. Dropping it does not end the program: only nobody listens any more.
#[derive(Debug)]
pub struct Process {
    control: Control,
    messages: Messages<proto::StartResponse>,
}

impl Process {
    /// Waits until it is said to have started.
    pub(crate) async fn begun(
        sandbox: SandboxClient,
        mut messages: Messages<proto::StartResponse>,
    ) -> Result<Self, CallError> {
        let first = messages
            .next()
            .await?
            .and_then(|message| message.event.into_option()?.event);
        let Some(Told::Start(start)) = first else {
            return Err(CallError::garbled("the first message does not name the program"));
        };
        Ok(Self {
            control: Control {
                sandbox,
                pid: start.pid,
            },
            messages,
        })
    }

    /// Its number in the sandbox.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.control.pid
    }

    /// The way to speak to it, also while somebody waits for what it says.
    #[must_use]
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// The next thing that it says or does. It may be dropped while it waits, and called again.
    ///
    /// # Errors
    /// [`CallError::Cut`] where the sandbox ended, [`CallError::Silent`] where it is not known to live any more.
    pub async fn next(&mut self) -> Result<Event, CallError> {
        loop {
            let message = self.messages.next().await?.ok_or(CallError::Unended)?;
            let event = match message.event.into_option().and_then(|event| event.event) {
                Some(Told::Data(data)) => match data.output {
                    Some(Output::Stdout(bytes)) => Event::Stdout(bytes.into()),
                    Some(Output::Stderr(bytes)) => Event::Stderr(bytes.into()),
                    Some(Output::Pty(bytes)) => Event::Terminal(bytes.into()),
                    None => continue,
                },
                Some(Told::End(end)) => Event::End(Exit {
                    exit_code: end.exit_code,
                    exited: end.exited,
                    status: end.status,
                }),
                // A sign of life, or what a later envd may say.
                Some(Told::Keepalive(_) | Told::Start(_)) | None => continue,
            };
            return Ok(event);
        }
    }

    /// Waits for its end; what it says until then is dropped.
    ///
    /// # Errors
    /// As of [`Process::next`].
    pub async fn wait(mut self) -> Result<Exit, CallError> {
        loop {
            if let Event::End(exit) = self.next().await? {
                return Ok(exit);
            }
        }
    }
}

/// Speaks to a program. Clones speak to the same one.
#[derive(Debug, Clone)]
pub struct Control {
    sandbox: SandboxClient,
    pid: u32,
}

impl Control {
    /// Writes to its standard input, and waits until all is taken, however long it does not read.
    ///
    /// # Errors
    /// [`CallError::Refused`] where it has ended, closed its input, or has none.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), CallError> {
        self.input(proto::process_input::Input::Stdin(bytes.to_vec()))
            .await
    }

    /// Types at its terminal.
    ///
    /// # Errors
    /// [`CallError::Refused`] where it has ended, or has no terminal.
    pub async fn type_in(&self, bytes: &[u8]) -> Result<(), CallError> {
        self.input(proto::process_input::Input::Pty(bytes.to_vec())).await
    }

    /// Ends its standard input.
    ///
    /// # Errors
    /// [`CallError::Refused`] where it has ended, or runs on a terminal, whose end of input is typed: Ctrl+D.
    pub async fn close_stdin(&self) -> Result<(), CallError> {
        let question = proto::CloseStdinRequest {
            process: Some(self.selector()).into(),
            ..Default::default()
        };
        self.ask::<_, proto::CloseStdinResponse>("/process.Process/CloseStdin", &question)
            .await
            .map(drop)
    }

    /// Tells it the new size of its terminal.
    ///
    /// # Errors
    /// [`CallError::Refused`] where it has ended, or has no terminal.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), CallError> {
        let question = proto::UpdateRequest {
            process: Some(self.selector()).into(),
            pty: Some(pty(size)).into(),
            ..Default::default()
        };
        self.ask::<_, proto::UpdateResponse>("/process.Process/Update", &question)
            .await
            .map(drop)
    }

    /// Sends a signal to it, and to nothing that it started.
    ///
    /// # Errors
    /// [`CallError::Refused`] where it has ended.
    pub async fn signal(&self, signal: Signal) -> Result<(), CallError> {
        let signal = match signal {
            Signal::Terminate => proto::Signal::SIGNAL_SIGTERM,
            Signal::Kill => proto::Signal::SIGNAL_SIGKILL,
        };
        let question = proto::SendSignalRequest {
            process: Some(self.selector()).into(),
            signal: signal.into(),
            ..Default::default()
        };
        self.ask::<_, proto::SendSignalResponse>("/process.Process/SendSignal", &question)
            .await
            .map(drop)
    }

    async fn input(&self, input: proto::process_input::Input) -> Result<(), CallError> {
        let input = proto::ProcessInput {
            input: Some(input),
            ..Default::default()
        };
        let question = proto::SendInputRequest {
            process: Some(self.selector()).into(),
            input: Some(input).into(),
            ..Default::default()
        };
        let answer: Result<proto::SendInputResponse, _> =
            rpc::unary(&self.sandbox, "/process.Process/SendInput", None, &question, None).await;
        answer.map(drop)
    }

    async fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        question: &Q,
    ) -> Result<A, CallError> {
        rpc::unary(&self.sandbox, method, None, question, Some(ANSWER_WITHIN)).await
    }

    fn selector(&self) -> proto::ProcessSelector {
        proto::ProcessSelector {
            selector: Some(proto::process_selector::Selector::Pid(self.pid)),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(exit_code: i32, exited: bool, status: &str) -> u8 {
        Exit {
            exit_code,
            exited,
            status: status.to_owned(),
        }
        .code()
    }

    #[test]
    fn ends_are_counted_as_a_shell_counts_them() {
        assert_eq!(code(0, true, "exit status 0"), 0);
        assert_eq!(code(4, true, "exit status 4"), 4);
        assert_eq!(code(255, true, "exit status 255"), 255);
        assert_eq!(code(-1, false, "signal: killed"), 137);
        assert_eq!(code(-1, false, "signal: terminated"), 143);
        assert_eq!(code(-1, false, "signal: signal 34"), 162);
        assert_eq!(code(-1, false, "signal: signal 200"), 255);
        assert_eq!(code(-1, false, "nonsense"), 255);
    }

    #[test]
    fn arguments_are_sent_as_they_are() {
        let program = Program {
            cmd: "echo".to_owned(),
            args: vec!["$HOME; 'a b'".to_owned()],
            ..Program::default()
        };
        let request = serde_json::to_value(program.into_request()).expect("JSON");
        assert_eq!(
            request,
            serde_json::json!({"process": {"cmd": "echo", "args": ["$HOME; 'a b'"]}, "stdin": false})
        );
    }
}
