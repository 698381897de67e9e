//! The line to Redis: who is let in, what happens where it breaks, and that clusters do not meet.
use std::collections::HashSet;
use std::time::{Duration, Instant};

use cluster::redis::{Config, ConnectError, Identity, Redis};
use model::{SandboxId, Secret, TeamId};
use ports::catalog::contract::route;
use ports::idempotency::Begun;
use ports::limits::Rate;
use ports::shares::contract::share;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair,
};
use testkit::services::redis::{Redis as Server, Setup};

use crate::server::{BOUND, config, eventually, in_time, process, server, until};

#[tokio::test]
async fn two_clusters_in_one_redis_do_not_meet() {
    let Some(server) = server() else { return };
    let blue = process(&server).await;
    let green = Redis::connect(config(&server, "green")).await.unwrap();
    let mut heard = green.bus().subscribe();
    let route = route(SandboxId::random(), 1);
    blue.catalog().publish(route.clone()).await.unwrap();
    blue.bus()
        .publish(ports::bus::contract::happening(TeamId::random(), 1))
        .await;
    let team = TeamId::random();
    blue.shares().hold(&[share(team)]).await;
    blue.idempotency().begin(team, "key", [1; 32]).await.unwrap();
    blue.queue().push("topic", "id", "body".into()).await.unwrap();
    let once = Rate {
        per_second: 0,
        burst: 1,
    };
    blue.limits().take(team, "starts", once).await.unwrap();

    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(green.catalog().find(route.sandbox).await.unwrap().is_none());
    assert!(heard.try_recv().is_err());
    assert_eq!(green.shares().held(team).await.sandboxes, 0);
    assert!(green.idempotency().begin(team, "key", [2; 32]).await.is_ok());
    let taken = green.queue().take("topic", "x", 1, Duration::ZERO).await;
    assert!(taken.unwrap().is_empty());
    green.limits().take(team, "starts", once).await.unwrap();
    // All that blue wrote goes with its name.
    let foreign = "\"local n = 0 for _, key in ipairs(redis.call('KEYS', '*')) do if not string.match(key, '^atoll:{%a+}:') then n = n + 1 end end return n\"";
    assert_eq!(server.ask(&format!("EVAL {foreign} 0")).unwrap(), ":0");
}

