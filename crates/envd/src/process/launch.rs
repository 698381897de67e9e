//! From a request to a running program.
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use linux::spawn::{Manner, spawn};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use crate::users::User;

/// User code is ended before envd when memory is short: raising needs no privilege, and is not undone by user code.
const OOM_SCORE_ADJ: i16 = 100;

/// A program to be started, and, once it runs, how it was.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub(super) cmd: String,
    pub(super) args: Vec<String>,
    /// What the client gave.
    pub(super) envs: BTreeMap<String, String>,
    /// What it gets.
    pub(super) env: BTreeMap<String, String>,
    /// Where, absolute.
    pub(super) cwd: String,
    /// Where, as the client gave it.
    pub(super) asked_cwd: Option<String>,
    pub(super) user: User,
    pub(super) tag: Option<String>,
    pub(super) stdin: bool,
    /// Columns and rows, for a program on a terminal.
    pub(super) terminal: Option<(u16, u16)>,
}

/// A program that was started a moment ago.
pub(super) struct Started {
    pub(super) pid: u32,
    pub(super) ends: Ends,
}

/// Our ends of what it reads and writes.
pub(super) enum Ends {
    Pipes {
        stdin: Option<pipe::Sender>,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
    },
    Terminal(AsyncFd<OwnedFd>),
}

/// Why there is no program.
#[derive(Debug)]
pub(super) enum LaunchError {
    NoDirectory(String),
    Refused(io::Error),
}

impl std::fmt::Display for LaunchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LaunchError::NoDirectory(cwd) => write!(f, "cwd '{cwd}' does not exist"),
            LaunchError::Refused(error) => write!(f, "error starting process: {error}"),
        }
    }
}

impl Launch {
    pub(super) fn start(&self) -> Result<Started, LaunchError> {
        if !std::path::Path::new(&self.cwd).is_dir() {
            return Err(LaunchError::NoDirectory(self.cwd.clone()));
        }
        let direct = self.attempt(Command::new(&self.cmd), &self.args);
        match direct {
            // A program that is not there is the command's failure, with the shell's words and exit code, and not ours;
            // and a script that names no interpreter is the shell's own.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) || error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) =>
            {
                let told = ["-c", "exec \"$0\" \"$@\"", &self.cmd]
                    .into_iter()
                    .map(str::to_owned);
                let args: Vec<String> = told.chain(self.args.iter().cloned()).collect();
                self.attempt(Command::new("/bin/sh"), &args)
                    .map_err(|_| LaunchError::Refused(error))
            }
            outcome => outcome.map_err(LaunchError::Refused),
        }
    }

    fn attempt(&self, mut command: Command, args: &[String]) -> io::Result<Started> {
        command
            .args(args)
            .env_clear()
            .envs(&self.env)
            .current_dir(&self.cwd);
        let ends = match self.terminal {
            Some(size) => self.on_terminal(&mut command, size)?,
            None => self.on_pipes(&mut command)?,
        };
        let manner = Manner {
            terminal: self.terminal.is_some(),
            oom_score_adj: OOM_SCORE_ADJ,
        };
        let pid = spawn(command, &self.user.identity(), manner)?.id();
        Ok(Started { pid, ends })
    }

    fn on_pipes(&self, command: &mut Command) -> io::Result<Ends> {
        let pair = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from);
        let stdin = if self.stdin {
            let (theirs, ours) = pair()?;
            command.stdin(theirs);
            Some(pipe::Sender::from_owned_fd(ours)?)
        } else {
            command.stdin(Stdio::null());
            None
        };
        let (stdout, theirs_out) = pair()?;
        let (stderr, theirs_err) = pair()?;
        command.stdout(theirs_out).stderr(theirs_err);
        // Programs may open /dev/stdout anew, which asks for the pipe's owner.
        if rustix::process::geteuid().is_root() {
            for end in [&stdout, &stderr] {
                let _ = rustix::fs::fchown(
                    end,
                    Some(rustix::process::Uid::from_raw(self.user.uid)),
                    Some(rustix::process::Gid::from_raw(self.user.gid)),
                );
            }
        }
        Ok(Ends::Pipes {
            stdin,
            stdout: pipe::Receiver::from_owned_fd(stdout)?,
            stderr: pipe::Receiver::from_owned_fd(stderr)?,
        })
    }

    fn on_terminal(&self, command: &mut Command, (cols, rows): (u16, u16)) -> io::Result<Ends> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&ours)?;
        rustix::pty::unlockpt(&ours)?;
        let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
        if rustix::process::geteuid().is_root() {
            let _ = rustix::fs::fchown(&theirs, Some(rustix::process::Uid::from_raw(self.user.uid)), None);
        }
        resize(&ours, cols, rows)?;
        command
            .stdin(theirs.try_clone()?)
            .stdout(theirs.try_clone()?)
            .stderr(theirs);
        rustix::io::ioctl_fionbio(&ours, true)?;
        #[expect(
            deprecated,
            reason = "an OwnedFd is what it is until its end, which is all that registering asks for"
        )]
        let ours = AsyncFd::new(ours)?;
        Ok(Ends::Terminal(ours))
    }
}

/// Tells a terminal, and the program on it, its size.
pub(super) fn resize(terminal: &OwnedFd, cols: u16, rows: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}
