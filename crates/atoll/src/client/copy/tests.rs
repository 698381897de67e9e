use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use proptest::prelude::*;

use super::local::Dir;
use super::place::{base_name, below, is_plain};
use super::*;

#[test]
fn a_side_is_here_or_there() {
    let remote = |of: &str, path: &str| Place::Remote {
        of: of.to_owned(),
        path: path.to_owned(),
    };
    assert_eq!(Place::parse("-"), Ok(Place::Stream));
    assert_eq!(Place::parse("i0abc:/a:b"), Ok(remote("i0abc", "/a:b")));
    assert_eq!(Place::parse("data:/"), Ok(remote("data", "/")));
    for local in ["a", "/a", "./a:b", "../a", "/a:b", "a/b:c"] {
        assert_eq!(Place::parse(local), Ok(Place::Local(local.into())));
    }
    for wrong in ["", "i0:", "i0:a", "i0:~/a", ":/a", ".x:/a", "i0:/a\0"] {
        assert!(Place::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_is_put_below_a_directory_has_the_name_that_it_had() {
    assert_eq!(base_name("/a/b"), Some("b"));
    assert_eq!(base_name("/a/b/"), Some("b"));
    for none in ["/", "/a/.", "/a/..", ".", "..", ""] {
        assert_eq!(base_name(none), None, "{none}");
    }
    assert_eq!(
        (below("/", "a"), below("/b/", "a")),
        ("/a".to_owned(), "/b/a".to_owned())
    );
}

#[test]
fn names_that_lead_elsewhere_are_no_names() {
    for wrong in ["", ".", "..", "a/b", "/", "../x", "a\0b", &"x".repeat(256)] {
        assert!(!is_plain(wrong), "{wrong}");
    }
    for name in ["a", "...", ".a", "-", "a b", "ä"] {
        assert!(is_plain(name), "{name}");
    }
}

#[tokio::test]
async fn nothing_is_written_through_links() {
    let (target, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    symlink(outside.path(), target.path().join("dir")).unwrap();
    fs::write(outside.path().join("file"), "theirs").unwrap();
    symlink(outside.path().join("file"), target.path().join("file")).unwrap();
    let dir = Dir::open(target.path()).unwrap();
    assert!(dir.enter("dir", 0o755).is_err());
    let mut writing = dir.write("file", 0o644).unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut writing.file, b"ours")
        .await
        .unwrap();
    tokio::io::AsyncWriteExt::flush(&mut writing.file).await.unwrap();
    writing.finish().unwrap();
    assert_eq!(fs::read(outside.path().join("file")).unwrap(), b"theirs");
    assert_eq!(fs::read(target.path().join("file")).unwrap(), b"ours");
    assert!(!target.path().join("file").is_symlink());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn what_is_not_whole_leaves_nothing_and_no_file_runs_as_somebody_else() {
    let target = tempfile::tempdir().unwrap();
    let dir = Dir::open(target.path()).unwrap();
    drop(dir.write("file", 0o644).unwrap());
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
    dir.write("file", 0o6755).unwrap().finish().unwrap();
    let mode = fs::metadata(target.path().join("file"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7000, 0);
    // A directory is in the way.
    fs::create_dir(target.path().join("taken")).unwrap();
    assert!(dir.write("taken", 0o644).unwrap().finish().is_err());
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 2);
}

/// The other side, with names that it makes up.
struct Hostile(Vec<String>);

impl Remote for Hostile {
    async fn stat(&self, path: &str) -> Result<Option<remote::Seen>, sdk::CallError> {
        Ok(Some(remote::Seen {
            name: path.to_owned(),
            kind: remote::SeenKind::Directory,
            mode: 0o777,
        }))
    }
    async fn list(&self, _: &str) -> Result<Vec<remote::Seen>, sdk::CallError> {
        let seen = |name: &String| remote::Seen {
            name: name.clone(),
            kind: remote::SeenKind::Directory,
            mode: 0o777,
        };
        Ok(self.0.iter().map(seen).collect())
    }
    async fn read(&self, _: &str) -> Result<sdk::FileReader, sdk::CallError> {
        panic!("there are directories only");
    }
    async fn write(&mut self, _: &str, _: sdk::Upload, _: Option<u32>) -> Result<()> {
        bail!("nothing is written there");
    }
    async fn make_dir(&mut self, _: &str, _: u32) -> Result<(), sdk::CallError> {
        Ok(())
    }
    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

fn fetched(names: &[&str]) -> (tempfile::TempDir, Result<()>) {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("target");
    fs::create_dir(&target).unwrap();
    let hostile = Hostile(names.iter().map(|name| (*name).to_owned()).collect());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let result = runtime.block_on(fetch::fetch(
        &hostile,
        "/source/.",
        &target,
        &mut Copied::default(),
    ));
    (parent, result)
}

#[test]
fn a_tree_without_an_end_has_one() {
    let error = fetched(&["a"]).1.unwrap_err();
    assert!(error.to_string().contains("deeper"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn no_name_leads_out_of_the_destination(head in "(\\.\\.|/|\\.|/tmp|a)", middle in "/{0,2}(\\.\\.)?", tail in "[a./]{0,3}") {
        let name = format!("{head}{middle}{tail}");
        let (parent, result) = fetched(&[&name]);
        prop_assert!(result.is_err());
        prop_assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