#[tokio::test]
async fn who_has_the_wrong_password_is_told_and_nobody_is_shown_it() {
    if !Server::is_installed() {
        return;
    }
    let server = Server::start_with(Setup {
        password: Some("opensesame".to_owned()),
        tls: None,
    })
    .unwrap();
    let with = |url: String| Config {
        url: Secret::new(url),
        ..config(&server, "blue")
    };
    let redis = Redis::connect(config(&server, "blue")).await.unwrap();
    redis.ready().await.unwrap();
    for url in [
        server.url().replace("opensesame", "guessed"),
        server.url().replace(":opensesame@", ""),
    ] {
        let Err(error) = Redis::connect(with(url)).await else {
            panic!("it was let in")
        };
        assert!(matches!(error, ConnectError::Refused(_)), "{error:?}");
        let shown = format!("{error:?} {error}");
        assert!(
            !shown.contains("guessed") && !shown.contains("opensesame"),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn a_user_who_may_use_the_keys_of_its_cluster_alone_is_enough() {
    let Some(server) = server() else { return };
    server
        .ask("ACL SETUSER atoll on >secret ~atoll:{blue}:* +@all -@admin -@dangerous")
        .unwrap();
    let url = server.url().replace("redis://", "redis://atoll:secret@");
    let redis = Redis::connect(Config {
        url: Secret::new(url),
        ..config(&server, "blue")
    })
    .await
    .unwrap();
    let (route, team) = (route(SandboxId::random(), 1), TeamId::random());
    redis.catalog().publish(route.clone()).await.unwrap();
    redis.catalog().withdraw(route.sandbox, route.seat).await.unwrap();
    let mine = share(team);
    redis.shares().hold(&[mine]).await;
    redis.shares().prune(&HashSet::new(), Duration::ZERO).await;
    eventually("the follower reads", async || {
        redis.catalog().find(route.sandbox).await.unwrap().is_none()
    })
    .await;
    let key = redis.idempotency().begin(team, "key", [1; 32]).await.unwrap();
    if let Begun::Go(lease) = key {
        redis.idempotency().answer(lease, route.sandbox).await;
    }
    let again = redis.idempotency().begin(team, "key", [1; 32]).await;
    assert!(matches!(again, Ok(Begun::Done(_))));
    redis.queue().push("topic", "id", "body".into()).await.unwrap();
    let taken = redis.queue().take("topic", "x", 1, Duration::from_secs(1)).await;
    let taken = taken.unwrap();
    redis.queue().retry("topic", &taken[0], "why").await.unwrap();
    redis.queue().done("topic", &taken[0]).await.unwrap();
    // Another cluster's keys are not its own.
    let green = Config {
        url: Secret::new(server.url().replace("redis://", "redis://atoll:secret@")),
        ..config(&server, "green")
    };
    let green = Redis::connect(green).await.unwrap();
    assert!(green.catalog().publish(route).await.is_err());
}

#[tokio::test]
async fn a_database_of_its_own_is_used() {
    let Some(server) = server() else { return };
    let other = Config {
        url: Secret::new(format!("{}/3", server.url())),
        ..config(&server, "blue")
    };
    let other = Redis::connect(other).await.unwrap();
    let route = route(SandboxId::random(), 1);
    other.catalog().publish(route.clone()).await.unwrap();
    let process = process(&server).await;
    assert!(process.catalog().find(route.sandbox).await.unwrap().is_none());
}

/// An authority, with a certificate of 127.0.0.1 and its key.
fn certificates() -> (String, String, String) {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "who vouches");
    authority.distinguished_name = name;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = params.signed_by(&key, &issuer).unwrap();
    (ca, certificate.pem(), key.serialize_pem())
}

#[tokio::test]
async fn tls_looks_at_both_sides() {
    if !Server::is_installed() {
        return;
    }
    let (ca, certificate, key) = certificates();
    let server = Server::start_with(Setup {
        password: None,
        tls: Some((certificate.clone(), key.clone(), Some(ca.clone()))),
    })
    .unwrap();
    let identity = Identity {
        certificates: certificate.into_bytes(),
        key: Secret::new(key.into_bytes()),
    };
    let trusted = Config {
        ca: Some(ca.into_bytes()),
        identity: Some(identity.clone()),
        ..config(&server, "blue")
    };
    let redis = Redis::connect(trusted.clone()).await.unwrap();
    redis.ready().await.unwrap();
    let route = route(SandboxId::random(), 1);
    redis.catalog().publish(route).await.unwrap();

    let (stranger, ..) = certificates();
    let nobody_vouches = Config {
        ca: Some(stranger.into_bytes()),
        ..trusted.clone()
    };
    let unknown = Config {
        identity: None,
        ..trusted
    };
    for config in [nobody_vouches, unknown] {
        let redis = Redis::connect(config).await.unwrap();
        assert!(redis.ready().await.is_err());
    }
}

#[tokio::test]
async fn a_redis_that_comes_later_is_used_when_it_comes() {
    let Some(mut server) = server() else { return };
    server.kill();
    let redis = in_time("connecting", Redis::connect(config(&server, "blue")))
        .await
        .unwrap();
    let route = route(SandboxId::random(), 1);
    assert!(redis.catalog().publish(route.clone()).await.is_err());
    assert!(redis.catalog().find(route.sandbox).await.is_err());
    server.start_again().unwrap();
    until(&redis, true).await;
    redis.catalog().publish(route.clone()).await.unwrap();
    assert!(redis.catalog().find(route.sandbox).await.unwrap().is_some());
}

/// All that can be asked, with Redis away; none of it may take longer than the bound.
async fn ask_everything(redis: &Redis) {
    let team = TeamId::random();
    let route = route(SandboxId::random(), 1);
    let rate = Rate {
        per_second: 0,
        burst: 2,
    };
    in_time("a publish", redis.catalog().publish(route.clone()))
        .await
        .unwrap_err();
    in_time("a withdraw", redis.catalog().withdraw(route.sandbox, route.seat))
        .await
        .unwrap_err();
    in_time("a search", redis.catalog().find(route.sandbox))
        .await
        .unwrap_err();
    in_time("a list", redis.catalog().all()).await.unwrap();
    in_time("a rate", redis.limits().take(team, "starts", rate))
        .await
        .unwrap();
    let mine = share(team);
    in_time("a claim", redis.shares().claim(mine, &model::Quota::default()))
        .await
        .unwrap();
    in_time("a release", redis.shares().release(mine)).await;
    in_time("a hold", redis.shares().hold(&[mine])).await;
    in_time("the sums", redis.shares().held(team)).await;
    let begun = in_time("a key", redis.idempotency().begin(team, "key", [1; 32])).await;
    assert!(matches!(begun, Err(ports::IdempotencyError::Away(_))));
    in_time(
        "news",
        redis.bus().publish(ports::bus::contract::happening(team, 1)),
    )
    .await;
    in_time("a push", redis.queue().push("topic", "id", "x".into()))
        .await
        .unwrap_err();
    in_time(
        "a take",
        redis.queue().take("topic", "x", 1, Duration::from_secs(60)),
    )
    .await
    .unwrap_err();
}

#[tokio::test]
async fn a_redis_that_stands_still_stops_nobody_and_is_used_again_when_it_goes_on() {
    let Some(server) = server() else { return };
    let redis = process(&server).await;
    let known = route(SandboxId::random(), 1);
    redis.catalog().publish(known.clone()).await.unwrap();
    server.pause().unwrap();
    ask_everything(&redis).await;
    // It is known by now that it stands still: nobody waits for that again.
    let began = Instant::now();
    ask_everything(&redis).await;
    assert!(
        began.elapsed() < Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        redis.catalog().find(known.sandbox).await.unwrap().as_deref(),
        Some(&known)
    );
    server.go_on().unwrap();
    until(&redis, true).await;
    let route = route(SandboxId::random(), 1);
    redis.catalog().publish(route.clone()).await.unwrap();
    let other = process(&server).await;
    assert!(other.catalog().find(route.sandbox).await.unwrap().is_some());
    let mut heard = other.bus().subscribe();
    eventually("news arrive again", async || {
        let news = ports::bus::contract::happening(TeamId::random(), 1);
        redis.bus().publish(news).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        heard.try_recv().is_ok()
    })
    .await;
    assert!(redis.queue().push("topic", "again", "x".into()).await.unwrap());
}

#[tokio::test]
async fn a_redis_that_died_stops_nobody_and_is_used_again_when_it_is_there() {
    let Some(mut server) = server() else { return };
    let redis = process(&server).await;
    for _ in 0..3 {
        server.kill();
        ask_everything(&redis).await;
        server.start_again().unwrap();
        let began = Instant::now();
        until(&redis, true).await;
        assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
        let route = route(SandboxId::random(), 1);
        redis.catalog().publish(route).await.unwrap();
    }
}

#[tokio::test]
async fn a_redis_that_died_while_nobody_asked_is_asked_and_told_all_the_same() {
    let Some(mut server) = server() else { return };
    let redis = process(&server).await;
    for _ in 0..3 {
        server.kill();
        server.start_again().unwrap();
        // Nobody has asked since, and nobody knows that the line broke.
        let unknown = redis.catalog().find(SandboxId::random()).await;
        assert!(unknown.unwrap().is_none());
        server.kill();
        server.start_again().unwrap();
        redis
            .catalog()
            .publish(route(SandboxId::random(), 1))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn what_is_told_and_asked_of_routes_while_redis_is_restarted_waits_for_it() {
    let Some(mut server) = server() else { return };
    let redis = process(&server).await;
    server.kill();
    let (one, two) = (route(SandboxId::random(), 1), route(SandboxId::random(), 1));
    let (catalog, asked) = (redis.catalog(), redis.catalog());
    let told = tokio::spawn(async move { catalog.publish(one).await });
    let asked = tokio::spawn(async move { asked.find(two.sandbox).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!told.is_finished() && !asked.is_finished());
    server.start_again().unwrap();
    told.await.unwrap().unwrap();
    assert!(asked.await.unwrap().unwrap().is_none());
}

#[tokio::test]
async fn a_line_that_broke_while_nobody_asked_is_opened_again_by_itself() {
    let Some(mut server) = server() else { return };
    let redis = process(&server).await;
    server.kill();
    server.start_again().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let known = route(SandboxId::random(), 1);
    redis.catalog().publish(known).await.unwrap();
}

#[tokio::test]
async fn who_waits_for_work_is_told_that_redis_died() {
    let Some(mut server) = server() else { return };
    let redis = process(&server).await;
    let queue = redis.queue();
    let waiting = tokio::spawn(async move { queue.take("topic", "x", 1, Duration::from_secs(600)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.kill();
    let taken = in_time("a consumer", waiting).await.unwrap();
    assert!(taken.is_err());
}
