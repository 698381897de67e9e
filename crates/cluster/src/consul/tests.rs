use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Instant;

use model::{MiB, SandboxId};
use ports::discovery::contract::{node, until};
use ports::discovery::{Announce, Announced, Known, RunningSandbox};
use serde_json::json;
use testkit::services::consul::{Consul as Server, Setup, TOKEN};

use super::*;

/// The agent that tests share which do not harm it: it lives as long as one of them does.
static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

const TTL: Check = Check::Ttl(Duration::from_secs(3));

fn shared() -> Option<Arc<Server>> {
    if !Server::is_installed() {
        return None;
    }
    let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return Some(server);
    }
    let server = Arc::new(Server::start().unwrap());
    *shared = Arc::downgrade(&server);
    Some(server)
}

/// A cluster of a test's own.
fn cluster() -> String {
    format!("t{}", SandboxId::random())
}

fn config(server: &Server, cluster: &str) -> Config {
    Config {
        within: Duration::from_secs(3),
        wait: Duration::from_secs(5),
        session_ttl: Duration::from_secs(10),
        lock_delay: Duration::ZERO,
        agree_every: Duration::from_millis(500),
        ..Config::new(server.address(), cluster.parse().unwrap())
    }
}

async fn discovery() -> Option<(Arc<Server>, Arc<Consul>)> {
    let server = shared()?;
    let consul = Consul::connect(config(&server, &cluster())).await.unwrap();
    Some((server, consul))
}

mod keeps_the_contract {
    ports::discovery_contract!(super::discovery());
}

/// Asks the agent past the adapter.
async fn raw(consul: &Consul, method: Method, path: &[&str], body: Option<Value>) -> Answer {
    consul
        .agent
        .ask("be asked", method, path, Vec::new(), body)
        .await
        .unwrap()
}

