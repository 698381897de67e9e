//! The flows of slots in the kernel's table of connections.
//!
//! A slot that is used again must not get the answers to its last sandbox's flows, and looking for these takes
//! milliseconds. So a slot that had any is noted when it is released, a thread looks for many slots at once, and whoever
//! claims a slot that is still noted looks for it then.
use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use linux::conntrack::{self, Flow};
use linux::netlink::{Family, Socket};

/// Forgets flows, later or at once.
#[derive(Debug)]
pub(crate) struct Flows {
    shared: Arc<Shared>,
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Held while the table is walked.
    socket: Mutex<Socket>,
    /// Who may have flows that nobody owns any more.
    noted: Mutex<HashSet<Ipv4Addr>>,
}

impl Flows {
    pub(crate) fn open() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            socket: Mutex::new(Socket::open(Family::Netfilter)?),
            noted: Mutex::default(),
        });
        let (wake, woken) = channel();
        let its = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("net-flows".to_owned())
            .spawn(move || its.run(&woken))?;
        Ok(Self {
            shared,
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// Forgets all flows from `source`, soon.
    pub(crate) fn forget_later(&self, source: Ipv4Addr) {
        lock(&self.shared.noted).insert(source);
        if let Some(wake) = &self.wake {
            // Without the thread, whoever claims the slot does it.
            let _ = wake.send(());
        }
    }

    /// Forgets them now, if that has not been done yet.
    pub(crate) fn settle(&self, source: Ipv4Addr) -> io::Result<()> {
        if !lock(&self.shared.noted).contains(&source) {
            return Ok(());
        }
        // The thread takes this lock first too: it never looks for flows of somebody who has just claimed the slot.
        let socket = lock(&self.shared.socket);
        if lock(&self.shared.noted).contains(&source) {
            forget(&socket, Some(source), |_| true)?;
            lock(&self.shared.noted).remove(&source);
        }
        Ok(())
    }

    /// Forgets the flows from `source` that may not stay, by where they go.
    pub(crate) fn forget(&self, source: Ipv4Addr, may_stay: impl Fn(Ipv4Addr) -> bool) -> io::Result<()> {
        let socket = lock(&self.shared.socket);
        forget(&socket, Some(source), |flow| !may_stay(flow.destination))
    }

    /// Forgets all flows whose source is nobody's.
    pub(crate) fn forget_all(&self, is_nobodys: impl Fn(Ipv4Addr) -> bool) -> io::Result<()> {
        let socket = lock(&self.shared.socket);
        forget(&socket, None, |flow| is_nobodys(flow.source))
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, woken: &Receiver<()>) {
        while woken.recv().is_ok() {
            let socket = lock(&self.socket);
            let noted = lock(&self.noted).clone();
            let only = noted.iter().next().copied().filter(|_| noted.len() == 1);
            if noted.is_empty() {
                continue;
            }
            match forget(&socket, only, |flow| noted.contains(&flow.source)) {
                Ok(()) => lock(&self.noted).retain(|source| !noted.contains(source)),
                Err(error) => tracing::warn!(%error, "flows of ended sandboxes are not forgotten yet"),
            }
        }
    }
}

fn forget(socket: &Socket, source: Option<Ipv4Addr>, which: impl Fn(&Flow) -> bool) -> io::Result<()> {
    let mut found = Vec::new();
    conntrack::flows(socket, source, |flow| {
        if which(&flow) {
            found.push(flow);
        }
    })?;
    conntrack::forget(socket, &found)
}

/// Each lock guards one step; a panic in between leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
