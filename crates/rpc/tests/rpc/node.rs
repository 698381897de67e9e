//! A node over the network: what is said on one side is heard on the other.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::world::fake::{BuildPlan, FakeNode, build_order, order};
use crate::world::{PATIENCE, Pair, Proxy, Served, until};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use model::recipe::{Context, Key};
use model::{
    BuildFailure, BuildId, BuildStep, ExecutionId, KillReason, Kind, Memory, NetworkPolicy, NodeId,
    PauseMode, SandboxId, Secret,
};
use ports::blobs::{BlobError, ByteStream};
use ports::builds::{BuildError, BuildLine, BuildShelf, BuildTalk, CachedStep};
use ports::logs::Level;
use ports::node::Draining;
use ports::root::{Change, ChangeKind, Changes};
use ports::volumes::FileKind;
use ports::{LogQuery, Node, NodeError, NodeEvent};
use rpc::{Bounds, RemoteNode, Role, Services};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn every_call_arrives_as_it_was_made_and_so_does_its_answer() {
    let pair = Pair::new().await;
    let remote = &pair.remote;
    assert_eq!(remote.id(), pair.fake.id());
    let (sandbox, execution, build) = (SandboxId::random(), ExecutionId::random(), BuildId::random());
    let mut expected = Vec::new();

    let order = order();
    remote.start(order.clone()).await.unwrap();
    let token = order.envd_token.as_ref().map(Secret::expose);
    expected.push(format!("start {order:?} {token:?}"));

    for mode in [PauseMode::Full, PauseMode::Filesystem] {
        let outcome = remote.pause(sandbox, execution, build, mode).await.unwrap();
        assert_eq!(outcome, FakeNode::outcome());
        expected.push(format!("pause {sandbox} {execution} {build} {mode:?}"));
    }

    let copied = remote.checkpoint(sandbox, execution, build, true).await.unwrap();
    assert_eq!(copied, Memory::Volatile);
    expected.push(format!("checkpoint {sandbox} {execution} {build} true"));

    let builds = remote.builds().await.unwrap();
    assert_eq!(builds, pair.fake.builds().await.unwrap());
    expected.extend(["builds".to_owned(), "builds".to_owned()]);

    remote.remove_builds(&vec![build; 10_001]).await.unwrap();
    expected.extend(["remove_builds 10000".to_owned(), "remove_builds 1".to_owned()]);

    assert_eq!(remote.kin_of(build).await.unwrap(), [build]);
    expected.push(format!("kin_of {build}"));

    let kin = ["sha256:01".to_owned()];
    assert_eq!(remote.stow_build(build, &kin).await.unwrap(), "sha256:00");
    expected.push(format!("stow_build {build} {kin:?}"));

    remote.fetch_build(build, "sha256:00").await.unwrap();
    expected.push(format!("fetch_build {build} sha256:00"));

    let living =
        vec!["sha256:0123456789012345678901234567890123456789012345678901234567890123".to_owned(); 300_000];
    assert_eq!(remote.sweep_stowed(&living).await.unwrap(), 300_000);
    expected.push("sweep_stowed 300000".to_owned());

    let changes = remote.changes(sandbox, execution).await.unwrap();
    assert_eq!(changes, pair.fake.changes(sandbox, execution).await.unwrap());
    expected.extend(vec![format!("changes {sandbox} {execution}"); 2]);

    assert!(remote.is_healthy(sandbox, execution).await.unwrap());
    expected.push(format!("is_healthy {sandbox} {execution}"));

    for why in [
        KillReason::Requested,
        KillReason::Timeout,
        KillReason::StartFailed,
        KillReason::Crashed,
        KillReason::NodeLost,
    ] {
        remote.kill(sandbox, why).await.unwrap();
        expected.push(format!("kill {sandbox} {why:?}"));
    }

    let deadline = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_800_000_000_000_000_001);
    remote.set_deadline(sandbox, execution, deadline).await.unwrap();
    expected.push(format!("set_deadline {sandbox} {execution} {deadline:?}"));

    for accepts in [false, true] {
        remote.set_accepts(accepts).await.unwrap();
        expected.push(format!("set_accepts {accepts}"));
    }
    for kills in [false, true] {
        let how = Draining { deadline, kills };
        remote.drain(how).await.unwrap();
        expected.push(format!("drain {how:?}"));
    }

    let policy = NetworkPolicy {
        deny: vec!["10.0.0.0/8".parse().unwrap()],
        ..NetworkPolicy::default()
    };
    remote
        .set_network(sandbox, execution, policy.clone())
        .await
        .unwrap();
    expected.push(format!("set_network {sandbox} {execution} {policy:?}"));

    let samples = remote.metrics(sandbox, None, Some(deadline)).await.unwrap();
    assert_eq!(
        samples,
        pair.fake.metrics(sandbox, None, Some(deadline)).await.unwrap()
    );
    expected.extend(vec![format!("metrics {sandbox} None {:?}", Some(deadline)); 2]);

    let query = LogQuery {
        from: Some(deadline),
        limit: 1000,
        forward: true,
        level: Some(Level::Warn),
        search: Some("✓".to_owned()),
    };
    let lines = remote.logs(sandbox, query.clone()).await.unwrap();
    assert_eq!(lines, pair.fake.logs(sandbox, query.clone()).await.unwrap());
    expected.extend(vec![format!("logs {sandbox} {query:?}"); 2]);

    assert_eq!(pair.fake.calls(), expected);
}

