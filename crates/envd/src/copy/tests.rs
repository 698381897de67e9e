use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use wire::host_calls::Copied;

use super::archive::Archive;
use super::archive::writing::Writer;
use super::model::{self, Files, Node};
use super::step::{CopyError, Step};
use super::*;

/// The files of a sandbox, in a directory.
struct Sandbox(tempfile::TempDir);

impl Sandbox {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    fn mode(&self, path: &str) -> u32 {
        fs::symlink_metadata(self.at(path)).unwrap().mode() & 0o7777
    }

    fn owner(&self, path: &str) -> (u32, u32) {
        let found = fs::symlink_metadata(self.at(path)).unwrap();
        (found.uid(), found.gid())
    }

    /// A step whose destination is one of the sandbox's paths; a relative one lies below its root.
    fn step(&self, source: &str, destination: &str) -> Copy {
        let root = self.0.path().to_str().unwrap();
        let destination = match destination.strip_prefix('/') {
            Some(rest) => format!("{root}/{rest}"),
            None => destination.to_owned(),
        };
        Copy {
            source: source.to_owned(),
            destination,
            user: "root".to_owned(),
            workdir: Some(root.to_owned()),
            ..Copy::default()
        }
    }

    fn copy(&self, writer: &Writer, source: &str, destination: &str) -> Result<Copied, CopyError> {
        carry_out(&self.step(source, destination), &writer.end())
    }
}

fn carry_out(copy: &Copy, archive: &[u8]) -> Result<Copied, CopyError> {
    Step::of(copy)?.carry_out(&mut Archive::new(archive))
}

