use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use model::{
    BuildId, Memory, MiB, SandboxId, Settings, StartCommand, TeamId, Template, TemplateId, TemplateOrigin,
};

use super::{ODD_TEXTS, join_all};
use crate::store::{StoreError, TemplateStore};

/// A template of a team with one name.
#[must_use]
pub fn template(team: TeamId, name: &str) -> Template {
    let created_at = UNIX_EPOCH + Duration::from_secs(1_780_000_000);
    let build = BuildId::random();
    Template {
        id: TemplateId::random(),
        team,
        public: false,
        names: vec![name.to_owned()],
        origin: TemplateOrigin::Build,
        tags: BTreeMap::from([("default".to_owned(), build)]),
        builds: BTreeMap::from([(build, Settings::default())]),
        version: 0,
        created_at,
        updated_at: created_at,
        last_spawned_at: None,
        spawn_count: 0,
        build_count: 1,
    }
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
    let version = store.update(&renamed).await.unwrap();
    assert_eq!(store.named(team, "two").await.unwrap(), None);
    assert_eq!(
        store.named(team, "three").await.unwrap(),
        Some(Template { version, ..renamed })
    );
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

/// What is read is what was written, with what is known of each build; a template may have none yet.
pub async fn a_template_is_stored_with_its_builds_or_without_any(store: &dyn TemplateStore) {
    let mut template = template(TeamId::random(), "whole");
    template.tags.clear();
    template.builds.clear();
    store.insert(&template).await.unwrap();
    assert_eq!(store.get(template.id).await.unwrap().as_ref(), Some(&template));
    let mut settings = Settings {
        env: BTreeMap::from([("Ä \"'\\ \n".to_owned(), "'); DROP TABLE templates; --".to_owned())]),
        user: "root".to_owned(),
        workdir: Some("/srv".to_owned()),
        start: Some(StartCommand {
            command: "exec serve".to_owned(),
            user: "root".to_owned(),
            cwd: None,
        }),
        memory: Memory::Durable,
        created_at: UNIX_EPOCH + Duration::new(1_790_000_000, 123_456_789),
        ..Settings::default()
    };
    settings.resources.disk = MiB(77);
    template.origin = TemplateOrigin::Snapshot(SandboxId::random());
    template.tag(
        ["default".to_owned(), "v1".to_owned()],
        BuildId::random(),
        settings,
    );
    template.tag(["v2".to_owned()], BuildId::random(), Settings::default());
    template.version = store.update(&template).await.unwrap();
    assert_eq!(store.get(template.id).await.unwrap(), Some(template));
}

/// A write that names another version than the stored one changes nothing, not even a name.
pub async fn a_stale_template_is_refused(store: &dyn TemplateStore) {
    let team = TeamId::random();
    let mut first = template(team, "fresh");
    store.insert(&first).await.unwrap();
    let stale = Template {
        names: vec!["stale".to_owned()],
        public: true,
        ..first.clone()
    };
    first.build_count += 1;
    first.version = store.update(&first).await.unwrap();
    assert!(first.version > stale.version);
    assert!(matches!(store.update(&stale).await, Err(StoreError::Conflict)));
    assert_eq!(store.named(team, "stale").await.unwrap(), None);
    assert_eq!(store.named(team, "fresh").await.unwrap().as_ref(), Some(&first));
    first.version = store.update(&first).await.unwrap();
    assert_eq!(store.get(first.id).await.unwrap(), Some(first));
}

/// Compare-and-set holds among writers at the same time.
pub async fn of_many_writers_of_one_template_one_wins(store: &dyn TemplateStore) {
    let first = template(TeamId::random(), "fought-over");
    store.insert(&first).await.unwrap();
    let writes = (0..20).map(|build_count| {
        let write = Template {
            build_count,
            ..first.clone()
        };
        async move { store.update(&write).await.map(|_| build_count) }
    });
    let mut won = Vec::new();
    for outcome in join_all(writes).await {
        match outcome {
            Ok(build_count) => won.push(build_count),
            Err(StoreError::Conflict) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let stored = store.get(first.id).await.unwrap().unwrap();
    assert_eq!(won, [stored.build_count]);
}

/// A name is found by exactly its own text, however odd that is.
pub async fn a_template_name_holds_every_character(store: &dyn TemplateStore) {
    let team = TeamId::random();
    for name in ODD_TEXTS {
        assert_eq!(store.named(team, name).await.unwrap(), None);
        let template = Template {
            public: true,
            ..template(team, name)
        };
        store.insert(&template).await.unwrap();
        assert_eq!(store.named(team, name).await.unwrap(), Some(template.clone()));
        store.promoted(name).await.unwrap().unwrap();
    }
    assert_eq!(store.list(team).await.unwrap().len(), ODD_TEXTS.len());
}
