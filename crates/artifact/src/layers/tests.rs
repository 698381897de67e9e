//! A layer is there as a whole or not at all, and goes when nobody needs it.
#![expect(clippy::print_stderr, reason = "a test that does not run says so")]
use super::*;
use crate::testing::{Tar, gzip};

const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    entries: 100,
};

fn open() -> Option<(tempfile::TempDir, Layers)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: unpacks layers, run it as root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let layers = Layers::open(&dir.path().join("store")).unwrap();
    Some((dir, layers))
}

fn make(layers: &Layers, text: &str) -> Digest {
    let tar = Tar::new().file(text, text.as_bytes()).end();
    let diff = Digest::of(&tar);
    layers.make(diff, None, &tar[..], LIMITS, false).unwrap();
    diff
}

fn names(layers: &Layers, part: &str) -> usize {
    fs::read_dir(layers.dir.join(part)).unwrap().count()
}

fn age(layers: &Layers, digest: Digest, seconds: u64) {
    let file = File::options()
        .write(true)
        .open(layers.facts_path(digest))
        .unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
        .unwrap();
}

#[test]
fn bytes_of_another_digest_leave_nothing() {
    let Some((_dir, layers)) = open() else { return };
    let tar = Tar::new().file("a", b"").end();
    let (right, wrong) = (Digest::of(&tar), Digest::of(b"other"));
    let zipped = gzip(&tar);
    assert!(
        matches!(layers.make(wrong, None, &zipped[..], LIMITS, false), Err(MakeError::Digest { found, .. }) if found == right)
    );
    assert!(matches!(
        layers.make(right, Some(wrong), &zipped[..], LIMITS, false),
        Err(MakeError::Digest { .. })
    ));
    assert!(matches!(
        layers.make(right, None, &zipped[..9], LIMITS, false),
        Err(MakeError::Layer(_))
    ));
    assert_eq!((names(&layers, "layers"), names(&layers, "facts")), (0, 0));
    layers
        .make(right, Some(Digest::of(&zipped)), &zipped[..], LIMITS, false)
        .unwrap();
    layers.make(right, None, &tar[..], LIMITS, false).unwrap();
    assert_eq!((names(&layers, "layers"), names(&layers, "facts")), (1, 1));
}

#[test]
fn the_longest_unused_goes_first_and_what_is_used_stays() {
    let Some((_dir, layers)) = open() else { return };
    let all: Vec<Digest> = ["a", "b", "c", "d", "e"]
        .iter()
        .map(|name| make(&layers, name))
        .collect();
    for (at, digest) in all.iter().enumerate() {
        age(&layers, *digest, 10_000 - 100 * at as u64);
    }
    let one = layers.find(all[0]).unwrap();
    age(&layers, all[0], 10_000);
    let in_use = HashSet::from([layers.path(all[1])]);
    age(&layers, all[4], 5);
    let each = one.1.disk_bytes;
    let evicted = layers.evict(3 * each, &in_use).unwrap();
    assert_eq!((evicted.layers, evicted.left_bytes), (2, 3 * each));
    let there: Vec<bool> = all.iter().map(|digest| layers.path(*digest).is_dir()).collect();
    assert_eq!(
        there,
        [true, true, false, false, true],
        "held, in use, two old ones, just used"
    );
    assert_eq!(layers.evict(0, &in_use).unwrap().layers, 0);
    drop(one);
    assert_eq!(
        layers.evict(0, &in_use).unwrap().layers,
        0,
        "it was held until just now"
    );
    age(&layers, all[0], 10_000);
    assert_eq!(
        layers.evict(0, &HashSet::new()).unwrap().layers,
        2,
        "one is used no more, the other held no more"
    );
    assert_eq!((names(&layers, "facts"), layers.path(all[4]).is_dir()), (1, true));
}