#[tokio::test]
async fn a_report_arrives_whole_however_much_is_held() {
    let pair = Pair::new().await;
    for held in [0, 1, 5, 256, 257, 3000] {
        let report = pair.fake.report_now(held);
        pair.fake.set_report(report.clone());
        assert_eq!(pair.remote.report().await.unwrap(), report);
    }
}

#[tokio::test]
async fn changes_arrive_whole_and_are_cut_where_they_were() {
    let pair = Pair::new().await;
    let entry = |number: usize| Change {
        path: format!("/home/user/{number}"),
        kind: [ChangeKind::Added, ChangeKind::Modified, ChangeKind::Deleted][number % 3],
        file: [
            FileKind::File,
            FileKind::Directory,
            FileKind::Symlink,
            FileKind::Other,
        ][number % 4],
    };
    for (count, is_cut) in [(0, false), (1, true), (10_000, true)] {
        let changes = Changes {
            entries: (0..count).map(entry).collect(),
            is_cut,
        };
        pair.fake.set_changes(changes.clone());
        let read = pair
            .remote
            .changes(SandboxId::random(), ExecutionId::random())
            .await;
        assert_eq!(read.unwrap(), changes);
    }
}

#[tokio::test]
async fn every_error_of_a_node_arrives_as_what_it_is() {
    let pair = Pair::new().await;
    let build = BuildId::random();
    let errors: [fn(BuildId) -> NodeError; 11] = [
        |_| NodeError::Unknown,
        |_| NodeError::MemoryLost,
        |_| NodeError::MemoryUnusable("it is of another kernel"),
        NodeError::NoBuild,
        |_| NodeError::Busy("being paused"),
        |_| NodeError::Full {
            what: "memory",
            retry_after: Some(Duration::from_millis(1234)),
        },
        |_| NodeError::Full {
            what: "slots",
            retry_after: None,
        },
        |_| NodeError::CannotCheckpoint("it has a device open".to_owned()),
        |_| NodeError::Refused("this runtime does not support volumes".to_owned()),
        |_| NodeError::Timeout("starting"),
        |_| NodeError::Failed {
            step: "making its network",
            kind: Kind::Exhausted,
            source: "/a/secret/path".into(),
        },
    ];
    for error in errors {
        pair.fake.fail_next(error(build));
        let told = pair.remote.start(order()).await.unwrap_err();
        let said = error(build);
        assert_eq!(told.to_string(), said.to_string());
        assert_eq!(format!("{:?}", told.kind()), format!("{:?}", said.kind()));
        assert_eq!(std::mem::discriminant(&told), std::mem::discriminant(&said));
        assert!(!format!("{told:?}").contains("secret"), "{told:?}");
        // Also where the answer is a stream.
        pair.fake.fail_next(error(build));
        let told = pair.remote.report().await.unwrap_err();
        assert_eq!(told.to_string(), said.to_string());
        pair.fake.fail_next(error(build));
        let (sandbox, execution) = (SandboxId::random(), ExecutionId::random());
        let told = pair.remote.export(sandbox, execution).await.err().unwrap();
        assert_eq!(told.to_string(), said.to_string());
    }
}

