//! Volumes, and sandboxes that have them.

use std::time::Duration;

use model::{Kind, MiB, VolumeId};
use ports::volumes::FileError;
use ports::{ManagerError, SandboxManager, VolumeError, VolumeManager};

use crate::world::{Fuse, World, request, stranger};

fn failed() -> FileError {
    FileError::Failed {
        step: "making the image",
        source: std::io::Error::other("no room"),
    }
}

async fn make(world: &World, name: &str) -> Result<model::Volume, VolumeError> {
    VolumeManager::create(&*world.orchestrator, world.team.id, name).await
}

async fn delete(world: &World, id: VolumeId) -> Result<(), VolumeError> {
    VolumeManager::delete(&*world.orchestrator, world.team.id, id).await
}

async fn list(world: &World) -> Vec<model::Volume> {
    VolumeManager::list(&*world.orchestrator, world.team.id)
        .await
        .unwrap()
}

fn mounts(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, path)| ((*name).to_owned(), (*path).to_owned()))
        .collect()
}

#[tokio::test]
async fn a_volume_is_made_shown_and_deleted_by_its_owner() {
    let world = World::new().await;
    let volume = make(&world, "data").await.unwrap();
    assert_eq!((volume.size, volume.team), (MiB(10_240), world.team.id));
    assert_eq!(list(&world).await, vec![volume.clone()]);
    assert!(world.files.volumes().contains(&volume.id));
    let told = make(&world, "data").await.unwrap_err();
    assert_eq!(told.to_string(), "Volume with name 'data' already exists");
    let manager: &dyn VolumeManager = &*world.orchestrator;
    for outcome in [
        manager.get(stranger(), volume.id).await.map(drop),
        manager.delete(stranger(), volume.id).await,
        manager.get(world.team.id, VolumeId::random()).await.map(drop),
    ] {
        assert_eq!(outcome.unwrap_err().to_string(), "Volume not found");
    }
    delete(&world, volume.id).await.unwrap();
    assert!(matches!(
        delete(&world, volume.id).await,
        Err(VolumeError::NotFound)
    ));
    assert!(world.files.volumes().is_empty() && list(&world).await.is_empty());
    make(&world, "data").await.unwrap();
}

#[tokio::test]
async fn a_volume_that_cannot_be_made_is_not_there() {
    let world = World::new().await;
    world.files.fail(failed());
    let error = make(&world, "data").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Internal);
    assert!(list(&world).await.is_empty());
    world.files.fail(FileError::Full);
    assert_eq!(make(&world, "data").await.unwrap_err().kind(), Kind::Unavailable);
    make(&world, "data").await.unwrap();
}

#[tokio::test]
async fn a_team_has_no_more_volumes_than_it_may_have() {
    let mut world = World::new().await;
    world.configured(|config| config.volumes_max = 2);
    for name in ["a", "b"] {
        make(&world, name).await.unwrap();
    }
    assert_eq!(make(&world, "c").await.unwrap_err().kind(), Kind::Exhausted);
    world.configured(|config| {
        config.volumes_max = 10;
        config.volumes_size_max = MiB(3 * 10_240);
    });
    let both = tokio::join!(make(&world, "c"), make(&world, "d"));
    assert!(both.0.is_ok() != both.1.is_ok(), "one is the last");
}

#[tokio::test]
async fn sandboxes_have_the_volumes_they_ask_for_and_forks_have_them_too() {
    let world = World::new().await;
    let volume = make(&world, "data").await.unwrap();
    let id = world
        .created_with(|request| request.volumes = mounts(&[("data", "/mnt/data")]))
        .await;
    let stored = world.stored(id).await.volumes;
    assert_eq!(stored.len(), 1);
    assert_eq!(
        (stored[0].volume, stored[0].path.as_str()),
        (volume.id, "/mnt/data")
    );
    assert_eq!(world.node.held()[&id].order.volumes, stored);
    let (it, team, minute) = (&world.orchestrator, world.team.id, Duration::from_secs(60));
    let fork = it
        .fork(team, id, 1, minute)
        .await
        .unwrap()
        .pop()
        .unwrap()
        .unwrap();
    assert_eq!(fork.sandbox.volumes, stored);
    let snapshot = it.snapshot(team, id, None, true).await.unwrap();
    let of_snapshot = world
        .created_with(|request| request.template = snapshot.template.id.as_str().parse().unwrap())
        .await;
    assert!(world.stored(of_snapshot).await.volumes.is_empty());
    // Over a pause, too.
    world.pause(id).await.unwrap();
    it.connect(team, id, minute, model::PauseMode::Full)
        .await
        .unwrap();
    assert_eq!(world.node.held()[&id].order.volumes, stored);
}

#[tokio::test]
async fn wrong_mounts_are_refused_by_number_and_nothing_is_started() {
    let world = World::new().await;
    make(&world, "data").await.unwrap();
    let mut wrong = request();
    wrong.volumes = mounts(&[("nope", "/a"), ("data", "b"), ("data", "/c"), ("data", "/c")]);
    let error = world.try_create(wrong).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert_eq!(
        error.to_string(),
        "invalid mounts:\n\t- volume mount #0: volume 'nope' not found\n\t- volume mount #1: path must be absolute\
            \n\t- volume mount #3: path '/c' is already used"
    );
    assert!(world.store.live().await.unwrap().is_empty());
    // Another team's volume is none.
    let other = VolumeManager::create(&*world.orchestrator, stranger(), "theirs")
        .await
        .unwrap();
    let mut foreign = request();
    foreign.volumes = mounts(&[("theirs", "/a")]);
    world.try_create(foreign).await.unwrap_err();
    assert!(world.files.volumes().contains(&other.id));
}

