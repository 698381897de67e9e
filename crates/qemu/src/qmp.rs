//! QEMU's monitor, spoken over a Unix socket: one command at a time, every answer bounded in length and in time.
//!
//! The other side runs a guest that may have taken it over. So nothing of what it says is believed beyond its form: a line
//! that is too long, is no JSON, or answers what was not asked ends the connection, and whoever waits is told so.
//!
//! Protocol: <https://www.qemu.org/docs/master/interop/qmp-spec.html>.
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::time::Instant;

/// The longest line that is read. The longest true answer, a list of block nodes, has some kilobytes for each.
const LINE_MAX_BYTES: usize = 1 << 20;
/// Events that a listener may be behind; one that is further behind asks for the state instead.
const EVENTS_BEHIND_MAX: usize = 64;
/// QEMU answers within milliseconds, also under emulation; what is long (migration) is asked for and watched.
pub(crate) const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// What is read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// Why a command was not carried out.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum QmpError {
    /// QEMU said no.
    #[error("QEMU refused {command}: {desc} ({class})")]
    Refused {
        /// What it was asked for.
        command: &'static str,
        /// The kind of refusal.
        class: String,
        /// In its words.
        desc: String,
    },
    /// No answer in time. The command may have been carried out.
    #[error("QEMU did not answer {command} within {within:?}")]
    Late {
        /// What it was asked for.
        command: &'static str,
        /// For how long it was waited.
        within: Duration,
    },
    /// There is no connection, or it broke.
    #[error("QEMU's monitor is gone: {0}")]
    Gone(String),
}

impl From<QmpError> for io::Error {
    fn from(error: QmpError) -> Self {
        let kind = match error {
            QmpError::Refused { .. } => io::ErrorKind::Other,
            QmpError::Late { .. } => io::ErrorKind::TimedOut,
            QmpError::Gone(_) => io::ErrorKind::BrokenPipe,
        };
        io::Error::new(kind, error)
    }
}

/// Something that happened by itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// `STOP`, `RESUME`, `MIGRATION`, …
    pub(crate) name: String,
    /// What goes with it.
    pub(crate) data: Value,
}

type Answer = Result<Value, (String, String)>;

/// Who waits for which answer.
#[derive(Debug, Default)]
struct Waiting {
    /// Number of the last command.
    last: u64,
    answer: Option<(u64, oneshot::Sender<Answer>)>,
}

#[derive(Debug)]
struct Line {
    stream: UnixStream,
    waiting: Mutex<Waiting>,
    events: broadcast::Sender<Event>,
    /// Why the connection is of no use any more.
    broken: watch::Sender<Option<String>>,
}

/// A connection to a QEMU's monitor.
#[derive(Debug)]
pub struct Qmp {
    line: Arc<Line>,
    /// Held by whoever has asked and waits.
    turn: tokio::sync::Mutex<()>,
    reader: tokio::task::AbortHandle,
}

const UNPOISONED: &str = "nothing panics while it holds who waits";

impl Qmp {
    /// Connects to the monitor at a socket's path, and agrees on what is spoken.
    pub(crate) async fn connect(path: &Path, within: Duration) -> Result<Self, QmpError> {
        let connected = tokio::time::timeout(within, UnixStream::connect(path)).await;
        let stream = connected
            .map_err(|_| QmpError::Gone(format!("{} took no connection", path.display())))?
            .map_err(|error| QmpError::Gone(format!("connecting to {}: {error}", path.display())))?;
        Self::over(stream, within).await
    }

