//! Layers that are right come out as they went in; whatever is wrong is refused, and touches nothing outside.
#![expect(clippy::print_stderr, reason = "a test that does not run says so")]
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::testing::{Raw, Tar, gzip, zstd};

const LIMITS: Limits = Limits {
    bytes: 64 << 20,
    entries: 10_000,
};

/// A directory beside others that nobody may touch.
struct Place {
    all: TempDir,
}

impl Place {
    /// `None`, and says so, where layers cannot be unpacked: they need root, for owners and whiteouts.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: unpacks layers, run it as root");
            return None;
        }
        let all = tempfile::tempdir().unwrap();
        fs::create_dir(all.path().join("layer")).unwrap();
        fs::create_dir(all.path().join("outside")).unwrap();
        fs::write(all.path().join("outside/file"), "untouched").unwrap();
        Some(Self { all })
    }

    fn layer(&self) -> std::path::PathBuf {
        self.all.path().join("layer")
    }

    fn unpack(&self, bytes: &[u8]) -> Result<Unpacked, LayerError> {
        let done = unpack(bytes, &self.layer(), LIMITS);
        self.nothing_outside_was_touched();
        done
    }

    fn nothing_outside_was_touched(&self) {
        let names = |path: &str| {
            let mut names: Vec<_> = fs::read_dir(self.all.path().join(path))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(""), ["layer", "outside"]);
        assert_eq!(names("outside"), ["file"]);
        let outside = self.all.path().join("outside/file");
        assert_eq!(fs::read(&outside).unwrap(), b"untouched");
        let meta = fs::symlink_metadata(&outside).unwrap();
        assert_eq!((meta.nlink(), meta.mode() & 0o7777, meta.uid()), (1, 0o644, 0));
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.layer().join(path)).unwrap()
    }

    fn meta(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.layer().join(path)).unwrap()
    }

    fn is_whiteout(&self, path: &str) -> bool {
        let meta = self.meta(path);
        meta.file_type().is_char_device() && meta.rdev() == 0
    }

    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let mut value = [0; 1024];
        let bytes = rustix::fs::lgetxattr(self.layer().join(path), name, &mut value[..]).ok()?;
        Some(value[..bytes].to_vec())
    }

    fn is_opaque(&self, path: &str) -> bool {
        self.xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
    }
}

