//! Who is let in, and who is not.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::world::fake::{FakeNode, order};
use crate::world::{Cluster, PATIENCE, Pair, Served, until};
use model::{Kind, NodeId, SandboxId};
use ports::{Node, NodeError, Presented, Wake as _};
use rpc::{Files, Identity, RemoteNode, RemoteWake, Role, Services, Tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

/// All causes of an error, in one text.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

async fn refused(pair: &Pair, tls: &Tls) -> NodeError {
    let remote = RemoteNode::connect(pair.fake.id(), &pair.served.address(), tls);
    let error = timeout(PATIENCE, remote.start(order()))
        .await
        .unwrap()
        .unwrap_err();
    assert!(pair.fake.calls().is_empty(), "it was let in");
    error
}

#[tokio::test]
async fn a_foreign_cluster_is_refused_by_both_sides() {
    let pair = Pair::new().await;
    let foreign = Cluster::new("blue");
    // The client does not trust the server, first.
    let error = refused(&pair, &foreign.tls(Role::Api, "api-1")).await;
    assert_eq!(error.to_string(), "reaching the node failed");
    assert!(
        chain(&error).contains("invalid peer certificate"),
        "{}",
        chain(&error)
    );

    // One that trusts both is not trusted.
    let files = foreign.files(Role::Api, "api-2");
    let both = format!(
        "{}{}",
        foreign.authority.trust_pem(),
        pair.cluster.authority.trust_pem()
    );
    std::fs::write(&files.trust, both).unwrap();
    let error = refused(&pair, &Tls::open(files).unwrap()).await;
    assert_eq!(error.to_string(), "reaching the node failed");
    assert!(!error.is_unclear(), "{error:?}");
    assert!(
        chain(&error).contains("refuses the certificate of this process"),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn another_cluster_of_the_same_authority_is_refused() {
    let pair = Pair::new().await;
    // An authority of another cluster, which everybody trusts by mistake.
    let green = Cluster::new("green");
    let both = format!(
        "{}{}",
        green.authority.trust_pem(),
        pair.cluster.authority.trust_pem()
    );
    let node = FakeNode::new();
    let files = pair.cluster.files(Role::Node, &node.id().to_string());
    std::fs::write(&files.trust, &both).unwrap();
    let services = Services::new().node(Arc::clone(&node) as Arc<dyn Node>);
    let served = Served::start(Tls::open(files).unwrap(), services).await;
    let files = green.files(Role::Api, "api-1");
    std::fs::write(&files.trust, &both).unwrap();
    let remote = RemoteNode::connect(node.id(), &served.address(), &Tls::open(files).unwrap());
    let error = remote.start(order()).await.unwrap_err();
    assert!(
        chain(&error).contains("is not of cluster 'green'"),
        "{}",
        chain(&error)
    );
    assert!(node.calls().is_empty());
}

#[tokio::test]
async fn a_certificate_that_has_ended_or_not_begun_is_refused() {
    let pair = Pair::new().await;
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    for (from, until, what) in [
        (
            now - 2 * hour,
            now - hour,
            "refuses the certificate of this process",
        ),
        (
            now + hour,
            now + 2 * hour,
            "refuses the certificate of this process",
        ),
    ] {
        let identity = Identity::new(&"blue".parse().unwrap(), Role::Api, "late").unwrap();
        let files = pair.cluster.files(Role::Api, "late");
        let issued = pair
            .cluster
            .authority
            .issue_between(&identity, from, until)
            .unwrap();
        std::fs::write(&files.key, issued.key_pem).unwrap();
        std::fs::write(&files.certificate, issued.chain_pem).unwrap();
        let error = refused(&pair, &Tls::open(files).unwrap()).await;
        assert!(chain(&error).contains(what), "{}", chain(&error));
    }
}

#[tokio::test]
async fn another_node_at_the_address_is_refused() {
    let pair = Pair::new().await;
    let tls = pair.cluster.tls(Role::Orchestrator, "o");
    let remote = RemoteNode::connect(NodeId::random(), &pair.served.address(), &tls);
    let error = remote.start(order()).await.unwrap_err();
    assert!(chain(&error).contains("answers where node/"), "{}", chain(&error));
    assert!(pair.fake.calls().is_empty());
}

#[tokio::test]
async fn a_role_may_call_what_the_table_says_and_is_told_that_it_may_not() {
    let pair = Pair::new().await;
    for role in Role::ALL {
        let name = match role {
            Role::Node => NodeId::random().to_string(),
            _ => "one".to_owned(),
        };
        let tls = pair.cluster.tls(role, &name);
        let remote = RemoteNode::connect(pair.fake.id(), &pair.served.address(), &tls);
        let may_order = matches!(role, Role::Api | Role::Orchestrator);
        let may_look = may_order || role == Role::Admin;
        let started = remote.start(order()).await;
        assert_eq!(started.is_ok(), may_order, "{role}");
        assert_eq!(remote.report().await.is_ok(), may_look, "{role}");
        if let Err(error) = started {
            assert_eq!(error.kind(), Kind::Forbidden);
            let told = format!("the role {role} may not call atoll.rpc.v1.Node/Start");
            assert!(chain(&error).contains(&told), "{}", chain(&error));
            assert!(!error.is_unclear());
        }
    }
}

#[tokio::test]
async fn a_service_that_is_not_offered_is_refused_by_name() {
    let cluster = Cluster::new("blue");
    let served = Served::start(cluster.tls(Role::Api, "api-1"), Services::new()).await;
    let (_keep, peers) = watch::channel(vec![served.address()]);
    let wake = RemoteWake::new(peers, &cluster.tls(Role::Edge, "edge-1"));
    assert!(
        wake.wake(SandboxId::random(), Presented::default())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_client_without_a_certificate_or_without_tls_learns_nothing() {
    let pair = Pair::new().await;
    let mut plain = TcpStream::connect(pair.served.address).await.unwrap();
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut read = Vec::new();
    let _ = timeout(PATIENCE, plain.read_to_end(&mut read)).await.unwrap();
    // An alert at most.
    assert!(read.len() < 16, "{read:?}");
    // Who says nothing is cut.
    let mut silent = TcpStream::connect(pair.served.address).await.unwrap();
    let read = timeout(Duration::from_secs(10), silent.read(&mut [0; 16]))
        .await
        .unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
    // And others are served meanwhile.
    pair.remote.builds().await.unwrap();
}

fn replace(from: &Files, into: &Files) {
    for (from, into) in [
        (&from.trust, &into.trust),
        (&from.key, &into.key),
        (&from.certificate, &into.certificate),
    ] {
        let fresh = into.with_extension("fresh");
        std::fs::copy(from, &fresh).unwrap();
        std::fs::rename(&fresh, into).unwrap();
    }
}

#[tokio::test]
async fn certificates_and_the_authority_are_replaced_without_a_dropped_call() {
    let mut cluster = Cluster::new("blue");
    let fake = FakeNode::new();
    let name = fake.id().to_string();
    let (node_files, api_files) = (
        cluster.files(Role::Node, &name),
        cluster.files(Role::Api, "api-1"),
    );
    let (node_tls, api_tls) = (
        Tls::open(node_files.clone()).unwrap(),
        Tls::open(api_files.clone()).unwrap(),
    );
    let services = Services::new().node(Arc::clone(&fake) as Arc<dyn Node>);
    let served = Served::start(node_tls.clone(), services).await;
    let remote = RemoteNode::connect(fake.id(), &served.address(), &api_tls);
    let gate = fake.gate();
    let starting = tokio::spawn({
        let remote = Arc::clone(&remote);
        async move { remote.start(order()).await }
    });
    until("it is being started", || fake.calls().len() == 1).await;

    // Nothing has changed.
    assert!(!node_tls.reload().unwrap());
    let before = api_tls.until();
    // First everybody trusts both, then everybody has new certificates, then the old one is trusted no more.
    cluster.authority.rotate().unwrap();
    for files in [&node_files, &api_files] {
        std::fs::write(&files.trust, cluster.authority.trust_pem()).unwrap();
    }
    assert!(node_tls.reload().unwrap() && api_tls.reload().unwrap());
    let scratch = cluster.dir().join("scratch");
    for (role, name, files, tls) in [
        (Role::Node, name.as_str(), &node_files, &node_tls),
        (Role::Api, "api-1", &api_files, &api_tls),
    ] {
        let identity = Identity::new(&"blue".parse().unwrap(), role, name).unwrap();
        let hour = Duration::from_secs(48 * 3600);
        let fresh = cluster.authority.issue_into(&scratch, &identity, hour).unwrap();
        replace(&fresh, files);
        assert!(tls.reload().unwrap());
    }
    assert!(api_tls.until() > before);
    cluster.authority.retire().unwrap();
    for (files, tls) in [(&node_files, &node_tls), (&api_files, &api_tls)] {
        std::fs::write(&files.trust, cluster.authority.trust_pem()).unwrap();
        assert!(tls.reload().unwrap());
    }
    // What was under way is under way, and new connections are made with what is new.
    let again = RemoteNode::connect(fake.id(), &served.address(), &api_tls);
    gate.close();
    starting.await.unwrap().unwrap();
    again.start(order()).await.unwrap();
    remote.start(order()).await.unwrap();
    // Who missed all that is refused.
    let old = Cluster::new("blue").tls(Role::Api, "api-1");
    let late = RemoteNode::connect(fake.id(), &served.address(), &old);
    assert!(late.start(order()).await.is_err());
}

#[tokio::test]
async fn files_that_do_not_fit_change_nothing() {
    let cluster = Cluster::new("blue");
    let files = cluster.files(Role::Api, "api-1");
    let tls = Tls::open(files.clone()).unwrap();
    let until_before = tls.until();
    let other = cluster.files(Role::Api, "api-2");
    std::fs::copy(&other.key, &files.key).unwrap();
    let error = tls.reload().unwrap_err();
    assert!(
        error.to_string().contains("is not that of the certificate"),
        "{error}"
    );
    std::fs::copy(&other.certificate, &files.certificate).unwrap();
    let error = tls.reload().unwrap_err();
    assert!(error.to_string().contains("start again to be another"), "{error}");
    std::fs::write(&files.certificate, "nonsense").unwrap();
    assert!(tls.reload().is_err());
    std::fs::remove_file(&files.trust).unwrap();
    assert!(tls.reload().is_err());
    assert_eq!(tls.until(), until_before);
    assert_eq!(tls.identity().name(), "api-1");
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let pair = Pair::new().await;
    let identity = Identity::new(&"blue".parse().unwrap(), Role::Api, "short").unwrap();
    let files = pair.cluster.files(Role::Api, "short");
    let now = SystemTime::now();
    let end = now + Duration::from_secs(4);
    let issued = pair
        .cluster
        .authority
        .issue_between(&identity, now - Duration::from_secs(60), end)
        .unwrap();
    std::fs::write(&files.key, issued.key_pem).unwrap();
    std::fs::write(&files.certificate, issued.chain_pem).unwrap();
    let tls = Tls::open(files).unwrap();
    let remote = RemoteNode::connect(pair.fake.id(), &pair.served.address(), &tls);
    let gate = pair.fake.gate();
    let error = timeout(PATIENCE, remote.start(order()))
        .await
        .unwrap()
        .unwrap_err();
    assert!(SystemTime::now() > end - Duration::from_secs(1));
    assert!(error.is_unclear(), "{error:?}");
    gate.close();
}
