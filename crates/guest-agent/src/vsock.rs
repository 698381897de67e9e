//! The line over vsock: each connection of the host is one stream.
use std::convert::Infallible;
use std::io;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use guest::line::mux::STREAMS_MAX;
use guest::line::{Answer, READY_PORT, VSOCK_PORT};
use tokio::sync::{Semaphore, mpsc};

use crate::boot::pause;
use crate::console::say;
use crate::machine::Machine;
use crate::serve::{hello, serve_stream};
use crate::step::{At as _, Step};

/// Serves all connections, and calls the host back when the machine is ready.
pub(crate) async fn serve(machine: &Arc<Machine>) -> Result<Infallible, Step> {
    let listener = linux::vsock::listen(VSOCK_PORT).at("listening on vsock")?;
    let (accepted, mut connections) = mpsc::channel(1);
    let accept = move || {
        loop {
            match linux::vsock::accept(listener.as_fd()) {
                Ok(connection) => {
                    if accepted.blocking_send(connection).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    // It concerns one connection, or passes: a moment's rest lets something end.
                    say(format_args!("accepting a connection failed: {error}"));
                    pause();
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("line".to_owned())
        .spawn(accept)
        .at("starting a thread")?;
    tokio::spawn(call_back(Arc::clone(machine)));
    let places = Arc::new(Semaphore::new(STREAMS_MAX));
    loop {
        let place = Arc::clone(&places)
            .acquire_owned()
            .await
            .map_err(io::Error::other)
            .at("counting streams")?;
        let Some((connection, peer)) = connections.recv().await else {
            return Err(io::Error::other("its thread is gone")).at("accepting connections");
        };
        // Somebody inside may try as well.
        if peer != linux::vsock::HOST {
            continue;
        }
        // Reading, writing and half-closing a stream socket is the same in every family.
        let connection = std::os::unix::net::UnixStream::from(connection);
        let Ok(stream) = tokio::net::UnixStream::from_std(connection) else {
            continue;
        };
        let machine = Arc::clone(machine);
        tokio::spawn(async move {
            serve_stream(stream, machine).await;
            drop(place);
        });
    }
}

/// Says to the host that the machine is ready. A host that does not listen asks by itself.
async fn call_back(machine: Arc<Machine>) {
    machine.ready().await;
    let line = Answer::done(hello()).to_line();
    let called = tokio::task::spawn_blocking(move || {
        let host = linux::vsock::connect(linux::vsock::HOST, READY_PORT)?;
        std::fs::File::from(host).write_all(&line)
    });
    match called.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => say(format_args!("the host does not wait for a call: {error}")),
        Err(broken) => say(format_args!("calling the host failed: {broken}")),
    }
}