fn sandbox(id: &str) -> Instance {
    Instance {
        role: Role::Sandbox,
        capacity: None,
        meta: BTreeMap::new(),
        ..node(id)
    }
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_by_name() {
    let good = || Config::new("http://127.0.0.1:8500", "atoll".parse().unwrap());
    good().check().unwrap();
    for (wrong, what) in [
        (
            Config {
                datacenter: Some("x/y".to_owned()),
                ..good()
            },
            "datacenter",
        ),
        (
            Config {
                session_ttl: Duration::from_secs(1),
                ..good()
            },
            "session_ttl",
        ),
        (
            Config {
                forget_after: Duration::from_secs(1),
                ..good()
            },
            "forget_after",
        ),
        (
            Config {
                wait: Duration::from_secs(3600),
                ..good()
            },
            "wait",
        ),
    ] {
        let refused = wrong.check().unwrap_err().to_string();
        assert!(refused.contains(what), "{refused}");
    }
}

#[tokio::test]
async fn two_clusters_on_one_consul_do_not_meet() {
    let Some(server) = shared() else { return };
    let (here, there) = (cluster(), cluster());
    let here = Consul::connect(config(&server, &here)).await.unwrap();
    let there = Consul::connect(config(&server, &there)).await.unwrap();
    here.register(node("n1"), TTL).await.unwrap();
    there
        .register(
            Instance {
                port: 4242,
                ..node("n1")
            },
            TTL,
        )
        .await
        .unwrap();
    here.put_setting("key", "here").await.unwrap();
    let ports = async |consul: &Consul| {
        let members = consul.discover(Role::Node).await.unwrap();
        members
            .found
            .iter()
            .map(|found| found.instance.port)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (ports(&here).await, ports(&there).await),
        (vec![4100], vec![4242])
    );
    there.deregister(Role::Node, "n1").await.unwrap();
    assert_eq!(ports(&here).await, [4100]);
    let mut values = there.watch_settings();
    let values = until(&mut values, "read", |values| values.known == Known::Current).await;
    assert!(values.values.is_empty());
    let mut first = here.stand("office", "a").unwrap();
    let mut second = there.stand("office", "b").unwrap();
    assert!(first.leads().await.is_some() && second.leads().await.is_some());
}

#[tokio::test]
async fn what_others_write_under_our_name_is_left_out_and_counted() {
    let Some((_server, consul)) = discovery().await else {
        return;
    };
    let name = consul.agent.name(Role::Node);
    let id = |id: &str| consul.agent.service_id(Role::Node, id);
    let good = node("good");
    consul.register(good.clone(), TTL).await.unwrap();
    let own = &consul.agent.config.cluster;
    let meta = |more: Value| {
        let mut meta = json!({ "atoll_cluster": own, "atoll_role": "node" });
        for (key, value) in more.as_object().unwrap() {
            meta[key] = value.clone();
        }
        meta
    };
    let bodies = [
        json!({ "ID": id("a"), "Meta": {}, "Address": "127.0.0.1", "Port": 1 }),
        json!({ "ID": id("b"), "Meta": meta(json!({ "atoll_cluster": "other" })), "Address": "127.0.0.1", "Port": 1 }),
        json!({ "ID": id("c"), "Meta": meta(json!({ "atoll_cpu": "-1" })), "Address": "127.0.0.1", "Port": 1 }),
        json!({ "ID": id("d"), "Meta": meta(json!({})), "Address": "127.0.0.1" }),
        json!({ "ID": "elsewhere", "Meta": meta(json!({})), "Address": "127.0.0.1", "Port": 1 }),
        json!({ "ID": id("e"), "Meta": meta(json!({ "atoll_role": "api" })), "Address": "127.0.0.1", "Port": 1 }),
        json!({ "ID": id("f"), "Meta": meta(json!({ "atoll_zone": "a b" })), "Address": "127.0.0.1", "Port": 1 }),
    ];
    let count = bodies.len();
    for mut body in bodies {
        body["Name"] = name.clone().into();
        let path = ["v1", "agent", "service", "register"];
        let answer = raw(&consul, Method::PUT, &path, Some(body)).await;
        assert_eq!(answer.status, 200, "{}", answer.said());
    }
    let mut view = consul.watch(Role::Node);
    let members = until(&mut view, "all are seen", |members| members.refused == count).await;
    assert_eq!(
        members
            .found
            .iter()
            .map(|found| &found.instance)
            .collect::<Vec<_>>(),
        [&good]
    );
}

#[tokio::test]
async fn whoever_is_in_maintenance_is_not_used() {
    let Some((_server, consul)) = discovery().await else {
        return;
    };
    consul.register(node("n1"), TTL).await.unwrap();
    let service = consul.agent.service_id(Role::Node, "n1");
    let path = ["v1", "agent", "service", "maintenance", &service];
    let query = vec![("enable", "true".to_owned()), ("reason", "new disks".to_owned())];
    consul
        .agent
        .ask("x", Method::PUT, &path, query, None)
        .await
        .unwrap();
    let mut view = consul.watch(Role::Node);
    let members = until(&mut view, "it is seen", |members| {
        members
            .get("n1")
            .is_some_and(|found| found.health == Health::Critical)
    })
    .await;
    assert!(members.get("n1").unwrap().notes.contains("new disks"));
}

#[tokio::test]
async fn whoever_falls_silent_is_critical_after_its_ttl() {
    let Some(server) = shared() else { return };
    let cluster = cluster();
    let silent = Consul::connect(config(&server, &cluster)).await.unwrap();
    let watching = Consul::connect(config(&server, &cluster)).await.unwrap();
    silent.register(node("n1"), TTL).await.unwrap();
    // Longer than its TTL: it is kept alive.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        watching.health(Role::Node, "n1").await.unwrap(),
        Some(Health::Passing)
    );
    drop(silent);
    let mut view = watching.watch(Role::Node);
    let members = until(&mut view, "it is silent", |members| {
        members
            .get("n1")
            .is_some_and(|found| found.health == Health::Critical)
    })
    .await;
    assert!(members.usable().is_empty());
}

