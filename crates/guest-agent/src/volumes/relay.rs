//! Passing on what a file system's kernel asks, and what it is answered.
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use guest::line::frame::{FRAME_BYTES_MAX, Frame, UNDER_WAY_MAX};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};

/// Before what is asked: how long it is, what, and its number.
const HEAD_BYTES: usize = 16;

/// One file system.
#[derive(Debug)]
pub(crate) struct Relay {
    device: Mutex<Option<std::sync::Arc<AsyncFd<OwnedFd>>>>,
    /// The mount, to be found again whatever becomes of its place.
    pub(super) tree: OwnedFd,
    /// What was asked and not answered, by its number.
    asked: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// Something was answered.
    answered: Notify,
    /// Which stream is the newest, and `None` when there will be none.
    newest: watch::Sender<Option<u64>>,
    /// Held by the stream that is served.
    turn: tokio::sync::Mutex<()>,
}

impl Relay {
    pub(super) fn of(device: OwnedFd, tree: OwnedFd) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe; the descriptor is owned here, and nobody replaces it"
        )]
        let device = AsyncFd::new(device)?;
        Ok(Self {
            device: Mutex::new(Some(std::sync::Arc::new(device))),
            tree,
            asked: Mutex::default(),
            answered: Notify::new(),
            newest: watch::channel(Some(0)).0,
            turn: tokio::sync::Mutex::default(),
        })
    }

    fn asked(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Vec<u8>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the device: the kernel ends whatever waits for the file system, and whoever asks from then on is told at once.
    pub(super) fn abandon(&self) {
        self.newest.send_replace(None);
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(device);
    }

    /// Serves a stream until it ends, is to stop, or another comes.
    pub(crate) async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let mut newest = self.newest.subscribe();
        let mut own = None;
        self.newest.send_modify(|newest| {
            *newest = newest.map(|number| number + 1);
            own = *newest;
        });
        let _turn = self.turn.lock().await;
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(device) = device else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (stop, stopped) = watch::channel(false);
        let ask = async {
            let earlier: Vec<Vec<u8>> = self.asked().values().cloned().collect();
            for request in earlier {
                Frame::Again(request).write(&mut writer).await?;
            }
            let mut stopped = stopped.clone();
            let mut buffer = vec![0; FRAME_BYTES_MAX];
            loop {
                let request = tokio::select! {
                    biased;
                    () = told(&mut stopped) => std::future::pending().await,
                    request = self.next(&device, &mut buffer) => request?,
                };
                Frame::Request(request).write(&mut writer).await?;
            }
        };
        let answer = async {
            loop {
                match Frame::read(&mut reader).await? {
                    Some(Frame::Reply(reply)) => self.pass_back(&device, &reply)?,
                    Some(Frame::Stop) => {
                        stop.send_replace(true);
                    }
                    Some(Frame::Request(_) | Frame::Again(_)) => {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    None => return Ok(()),
                }
            }
        };
        let mut stopped = stopped.clone();
        let quiet = async {
            told(&mut stopped).await;
            loop {
                let answered = self.answered.notified();
                if self.asked().is_empty() {
                    return;
                }
                answered.await;
            }
        };
        let another = async {
            let _ = newest.wait_for(|newest| *newest != own).await;
        };
        let ended: io::Result<()> = tokio::select! {
            ended = ask => ended,
            ended = answer => ended,
            () = quiet => Ok(()),
            () = another => Ok(()),
        };
        ended
    }

    /// The next thing that the kernel asks and that has an answer. It is on record when this returns.
    async fn next(&self, device: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<Vec<u8>> {
        loop {
            loop {
                let answered = self.answered.notified();
                if self.asked().len() < UNDER_WAY_MAX {
                    break;
                }
                answered.await;
            }
            let mut ready = device.readable().await?;
            let read = ready.try_io(|device| Ok(rustix::io::read(device, &mut *buffer)?));
            let count = match read {
                Ok(Ok(count)) => count,
                // Whoever asked does not want it any more.
                Ok(Err(error)) if Errno::from_io_error(&error) == Some(Errno::NOENT) => continue,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(Err(error)) => return Err(error),
                Err(_not_ready) => continue,
            };
            let request = &buffer[..count];
            let (Some(kind), Some(number)) = (word(request, 4), long(request, 8)) else {
                return Err(io::Error::other("the kernel asks what is nothing"));
            };
            // To be forgotten, or interrupted: nobody answers it.
            if matches!(kind, 2 | 36 | 42) {
                continue;
            }
            self.asked().insert(number, request.to_vec());
            return Ok(request.to_vec());
        }
    }

    fn pass_back(&self, device: &AsyncFd<OwnedFd>, reply: &[u8]) -> io::Result<()> {
        let number = long(reply, 8).filter(|_| reply.len() >= HEAD_BYTES);
        let number = number.ok_or(io::ErrorKind::InvalidData)?;
        if self.asked().remove(&number).is_none() {
            return Ok(());
        }
        self.answered.notify_waiters();
        match rustix::io::write(device.get_ref(), reply) {
            // Whoever asked is gone.
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::INVAL) => {
                // Nobody is to wait for an answer that the kernel does not take.
                let mut refused = [0; HEAD_BYTES];
                refused[..4].copy_from_slice(&16_u32.to_ne_bytes());
                refused[4..8].copy_from_slice(&(-Errno::IO.raw_os_error()).to_ne_bytes());
                refused[8..].copy_from_slice(&number.to_ne_bytes());
                let _ = rustix::io::write(device.get_ref(), &refused);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Brings what was written to mappings of its files to the host. Blocks.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if self.turn.try_lock().is_ok() {
            return Err(io::Error::other("nobody serves it, who could be waited for"));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&self.tree, ".", flags, Mode::empty())?;
        Ok(rustix::fs::syncfs(&root)?)
    }
}

/// Waits until it is said that no more is to be asked.
async fn told(stopped: &mut watch::Receiver<bool>) {
    // Whoever says it is beside us.
    let _ = stopped.wait_for(|stop| *stop).await;
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
