use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, DuplexStream};
use tokio::net::{UnixListener, UnixStream};

use super::super::escape::{Decoder, Event, FLAG, Nonce, encode};
use super::super::mux::{MuxStream, serve};
use super::*;

/// The guest's end of a serial port, for one conversation: greets back, after whatever is `stale`.
async fn answer_call(socket: UnixStream, stale: &[u8]) -> DuplexStream {
    let (mut reader, mut writer) = socket.into_split();
    let (mut decoder, mut chunk, mut heard) = (Decoder::default(), [0; 4096], Vec::new());
    let nonce: Nonce = 'greeted: loop {
        let count = reader.read(&mut chunk).await.unwrap();
        let mut input = &chunk[..count];
        while let Some(event) = decoder.next(&mut input, &mut heard) {
            if let Event::Begins(nonce) = event {
                break 'greeted nonce;
            }
        }
    };
    writer.write_all(stale).await.unwrap();
    writer.write_all(&nonce.greeting()).await.unwrap();
    let (ours, theirs) = tokio::io::duplex(4096);
    let (mut to_say, mut to_hear) = tokio::io::split(theirs);
    tokio::spawn(async move {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = to_say.read(&mut chunk).await {
            let mut wire = Vec::new();
            encode(&chunk[..count], &mut wire);
            if writer.write_all(&wire).await.is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok(count @ 1..) = reader.read(&mut chunk).await {
            heard.clear();
            let _ = decoder.next(&mut &chunk[..count], &mut heard);
            if to_hear.write_all(&heard).await.is_err() {
                break;
            }
        }
    });
    ours
}

/// A guest that answers each header by what `answer` says, and then sends back what it gets.
async fn guest(socket: UnixStream, answer: fn(Header) -> Vec<u8>) {
    let io = answer_call(socket, b"stale bytes of another host~").await;
    let served = serve(io, |stream| {
        tokio::spawn(echo(stream, answer));
    });
    let _ = served.await;
}

async fn echo(stream: MuxStream, answer: fn(Header) -> Vec<u8>) {
    let mut stream = BufReader::new(stream);
    let line = read_line(&mut stream, 4096).await.unwrap();
    let answer = answer(Header::parse(&line).unwrap());
    stream.write_all(&answer).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
    let _ = writer.shutdown().await;
}

async fn line(answer: fn(Header) -> Vec<u8>) -> Line {
    let (host, ours) = UnixStream::pair().unwrap();
    tokio::spawn(guest(ours, answer));
    Line::connect(host).await.unwrap()
}

fn ok(_: Header) -> Vec<u8> {
    Answer::done(Nothing {}).to_line()
}

#[tokio::test]
async fn many_streams_share_a_line_and_each_ends_by_halves() {
    let line = line(ok).await;
    let each = |seed: u8| {
        let line = line.clone();
        async move {
            let mut stream = line.dial(u16::from(seed) + 1).await.unwrap();
            // Flags and escapes among them.
            let sent: Vec<u8> = (0..100_000_u32).map(|at| (at.to_le_bytes()[0]) ^ seed).collect();
            let (mut reader, mut writer) = tokio::io::split(&mut stream);
            let mut back = Vec::new();
            let (said, heard) = tokio::join!(
                async {
                    writer.write_all(&sent).await?;
                    writer.shutdown().await
                },
                reader.read_to_end(&mut back)
            );
            said.unwrap();
            heard.unwrap();
            assert_eq!(back, sent);
        }
    };
    futures_util::future::join_all((0..40).map(each)).await;
}

