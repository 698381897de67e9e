//! Archives as they are written by programs, and as nobody should write them.
use std::process::Command;

use super::*;
use crate::testing::{Raw, Tar};

fn all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut archive = Archive::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = archive.next()? {
        let mut body = Vec::new();
        let mut piece = [0; 100];
        loop {
            match archive.read(&mut piece)? {
                0 => break,
                read => body.extend_from_slice(&piece[..read]),
            }
        }
        all.push((entry, body));
    }
    archive.drain()?;
    assert_eq!(archive.at(), bytes.len() as u64, "all of it is read");
    Ok(all)
}

fn refused(tar: Tar) -> String {
    all(&tar.end()).unwrap_err().to_string()
}

#[test]
fn what_the_tar_of_this_machine_writes_is_read_back_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let long = "n".repeat(180);
    std::fs::create_dir_all(dir.path().join(format!("in/{long}"))).unwrap();
    std::fs::write(dir.path().join(format!("in/{long}/{long}")), b"deep").unwrap();
    std::fs::write(dir.path().join("in/plain"), vec![b'x'; 1000]).unwrap();
    std::fs::hard_link(dir.path().join("in/plain"), dir.path().join("in/second")).unwrap();
    std::os::unix::fs::symlink("y".repeat(150), dir.path().join("in/link")).unwrap();
    let holey = std::fs::File::create(dir.path().join("in/holey")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holey, b"middle", 5_000_000).unwrap();
    holey.set_len(10_000_000).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix"],
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ] {
        let made = Command::new("tar")
            .args(format)
            .args(["-C"])
            .arg(dir.path())
            .args(["-cf", "-", "in"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{format:?}");
        let entries = all(&made.stdout).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        let find = |name: &str| {
            entries
                .iter()
                .find(|(entry, _)| entry.path == format!("in/{name}").as_bytes())
                .unwrap_or_else(|| panic!("{format:?}: {name}"))
        };
        assert_eq!(find(&format!("{long}/{long}")).1, b"deep");
        assert_eq!(find("link").0.what, What::Symlink("y".repeat(150).into_bytes()));
        let links = entries
            .iter()
            .filter(|(entry, _)| matches!(entry.what, What::Link(_)))
            .count();
        assert_eq!(links, 1);
        let (entry, body) = find("holey");
        assert_eq!(entry.size, 10_000_000, "{format:?}");
        let pieces = entry.pieces.clone().unwrap_or_else(|| {
            vec![Piece {
                offset: 0,
                bytes: 10_000_000,
            }]
        });
        assert_eq!(entry.pieces.is_some(), format.contains(&"--sparse"));
        let mut whole = vec![0; 10_000_000];
        let mut at = 0;
        for piece in pieces {
            let (offset, bytes) = (
                usize::try_from(piece.offset).unwrap(),
                usize::try_from(piece.bytes).unwrap(),
            );
            whole[offset..offset + bytes].copy_from_slice(&body[at..at + bytes]);
            at += bytes;
        }
        assert_eq!(&whole[5_000_000..5_000_006], b"middle");
        assert_eq!(whole.iter().filter(|byte| **byte != 0).count(), 6);
    }
}

#[test]
fn numbers_may_be_binary_and_negative() {
    let mut block = [0; 512];
    block[..1].copy_from_slice(b"a");
    block[100..107].copy_from_slice(b"0000644");
    block[116..124].copy_from_slice(b"  17 \0\0\0");
    block[136..148].copy_from_slice(&[0xff; 12]);
    let entries = all(&Tar::new().block(block).end()).unwrap();
    assert_eq!((entries[0].0.gid, entries[0].0.mtime), (0o17, (-1, 0)));
    let entries = all(&Tar::new()
        .pax(&[("mtime", b"-1.25"), ("uid", b"4000000000")])
        .file("a", b"")
        .end())
    .unwrap();
    assert_eq!(
        (entries[0].0.mtime, entries[0].0.uid),
        ((-2, 750_000_000), 4_000_000_000)
    );
    block[124..136].copy_from_slice(&[0xff; 12]);
    assert!(
        all(&Tar::new().block(block).end())
            .unwrap_err()
            .to_string()
            .contains("size")
    );
}

#[test]
fn what_is_said_last_counts_and_what_is_said_empty_is_taken_back() {
    let entries = all(&Tar::new()
        .pax(&[("path", b"x"), ("path", b"y")])
        .file("a", b"")
        .pax(&[("path", b"x"), ("path", b"")])
        .file("b", b"")
        .end())
    .unwrap();
    assert_eq!(
        (entries[0].0.path.as_slice(), entries[1].0.path.as_slice()),
        (b"y".as_slice(), b"b".as_slice())
    );
    let entries = all(&Tar::new()
        .pax(&[("size", b"3")])
        .raw(&Raw {
            path: b"a",
            size: Some(0),
            body: b"abc",
            ..Raw::PLAIN
        })
        .end())
    .unwrap();
    assert_eq!(entries[0].1, b"abc");
}

#[test]
fn only_files_have_bytes() {
    let dir = Raw {
        path: b"d",
        flag: b'5',
        size: Some(5000),
        ..Raw::PLAIN
    };
    let link = Raw {
        path: b"l",
        flag: b'1',
        link: b"d",
        size: Some(5000),
        ..Raw::PLAIN
    };
    assert_eq!(
        all(&Tar::new().raw(&dir).raw(&link).file("a", b"x").end())
            .unwrap()
            .len(),
        3
    );
    let old = Raw {
        path: b"d/",
        flag: 0,
        ..Raw::PLAIN
    };
    assert_eq!(all(&Tar::new().raw(&old).end()).unwrap()[0].0.what, What::Dir);
}

#[test]
fn the_end_may_be_short_and_may_be_followed_by_anything() {
    let one = Tar::new().file("a", b"x");
    for tail in [
        vec![],
        vec![0; 512],
        vec![0; 1024],
        vec![0; 10_240],
        [vec![0; 1024], vec![7; 99]].concat(),
    ] {
        assert_eq!(all(&[one.clone().cut(), tail].concat()).unwrap().len(), 1);
    }
    let gap = [one.clone().cut(), vec![0; 512], one.cut()].concat();
    assert!(all(&gap).unwrap_err().to_string().contains("empty block"));
}

#[test]
fn what_is_broken_is_refused_with_its_place() {
    assert!(matches!(
        all(&[1; 512]).unwrap_err(),
        TarError::Broken { at: 0, .. }
    ));
    assert!(matches!(all(&[1; 100]).unwrap_err(), TarError::Cut(_)));
    let file = Tar::new().file("a", &[1; 600]).cut();
    for cut in [513, 1111, 1535] {
        assert!(
            matches!(all(&file[..cut]).unwrap_err(), TarError::Cut(_)),
            "{cut}"
        );
    }
    for (tar, word) in [
        (
            Tar::new().raw(&Raw {
                path: b"s",
                flag: b'D',
                ..Raw::PLAIN
            }),
            "'D'",
        ),
        (Tar::new().file("", b""), "empty"),
        (Tar::new().symlink("l", ""), "says nothing"),
        (Tar::new().pax(&[("path", b"a\0b")]).file("x", b""), "NUL"),
        (Tar::new().pax(&[("linkpath", b"a\0b")]).symlink("x", "y"), "NUL"),
        (Tar::new().pax(&[("size", b"-1")]).file("x", b""), "number"),
        (Tar::new().pax(&[("mtime", b"x")]).file("x", b""), "time"),
        (
            Tar::new()
                .pax(&[("LIBARCHIVE.xattr.user.a", b"!")])
                .file("x", b""),
            "base64",
        ),
        (
            Tar::new()
                .raw(&Raw {
                    path: b"p",
                    flag: b'x',
                    body: b"99999 path=a\n",
                    ..Raw::PLAIN
                })
                .file("x", b""),
            "extended header",
        ),
        (
            Tar::new()
                .raw(&Raw {
                    path: b"p",
                    flag: b'x',
                    body: b"12 path=abcd",
                    ..Raw::PLAIN
                })
                .file("x", b""),
            "extended header",
        ),
        (
            Tar::new()
                .raw(&Raw {
                    path: b"p",
                    flag: b'x',
                    body: b"5 a\n\n",
                    ..Raw::PLAIN
                })
                .file("x", b""),
            "extended header",
        ),
        (
            Tar::new().extended(b'g', &[("path", b"all")]).file("x", b""),
            "global header that sets path",
        ),
        (
            Tar::new()
                .extended(b'g', &[("SCHILY.xattr.user.a", b"all")])
                .file("x", b""),
            "global",
        ),
    ] {
        let error = refused(tar);
        assert!(error.contains(word), "{error} does not say {word}");
    }
    assert_eq!(
        all(&Tar::new()
            .extended(b'g', &[("comment", b"0123"), ("mtime", b"1")])
            .file("x", b"")
            .end())
        .unwrap()
        .len(),
        1
    );
}

#[test]
fn what_is_too_long_is_not_read() {
    let huge = |flag| Raw {
        path: b"p",
        flag,
        size: Some(1 << 33),
        ..Raw::PLAIN
    };
    for flag in *b"xgLK" {
        let error = refused(Tar::new().raw(&huge(flag)));
        assert!(error.contains("limit"), "{error}");
    }
    let many: Vec<(String, Vec<u8>)> = (0..300)
        .map(|at| (format!("SCHILY.xattr.user.a{at}"), vec![1]))
        .collect();
    let many: Vec<(&str, &[u8])> = many
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_slice()))
        .collect();
    assert!(refused(Tar::new().pax(&many).file("x", b"")).contains("too many"));
}

