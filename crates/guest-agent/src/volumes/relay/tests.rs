//! A device that is a pair of sockets: each message is one request or one reply, as on `/dev/fuse`.
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use tokio::io::DuplexStream;

use super::*;

/// A request, or a reply, of a kind and with a number.
fn message(kind: u32, number: u64) -> Vec<u8> {
    let mut bytes = 16_u32.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&number.to_ne_bytes());
    bytes
}

fn relay() -> (Arc<Relay>, UnixDatagram) {
    let (kernel, device) = UnixDatagram::pair().unwrap();
    device.set_nonblocking(true).unwrap();
    kernel
        .set_read_timeout(Some(std::time::Duration::from_secs(10)))
        .unwrap();
    let tree = std::fs::File::open("/").unwrap();
    (Arc::new(Relay::of(device.into(), tree.into()).unwrap()), kernel)
}

fn serve(relay: &Arc<Relay>) -> (DuplexStream, tokio::task::JoinHandle<io::Result<()>>) {
    let (host, guest) = tokio::io::duplex(1 << 16);
    let relay = Arc::clone(relay);
    (host, tokio::spawn(async move { relay.serve(guest).await }))
}

async fn heard(host: &mut DuplexStream) -> Option<Frame> {
    Frame::read(host).await.unwrap()
}

#[tokio::test]
async fn what_was_not_answered_is_asked_again_and_what_was_is_not() {
    let (relay, kernel) = relay();
    let (mut host, serving) = serve(&relay);
    kernel.send(&message(3, 1)).unwrap();
    kernel.send(&message(2, 9)).unwrap();
    kernel.send(&message(3, 2)).unwrap();
    assert_eq!(heard(&mut host).await, Some(Frame::Request(message(3, 1))));
    assert_eq!(
        heard(&mut host).await,
        Some(Frame::Request(message(3, 2))),
        "nobody forgets aloud"
    );
    Frame::Reply(message(0, 1)).write(&mut host).await.unwrap();
    // Nobody asked that.
    Frame::Reply(message(0, 7)).write(&mut host).await.unwrap();
    let mut got = [0; 64];
    let kernel = tokio::task::spawn_blocking(move || {
        let count = kernel.recv(&mut got).unwrap();
        assert_eq!(&got[..count], message(0, 1));
        kernel
    });
    let kernel = kernel.await.unwrap();
    drop(host);
    let _ = serving.await.unwrap();
    let (mut host, _serving) = serve(&relay);
    assert_eq!(heard(&mut host).await, Some(Frame::Again(message(3, 2))));
    kernel.send(&message(3, 3)).unwrap();
    assert_eq!(heard(&mut host).await, Some(Frame::Request(message(3, 3))));
}

#[tokio::test]
async fn a_newer_stream_takes_the_place_of_one_that_does_not_end() {
    let (relay, kernel) = relay();
    let (_stale, serving) = serve(&relay);
    tokio::task::yield_now().await;
    let (mut host, _newer) = serve(&relay);
    serving.await.unwrap().unwrap();
    kernel.send(&message(3, 1)).unwrap();
    assert_eq!(heard(&mut host).await, Some(Frame::Request(message(3, 1))));
}

#[tokio::test]
async fn a_stream_that_is_to_stop_ends_when_everything_is_answered() {
    let (relay, kernel) = relay();
    let (mut host, serving) = serve(&relay);
    kernel.send(&message(3, 1)).unwrap();
    assert_eq!(heard(&mut host).await, Some(Frame::Request(message(3, 1))));
    Frame::Stop.write(&mut host).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    kernel.send(&message(3, 2)).unwrap();
    assert!(!serving.is_finished());
    Frame::Reply(message(0, 1)).write(&mut host).await.unwrap();
    serving.await.unwrap().unwrap();
    assert_eq!(heard(&mut host).await, None, "nothing more was asked");
    let (mut host, _serving) = serve(&relay);
    assert_eq!(heard(&mut host).await, Some(Frame::Request(message(3, 2))));
}

#[tokio::test]
async fn one_that_is_abandoned_lets_go_of_its_device() {
    let (relay, kernel) = relay();
    let (host, serving) = serve(&relay);
    tokio::task::yield_now().await;
    relay.abandon();
    let _ = serving.await.unwrap();
    drop(host);
    assert!(kernel.send(&message(3, 1)).is_err(), "nobody reads it");
    let (_host, serving) = serve(&relay);
    assert_eq!(
        serving.await.unwrap().unwrap_err().kind(),
        io::ErrorKind::NotConnected
    );
}