#[tokio::test]
async fn what_the_agent_refuses_is_told_as_the_one_who_dials_knows_it() {
    let line = line(|header| match header {
        Header::Port { port: 7 } => {
            Answer::<Nothing>::refused(Reason::Closed, "port 7 is not open").to_line()
        }
        Header::Port { .. } => Answer::<Nothing>::refused(Reason::Failed, "\u{1b}[2J no").to_line(),
        Header::Envd => b"what?\n".to_vec(),
        Header::Agent(_) | Header::Volume { .. } => vec![b'x'; ANSWER_BYTES_MAX + 1],
    })
    .await;
    assert!(matches!(line.dial(7).await, Err(DialError::Closed(7))));
    let failed = line.port(8).await.err().unwrap().to_string();
    assert!(failed.contains(r"\u{1b}[2J no"), "{failed}");
    assert!(matches!(
        line.dial(ENVD_PORT).await,
        Err(DialError::Io { port: ENVD_PORT, .. })
    ));
    assert!(matches!(line.hello().await, Err(LineError::Garbled { .. })));
}

#[tokio::test]
async fn a_guest_that_begins_anew_ends_the_line() {
    let (host, mut ours) = UnixStream::pair().unwrap();
    let calling = tokio::spawn(Line::connect(host));
    let mut greeting = vec![0; 34];
    ours.read_exact(&mut greeting).await.unwrap();
    ours.write_all(&greeting).await.unwrap();
    let line = calling.await.unwrap().unwrap();
    ours.write_all(&[FLAG]).await.unwrap();
    line.over().await;
    assert!(matches!(line.hello().await, Err(LineError::Gone)));
}

#[tokio::test]
async fn a_guest_that_hangs_up_ends_what_waits_on_it() {
    let (host, ours) = UnixStream::pair().unwrap();
    let calling = tokio::spawn(Line::connect(host));
    drop(ours);
    assert!(matches!(
        calling.await.unwrap(),
        Err(LineError::Io { .. } | LineError::Gone)
    ));
}

#[tokio::test]
async fn an_endless_stream_of_nothing_before_the_greeting_is_not_kept() {
    let (host, mut ours) = UnixStream::pair().unwrap();
    let calling = tokio::spawn(Line::connect(host));
    for _ in 0..64 {
        ours.write_all(&[7; 64 * 1024]).await.unwrap();
    }
    let mut greeting = vec![0; 34];
    ours.read_exact(&mut greeting).await.unwrap();
    ours.write_all(&greeting).await.unwrap();
    calling.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_line_over_vsock_is_gone_while_nobody_listens_and_goes_on_after_that() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let line = Line::vsock(&path);
    assert!(matches!(line.port(80).await, Err(LineError::Gone)));
    let listener = UnixListener::bind(&path).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let hang_up = Arc::new(tokio::sync::Notify::new());
    let (count, told) = (Arc::clone(&asked), Arc::clone(&hang_up));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut connect = [0; 13];
            stream.read_exact(&mut connect).await.unwrap();
            assert_eq!(&connect, b"CONNECT 1024\n");
            match count.fetch_add(1, Ordering::SeqCst) {
                // As of a machine that still boots.
                0 => continue,
                2 => stream.write_all(&[b'O'; 64]).await.unwrap(),
                _ => stream.write_all(b"OK 1073741824\n").await.unwrap(),
            }
            // A conversation of two streams.
            let mut streams = tokio::task::JoinSet::new();
            let conversation = serve(stream, |stream| {
                streams.spawn(echo(stream, ok));
            });
            tokio::select! {
                _ = conversation => {}
                () = told.notified() => {}
            }
        }
    });
    assert!(matches!(line.port(80).await, Err(LineError::Gone)));
    for _ in 0..2 {
        let mut stream = line.port(80).await.unwrap();
        stream.write_all(b"more").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut more = String::new();
        stream.read_to_string(&mut more).await.unwrap();
        assert_eq!(more, "more");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2, "both by one connection");
    let mut open = line.port(80).await.unwrap();
    hang_up.notify_one();
    let ended = open.read_to_end(&mut Vec::new()).await;
    assert!(ended.is_err() || ended.is_ok_and(|bytes| bytes == 0));
    let wrong = loop {
        match line.port(80).await {
            Ok(_) | Err(LineError::Gone) => {}
            Err(wrong) => break wrong,
        }
    };
    assert!(matches!(wrong, LineError::Io { .. }), "{wrong}");
    line.port(80).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}
