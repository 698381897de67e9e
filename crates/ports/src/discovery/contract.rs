//! The laws of [`ServiceDiscovery`], [`Elections`] and [`Settings`], one function each, which every adapter's tests run: see
//! [`crate::discovery_contract`].
//!
//! Each function panics where its law is broken, as a test does. It may be run in a cluster where others are.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::{MiB, SandboxId};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{
    Capacity, Check, DiscoveryError, Elections, Health, Instance, Known, META_MAX, Members, Role,
    ServiceDiscovery, Settings, Settled, Standing,
};
use crate::store::contract::join_all;

/// Makes the laws of all three ports tests of one adapter that is all three. The argument is a future of it in an `Arc`, behind
/// whatever must live as long as it; `None` where what it needs is not installed, which was said aloud.
#[macro_export]
macro_rules! discovery_contract {
    ($make:expr) => {
        $crate::discovery_contract! { @laws $make;
            what_is_registered_is_found_with_all_it_says,
            who_registers_again_is_there_once_with_what_it_said_last,
            who_is_deregistered_is_gone_and_may_be_so_twice,
            roles_do_not_mix,
            a_watch_begins_with_whoever_is_there_and_tells_whole_sets,
            what_one_says_of_itself_is_heard_by_all,
            nobody_speaks_for_who_is_not_registered,
            an_owners_instances_become_exactly_those_it_names,
            owners_leave_each_others_alone,
            what_cannot_be_carried_is_refused,
            many_at_once_are_all_found,
            one_of_the_candidates_leads_and_the_others_know_who,
            whoever_leads_next_has_a_greater_token,
            a_candidacy_that_is_dropped_frees_the_office,
            offices_are_apart,
            what_is_set_is_told_and_what_is_removed_too,
            a_key_that_is_none_is_refused,
        }
    };
    (@laws $make:expr; $($law:ident,)*) => {
        $(
            #[tokio::test]
            async fn $law() {
                let Some((_kept, discovery)) = $make.await else { return };
                $crate::discovery::contract::$law(&*discovery).await;
            }
        )*
    };
}

/// Within this a change is told, on the slowest machine: a discovery service agrees with itself first.
const PATIENCE: Duration = Duration::from_secs(60);

/// The check of the laws: told by itself.
const TTL: Check = Check::Ttl(Duration::from_secs(10));

/// Waits until a watched value is as it should be.
///
/// # Panics
/// It does not become so within a minute.
pub async fn until<T: Clone + std::fmt::Debug>(
    watched: &mut watch::Receiver<T>,
    what: &str,
    is: impl FnMut(&T) -> bool,
) -> T {
    let last = watched.clone();
    match timeout(PATIENCE, watched.wait_for(is)).await {
        Ok(Ok(value)) => value.clone(),
        Ok(Err(_)) => panic!("{what}: nobody tells any more"),
        Err(_) => panic!("{what}: still {:?}", *last.borrow()),
    }
}

/// An id that no other test uses.
fn id(what: &str) -> String {
    format!("{what}-{}", SandboxId::random())
}

/// A node that says all that can be said.
#[must_use]
pub fn node(id: &str) -> Instance {
    Instance {
        id: id.to_owned(),
        role: Role::Node,
        address: "127.0.0.1".to_owned(),
        port: 4100,
        zone: "zone-a".to_owned(),
        version: "1.2.3-rc.1+x".to_owned(),
        capacity: Some(Capacity {
            cpu: 16,
            memory: MiB(65_536),
            disk: MiB(1_000_000),
        }),
        meta: BTreeMap::from([("runtime".to_owned(), "quotes \" and ünïcode \\".to_owned())]),
    }
}

/// One of a role that says little.
fn plain(role: Role, id: &str) -> Instance {
    Instance {
        role,
        address: "host.example".to_owned(),
        port: 1,
        zone: String::new(),
        version: String::new(),
        capacity: None,
        meta: BTreeMap::new(),
        ..node(id)
    }
}

