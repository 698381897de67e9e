//! The line over vsock: each connection of the host is one conversation.
use std::convert::Infallible;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use guest::line::{Answer, Hello, READY_PORT, VSOCK_PORT};
use linux::vsock::HOST;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};

use crate::boot::pause;
use crate::console::say;
use crate::machine::Machine;
use crate::serve::{hello, serve_line};
use crate::step::{At as _, Step};

/// A host has one of them; another daemon may begin before the last one's end was noticed.
const LINES_MAX: usize = 4;

/// Serves all connections, and calls the host back when the machine is ready.
pub(crate) async fn serve(machine: &Arc<Machine>) -> Result<Infallible, Step> {
    let listener = linux::vsock::listen(VSOCK_PORT).at("listening on vsock")?;
    let ours = Arc::clone(machine);
    tokio::spawn(async move {
        ours.ready().await;
        call_back(hello(), || linux::vsock::connect(HOST, READY_PORT)).await;
    });
    let accept = move || linux::vsock::accept(listener.as_fd());
    let machine = Arc::clone(machine);
    let serve = move |stream| {
        let machine = Arc::clone(&machine);
        async move { serve_line(stream, &machine).await }
    };
    take(accept, LINES_MAX, serve).await
}

/// Takes connections, which are not blocking and come with the number of the machine that they are from, and has those of the
/// host's served, so many at a time. More wait.
async fn take<S>(
    accept: impl FnMut() -> io::Result<(OwnedFd, u32)> + Send + 'static,
    places: usize,
    serve: impl Fn(UnixStream) -> S,
) -> Result<Infallible, Step>
where
    S: Future<Output = ()> + Send + 'static,
{
    let (accepted, mut connections) = mpsc::channel(1);
    std::thread::Builder::new()
        .name("line".to_owned())
        .spawn(move || listen(accept, &accepted))
        .at("starting a thread")?;
    let places = Arc::new(Semaphore::new(places));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let place = place.map_err(io::Error::other).at("counting connections")?;
        let Some(connection) = connections.recv().await else {
            return Err(io::Error::other("its thread is gone")).at("accepting connections");
        };
        // Reading, writing and half-closing a stream socket is the same in every family.
        let connection = std::os::unix::net::UnixStream::from(connection);
        let Ok(stream) = UnixStream::from_std(connection) else {
            continue;
        };
        let served = serve(stream);
        tokio::spawn(async move {
            served.await;
            drop(place);
        });
    }
}

/// Accepts until nobody takes what it does.
fn listen(mut accept: impl FnMut() -> io::Result<(OwnedFd, u32)>, accepted: &mpsc::Sender<OwnedFd>) {
    let mut has_failed = false;
    loop {
        match accept() {
            Ok((connection, HOST)) => {
                has_failed = false;
                if accepted.blocking_send(connection).is_err() {
                    return;
                }
            }
            // Somebody inside may try as well.
            Ok(_) => {}
            Err(error) => {
                // It concerns one connection, or passes: a moment's rest lets something end. It is said once in a row.
                if !has_failed {
                    say(format_args!("accepting a connection failed: {error}"));
                }
                has_failed = true;
                pause();
            }
        }
    }
}

/// Says to the host that the machine is ready. A host that does not listen asks by itself.
async fn call_back(hello: Hello, connect: impl FnOnce() -> io::Result<OwnedFd> + Send + 'static) {
    let line = Answer::done(hello).to_line();
    let called = tokio::task::spawn_blocking(move || std::fs::File::from(connect()?).write_all(&line));
    if let Err(error) = called
        .await
        .unwrap_or_else(|broken| Err(io::Error::other(broken)))
    {
        say(format_args!("the host does not wait for a call: {error}"));
    }
}

#[cfg(test)]
mod tests;