#[tokio::test]
async fn a_root_is_exported_byte_by_byte_and_breaks_off_where_it_did() {
    let pair = Pair::new().await;
    let (sandbox, execution) = (SandboxId::random(), ExecutionId::random());
    let big = Bytes::from_iter((0..3_000_001_u32).map(|at| u8::try_from(at % 251).unwrap()));
    pair.fake
        .set_export(vec![Ok(big.clone()), Ok(Bytes::from_static(b"end"))]);
    let mut root = pair.remote.export(sandbox, execution).await.unwrap();
    let mut read = Vec::new();
    while let Some(piece) = root.next().await {
        read.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(read.len(), big.len() + 3);
    assert!(read.starts_with(&big) && read.ends_with(b"end"));

    pair.fake.set_export(Vec::new());
    let mut root = pair.remote.export(sandbox, execution).await.unwrap();
    assert!(root.next().await.is_none());

    let broken = std::io::Error::other("the disk is gone");
    pair.fake
        .set_export(vec![Ok(Bytes::from_static(b"begin")), Err(broken)]);
    let mut root = pair.remote.export(sandbox, execution).await.unwrap();
    assert_eq!(root.next().await.unwrap().unwrap(), "begin");
    assert!(root.next().await.unwrap().is_err());
    assert!(root.next().await.is_none());
}

/// A shelf in memory, with one upload.
#[derive(Default)]
struct Shelf {
    kept: std::sync::Mutex<Vec<(Key, CachedStep)>>,
    discarded: std::sync::Mutex<Vec<String>>,
}

const UPLOAD: usize = 1_000_003;

#[async_trait]
impl BuildShelf for Shelf {
    async fn cached(&self, key: Key) -> Option<CachedStep> {
        let kept = self.kept.lock().unwrap();
        kept.iter()
            .rev()
            .find(|(of, _)| *of == key)
            .map(|(_, step)| step.clone())
    }
    async fn cache(&self, key: Key, step: CachedStep) {
        self.kept.lock().unwrap().push((key, step));
    }
    async fn upload(&self, files: &str) -> Result<ByteStream, BlobError> {
        match files {
            "whole" => {
                let pieces = [vec![7; UPLOAD - 3], vec![], vec![8; 3]];
                let pieces = pieces.map(|piece| Ok(Bytes::from(piece)));
                Ok(futures_util::stream::iter(pieces).boxed())
            }
            "broken" => {
                let pieces = [
                    Ok(Bytes::from_static(b"four")),
                    Err(std::io::Error::other("gone")),
                ];
                Ok(futures_util::stream::iter(pieces).boxed())
            }
            _ => Err(BlobError::Missing(files.to_owned())),
        }
    }
    async fn discard_upload(&self, files: &str) {
        self.discarded.lock().unwrap().push(files.to_owned());
    }
}

fn talk(shelf: &Arc<Shelf>) -> (BuildTalk, mpsc::Receiver<BuildLine>, CancellationToken) {
    let (lines, said) = mpsc::channel(8);
    let cancel = CancellationToken::new();
    let talk = BuildTalk {
        lines,
        cancel: cancel.clone(),
        shelf: Arc::clone(shelf) as Arc<dyn BuildShelf>,
    };
    (talk, said, cancel)
}

#[tokio::test]
async fn a_build_talks_with_whoever_ordered_it_as_if_it_was_here() {
    let pair = Pair::new().await;
    let shelf = Arc::new(Shelf::default());
    let (key, other) = (Key::of_image("sha256:00"), Key::of_build(BuildId::random()));
    pair.fake.set_build(BuildPlan {
        lines: 300,
        keys: vec![key, other, key],
        upload: Some("whole".to_owned()),
        discard: Some("whole".to_owned()),
        ..BuildPlan::default()
    });
    let (talk, mut said, _cancel) = talk(&shelf);
    let order = build_order();
    let reading = async {
        let mut read = Vec::new();
        while let Some(line) = said.recv().await {
            read.push(line);
        }
        read
    };
    let (built, lines) = tokio::join!(pair.remote.build(order.clone(), talk), reading);
    let built = built.unwrap();
    assert_eq!(built.memory, Memory::Durable);
    assert_eq!(built.start.unwrap().cwd.as_deref(), Some("/srv"));
    assert_eq!(lines.len(), 300);
    assert_eq!(lines[299].message, "line 299");
    assert_eq!(lines[299].step, Some(BuildStep::Step(299)));
    let step = CachedStep {
        build: order.build,
        context: Context::default(),
    };
    let expected = [
        format!("build {order:?}"),
        format!("cached {key} None"),
        format!("cached {other} None"),
        format!("cached {key} {:?}", Some(&step)),
        format!("upload {UPLOAD} whole"),
    ];
    assert_eq!(pair.fake.calls(), expected);
    assert_eq!(*shelf.discarded.lock().unwrap(), ["whole"]);
    assert_eq!(shelf.kept.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn uploads_that_are_missing_or_break_off_are_told_as_that() {
    let pair = Pair::new().await;
    let shelf = Arc::new(Shelf::default());
    for (files, told) in [
        ("missing", "upload Missing(\"missing\")"),
        ("broken", "upload 4 gone"),
    ] {
        pair.fake.set_build(BuildPlan {
            upload: Some(files.to_owned()),
            ..BuildPlan::default()
        });
        let (talk, _said, _cancel) = talk(&shelf);
        pair.remote.build(build_order(), talk).await.unwrap();
        assert_eq!(pair.fake.calls().last().unwrap(), told);
    }
}

#[tokio::test]
async fn every_error_of_a_build_arrives_as_what_it_is() {
    let pair = Pair::new().await;
    let shelf = Arc::new(Shelf::default());
    fn why() -> BuildFailure {
        BuildFailure {
            message: "exit code 1".to_owned(),
            step: Some(BuildStep::Step(2)),
        }
    }
    let errors: [fn() -> BuildError; 4] = [
        || BuildError::Recipe(why()),
        || BuildError::Away(why()),
        || BuildError::Cancelled,
        || BuildError::Node {
            step: "making a lab",
            source: "/a/secret/path".into(),
        },
    ];
    for error in errors {
        pair.fake.set_build(BuildPlan {
            fails: Some(error),
            lines: 3,
            ..BuildPlan::default()
        });
        let (talk, mut said, _cancel) = talk(&shelf);
        let told = pair.remote.build(build_order(), talk).await.unwrap_err();
        assert_eq!(told.to_string(), error().to_string());
        assert_eq!(std::mem::discriminant(&told), std::mem::discriminant(&error()));
        assert!(!format!("{told:?}").contains("secret"), "{told:?}");
        if let BuildError::Recipe(told) | BuildError::Away(told) = told {
            assert_eq!(told, why());
        }
        let mut lines = 0;
        while said.try_recv().is_ok() {
            lines += 1;
        }
        assert_eq!(lines, 3);
    }
}

#[tokio::test]
async fn a_build_that_is_cancelled_tells_its_end() {
    let pair = Pair::new().await;
    let shelf = Arc::new(Shelf::default());
    pair.fake.set_build(BuildPlan {
        hangs: true,
        ..BuildPlan::default()
    });
    let (talk, _said, cancel) = talk(&shelf);
    let fake = Arc::clone(&pair.fake);
    let cancelling = async {
        until("the build is under way", || fake.calls().len() == 1).await;
        cancel.cancel();
    };
    let (built, ()) = tokio::join!(pair.remote.build(build_order(), talk), cancelling);
    assert!(matches!(built, Err(BuildError::Cancelled)), "{built:?}");
    assert_eq!(pair.fake.calls()[1], "cancelled");
}

#[tokio::test]
async fn a_build_ends_with_whoever_ordered_it() {
    let pair = Pair::new().await;
    let shelf = Arc::new(Shelf::default());
    pair.fake.set_build(BuildPlan {
        hangs: true,
        ..BuildPlan::default()
    });
    let (talk, _said, _cancel) = talk(&shelf);
    let remote = Arc::clone(&pair.remote);
    let building = tokio::spawn(async move { remote.build(build_order(), talk).await.map(drop) });
    let fake = Arc::clone(&pair.fake);
    let under_way = || fake.under_way.load(std::sync::atomic::Ordering::SeqCst);
    until("the build is under way", || under_way() == 1).await;
    building.abort();
    until("the build has ended", || under_way() == 0).await;
}

#[tokio::test]
async fn a_call_that_is_given_up_is_given_up_on_the_node() {
    let pair = Pair::new().await;
    let _gate = pair.fake.gate();
    let started = timeout(Duration::from_millis(300), pair.remote.start(order())).await;
    assert!(started.is_err());
    let fake = Arc::clone(&pair.fake);
    until("the node gave it up", || {
        fake.given_up.load(std::sync::atomic::Ordering::SeqCst) == 1
    })
    .await;
}

#[tokio::test]
async fn every_event_arrives_as_it_was_told_and_in_order() {
    let pair = Pair::new().await;
    let mut events = pair.remote.events();
    let (sandbox, execution, build) = (SandboxId::random(), ExecutionId::random(), BuildId::random());
    // The first that is heard: until then they are told again and again.
    let first = NodeEvent::Ending(sandbox, execution, KillReason::Crashed);
    loop {
        let _ = pair.fake.events.send(first.clone());
        if let Ok(event) = timeout(Duration::from_millis(50), events.recv()).await {
            assert_eq!(event.unwrap(), first);
            break;
        }
    }
    let all = [
        NodeEvent::Ended(sandbox, execution, KillReason::Timeout),
        NodeEvent::Pausing(sandbox, execution, build, PauseMode::Filesystem),
        NodeEvent::Paused(sandbox, execution, build, FakeNode::outcome()),
        NodeEvent::PauseFailed(sandbox, execution, build),
    ];
    for event in &all {
        pair.fake.events.send(event.clone()).unwrap();
    }
    let mut heard = Vec::new();
    while heard.len() < all.len() {
        let event = timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        if event != first {
            heard.push(event);
        }
    }
    assert_eq!(heard, all);
}

#[tokio::test]
async fn a_node_that_was_away_goes_on_telling_where_it_was() {
    let pair = Pair::new().await;
    let proxy = Proxy::to(pair.served.address).await;
    let address = proxy.address;
    let tls = pair.cluster.tls(Role::Api, "api-1");
    let remote = RemoteNode::connect(pair.fake.id(), &address.to_string(), &tls);
    let mut events = remote.events();
    let event = |number: u32| {
        let id = uuid::Uuid::from_u128(u128::from(number));
        NodeEvent::Ended(sandbox(), ExecutionId(id), KillReason::Timeout)
    };
    fn sandbox() -> SandboxId {
        "i00000000000000000000".parse().unwrap()
    }
    loop {
        let _ = pair.fake.events.send(event(0));
        if timeout(Duration::from_millis(50), events.recv()).await.is_ok() {
            break;
        }
    }
    // Connections are lost again and again; what is told meanwhile is not.
    for round in 1..=20 {
        pair.fake.events.send(event(round)).unwrap();
        if round % 5 == 0 {
            proxy.cut.cancel();
        }
    }
    // The proxy cuts each new connection: another takes its place at the same address.
    drop(proxy);
    let listener = loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let target = pair.served.address;
    let forwarding = tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    let mut next = 1;
    while next <= 20 {
        let heard = timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        if heard != event(0) {
            assert_eq!(heard, event(next));
            next += 1;
        }
    }
    forwarding.abort();
}

#[tokio::test]
async fn a_node_that_started_again_makes_listeners_lag() {
    let pair = Pair::new().await;
    let mut events = pair.remote.events();
    let event = NodeEvent::Ended(SandboxId::random(), ExecutionId::random(), KillReason::Timeout);
    loop {
        let _ = pair.fake.events.send(event.clone());
        if timeout(Duration::from_millis(50), events.recv()).await.is_ok() {
            break;
        }
    }
    let (id, tls) = (pair.fake.id(), pair.cluster.node_tls(pair.fake.id()));
    let address = pair.served.kill().await;
    let again = FakeNode::of(id);
    let listener = loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let services = Services::new().node(Arc::clone(&again) as Arc<dyn Node>);
    let _served = Served::on(listener, tls, services);
    let missed = loop {
        match timeout(PATIENCE, events.recv()).await.unwrap() {
            Ok(_) => {}
            Err(RecvError::Lagged(missed)) => break missed,
            Err(RecvError::Closed) => panic!("events ended"),
        }
    };
    assert!(missed >= 1);
    // And hears on.
    let after = NodeEvent::Ended(SandboxId::random(), ExecutionId::random(), KillReason::Crashed);
    again.events.send(after.clone()).unwrap();
    loop {
        match timeout(PATIENCE, events.recv()).await.unwrap() {
            Ok(heard) if heard == after => break,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_node_that_is_silent_is_found_dead_in_seconds() {
    let pair = Pair::new().await;
    let proxy = Proxy::to(pair.served.address).await;
    let tls = pair.cluster.tls(Role::Api, "api-1");
    let remote = RemoteNode::connect(pair.fake.id(), &proxy.address.to_string(), &tls);
    remote.builds().await.unwrap();
    let _gate = pair.fake.gate();
    let begun = std::time::Instant::now();
    let starting = tokio::spawn({
        let remote = Arc::clone(&remote);
        async move { remote.start(order()).await }
    });
    let fake = Arc::clone(&pair.fake);
    until("it is being started", || fake.calls().len() == 2).await;
    proxy.stalled.cancel();
    let error = starting.await.unwrap().unwrap_err();
    assert!(error.is_unclear(), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_call_is_repeated_once_where_its_answer_was_lost() {
    let pair = Pair::new().await;
    let proxy = Proxy::to(pair.served.address).await;
    let tls = pair.cluster.tls(Role::Api, "api-1");
    let remote = RemoteNode::connect(pair.fake.id(), &proxy.address.to_string(), &tls);
    let gate = pair.fake.gate();
    let killing = tokio::spawn({
        let remote = Arc::clone(&remote);
        async move { remote.kill(SandboxId::random(), KillReason::Requested).await }
    });
    let fake = Arc::clone(&pair.fake);
    until("it is being killed", || fake.calls().len() == 1).await;
    // The connection is lost; the proxy forwards no more, and its listener is gone: nobody can tell what became of the call.
    drop(proxy);
    let error = killing.await.unwrap().unwrap_err();
    assert!(error.is_unclear(), "{error:?}");
    gate.close();
}

#[tokio::test]
async fn nobody_waits_for_a_node_that_does_not_answer_again_and_again() {
    let pair = Pair::new().await;
    let (id, tls) = (pair.fake.id(), pair.cluster.tls(Role::Api, "api-1"));
    let address = pair.served.kill().await;
    let remote = RemoteNode::connect(id, &address.to_string(), &tls);
    for _ in 0..5 {
        let error = remote.builds().await.unwrap_err();
        assert_eq!(error.to_string(), "reaching the node failed");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(!error.is_unclear());
    }
    let begun = std::time::Instant::now();
    let error = remote.builds().await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_millis(100));
    let NodeError::Failed { source, .. } = error else {
        panic!("{error:?}");
    };
    assert!(format!("{source:?}").contains("failures: 5"), "{source:?}");
    // It is back, and is asked again.
    let again = FakeNode::of(id);
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let services = Services::new().node(Arc::clone(&again) as Arc<dyn Node>);
    let _served = Served::on(listener, pair.cluster.node_tls(id), services);
    let waiting = async { while remote.builds().await.is_err() {} };
    timeout(PATIENCE, waiting).await.unwrap();
}

#[tokio::test]
async fn what_is_too_much_at_a_time_is_refused_with_when_to_try_again() {
    let bounds = Bounds {
        starts: 2,
        ..Bounds::default()
    };
    let pair = Pair::with(bounds).await;
    let gate = pair.fake.gate();
    let start = || {
        let remote = Arc::clone(&pair.remote);
        tokio::spawn(async move { remote.start(order()).await })
    };
    let (first, second) = (start(), start());
    let fake = Arc::clone(&pair.fake);
    until("two are being started", || fake.calls().len() == 2).await;
    let error = pair.remote.start(order()).await.unwrap_err();
    let NodeError::Full { what, retry_after } = error else {
        panic!("{error:?}");
    };
    assert_eq!((what, retry_after), ("calls", Some(Duration::from_millis(200))));
    gate.close();
    // Others have rooms of their own.
    pair.remote
        .kill(SandboxId::random(), KillReason::Requested)
        .await
        .unwrap();
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    pair.remote.start(order()).await.unwrap();
}

#[tokio::test]
async fn a_process_that_stops_finishes_what_is_under_way_and_ends_streams() {
    let mut pair = Pair::new().await;
    let _events = pair.remote.events();
    let gate = pair.fake.gate();
    let starting = tokio::spawn({
        let remote = Arc::clone(&pair.remote);
        async move { remote.start(order()).await }
    });
    let fake = Arc::clone(&pair.fake);
    until("it is being started", || !fake.calls().is_empty()).await;
    pair.served.stop.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(pair.remote.builds().await.is_err());
    gate.close();
    starting.await.unwrap().unwrap();
    timeout(PATIENCE, &mut pair.served.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_report_of_another_node_is_not_taken() {
    let pair = Pair::new().await;
    let mut report = pair.fake.report_now(1);
    report.node = NodeId::random();
    pair.fake.set_report(report);
    let error = pair.remote.report().await.unwrap_err();
    assert_eq!(error.to_string(), "understanding the node failed");
}

#[tokio::test]
async fn a_thousand_calls_at_a_time_are_all_answered() {
    let pair = Pair::new().await;
    let calls = (0..1000).map(|_| pair.remote.start(order()));
    for started in futures_util::future::join_all(calls).await {
        started.unwrap();
    }
}