/// What was said is what is told, well until it says otherwise.
pub async fn what_is_registered_is_found_with_all_it_says(discovery: &dyn ServiceDiscovery) {
    let (full, bare) = (id("full"), id("bare"));
    let mut view = discovery.watch(Role::Node);
    discovery.register(node(&full), TTL).await.unwrap();
    discovery.register(plain(Role::Node, &bare), TTL).await.unwrap();
    until(&mut view, "both are there", |members: &Arc<Members>| {
        members.get(&full).is_some() && members.get(&bare).is_some()
    })
    .await;
    let members = discovery.discover(Role::Node).await.unwrap();
    assert_eq!(members.known, Known::Current);
    assert_eq!(members.get(&full).unwrap().instance, node(&full));
    assert_eq!(members.get(&bare).unwrap().instance, plain(Role::Node, &bare));
    assert_eq!(members.get(&full).unwrap().health, Health::Passing);
    assert!(members.usable().iter().any(|found| found.instance.id == full));
    assert_eq!(
        discovery.health(Role::Node, &full).await.unwrap(),
        Some(Health::Passing)
    );
    assert_eq!(discovery.health(Role::Node, &id("none")).await.unwrap(), None);
    assert!(members.found.is_sorted_by(|a, b| a.instance.id < b.instance.id));
}

/// A role that was started again takes the place of itself.
pub async fn who_registers_again_is_there_once_with_what_it_said_last(discovery: &dyn ServiceDiscovery) {
    let id = id("again");
    discovery.register(node(&id), TTL).await.unwrap();
    let moved = Instance {
        port: 4200,
        ..node(&id)
    };
    discovery.register(moved.clone(), TTL).await.unwrap();
    let mut view = discovery.watch(Role::Node);
    let members = until(&mut view, "it has moved", |members: &Arc<Members>| {
        members.get(&id).is_some_and(|found| found.instance.port == 4200)
    })
    .await;
    assert_eq!(members.get(&id).unwrap().instance, moved);
    assert_eq!(
        members
            .found
            .iter()
            .filter(|found| found.instance.id == id)
            .count(),
        1
    );
}

/// Gone is gone.
pub async fn who_is_deregistered_is_gone_and_may_be_so_twice(discovery: &dyn ServiceDiscovery) {
    let id = id("gone");
    let mut view = discovery.watch(Role::Node);
    discovery.register(node(&id), TTL).await.unwrap();
    until(&mut view, "it is there", |members: &Arc<Members>| {
        members.get(&id).is_some()
    })
    .await;
    discovery.deregister(Role::Node, &id).await.unwrap();
    until(&mut view, "it is gone", |members: &Arc<Members>| {
        members.get(&id).is_none()
    })
    .await;
    discovery.deregister(Role::Node, &id).await.unwrap();
}

/// The same id may be of two roles, and neither sees the other.
pub async fn roles_do_not_mix(discovery: &dyn ServiceDiscovery) {
    let (id, only) = (id("both"), id("only"));
    let (mut apis, mut edges) = (discovery.watch(Role::Api), discovery.watch(Role::Edge));
    for role in [Role::Api, Role::Edge] {
        discovery.register(plain(role, &id), TTL).await.unwrap();
    }
    discovery.register(plain(Role::Edge, &only), TTL).await.unwrap();
    until(&mut apis, "the API is there", |members: &Arc<Members>| {
        members.get(&id).is_some()
    })
    .await;
    until(&mut edges, "the edges are there", |members: &Arc<Members>| {
        members.get(&id).is_some() && members.get(&only).is_some()
    })
    .await;
    assert!(apis.borrow().get(&only).is_none());
    discovery.deregister(Role::Api, &id).await.unwrap();
    until(&mut apis, "the API is gone", |members: &Arc<Members>| {
        members.get(&id).is_none()
    })
    .await;
    assert!(discovery.discover(Role::Edge).await.unwrap().get(&id).is_some());
}

