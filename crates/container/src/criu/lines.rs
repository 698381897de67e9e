//! Connections from outside to envd, which are cut while its machine is written down: CRIU cannot restore the end of a
//! connection whose other end is not among what it restores.
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use crate::agent;

/// envd lets go of a connection as soon as it hears that the other end is gone.
const CUT_WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// The connections to one machine's envd.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// Held, together with others, by whoever connects; alone, by whoever wants nobody to.
    gate: tokio::sync::RwLock<()>,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    lines: BTreeMap<u64, OwnedFd>,
}

/// A connection that can be cut from here.
#[derive(Debug)]
pub(crate) struct Line {
    stream: UnixStream,
    number: u64,
    open: Arc<Mutex<Open>>,
}

impl Lines {
    /// Connects.
    pub(crate) async fn connect(&self, path: &str) -> io::Result<Line> {
        let _gate = self.gate.read().await;
        let stream = UnixStream::connect(path).await?;
        let end = rustix::io::fcntl_dupfd_cloexec(stream.as_fd(), 0)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let number = open.next;
        open.next += 1;
        open.lines.insert(number, end);
        drop(open);
        Ok(Line {
            stream,
            number,
            open: Arc::clone(&self.open),
        })
    }

    /// Cuts all of them, and lets nobody connect while what is returned is held. Says whether envd has let go of all.
    /// Blocks; the machine must be running.
    pub(crate) fn cut(&self, pid: u32) -> (tokio::sync::RwLockWriteGuard<'_, ()>, bool) {
        let gate = self.gate.blocking_write();
        for end in self
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lines
            .values()
        {
            let _ = rustix::net::shutdown(end, Shutdown::Both);
        }
        let deadline = Instant::now() + CUT_WITHIN;
        let mut are_gone = !has_connections(pid);
        while !are_gone && Instant::now() < deadline {
            #[expect(clippy::disallowed_methods, reason = "blocking code, off the runtime")]
            std::thread::sleep(LOOK_EVERY);
            are_gone = !has_connections(pid);
        }
        (gate, are_gone)
    }
}

/// Whether somebody is connected to the host-only socket of a machine. Ends that envd has accepted, or is about to, carry
/// its name in `/proc/net/unix` ([proc_net(5)](https://man7.org/linux/man-pages/man5/proc_pid_net.5.html)).
fn has_connections(pid: u32) -> bool {
    /// `__SO_ACCEPTCON`: it listens.
    const LISTENS: u32 = 0x1_0000;
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    sockets.lines().any(|line| {
        let mut fields = line.split_whitespace();
        let flags = fields
            .nth(3)
            .and_then(|flags| u32::from_str_radix(flags, 16).ok());
        let path = fields.nth(3).unwrap_or_default();
        path.strip_prefix('/') == Some(agent::SOCKET) && flags.is_some_and(|flags| flags & LISTENS == 0)
    })
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.lines.remove(&self.number);
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, from)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
