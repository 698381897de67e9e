//! The launcher: a small process of one thread that makes machines, so that the daemon, which has many threads and much
//! memory, never forks.
mod attach;
pub(crate) mod message;
pub mod serve;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use self::message::{Boot, BootFailed, Reply, Request, error, receive, send};
use crate::criu::child::Start;
use crate::step::{At, Step};

/// A machine is made in a millisecond; a launcher that says nothing for so long is stuck in the kernel.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Called by this name, the launcher copies its standard input to its standard output, and ends.
pub const COPY: &str = "gzip";

/// Called by this name, the launcher becomes the `tar` that comes after it on the path, without the one that compresses.
pub const TAR: &str = "tar";

/// Becomes `tar`, with these arguments but for the one that has a program run beside it by a shell, which would copy what it
/// is given (see [`COPY`]). Returns only on failure.
pub fn tar(arguments: impl Iterator<Item = String>) -> io::Error {
    let arguments: Vec<String> = std::iter::once(TAR.to_owned())
        .chain(arguments.filter(|argument| argument != "--gzip"))
        .collect();
    let path = crate::criu::child::PATH;
    let environment = [format!("PATH={path}")];
    let mut error = io::Error::from(io::ErrorKind::NotFound);
    for dir in path.split(':') {
        error = linux::spawn::become_program(&format!("{dir}/{TAR}"), &arguments, &environment);
        if error.kind() != io::ErrorKind::NotFound {
            break;
        }
    }
    error
}

/// Copies standard input to standard output, for as long as somebody reads it: who unpacks an archive stops at its end, not
/// at that of its padding.
///
/// # Errors
/// What reading or writing answered.
pub fn copy() -> io::Result<()> {
    let mut out = io::stdout().lock();
    let copied = io::copy(&mut io::stdin().lock(), &mut out).and_then(|_| io::Write::flush(&mut out));
    match copied {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        copied => copied,
    }
}

/// The daemon's end. A launcher that died is replaced: machines do not need the one that made them.
#[derive(Debug)]
pub(crate) struct Launcher {
    program: PathBuf,
    /// One request is under way at a time: the launcher has one thread.
    line: Mutex<Option<Line>>,
}

/// A running launcher.
#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    process: Child,
}

/// A child that waits in its namespaces for its order.
#[derive(Debug)]
pub(crate) struct Skeleton {
    /// Its number on the host.
    pub(crate) pid: u32,
    /// Itself.
    pub(crate) pidfd: OwnedFd,
    /// Maps its disk.
    pub(crate) disk_users: OwnedFd,
    /// Where it waits.
    control: OwnedFd,
}

impl Launcher {
    /// Starts the launcher.
    pub(crate) fn start(program: &Path) -> Result<Self, Step> {
        Ok(Self {
            line: Mutex::new(Some(Line::start(program)?)),
            program: program.to_owned(),
        })
    }

