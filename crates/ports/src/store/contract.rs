//! The laws of the stores, one function each, which every adapter's tests run: see [`crate::store_contract`].
//!
//! Each function panics where its law is broken, as a test does. It may be run on a store that holds other things.
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::{
    ApiKey, BuildId, ExecutionId, KeyId, KillReason, Lifecycle, NetworkPolicy, NodeId, Origin, PauseMode,
    Phase, Quota, Resources, Sandbox, SandboxId, Seat, State, Team, TeamId, Template, TemplateId,
};

use super::{Cursor, SandboxQuery, SandboxStore, StoreError, TeamStore, TemplateStore};

/// Makes the laws of all three stores tests of one adapter. The argument is a future
/// of a fresh store in an `Arc`, behind whatever must live as long as it.
#[macro_export]
macro_rules! store_contract {
    ($make:expr) => {
        $crate::store_contract! { @laws $make;
            what_is_stored_is_what_was_meant,
            an_id_is_stored_once,
            a_stale_write_is_refused,
            of_many_writers_of_one_version_one_wins,
            a_list_shows_what_clients_see,
            a_list_obeys_every_filter,
            pages_join_without_gap_or_overlap_in_both_orders,
            the_gone_are_not_live_and_are_forgotten_in_time,
            a_template_is_found_by_id_name_and_promotion,
            a_template_name_is_taken_once_in_a_team,
            spawns_are_counted_and_survive_an_update,
            builds_are_what_tags_name,
            a_team_slug_is_taken_once,
            a_quota_is_replaced_and_nothing_else,
            a_key_is_found_by_its_hash_with_its_team,
            a_key_belongs_to_its_team_alone,
            the_seed_stays,
        }
    };
    (@laws $make:expr; $($law:ident,)*) => {
        $(
            #[tokio::test]
            async fn $law() {
                let (_kept, store) = $make.await;
                $crate::store::contract::$law(&*store).await;
            }
        )*
    };
}

/// A running sandbox.
#[must_use]
pub fn sandbox(team: TeamId) -> Sandbox {
    let at = Seat {
        node: NodeId::random(),
        execution: ExecutionId::random(),
    };
    let started_at = UNIX_EPOCH + Duration::new(1_790_000_000, 123_456_000);
    Sandbox {
        id: SandboxId::random(),
        team,
        template: TemplateId::random(),
        build: BuildId::random(),
        alias: Some("base".to_owned()),
        phase: Phase::Running { at },
        version: 0,
        started_at,
        end_at: started_at + Duration::from_secs(300),
        timeout_seconds: 300,
        resources: Resources::default(),
        metadata: BTreeMap::new(),
        env: BTreeMap::new(),
        lifecycle: Lifecycle::default(),
        network: NetworkPolicy::default(),
        secure: true,
        envd_unresponsive_at_pause: false,
    }
}

/// A template of a team with one name.
#[must_use]
pub fn template(team: TeamId, name: &str) -> Template {
    let created_at = UNIX_EPOCH + Duration::from_secs(1_780_000_000);
    Template {
        id: TemplateId::random(),
        team,
        public: false,
        names: vec![name.to_owned()],
        tags: BTreeMap::from([("default".to_owned(), BuildId::random())]),
        resources: Resources::default(),
        env: BTreeMap::new(),
        user: "user".to_owned(),
        workdir: None,
        start: None,
        created_at,
        updated_at: created_at,
        last_spawned_at: None,
        spawn_count: 0,
        build_count: 1,
    }
}

/// A team.
#[must_use]
pub fn team(slug: &str) -> Team {
    Team {
        id: TeamId::random(),
        name: slug.to_owned(),
        slug: slug.to_owned(),
        quota: Quota::default(),
        blocked: false,
    }
}

/// A key of a team.
#[must_use]
pub fn key(team: TeamId, hash: &str) -> ApiKey {
    ApiKey {
        id: KeyId::random(),
        team,
        name: "laptop".to_owned(),
        hash: hash.to_owned(),
        mask_prefix: "ab".to_owned(),
        mask_suffix: "cdef".to_owned(),
        created_at: UNIX_EPOCH + Duration::from_secs(1_790_000_000),
        last_used: None,
    }
}

/// Everything of a team, newest first.
#[must_use]
pub fn everything(team: TeamId) -> SandboxQuery {
    SandboxQuery {
        team,
        states: Vec::new(),
        metadata: BTreeMap::new(),
        started_after: None,
        template: None,
        ascending: false,
        after: None,
        limit: 100,
    }
}