/// Whoever begins to watch late misses nothing, and whoever watches sees others stay while some come and go.
pub async fn a_watch_begins_with_whoever_is_there_and_tells_whole_sets(discovery: &dyn ServiceDiscovery) {
    let (old, new) = (id("old"), id("new"));
    discovery
        .register(plain(Role::Orchestrator, &old), TTL)
        .await
        .unwrap();
    let mut view = discovery.watch(Role::Orchestrator);
    let members = until(&mut view, "who was there is told", |members: &Arc<Members>| {
        members.get(&old).is_some()
    })
    .await;
    assert_eq!(members.known, Known::Current);
    discovery
        .register(plain(Role::Orchestrator, &new), TTL)
        .await
        .unwrap();
    let members = until(&mut view, "the new one is told", |members: &Arc<Members>| {
        members.get(&new).is_some()
    })
    .await;
    assert!(members.get(&old).is_some());
}

/// A report reaches every watcher, and can be taken back.
pub async fn what_one_says_of_itself_is_heard_by_all(discovery: &dyn ServiceDiscovery) {
    let id = id("ill");
    let mut view = discovery.watch(Role::Node);
    discovery.register(node(&id), TTL).await.unwrap();
    for (health, notes) in [
        (Health::Warning, "the disk is nearly full"),
        (Health::Critical, "the disk is full"),
        (Health::Passing, ""),
    ] {
        discovery.report(Role::Node, &id, health, notes).await.unwrap();
        let members = until(&mut view, "the report is heard", |members: &Arc<Members>| {
            members.get(&id).is_some_and(|found| found.health == health)
        })
        .await;
        let found = members.get(&id).unwrap();
        assert!(found.notes.contains(notes), "{:?}", found.notes);
        let is_used = members.usable().iter().any(|found| found.instance.id == id);
        assert!(is_used || health != Health::Passing);
        assert!(!is_used || health != Health::Critical);
    }
}

/// A report of one that was not registered changes nothing.
pub async fn nobody_speaks_for_who_is_not_registered(discovery: &dyn ServiceDiscovery) {
    let id = id("nobody");
    let refused = discovery.report(Role::Node, &id, Health::Passing, "").await;
    assert!(
        matches!(refused, Err(DiscoveryError::Unknown { .. })),
        "{refused:?}"
    );
    assert_eq!(discovery.health(Role::Node, &id).await.unwrap(), None);
    discovery.register(node(&id), TTL).await.unwrap();
    discovery.deregister(Role::Node, &id).await.unwrap();
    let refused = discovery.report(Role::Node, &id, Health::Passing, "").await;
    assert!(
        matches!(refused, Err(DiscoveryError::Unknown { .. })),
        "{refused:?}"
    );
}

/// What is named is there, what is not is not: whatever was there before.
pub async fn an_owners_instances_become_exactly_those_it_names(discovery: &dyn ServiceDiscovery) {
    let owner = id("owner");
    let ids: Vec<String> = (0..20).map(|_| id("box")).collect();
    let some = |part: &[String]| part.iter().map(|id| plain(Role::Sandbox, id)).collect::<Vec<_>>();
    let mut view = discovery.watch(Role::Sandbox);
    let own = |members: &Members| -> Vec<String> {
        let ids = ids.iter().filter(|id| members.get(id).is_some());
        ids.cloned().collect()
    };
    for (named, expected) in [
        (
            &ids[..15],
            Settled {
                added: 15,
                removed: 0,
                kept: 0,
            },
        ),
        (
            &ids[..15],
            Settled {
                added: 0,
                removed: 0,
                kept: 15,
            },
        ),
        (
            &ids[10..],
            Settled {
                added: 5,
                removed: 10,
                kept: 5,
            },
        ),
        (
            &ids[..0],
            Settled {
                added: 0,
                removed: 10,
                kept: 0,
            },
        ),
    ] {
        let settled = discovery
            .settle(&owner, Role::Sandbox, some(named))
            .await
            .unwrap();
        assert_eq!(settled, expected);
        until(&mut view, "those named are there", |members: &Arc<Members>| {
            own(members) == named
        })
        .await;
    }
    let foreign = discovery.settle(&owner, Role::Sandbox, vec![node(&ids[0])]).await;
    assert!(matches!(foreign, Err(DiscoveryError::Invalid(_))), "{foreign:?}");
}

