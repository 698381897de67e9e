use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use proptest::prelude::*;

use super::*;

/// A context of these files, each with its own path as its content; paths that end with a slash are directories.
fn context(paths: &[&str], ignore: &str) -> (tempfile::TempDir, Context) {
    let dir = tempfile::tempdir().unwrap();
    for path in paths {
        let place = dir.path().join(path);
        if path.ends_with('/') {
            fs::create_dir_all(place).unwrap();
        } else {
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(&place, path).unwrap();
        }
    }
    if !ignore.is_empty() {
        fs::write(dir.path().join(".dockerignore"), ignore).unwrap();
    }
    let opened = Context::open(dir.path()).unwrap();
    (dir, opened)
}

fn paths(found: &Found) -> Vec<String> {
    found
        .entries
        .iter()
        .map(|entry| String::from_utf8(entry.path.clone()).unwrap())
        .collect()
}

#[track_caller]
fn check(source: &str, ignore: &str, expected: &[&str]) {
    let files = [
        "a.txt",
        "b.md",
        "src/x.py",
        "src/y.txt",
        "src/sub/z.py",
        "src/node_modules/m/i.js",
        "empty/",
        "{b}.c",
    ];
    let (_dir, context) = context(&files, ignore);
    let found = context
        .find(source)
        .map(|found| paths(&found))
        .unwrap_or_default();
    assert_eq!(found, expected, "{source}, {ignore:?}");
}

#[test]
fn sources_name_files_and_what_is_below_directories() {
    check("a.txt", "", &["a.txt"]);
    check("./a.txt", "", &["a.txt"]);
    check("src/sub", "", &["src/sub", "src/sub/z.py"]);
    check("src/sub/", "", &["src/sub", "src/sub/z.py"]);
    check("src/../a.txt", "", &["a.txt"]);
    check("*.txt", "", &["a.txt"]);
    check("src/*.py", "", &["src/x.py"]);
    check("src/s?b", "", &["src/sub", "src/sub/z.py"]);
    check("**/*.py", "", &["src/sub/z.py", "src/x.py"]);
    check("[ab].*", "", &["a.txt", "b.md"]);
    check("[^a].*", "", &["b.md"]);
    check("[!a].*", "", &["b.md"]);
    check("{b}.c", "", &["{b}.c"]);
    check("empty", "", &["empty"]);
    check("nothing", "", &[]);
    check("a.txt/x", "", &[]);
    check("/a.txt", "", &["a.txt"]);
}

#[test]
fn the_context_itself_is_a_source() {
    let (_dir, context) = context(&["a", "b/c"], "");
    assert_eq!(paths(&context.find(".").unwrap()), ["", "a", "b", "b/c"]);
}

#[test]
fn ignored_paths_are_left_out_and_exceptions_are_not() {
    check(
        "src",
        "node_modules",
        &[
            "src",
            "src/node_modules",
            "src/node_modules/m",
            "src/node_modules/m/i.js",
            "src/sub",
            "src/sub/z.py",
            "src/x.py",
            "src/y.txt",
        ],
    );
    check(
        "src",
        "**/node_modules",
        &["src", "src/sub", "src/sub/z.py", "src/x.py", "src/y.txt"],
    );
    check("src", "# no\n\n src/* \n!src/*.py\n", &["src", "src/x.py"]);
    check("src", "src\n!src/sub/z.py", &["src/sub/z.py"]);
    check("src/sub", "!src/sub/z.py\nsrc", &[]);
    check("src/sub", "/src/sub/**", &["src/sub"]);
    check("*", "*\n!a.txt", &["a.txt"]);
    check("a.txt", "a.txt", &[]);
    check("a.txt", ".", &["a.txt"]);
    assert!(matches!(
        context(&[], "").1.find("a"),
        Err(ContextError::Nothing { .. })
    ));
    for (rules, line) in [("a\n!", 2), ("[a", 1), ("../a", 1)] {
        assert_eq!(Ignore::parse(rules.as_bytes()).unwrap_err().0, line, "{rules}");
    }
}

