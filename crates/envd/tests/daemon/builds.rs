//! The steps of a build, as the node asks for them.
use std::io::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::client::{Answer, Envd, read, send};

/// One file of an archive, as a client's tar has it.
fn entry(path: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..path.len()].copy_from_slice(path.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    block[136..148].copy_from_slice(b"14524320000\0");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend(content);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 10240]].concat()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn target(envd: &Envd, source: &str) -> String {
    let dir = envd.dir.path().display();
    format!("/host/copy?source={source}&destination=app/&workdir={dir}&user=root&owner=0:0")
}

fn copy(envd: &Envd, source: &str, body: &[u8]) -> Answer {
    envd.ask("POST", &target(envd, source), &[], body)
}

fn step(envd: &Envd, name: &str, body: &Value) -> Answer {
    envd.ask("POST", &format!("/host/{name}"), &[], body.to_string().as_bytes())
}

#[test]
fn an_upload_is_copied_packed_or_not() {
    let envd = Envd::start();
    let large = vec![7; 3_000_000];
    let plain = archive(&[entry("src/a", b'0', b"hello"), entry("src/large", b'0', &large)]);
    for body in [gzip(&plain), plain] {
        let answer = copy(&envd, "src/*", &body);
        assert_eq!(
            (answer.status, answer.json()),
            (200, json!({ "files": 2, "bytes": 3_000_005 })),
            "{answer:?}"
        );
        assert_eq!(std::fs::read(envd.at("app/large")).unwrap(), large);
        assert_eq!(std::fs::read(envd.at("app/a")).unwrap(), b"hello");
        std::fs::remove_dir_all(envd.at("app")).unwrap();
    }
}

#[test]
fn a_wrong_step_or_upload_is_told_of_and_the_connection_goes_on() {
    let envd = Envd::start();
    let plain = archive(&[entry("a", b'0', b"hello"), entry("b", b'0', &[0; 2_000_000])]);
    let check = |answer: &Answer, status: u16, why: &str| {
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.message().contains(why), "{}", answer.message());
    };
    check(&copy(&envd, "b*/c", &plain[..4096]), 400, "cut short");
    check(
        &copy(&envd, "none", &plain),
        400,
        "the source 'none' of COPY does not exist",
    );
    check(&copy(&envd, "a", &gzip(&plain)[..60]), 400, "archive");
    check(&copy(&envd, "a", b""), 400, "no tar archive");
    check(&copy(&envd, "../a", &plain), 400, "leads out");
    check(
        &copy(&envd, "*", &archive(&[entry("../x", b'0', b"")])),
        400,
        "leads out",
    );
    check(
        &copy(&envd, "*", &archive(&[entry("dev", b'3', b"")])),
        400,
        "a device",
    );
    check(
        &envd.ask("POST", "/host/copy?source=a", &[], b""),
        400,
        "destination",
    );
    // One connection for several, of which all but the last are refused.
    let mut line = envd.connect();
    for (source, status) in [("none", 400), ("../a", 400), ("a", 200)] {
        send(&mut line, "POST", &target(&envd, source), &[], &plain);
        assert_eq!(read(line.try_clone().unwrap(), "POST").status, status);
    }
}

#[test]
fn an_upload_that_breaks_off_leaves_no_half_of_a_file() {
    let envd = Envd::start();
    let plain = archive(&[entry("a", b'0', &[1; 2_000_000])]);
    let mut line = envd.connect();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: envd\r\nContent-Length: {}\r\n\r\n",
        target(&envd, "*"),
        plain.len()
    );
    line.write_all(head.as_bytes()).unwrap();
    line.write_all(&plain[..1_000_000]).unwrap();
    let place = envd.at("app/a");
    wait_until(|| place.exists());
    drop(line);
    wait_until(|| !place.exists());
    assert_eq!(copy(&envd, "*", &plain).status, 200, "and others are served");
}

fn wait_until(mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed().as_secs() < 30, "it did not happen");
        std::thread::yield_now();
    }
}

#[test]
fn a_directory_is_entered_and_made() {
    let envd = Envd::start();
    let previous = envd.dir.path().to_str().unwrap();
    let made = step(
        &envd,
        "workdir",
        &json!({ "path": "a/./b", "previous": previous, "user": "root" }),
    );
    assert_eq!(
        (made.status, made.json()),
        (200, json!({ "path": format!("{previous}/a/b") }))
    );
    assert!(envd.at("a/b").is_dir());
    let absolute = step(&envd, "workdir", &json!({ "path": "/tmp", "user": "root" }));
    assert_eq!(absolute.json(), json!({ "path": "/tmp" }));
    std::fs::write(envd.at("file"), "").unwrap();
    let refused = step(
        &envd,
        "workdir",
        &json!({ "path": "file", "previous": previous, "user": "root" }),
    );
    assert_eq!(refused.status, 400);
    assert_eq!(step(&envd, "workdir", &json!({ "path": "x" })).status, 400);
}

#[test]
fn variables_are_those_of_roots_login_and_nothing_is_run() {
    let envd = Envd::start();
    envd.init(&json!({ "envVars": { "OF_A_SANDBOX": "x", "HOME": "/x" } }));
    let marker: PathBuf = envd.at("ran");
    let run = format!("$(touch {0})`touch {0}`", marker.display());
    let values = json!([
        ["PATH", "/opt:$PATH"],
        ["A", "${OF_A_SANDBOX:-none} $HOME \\$K"],
        ["B", "plain"],
        ["C", run]
    ]);
    let answer = step(
        &envd,
        "env",
        &json!({ "values": values, "known": { "K": "known" } }),
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    let told = answer.json();
    let value = |n: usize| told["values"][n][1].as_str().unwrap().to_owned();
    assert!(
        value(0).starts_with("/opt:/") && value(0).contains("/bin"),
        "{}",
        value(0)
    );
    let home = std::fs::read_to_string("/etc/passwd").unwrap();
    let home = home
        .lines()
        .find_map(|line| line.strip_prefix("root:"))
        .unwrap()
        .split(':')
        .nth(4)
        .unwrap();
    assert_eq!(
        (value(1), value(2), value(3)),
        (format!("none {home} \\known"), "plain".to_owned(), run)
    );
    assert!(!marker.exists());
    let broken = step(&envd, "env", &json!({ "values": [["X", "${"]] }));
    assert_eq!(broken.status, 400);
    assert!(
        broken
            .message()
            .starts_with("the value of X cannot be evaluated: root's login shell says")
    );
    let odd = step(&envd, "env", &json!({ "values": [["A=B", "x"]] }));
    assert_eq!(odd.status, 400);
}

#[test]
fn who_is_there_is_told_and_who_cannot_be_is_refused() {
    let envd = Envd::start();
    let root = step(&envd, "user", &json!({ "name": "root", "sudo": true }));
    assert_eq!(root.status, 200, "{root:?}");
    let told = root.json();
    assert_eq!((&told["uid"], &told["isNew"]), (&json!(0), &json!(false)));
    let refused = step(&envd, "user", &json!({ "name": "a:b" }));
    assert_eq!(refused.status, 400);
    assert!(refused.message().contains("'a:b' is no name"));
}