fn refused(tar: Tar) -> String {
    let Some(place) = Place::new() else {
        return String::new();
    };
    match place.unpack(&tar.end()) {
        Err(LayerError::Refused { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

macro_rules! place {
    () => {
        match Place::new() {
            Some(place) => place,
            None => return,
        }
    };
}

#[test]
fn files_links_and_directories_come_out_as_they_went_in() {
    let place = place!();
    let tar = Tar::new()
        .dir("./")
        .raw(&Raw {
            path: b"bin/",
            flag: b'5',
            mode: 0o1755,
            uid: 5,
            gid: 6,
            ..Raw::PLAIN
        })
        .raw(&Raw {
            path: b"bin/su",
            mode: 0o6755,
            uid: 0,
            gid: 65535,
            body: b"program",
            ..Raw::PLAIN
        })
        .link("bin/sudo", "bin/su")
        .symlink("sbin", "/bin")
        .raw(&Raw {
            path: b"pipe",
            flag: b'6',
            mode: 0o622,
            ..Raw::PLAIN
        })
        .end();
    let unpacked = place.unpack(&tar).unwrap();
    assert_eq!(unpacked.diff, Digest::of(&tar));
    assert_eq!(unpacked.blob, Digest::of(&tar));
    assert_eq!(
        (unpacked.entries, unpacked.passed_over, unpacked.implied.len()),
        (6, 0, 0)
    );
    assert_eq!(place.read("bin/su"), "program");
    let su = place.meta("bin/su");
    assert_eq!(
        (su.mode() & 0o7777, su.uid(), su.gid(), su.nlink(), su.mtime()),
        (0o6755, 0, 65535, 2, 1_500_000_000)
    );
    assert_eq!(place.meta("bin/sudo").ino(), su.ino());
    let bin = place.meta("bin");
    assert_eq!(
        (bin.mode() & 0o7777, bin.uid(), bin.gid(), bin.mtime()),
        (0o1755, 5, 6, 1_500_000_000)
    );
    assert_eq!(
        fs::read_link(place.layer().join("sbin"))
            .unwrap()
            .as_os_str()
            .as_bytes(),
        b"/bin"
    );
    assert_eq!(place.meta("sbin").mtime(), 1_500_000_000);
    assert!(place.meta("pipe").file_type().is_fifo());
    assert_eq!(place.meta("pipe").mode() & 0o7777, 0o622);
    assert_eq!(place.meta("").mtime(), 1_500_000_000);
}

#[test]
fn a_layer_is_the_same_however_it_is_compressed() {
    let tar = Tar::new().file("a", &[7; 100_000]).end();
    let halves = [gzip(&tar[..300]), gzip(&tar[300..])].concat();
    let frames = [
        zstd(&tar[..700]),
        vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3],
        zstd(&tar[700..]),
    ]
    .concat();
    for bytes in [tar.clone(), gzip(&tar), halves, zstd(&tar), frames] {
        let place = place!();
        let unpacked = place.unpack(&bytes).unwrap();
        assert_eq!(
            (unpacked.diff, unpacked.blob),
            (Digest::of(&tar), Digest::of(&bytes))
        );
        assert_eq!(
            (unpacked.bytes, unpacked.blob_bytes),
            (tar.len() as u64, bytes.len() as u64)
        );
        assert_eq!(place.read("a").len(), 100_000);
    }
}

#[test]
fn what_layers_are_not_compressed_by_is_refused_by_name() {
    let place = place!();
    for (bytes, name) in [(b"BZh91AY&SY".as_slice(), "bzip2"), (b"\xfd7zXZ\0\0", "xz")] {
        assert!(matches!(place.unpack(bytes), Err(LayerError::Compression(found)) if found == name));
    }
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let place = place!();
    let tar = Tar::new()
        .dir("a")
        .file("a/.wh.gone", b"")
        .file("a/.wh..wh.plnk", b"")
        .dir("b")
        .file("b/.wh..wh..opq", b"");
    let unpacked = place.unpack(&tar.end()).unwrap();
    assert!(place.is_whiteout("a/gone"));
    assert!(place.is_opaque("b"));
    assert!(!place.is_opaque("a"));
    assert_eq!(fs::read_dir(place.layer().join("a")).unwrap().count(), 1);
    assert_eq!(place.meta("a").mtime(), 1_500_000_000);
    assert!(!unpacked.hides_all);
}

#[test]
fn a_whiteout_hides_what_is_below_and_not_what_is_beside_it_in_any_order() {
    for orders in [[0, 1], [1, 0]] {
        let place = place!();
        let mut tar = Tar::new();
        for which in orders {
            tar = match which {
                0 => tar
                    .file(".wh.dir", b"")
                    .file(".wh.file", b"")
                    .file(".wh.deep", b""),
                _ => tar
                    .dir("dir")
                    .file("dir/new", b"1")
                    .file("file", b"2")
                    .file("deep/new", b"3"),
            };
        }
        let unpacked = place.unpack(&tar.end()).unwrap();
        assert_eq!(
            (place.read("dir/new"), place.read("file"), place.read("deep/new")),
            ("1".into(), "2".into(), "3".into())
        );
        assert!(place.is_opaque("dir"));
        assert!(place.is_opaque("deep"));
        assert!(
            unpacked.implied.is_empty(),
            "what hides everything below has nothing from there"
        );
    }
}

#[test]
fn a_root_that_hides_everything_says_so() {
    let place = place!();
    assert!(
        place
            .unpack(&Tar::new().file(".wh..wh..opq", b"").file("a", b"").end())
            .unwrap()
            .hides_all
    );
}

#[test]
fn the_later_of_two_entries_wins() {
    let place = place!();
    let tar = Tar::new()
        .file("a", b"first")
        .file("a", b"second")
        .dir("d")
        .file("d/e/f", b"below")
        .file("d", b"a file now")
        .file("f", b"a directory soon")
        .dir("f")
        .file("f/g", b"x")
        .symlink("s", "/outside")
        .file("s", b"no link")
        .link("s2", "s")
        .link("s2", "s")
        .end();
    let unpacked = place.unpack(&tar).unwrap();
    assert_eq!(
        (
            place.read("a"),
            place.read("d"),
            place.read("f/g"),
            place.read("s")
        ),
        ("second".into(), "a file now".into(), "x".into(), "no link".into())
    );
    assert_eq!(place.meta("s").nlink(), 2);
    assert!(unpacked.implied.is_empty());
}

#[test]
fn a_directory_is_as_its_entry_says_even_after_its_children() {
    let place = place!();
    let tar = Tar::new()
        .file("d/a", b"1")
        .raw(&Raw {
            path: b"d",
            flag: b'5',
            mode: 0o700,
            uid: 7,
            mtime: 1_400_000_000,
            ..Raw::PLAIN
        })
        .file("e", b"2")
        .file("d/b", b"3")
        .end();
    let unpacked = place.unpack(&tar).unwrap();
    let dir = place.meta("d");
    assert_eq!(
        (dir.mode() & 0o7777, dir.uid(), dir.mtime()),
        (0o700, 7, 1_400_000_000)
    );
    assert!(unpacked.implied.is_empty());
}

#[test]
fn directories_that_are_only_implied_are_told_of() {
    let place = place!();
    let tar = Tar::new()
        .file("home/user/.ssh/config", b"")
        .dir("home/user/.ssh")
        .file("gone/x", b"")
        .file("gone", b"")
        .end();
    let unpacked = place.unpack(&tar).unwrap();
    assert_eq!(unpacked.implied, [b"home".to_vec(), b"home/user".to_vec()]);
    assert_eq!(place.meta("home").mtime(), 0);
    assert_eq!(place.meta("home").mode() & 0o7777, 0o755);
}

#[test]
fn names_may_be_long_and_absolute() {
    let place = place!();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(250));
    let tar = Tar::new()
        .pax(&[("path", long.as_bytes()), ("mtime", b"1.25")])
        .file("short", b"pax")
        .long(b'L', format!("{long}2").as_bytes())
        .file("short", b"gnu")
        .long(b'K', "t".repeat(300).as_bytes())
        .symlink("link", "short")
        .file("/abs/olute", b"in here")
        .file("//./abs///./two", b"too")
        .end();
    place.unpack(&tar).unwrap();
    assert_eq!(
        (place.read(&long), place.read(&format!("{long}2"))),
        ("pax".into(), "gnu".into())
    );
    let meta = place.meta(&long);
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1, 250_000_000));
    assert_eq!(
        fs::read_link(place.layer().join("link"))
            .unwrap()
            .as_os_str()
            .len(),
        300
    );
    assert_eq!(
        (place.read("abs/olute"), place.read("abs/two")),
        ("in here".into(), "too".into())
    );
}

