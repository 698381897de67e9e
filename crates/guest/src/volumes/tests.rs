//! A volume on a real image, served over a stream. Takes root.
use model::MiB;
use ports::VolumeFiles as _;
use tokio::io::AsyncWriteExt as _;

use super::serve::{End, talk};
use super::*;
use crate::line::frame::Frame;

/// How the root is: a request of the kernel's.
fn about_root(unique: u8) -> Vec<u8> {
    let mut request = vec![0; 56];
    request[0] = 56;
    request[4] = 3;
    request[8] = unique;
    request[16] = 1;
    request
}

async fn with_volume(test: impl AsyncFnOnce(Arc<Export>)) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Volumes::open(dir.path(), dir.path().join("images")).unwrap());
    let id = VolumeId::random();
    volumes::Files::new(Arc::clone(&store), || true)
        .make(id, MiB(16))
        .await
        .unwrap();
    test(store.export(id, "machine").unwrap()).await;
    store.take_back("machine");
}

async fn reply(guest: &mut tokio::io::DuplexStream) -> u8 {
    match Frame::read(guest).await.unwrap() {
        Some(Frame::Reply(reply)) => reply[8],
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_was_asked_is_answered_before_it_is_quiet() {
    with_volume(async |export| {
        let (mut guest, host) = tokio::io::duplex(1 << 16);
        let (stop, mut stopped) = watch::channel(false);
        let talking = tokio::spawn(async move { talk(host, &export, &mut stopped).await });
        Frame::Request(about_root(5)).write(&mut guest).await.unwrap();
        assert_eq!(reply(&mut guest).await, 5);
        stop.send_replace(true);
        assert_eq!(Frame::read(&mut guest).await.unwrap(), Some(Frame::Stop));
        // It was on its way already.
        Frame::Again(about_root(6)).write(&mut guest).await.unwrap();
        assert_eq!(reply(&mut guest).await, 6);
        guest.shutdown().await.unwrap();
        assert_eq!(talking.await.unwrap(), End::Quiet);
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_says_what_is_nothing_is_not_heard_any_more() {
    with_volume(async |export| {
        for frame in [
            Frame::Request(b"nothing".to_vec()),
            Frame::Reply(Vec::new()),
            Frame::Stop,
        ] {
            let (mut guest, host) = tokio::io::duplex(1 << 16);
            let (_stop, mut stopped) = watch::channel(false);
            frame.write(&mut guest).await.unwrap();
            let end = talk(host, &export, &mut stopped).await;
            assert!(matches!(end, End::Malformed(_)), "{frame:?}: {end:?}");
        }
        let (guest, host) = tokio::io::duplex(1 << 16);
        let (_stop, mut stopped) = watch::channel(false);
        drop(guest);
        assert_eq!(talk(host, &export, &mut stopped).await, End::Broken);
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_asks_without_end_is_heard_as_it_is_answered() {
    with_volume(async |export| {
        let (guest, host) = tokio::io::duplex(1 << 12);
        let (_stop, mut stopped) = watch::channel(false);
        let talking = tokio::spawn(async move { talk(host, &export, &mut stopped).await });
        let (mut reader, mut writer) = tokio::io::split(guest);
        let asking = tokio::spawn(async move {
            for unique in 0..200_u8 {
                Frame::Request(about_root(unique))
                    .write(&mut writer)
                    .await
                    .unwrap();
            }
            writer
        });
        let mut answered = std::collections::BTreeSet::new();
        while answered.len() < 200 {
            match Frame::read(&mut reader).await.unwrap() {
                Some(Frame::Reply(reply)) => assert!(answered.insert(reply[8])),
                other => panic!("{other:?}"),
            }
        }
        drop((reader, asking.await.unwrap()));
        assert_eq!(talking.await.unwrap(), End::Broken);
    })
    .await;
}

#[test]
fn a_tag_is_of_one_volume_at_one_place() {
    let (one, other) = (VolumeId::random(), VolumeId::random());
    assert_eq!(tag(one, "/a"), tag(one, "/a"));
    assert_ne!(tag(one, "/a"), tag(one, "/b"));
    assert_ne!(tag(one, "/a"), tag(other, "/a"));
}
