use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

/// Three directories that stand for an upper and for the views with and without it.
struct Stage(tempfile::TempDir);

impl Stage {
    fn new() -> Self {
        let stage = Self(tempfile::tempdir().unwrap());
        for dir in ["upper", "new", "old"] {
            fs::create_dir(stage.0.path().join(dir)).unwrap();
        }
        stage
    }

    fn write(&self, dirs: &[&str], path: &str, text: &str) {
        for dir in dirs {
            let path = self.0.path().join(dir).join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            let then = std::time::SystemTime::UNIX_EPOCH;
            File::open(path).unwrap().set_modified(then).unwrap();
        }
    }

    fn view(&self, dir: &str) -> View {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        View(rustix::fs::open(self.0.path().join(dir), flags, Mode::empty()).unwrap())
    }

    fn found(&self, wanted: Wanted) -> (Vec<(String, ChangeKind)>, bool) {
        let (new, old) = (self.view("new"), self.view("old"));
        let comparison = Comparison {
            target: Path::new("/usr"),
            new: &new,
            old: &old,
        };
        let mut found = Found::default();
        comparison.walk(&self.view("upper"), wanted, &mut found).unwrap();
        let told = found.told();
        let entries = told.entries.into_iter().map(|change| (change.path, change.kind));
        (entries.collect(), told.is_cut)
    }
}

fn told(changes: &[(&str, ChangeKind)]) -> (Vec<(String, ChangeKind)>, bool) {
    let changes = changes.iter().map(|(path, kind)| ((*path).to_owned(), *kind));
    (changes.collect(), false)
}

#[test]
fn what_the_upper_names_is_told_by_what_is_seen() {
    use ChangeKind::{Added, Deleted, Modified};
    let stage = Stage::new();
    stage.write(&["upper", "new", "old"], "same", "x");
    stage.write(&["upper", "new"], "dir/added", "x");
    stage.write(&["old"], "dir/kept", "x");
    stage.write(&["upper", "new"], "changed", "one");
    stage.write(&["old"], "changed", "two");
    stage.write(&["upper", "old"], "gone", "x");
    stage.write(&["new", "old"], "not/in/the/upper", "x");
    let wanted = [
        ("/usr/changed", Modified),
        ("/usr/dir/added", Added),
        ("/usr/gone", Deleted),
    ];
    assert_eq!(stage.found(Wanted::All), told(&wanted));
    assert_eq!(
        stage.found(Wanted::Deleted).0.last(),
        Some(&("/usr/gone".to_owned(), Deleted))
    );
}

#[test]
fn all_below_what_is_new_is_told_and_nothing_below_what_is_gone() {
    use ChangeKind::{Added, Deleted, Modified};
    let stage = Stage::new();
    stage.write(&["new"], "dir/a/b", "x");
    fs::create_dir(stage.0.path().join("upper/dir")).unwrap();
    stage.write(&["upper", "old"], "gone/a/b", "x");
    stage.write(&["upper", "new"], "file/now", "x");
    stage.write(&["old"], "file", "x");
    let wanted = [
        ("/usr/dir", Added),
        ("/usr/dir/a", Added),
        ("/usr/dir/a/b", Added),
        ("/usr/file", Modified),
        ("/usr/file/now", Added),
        ("/usr/gone", Deleted),
    ];
    assert_eq!(stage.found(Wanted::All), told(&wanted));
}

#[test]
fn no_link_is_followed() {
    let stage = Stage::new();
    stage.write(&["old"], "dir/inner", "x");
    for dir in ["upper", "new"] {
        symlink("/etc", stage.0.path().join(dir).join("dir")).unwrap();
    }
    let wanted = [("/usr/dir", ChangeKind::Modified)];
    assert_eq!(stage.found(Wanted::All), told(&wanted));
}

#[test]
fn a_path_that_is_too_long_cuts_the_list() {
    let stage = Stage::new();
    stage.write(&["upper", "new"], "first", "x");
    // Deeper than a path reaches, a step at a time.
    let mut at = stage.view("upper").0;
    let mut other = stage.view("new").0;
    for _ in 0..20 {
        let name = "d".repeat(255);
        for dir in [&mut at, &mut other] {
            rustix::fs::mkdirat(&*dir, &name, Mode::from_raw_mode(0o755)).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            *dir = rustix::fs::openat(&*dir, &name, flags, Mode::empty()).unwrap();
        }
    }
    let (found, is_cut) = stage.found(Wanted::All);
    assert!(is_cut);
    assert!(
        found.contains(&("/usr/first".to_owned(), ChangeKind::Added)),
        "{found:?}"
    );
}

#[test]
fn a_tar_holds_all_places_with_their_links_and_attributes() {
    let stage = Stage::new();
    stage.write(&["new"], "usr/hidden", "x");
    stage.write(&["new"], "etc/one", "text");
    let root = stage.0.path().join("new");
    fs::hard_link(root.join("etc/one"), root.join("etc/two")).unwrap();
    symlink("../nowhere", root.join("etc/link")).unwrap();
    let long = format!("etc/{}/{}", "d".repeat(200), "f".repeat(200));
    stage.write(&["new"], &long, "long");
    stage.write(&["old"], "bin/tool", "tool");
    fs::set_permissions(
        stage.0.path().join("old/bin/tool"),
        fs::Permissions::from_mode(0o4755),
    )
    .unwrap();
    let place = |target: &str, dir| Place {
        target: target.to_owned(),
        view: stage.view(dir),
        upper: None,
    };
    let bytes = export::whole(&[place("/", "new"), place("/usr", "old")]);
    let mut seen = BTreeMap::new();
    let mut archive = tar::Archive::new(&bytes[..]);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        let link = entry.link_name().unwrap().map(|link| link.display().to_string());
        let mode = entry.header().mode().unwrap();
        seen.insert(entry.path().unwrap().display().to_string(), (text, link, mode));
    }
    assert_eq!(seen["usr/bin/tool"], ("tool".to_owned(), None, 0o4755));
    assert!(!seen.contains_key("usr/hidden"), "another place lies over it");
    assert_eq!(seen["etc/link"].1.as_deref(), Some("../nowhere"));
    assert_eq!(seen[&long].0, "long");
    let (one, two) = (&seen["etc/one"], &seen["etc/two"]);
    let links = [one.1.as_deref(), two.1.as_deref()];
    assert!(links.contains(&None) && (links.contains(&Some("etc/one")) || links.contains(&Some("etc/two"))));
}
