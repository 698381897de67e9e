use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::{
    BuildId, ExecutionId, KillReason, Lifecycle, Memory, NetworkPolicy, NodeId, Origin, PauseMode, Phase,
    Resources, Sandbox, SandboxId, Seat, Settings, State, TeamId, TemplateId,
};

use super::{ODD_TEXTS, join_all};
use crate::store::{Cursor, SandboxQuery, SandboxStore, StoreError};

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
        settings: Settings::default(),
        volumes: Vec::new(),
        kept: Memory::None,
        moving: None,
        network: NetworkPolicy::default(),
        secure: true,
        envd_unresponsive_at_pause: false,
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

/// A label is found by exactly its own text, however odd or long it is, among the team's sandboxes and in every state that
/// clients see; what is found follows a change of the labels.
pub async fn labels_hold_every_character_and_are_found_by_their_own_team(store: &dyn SandboxStore) {
    let (ours, theirs) = (TeamId::random(), TeamId::random());
    let long = "x".repeat(100_000);
    let texts: Vec<&str> = ODD_TEXTS.into_iter().chain(["", &long]).collect();
    let mut stored = Vec::new();
    for team in [ours, theirs] {
        for (at, text) in texts.iter().enumerate() {
            let value = texts[(at + 1) % texts.len()];
            let sandbox = Sandbox {
                metadata: BTreeMap::from([
                    ((*text).to_owned(), value.to_owned()),
                    ("all".to_owned(), "1".to_owned()),
                ]),
                phase: if at % 2 == 0 {
                    paused()
                } else {
                    sandbox(team).phase
                },
                ..sandbox(team)
            };
            store.insert(&sandbox).await.unwrap();
            stored.push(sandbox);
        }
    }
    for one in &stored {
        let query = SandboxQuery {
            metadata: one.metadata.clone(),
            ..everything(one.team)
        };
        assert_eq!(ids(store, &query).await, [one.id], "{:?}", one.metadata);
    }
    let mut query = SandboxQuery {
        metadata: BTreeMap::from([("all".to_owned(), "1".to_owned())]),
        ..everything(ours)
    };
    assert_eq!(ids(store, &query).await.len(), texts.len());
    let mut changed = stored[0].clone();
    changed.metadata = BTreeMap::from([("other".to_owned(), "1".to_owned())]);
    store.update(&changed).await.unwrap();
    assert_eq!(ids(store, &query).await.len(), texts.len() - 1);
    query.metadata = changed.metadata;
    assert_eq!(ids(store, &query).await, [changed.id]);
}

/// However many live: each that is there all the time is told, and none twice.
pub async fn of_many_that_live_each_is_told_once(store: &dyn SandboxStore) {
    let team = TeamId::random();
    let all: Vec<_> = (0..2_345).map(|_| sandbox(team)).collect();
    for some in all.chunks(100) {
        for stored in join_all(some.iter().map(|sandbox| store.insert(sandbox))).await {
            stored.unwrap();
        }
    }
    let live = store.live().await.unwrap();
    let mut told: Vec<_> = live
        .iter()
        .filter(|live| live.team == team)
        .map(|live| live.id)
        .collect();
    told.sort_unstable();
    let mut expected: Vec<_> = all.iter().map(|sandbox| sandbox.id).collect();
    expected.sort_unstable();
    assert!(told == expected, "{} of {} were told", told.len(), expected.len());
}

/// However many are gone, by whomever they are forgotten at the same time: each is counted once.
pub async fn many_that_are_gone_are_forgotten_together(store: &dyn SandboxStore) {
    let team = TeamId::random();
    let why = KillReason::Requested;
    let all: Vec<_> = (0..2_345)
        .map(|_| Sandbox {
            phase: Phase::Gone { why },
            ..sandbox(team)
        })
        .collect();
    for some in all.chunks(100) {
        for stored in join_all(some.iter().map(|sandbox| store.insert(sandbox))).await {
            stored.unwrap();
        }
    }
    let later = SystemTime::now() + Duration::from_secs(60);
    let counts = join_all((0..3).map(|_| store.forget_gone(later))).await;
    let forgotten: u64 = counts.into_iter().map(|count| count.unwrap()).sum();
    assert!(forgotten >= all.len() as u64, "{forgotten}");
    for sandbox in [&all[0], &all[all.len() - 1]] {
        assert_eq!(store.get(sandbox.id).await.unwrap(), None);
    }
    assert_eq!(store.forget_gone(later).await.unwrap(), 0);
}