/// What one owner names is nothing to another.
pub async fn owners_leave_each_others_alone(discovery: &dyn ServiceDiscovery) {
    let (first, second) = (id("first"), id("second"));
    let (of_first, of_second) = (id("box"), id("box"));
    let mut view = discovery.watch(Role::Sandbox);
    for (owner, instance) in [(&first, &of_first), (&second, &of_second)] {
        let named = vec![plain(Role::Sandbox, instance)];
        discovery.settle(owner, Role::Sandbox, named).await.unwrap();
    }
    discovery.settle(&first, Role::Sandbox, Vec::new()).await.unwrap();
    until(
        &mut view,
        "one is gone and one is there",
        |members: &Arc<Members>| members.get(&of_first).is_none() && members.get(&of_second).is_some(),
    )
    .await;
}

/// What some adapter could not carry is refused by all.
pub async fn what_cannot_be_carried_is_refused(discovery: &dyn ServiceDiscovery) {
    let long = "x".repeat(600);
    let meta = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let good = node(&id("wrong"));
    let many = (0..=META_MAX).map(|n| (format!("k{n}"), String::new())).collect();
    for wrong in [
        Instance {
            id: String::new(),
            ..good.clone()
        },
        Instance {
            id: "A/b".to_owned(),
            ..good.clone()
        },
        Instance {
            id: long.clone(),
            ..good.clone()
        },
        Instance {
            address: String::new(),
            ..good.clone()
        },
        Instance {
            address: "a b".to_owned(),
            ..good.clone()
        },
        Instance {
            port: 0,
            ..good.clone()
        },
        Instance {
            zone: "a zone".to_owned(),
            ..good.clone()
        },
        Instance {
            version: long.clone(),
            ..good.clone()
        },
        Instance {
            meta: meta("atoll_zone", "z"),
            ..good.clone()
        },
        Instance {
            meta: meta("Key", "z"),
            ..good.clone()
        },
        Instance {
            meta: meta("key", &long),
            ..good.clone()
        },
        Instance {
            meta: meta("key", "a\nb"),
            ..good.clone()
        },
        Instance {
            meta: many,
            ..good.clone()
        },
    ] {
        let refused = discovery.register(wrong.clone(), TTL).await;
        assert!(
            matches!(refused, Err(DiscoveryError::Invalid(_))),
            "{wrong:?}: {refused:?}"
        );
    }
    assert_eq!(discovery.health(Role::Node, &good.id).await.unwrap(), None);
}

/// A fleet that starts at one instant is there as a whole.
pub async fn many_at_once_are_all_found(discovery: &dyn ServiceDiscovery) {
    let ids: Vec<String> = (0..40).map(|_| id("many")).collect();
    let all = ids.iter().map(|id| discovery.register(node(id), TTL));
    for registered in join_all(all).await {
        registered.unwrap();
    }
    let mut view = discovery.watch(Role::Node);
    until(&mut view, "all are there", |members: &Arc<Members>| {
        ids.iter().all(|id| members.get(id).is_some())
    })
    .await;
    for gone in join_all(ids.iter().map(|id| discovery.deregister(Role::Node, id))).await {
        gone.unwrap();
    }
}