    /// Makes a skeleton for the users from `first_user` on, in a cgroup (v2) where one is given.
    pub(crate) fn skeleton(
        &self,
        first_user: u32,
        users: u32,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Skeleton, Step> {
        let (reply, fds) = self.ask(&Request::Skeleton { first_user, users }, cgroup.as_slice())?;
        let mut fds = fds.into_iter();
        match (reply, fds.next(), fds.next(), fds.next()) {
            (Reply::Skeleton { pid }, Some(pidfd), Some(control), Some(disk_users)) => Ok(Skeleton {
                pid,
                pidfd,
                control,
                disk_users,
            }),
            _ => Err(io::Error::other("the launcher answered something else")).at("asking for a skeleton"),
        }
    }

    /// The program.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Names a machine.
    pub(crate) fn rename(&self, machine: BorrowedFd<'_>, name: &str) -> Result<(), Step> {
        self.ask(&Request::Rename(name.to_owned()), &[machine]).map(drop)
    }

    /// User namespaces for the users from `first_user` on: one that maps a disk, and one that maps layers.
    pub(crate) fn users(&self, first_user: u32, users: u32) -> Result<(OwnedFd, OwnedFd), Step> {
        let (reply, fds) = self.ask(&Request::Users { first_user, users }, &[])?;
        let mut fds = fds.into_iter();
        match (reply, fds.next(), fds.next()) {
            (Reply::Done, Some(disk), Some(layers)) => Ok((disk, layers)),
            _ => {
                Err(io::Error::other("the launcher answered something else")).at("asking for user namespaces")
            }
        }
    }

    /// Lets everybody ping in a machine that did not boot.
    pub(crate) fn let_ping(&self, machine: BorrowedFd<'_>) -> Result<(), Step> {
        self.ask(&Request::LetPing, &[machine]).map(drop)
    }

    /// Starts CRIU.
    pub(crate) fn criu(&self, start: Start, fds: &[BorrowedFd<'_>]) -> Result<(u32, OwnedFd), Step> {
        let (reply, fds) = self.ask(&Request::Criu(start), fds)?;
        match (reply, fds.into_iter().next()) {
            (Reply::Started { pid }, Some(pidfd)) => Ok((pid, pidfd)),
            _ => Err(io::Error::other("the launcher answered something else")).at("starting CRIU"),
        }
    }

    /// Attaches a mount in a machine, at a path on which no link is followed; what is missing of it is made, and is then
    /// `owner`'s.
    pub(crate) fn attach(
        &self,
        machine: BorrowedFd<'_>,
        mount: BorrowedFd<'_>,
        path: &str,
        owner: u32,
    ) -> Result<(), Step> {
        let request = Request::Attach {
            path: path.to_owned(),
            owner,
        };
        self.ask(&request, &[machine, mount]).map(drop)
    }

    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>), Step> {
        let mut held = self
            .line
            .lock()
            .expect("nothing panics while it talks to the launcher");
        let asked = match held.as_ref() {
            Some(line) => line.ask(request, fds),
            None => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
        };
        let answered = match asked {
            // What it had begun ended with it, or ends now that nobody is there to give it an order: it can be asked again.
            Err(error) if is_death(&error) => {
                tracing::warn!("the launcher has ended; another is started");
                *held = None;
                held.insert(Line::start(&self.program)?).ask(request, fds)
            }
            asked => asked,
        };
        if answered.is_err() {
            *held = None;
        }
        match answered.at("asking the launcher")? {
            (Reply::Failed { step, errno }, _) => Err(Step {
                step,
                source: error(errno),
            }),
            answer => Ok(answer),
        }
    }
}

fn is_death(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

impl Line {
    fn start(program: &Path) -> Result<Self, Step> {
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) =
            rustix::net::socketpair(kind.0, kind.1, kind.2, None).at("making the launcher's socket")?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&ours, direction, Some(ANSWERS_WITHIN))
                .at("bounding the launcher's answers")?;
        }
        let process = Command::new(program)
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::null())
            .spawn()
            .at(format!("starting {}", program.display()))?;
        Ok(Self {
            socket: ours,
            process,
        })
    }

    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<(Reply, Vec<OwnedFd>)> {
        send(&self.socket, request, fds)?;
        receive(&self.socket)?.ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Drop for Line {
    /// What does not answer ends, and leaves no zombie. It holds nothing that lives on.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Skeleton {
    /// Orders it to become a machine. What it says if it cannot is heard by [`Ordered::why`].
    pub(crate) fn order(self, boot: &Boot, fds: &[BorrowedFd<'_>]) -> Result<Ordered, Step> {
        send(&self.control, boot, fds).at("sending the boot order")?;
        Ok(Ordered {
            control: self.control,
        })
    }
}

/// A machine that is booting.
pub(crate) struct Ordered {
    control: OwnedFd,
}

impl Ordered {
    /// Why it did not come up; to be asked when it has ended.
    pub(crate) fn why(&self) -> String {
        match receive::<BootFailed>(self.control.as_fd()) {
            Ok(Some((failed, _))) => format!("{} failed: {}", failed.step, error(failed.errno)),
            Ok(None) | Err(_) => "it ended without a word".to_owned(),
        }
    }
}