#[track_caller]
fn refused(outcome: Result<Copied, CopyError>, why: &str) {
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn files() -> Writer {
    let mut writer = Writer::default();
    writer
        .directory(b"src", 0o750)
        .file(b"src/.hidden", 0o600, b"h")
        .file(b"src/a.sh", 0o755, b"run")
        .directory(b"src/deep", 0o700)
        .file(b"src/deep/b", 0o644, b"bb")
        .link(b"src/link", b"deep/b");
    writer
}

#[test]
fn the_content_of_a_directory_is_merged_into_another() {
    let sandbox = Sandbox::new();
    fs::create_dir_all(sandbox.at("app/deep")).unwrap();
    fs::set_permissions(sandbox.at("app"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::write(sandbox.at("app/kept"), "kept").unwrap();
    fs::write(sandbox.at("app/a.sh"), "old and longer").unwrap();
    let copied = sandbox.copy(&files(), "src", "/app").unwrap();
    assert_eq!(copied, Copied { files: 4, bytes: 6 });
    assert_eq!(
        (sandbox.text("app/kept"), sandbox.text("app/a.sh")),
        ("kept".to_owned(), "run".to_owned())
    );
    assert_eq!(sandbox.text("app/.hidden"), "h");
    assert_eq!(
        fs::read_link(sandbox.at("app/link")).unwrap(),
        Path::new("deep/b")
    );
    assert_eq!(
        (sandbox.mode("app"), sandbox.mode("app/deep")),
        (0o711, 0o755),
        "what is there stays as it is"
    );
    assert_eq!(
        (sandbox.mode("app/a.sh"), sandbox.mode("app/.hidden")),
        (0o755, 0o600)
    );
    let modified = fs::metadata(sandbox.at("app/a.sh")).unwrap().mtime();
    assert_eq!(modified, archive::writing::MODIFIED);
}

#[test]
fn a_directory_that_is_new_has_what_its_source_has() {
    let sandbox = Sandbox::new();
    for source in ["src", "src/", "./src/.", "src/*", "src/**"] {
        sandbox.copy(&files(), source, "/new/app").unwrap();
        assert_eq!(
            (sandbox.mode("new"), sandbox.mode("new/app")),
            (0o755, 0o755),
            "{source}"
        );
        assert_eq!(
            (sandbox.mode("new/app/deep"), sandbox.text("new/app/deep/b")),
            (0o700, "bb".to_owned())
        );
        fs::remove_dir_all(sandbox.at("new")).unwrap();
    }
    sandbox.copy(&files(), "*", "/all").unwrap();
    assert_eq!(
        (sandbox.mode("all/src"), sandbox.text("all/src/a.sh")),
        (0o750, "run".to_owned())
    );
}

#[test]
fn a_file_goes_to_an_exact_place_or_into_a_directory() {
    let sandbox = Sandbox::new();
    let put = |destination: &str| sandbox.copy(&files(), "src/a.sh", destination).unwrap();
    for (destination, place) in [
        ("/exact", "exact"),
        ("/new/dir/exact", "new/dir/exact"),
        ("/into/", "into/a.sh"),
        ("/into", "into/a.sh"),
        (".", "a.sh"),
        ("", "a.sh"),
        ("rel/ative", "rel/ative"),
        ("./into/../other", "other"),
    ] {
        assert_eq!(put(destination), Copied { files: 1, bytes: 3 });
        assert_eq!(
            (sandbox.text(place), sandbox.mode(place)),
            ("run".to_owned(), 0o755),
            "{destination}"
        );
        fs::remove_file(sandbox.at(place)).unwrap();
    }
    fs::create_dir_all(sandbox.at("busy/a.sh/x")).unwrap();
    refused(
        sandbox.copy(&files(), "src/a.sh", "/busy"),
        "a directory that is not empty",
    );
    fs::write(sandbox.at("file"), "").unwrap();
    refused(sandbox.copy(&files(), "src/a.sh", "/file/"), "Not a directory");
    refused(sandbox.copy(&files(), "src", "/file"), "Not a directory");
}

#[test]
fn links_are_copied_as_links_and_followed_where_they_were_before() {
    let sandbox = Sandbox::new();
    fs::create_dir_all(sandbox.at("usr/lib")).unwrap();
    symlink("usr/lib", sandbox.at("lib")).unwrap();
    fs::write(sandbox.at("usr/secret"), "secret").unwrap();
    symlink("../secret", sandbox.at("usr/lib/file")).unwrap();
    symlink("nowhere", sandbox.at("usr/lib/dangling")).unwrap();
    let mut writer = Writer::default();
    writer
        .file(b"file", 0o644, b"new")
        .directory(b"dangling", 0o755)
        .file(b"dangling/x", 0o644, b"x");
    sandbox.copy(&writer, ".", "/lib").unwrap();
    assert!(sandbox.at("lib").is_symlink(), "a link to a directory stays");
    assert_eq!(
        (sandbox.text("usr/lib/file"), sandbox.text("usr/secret")),
        ("new".to_owned(), "secret".to_owned())
    );
    assert_eq!(sandbox.text("usr/lib/dangling/x"), "x");
    assert!(!sandbox.at("usr/lib/nowhere").exists());
    sandbox.copy(&files(), "src/link", "/lib").unwrap();
    assert_eq!(
        fs::read_link(sandbox.at("usr/lib/link")).unwrap(),
        Path::new("deep/b")
    );
    sandbox.copy(&files(), "src/a.sh", "/usr/lib/link").unwrap();
    assert!(
        !sandbox.at("usr/lib/link").is_symlink(),
        "what a link led to is not written"
    );
}

#[test]
fn links_that_lead_round_in_circles_give_way() {
    let sandbox = Sandbox::new();
    symlink("round", sandbox.at("round")).unwrap();
    sandbox.copy(&files(), "src/a.sh", "/round").unwrap();
    assert_eq!(sandbox.text("round"), "run");
    fs::create_dir(sandbox.at("app")).unwrap();
    symlink("deep", sandbox.at("app/deep")).unwrap();
    sandbox.copy(&files(), "src", "/app").unwrap();
    assert_eq!(sandbox.text("app/deep/b"), "bb");
}

#[test]
fn owner_and_mode_are_the_steps() {
    let sandbox = Sandbox::new();
    let copy = |mode, owner: Option<&str>| {
        let told = Copy {
            mode,
            owner: owner.map(str::to_owned),
            ..sandbox.step("src", "/app")
        };
        fs::remove_dir_all(sandbox.at("app")).ok();
        carry_out(&told, &files().end()).unwrap();
    };
    copy(Some(0o4711), None);
    for path in ["app/a.sh", "app/.hidden", "app/deep", "app/deep/b"] {
        assert_eq!(sandbox.mode(path), 0o4711, "{path}");
    }
    assert_eq!((sandbox.mode("app"), sandbox.mode("app/link")), (0o755, 0o777));
    if !is_root() {
        return;
    }
    copy(None, Some("54321"));
    for path in ["app", "app/a.sh", "app/deep", "app/deep/b", "app/link"] {
        assert_eq!(sandbox.owner(path), (54321, 54321), "{path}");
    }
    copy(None, Some("54321:54322"));
    assert_eq!(sandbox.owner("app/link"), (54321, 54322));
    let mut writer = Writer::default();
    writer.file(b"suid", 0o4755, b"");
    let told = Copy {
        owner: Some("54321".to_owned()),
        ..sandbox.step("suid", "/deep/suid")
    };
    carry_out(&told, &writer.end()).unwrap();
    assert_eq!(
        (sandbox.owner("deep/suid"), sandbox.mode("deep/suid")),
        ((54321, 54321), 0o755)
    );
    assert_eq!(
        sandbox.owner("deep"),
        (0, 0),
        "directories above belong to the system"
    );
}

#[test]
fn hard_links_are_one_file() {
    let sandbox = Sandbox::new();
    let mut writer = Writer::default();
    writer
        .file(b"d/a", 0o644, b"one")
        .same(b"d/b", b"d/a")
        .same(b"d/e/c", b"d/b")
        .same(b"d/a", b"d/a");
    let copied = sandbox.copy(&writer, "d", "/x").unwrap();
    assert_eq!(copied, Copied { files: 4, bytes: 3 });
    let inode = |path: &str| fs::metadata(sandbox.at(path)).unwrap().ino();
    assert_eq!((inode("x/a"), inode("x/b")), (inode("x/b"), inode("x/e/c")));
}

#[test]
fn a_second_name_is_of_what_was_copied_only() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.at("etc")).unwrap();
    fs::write(sandbox.at("etc/shadow"), "secret").unwrap();
    let why = "a second name for a file that is not copied before it";
    refused(
        sandbox.copy(Writer::default().same(b"x", b"shadow"), ".", "/etc"),
        why,
    );
    refused(
        sandbox.copy(
            Writer::default().link(b"l", b"shadow").same(b"x", b"l"),
            ".",
            "/etc",
        ),
        why,
    );
    refused(
        sandbox.copy(
            Writer::default().directory(b"d", 0o755).same(b"x", b"d"),
            ".",
            "/etc",
        ),
        why,
    );
    refused(
        sandbox.copy(
            Writer::default().file(b"o", 0o644, b"").same(b"d/x", b"o"),
            "d",
            "/etc",
        ),
        why,
    );
    refused(
        sandbox.copy(Writer::default().same(b"x", b"y"), "x", "/etc/"),
        why,
    );
    assert!(!sandbox.at("etc/x").exists());
}

#[test]
fn what_is_not_there_is_named() {
    let sandbox = Sandbox::new();
    let missing = |source: &str| sandbox.copy(&files(), source, "/app");
    refused(
        missing("other/*.txt"),
        "the source 'other/*.txt' of COPY does not exist",
    );
    refused(missing("src/a.s"), "does not exist");
    refused(
        sandbox.copy(&Writer::default(), ".", "/app"),
        "the source '.' of COPY does not exist",
    );
    refused(missing("../x"), "leads out");
    assert!(!sandbox.at("app").exists(), "nothing is made for nothing");
    let torn = "is a directory, and that it is none";
    refused(
        sandbox.copy(
            Writer::default().file(b"x", 0o644, b"").file(b"x/y", 0o644, b""),
            "x",
            "/t",
        ),
        torn,
    );
    refused(
        sandbox.copy(
            Writer::default().file(b"x/y", 0o644, b"").file(b"x", 0o644, b""),
            "x",
            "/u",
        ),
        torn,
    );
    let nobody = Copy {
        owner: Some("nobody-has-this".to_owned()),
        ..sandbox.step("src", "/app")
    };
    refused(
        carry_out(&nobody, &files().end()),
        "'nobody-has-this' does not exist",
    );
    let nowhere = Copy {
        workdir: Some("/does/not/exist".to_owned()),
        ..sandbox.step("src", "app")
    };
    refused(carry_out(&nowhere, &files().end()), "'/does/not/exist'");
}

#[test]
fn the_home_is_where_relative_paths_lead_without_a_directory() {
    let sandbox = Sandbox::new();
    let told = Copy {
        workdir: None,
        ..sandbox.step("src/a.sh", "")
    };
    let home = crate::users::User::find("root").unwrap().home;
    let name = format!("{}-envd-copy-test", std::process::id());
    let told = Copy {
        destination: name.clone(),
        ..told
    };
    if is_root() {
        carry_out(&told, &files().end()).unwrap();
        let place = Path::new(&home).join(name);
        assert_eq!(fs::read_to_string(&place).unwrap(), "run");
        fs::remove_file(place).unwrap();
    }
}

#[test]
fn entries_behind_links_of_the_archive_stay_in_it() {
    let sandbox = Sandbox::new();
    let outside = tempfile::tempdir().unwrap();
    let outside_path = outside.path().to_str().unwrap().as_bytes().to_vec();
    let behind = "behind its own link";
    let mut absolute = Writer::default();
    absolute.link(b"l", &outside_path).file(b"l/x", 0o644, b"x");
    refused(sandbox.copy(&absolute, ".", "/app"), behind);
    let mut climbing = Writer::default();
    climbing.link(b"d/l", b"../../..").file(b"d/l/x", 0o644, b"x");
    refused(sandbox.copy(&climbing, ".", "/app"), behind);
    let mut through = Writer::default();
    through
        .link(b"a", b"b")
        .link(b"b", &outside_path)
        .file(b"a/x", 0o644, b"x");
    refused(sandbox.copy(&through, ".", "/app"), behind);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // As the SDKs upload a link to a directory beside what it leads to.
    let mut beside = Writer::default();
    beside
        .directory(b"d", 0o755)
        .file(b"d/x", 0o644, b"x")
        .link(b"l", b"d")
        .file(b"l/x", 0o644, b"x");
    sandbox.copy(&beside, "*", "/beside").unwrap();
    assert!(sandbox.at("beside/l").is_symlink() && sandbox.text("beside/l/x") == "x");
    refused(sandbox.copy(&beside, "l", "/lost"), behind);
    // A directory takes the place of a link of the archive, and is none of where that led.
    let mut instead = Writer::default();
    instead
        .link(b"l", &outside_path)
        .directory(b"l", 0o755)
        .file(b"l/x", 0o644, b"x");
    sandbox.copy(&instead, ".", "/instead").unwrap();
    assert!(!sandbox.at("instead/l").is_symlink() && sandbox.text("instead/l/x") == "x");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn the_kernels_own_files_are_no_destination() {
    let sandbox = Sandbox::new();
    symlink("/proc/self", sandbox.at("proc")).unwrap();
    symlink("/proc/self/root/tmp", sandbox.at("magic")).unwrap();
    symlink("/sys", sandbox.at("sys")).unwrap();
    let mut writer = Writer::default();
    writer.file(b"d/mem", 0o644, b"x").file(b"proc/mem", 0o644, b"x");
    for destination in ["/proc", "/proc/", "/magic", "/magic/x", "/sys", "/sys/kernel"] {
        assert!(sandbox.copy(&writer, "d", destination).is_err(), "{destination}");
        assert!(
            sandbox.copy(&writer, "d/mem", destination).is_err(),
            "{destination}"
        );
    }
    refused(sandbox.copy(&writer, ".", "/"), "not permitted");
}

#[test]
fn a_broken_archive_leaves_no_half_of_a_file() {
    let sandbox = Sandbox::new();
    let mut writer = Writer::default();
    writer
        .file(b"d/whole", 0o644, b"whole")
        .file(b"d/half", 0o644, &[1; 100_000]);
    let bytes = writer.end();
    refused(carry_out(&sandbox.step("d", "/x"), &bytes[..50_000]), "cut short");
    assert_eq!(sandbox.text("x/whole"), "whole");
    assert!(!sandbox.at("x/half").exists());
}

// ---- the model -------------------------------------------------------------------------------------------------------

fn write(root: &Path, files: &Files) {
    // Directories come before what is in them.
    for (path, node) in files {
        let place = root.join(&path[1..]);
        match node {
            Node::Directory { mode } => {
                fs::create_dir(&place).unwrap();
                fs::set_permissions(&place, fs::Permissions::from_mode(*mode)).unwrap();
            }
            Node::File { mode, content } => {
                fs::write(&place, content).unwrap();
                fs::set_permissions(&place, fs::Permissions::from_mode(*mode)).unwrap();
            }
            Node::Link(target) => symlink(real_target(root, target), &place).unwrap(),
        }
    }
}

/// An absolute target is one in the sandbox.
fn real_target(root: &Path, target: &str) -> PathBuf {
    target
        .strip_prefix('/')
        .map_or_else(|| PathBuf::from(target), |rest| root.join(rest))
}

fn read(root: &Path, dir: &str, files: &mut Files) {
    for entry in fs::read_dir(root.join(dir.trim_start_matches('/'))).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{dir}/{}", entry.file_name().to_str().unwrap());
        let found = entry.metadata().unwrap();
        let mode = found.mode() & 0o7777;
        let node = if found.is_dir() {
            read(root, &path, files);
            Node::Directory { mode }
        } else if found.is_symlink() {
            let target = fs::read_link(entry.path()).unwrap();
            let target = match target.strip_prefix(root) {
                Ok(rest) => format!("/{}", rest.display()),
                Err(_) => target.display().to_string(),
            };
            Node::Link(target)
        } else {
            Node::File {
                mode,
                content: fs::read(entry.path()).unwrap(),
            }
        };
        files.insert(path, node);
    }
}

fn archive_of(root: &Path, context: &[(String, Node)]) -> Vec<u8> {
    let mut writer = Writer::default();
    for (path, node) in context {
        match node {
            Node::Directory { mode } => writer.directory(path.as_bytes(), *mode),
            Node::File { mode, content } => writer.file(path.as_bytes(), *mode, content),
            Node::Link(target) => writer.link(
                path.as_bytes(),
                real_target(root, target).to_str().unwrap().as_bytes(),
            ),
        };
    }
    writer.end()
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned)
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(name(), 1..4).prop_map(|parts| parts.join("/"))
}