fn paused() -> Phase {
    Phase::Paused {
        snapshot: BuildId::random(),
        mode: PauseMode::Full,
        home: NodeId::random(),
    }
}

fn starting() -> Phase {
    let at = Seat {
        node: NodeId::random(),
        execution: ExecutionId::random(),
    };
    Phase::Starting {
        at,
        from: Origin::Template(BuildId::random()),
    }
}

async fn ids(store: &dyn SandboxStore, query: &SandboxQuery) -> Vec<SandboxId> {
    store
        .list(query)
        .await
        .unwrap()
        .iter()
        .map(|sandbox| sandbox.id)
        .collect()
}

/// What is read is what was written, whatever its texts hold.
pub async fn what_is_stored_is_what_was_meant(store: &dyn SandboxStore) {
    let mut sandbox = sandbox(TeamId::random());
    sandbox.metadata.insert(
        "ключ \"'\\ \n".to_owned(),
        "; DROP TABLE sandboxes; --".to_owned(),
    );
    sandbox.network.allow.push("10.0.0.0/8".parse().unwrap());
    store.insert(&sandbox).await.unwrap();
    assert_eq!(store.get(sandbox.id).await.unwrap(), Some(sandbox.clone()));
    sandbox.phase = paused();
    sandbox.envd_unresponsive_at_pause = true;
    sandbox.version = store.update(&sandbox).await.unwrap();
    assert_eq!(store.get(sandbox.id).await.unwrap(), Some(sandbox));
    assert_eq!(store.get(SandboxId::random()).await.unwrap(), None);
}

/// The second insert of an id changes nothing.
pub async fn an_id_is_stored_once(store: &dyn SandboxStore) {
    let first = sandbox(TeamId::random());
    store.insert(&first).await.unwrap();
    let second = Sandbox {
        team: TeamId::random(),
        ..first.clone()
    };
    assert!(matches!(store.insert(&second).await, Err(StoreError::Conflict)));
    assert_eq!(store.get(first.id).await.unwrap(), Some(first));
}

/// A write that names another version than the stored one changes nothing.
pub async fn a_stale_write_is_refused(store: &dyn SandboxStore) {
    let first = sandbox(TeamId::random());
    store.insert(&first).await.unwrap();
    let version = store.update(&first).await.unwrap();
    assert!(version > first.version);
    let stale = Sandbox {
        phase: paused(),
        ..first.clone()
    };
    assert!(matches!(store.update(&stale).await, Err(StoreError::Conflict)));
    assert_eq!(store.get(first.id).await.unwrap().unwrap().phase, first.phase);
    let unknown = sandbox(TeamId::random());
    assert!(matches!(store.update(&unknown).await, Err(StoreError::Missing)));
}