/// Who is not elected is told who is.
pub async fn one_of_the_candidates_leads_and_the_others_know_who(elections: &dyn Elections) {
    let office = id("office");
    let mut first = elections.stand(&office, "first").unwrap();
    let token = timeout(PATIENCE, first.leads()).await.unwrap().unwrap();
    let second = elections.stand(&office, "second").unwrap();
    let told = Standing::Waiting {
        leader: Some("first".to_owned()),
    };
    until(&mut second.standing(), "it knows who leads", |standing| {
        *standing == told
    })
    .await;
    assert_eq!(first.standing().borrow().token(), Some(token));
    second.resign().await;
    assert_eq!(first.standing().borrow().token(), Some(token));
    assert!(elections.stand("no office", "x").is_err());
    assert!(elections.stand(&office, "").is_err());
    first.resign().await;
}

/// By their tokens, those who led before are told from those who lead now.
pub async fn whoever_leads_next_has_a_greater_token(elections: &dyn Elections) {
    let office = id("office");
    let mut last = 0;
    for candidate in ["a", "b", "a"] {
        let mut candidacy = elections.stand(&office, candidate).unwrap();
        let token = timeout(PATIENCE, candidacy.leads()).await.unwrap().unwrap();
        assert!(token > last, "{token} after {last}");
        last = token;
        let mut standing = candidacy.standing();
        candidacy.resign().await;
        assert_eq!(
            standing.borrow_and_update().token(),
            None,
            "who resigned does not lead"
        );
    }
}

/// Who is gone without a word does not keep the office.
pub async fn a_candidacy_that_is_dropped_frees_the_office(elections: &dyn Elections) {
    let office = id("office");
    let mut first = elections.stand(&office, "first").unwrap();
    timeout(PATIENCE, first.leads()).await.unwrap().unwrap();
    let mut second = elections.stand(&office, "second").unwrap();
    drop(first);
    assert!(timeout(PATIENCE, second.leads()).await.unwrap().is_some());
    second.resign().await;
}

/// One may lead here and another there.
pub async fn offices_are_apart(elections: &dyn Elections) {
    let mut here = elections.stand(&id("here"), "one").unwrap();
    let mut there = elections.stand(&id("there"), "other").unwrap();
    assert!(timeout(PATIENCE, here.leads()).await.unwrap().is_some());
    assert!(timeout(PATIENCE, there.leads()).await.unwrap().is_some());
    here.resign().await;
    there.resign().await;
}

/// Settings are told whole, as they change.
pub async fn what_is_set_is_told_and_what_is_removed_too(settings: &dyn Settings) {
    let (key, other) = (id("a/key"), id("other"));
    let mut values = settings.watch_settings();
    until(&mut values, "that nothing is set is told", |values| {
        values.known == Known::Current
    })
    .await;
    for text in ["one", "", "two\n\"three\" ünïcode"] {
        settings.put_setting(&key, text).await.unwrap();
        until(&mut values, "it is set", |values| {
            values.values.get(&key).is_some_and(|value| value == text)
        })
        .await;
    }
    settings.put_setting(&other, "x").await.unwrap();
    settings.remove_setting(&key).await.unwrap();
    settings.remove_setting(&key).await.unwrap();
    until(&mut values, "it is removed", |values| {
        !values.values.contains_key(&key) && values.values.contains_key(&other)
    })
    .await;
    settings.remove_setting(&other).await.unwrap();
    until(&mut values, "nothing is set", |values| {
        !values.values.contains_key(&other)
    })
    .await;
}

/// Keys lead nowhere else.
pub async fn a_key_that_is_none_is_refused(settings: &dyn Settings) {
    for key in ["", "/", "a//b", "../a", "a/..", "a b", "a?b", &"k".repeat(300)] {
        let refused = settings.put_setting(key, "x").await;
        assert!(
            matches!(refused, Err(DiscoveryError::Invalid(_))),
            "{key:?}: {refused:?}"
        );
        let refused = settings.remove_setting(key).await;
        assert!(
            matches!(refused, Err(DiscoveryError::Invalid(_))),
            "{key:?}: {refused:?}"
        );
    }
}