fn node() -> impl Strategy<Value = Node> {
    let mode = || prop::sample::select(vec![0o755, 0o700, 0o711]);
    prop_oneof![
        3 => (mode(), prop::collection::vec(any::<u8>(), 0..3)).prop_map(|(mode, content)| Node::File { mode, content }),
        3 => mode().prop_map(|mode| Node::Directory { mode }),
        1 => path().prop_map(Node::Link),
        1 => path().prop_map(|path| Node::Link(format!("/{path}"))),
    ]
}

/// Files that can be: whatever lies in a directory has one.
fn sandbox_files() -> impl Strategy<Value = Files> {
    prop::collection::vec((path(), node()), 0..8).prop_map(|all| {
        let mut files = Files::new();
        for (path, node) in all {
            let parents: Vec<String> = path
                .match_indices('/')
                .map(|(at, _)| format!("/{}", &path[..at]))
                .collect();
            let path = format!("/{path}");
            let is_free = !files
                .keys()
                .any(|other| other == &path || other.starts_with(&format!("{path}/")));
            let has_room = parents
                .iter()
                .all(|parent| matches!(files.get(parent), None | Some(Node::Directory { .. })));
            if is_free && has_room {
                for parent in parents {
                    files.entry(parent).or_insert(Node::Directory { mode: 0o755 });
                }
                files.insert(path, node);
            }
        }
        files
    })
}

