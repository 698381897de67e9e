//! One program: its input, its output to whoever listens, its end.
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, WaitStatus};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use crate::process::launch::{self, Ends, Launch, Started};
use crate::reaper::Ended;

/// One piece of output (contract 5.3); a terminal's are half as large.
const CHUNK_BYTES_MAX: usize = 32 * 1024;
const TERMINAL_CHUNK_BYTES_MAX: usize = 16 * 1024;
/// Pieces that wait for a slow listener. Then the program waits: output is bounded by whoever reads it.
const PIECES_MAX: usize = 4;
/// After a kill, what is left in the pipes of a killed program is read up to this; whoever holds them still may go on
/// writing for ever.
const LAST_WORDS_BYTES_MAX: usize = 1 << 20;
/// And for no longer than this: a listener that does not listen must not keep a killed program alive.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);

/// What a listener hears.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Data(Output),
    End(End),
}

/// A piece of output.
#[derive(Debug, Clone)]
pub(super) enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    Terminal(Bytes),
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) exit_code: i32,
    pub(super) exited: bool,
    pub(super) status: String,
    pub(super) error: Option<String>,
}

/// Why input was not taken.
#[derive(Debug)]
pub(super) enum InputError {
    /// It has no such input, or not any more.
    NotEnabled(&'static str),
    Broken(io::Error),
}

/// One program.
pub(super) struct Running {
    pub(super) pid: u32,
    pub(super) launch: Launch,
    listeners: Mutex<Vec<mpsc::Sender<Event>>>,
    stdin: tokio::sync::Mutex<Option<pipe::Sender>>,
    terminal: Option<AsyncFd<OwnedFd>>,
    outputs: Mutex<Option<(pipe::Receiver, pipe::Receiver)>>,
    /// Whether its own process is gone, though others may hold its output.
    reaped: watch::Receiver<Ended>,
    /// A client ended it: output that others still hold open is not waited for.
    killed: watch::Sender<bool>,
    end: watch::Sender<Option<End>>,
}

impl Running {
    pub(super) fn new(launch: Launch, started: Started, reaped: watch::Receiver<Ended>) -> Self {
        let (stdin, outputs, terminal) = match started.ends {
            Ends::Pipes {
                stdin,
                stdout,
                stderr,
            } => (stdin, Some((stdout, stderr)), None),
            Ends::Terminal(terminal) => (None, None, Some(terminal)),
        };
        Self {
            pid: started.pid,
            launch,
            listeners: Mutex::default(),
            stdin: tokio::sync::Mutex::new(stdin),
            terminal,
            outputs: Mutex::new(outputs),
            reaped,
            killed: watch::channel(false).0,
            end: watch::channel(None).0,
        }
    }

    /// Whether its own process is there, and its number its own.
    pub(super) fn is_there(&self) -> bool {
        self.reaped.borrow().is_none()
    }

    /// How it ended, once it has.
    pub(super) fn end(&self) -> Option<End> {
        self.end.borrow().clone()
    }

    pub(super) async fn wait_for_end(&self) {
        let _ = self.end.subscribe().wait_for(Option::is_some).await;
    }

    /// Hears everything from now on, and the end; of an ended program, the end.
    pub(super) fn subscribe(&self) -> mpsc::Receiver<Event> {
        let (tell, hear) = mpsc::channel(PIECES_MAX);
        // Under the lock, so that the end is told once: by us, or by the driver that finds us in the list.
        let mut listeners = self
            .listeners
            .lock()
            .expect("nothing panics while it holds the listeners");
        match self.end() {
            Some(end) => {
                let _ = tell.try_send(Event::End(end));
            }
            None => listeners.push(tell),
        }
        hear
    }

    /// Carries its output to its end. All data is told before the end.
    pub(super) async fn drive(&self) {
        let outputs = self
            .outputs
            .lock()
            .expect("nothing panics while it holds the outputs")
            .take();
        let (over, is_over) = watch::channel(false);
        let reaped = async || {
            let mut reaped = self.reaped.clone();
            let status = reaped.wait_for(Option::is_some).await;
            status.ok().and_then(|status| *status)
        };
        let waits = async {
            reaped().await;
            // The end waits for whoever holds the output, unless a client ended it.
            let _ = self.killed.subscribe().wait_for(|killed| *killed).await;
            over.send_replace(true);
            tokio::time::sleep(LAST_WORDS_WITHIN).await;
        };
        let reads = async {
            match (outputs, &self.terminal) {
                (Some((stdout, stderr)), _) => {
                    let stdout = self.pump(stdout, Output::Stdout, is_over.clone());
                    tokio::join!(stdout, self.pump(stderr, Output::Stderr, is_over));
                }
                (None, Some(terminal)) => self.pump_terminal(terminal, is_over).await,
                (None, None) => {}
            }
        };
        tokio::select! {
            () = reads => {}
            () = waits => {}
        }
        let end = reaped().await.map_or_else(unknown_end, end_of);
        let listeners = {
            let mut listeners = self
                .listeners
                .lock()
                .expect("nothing panics while it holds the listeners");
            self.end.send_replace(Some(end.clone()));
            std::mem::take(&mut *listeners)
        };
        for listener in listeners {
            if let Err(mpsc::error::TrySendError::Full(end)) = listener.try_send(Event::End(end.clone())) {
                // Whoever is slow learns of it later, and holds nobody back.
                tokio::spawn(async move { listener.send(end).await });
            }
        }
        *self.stdin.lock().await = None;
    }

