//! The line on a virtio-serial port: one thread reads it, one writes, and between them and the streams is a pair of sockets for
//! each host that calls.
//!
//! The port's file says surely that bytes came. That its host hung up and another called, it says only to who looks in between, and
//! late: the kernel hears of it on another queue than of bytes, so that a port may seem to have lost its host when the next one has been
//! heard already. See [`guest::line::escape`]. Threads, because nothing but a blocked write waits for a host without asking again and
//! again.
use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guest::line::SERIAL_NAME;
use guest::line::escape::{Decoder, Event, FLAG, Nonce, encode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;

use crate::boot;
use crate::machine::Machine;
use crate::serve::serve_line;
use crate::step::{At as _, Step};

/// The kernel takes no more at once.
const CHUNK_BYTES: usize = 32 * 1024;
/// That a host has come follows at once on that the one before has gone, where it has; a machine that was brought back may hear both
/// late.
const GONE_AFTER: Duration = Duration::from_millis(300);
/// How often it is looked meanwhile.
const LOOK: Duration = Duration::from_millis(1);

/// Serves one host after the other.
pub(crate) async fn serve(machine: &Arc<Machine>) -> Result<Infallible, Step> {
    let port = Arc::new(open()?);
    let (called, mut calls) = mpsc::channel(1);
    let (failed, failure) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("line".to_owned())
        .spawn(move || {
            let Err(error) = listen(&port, &called);
            let _ = failed.send(error);
        })
        .at("starting a thread")?;
    while let Some(call) = calls.recv().await {
        let taken = call
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(call));
        serve_line(taken.at("watching the line")?, machine).await;
    }
    match failure.await {
        Ok(error) => Err(error).at("reading the line"),
        Err(_) => Err(io::Error::other("its thread is gone")).at("reading the line"),
    }
}

/// Finds the port by its name, and opens it: nobody else can then.
fn open() -> Result<File, Step> {
    for _ in 0..boot::PAUSES_MAX {
        let ports = fs::read_dir("/sys/class/virtio-ports");
        for entry in ports.into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim_end() != SERIAL_NAME {
                continue;
            }
            let device = std::path::Path::new("/dev").join(entry.file_name());
            return OpenOptions::new()
                .read(true)
                .write(true)
                .open(&device)
                .at(format!("opening {}", device.display()));
        }
        boot::pause();
    }
    Err(io::Error::from(io::ErrorKind::NotFound)).at(format!("looking for the port {SERIAL_NAME}"))
}

/// A host that called.
struct Call {
    /// What it says goes here, and what is said to it comes from here.
    socket: UnixStream,
    talks: JoinHandle<()>,
}

fn listen(port: &Arc<File>, calls: &mpsc::Sender<UnixStream>) -> io::Result<Infallible> {
    let mut decoder = Decoder::default();
    let (mut chunk, mut heard) = (vec![0; CHUNK_BYTES], Vec::new());
    let mut call: Option<Call> = None;
    loop {
        let count = (&**port).read(&mut chunk)?;
        if count == 0 {
            if call.is_some() && !is_alone(port)? {
                continue;
            }
            hang_up(call.take());
            // Waits until there is a host; it means nothing to it.
            (&**port).write_all(&[FLAG])?;
            continue;
        }
        let mut input = &chunk[..count];
        loop {
            let event = decoder.next(&mut input, &mut heard);
            // What the streams do not take is of nobody any more.
            if event.is_none()
                && let Some(Call { socket, .. }) = &mut call
            {
                let _ = socket.write_all(&heard);
            }
            heard.clear();
            match event {
                None => break,
                Some(Event::Over) => hang_up(call.take()),
                Some(Event::Begins(nonce)) => {
                    let (socket, streams) = UnixStream::pair()?;
                    let talks = talk(port, socket.try_clone()?, nonce)?;
                    call = Some(Call { socket, talks });
                    if calls.blocking_send(streams).is_err() {
                        return Err(io::Error::other("nobody serves it"));
                    }
                }
            }
        }
    }
}

/// Whether a port that seemed to have no host goes on having none.
fn is_alone(port: &File) -> io::Result<bool> {
    let until = Instant::now() + GONE_AFTER;
    loop {
        let mut look = [PollFd::new(port, PollFlags::OUT)];
        poll(&mut look, Some(&Timespec::default()))?;
        if !look[0].revents().contains(PollFlags::HUP) {
            return Ok(false);
        }
        if Instant::now() >= until {
            return Ok(true);
        }
        #[expect(clippy::disallowed_methods, reason = "blocking code, on a thread of its own")]
        std::thread::sleep(LOOK);
    }
}

/// Greets back, and says what the streams say.
fn talk(port: &Arc<File>, mut streams: UnixStream, nonce: Nonce) -> io::Result<JoinHandle<()>> {
    let port = Arc::clone(port);
    std::thread::Builder::new()
        .name("line-out".to_owned())
        .spawn(move || {
            let mut talk = || -> io::Result<()> {
                (&*port).write_all(&nonce.greeting())?;
                let (mut chunk, mut wire) = (vec![0; CHUNK_BYTES], Vec::new());
                loop {
                    let count = streams.read(&mut chunk)?;
                    if count == 0 {
                        return Ok(());
                    }
                    wire.clear();
                    encode(&chunk[..count], &mut wire);
                    (&*port).write_all(&wire)?;
                }
            };
            // The reader hears of it too, and says so.
            let _ = talk();
            let _ = streams.shutdown(Shutdown::Both);
        })
}

/// Ends a call: its streams end, and nothing more is said.
fn hang_up(call: Option<Call>) {
    if let Some(Call { socket, talks }) = call {
        let _ = socket.shutdown(Shutdown::Both);
        let _ = talks.join();
    }
}