#[tokio::test]
async fn an_http_check_is_made_by_the_agent() {
    let Some((server, consul)) = discovery().await else {
        return;
    };
    let check = |path: &str| Check::Http {
        url: format!("{}{path}", server.address()),
        every: Duration::from_secs(1),
        within: Duration::from_secs(1),
    };
    consul
        .register(node("well"), check("/v1/status/leader"))
        .await
        .unwrap();
    consul
        .register(node("ill"), check("/no/such/place"))
        .await
        .unwrap();
    let mut view = consul.watch(Role::Node);
    until(&mut view, "both were asked", |members| {
        let health = |id| members.get(id).map(|found| found.health);
        health("well") == Some(Health::Passing) && health("ill") == Some(Health::Critical)
    })
    .await;
    let refused = consul.report(Role::Node, "well", Health::Warning, "").await;
    assert!(
        matches!(refused, Err(DiscoveryError::Unknown { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_agent_that_lost_everything_is_told_again_and_watches_go_on() {
    if !Server::is_installed() {
        return;
    }
    let mut server = Server::start().unwrap();
    let consul = Consul::connect(config(&server, "atoll")).await.unwrap();
    consul.register(node("n1"), TTL).await.unwrap();
    consul
        .report(Role::Node, "n1", Health::Warning, "warm")
        .await
        .unwrap();
    consul
        .settle("n1", Role::Sandbox, vec![sandbox("s1"), sandbox("s2")])
        .await
        .unwrap();
    consul.put_setting("key", "value").await.unwrap();
    let (mut nodes, mut boxes) = (consul.watch(Role::Node), consul.watch(Role::Sandbox));
    let mut values = consul.watch_settings();
    let mut candidacy = consul.stand("office", "a").unwrap();
    let token = candidacy.leads().await.unwrap();
    let mut standing = candidacy.standing();
    let is_there = |members: &Arc<Members>| {
        members.known == Known::Current
            && members
                .get("n1")
                .is_some_and(|found| found.notes.contains("warm"))
    };
    until(&mut nodes, "there", is_there).await;
    until(&mut boxes, "there", |members| members.found.len() == 2).await;
    until(&mut values, "set", |values| values.values.len() == 1).await;

    server.kill();
    let members = until(&mut nodes, "away", |members| {
        matches!(members.known, Known::Stale(_))
    })
    .await;
    assert!(members.get("n1").is_some(), "the last known set stays");
    assert_eq!(values.borrow().values.len(), 1);
    let away = consul.discover(Role::Node).await.unwrap_err();
    assert!(matches!(away, DiscoveryError::Away { .. }), "{away:?}");
    let registered = consul.register(node("n2"), TTL).await.unwrap_err();
    assert_eq!(registered.kind(), model::Kind::Unavailable);

    server.start_again().unwrap();
    until(&mut nodes, "told again", is_there).await;
    until(&mut nodes, "what was registered meanwhile too", |members| {
        members.get("n2").is_some()
    })
    .await;
    until(&mut boxes, "told again", |members| {
        members.known == Known::Current && members.found.len() == 2
    })
    .await;
    until(&mut values, "what nobody keeps is gone", |values| {
        values.known == Known::Current && values.values.is_empty()
    })
    .await;
    // The session is lost with everything else: it steps down, then stands again. Tokens begin anew with a Consul that does.
    until(&mut standing, "it lost the office", |standing| {
        standing.token() != Some(token)
    })
    .await;
    assert!(candidacy.leads().await.is_some());
    consul.leave().await.unwrap();
    until(&mut nodes, "gone", |members| members.found.is_empty()).await;
    assert_eq!(
        consul.discover(Role::Sandbox).await.unwrap().found.len(),
        2,
        "they outlive the daemon"
    );
}

#[tokio::test]
async fn an_agent_that_stands_still_holds_nobody_up() {
    if !Server::is_installed() {
        return;
    }
    let server = Server::start().unwrap();
    let config = Config {
        within: Duration::from_secs(1),
        wait: Duration::from_secs(1),
        ..config(&server, "atoll")
    };
    let consul = Consul::connect(config).await.unwrap();
    consul.register(node("n1"), TTL).await.unwrap();
    let mut view = consul.watch(Role::Node);
    until(&mut view, "there", |members| members.get("n1").is_some()).await;
    let mut candidacy = consul.stand("office", "a").unwrap();
    candidacy.leads().await.unwrap();
    let mut standing = candidacy.standing();

    server.stand_still().unwrap();
    let began = Instant::now();
    let slow = consul.discover(Role::Node).await.unwrap_err();
    assert!(matches!(slow, DiscoveryError::Slow { .. }), "{slow:?}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let members = until(&mut view, "stale", |members| {
        matches!(members.known, Known::Stale(_))
    })
    .await;
    assert!(members.get("n1").is_some(), "the last known set stays");
    // Whoever leads steps down before Consul can have given the office to another: within the session's ten seconds.
    until(&mut standing, "it steps down", |standing| {
        standing.token().is_none()
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(matches!(&*standing.borrow(), Standing::Away(_)));

    server.go_on().unwrap();
    until(&mut view, "current", |members| members.known == Known::Current).await;
    until(&mut view, "passing", |members| !members.usable().is_empty()).await;
    assert!(candidacy.leads().await.is_some());
}

#[test]
fn a_leader_that_dies_is_followed_once_its_session_is_over() {
    if !Server::is_installed() {
        return;
    }
    let server = Server::start().unwrap();
    let dying = tokio::runtime::Runtime::new().unwrap();
    let leads = async |name: &str| {
        let consul = Consul::connect(config(&server, "atoll")).await.unwrap();
        let mut candidacy = consul.stand("office", name).unwrap();
        let token = candidacy.leads().await.unwrap();
        (consul, candidacy, token)
    };
    let (consul, candidacy, first) = dying.block_on(leads("first"));
    // All its tasks end at one instant, as those of a process that is killed.
    dying.shutdown_background();
    let living = tokio::runtime::Runtime::new().unwrap();
    let began = Instant::now();
    let (_, _, second) = living.block_on(leads("second"));
    assert!(second > first, "{second} after {first}");
    assert!(began.elapsed() > Duration::from_secs(1), "nobody gave it back");
    drop((consul, candidacy));
}

#[tokio::test]
async fn an_office_that_is_taken_away_is_told_at_once() {
    let Some((_server, consul)) = discovery().await else {
        return;
    };
    let mut candidacy = consul.stand("office", "a").unwrap();
    let token = candidacy.leads().await.unwrap();
    let mut standing = candidacy.standing();
    // Nothing but its TTL ends the session.
    let sessions: Vec<Value> = raw(&consul, Method::GET, &["v1", "session", "list"], None)
        .await
        .json()
        .unwrap();
    let name = format!("{}-office", consul.agent.config.cluster);
    let session = sessions
        .iter()
        .find(|session| session["Name"] == name.as_str())
        .unwrap();
    let is_empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    assert!(
        is_empty(&session["NodeChecks"]) && is_empty(&session["Checks"]),
        "{session}"
    );
    let key = format!("atoll/{}/offices/office", consul.agent.config.cluster);
    let path = settings::key_path(&key);
    let began = Instant::now();
    raw(&consul, Method::DELETE, &path, None).await;
    until(&mut standing, "told", |standing| standing.token() != Some(token)).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let again = candidacy.leads().await.unwrap();
    assert!(again > token, "{again} after {token}");
}

#[tokio::test]
async fn a_wrong_token_is_refused_with_its_reason_and_a_right_one_works() {
    if !Server::is_installed() {
        return;
    }
    let setup = Setup {
        access_control: true,
        ..Setup::default()
    };
    let server = Server::start_with(&setup).unwrap();
    let with = |token: Option<&str>| Config {
        token: token.map(|token| Secret::new(token.to_owned())),
        ..config(&server, "atoll")
    };
    let wrong = "00000000-1111-2222-3333-444444444444";
    let refused = Consul::connect(with(Some(wrong))).await.err().unwrap();
    assert!(matches!(refused, DiscoveryError::Refused { .. }), "{refused:?}");
    assert!(refused.to_string().contains("ACL not found"), "{refused}");
    assert!(!format!("{refused:?}").contains(wrong), "{refused:?}");
    // Without one, nothing is seen and nothing may be said.
    let nobody = Consul::connect(with(None)).await.unwrap();
    for refused in [
        nobody.register(node("n1"), TTL).await.err().unwrap(),
        nobody.put_setting("key", "x").await.err().unwrap(),
        nobody
            .settle("n1", Role::Sandbox, vec![sandbox("s1")])
            .await
            .err()
            .unwrap(),
    ] {
        assert!(matches!(refused, DiscoveryError::Refused { .. }), "{refused:?}");
        assert!(refused.to_string().contains("Permission denied"), "{refused}");
    }
    assert!(
        lock(&nobody.agent.kept).is_empty(),
        "what was refused is not kept"
    );
    let right = Consul::connect(with(Some(TOKEN))).await.unwrap();
    right.register(node("n1"), TTL).await.unwrap();
    assert_eq!(right.discover(Role::Node).await.unwrap().found.len(), 1);
    assert_eq!(nobody.discover(Role::Node).await.unwrap().found.len(), 0);
    let mut candidacy = right.stand("office", "a").unwrap();
    assert!(candidacy.leads().await.is_some());
}

#[tokio::test]
async fn consul_is_known_by_its_authority_and_we_by_ours() {
    if !Server::is_installed() {
        return;
    }
    let authority = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, rcgen::Issuer::new(params, key))
    };
    let issue = |issuer: &rcgen::Issuer<'_, rcgen::KeyPair>| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
    };
    let (pem, issuer) = authority("ours");
    let (other_pem, other) = authority("other");
    let (certificate, key) = issue(&issuer);
    let setup = Setup {
        tls: Some((certificate, key, Some(pem.clone()))),
        ..Setup::default()
    };
    let server = Server::start_with(&setup).unwrap();
    let with = |ca: &str, identity: Option<(String, String)>| Config {
        tls: Tls {
            ca_pem: Some(ca.to_owned()),
            identity_pem: identity.map(|(certificate, key)| Secret::new(format!("{certificate}{key}"))),
        },
        ..config(&server, "atoll")
    };
    // A Consul that cannot be spoken to is held to be away: what is told is why.
    for (config, why) in [
        (with(&other_pem, Some(issue(&issuer))), "certificate"),
        (with(&pem, None), ""),
        (with(&pem, Some(issue(&other))), ""),
    ] {
        let consul = Consul::connect(config).await.unwrap();
        let refused = consul.discover(Role::Node).await.unwrap_err();
        assert!(matches!(refused, DiscoveryError::Away { .. }), "{refused:?}");
        assert!(told(&refused).contains(why), "{}", told(&refused));
    }
    let right = Consul::connect(with(&pem, Some(issue(&issuer)))).await.unwrap();
    // An agent of TLS alone answers before it has a leader.
    let mut registered = right.register(node("n1"), TTL).await;
    for _ in 0..50 {
        if registered.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        registered = right.register(node("n1"), TTL).await;
    }
    registered.unwrap();
    let mut view = right.watch(Role::Node);
    until(&mut view, "there", |members| members.get("n1").is_some()).await;
}

#[tokio::test]
async fn two_hundred_sandboxes_are_announced_and_cleared_after_a_crash() {
    let Some(server) = shared() else { return };
    let cluster = cluster();
    let running: Vec<RunningSandbox> = (0..200)
        .map(|_| RunningSandbox {
            sandbox: SandboxId::random(),
            execution: model::ExecutionId::random(),
            template: "base".to_owned(),
        })
        .collect();
    let daemon = async || {
        let consul = Consul::connect(config(&server, &cluster)).await.unwrap();
        let discovery = Arc::clone(&consul);
        (consul, Announced::new(discovery, node("n1"), Announce::default()))
    };
    let (first, mut announced) = daemon().await;
    let began = Instant::now();
    let settled = announced.pass(&running).await.unwrap();
    assert_eq!(settled.added, 200);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    // It dies; half of them end before it is back.
    drop((first, announced));
    let (second, mut announced) = daemon().await;
    let settled = announced.pass(&running[100..]).await.unwrap();
    assert_eq!(
        settled,
        Settled {
            added: 0,
            removed: 100,
            kept: 100
        }
    );
    let mut view = second.watch(Role::Sandbox);
    let members = until(&mut view, "half are left", |members| members.found.len() == 100).await;
    let one = &running[150];
    let found = members
        .get(&format!("{}-{}", one.sandbox, one.execution))
        .unwrap();
    assert_eq!(found.instance.meta["sandbox"], one.sandbox.to_string());
    assert_eq!(found.instance.capacity, None);
    // One whose capacity is told is told whole.
    let capacity = node("n9").capacity.unwrap();
    assert_eq!((capacity.cpu, capacity.memory), (16, MiB(65_536)));
}