#[test]
fn an_archive_is_kept_beside_its_layer_and_goes_with_it() {
    let Some((_dir, layers)) = open() else { return };
    let tar = Tar::new().file("file", &[b'x'; 9000]).end();
    let diff = Digest::of(&tar);
    let zipped = gzip(&tar);
    let kept = |layers: &Layers| {
        let (hold, facts) = layers.find(diff).unwrap();
        let archive = layers.archive(diff, &facts);
        drop(hold);
        (archive.map(|(archive, _)| archive), facts.disk_bytes)
    };
    layers.make(diff, None, &tar[..], LIMITS, false).unwrap();
    let (none, without) = kept(&layers);
    assert_eq!((none, names(&layers, "archives")), (None, 0));
    // As it comes where it is compressed, and compressed where it is not. One that is there gets it too.
    let read = || fs::read(layers.archive_path(diff)).unwrap();
    layers.make(diff, None, &zipped[..], LIMITS, true).unwrap();
    assert_eq!(read(), zipped);
    let (archive, with) = kept(&layers);
    assert_eq!(archive.unwrap().blob, Digest::of(&zipped));
    assert_eq!(with, without + zipped.len() as u64);
    layers.make(diff, None, &tar[..], LIMITS, true).unwrap();
    assert_eq!(zstd::decode_all(&read()[..]).unwrap(), tar);
    assert_eq!(kept(&layers).0.unwrap().blob, Digest::of(&read()));
    // A part of it is none.
    fs::write(layers.archive_path(diff), &zipped[..100]).unwrap();
    assert_eq!(kept(&layers).0, None);
    age(&layers, diff, 10_000);
    assert_eq!(layers.evict(0, &HashSet::new()).unwrap().layers, 1);
    assert_eq!((names(&layers, "archives"), names(&layers, "facts")), (0, 0));
}

#[test]
fn of_bytes_that_are_refused_no_archive_is_kept() {
    let Some((_dir, layers)) = open() else { return };
    let tar = Tar::new().file("a", &[b'x'; 9000]).end();
    let (right, zipped) = (Digest::of(&tar), gzip(&tar));
    let wrong = Digest::of(b"other");
    assert!(layers.make(wrong, None, &zipped[..], LIMITS, true).is_err());
    assert!(
        layers
            .make(right, Some(wrong), &zipped[..], LIMITS, true)
            .is_err()
    );
    assert!(layers.make(right, None, &zipped[..9], LIMITS, true).is_err());
    assert!(layers.make(right, None, &b""[..], LIMITS, true).is_err());
    for part in ["layers", "facts", "archives"] {
        assert_eq!(names(&layers, part), 0, "{part}");
    }
}

#[test]
fn one_process_at_a_time_has_the_layers() {
    let Some((dir, layers)) = open() else { return };
    let again = Layers::open(&dir.path().join("store"));
    assert_eq!(again.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    drop(layers);
    Layers::open(&dir.path().join("store")).unwrap();
}

#[test]
fn no_user_of_the_host_comes_near_the_layers() {
    use std::os::unix::fs::MetadataExt as _;
    let Some((dir, _layers)) = open() else { return };
    assert_eq!(
        fs::metadata(dir.path().join("store")).unwrap().mode() & 0o777,
        0o700
    );
}

#[test]
fn whatever_a_death_left_is_swept_and_whole_layers_stay() {
    let Some((dir, layers)) = open() else { return };
    let whole = make(&layers, "whole");
    let store = dir.path().join("store");
    let dead = Digest::of(b"dead");
    // Dead while unpacking; between the facts and the name; while removing.
    fs::create_dir_all(store.join("layers/.partial-3/deep")).unwrap();
    fs::write(store.join("layers/.partial-3/deep/file"), "").unwrap();
    fs::write(store.join(format!("facts/{}.json", dead.hex())), "{}").unwrap();
    fs::create_dir_all(store.join("layers/.trash-1")).unwrap();
    fs::write(store.join("facts/.tmpXYZ"), "").unwrap();
    // Dead while an archive was written; between its name and the layer's.
    fs::write(store.join("archives/.partial-abc"), "x").unwrap();
    fs::write(store.join("archives").join(dead.hex()), "x").unwrap();
    drop(layers);
    let layers = Layers::open(&store).unwrap();
    assert_eq!((names(&layers, "layers"), names(&layers, "facts")), (1, 1));
    assert_eq!(names(&layers, "archives"), 0);
    assert!(layers.find(whole).is_some() && layers.find(dead).is_none());
}
