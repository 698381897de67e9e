//! One QEMU on the host, as it is started, and how its monitor is reached.
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use linux::netns;
use linux::spawn::Bounds;
use microvm::process::{Heard, LISTENS_WITHIN, Process};
use ports::step::{At, Step};
use tokio::net::UnixStream;

use crate::qmp::Qmp;
use crate::users::User;

/// Three for each image of a disk, which has some tens at most; its sockets, and events of its devices.
const DESCRIPTORS_MAX: u64 = 1024;
/// QEMU has up to 64 for reading and writing, and a few for what else there is.
const THREADS_BESIDE: u64 = 128;

/// What a QEMU is given, and what it is not.
#[derive(Debug)]
pub(crate) struct Rights {
    /// Whom it runs as; `None`: as whoever the daemon is.
    pub(crate) user: Option<User>,
    /// Descriptors, which have the same numbers there.
    pub(crate) given: Vec<OwnedFd>,
    /// No file that it writes to becomes longer.
    pub(crate) file_bytes: u64,
    /// Threads that run a guest's instructions.
    pub(crate) cpus: u32,
    /// The network namespace that it is in; `None`: the daemon's.
    pub(crate) netns: Option<OwnedFd>,
    /// Control groups that it is in from the beginning, by the files by which it joins them.
    pub(crate) groups: Vec<OwnedFd>,
}

impl Rights {
    fn bounds(&self) -> Bounds {
        Bounds {
            file_bytes: self.file_bytes,
            descriptors: DESCRIPTORS_MAX,
            // Where it has no user of its own the threads of all that its user runs are counted.
            tasks: self.user.map(|_| threads_max(self.cpus)),
        }
    }
}

/// Threads of a QEMU with so many processors, at most.
pub(crate) fn threads_max(cpus: u32) -> u64 {
    u64::from(cpus) + THREADS_BESIDE
}

/// Starts one, in a process group of its own: what a terminal tells the daemon is not for it.
pub(crate) fn start(program: &Path, arguments: &[OsString], rights: Rights) -> Result<Process, Step> {
    let step = || match rights.user {
        Some(User { uid, .. }) => format!("starting {} as user {uid}", program.display()),
        None => format!("starting {}", program.display()),
    };
    let (reader, writer) = io::pipe().at(step())?;
    let heard = Heard::by(reader).at(step())?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(writer.try_clone().at(step())?)
        .stderr(writer);
    if let Some(User { uid, gid }) = rights.user {
        // Of the groups that the daemon is of none is left.
        command.uid(uid).gid(gid);
    }
    let bounds = rights.bounds();
    linux::spawn::join(&mut command, rights.groups);
    linux::spawn::confine(&mut command, bounds);
    for given in rights.given {
        linux::spawn::hand_down(&mut command, given);
    }
    let child = match rights.netns {
        Some(netns) => {
            let home = netns::current().at(step())?;
            netns::within(netns.as_fd(), home.as_fd(), || command.spawn()).at(step())?
        }
        None => command.spawn(),
    };
    let child = child.at(step())?;
    drop(command);
    // It is our child and nobody has waited for it, so its number is its own.
    let watched = Process::watch(child.id(), heard);
    if watched.is_err() {
        let mut child = child;
        let _ = child.kill();
        let _ = child.wait();
    }
    watched
}

/// Connects to its monitor, and listens to its serial port from now on.
pub(crate) async fn listen(process: &Process, qmp: &Path, serial: &Path) -> Result<Qmp, Step> {
    let step = || format!("connecting to QEMU, process {}", process.identity.pid);
    let connect = || async { Ok(Qmp::connect(qmp, LISTENS_WITHIN).await?) };
    let qmp = process.reach(connect).await.at(step())?;
    let serial = UnixStream::connect(serial).await.at(step())?;
    let log = Arc::clone(&process.log);
    tokio::spawn(async move { log.take_in(serial).await });
    Ok(qmp)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn rights() -> Rights {
        Rights {
            user: None,
            given: Vec::new(),
            file_bytes: 1 << 20,
            cpus: 1,
            netns: None,
            groups: Vec::new(),
        }
    }

    #[tokio::test]
    async fn what_does_not_listen_is_told_with_its_last_words() {
        let script = ["-c".into(), "echo no such machine >&2".into()];
        let process = start(Path::new("/bin/sh"), &script, rights()).unwrap();
        let nowhere = Path::new("/nowhere/qmp");
        let failed = tokio::time::timeout(SOON, listen(&process, nowhere, nowhere))
            .await
            .unwrap();
        let failed = failed.map(drop).unwrap_err();
        assert!(
            failed.source.to_string().contains("no such machine"),
            "{failed:?}"
        );
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_an_error() {
        let failed = start(Path::new("/nowhere/qemu"), &[], rights()).unwrap_err();
        assert_eq!(failed.source.kind(), io::ErrorKind::NotFound);
    }
}
