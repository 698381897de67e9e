use std::io::Read as _;

use super::writing::{MODIFIED, Told, Writer};
use super::*;

/// Everything in an archive: paths, kinds, modes and the content of files.
fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ArchiveError> {
    let mut archive = Archive::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = archive.next()? {
        let mut content = Vec::new();
        archive.read_to_end(&mut content).map_err(ArchiveError::Read)?;
        all.push((entry, content));
    }
    Ok(all)
}

fn one(writer: &Writer) -> Result<Entry, ArchiveError> {
    read(&writer.end()).map(|mut all| all.remove(0).0)
}

#[track_caller]
fn refused(writer: &Writer, why: &str) {
    let error = read(&writer.end()).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn entries_are_what_was_written() {
    let long = [&b"d/"[..], &[b'n'; 200]].concat();
    let mut writer = Writer::default();
    writer
        .directory(b"./d/", 0o2750)
        .file(b"d//a", 0o4755, b"hello")
        .file(&long, 0o600, &[7; 1025])
        .link(b"d/l", &[b'/'; 150])
        .same(b"d/b", b"./d/a")
        .directory(b".", 0o755);
    let all = read(&writer.end()).unwrap();
    let told: Vec<_> = all
        .iter()
        .map(|(entry, content)| (shown(&entry.path), entry.mode, content.len()))
        .collect();
    let name = |path: &str, mode: u32, bytes: usize| (path.to_owned(), mode, bytes);
    let expected = [
        name("d", 0o2750, 0),
        name("d/a", 0o4755, 5),
        name(&shown(&long), 0o600, 1025),
        name("d/l", 0o777, 0),
        name("d/b", 0o644, 0),
        name("", 0o755, 0),
    ];
    assert_eq!(told, expected);
    assert_eq!(all[1].0.kind, Kind::File { bytes: 5 });
    assert_eq!(all[3].0.kind, Kind::Link(vec![b'/'; 150]));
    assert_eq!(all[4].0.kind, Kind::Same(b"d/a".to_vec()));
    assert_eq!(all[0].0.modified, MODIFIED);
}

#[test]
fn what_was_not_read_is_skipped() {
    let mut writer = Writer::default();
    writer.file(b"a", 0o644, &[1; 5000]).file(b"b", 0o644, b"b");
    let end = writer.end();
    let mut archive = Archive::new(&end[..]);
    assert_eq!(archive.next().unwrap().unwrap().path, b"a");
    archive.read_exact(&mut [0; 10]).unwrap();
    assert_eq!(archive.next().unwrap().unwrap().path, b"b");
    assert!(archive.next().unwrap().is_none() && archive.next().unwrap().is_none());
}

#[test]
fn records_say_it_better() {
    let path = format!("ä/{}", "x".repeat(200));
    let mut writer = Writer::default();
    writer
        .pax(b'g', &[("comment", "of all")])
        .pax(
            b'x',
            &[
                ("path", &path),
                ("size", "3"),
                ("mtime", "12.75"),
                ("SCHILY.dev", "1"),
            ],
        )
        .header(&Told {
            path: b"x",
            kind: b'0',
            link: b"",
            size: 0,
            mode: 0o644,
        })
        .content(b"abc")
        .file(b"y", 0o644, b"next");
    let all = read(&writer.end()).unwrap();
    assert_eq!(
        (all[0].0.path.as_slice(), all[0].0.modified),
        (path.as_bytes(), 12)
    );
    assert_eq!(
        (all[0].1.as_slice(), all[1].1.as_slice()),
        (&b"abc"[..], &b"next"[..])
    );
}

#[test]
fn a_path_leads_nowhere_but_into_the_archive() {
    for path in ["/etc/passwd", "../a", "a/../../b", "a/..", "..", "/"] {
        refused(
            Writer::default().file(path.as_bytes(), 0o644, b""),
            "leads out of it",
        );
        refused(
            Writer::default().directory(path.as_bytes(), 0o644),
            "leads out of it",
        );
        refused(Writer::default().same(b"x", path.as_bytes()), "leads out of it");
        refused(
            Writer::default()
                .pax(b'x', &[("path", path)])
                .file(b"x", 0o644, b""),
            "leads out of it",
        );
    }
    let link = one(Writer::default().link(b"x", b"../../etc")).unwrap();
    assert_eq!(
        link.kind,
        Kind::Link(b"../../etc".to_vec()),
        "a link says what it says"
    );
}

#[test]
fn what_no_path_can_be_is_refused() {
    refused(Writer::default().file(b"", 0o644, b""), "no path");
    refused(Writer::default().file(b".", 0o644, b""), "no name");
    refused(Writer::default().link(b"x", b""), "leads nowhere");
    refused(Writer::default().same(b"x", b"."), "no name");
    refused(Writer::default().file(&[b'x'; 256], 0o644, b""), "255 bytes");
    refused(
        Writer::default().file(
            &[b"xy".repeat(100), b"/".to_vec()].concat().repeat(30),
            0o644,
            b"",
        ),
        "4095 bytes",
    );
    refused(
        Writer::default()
            .pax(b'x', &[("path", "a\0b")])
            .file(b"x", 0o644, b""),
        "no path",
    );
}

#[test]
fn what_is_not_copied_is_named() {
    for (kind, what) in [
        (b'3', "a device"),
        (b'4', "a device"),
        (b'6', "a named pipe"),
        (b'S', "holes"),
        (b'V', "kind"),
    ] {
        let told = Told {
            path: b"thing",
            kind,
            link: b"",
            size: 0,
            mode: 0o644,
        };
        refused(Writer::default().header(&told), what);
        refused(Writer::default().header(&told), "'thing'");
    }
    let mut sparse = Writer::default();
    refused(
        sparse
            .pax(b'x', &[("GNU.sparse.major", "1")])
            .file(b"x", 0o644, b""),
        "holes",
    );
}

#[test]
fn sizes_that_lie_are_no_memory() {
    for size in [1 << 20, 1 << 41, u64::MAX] {
        let mut writer = Writer::default();
        writer
            .header(&Told {
                path: b"x",
                kind: b'0',
                link: b"",
                size,
                mode: 0o644,
            })
            .content(b"abc");
        assert!(read(&writer.end()).is_err(), "{size}");
        for kind in [b'x', b'g', b'L', b'K'] {
            let mut writer = Writer::default();
            writer.header(&Told {
                path: b"x",
                kind,
                link: b"",
                size: size + u64::from(size < u64::MAX),
                mode: 0o644,
            });
            refused(&writer, "a megabyte of names");
        }
    }
    let mut directory = Writer::default();
    directory.header(&Told {
        path: b"x",
        kind: b'5',
        link: b"",
        size: 1,
        mode: 0o644,
    });
    refused(&directory, "content of what has none");
    let mut number = Writer::default();
    refused(
        number
            .pax(b'x', &[("size", "99999999999999999999999")])
            .file(b"x", 0o644, b""),
        "pax record",
    );
}

#[test]
fn names_are_bounded_however_they_are_spread() {
    let mut writer = Writer::default();
    let told = Told {
        path: b"L",
        kind: b'L',
        link: b"",
        size: SAID_BYTES_MAX,
        mode: 0o644,
    };
    writer
        .header(&told)
        .content(&vec![b'a'; usize::try_from(SAID_BYTES_MAX).unwrap()]);
    let again = writer.cut();
    let mut archive = Archive::new(Repeated { bytes: &again, at: 0 });
    assert!(
        archive
            .next()
            .unwrap_err()
            .to_string()
            .contains("a gigabyte of names")
    );
}

/// The same again and again.
struct Repeated<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl std::io::Read for Repeated<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = (&self.bytes[self.at..]).read(buffer)?;
        self.at = (self.at + read) % self.bytes.len();
        Ok(read)
    }
}

