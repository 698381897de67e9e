use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::recipe::{Action, Base, Context, Key, Recipe, RegistryCredentials, Step};
use model::{
    Build, BuildFailure, BuildId, BuildStatus, BuildStep, NodeId, Resources, Secret, TeamId, TemplateId,
};

use super::join_all;
use crate::builds::{BuildLine, BuildStore, CachedStep, LinesQuery};
use crate::logs::Level;
use crate::store::StoreError;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_790_000_000 + seconds)
}

/// A build that was registered.
#[must_use]
pub fn build(template: TemplateId) -> Build {
    Build {
        id: BuildId::random(),
        template,
        team: TeamId::random(),
        status: BuildStatus::Waiting,
        tags: vec!["default".to_owned()],
        resources: Resources::default(),
        recipe: None,
        node: None,
        runner: None,
        created_at: at(0),
        updated_at: at(0),
        finished_at: None,
        version: 0,
    }
}

/// A line of a build's log.
#[must_use]
pub fn line(level: Level, message: &str) -> BuildLine {
    BuildLine {
        at: UNIX_EPOCH + Duration::new(1_790_000_000, 123_456_789),
        level,
        step: Some(BuildStep::Step(3)),
        message: message.to_owned(),
    }
}

/// All lines of a build.
async fn whole(store: &dyn BuildStore, build: BuildId) -> Vec<BuildLine> {
    let query = LinesQuery {
        offset: 0,
        limit: u32::MAX,
        level: Level::Debug,
    };
    store.lines(build, query).await.unwrap()
}

fn step(build: BuildId) -> CachedStep {
    CachedStep {
        build,
        context: Context {
            user: "root".to_owned(),
            workdir: Some("/srv".to_owned()),
            env: vec![
                ("B".to_owned(), "\"2\"".to_owned()),
                ("A".to_owned(), String::new()),
            ],
        },
    }
}

/// Of a step that no other test has.
fn key() -> Key {
    Key::of_build(BuildId::random())
}

/// What is read is what was written, whatever its texts hold; an id is stored once.
pub async fn a_build_is_stored_once_and_as_it_was_meant(store: &dyn BuildStore) {
    let mut first = build(TemplateId::random());
    store.insert_build(&first).await.unwrap();
    assert_eq!(store.build(first.id).await.unwrap().as_ref(), Some(&first));
    let second = Build {
        team: TeamId::random(),
        ..first.clone()
    };
    assert!(matches!(
        store.insert_build(&second).await,
        Err(StoreError::Conflict)
    ));
    let run = Action::Run {
        command: "echo 'Ä\u{1}\\' \"; DROP TABLE builds\" \n".to_owned(),
        user: None,
    };
    let copy = Action::Copy {
        source: "*".to_owned(),
        destination: "/srv".to_owned(),
        owner: Some("root".to_owned()),
        mode: Some(0o755),
        files: "0".repeat(64),
    };
    let variables = Action::Env(vec![
        ("B".to_owned(), "1".to_owned()),
        ("A".to_owned(), "2".to_owned()),
    ]);
    first.recipe = Some(Recipe {
        from: Base::Image {
            reference: "registry.example/debian:12".to_owned(),
            credentials: Some(RegistryCredentials::Basic {
                username: "somebody".to_owned(),
                password: Secret::new("secret".to_owned()),
            }),
        },
        steps: [run, copy, variables]
            .map(|action| Step { action, force: true })
            .into(),
        start: Some("serve".to_owned()),
        ready: None,
        force: false,
    });
    first.status = BuildStatus::Failed(BuildFailure {
        message: "it did not work".to_owned(),
        step: Some(BuildStep::Finalize),
    });
    first.node = Some(NodeId::random());
    first.finished_at = Some(UNIX_EPOCH + Duration::new(1_790_000_001, 123_456_789));
    first.version = store.update_build(&first).await.unwrap();
    assert_eq!(store.build(first.id).await.unwrap(), Some(first));
    assert_eq!(store.build(BuildId::random()).await.unwrap(), None);
}