#[test]
fn nothing_outside_of_the_context_is_read() {
    let (dir, context) = context(&["a", "d/b"], "");
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    symlink(outside.path(), dir.path().join("link")).unwrap();
    symlink(outside.path().join("secret"), dir.path().join("d/direct")).unwrap();
    for source in ["..", "../x", "a/../../x"] {
        assert!(
            matches!(context.find(source), Err(ContextError::Outside(_))),
            "{source}"
        );
    }
    assert!(matches!(
        context.find("link/secret"),
        Err(ContextError::BehindLink { .. })
    ));
    assert!(matches!(
        context.find("link/s*"),
        Err(ContextError::BehindLink { .. } | ContextError::Nothing { .. })
    ));
    let found = context.find(".").unwrap();
    assert_eq!(paths(&found), ["", "a", "d", "d/b", "d/direct", "link"]);
    let archive = found.pack(&found.hash().unwrap()).unwrap();
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(archive.file));
    for entry in tar.entries().unwrap() {
        let mut content = String::new();
        entry.unwrap().read_to_string(&mut content).unwrap();
        assert_ne!(content, "s");
    }
}

#[test]
fn an_archive_holds_what_was_found() {
    let long = format!("d/{}/{}", "n".repeat(120), "m".repeat(120));
    let (dir, context) = context(&["a", "d/b", &long], "");
    fs::set_permissions(dir.path().join("a"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("../a", dir.path().join("d/l")).unwrap();
    let found = context.find(".").unwrap();
    let archive = found.pack(&found.hash().unwrap()).unwrap();
    assert_eq!(archive.file.metadata().unwrap().len(), archive.bytes);
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(archive.file));
    let mut entries = Vec::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        let link = entry
            .link_name()
            .unwrap()
            .map(|link| link.to_str().unwrap().to_owned());
        let mode = entry.header().mode().unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        entries.push((path, content, link, mode));
    }
    let paths: Vec<&str> = entries
        .iter()
        .map(|(path, ..)| path.trim_end_matches('/'))
        .collect();
    let above = long.rsplit_once('/').unwrap().0;
    assert_eq!(paths, ["a", "d", "d/b", "d/l", above, long.as_str()]);
    assert_eq!((entries[0].1.as_str(), entries[0].3), ("a", 0o750));
    assert_eq!(entries[3].2.as_deref(), Some("../a"));
    assert_eq!(entries[5].1, long);
}

#[test]
fn a_hash_tells_every_difference_and_no_time() {
    let hash = |change: &dyn Fn(&Path)| {
        let (dir, context) = context(&["a", "d/b"], "");
        change(dir.path());
        let hash = context.find(".").unwrap().hash().unwrap();
        assert!(
            hash.len() == 64
                && hash
                    .bytes()
                    .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        );
        hash
    };
    let plain = hash(&|_| {});
    let time = |dir: &Path| {
        let file = fs::File::options().write(true).open(dir.join("a")).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    };
    assert_eq!(plain, hash(&time));
    let changes: [&dyn Fn(&Path); 5] = [
        &|dir| fs::write(dir.join("a"), "b").unwrap(),
        &|dir| fs::rename(dir.join("a"), dir.join("c")).unwrap(),
        &|dir| fs::set_permissions(dir.join("a"), fs::Permissions::from_mode(0o600)).unwrap(),
        &|dir| fs::create_dir(dir.join("e")).unwrap(),
        &|dir| symlink("a", dir.join("l")).unwrap(),
    ];
    for change in changes {
        assert_ne!(plain, hash(change));
    }
}

#[test]
fn what_changes_meanwhile_is_not_sent() {
    let (dir, context) = context(&["a"], "");
    let found = context.find("a").unwrap();
    let hash = found.hash().unwrap();
    fs::write(dir.path().join("a"), "b").unwrap();
    assert!(matches!(found.pack(&hash), Err(ContextError::Changed(_))));
    fs::write(dir.path().join("a"), "longer").unwrap();
    assert!(matches!(found.pack(&hash), Err(ContextError::Changed(_))));
}

#[test]
fn braces_are_escaped_for_the_server() {
    assert_eq!(for_server("a{b,c}*"), "a\\{b,c}*");
    assert_eq!(for_server("a\\{b"), "a\\{b");
    assert_eq!(for_server("a/b"), "a/b");
}

proptest! {
    #[test]
    fn no_glob_breaks_the_reader(glob in prop::collection::vec(any::<u8>(), 0..24), path in prop::collection::vec(any::<u8>(), 0..24)) {
        if let Some(pattern) = Pattern::parse(&glob) {
            pattern.matches(&path);
        }
    }

    #[test]
    fn a_plain_path_matches_itself_alone(path in "[a-z/äö.]{1,12}", other in "[a-z/äö.]{1,12}") {
        let pattern = Pattern::parse(path.as_bytes()).unwrap();
        prop_assert!(pattern.matches(path.as_bytes()));
        prop_assert_eq!(pattern.matches(other.as_bytes()), path == other);
    }
}
