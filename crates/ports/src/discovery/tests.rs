use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use model::{ExecutionId, SandboxId};

use super::contract::{node, until};
use super::*;

mod memory_keeps_the_contract {
    use std::sync::Arc;

    async fn discovery() -> Option<((), Arc<super::Memory>)> {
        Some(((), Arc::default()))
    }

    crate::discovery_contract!(discovery());
}

const TTL: Check = Check::Ttl(Duration::from_secs(10));

#[test]
fn every_role_has_a_name_of_its_own() {
    for role in Role::ALL {
        assert_eq!(role.as_str().parse::<Role>().unwrap(), role);
        assert!(!role.as_str().contains('-'));
    }
    assert!("nodes".parse::<Role>().is_err());
}

#[test]
fn who_is_warned_of_is_used_where_there_is_no_better() {
    let one = |id: &str, health| Found {
        instance: node(id),
        health,
        notes: String::new(),
    };
    let check = |all: &[Health], expected: &[&str]| {
        let found = all
            .iter()
            .zip(["a", "b"])
            .map(|(health, id)| one(id, *health))
            .collect();
        let members = Members {
            found,
            ..Members::default()
        };
        let usable: Vec<_> = members
            .usable()
            .iter()
            .map(|found| found.instance.id.clone())
            .collect();
        assert_eq!(usable, expected, "{all:?}");
    };
    check(&[Health::Passing, Health::Warning], &["a"]);
    check(&[Health::Critical, Health::Warning], &["b"]);
    check(&[Health::Critical, Health::Critical], &[]);
    check(&[], &[]);
}

#[tokio::test]
async fn who_is_not_in_a_fixed_list_is_refused() {
    let fixed = Fixed::new(vec![node("a"), node("b")]).await.unwrap();
    fixed.register(node("a"), TTL).await.unwrap();
    let refused = fixed.register(node("c"), TTL).await;
    assert!(matches!(refused, Err(DiscoveryError::Invalid(_))), "{refused:?}");
    fixed.deregister(Role::Node, "a").await.unwrap();
    let members = fixed.discover(Role::Node).await.unwrap();
    assert_eq!((members.found.len(), members.known), (2, Known::Current));
    assert_eq!(*fixed.watch(Role::Node).borrow().found, members.found);
    let refused = Fixed::new(vec![node("a"), node("a")]).await.err().unwrap();
    assert!(refused.to_string().contains("twice"), "{refused}");
    let announced = fixed.settle("a", Role::Sandbox, Vec::new()).await.unwrap();
    assert_eq!(announced, Settled::default());
}

struct Switch(AtomicBool);

#[async_trait]
impl Probe for Switch {
    async fn probe(&self, instance: &Instance) -> (Health, String) {
        if self.0.load(Ordering::SeqCst) || instance.id == "b" {
            (Health::Passing, String::new())
        } else {
            (Health::Critical, "it is off".to_owned())
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_listed_are_probed_until_the_list_is_dropped() {
    let switch = Arc::new(Switch(AtomicBool::new(false)));
    let all = vec![node("a"), node("b")];
    let fixed = Fixed::probed(all, Arc::clone(&switch) as _, Duration::from_secs(5))
        .await
        .unwrap();
    let mut view = fixed.watch(Role::Node);
    let health = |members: &Arc<Members>| members.get("a").map(|found| found.health);
    until(&mut view, "off", |members| {
        health(members) == Some(Health::Critical)
    })
    .await;
    assert_eq!(view.borrow().get("a").unwrap().notes, "it is off");
    switch.0.store(true, Ordering::SeqCst);
    until(&mut view, "on", |members| {
        health(members) == Some(Health::Passing)
    })
    .await;
    drop(fixed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(Arc::strong_count(&switch), 1, "nobody probes any more");
}

#[test]
fn sandboxes_are_announced_up_to_a_bound_and_again_well_below_it() {
    for (announce, before, running, expected) in [
        (Announce::Never, true, 0, false),
        (Announce::Always, false, 1_000_000, true),
        (Announce::UpTo(100), true, 100, true),
        (Announce::UpTo(100), true, 101, false),
        (Announce::UpTo(100), false, 76, false),
        (Announce::UpTo(100), false, 75, true),
        (Announce::UpTo(0), true, 1, false),
    ] {
        assert_eq!(
            announce.decide(before, running),
            expected,
            "{announce:?} {before} {running}"
        );
    }
}

#[tokio::test]
async fn announced_sandboxes_follow_what_runs() {
    let memory = Memory::default();
    let running: Vec<RunningSandbox> = (0..8)
        .map(|_| RunningSandbox {
            sandbox: SandboxId::random(),
            execution: ExecutionId::random(),
            template: "base\n".to_owned(),
        })
        .collect();
    // What a daemon that died left behind.
    let stale = Instance {
        role: Role::Sandbox,
        meta: BTreeMap::new(),
        ..node("stale")
    };
    memory.settle("n1", Role::Sandbox, vec![stale]).await.unwrap();
    let mut announced = Announced::new(Arc::new(memory.clone()), node("n1"), Announce::UpTo(6));
    let count = async || memory.discover(Role::Sandbox).await.unwrap().found.len();
    let settled = announced.pass(&running[..5]).await.unwrap();
    assert_eq!(
        settled,
        Settled {
            added: 5,
            removed: 1,
            kept: 0
        }
    );
    let members = memory.discover(Role::Sandbox).await.unwrap();
    let id = format!("{}-{}", running[0].sandbox, running[0].execution);
    let meta = &members.get(&id).unwrap().instance.meta;
    assert_eq!(meta["sandbox"], running[0].sandbox.to_string());
    assert_eq!(meta["execution"], running[0].execution.to_string());
    assert_eq!(meta["template"], "base");
    announced.pass(&running).await.unwrap();
    assert_eq!(count().await, 0, "above the bound");
    announced.pass(&running[..6]).await.unwrap();
    assert_eq!(count().await, 0, "not yet well below it");
    announced.pass(&running[..5]).await.unwrap();
    assert_eq!(count().await, 5);
}