#[test]
fn only_attributes_that_mean_the_same_here_are_kept() {
    let place = place!();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let of_root = [&[1, 0, 0, 3], &capability[4..], &[0; 4]].concat();
    let of_another = [&[1, 0, 0, 3], &capability[4..], &[1, 0, 0, 0]].concat();
    let tar = Tar::new()
        .pax(&[
            ("SCHILY.xattr.user.a", b"\0\x01binary\n="),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"label"),
            ("SCHILY.xattr.system.posix_acl_access", b"\x02"),
        ])
        .file("a", b"")
        .pax(&[
            ("LIBARCHIVE.xattr.user.%62", b"aGVsbG8"),
            ("SCHILY.xattr.security.capability", &of_root),
        ])
        .file("b", b"")
        .pax(&[
            ("SCHILY.xattr.security.capability", &of_another),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .dir("d")
        .pax(&[("SCHILY.xattr.user.a", b"x")])
        .symlink("s", "a")
        .end();
    let unpacked = place.unpack(&tar).unwrap();
    assert_eq!(unpacked.passed_over, 8);
    assert_eq!(place.xattr("a", "user.a").unwrap(), b"\0\x01binary\n=");
    assert_eq!(place.xattr("a", "security.capability").unwrap(), capability);
    assert_eq!(place.xattr("b", "user.b").unwrap(), b"hello");
    assert_eq!(place.xattr("b", "security.capability").unwrap(), capability);
    assert!(place.xattr("a", "user.overlay.opaque").is_none());
    assert!(!place.is_opaque("a") && !place.is_opaque("d"));
}

#[test]
fn files_with_holes_come_out_whole() {
    let place = place!();
    let mut old = [0; 512];
    old[..6].copy_from_slice(b"sparse");
    old[100..107].copy_from_slice(b"0000644");
    old[124..135].copy_from_slice(b"00000000006");
    old[156] = b'S';
    old[257..265].copy_from_slice(b"ustar  \0");
    let number = |value: u64| format!("{value:011o}\0").into_bytes();
    for (at, value) in [(386, 5), (398, 3), (410, 1_000_000), (422, 2), (483, 2_000_000)] {
        old[at..at + 12].copy_from_slice(&number(value));
    }
    old[482] = 1;
    let mut more = [0; 512];
    more[..12].copy_from_slice(&number(1_000_100));
    more[12..24].copy_from_slice(&number(1));
    let mut tar = Tar::new().block(old).cut();
    tar.extend_from_slice(&more);
    let mut tar = [tar, Tar::new().body(b"abcdef").cut()].concat();
    tar.extend(
        Tar::new()
            .pax(&[
                ("GNU.sparse.map", b"5,3,1000000,2,1000100,1"),
                ("GNU.sparse.size", b"2000000"),
                ("GNU.sparse.name", b"v01"),
            ])
            .file("x", b"abcdef")
            .pax(&[
                ("GNU.sparse.size", b"2000000"),
                ("GNU.sparse.offset", b"5"),
                ("GNU.sparse.numbytes", b"3"),
                ("GNU.sparse.offset", b"1000000"),
                ("GNU.sparse.numbytes", b"2"),
                ("GNU.sparse.offset", b"1000100"),
                ("GNU.sparse.numbytes", b"1"),
            ])
            .file("v00", b"abcdef")
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"v10"),
                ("GNU.sparse.realsize", b"2000000"),
            ])
            .file(
                "y",
                &[
                    Tar::new().body(b"3\n5\n3\n1000000\n2\n1000100\n1\n").cut(),
                    b"abcdef".to_vec(),
                ]
                .concat(),
            )
            .file("after", b"whole")
            .end(),
    );
    place.unpack(&tar).unwrap();
    for name in ["sparse", "v01", "v00", "v10"] {
        let bytes = fs::read(place.layer().join(name)).unwrap();
        assert_eq!(bytes.len(), 2_000_000, "{name}");
        assert_eq!(
            (&bytes[5..8], &bytes[1_000_000..1_000_002], bytes[1_000_100]),
            (b"abc".as_slice(), b"de".as_slice(), b'f'),
            "{name}"
        );
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 6, "{name}");
        assert!(place.meta(name).blocks() < 64, "{name} has no holes");
    }
    assert_eq!(place.read("after"), "whole");
}