/// A write that names another version than the stored one changes nothing.
pub async fn a_stale_build_is_refused(store: &dyn BuildStore) {
    let first = build(TemplateId::random());
    store.insert_build(&first).await.unwrap();
    let building = Build {
        status: BuildStatus::Building,
        ..first.clone()
    };
    let version = store.update_build(&building).await.unwrap();
    assert!(version > first.version);
    let stale = Build {
        status: BuildStatus::Ready,
        ..first
    };
    assert!(matches!(
        store.update_build(&stale).await,
        Err(StoreError::Conflict)
    ));
    assert_eq!(
        store.build(building.id).await.unwrap(),
        Some(Build { version, ..building })
    );
    let unknown = build(TemplateId::random());
    assert!(matches!(
        store.update_build(&unknown).await,
        Err(StoreError::Missing)
    ));
}

/// Compare-and-set holds among writers at the same time.
pub async fn of_many_writers_of_one_build_one_wins(store: &dyn BuildStore) {
    let first = build(TemplateId::random());
    store.insert_build(&first).await.unwrap();
    let writes = (0..20).map(|_| {
        let write = Build {
            node: Some(NodeId::random()),
            ..first.clone()
        };
        async move { store.update_build(&write).await.map(|_| write.node) }
    });
    let mut won = Vec::new();
    for outcome in join_all(writes).await {
        match outcome {
            Ok(node) => won.push(node),
            Err(StoreError::Conflict) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let stored = store.build(first.id).await.unwrap().unwrap();
    assert_eq!(won, [stored.node]);
}

/// A template's builds are listed, and no other's, newest first; those that are not over, oldest first.
pub async fn builds_are_listed_in_their_orders(store: &dyn BuildStore) {
    let template = TemplateId::random();
    let failed = BuildStatus::Failed(BuildFailure {
        message: String::new(),
        step: None,
    });
    let mut builds = Vec::new();
    for (second, status) in [
        (1, BuildStatus::Building),
        (0, BuildStatus::Waiting),
        (3, BuildStatus::Ready),
        (2, failed),
    ] {
        let build = Build {
            status,
            created_at: at(second),
            ..build(template)
        };
        store.insert_build(&build).await.unwrap();
        builds.push(build);
    }
    let mut foreign = build(TemplateId::random());
    foreign.created_at = at(0) + Duration::from_micros(1);
    store.insert_build(&foreign).await.unwrap();
    let [building, waiting, ready, failed] = &builds[..] else {
        unreachable!("four were stored");
    };
    let ids = |builds: Vec<Build>| builds.iter().map(|build| build.id).collect::<Vec<_>>();
    assert_eq!(
        ids(store.builds_of(template).await.unwrap()),
        [ready.id, failed.id, building.id, waiting.id]
    );
    let mut unfinished = ids(store.unfinished_builds().await.unwrap());
    let ours = [waiting.id, foreign.id, building.id];
    unfinished.retain(|id| ours.contains(id) || builds.iter().any(|build| build.id == *id));
    assert_eq!(unfinished, ours);
    let over = Build {
        status: BuildStatus::Ready,
        ..building.clone()
    };
    store.update_build(&over).await.unwrap();
    assert!(!ids(store.unfinished_builds().await.unwrap()).contains(&over.id));
}

/// Lines come in the order in which they were added, and who asks behind the last one gets none: a client that counts
/// what it has got reads each once.
pub async fn lines_are_read_once_and_in_order(store: &dyn BuildStore) {
    let build = build(TemplateId::random());
    store.insert_build(&build).await.unwrap();
    assert_eq!(whole(store, build.id).await, []);
    store.append_lines(build.id, &[]).await.unwrap();
    let mut lines: Vec<_> = (0..7)
        .map(|number| line(Level::Info, &format!("{number} \"'Ä\u{0}\\ \n")))
        .collect();
    lines[2].step = None;
    lines[3].step = Some(BuildStep::Base);
    store.append_lines(build.id, &lines[..1]).await.unwrap();
    store.append_lines(build.id, &lines[1..5]).await.unwrap();
    store.append_lines(build.id, &lines[5..]).await.unwrap();
    assert_eq!(whole(store, build.id).await, lines);
    for limit in [1, 2, 3, 7, 8] {
        let mut joined = Vec::new();
        loop {
            let query = LinesQuery {
                offset: joined.len() as u64,
                limit,
                level: Level::Debug,
            };
            let page = store.lines(build.id, query).await.unwrap();
            assert!(page.len() as u64 <= u64::from(limit));
            if page.is_empty() {
                break;
            }
            joined.extend(page);
        }
        assert_eq!(joined, lines, "limit {limit}");
    }
    for (offset, limit) in [(0, 0), (8, 1), (u64::MAX, u32::MAX)] {
        let query = LinesQuery {
            offset,
            limit,
            level: Level::Debug,
        };
        assert_eq!(store.lines(build.id, query).await.unwrap(), []);
    }
    assert_eq!(whole(store, BuildId::random()).await, []);
}

/// Those that are less urgent are passed over, and are not counted by the offset.
pub async fn lines_are_filtered_before_they_are_counted(store: &dyn BuildStore) {
    let build = build(TemplateId::random());
    store.insert_build(&build).await.unwrap();
    let levels = [
        Level::Debug,
        Level::Error,
        Level::Info,
        Level::Warn,
        Level::Debug,
        Level::Error,
    ];
    let lines: Vec<_> = levels
        .into_iter()
        .enumerate()
        .map(|(number, level)| line(level, &number.to_string()))
        .collect();
    store.append_lines(build.id, &lines).await.unwrap();
    for (level, offset, limit, expected) in [
        (Level::Debug, 0, 9, &[0, 1, 2, 3, 4, 5][..]),
        (Level::Debug, 4, 9, &[4, 5]),
        (Level::Info, 0, 9, &[1, 2, 3, 5]),
        (Level::Info, 1, 2, &[2, 3]),
        (Level::Warn, 2, 9, &[5]),
        (Level::Error, 1, 1, &[5]),
        (Level::Error, 2, 1, &[]),
    ] {
        let query = LinesQuery { offset, limit, level };
        let expected: Vec<_> = expected.iter().map(|&number| lines[number].clone()).collect();
        assert_eq!(store.lines(build.id, query).await.unwrap(), expected, "{query:?}");
    }
}

/// What is added at once stays together, and nothing is lost, whoever adds at the same time.
pub async fn lines_of_many_writers_are_all_kept(store: &dyn BuildStore) {
    let build = build(TemplateId::random());
    store.insert_build(&build).await.unwrap();
    let texts: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    let writes = texts.iter().map(|text| async move {
        let lines = [line(Level::Info, text), line(Level::Warn, text)];
        store.append_lines(build.id, &lines).await
    });
    for outcome in join_all(writes).await {
        outcome.unwrap();
    }
    let lines = whole(store, build.id).await;
    let mut seen = Vec::new();
    for pair in lines.chunks(2) {
        assert_eq!([pair[0].level, pair[1].level], [Level::Info, Level::Warn]);
        assert_eq!(pair[0].message, pair[1].message);
        seen.push(pair[0].message.clone());
    }
    seen.sort_by_key(|text| text.parse::<u32>().unwrap());
    assert_eq!(seen, texts);
}

/// The builds of a template go with their lines, and take nothing else with them. Nobody adds lines to what is gone.
pub async fn removed_builds_take_their_lines_along(store: &dyn BuildStore) {
    let template = TemplateId::random();
    let (first, second, other) = (build(template), build(template), build(TemplateId::random()));
    for build in [&first, &second, &other] {
        store.insert_build(build).await.unwrap();
        store
            .append_lines(build.id, &[line(Level::Info, "here")])
            .await
            .unwrap();
    }
    store.remove_builds_of(template).await.unwrap();
    store.remove_builds_of(template).await.unwrap();
    assert_eq!(store.builds_of(template).await.unwrap(), []);
    for gone in [first.id, second.id] {
        assert_eq!(store.build(gone).await.unwrap(), None);
        assert_eq!(whole(store, gone).await, []);
        let late = store.append_lines(gone, &[line(Level::Info, "late")]).await;
        assert!(matches!(late, Err(StoreError::Missing)));
        assert_eq!(whole(store, gone).await, []);
    }
    assert_eq!(whole(store, other.id).await, [line(Level::Info, "here")]);
    assert_eq!(store.build(other.id).await.unwrap(), Some(other));
}

/// A team finds what it kept and nothing of another's; the last result of a step is the one that is kept.
pub async fn a_cached_step_is_its_teams_alone(store: &dyn BuildStore) {
    let (ours, theirs, key) = (TeamId::random(), TeamId::random(), key());
    assert_eq!(store.cached_step(ours, key, at(0)).await.unwrap(), None);
    let (first, second, foreign) = (
        step(BuildId::random()),
        step(BuildId::random()),
        step(BuildId::random()),
    );
    store.cache_step(ours, key, &first, at(0)).await.unwrap();
    assert_eq!(
        store.cached_step(ours, key, at(1)).await.unwrap().as_ref(),
        Some(&first)
    );
    assert_eq!(store.cached_step(theirs, key, at(1)).await.unwrap(), None);
    store.cache_step(theirs, key, &foreign, at(1)).await.unwrap();
    store.cache_step(ours, key, &second, at(2)).await.unwrap();
    assert_eq!(store.cached_step(ours, key, at(3)).await.unwrap(), Some(second));
    assert_eq!(
        store.cached_step(theirs, key, at(3)).await.unwrap(),
        Some(foreign)
    );
    assert!(
        store
            .cached_builds()
            .await
            .unwrap()
            .iter()
            .all(|(build, _)| *build != first.build)
    );
    assert_eq!(store.cached_step(ours, self::key(), at(3)).await.unwrap(), None);
}

/// A build was last used when the last of the results that name it was; the longest unused comes first.
pub async fn the_longest_unused_result_comes_first(store: &dyn BuildStore) {
    let team = TeamId::random();
    let (one, two, three) = (BuildId::random(), BuildId::random(), BuildId::random());
    let (first, second, third, fourth) = (key(), key(), key(), key());
    store.cache_step(team, first, &step(one), at(10)).await.unwrap();
    store.cache_step(team, second, &step(two), at(20)).await.unwrap();
    store.cache_step(team, third, &step(three), at(30)).await.unwrap();
    store.cache_step(team, fourth, &step(one), at(5)).await.unwrap();
    let order = async || {
        let mut builds = store.cached_builds().await.unwrap();
        builds.retain(|(build, _)| [one, two, three].contains(build));
        builds
    };
    assert_eq!(order().await, [(one, at(10)), (two, at(20)), (three, at(30))]);
    store.cached_step(team, fourth, at(25)).await.unwrap().unwrap();
    assert_eq!(order().await, [(two, at(20)), (one, at(25)), (three, at(30))]);
    // A clock that was set back makes nothing older; another team's question is no use.
    store.cached_step(team, third, at(1)).await.unwrap().unwrap();
    store.cached_step(TeamId::random(), second, at(99)).await.unwrap();
    assert_eq!(order().await, [(two, at(20)), (one, at(25)), (three, at(30))]);
}

/// A build that is forgotten is forgotten by every step and every team, and no other is.
pub async fn a_forgotten_result_is_not_found(store: &dyn BuildStore) {
    let (ours, theirs) = (TeamId::random(), TeamId::random());
    let (lost, kept) = (step(BuildId::random()), step(BuildId::random()));
    let (first, second, third) = (key(), key(), key());
    store.cache_step(ours, first, &lost, at(0)).await.unwrap();
    store.cache_step(theirs, second, &lost, at(0)).await.unwrap();
    store.cache_step(ours, third, &kept, at(0)).await.unwrap();
    store.forget_cached(lost.build).await.unwrap();
    store.forget_cached(lost.build).await.unwrap();
    assert_eq!(store.cached_step(ours, first, at(1)).await.unwrap(), None);
    assert_eq!(store.cached_step(theirs, second, at(1)).await.unwrap(), None);
    assert_eq!(
        store.cached_step(ours, third, at(1)).await.unwrap().as_ref(),
        Some(&kept)
    );
    let builds = store.cached_builds().await.unwrap();
    assert!(builds.iter().all(|(build, _)| *build != lost.build));
    assert!(builds.iter().any(|(build, _)| *build == kept.build));
}

/// A later note takes the place of an earlier one, and what is forgotten is not found.
pub async fn what_the_blobs_hold_is_noted_once_for_each_build(store: &dyn BuildStore) {
    let (one, other) = (BuildId::random(), BuildId::random());
    assert_eq!(store.stowed_as(one).await.unwrap(), None);
    store.note_stowed(one, "a").await.unwrap();
    store.note_stowed(other, "b").await.unwrap();
    store.note_stowed(one, "c").await.unwrap();
    assert_eq!(store.stowed_as(one).await.unwrap().as_deref(), Some("c"));
    let all = store.stowed().await.unwrap();
    assert_eq!((all[&one].as_str(), all[&other].as_str()), ("c", "b"));
    store.forget_stowed(one).await.unwrap();
    store.forget_stowed(one).await.unwrap();
    assert_eq!(store.stowed_as(one).await.unwrap(), None);
    let all = store.stowed().await.unwrap();
    assert!(!all.contains_key(&one) && all.contains_key(&other));
}

/// Each template has its own number; one that is not over counts for nothing, and is not removed.
pub async fn builds_beyond_a_number_are_those_that_are_over_and_oldest(store: &dyn BuildStore) {
    let (template, other) = (TemplateId::random(), TemplateId::random());
    let insert = async |template: TemplateId, seconds: u64, status: BuildStatus| {
        let build = Build {
            status,
            created_at: at(seconds),
            ..build(template)
        };
        store.insert_build(&build).await.unwrap();
        build.id
    };
    let failed = || {
        BuildStatus::Failed(BuildFailure {
            message: "it did not work".to_owned(),
            step: None,
        })
    };
    let oldest = insert(template, 0, BuildStatus::Ready).await;
    let waiting = insert(template, 1, BuildStatus::Waiting).await;
    let second = insert(template, 2, failed()).await;
    let third = insert(template, 3, BuildStatus::Ready).await;
    let newest = insert(template, 4, failed()).await;
    let others = insert(other, 0, BuildStatus::Ready).await;
    let ours = [oldest, waiting, second, third, newest, others];
    let beyond = async |newer| {
        let mut beyond = store.builds_beyond(newer).await.unwrap();
        beyond.retain(|build| ours.contains(build));
        beyond
    };
    assert_eq!(beyond(4).await, []);
    assert_eq!(beyond(2).await, [oldest, second]);
    let mut all = beyond(0).await;
    all.retain(|build| *build != others);
    assert_eq!(all, [oldest, second, third, newest]);
    let lines = [line(Level::Info, "one")];
    store.append_lines(second, &lines).await.unwrap();
    for build in [second, waiting, second] {
        store.remove_build(build).await.unwrap();
    }
    assert_eq!(store.build(second).await.unwrap(), None);
    assert_eq!(whole(store, second).await, []);
    assert!(store.build(waiting).await.unwrap().is_some());
    assert_eq!(beyond(2).await, [oldest]);
}
