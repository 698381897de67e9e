//! Requests as a kernel says them.
use proptest::prelude::*;

use super::*;

/// Bytes of a request.
pub(crate) fn ask(kind: u32, node: u64, user: (u32, u32), body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEAD_BYTES + body.len()).unwrap();
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&7_u64.to_ne_bytes());
    bytes.extend_from_slice(&node.to_ne_bytes());
    bytes.extend_from_slice(&user.0.to_ne_bytes());
    bytes.extend_from_slice(&user.1.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(body);
    bytes
}

fn check(kind: u32, body: &[u8], expected: Result<Request<'_>, &'static str>) {
    let bytes = ask(kind, 3, (1, 2), body);
    let parsed = Asked::parse(&bytes).map(|asked| {
        let head = Head {
            unique: 7,
            node: 3,
            uid: 1,
            gid: 2,
        };
        assert_eq!(asked.head, head);
        asked.request
    });
    assert_eq!(parsed, expected.map_err(Malformed), "{kind}");
}

#[test]
fn requests_are_what_a_kernel_says() {
    check(1, b"a\0", Ok(Request::Lookup { name: c"a" }));
    check(
        6,
        b"a\0b/../c\0",
        Ok(Request::Symlink {
            name: c"a",
            target: c"b/../c",
        }),
    );
    check(5, b"", Ok(Request::ReadLink));
    check(2, &[0; 8], Ok(Request::Word));
    check(999, b"whatever", Ok(Request::Other));
    let mut rename = 9_u64.to_ne_bytes().to_vec();
    rename.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0]);
    rename.extend_from_slice(b"a\0b\0");
    let expected = Request::Rename {
        name: c"a",
        into: 9,
        new_name: c"b",
        flags: 2,
    };
    check(45, &rename, Ok(expected));
}

#[test]
fn what_no_kernel_says_is_refused() {
    for name in [&b"\0"[..], b".\0", b"..\0", b"a/b\0", b"/\0"] {
        check(1, name, Err("that is no name"));
    }
    check(1, b"a", Err("a name has no end"));
    check(1, b"a\0b", Err("something follows it"));
    let long = [&[b'a'; 256][..], b"\0"].concat();
    check(1, &long, Ok(Request::Impossible(Errno::NAMETOOLONG)));
    let mut read = [0; 40];
    read[16..20].copy_from_slice(&(PIECE_BYTES_MAX + 1).to_ne_bytes());
    check(15, &read, Err("more is asked for at once than was agreed"));
    check(15, &read[..39], Err("more is asked for at once than was agreed"));
    check(15, &[0; 39], Err("it ends early"));
    // A write that says to hold more than it does.
    let mut write = [0; 41];
    write[16..20].copy_from_slice(&2_u32.to_ne_bytes());
    check(16, &write, Err("it ends early"));
    let mut lies = ask(5, 1, (0, 0), b"");
    lies[0] += 1;
    assert!(Asked::parse(&lies).is_err());
    assert!(Asked::parse(&[0; REQUEST_BYTES_MAX + 1]).is_err());
    assert!(Asked::parse(b"").is_err());
}

proptest! {
    #[test]
    fn the_rule_holds_for_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        crate::fuzz::volume(&bytes);
    }

    #[test]
    fn the_rule_holds_for_what_is_nearly_understood(
        kind in 0_u32..60,
        body in prop::collection::vec(prop_oneof![Just(0_u8), Just(b'/'), Just(b'.'), any::<u8>()], 0..120),
    ) {
        crate::fuzz::volume(&ask(kind, 1, (0, 0), &body));
    }
}

#[test]
fn the_rule_holds_for_every_seed() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/volume");
    let tried = std::fs::read_dir(seeds)
        .unwrap()
        .map(|seed| crate::fuzz::volume(&std::fs::read(seed.unwrap().path()).unwrap()));
    assert!(tried.count() > 5);
}