#[test]
fn names_that_lead_up_are_refused() {
    for path in [
        "../outside/file",
        "a/../../outside/new",
        "..",
        "/../outside/new",
        "a/b/../c",
    ] {
        assert_eq!(
            refused(Tar::new().dir("a").file(path, b"evil")).replace("the name has '..' in it", ""),
            "",
            "{path}"
        );
    }
    let tar = Tar::new().link("a", "../outside/file");
    let why = refused(tar);
    assert!(why.is_empty() || why.contains(".."), "{why}");
}

#[test]
fn links_that_lead_out_lead_into_the_layer() {
    for to in [
        "../outside",
        "../../../../../../outside",
        "/outside",
        "a/../../outside",
        "/../outside",
    ] {
        let place = place!();
        let tar = Tar::new()
            .dir("a")
            .dir("outside")
            .symlink("l", to)
            .file("l/file", b"within")
            .file("l/new", b"within")
            .dir("l/dir")
            .file("l/.wh.gone", b"")
            .end();
        place.unpack(&tar).unwrap();
        assert_eq!(
            (place.read("outside/file"), place.read("outside/new")),
            ("within".into(), "within".into()),
            "{to}"
        );
        assert!(place.is_whiteout("outside/gone"));
    }
}

#[test]
fn a_link_in_the_place_of_a_file_or_a_directory_is_not_followed() {
    let place = place!();
    let out = place.all.path().join("outside").display().to_string();
    let tar = Tar::new()
        .symlink("f", &format!("{out}/file"))
        .file("f", b"evil")
        .symlink("d", &out)
        .dir("d")
        .file("d/file", b"evil")
        .symlink("w", &out)
        .file("w/.wh.file", b"")
        .file("w/.wh..wh..opq", b"")
        .symlink("g", &format!("{out}/file"))
        .link("h", "g")
        .raw(&Raw {
            path: b"h",
            mode: 0o777,
            uid: 99,
            body: b"evil",
            ..Raw::PLAIN
        })
        .end();
    place.unpack(&tar).unwrap();
    assert_eq!(
        (place.read("f"), place.read("d/file"), place.read("h")),
        ("evil".into(), "evil".into(), "evil".into())
    );
    assert!(place.meta("g").file_type().is_symlink());
}

