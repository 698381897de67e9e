use tokio::io::AsyncReadExt as _;

use super::*;

/// What somebody in Firecracker's place replies to who connects.
async fn replied(reply: &'static [u8]) -> io::Result<BufReader<UnixStream>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let device = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = [0; 13];
        stream.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"CONNECT 1024\n");
        // It may have hung up before all was said.
        let _ = stream.write_all(reply).await;
    });
    let connected = connect(&path, 1024).await;
    device.await.unwrap();
    connected
}

#[tokio::test]
async fn a_port_that_is_open_is_a_stream_from_its_first_byte_on() {
    let mut stream = replied(b"OK 4294967295\nmore").await.unwrap();
    let mut more = String::new();
    stream.read_to_string(&mut more).await.unwrap();
    assert_eq!(more, "more");
}

#[tokio::test]
async fn what_firecracker_would_not_reply_is_refused() {
    for (reply, kind) in [
        (&b""[..], io::ErrorKind::ConnectionRefused),
        (b"OK 1", io::ErrorKind::ConnectionRefused),
        (b"OK \n", io::ErrorKind::InvalidData),
        (b"OK x\n", io::ErrorKind::InvalidData),
        (b"OK 4294967296\n", io::ErrorKind::InvalidData),
        (b"OK 1 \n", io::ErrorKind::InvalidData),
        (b"OK \xff\n", io::ErrorKind::InvalidData),
        (b"\n", io::ErrorKind::InvalidData),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", io::ErrorKind::InvalidData),
        (&[b'1'; 4096], io::ErrorKind::InvalidData),
    ] {
        let refused = replied(reply).await.unwrap_err();
        assert_eq!(refused.kind(), kind, "{}: {refused}", reply.escape_ascii());
        assert!(refused.to_string().len() < 200, "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_reply_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vsock");
    let _silent = UnixListener::bind(&path).unwrap();
    let late = connect(&path, 1).await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
}

fn hello() -> Hello {
    Hello {
        agent: "1".to_owned(),
        kernel: "6.1".to_owned(),
        uptime_ms: 7,
    }
}

async fn call(ready: &Ready, words: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(ready.socket()).await.unwrap();
    // Who hears nonsense hangs up in the middle of it.
    let _ = stream.write_all(words).await;
    stream
}

#[tokio::test]
async fn a_machine_that_calls_is_ready_and_whoever_says_something_else_is_not_heard() {
    let dir = tempfile::tempdir().unwrap();
    let vsock = dir.path().join("vsock");
    let left = Ready::listen(&vsock).unwrap();
    // As by a process that was killed: what it left is taken over.
    std::mem::forget(left);
    let ready = Ready::listen(&vsock).unwrap();
    assert_eq!(ready.socket(), dir.path().join("vsock_9000"));
    let says = Answer::done(hello()).to_line();
    let (heard, ()) = tokio::join!(ready.called(), async {
        drop(call(&ready, b"").await);
        drop(call(&ready, b"{}\n").await);
        drop(call(&ready, &says[..says.len() - 1]).await);
        drop(call(&ready, br#"{"error":"no"}"#).await);
        drop(call(&ready, &[b'['; 2 * ANSWER_BYTES_MAX]).await);
        drop(call(&ready, &says).await);
    });
    assert_eq!(heard.unwrap(), hello());
    let socket = ready.socket().to_owned();
    drop(ready);
    assert!(!socket.exists());
}

#[tokio::test(start_paused = true)]
async fn one_that_calls_and_says_nothing_keeps_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let ready = Ready::listen(&dir.path().join("vsock")).unwrap();
    let _silent = call(&ready, b"").await;
    let _speaks = call(&ready, &Answer::done(hello()).to_line()).await;
    assert_eq!(ready.called().await.unwrap(), hello());
}

#[tokio::test]
async fn a_place_that_is_none_for_a_socket_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Ready::listen(&dir.path().join("absent/vsock")).is_err());
    assert!(Ready::listen(&dir.path().join("v".repeat(120))).is_err());
}