#[test]
fn maps_of_sparse_files_that_lie_are_refused() {
    let sparse = |map: &str, size: &str| {
        let tar = Tar::new().pax(&[
            ("GNU.sparse.map", map.as_bytes()),
            ("GNU.sparse.size", size.as_bytes()),
        ]);
        refused(tar.file("x", b"abcdef"))
    };
    for (map, size, word) in [
        ("0,3,2,3", "100", "overlap"),
        ("5,3,0,3", "100", "order"),
        ("0,3,99,3", "100", "beyond"),
        ("0,3,50,4", "100", "not as long"),
        ("0,3,50,2", "100", "not as long"),
        ("0", "100", "broken"),
        ("0,x", "100", "broken"),
        ("18446744073709551615,6", "100", "broken"),
        ("0,18446744073709551615,1,7", "100", "overlap"),
    ] {
        let error = sparse(map, size);
        assert!(error.contains(word), "{map}: {error}");
    }
    let in_body = |text: &[u8]| {
        let tar = Tar::new().pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"100"),
        ]);
        refused(tar.file("x", &Tar::new().body(text).cut()))
    };
    for (text, word) in [
        (&b"9999999\n"[..], "too many"),
        (b"1\n0\n", "broken"),
        (b"x\n", "broken"),
        (&[b'1'; 600], "broken"),
        (b"3\n0\n1\n", "broken"),
    ] {
        let error = in_body(text);
        assert!(error.contains(word) || error.contains("in the middle"), "{error}");
    }
    assert!(
        refused(
            Tar::new()
                .pax(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")])
                .file("x", b"")
        )
        .contains("version")
    );
    assert!(refused(Tar::new().pax(&[("GNU.sparse.numbytes", b"2")]).file("x", b"")).contains("map"));
    let endless = {
        let mut first = [0; 512];
        first[..1].copy_from_slice(b"e");
        first[100..107].copy_from_slice(b"0000644");
        first[156] = b'S';
        first[257..265].copy_from_slice(b"ustar  \0");
        first[482] = 1;
        let mut more = [0; 512];
        for field in more[..504].chunks_exact_mut(12) {
            field.copy_from_slice(b"00000000000\0");
        }
        more[504] = 1;
        [Tar::new().block(first).cut(), more.repeat(2000)].concat()
    };
    assert!(all(&endless).unwrap_err().to_string().contains("limit"));
}