#[test]
fn an_archive_that_is_cut_is_never_whole() {
    let mut writer = Writer::default();
    writer
        .file(b"a", 0o644, &[1; 600])
        .pax(b'x', &[("mtime", "1")])
        .file(b"b", 0o644, b"b");
    let whole = writer.cut();
    for length in 0..whole.len() {
        let error = read(&whole[..length]).unwrap_err();
        assert!(
            matches!(
                error,
                ArchiveError::Cut | ArchiveError::NoArchive | ArchiveError::Read(_)
            ),
            "{length}: {error}"
        );
    }
    assert!(
        matches!(read(&whole), Err(ArchiveError::Cut)),
        "without an end nobody knows what is missing"
    );
    assert_eq!(read(&writer.end()).unwrap().len(), 2);
    let only = Writer::default().pax(b'x', &[("mtime", "1")]).end();
    assert!(
        matches!(read(&only), Err(ArchiveError::Cut)),
        "what was said is of nothing"
    );
}

/// A fuzzer found one that was whole or broken by how it arrived: what lay behind the archive's end was not looked at.
#[test]
fn what_is_packed_is_refused_where_it_was_harmed_also_behind_the_archives_end() {
    use std::io::Write as _;

    use crate::copy::upload::Unpacked;

    let mut writer = Writer::default();
    writer.file(b"a", 0o644, b"hello");
    let archive = [writer.end(), vec![0; 10_240]].concat();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive).unwrap();
    let packed = gzip.finish().unwrap();
    let unpack = |packed: &[u8]| {
        let mut archive = Archive::new(Unpacked::of(packed).unwrap());
        assert!(archive.next().unwrap().is_some());
        archive.next().map(|end| assert_eq!(end, None))
    };
    unpack(&packed).unwrap();
    let mut harmed = packed.clone();
    // The checksum that gzip ends by.
    let at = harmed.len() - 8;
    harmed[at] ^= 1;
    assert!(matches!(unpack(&harmed), Err(ArchiveError::Read(_))));
    assert!(matches!(
        unpack(&packed[..packed.len() - 1]),
        Err(ArchiveError::Cut)
    ));
}

#[test]
fn what_is_no_archive_is_none() {
    for bytes in [&b""[..], b"hello", &[b'x'; 4096], b"PK\x03\x04"] {
        assert!(matches!(read(bytes), Err(ArchiveError::NoArchive)));
    }
    assert!(read(&[0; 1024]).unwrap().is_empty());
    let mut broken = Writer::default()
        .file(b"a", 0o644, b"")
        .file(b"b", 0o644, b"")
        .end();
    broken[512] ^= 1;
    assert!(matches!(read(&broken), Err(ArchiveError::Broken(..))));
}
