use std::fs;
use std::time::Duration;

use super::*;

async fn watch(path: &Path, recursive: bool) -> Watch {
    let path = path.to_str().unwrap().to_owned();
    let (inotify, opened) = Watch::open(Asked {
        path,
        recursive,
        include_entry: true,
        allow_network_mounts: true,
    })
    .unwrap();
    Watch::begin(inotify, opened).unwrap()
}

/// Everything up to an event about `last`.
async fn up_to(watch: &mut Watch, last: &str) -> Vec<(String, proto::EventType)> {
    let mut seen = Vec::new();
    while !seen.iter().any(|(name, _)| name == last) {
        let events = tokio::time::timeout(Duration::from_secs(10), watch.next())
            .await
            .expect("an event comes")
            .unwrap();
        seen.extend(
            events
                .into_iter()
                .map(|event| (event.name, event.r#type.as_known().unwrap())),
        );
    }
    seen
}

fn has(seen: &[(String, proto::EventType)], name: &str, kind: proto::EventType) -> bool {
    seen.iter().any(|(n, k)| n == name && *k == kind)
}

use proto::EventType::{
    EVENT_TYPE_CHMOD as CHMOD, EVENT_TYPE_CREATE as CREATE, EVENT_TYPE_REMOVE as REMOVE,
    EVENT_TYPE_RENAME as RENAME, EVENT_TYPE_WRITE as WRITE,
};

#[tokio::test]
async fn what_happens_in_a_directory_is_told_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut watch = watch(dir.path(), false).await;
    fs::write(dir.path().join("a"), "x").unwrap();
    fs::set_permissions(
        dir.path().join("a"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
    fs::remove_file(dir.path().join("b")).unwrap();
    fs::write(dir.path().join("last"), "").unwrap();
    let seen = up_to(&mut watch, "last").await;
    let expected = [
        ("a", CREATE),
        ("a", WRITE),
        ("a", CHMOD),
        ("a", RENAME),
        ("b", CREATE),
        ("b", REMOVE),
        ("last", CREATE),
    ];
    let of_kinds: Vec<_> = seen.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
    assert_eq!(of_kinds, expected);
}

#[tokio::test]
async fn a_recursive_watch_covers_what_is_made_later() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("old/deep")).unwrap();
    let mut watch = watch(dir.path(), true).await;
    fs::write(dir.path().join("old/deep/file"), "x").unwrap();
    // Made in one go: the watch comes after the content.
    fs::create_dir_all(dir.path().join("new/er")).unwrap();
    fs::write(dir.path().join("new/er/file"), "x").unwrap();
    let seen = up_to(&mut watch, "new/er/file").await;
    assert!(has(&seen, "old/deep/file", CREATE) && has(&seen, "new", CREATE) && has(&seen, "new/er", CREATE));
    assert_eq!(
        seen.iter()
            .filter(|event| **event == ("new/er".to_owned(), CREATE))
            .count(),
        1,
        "told once"
    );
    fs::write(dir.path().join("new/er/later"), "x").unwrap();
    up_to(&mut watch, "new/er/later").await;
}

#[test]
fn what_a_search_found_is_told_once_with_all_below_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap().to_owned();
    let (inotify, Opened(mut state)) = Watch::open(Asked {
        path,
        recursive: true,
        include_entry: false,
        allow_network_mounts: true,
    })
    .unwrap();
    fs::create_dir_all(dir.path().join("new/sub")).unwrap();
    fs::write(dir.path().join("new/sub/file"), "").unwrap();
    let number = |state: &State, of: &str| *state.dirs.iter().find(|(_, path)| *path == of).unwrap().0;
    let made = ReadFlags::CREATE | ReadFlags::ISDIR;
    let mut events = Vec::new();
    state.understand(&inotify, number(&state, ""), made, "new", &mut events);
    let names: Vec<_> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["new", "new/sub", "new/sub/file"]);
    // What was made after the watch and before the search is told by the kernel as well.
    state.understand(&inotify, number(&state, "new"), made, "sub", &mut events);
    assert_eq!(events.len(), 3);
}

#[tokio::test]
async fn a_users_link_in_a_directory_of_everybodys_is_watched() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tmp")).unwrap();
    let everybodys = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    fs::set_permissions(dir.path().join("tmp"), everybodys).unwrap();
    fs::create_dir(dir.path().join("work")).unwrap();
    let link = dir.path().join("tmp/link");
    std::os::unix::fs::symlink(dir.path().join("work"), &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(1000), Some(1000)).unwrap();
    let mut watch = watch(&link, true).await;
    fs::write(dir.path().join("work/file"), "").unwrap();
    let events = watch.next().await.unwrap();
    let entry = events[0].entry.as_option().unwrap();
    assert_eq!(entry.path, link.join("file").to_str().unwrap());
}

#[tokio::test]
async fn a_moved_directory_is_watched_under_its_new_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/sub")).unwrap();
    let mut watch = watch(dir.path(), true).await;
    fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
    let seen = up_to(&mut watch, "b").await;
    assert!(has(&seen, "a", RENAME) && has(&seen, "b", CREATE));
    fs::write(dir.path().join("b/sub/file"), "").unwrap();
    assert!(has(&up_to(&mut watch, "b/sub/file").await, "b/sub/file", CREATE));
}

#[tokio::test]
async fn entries_come_with_events_of_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut watch = watch(dir.path(), false).await;
    fs::write(dir.path().join("a"), "xyz").unwrap();
    let events = watch.next().await.unwrap();
    assert_eq!(events[0].entry.as_option().unwrap().name, "a");
}

#[test]
fn what_is_no_directory_is_not_watched() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let open = |name: &str| {
        let path = dir.path().join(name).to_str().unwrap().to_owned();
        Watch::open(Asked {
            path,
            recursive: false,
            include_entry: false,
            allow_network_mounts: false,
        })
        .err()
        .unwrap()
        .code
    };
    assert_eq!(open("file"), connectrpc::ErrorCode::InvalidArgument);
    assert_eq!(open("missing"), connectrpc::ErrorCode::NotFound);
}