    /// Speaks over a stream that stands.
    pub(crate) async fn over(stream: UnixStream, within: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + within;
        let line = Arc::new(Line {
            stream,
            waiting: Mutex::default(),
            events: broadcast::channel(EVENTS_BEHIND_MAX).0,
            broken: watch::channel(None).0,
        });
        let (greeted, mut greeting) = watch::channel(false);
        let read = Arc::clone(&line);
        let reader = tokio::spawn(async move {
            let why = read.listen(greeted).await;
            read.waiting.lock().expect(UNPOISONED).answer = None;
            read.broken.send_replace(Some(why));
        });
        let qmp = Self {
            line,
            turn: tokio::sync::Mutex::default(),
            reader: reader.abort_handle(),
        };
        let heard = async { greeting.wait_for(|greeted| *greeted).await.is_ok() };
        match tokio::time::timeout_at(deadline, heard).await {
            Ok(true) => {}
            Ok(false) => return Err(qmp.gone().await),
            Err(_) => return Err(QmpError::Gone(format!("it did not greet within {within:?}"))),
        }
        qmp.run("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Carries out a command, within [`ANSWERED_WITHIN`].
    pub(crate) async fn run(&self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        self.send(command, arguments, None, ANSWERED_WITHIN).await
    }

    /// The same, with a time of its own.
    pub(crate) async fn run_within(
        &self,
        command: &'static str,
        arguments: Value,
        within: Duration,
    ) -> Result<Value, QmpError> {
        self.send(command, arguments, None, within).await
    }

    /// Puts a descriptor into a set, a new one where none is named. Says which.
    pub(crate) async fn add(&self, fd: BorrowedFd<'_>, set: Option<u64>) -> Result<u64, QmpError> {
        let arguments = set.map_or(json!({}), |set| json!({ "fdset-id": set }));
        let added = self.send("add-fd", arguments, Some(fd), ANSWERED_WITHIN).await?;
        added["fdset-id"]
            .as_u64()
            .ok_or_else(|| QmpError::Gone("it does not say which set a descriptor is in".to_owned()))
    }

    /// Hands a descriptor over, under a name that later commands use.
    pub(crate) async fn hand_over(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        let arguments = json!({ "fdname": name });
        self.send("getfd", arguments, Some(fd), ANSWERED_WITHIN)
            .await
            .map(drop)
    }

    /// Events from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.line.events.subscribe()
    }

    async fn send(
        &self,
        command: &'static str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
        within: Duration,
    ) -> Result<Value, QmpError> {
        let deadline = Instant::now() + within;
        let late = QmpError::Late { command, within };
        let Ok(_turn) = tokio::time::timeout_at(deadline, self.turn.lock()).await else {
            return Err(late);
        };
        if let Some(why) = self.line.broken.borrow().clone() {
            return Err(QmpError::Gone(why));
        }
        let (id, answer) = {
            let mut waiting = self.line.waiting.lock().expect(UNPOISONED);
            waiting.last += 1;
            let (tell, answer) = oneshot::channel();
            waiting.answer = Some((waiting.last, tell));
            (waiting.last, answer)
        };
        let mut text = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        text.push('\n');
        match tokio::time::timeout_at(deadline, self.line.write(text.as_bytes(), fd)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.break_off(format!("writing {command}: {error}"))),
            // Half a command may have been written: nothing can follow it.
            Err(_) => {
                self.break_off(format!("it took no {command}"));
                return Err(late);
            }
        }
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err((class, desc)))) => Err(QmpError::Refused { command, class, desc }),
            Ok(Err(_)) => Err(self.gone().await),
            // Its answer, if it comes, has a number that nobody waits for.
            Err(_) => Err(late),
        }
    }

    fn break_off(&self, why: String) -> QmpError {
        self.reader.abort();
        self.line.broken.send_replace(Some(why.clone()));
        QmpError::Gone(why)
    }

    /// Why it is gone; the reader says so in a moment.
    async fn gone(&self) -> QmpError {
        let mut broken = self.line.broken.subscribe();
        let told = tokio::time::timeout(ANSWERED_WITHIN, broken.wait_for(Option::is_some)).await;
        let why = told.ok().and_then(|told| told.ok()?.clone());
        QmpError::Gone(why.unwrap_or_else(|| "the connection ended".to_owned()))
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Line {
    /// Reads until there is nothing to be read any more, or nothing to be believed. Says why.
    async fn listen(&self, greeted: watch::Sender<bool>) -> String {
        let mut buffer: Vec<u8> = Vec::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = match self
                .stream
                .readable()
                .await
                .and_then(|()| self.stream.try_read(&mut chunk))
            {
                Ok(0) => return "QEMU closed the connection".to_owned(),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return format!("reading: {error}"),
            };
            let mut rest = chunk.get(..read).unwrap_or_default();
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let (line, after) = rest.split_at(end);
                rest = after.get(1..).unwrap_or_default();
                buffer.extend_from_slice(line);
                if let Err(why) = self.take(&buffer, &greeted) {
                    return why;
                }
                buffer.clear();
            }
            buffer.extend_from_slice(rest);
            if buffer.len() > LINE_MAX_BYTES {
                return format!("it sent a line of more than {LINE_MAX_BYTES} bytes");
            }
        }
    }

    fn take(&self, line: &[u8], greeted: &watch::Sender<bool>) -> Result<(), String> {
        if line.len() > LINE_MAX_BYTES {
            return Err(format!("it sent a line of more than {LINE_MAX_BYTES} bytes"));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let Ok(Value::Object(mut said)) = serde_json::from_slice(line) else {
            return Err("it sent something that is no JSON object".to_owned());
        };
        if !*greeted.borrow() {
            if !said.get("QMP").is_some_and(Value::is_object) {
                return Err("it does not greet as QMP does".to_owned());
            }
            greeted.send_replace(true);
            return Ok(());
        }
        if let Some(Value::String(name)) = said.remove("event") {
            let data = said.remove("data").unwrap_or(Value::Null);
            // Whether anybody listens is not its business.
            let _ = self.events.send(Event { name, data });
            return Ok(());
        }
        let answer = match (said.remove("return"), said.remove("error")) {
            (Some(value), None) => Ok(value),
            (None, Some(Value::Object(error))) => {
                let text = |key| {
                    error
                        .get(key)
                        .and_then(Value::as_str)
                        .unwrap_or("unsaid")
                        .to_owned()
                };
                Err((text("class"), text("desc")))
            }
            _ => return Err("it sent what is neither an answer nor an event".to_owned()),
        };
        let id = said.get("id").and_then(Value::as_u64);
        let mut waiting = self.waiting.lock().expect(UNPOISONED);
        match (id, waiting.answer.take()) {
            (Some(id), Some((asked, tell))) if id == asked => {
                let _ = tell.send(answer);
            }
            // Late: whoever asked has gone.
            (Some(id), other) if id <= waiting.last => waiting.answer = other,
            _ => return Err("it answered what it was not asked".to_owned()),
        }
        Ok(())
    }

    /// Writes all of a text; the descriptor goes with its first byte.
    async fn write(&self, text: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut rest = text;
        let mut fd = fd;
        while !rest.is_empty() {
            let sent = self
                .stream
                .async_io(Interest::WRITABLE, || {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    let fds = fd.map(|fd| [fd]);
                    if let Some(fds) = &fds {
                        control.push(SendAncillaryMessage::ScmRights(fds));
                    }
                    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                    let parts = [IoSlice::new(rest)];
                    Ok(rustix::net::sendmsg(
                        self.stream.as_fd(),
                        &parts,
                        &mut control,
                        flags,
                    )?)
                })
                .await?;
            fd = None;
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