/// An archive in which nothing lies behind a link of its own, as the model has it.
fn context() -> impl Strategy<Value = Vec<(String, Node)>> {
    prop::collection::vec((path(), node()), 0..8).prop_map(|all| {
        let (mut seen, mut links) = (BTreeSet::new(), BTreeSet::new());
        all.into_iter()
            .filter(|(path, node)| {
                let is_behind = path.match_indices('/').any(|(at, _)| links.contains(&path[..at]));
                let is_new = !is_behind && seen.insert(path.clone());
                if is_new && matches!(node, Node::Link(_)) {
                    links.insert(path.clone());
                }
                is_new
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_happens_is_what_the_model_says(
        files in sandbox_files(),
        context in context(),
        source in prop_oneof![Just(String::new()), path()],
        destination in path(),
        slash in any::<bool>(),
        mode in prop::option::of(Just(0o750_u32)),
    ) {
        let sandbox = Sandbox::new();
        let root = fs::canonicalize(sandbox.0.path()).unwrap();
        write(&root, &files);
        let destination = format!("/{destination}{}", if slash { "/" } else { "" });
        let glob = if source.is_empty() { "**".to_owned() } else { source.clone() };
        let told = Copy {
            destination: format!("{}{destination}", root.display()),
            mode,
            ..sandbox.step(&glob, "")
        };
        let outcome = carry_out(&told, &archive_of(&root, &context));
        let modelled = model::copy(&files, &context, &model::Step { source, destination, mode });
        match (outcome, modelled) {
            (Ok(_), Ok(expected)) => {
                let mut found = Files::new();
                read(&root, "", &mut found);
                prop_assert_eq!(found, expected);
            }
            (Err(_), Err(_)) => {}
            (outcome, modelled) => prop_assert!(false, "{:?} and not {:?}", outcome.map_err(|e| e.to_string()), modelled),
        }
    }
}