#[test]
fn hard_links_name_files_of_the_same_layer_only() {
    let out = "/etc/passwd";
    for to in [out, "missing", "d/missing", "file/below"] {
        let why = refused(Tar::new().dir("d").file("file", b"").link("l", to));
        assert!(why.is_empty() || why.contains("not in this layer"), "{why}");
    }
    for (tar, word) in [
        (Tar::new().dir("d").link("l", "d"), "neither"),
        (Tar::new().file(".wh.w", b"").link("l", "w"), "not in this layer"),
        (Tar::new().link("l", "/"), "root"),
        (
            Tar::new().symlink("o", "/../outside").link("l", "o/file"),
            "not in this layer",
        ),
    ] {
        let why = refused(tar);
        assert!(why.is_empty() || why.contains(word), "{why}");
    }
}

#[test]
fn circles_of_links_end() {
    for tar in [
        Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b""),
        Tar::new().symlink("a", "a/a/a/a").file("a/x", b""),
    ] {
        let why = refused(tar);
        assert!(
            why.is_empty() || why.contains("too many links") || why.contains("too deep"),
            "{why}"
        );
    }
}

#[test]
fn depth_is_bounded_by_names_and_by_links() {
    let deep = "d/".repeat(300);
    let why = refused(
        Tar::new()
            .pax(&[("path", format!("{deep}x").as_bytes())])
            .file("x", b""),
    );
    assert!(why.is_empty() || why.contains("too deep"), "{why}");
    let half = "d/".repeat(200);
    let tar = Tar::new()
        .pax(&[("path", half.as_bytes())])
        .dir("x")
        .pax(&[("linkpath", half.as_bytes())])
        .symlink("l", "x")
        .pax(&[("path", format!("l/{half}x").as_bytes())])
        .file("x", b"");
    let why = refused(tar);
    assert!(why.is_empty() || why.contains("too deep"), "{why}");
}

#[test]
fn devices_are_passed_over_and_the_one_that_means_deleted_is_refused() {
    let place = place!();
    let null = Raw {
        path: b"dev/null",
        flag: b'3',
        device: (1, 3),
        ..Raw::PLAIN
    };
    let disk = Raw {
        path: b"dev/sda",
        flag: b'4',
        device: (8, 0),
        ..Raw::PLAIN
    };
    let unpacked = place
        .unpack(&Tar::new().dir("dev").raw(&null).raw(&disk).end())
        .unwrap();
    assert_eq!(unpacked.passed_over, 2);
    assert_eq!(fs::read_dir(place.layer().join("dev")).unwrap().count(), 0);
    let why = refused(Tar::new().raw(&Raw {
        device: (0, 0),
        ..null
    }));
    assert!(why.contains("0:0"), "{why}");
}

#[test]
fn owners_beyond_those_of_a_sandbox_are_refused() {
    for (uid, gid) in [(65536, 0), (0, 65536), (u64::from(u32::MAX), 0), (1 << 33, 0)] {
        let why = refused(Tar::new().raw(&Raw {
            path: b"a",
            uid,
            gid,
            ..Raw::PLAIN
        }));
        assert!(why.is_empty() || why.contains("owner"), "{why}");
    }
    let why = refused(Tar::new().pax(&[("uid", b"70000")]).file("a", b""));
    assert!(why.is_empty() || why.contains("70000"), "{why}");
}

#[test]
fn names_of_wrong_lengths_and_whiteouts_of_nothing_are_refused() {
    let long = "n".repeat(256);
    let path = "p/".repeat(2100);
    for tar in [
        Tar::new().pax(&[("path", long.as_bytes())]).file("a", b""),
        Tar::new().pax(&[("path", path.as_bytes())]).file("a", b""),
        Tar::new().pax(&[("linkpath", &[b'l'; 5000])]).symlink("a", "b"),
        Tar::new().file(".wh.", b""),
        Tar::new().file("a/.wh..", b""),
        Tar::new().file(".wh....", b"").file(".wh...", b""),
        Tar::new().file(".wh.d/x", b""),
        Tar::new().file("a", b"").file("a/b", b""),
        Tar::new().symlink("/", "x"),
    ] {
        refused(tar);
    }
}

