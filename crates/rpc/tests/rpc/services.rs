//! Resume on traffic, and files of volumes, over the network.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::world::{Cluster, Served};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use model::{Kind, MiB, NodeId, SandboxId, VolumeId};
use ports::blobs::ByteStream;
use ports::volumes::{FileError, FileKind, FileStat, Ownership};
use ports::{Presented, VolumeFiles, Wake, WakeRefused};
use rpc::{RemoteVolumes, RemoteWake, Role, Services};
use tokio::sync::watch;

#[derive(Default)]
struct Waker {
    asked: Mutex<Vec<String>>,
    refuses: Mutex<Option<WakeRefused>>,
}

#[async_trait]
impl Wake for Waker {
    async fn wake(&self, sandbox: SandboxId, presented: Presented) -> Result<(), WakeRefused> {
        self.asked
            .lock()
            .unwrap()
            .push(format!("{sandbox} {presented:?}"));
        self.refuses.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

#[tokio::test]
async fn a_wake_arrives_as_it_was_asked_and_so_does_every_refusal() {
    let (cluster, waker) = (Cluster::new("blue"), Arc::new(Waker::default()));
    let services = Services::new().wake(Arc::clone(&waker) as Arc<dyn Wake>);
    let served = Served::start(cluster.tls(Role::Orchestrator, "o-1"), services).await;
    let (_keep, peers) = watch::channel(vec![served.address()]);
    let remote = RemoteWake::new(peers, &cluster.tls(Role::Edge, "edge-1"));
    let sandbox = SandboxId::random();
    let presented = Presented {
        port: 65_535,
        envd_token: Some("one".to_owned()),
        traffic_token: None,
    };
    remote.wake(sandbox, presented.clone()).await.unwrap();
    assert_eq!(*waker.asked.lock().unwrap(), [format!("{sandbox} {presented:?}")]);
    for refused in [
        WakeRefused::NotFound,
        WakeRefused::Denied,
        WakeRefused::Transitioning,
        WakeRefused::Exhausted("twenty sandboxes run already".to_owned()),
        WakeRefused::Failed,
    ] {
        *waker.refuses.lock().unwrap() = Some(refused.clone());
        assert_eq!(remote.wake(sandbox, Presented::default()).await, Err(refused));
    }
}

#[tokio::test]
async fn peers_that_do_not_answer_are_passed_over() {
    let (cluster, waker) = (Cluster::new("blue"), Arc::new(Waker::default()));
    let services = Services::new().wake(Arc::clone(&waker) as Arc<dyn Wake>);
    let served = Served::start(cluster.tls(Role::Api, "api-1"), services).await;
    let gone = Served::start(cluster.tls(Role::Api, "api-2"), Services::new()).await;
    let away = gone.kill().await;
    let (change, peers) = watch::channel(vec![away.to_string(), served.address()]);
    let remote = RemoteWake::new(peers, &cluster.tls(Role::Edge, "edge-1"));
    for _ in 0..10 {
        remote
            .wake(SandboxId::random(), Presented::default())
            .await
            .unwrap();
    }
    change.send(vec![away.to_string()]).unwrap();
    let woken = remote.wake(SandboxId::random(), Presented::default()).await;
    assert_eq!(woken, Err(WakeRefused::Failed));
    change.send(Vec::new()).unwrap();
    let woken = remote.wake(SandboxId::random(), Presented::default()).await;
    assert_eq!(woken, Err(WakeRefused::Failed));
}

/// One volume's files by path.
#[derive(Default)]
struct Files {
    asked: Mutex<Vec<String>>,
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    fails: Mutex<Option<FileError>>,
    held: Mutex<Vec<VolumeId>>,
}

fn stat(path: &str, size: u64) -> FileStat {
    FileStat {
        name: path.rsplit('/').next().unwrap().to_owned(),
        path: path.to_owned(),
        kind: FileKind::Symlink,
        size,
        mode: 0o100_644,
        uid: 1000,
        gid: 1001,
        atime: SystemTime::UNIX_EPOCH + Duration::from_nanos(1),
        mtime: SystemTime::UNIX_EPOCH - Duration::from_nanos(2),
        ctime: SystemTime::UNIX_EPOCH + Duration::from_nanos(3),
        target: Some("elsewhere".to_owned()),
    }
}

impl Files {
    fn enter(&self, asked: String) -> Result<(), FileError> {
        self.asked.lock().unwrap().push(asked);
        self.fails.lock().unwrap().take().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl VolumeFiles for Files {
    async fn make(&self, id: VolumeId, size: MiB) -> Result<(), FileError> {
        self.enter(format!("make {id} {size}"))
    }
    async fn discard(&self, id: VolumeId) -> Result<(), FileError> {
        self.enter(format!("discard {id}"))
    }
    async fn held(&self) -> Result<Vec<VolumeId>, FileError> {
        self.enter("held".to_owned())?;
        Ok(self.held.lock().unwrap().clone())
    }
    async fn stat(&self, id: VolumeId, path: &str) -> Result<FileStat, FileError> {
        self.enter(format!("stat {id} {path}"))?;
        Ok(stat(path, 7))
    }
    async fn change(&self, id: VolumeId, path: &str, ownership: Ownership) -> Result<FileStat, FileError> {
        self.enter(format!("change {id} {path} {ownership:?}"))?;
        Ok(stat(path, 8))
    }
    async fn list(&self, id: VolumeId, path: &str, depth: u32) -> Result<Vec<FileStat>, FileError> {
        self.enter(format!("list {id} {path} {depth}"))?;
        Ok((0..1000)
            .map(|number| stat(&format!("{path}/{number}"), number))
            .collect())
    }
    async fn make_dir(
        &self,
        id: VolumeId,
        path: &str,
        ownership: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError> {
        self.enter(format!("make_dir {id} {path} {ownership:?} {force}"))?;
        Ok(stat(path, 9))
    }
    async fn remove(&self, id: VolumeId, path: &str) -> Result<(), FileError> {
        self.enter(format!("remove {id} {path}"))
    }
    async fn read(&self, id: VolumeId, path: &str) -> Result<(u64, ByteStream), FileError> {
        self.enter(format!("read {id} {path}"))?;
        let files = self.files.lock().unwrap();
        let bytes = files
            .get(path)
            .ok_or_else(|| FileError::NotFound(path.to_owned()))?;
        let pieces: Vec<_> = bytes
            .chunks(300_000)
            .map(Bytes::copy_from_slice)
            .map(Ok)
            .collect();
        Ok((bytes.len() as u64, futures_util::stream::iter(pieces).boxed()))
    }
    async fn write(
        &self,
        id: VolumeId,
        path: &str,
        mut bytes: ByteStream,
        ownership: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError> {
        self.enter(format!("write {id} {path} {ownership:?} {force}"))?;
        let mut whole = Vec::new();
        while let Some(piece) = bytes.next().await {
            whole.extend_from_slice(&piece.map_err(FileError::Source)?);
        }
        let length = whole.len() as u64;
        self.files.lock().unwrap().insert(path.to_owned(), whole);
        Ok(stat(path, length))
    }
}

async fn volumes() -> (Arc<Files>, Served, Arc<dyn VolumeFiles>) {
    let (cluster, files, node) = (Cluster::new("blue"), Arc::new(Files::default()), NodeId::random());
    let services = Services::new().volumes(Arc::clone(&files) as Arc<dyn VolumeFiles>);
    let served = Served::start(cluster.node_tls(node), services).await;
    let remote = RemoteVolumes::connect(node, &served.address(), &cluster.tls(Role::Api, "api-1"));
    (files, served, remote)
}

#[tokio::test]
async fn every_call_for_files_arrives_as_it_was_made_and_so_does_its_answer() {
    let (files, _served, remote) = volumes().await;
    let id = VolumeId::random();
    let owner = Ownership {
        uid: Some(0),
        gid: None,
        mode: Some(0o700),
    };
    remote.make(id, MiB(64)).await.unwrap();
    remote.discard(id).await.unwrap();
    *files.held.lock().unwrap() = vec![id, VolumeId::random()];
    assert_eq!(remote.held().await.unwrap(), *files.held.lock().unwrap());
    assert_eq!(remote.stat(id, "/a b/ü").await.unwrap(), stat("/a b/ü", 7));
    assert_eq!(remote.change(id, "/a", owner).await.unwrap(), stat("/a", 8));
    let listed = remote.list(id, "/a", 3).await.unwrap();
    assert_eq!(listed.len(), 1000);
    assert_eq!(listed[999], stat("/a/999", 999));
    assert_eq!(
        remote.make_dir(id, "/d", owner, true).await.unwrap(),
        stat("/d", 9)
    );
    remote.remove(id, "/d").await.unwrap();
    let expected = [
        format!("make {id} {}", MiB(64)),
        format!("discard {id}"),
        "held".to_owned(),
        format!("stat {id} /a b/ü"),
        format!("change {id} /a {owner:?}"),
        format!("list {id} /a 3"),
        format!("make_dir {id} /d {owner:?} true"),
        format!("remove {id} /d"),
    ];
    assert_eq!(*files.asked.lock().unwrap(), expected);
}

#[tokio::test]
async fn files_are_written_whole_or_not_at_all_and_read_as_they_were_written() {
    let (files, _served, remote) = volumes().await;
    let id = VolumeId::random();
    for length in [0, 1, 3_000_000_usize] {
        let bytes: Vec<u8> = (0..length).map(|at| u8::try_from(at % 249).unwrap()).collect();
        let pieces: Vec<io::Result<Bytes>> = bytes
            .chunks(700_000)
            .map(Bytes::copy_from_slice)
            .map(Ok)
            .collect();
        let pieces = futures_util::stream::iter(pieces).boxed();
        let written = remote
            .write(id, "/f", pieces, Ownership::default(), false)
            .await
            .unwrap();
        assert_eq!(written.size, length as u64);
        let (size, mut read) = remote.read(id, "/f").await.unwrap();
        assert_eq!(size, length as u64);
        let mut whole = Vec::new();
        while let Some(piece) = read.next().await {
            whole.extend_from_slice(&piece.unwrap());
        }
        assert!(whole == bytes);
    }
    let broken = [
        Ok(Bytes::from_static(b"half")),
        Err(io::Error::other("the client is gone")),
    ];
    let pieces = futures_util::stream::iter(broken).boxed();
    let written = remote.write(id, "/g", pieces, Ownership::default(), false).await;
    assert!(
        matches!(&written, Err(FileError::Source(error)) if error.to_string() == "the client is gone"),
        "{written:?}"
    );
    assert!(!files.files.lock().unwrap().contains_key("/g"));
    assert!(matches!(remote.read(id, "/g").await, Err(FileError::NotFound(path)) if path == "/g"));
}

#[tokio::test]
async fn every_error_of_files_arrives_as_what_it_is() {
    let (files, _served, remote) = volumes().await;
    let id = VolumeId::random();
    let errors: [fn(VolumeId) -> FileError; 9] = [
        |_| FileError::NoVolume,
        FileError::InUse,
        |_| FileError::NotFound("/a".to_owned()),
        |_| FileError::Exists("/a".to_owned()),
        |_| FileError::WrongKind {
            path: "/a".to_owned(),
            wanted: "a directory",
        },
        |_| FileError::Invalid("a path must not be empty".to_owned()),
        |_| FileError::Full,
        |_| FileError::Source(io::Error::other("gone")),
        |_| FileError::Failed {
            step: "opening it",
            source: io::Error::other("/a/secret/path"),
        },
    ];
    for error in errors {
        *files.fails.lock().unwrap() = Some(error(id));
        let told = remote.stat(id, "/a").await.unwrap_err();
        assert_eq!(told.to_string(), error(id).to_string());
        assert_eq!(told.kind(), error(id).kind());
        assert_eq!(std::mem::discriminant(&told), std::mem::discriminant(&error(id)));
        assert!(!format!("{told:?}").contains("secret"));
        *files.fails.lock().unwrap() = Some(error(id));
        let nothing = futures_util::stream::empty().boxed();
        let told = remote
            .write(id, "/a", nothing, Ownership::default(), true)
            .await
            .unwrap_err();
        assert_eq!(told.to_string(), error(id).to_string());
    }
}

#[tokio::test]
async fn files_are_served_to_the_api_and_to_no_node_edge_or_operator() {
    let (cluster, files, node) = (Cluster::new("blue"), Arc::new(Files::default()), NodeId::random());
    let services = Services::new().volumes(Arc::clone(&files) as Arc<dyn VolumeFiles>);
    let served = Served::start(cluster.node_tls(node), services).await;
    let id = VolumeId::random();
    let nobody = [
        cluster.node_tls(NodeId::random()),
        // Not even itself.
        cluster.node_tls(node),
        cluster.tls(Role::Edge, "edge-1"),
        cluster.tls(Role::Admin, "admin-1"),
    ];
    for tls in &nobody {
        let remote = RemoteVolumes::connect(node, &served.address(), tls);
        let nothing = futures_util::stream::empty().boxed();
        let outcomes = [
            remote.make(id, MiB(64)).await,
            remote.discard(id).await,
            remote.held().await.map(drop),
            remote.stat(id, "/").await.map(drop),
            remote.list(id, "/", 1).await.map(drop),
            remote.read(id, "/f").await.map(drop),
            remote.remove(id, "/f").await,
            remote
                .write(id, "/f", nothing, Ownership::default(), true)
                .await
                .map(drop),
        ];
        for outcome in outcomes {
            let error = outcome.unwrap_err();
            assert_eq!(error.to_string(), "being let in by the node failed");
        }
    }
    // Who looks after volumes does not look into them.
    let remote = RemoteVolumes::connect(node, &served.address(), &cluster.tls(Role::Orchestrator, "o-1"));
    remote.read(id, "/f").await.map(drop).unwrap_err();
    remote.stat(id, "/f").await.unwrap_err();
    assert!(files.asked.lock().unwrap().is_empty());
    remote.make(id, MiB(64)).await.unwrap();
    remote.held().await.unwrap();
    remote.discard(id).await.unwrap();
    assert_eq!(files.asked.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn volumes_of_a_node_that_is_not_reached_are_told_with_it() {
    let (_files, served, remote) = volumes().await;
    let id = VolumeId::random();
    remote.stat(id, "/").await.unwrap();
    served.kill().await;
    let nothing = || futures_util::stream::empty().boxed();
    for outcome in [
        remote.make(id, MiB(64)).await,
        remote.discard(id).await,
        remote.stat(id, "/").await.map(drop),
        remote.list(id, "/", 1).await.map(drop),
        remote.read(id, "/f").await.map(drop),
        remote
            .write(id, "/f", nothing(), Ownership::default(), true)
            .await
            .map(drop),
    ] {
        let error = outcome.unwrap_err();
        assert!(
            matches!(error, FileError::Away { volume, .. } if volume == id),
            "{error:?}"
        );
        assert_eq!(error.kind(), Kind::Unavailable);
    }
    remote.held().await.unwrap_err();
}