#[tokio::test]
async fn a_volume_that_a_sandbox_has_is_not_deleted() {
    let world = World::new().await;
    let volume = make(&world, "data").await.unwrap();
    let id = world
        .created_with(|request| request.volumes = mounts(&[("data", "/data")]))
        .await;
    for _ in 0..2 {
        let error = delete(&world, volume.id).await.unwrap_err();
        assert!(
            matches!(error, VolumeError::InUse { sandbox, .. } if sandbox == id),
            "{error}"
        );
        // Nor one that is paused.
        let _ = world.pause(id).await;
    }
    world.kill(id).await.unwrap();
    // Its node is not done with the sandbox yet: the name is free, and the files go later.
    world.files.fail(FileError::InUse(volume.id));
    delete(&world, volume.id).await.unwrap();
    assert_eq!(list(&world).await, []);
    assert!(world.files.volumes().contains(&volume.id));
    world.orchestrator.settle_volumes().await.unwrap();
    assert!(world.files.volumes().is_empty());
    assert!(world.volumes.volume_remains().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_volume_is_not_deleted_under_a_sandbox_that_is_being_created() {
    let world = World::new().await;
    let volume = make(&world, "data").await.unwrap();
    let gate = world.node.hold_back("start");
    let mut with = request();
    with.volumes = mounts(&[("data", "/data")]);
    let (orchestrator, team) = (world.orchestrator.clone(), world.team.id);
    let creating = tokio::spawn(async move { SandboxManager::create(&*orchestrator, team, with).await });
    gate.reached().await;
    let (orchestrator, id) = (world.orchestrator.clone(), volume.id);
    let deleting = tokio::spawn(async move { VolumeManager::delete(&*orchestrator, team, id).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!deleting.is_finished());
    drop(gate);
    let created = creating.await.unwrap().unwrap().sandbox.id;
    let error = deleting.await.unwrap().unwrap_err();
    assert!(matches!(error, VolumeError::InUse { sandbox, .. } if sandbox == created));
    assert!(world.files.volumes().contains(&volume.id));
}

#[tokio::test]
async fn a_token_opens_its_volume_for_a_day_and_after_a_restart() {
    let mut world = World::new().await;
    let (mine, other) = (make(&world, "a").await.unwrap(), make(&world, "b").await.unwrap());
    let token = world.orchestrator.token(&mine).await.unwrap();
    world.reborn(None);
    let admits = async |id, token: &str| world.orchestrator.admits(id, token).await.unwrap();
    assert!(admits(mine.id, token.expose()).await);
    assert!(!admits(other.id, token.expose()).await);
    assert!(!admits(VolumeId::random(), token.expose()).await);
    assert!(!admits(mine.id, "vt_").await);
    world.clock.advance(Duration::from_secs(24 * 3600));
    assert!(!admits(mine.id, token.expose()).await);
    let fresh = world.orchestrator.token(&mine).await.unwrap();
    assert!(admits(mine.id, fresh.expose()).await);
    delete(&world, mine.id).await.unwrap();
    assert!(!admits(mine.id, fresh.expose()).await);
}

#[tokio::test]
async fn a_death_at_any_step_of_a_volumes_life_leaves_one_that_works_or_none() {
    for is_deletion in [false, true] {
        for last_happens in [false, true] {
            for effects in 0..40 {
                let mut world = World::in_memory().await;
                let id = match is_deletion {
                    true => Some(make(&world, "data").await.unwrap().id),
                    false => None,
                };
                let fuse = Fuse::new(effects, last_happens);
                world.reborn(Some(fuse.clone()));
                let done = match id {
                    Some(id) => delete(&world, id).await.is_ok(),
                    None => make(&world, "data").await.is_ok(),
                };
                world.reborn(None);
                world.settle().await;
                let left = list(&world).await;
                let context = format!("deletion: {is_deletion}, {effects} effects, {last_happens}: {left:?}");
                let files: Vec<_> = world.files.volumes().into_iter().collect();
                assert_eq!(
                    files,
                    left.iter().map(|volume| volume.id).collect::<Vec<_>>(),
                    "{context}"
                );
                for volume in left {
                    delete(&world, volume.id).await.expect(&context);
                }
                make(&world, "data").await.expect(&context);
                if !fuse.is_burnt() {
                    assert!(done, "{context}");
                    break;
                }
                assert!(effects < 39, "{context}");
            }
        }
    }
}

#[tokio::test]
async fn a_volume_whose_files_are_lost_is_not_made_anew_in_silence() {
    let mut world = World::new().await;
    let volume = make(&world, "data").await.unwrap();
    world.files.clear();
    world.clock.advance(Duration::from_secs(2 * 3600));
    world.reborn(None);
    world.settle().await;
    assert!(world.files.volumes().is_empty());
    assert_eq!(list(&world).await, vec![volume.clone()]);
    delete(&world, volume.id).await.unwrap();
}

#[tokio::test]
async fn a_fork_of_what_has_a_volume_counts_as_having_it() {
    let world = World::new().await;
    let volume = make(&world, "data").await.unwrap();
    let id = world
        .created_with(|request| request.volumes = mounts(&[("data", "/data")]))
        .await;
    let (it, team) = (&world.orchestrator, world.team.id);
    let forks = it.fork(team, id, 1, Duration::from_secs(60)).await.unwrap();
    let fork = forks.into_iter().next().unwrap().unwrap().sandbox.id;
    world.kill(id).await.unwrap();
    let error = delete(&world, volume.id).await.unwrap_err();
    assert!(matches!(error, VolumeError::InUse { sandbox, .. } if sandbox == fork));
    let busy: Result<(), ManagerError> = world.kill(fork).await;
    busy.unwrap();
    delete(&world, volume.id).await.unwrap();
}