#[test]
fn more_bytes_or_entries_than_allowed_are_not_unpacked() {
    let place = place!();
    let bomb = gzip(&Tar::new().file("zeros", &vec![0; 65 << 20]).end());
    assert!(bomb.len() < 1 << 20);
    assert!(matches!(
        place.unpack(&bomb),
        Err(LayerError::TooLarge { what: "bytes", .. })
    ));
    let mut many = Tar::new();
    for _ in 0..10_001 {
        many = many.file("same", b"");
    }
    let place = place!();
    assert!(matches!(
        place.unpack(&many.end()),
        Err(LayerError::TooLarge { what: "entries", .. })
    ));
    // A hole is not paid for, but has its bound too.
    let place = place!();
    let holey = Tar::new()
        .pax(&[
            ("GNU.sparse.map", b"0,1"),
            ("GNU.sparse.size", b"9000000000000000000"),
        ])
        .file("x", b"a")
        .end();
    assert!(matches!(place.unpack(&holey), Err(LayerError::Refused { .. })));
}

#[test]
fn an_archive_that_ends_early_is_no_layer() {
    let whole = gzip(&Tar::new().file("a", &[1; 5000]).file("b", &[2; 5000]).end());
    for end in [0, 5, 20, whole.len() / 2, whole.len() - 1] {
        let place = place!();
        let cut = place.unpack(&whole[..end]);
        // An empty input is an empty tar; its digest is not the one that is expected.
        assert!(cut.is_err() || end == 0, "{end}: {cut:?}");
    }
}

/// Entries as an adversary would choose them: few names, so that they meet.
fn hostile() -> impl Strategy<Value = Vec<(u8, String, String)>> {
    let name = prop::sample::select(vec![
        "a",
        "b",
        "l",
        "..",
        ".",
        "",
        ".wh.a",
        ".wh.b",
        ".wh..wh..opq",
        "outside",
        "file",
    ]);
    let path = prop::collection::vec(name, 1..5).prop_map(|parts| parts.join("/"));
    let to = prop_oneof![
        path.clone(),
        Just("/".to_owned()),
        Just("..".to_owned()),
        Just("../outside".to_owned()),
        Just("/../../outside/file".to_owned()),
        path.clone().prop_map(|path| format!("/{path}")),
    ];
    let flag = prop::sample::select(b"0012223556".to_vec());
    prop::collection::vec((flag, path, to), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nothing_that_an_archive_says_touches_what_is_outside(entries in hostile()) {
        if let Some(place) = Place::new() {
            // What was refused is left out, so that the rest is tried too.
            for (flag, path, link) in &entries {
                let mut tar = Tar::new();
                for other in &entries {
                    tar = tar.raw(&Raw { path: other.1.as_bytes(), flag: other.0, link: other.2.as_bytes(), body: if other.0 == b'0' { b"evil" } else { b"" }, mode: 0o777, uid: 9, device: (1, 1), ..Raw::PLAIN });
                    if (&other.0, &other.1, &other.2) == (flag, path, link) {
                        break;
                    }
                }
                let _ = place.unpack(&tar.end());
            }
            // Whatever is within can be walked and removed: no device that acts, nothing that leads out.
            let mut ahead = vec![place.layer()];
            while let Some(dir) = ahead.pop() {
                for entry in fs::read_dir(dir).unwrap() {
                    let entry = entry.unwrap();
                    let kind = entry.file_type().unwrap();
                    prop_assert!(!kind.is_block_device() && !kind.is_socket());
                    if kind.is_char_device() {
                        prop_assert_eq!(entry.metadata().unwrap().rdev(), 0);
                    }
                    if kind.is_dir() {
                        ahead.push(entry.path());
                    }
                }
            }
        }
    }
}

#[test]
fn permissions_do_not_depend_on_the_mask_of_the_process() {
    let place = place!();
    place
        .unpack(
            &Tar::new()
                .raw(&Raw {
                    path: b"i/f",
                    mode: 0o666,
                    ..Raw::PLAIN
                })
                .raw(&Raw {
                    path: b"p",
                    flag: b'6',
                    mode: 0o666,
                    ..Raw::PLAIN
                })
                .end(),
        )
        .unwrap();
    assert_eq!(
        fs::metadata(place.layer().join("i/f"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o666
    );
    assert_eq!(place.meta("p").mode() & 0o777, 0o666);
}

#[test]
fn layers_leave_room_to_others() {
    let gib = 1 << 30;
    for (free, total, expected) in [
        (gib, 1000 * gib, true),
        (gib - 1, 1000 * gib, false),
        (gib / 10, gib, true),
        (gib / 10 - 1, gib, false),
        (0, 0, true),
    ] {
        assert_eq!(super::is_enough(free, total), expected, "{free} of {total}");
    }
}