    async fn pump(
        &self,
        mut from: pipe::Receiver,
        what: fn(Bytes) -> Output,
        mut is_over: watch::Receiver<bool>,
    ) {
        let mut last_words = 0;
        loop {
            let mut piece = Vec::with_capacity(CHUNK_BYTES_MAX);
            let over = *is_over.borrow();
            let read = if over {
                if last_words > LAST_WORDS_BYTES_MAX {
                    return;
                }
                // What is in the pipe already is still the program's.
                match from.try_read_buf(&mut piece) {
                    Ok(n) => n,
                    Err(_) => return,
                }
            } else {
                tokio::select! {
                    biased;
                    read = from.read_buf(&mut piece) => read.unwrap_or(0),
                    _ = is_over.wait_for(|over| *over) => continue,
                }
            };
            if read == 0 {
                return;
            }
            last_words += if over { read } else { 0 };
            piece.shrink_to_fit();
            self.tell(what(piece.into())).await;
        }
    }

    async fn pump_terminal(&self, terminal: &AsyncFd<OwnedFd>, mut is_over: watch::Receiver<bool>) {
        let mut buffer = vec![0; TERMINAL_CHUNK_BYTES_MAX];
        loop {
            let ready = tokio::select! {
                biased;
                ready = terminal.readable() => ready,
                _ = is_over.wait_for(|over| *over) => return,
            };
            let Ok(mut ready) = ready else { return };
            match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut buffer)?)) {
                Ok(Ok(0)) => return,
                Ok(Ok(read)) => {
                    self.tell(Output::Terminal(Bytes::copy_from_slice(&buffer[..read])))
                        .await
                }
                // EIO: nobody has the terminal open any more.
                Ok(Err(_)) => return,
                Err(_would_block) => {}
            }
        }
    }

    /// Tells every listener, waiting for the slow and forgetting the gone.
    async fn tell(&self, output: Output) {
        let listeners = self
            .listeners
            .lock()
            .expect("nothing panics while it holds the listeners")
            .clone();
        let mut gone = false;
        for listener in &listeners {
            gone |= listener.send(Event::Data(output.clone())).await.is_err();
        }
        if gone {
            self.listeners
                .lock()
                .expect("nothing panics while it holds the listeners")
                .retain(|listener| !listener.is_closed());
        }
    }

    pub(super) async fn write_stdin(&self, data: &[u8]) -> Result<(), InputError> {
        if self.terminal.is_some() {
            return Err(InputError::NotEnabled(
                "tty assigned to process, use the pty input",
            ));
        }
        let mut stdin = self.stdin.lock().await;
        let Some(pipe) = stdin.as_mut() else {
            return Err(InputError::NotEnabled("stdin not enabled or closed"));
        };
        let ended = self.wait_for_end();
        tokio::select! {
            written = pipe.write_all(data) => written.map_err(InputError::Broken),
            () = ended => Err(InputError::NotEnabled("stdin not enabled or closed")),
        }
    }

    pub(super) async fn write_terminal(&self, data: &[u8]) -> Result<(), InputError> {
        let Some(terminal) = &self.terminal else {
            return Err(InputError::NotEnabled("tty not assigned to process"));
        };
        let mut rest = data;
        while !rest.is_empty() {
            let mut ready = tokio::select! {
                ready = terminal.writable() => ready.map_err(InputError::Broken)?,
                () = self.wait_for_end() => return Err(InputError::NotEnabled("the terminal is closed")),
            };
            match ready.try_io(|fd| Ok(rustix::io::write(fd, rest)?)) {
                Ok(written) => rest = &rest[written.map_err(InputError::Broken)?..],
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// Closes its input; closing it twice is no error. `false`: it is on a terminal, whose end of input is typed.
    pub(super) async fn close_stdin(&self) -> bool {
        if self.terminal.is_some() {
            return false;
        }
        *self.stdin.lock().await = None;
        true
    }

    /// Resizes its terminal; `None`: it has none.
    pub(super) fn resize(&self, cols: u16, rows: u16) -> Option<io::Result<()>> {
        self.terminal
            .as_ref()
            .map(|terminal| launch::resize(terminal.get_ref(), cols, rows))
    }

    /// Signals it alone, not its group.
    pub(super) fn signal(&self, signal: Signal) {
        // Of what is reaped the number may be another's; what it left behind is not waited for all the same.
        if self.is_there()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, signal);
        }
        self.killed.send_replace(true);
    }
}

fn end_of(status: WaitStatus) -> End {
    if let Some(code) = status.exit_status() {
        let status = format!("exit status {code}");
        return End {
            exit_code: code,
            exited: true,
            error: (code != 0).then(|| status.clone()),
            status,
        };
    }
    /// Of wait(2).
    const DUMPED: i32 = 0x80;
    let signal = status.terminating_signal().unwrap_or(0);
    let dumped = if status.as_raw() & DUMPED != 0 {
        " (core dumped)"
    } else {
        ""
    };
    let status = match signal_name(signal) {
        Some(name) => format!("signal: {name}{dumped}"),
        None => format!("signal: signal {signal}{dumped}"),
    };
    End {
        exit_code: -1,
        exited: false,
        error: Some(status.clone()),
        status,
    }
}

/// As Go calls it, whose words clients know.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        16 => "stack fault",
        17 => "child exited",
        18 => "continued",
        19 => "stopped (signal)",
        20 => "stopped",
        21 => "stopped (tty input)",
        22 => "stopped (tty output)",
        23 => "urgent I/O condition",
        24 => "CPU time limit exceeded",
        25 => "file size limit exceeded",
        26 => "virtual timer expired",
        27 => "profiling timer expired",
        28 => "window changed",
        29 => "I/O possible",
        30 => "power failure",
        31 => "bad system call",
        _ => return None,
    })
}

fn unknown_end() -> End {
    End {
        exit_code: -1,
        exited: false,
        status: "unknown".to_owned(),
        error: Some("the end of the process was not seen".to_owned()),
    }
}
