use std::io::Read as _;
use std::os::unix::net::UnixStream as Plain;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Somebody inside.
const LOCAL: u32 = 1;

type Accepted = io::Result<(OwnedFd, u32)>;

/// As the kernel accepts.
fn accepting(calls: Receiver<Accepted>) -> impl FnMut() -> Accepted + Send {
    move || {
        calls.recv().unwrap_or_else(|_| {
            std::thread::park();
            Err(io::ErrorKind::Interrupted.into())
        })
    }
}

/// Connects as a machine does; one that gets no answer is not waited for.
fn connect(calls: &Sender<Accepted>, peer: u32) -> UnixStream {
    let (ours, theirs) = Plain::pair().unwrap();
    for end in [&ours, &theirs] {
        end.set_nonblocking(true).unwrap();
    }
    calls.send(Ok((theirs.into(), peer))).unwrap();
    UnixStream::from_std(ours).unwrap()
}

/// Says a word of its own first, then what it is told, until there is no more.
async fn echo(mut stream: UnixStream) {
    let _ = stream.write_all(b"!").await;
    let (mut reader, mut writer) = stream.split();
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
}

fn taking(places: usize) -> Sender<Accepted> {
    let (calls, accepted) = channel();
    tokio::spawn(async move {
        let Err(failed) = take(accepting(accepted), places, echo).await;
        panic!("{failed}");
    });
    calls
}

#[tokio::test]
async fn streams_of_the_host_are_served_and_others_are_hung_up_on() {
    let calls = taking(8);
    for peer in [LOCAL, 3, HOST] {
        let mut stream = connect(&calls, peer);
        // Whoever is hung up on may hear of it here.
        let _ = stream.write_all(b"hello").await;
        let _ = stream.shutdown().await;
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said).await;
        assert_eq!(said, if peer == HOST { "!hello" } else { "" }, "{peer}");
    }
}

#[tokio::test]
async fn a_connection_that_fails_ends_no_other() {
    let calls = taking(8);
    for _ in 0..3 {
        calls.send(Err(io::ErrorKind::ConnectionAborted.into())).unwrap();
    }
    assert_eq!(connect(&calls, HOST).read_u8().await.unwrap(), b'!');
}

#[tokio::test]
async fn who_is_one_too_many_waits_for_a_place() {
    let calls = taking(2);
    let mut streams = [(); 3].map(|()| connect(&calls, HOST));
    for stream in &mut streams[..2] {
        assert_eq!(stream.read_u8().await.unwrap(), b'!');
    }
    let [first, _second, third] = &mut streams;
    let early = tokio::time::timeout(Duration::from_millis(50), third.read_u8()).await;
    assert!(early.is_err(), "{early:?}");
    first.shutdown().await.unwrap();
    assert_eq!(third.read_u8().await.unwrap(), b'!');
}

#[tokio::test]
async fn the_host_is_told_who_is_ready_by_one_line() {
    let (mut host, agent) = Plain::pair().unwrap();
    let ready = Hello {
        agent: "1".to_owned(),
        kernel: "6.1".to_owned(),
        uptime_ms: 7,
    };
    call_back(ready.clone(), || Ok(agent.into())).await;
    let mut line = Vec::new();
    host.read_to_end(&mut line).unwrap();
    assert_eq!(line.pop(), Some(b'\n'));
    assert_eq!(Answer::parse(&line).unwrap(), Answer::done(ready.clone()));
    // One that does not listen is none of ours.
    call_back(ready, || Err(io::ErrorKind::ConnectionReset.into())).await;
}
