//! Who has ended: every child is reaped, ours and orphans alike, and whoever waits for one is told.
use std::collections::HashMap;
use std::io;
use std::sync::Mutex;

use rustix::process::{Pid, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Tells who waits for a child how it ended.
#[derive(Default)]
pub(crate) struct Reaper(Mutex<HashMap<u32, watch::Sender<Ended>>>);

/// How a child ended, once it is reaped. From that moment on its number may be given to another.
pub(crate) type Ended = Option<WaitStatus>;

impl Reaper {
    /// The end of a child that was started a moment ago. Called before anything is awaited, so that [`Self::run`], on
    /// the same thread, cannot have reaped it yet.
    pub(crate) fn watch(&self, pid: u32) -> watch::Receiver<Ended> {
        let (tell, told) = watch::channel(None);
        self.0
            .lock()
            .expect("nothing panics while it holds the children")
            .insert(pid, tell);
        told
    }

    /// Reaps for ever.
    pub(crate) async fn run(&self) -> io::Result<()> {
        let mut ended = signal(SignalKind::child())?;
        loop {
            while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                self.tell(pid, status);
            }
            ended.recv().await;
        }
    }

    pub(crate) fn tell(&self, pid: Pid, status: WaitStatus) {
        let pid = pid.as_raw_nonzero().get().unsigned_abs();
        let waiting = self
            .0
            .lock()
            .expect("nothing panics while it holds the children")
            .remove(&pid);
        if let Some(waiting) = waiting {
            waiting.send_replace(Some(status));
        }
    }
}