/// Compare-and-set holds among writers at the same time.
pub async fn of_many_writers_of_one_version_one_wins(store: &dyn SandboxStore) {
    let first = sandbox(TeamId::random());
    store.insert(&first).await.unwrap();
    let writes = (0..20).map(|second| {
        let write = Sandbox {
            timeout_seconds: second,
            ..first.clone()
        };
        async move { store.update(&write).await }
    });
    let mut won = 0;
    for outcome in join_all(writes).await {
        match outcome {
            Ok(_) => won += 1,
            Err(StoreError::Conflict) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(won, 1);
}

/// Sandboxes that are not there yet, or not any more, are not listed and not counted.
pub async fn a_list_shows_what_clients_see(store: &dyn SandboxStore) {
    let team = TeamId::random();
    let at = Seat {
        node: NodeId::random(),
        execution: ExecutionId::random(),
    };
    let why = KillReason::Requested;
    let mut seen = Vec::new();
    for phase in [
        starting(),
        Phase::Running { at },
        paused(),
        Phase::Killing { at, why },
        Phase::Gone { why },
    ] {
        let sandbox = Sandbox {
            phase,
            ..sandbox(team)
        };
        store.insert(&sandbox).await.unwrap();
        if phase.state().is_some() {
            seen.push(sandbox.id);
        }
    }
    store.insert(&sandbox(TeamId::random())).await.unwrap();
    seen.sort_unstable();
    assert_eq!(ids(store, &everything(team)).await, seen);
    assert_eq!(store.count(team, State::Running).await.unwrap(), 1);
    assert_eq!(store.count(team, State::Paused).await.unwrap(), 1);
}

/// Each filter is obeyed, and times compare at microseconds.
pub async fn a_list_obeys_every_filter(store: &dyn SandboxStore) {
    let team = TeamId::random();
    let mut one = sandbox(team);
    one.metadata = BTreeMap::from([
        ("a".to_owned(), "1".to_owned()),
        ("b".to_owned(), "\"2\"".to_owned()),
    ]);
    let mut two = sandbox(team);
    two.phase = paused();
    two.started_at += Duration::from_micros(1);
    // Looks like the metadata asked for, and is not.
    two.env = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
    store.insert(&one).await.unwrap();
    store.insert(&two).await.unwrap();

    let all = everything(team);
    assert_eq!(ids(store, &all).await, [two.id, one.id]);
    let metadata = one.metadata.clone();
    assert_eq!(
        ids(
            store,
            &SandboxQuery {
                metadata,
                ..all.clone()
            }
        )
        .await,
        [one.id]
    );
    let metadata = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
    assert_eq!(
        ids(
            store,
            &SandboxQuery {
                metadata,
                ..all.clone()
            }
        )
        .await,
        []
    );
    let metadata = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
    assert_eq!(
        ids(
            store,
            &SandboxQuery {
                metadata,
                ..all.clone()
            }
        )
        .await,
        [one.id]
    );
    let states = vec![State::Paused];
    assert_eq!(
        ids(
            store,
            &SandboxQuery {
                states,
                ..all.clone()
            }
        )
        .await,
        [two.id]
    );
    let states = vec![State::Paused, State::Running];
    assert_eq!(
        ids(
            store,
            &SandboxQuery {
                states,
                ..all.clone()
            }
        )
        .await,
        [two.id, one.id]
    );
    let template = Some(one.template);
    assert_eq!(
        ids(
            store,
            &SandboxQuery {
                template,
                ..all.clone()
            }
        )
        .await,
        [one.id]
    );
    let started_after = Some(two.started_at);
    assert_eq!(
        ids(
            store,
            &SandboxQuery {
                started_after,
                ..all.clone()
            }
        )
        .await,
        [two.id]
    );
    let started_after = Some(two.started_at + Duration::from_nanos(999));
    assert_eq!(
        ids(
            store,
            &SandboxQuery {
                started_after,
                ..all.clone()
            }
        )
        .await,
        [two.id]
    );
    let started_after = Some(one.started_at);
    assert_eq!(
        ids(store, &SandboxQuery { started_after, ..all }).await,
        [two.id, one.id]
    );
}

/// Pages of any size, one behind the other, are the whole list; ascending is the exact reverse of descending.
pub async fn pages_join_without_gap_or_overlap_in_both_orders(store: &dyn SandboxStore) {
    let team = TeamId::random();
    for n in 0..7 {
        let mut sandbox = sandbox(team);
        // Ties, and times that differ by less than the precision.
        sandbox.started_at += Duration::from_micros(n / 3) + Duration::from_nanos(n);
        store.insert(&sandbox).await.unwrap();
    }
    let mut whole = ids(store, &everything(team)).await;
    assert_eq!(whole.len(), 7);
    for ascending in [false, true] {
        for limit in [1, 2, 3, 7, 8] {
            let mut joined = Vec::new();
            let mut query = SandboxQuery {
                ascending,
                limit,
                ..everything(team)
            };
            loop {
                let page = store.list(&query).await.unwrap();
                joined.extend(page.iter().map(|sandbox| sandbox.id));
                let Some(last) = page.last() else { break };
                query.after = Some(Cursor {
                    started_at: last.started_at,
                    id: last.id,
                });
            }
            assert_eq!(joined, whole, "limit {limit}");
        }
        whole.reverse();
    }
}

/// A gone sandbox is readable until it is forgotten.
pub async fn the_gone_are_not_live_and_are_forgotten_in_time(store: &dyn SandboxStore) {
    let mut ended = sandbox(TeamId::random());
    store.insert(&ended).await.unwrap();
    let is_live = async || store.live().await.unwrap().iter().any(|live| live.id == ended.id);
    assert!(is_live().await);
    let began = SystemTime::now();
    ended.phase = Phase::Gone {
        why: KillReason::Timeout,
    };
    store.update(&ended).await.unwrap();
    assert!(!is_live().await);
    store.forget_gone(began - Duration::from_secs(1)).await.unwrap();
    assert!(store.get(ended.id).await.unwrap().is_some());
    assert!(
        store
            .forget_gone(SystemTime::now() + Duration::from_secs(1))
            .await
            .unwrap()
            >= 1
    );
    assert_eq!(store.get(ended.id).await.unwrap(), None);
}

/// Each way of looking up finds it, and a private one is not promoted.
pub async fn a_template_is_found_by_id_name_and_promotion(store: &dyn TemplateStore) {
    let (ours, theirs) = (TeamId::random(), TeamId::random());
    let name = TemplateId::random().to_string();
    let private = template(ours, &name);
    let mut newer = template(theirs, &name);
    newer.public = true;
    let mut older = template(TeamId::random(), &name);
    older.public = true;
    older.created_at -= Duration::from_secs(1);
    for template in [&private, &newer, &older] {
        store.insert(template).await.unwrap();
    }
    assert_eq!(store.get(private.id).await.unwrap().as_ref(), Some(&private));
    assert_eq!(store.named(ours, &name).await.unwrap().as_ref(), Some(&private));
    assert_eq!(store.named(theirs, &name).await.unwrap().as_ref(), Some(&newer));
    assert_eq!(store.promoted(&name).await.unwrap().as_ref(), Some(&older));
    assert_eq!(
        store.list(ours).await.unwrap().as_slice(),
        std::slice::from_ref(&private)
    );
    store.remove(older.id).await.unwrap();
    store.remove(older.id).await.unwrap();
    assert_eq!(store.promoted(&name).await.unwrap().as_ref(), Some(&newer));
    assert_eq!(store.get(older.id).await.unwrap(), None);
}

/// Two templates of a team do not share a name, and a refused write leaves nothing.
pub async fn a_template_name_is_taken_once_in_a_team(store: &dyn TemplateStore) {
    let team = TeamId::random();
    let first = template(team, "one");
    store.insert(&first).await.unwrap();
    let mut second = template(team, "two");
    second.names.push("one".to_owned());
    assert!(matches!(store.insert(&second).await, Err(StoreError::Conflict)));
    assert_eq!(store.get(second.id).await.unwrap(), None);
    assert_eq!(store.named(team, "two").await.unwrap(), None);
    second.names.pop();
    store.insert(&second).await.unwrap();
    let clash = Template {
        names: vec!["three".to_owned(), "one".to_owned()],
        ..second.clone()
    };
    assert!(matches!(store.update(&clash).await, Err(StoreError::Conflict)));
    assert_eq!(store.named(team, "two").await.unwrap(), Some(second.clone()));
    let renamed = Template {
        names: vec!["three".to_owned()],
        ..second
    };
    store.update(&renamed).await.unwrap();
    assert_eq!(store.named(team, "two").await.unwrap(), None);
    assert_eq!(store.named(team, "three").await.unwrap(), Some(renamed));
    assert!(matches!(
        store.update(&template(team, "four")).await,
        Err(StoreError::Missing)
    ));
}

/// A count is not undone by somebody who read the template before.
pub async fn spawns_are_counted_and_survive_an_update(store: &dyn TemplateStore) {
    let template = template(TeamId::random(), "counted");
    store.insert(&template).await.unwrap();
    let at = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    store.spawned(template.id, at).await.unwrap();
    store
        .spawned(template.id, at - Duration::from_secs(1))
        .await
        .unwrap();
    store.update(&template).await.unwrap();
    let stored = store.get(template.id).await.unwrap().unwrap();
    assert_eq!((stored.spawn_count, stored.last_spawned_at), (2, Some(at)));
    assert!(matches!(
        store.spawned(TemplateId::random(), at).await,
        Err(StoreError::Missing)
    ));
}

/// Every build that a tag names is listed, once.
pub async fn builds_are_what_tags_name(store: &dyn TemplateStore) {
    let mut template = template(TeamId::random(), "built");
    let build = BuildId::random();
    template.tags = BTreeMap::from([("default".to_owned(), build), ("v1".to_owned(), build)]);
    store.insert(&template).await.unwrap();
    let of = |builds: Vec<BuildId>| builds.into_iter().filter(|other| *other == build).count();
    assert_eq!(of(store.builds().await.unwrap()), 1);
    store.remove(template.id).await.unwrap();
    assert_eq!(of(store.builds().await.unwrap()), 0);
}

/// A slug names one team.
pub async fn a_team_slug_is_taken_once(store: &dyn TeamStore) {
    let slug = TemplateId::random().to_string();
    let first = team(&slug);
    store.insert_team(&first).await.unwrap();
    assert!(matches!(
        store.insert_team(&team(&slug)).await,
        Err(StoreError::Conflict)
    ));
    assert_eq!(store.team(first.id).await.unwrap().as_ref(), Some(&first));
    assert_eq!(store.team_by_slug(&slug).await.unwrap().as_ref(), Some(&first));
    assert_eq!(
        store
            .teams()
            .await
            .unwrap()
            .iter()
            .filter(|team| team.slug == slug)
            .count(),
        1
    );
    assert_eq!(store.team(TeamId::random()).await.unwrap(), None);
}

/// A quota is replaced, and nothing else of the team.
pub async fn a_quota_is_replaced_and_nothing_else(store: &dyn TeamStore) {
    let mut team = team(TemplateId::random().as_str());
    let quota = Quota {
        sandboxes: 2,
        ..team.quota
    };
    assert!(matches!(
        store.set_quota(team.id, quota).await,
        Err(StoreError::Missing)
    ));
    store.insert_team(&team).await.unwrap();
    store.set_quota(team.id, quota).await.unwrap();
    team.quota = quota;
    assert_eq!(store.team(team.id).await.unwrap(), Some(team));
}

/// A key and its team come together; a removed key is found no more.
pub async fn a_key_is_found_by_its_hash_with_its_team(store: &dyn TeamStore) {
    let team = team(TemplateId::random().as_str());
    let hash = TemplateId::random().to_string();
    let mut key = key(team.id, &hash);
    assert!(matches!(store.insert_key(&key).await, Err(StoreError::Missing)));
    store.insert_team(&team).await.unwrap();
    store.insert_key(&key).await.unwrap();
    assert_eq!(
        store.key_by_hash(&hash).await.unwrap(),
        Some((key.clone(), team.clone()))
    );
    assert_eq!(store.key_by_hash("no such").await.unwrap(), None);
    key.last_used = Some(UNIX_EPOCH + Duration::from_secs(1_790_000_060));
    store.key_used(key.id, key.last_used.unwrap()).await.unwrap();
    key.name = "server".to_owned();
    store.rename_key(team.id, key.id, "server").await.unwrap();
    assert_eq!(store.keys(team.id).await.unwrap(), [key.clone()]);
    store.remove_key(team.id, key.id).await.unwrap();
    assert_eq!(store.key_by_hash(&hash).await.unwrap(), None);
}

/// Another team can neither rename nor remove a key, and learns nothing by trying.
pub async fn a_key_belongs_to_its_team_alone(store: &dyn TeamStore) {
    let team = team(TemplateId::random().as_str());
    store.insert_team(&team).await.unwrap();
    let key = key(team.id, TemplateId::random().as_str());
    store.insert_key(&key).await.unwrap();
    let foreign = TeamId::random();
    assert!(matches!(
        store.rename_key(foreign, key.id, "x").await,
        Err(StoreError::Missing)
    ));
    assert!(matches!(
        store.remove_key(foreign, key.id).await,
        Err(StoreError::Missing)
    ));
    assert!(matches!(
        store.remove_key(team.id, KeyId::random()).await,
        Err(StoreError::Missing)
    ));
    assert_eq!(store.keys(foreign).await.unwrap(), []);
    assert_eq!(store.keys(team.id).await.unwrap(), [key]);
}

/// Everybody who asks gets the same 32 bytes.
pub async fn the_seed_stays(store: &dyn TeamStore) {
    let seeds = join_all((0..4).map(|_| store.seed())).await;
    let first = seeds[0].as_ref().unwrap();
    assert_eq!(first.expose().len(), 32);
    assert!(seeds.iter().all(|seed| seed.as_ref().unwrap() == first));
}

/// All of them at once, in their order.
async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures
        .into_iter()
        .map(|future| (Box::pin(future), None))
        .collect();
    std::future::poll_fn(move |context| {
        for (future, output) in &mut waiting {
            if output.is_none()
                && let std::task::Poll::Ready(done) = future.as_mut().poll(context)
            {
                *output = Some(done);
            }
        }
        if waiting.iter().any(|(_, output)| output.is_none()) {
            return std::task::Poll::Pending;
        }
        let done = waiting.iter_mut().filter_map(|(_, output)| output.take());
        std::task::Poll::Ready(done.collect())
    })
    .await
}
