use std::io::Write as _;
use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::client::{Answer, Envd, read, send};

const RAW: (&str, &str) = ("Content-Type", "application/octet-stream");
const FORM: (&str, &str) = ("Content-Type", "multipart/form-data; boundary=b");

fn target(envd: &Envd, name: &str) -> String {
    format!("/files?path={}&username=root", envd.at(name).display())
}

fn get(envd: &Envd, name: &str, headers: &[(&str, &str)]) -> Answer {
    envd.ask("GET", &target(envd, name), headers, b"")
}

fn put(envd: &Envd, name: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    envd.ask("POST", &target(envd, name), headers, body)
}

fn part(name: &str, file_name: &str, content: &str) -> String {
    format!(
        "--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file_name}\"\r\n\r\n{content}\r\n"
    )
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn what_is_written_is_read_again() {
    let envd = Envd::start();
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let answer = put(&envd, "deep/er/file", &[RAW], &content);
    let path = envd.at("deep/er/file");
    assert_eq!(
        answer.json(),
        json!([{ "path": path, "name": "file", "type": "file" }])
    );
    let answer = get(&envd, "deep/er/file", &[]);
    assert_eq!((answer.status, answer.body == content), (200, true));
    assert_eq!(answer.headers["content-disposition"], "inline; filename=file");
    assert_eq!(answer.headers["content-type"], "application/octet-stream");
    // What was longer is not left behind.
    put(&envd, "deep/er/file", &[RAW], b"short");
    assert_eq!(get(&envd, "deep/er/file", &[]).body, b"short");
}

#[test]
fn a_form_writes_each_of_its_files_where_it_says() {
    let envd = Envd::start();
    let (a, b) = (envd.at("a b.txt"), envd.at("c/d\"e"));
    let escaped = b.to_str().unwrap().replace('"', "%22");
    let large = "x".repeat(2_000_000);
    let body = [
        part("other", "/nowhere", "ignored"),
        part("file", a.to_str().unwrap(), "--b\r\n-- is no boundary"),
        part("file", &escaped, &large),
    ];
    let body = format!(
        "{}--b--\r\n",
        body.concat().replace("--b\r\n-- is", "--b-\r\n-- is")
    );
    let answer = envd.ask("POST", "/files?username=root", &[FORM], body.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(std::fs::read_to_string(a).unwrap(), "--b-\r\n-- is no boundary");
    assert_eq!(std::fs::read_to_string(b).unwrap(), large);
    assert_eq!(answer.json()[1]["name"], "d\"e");
    assert_eq!(
        envd.ask("POST", "/files?username=root", &[FORM], b"--b--\r\n")
            .json(),
        json!([])
    );
}

#[test]
fn two_files_for_one_path_are_refused() {
    let envd = Envd::start();
    let body = format!("{}{}--b--\r\n", part("file", "a", "1"), part("file", "b", "2"));
    let answer = put(&envd, "one", &[FORM], body.as_bytes());
    assert_eq!(answer.status, 400);
    assert!(answer.message().contains("same path"), "{}", answer.message());
}

#[test]
fn gzip_is_unpacked_on_its_way_in_and_packed_for_who_asks() {
    let envd = Envd::start();
    let plain = b"hello ".repeat(500_000);
    assert_eq!(
        put(&envd, "raw", &[RAW, ("Content-Encoding", "gzip")], &gzip(&plain)).status,
        200
    );
    assert!(std::fs::read(envd.at("raw")).unwrap() == plain);
    let body = format!("{}--b--\r\n", part("file", "x", "formed"));
    assert_eq!(
        put(
            &envd,
            "form",
            &[FORM, ("Content-Encoding", "gzip")],
            &gzip(body.as_bytes())
        )
        .status,
        200
    );
    assert_eq!(std::fs::read(envd.at("form")).unwrap(), b"formed");
    let packed = get(&envd, "raw", &[("Accept-Encoding", "gzip")]);
    assert_eq!(packed.headers["content-encoding"], "gzip");
    let mut unpacked = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed.body[..]), &mut unpacked).unwrap();
    assert!(unpacked == plain);
    assert_eq!(
        put(&envd, "x", &[RAW, ("Content-Encoding", "br")], b"").status,
        400
    );
    assert_eq!(
        put(&envd, "x", &[RAW, ("Content-Encoding", "gzip")], b"no gzip").status,
        400
    );
    assert_eq!(
        get(&envd, "raw", &[("Accept-Encoding", "br, identity;q=0")]).status,
        406
    );
}

#[test]
fn parts_and_conditions_are_answered() {
    let envd = Envd::start();
    std::fs::write(envd.at("f.txt"), "0123456789").unwrap();
    let part = get(
        &envd,
        "f.txt",
        &[("Range", "bytes=2-4"), ("Accept-Encoding", "gzip")],
    );
    assert_eq!((part.status, &part.body[..]), (206, &b"234"[..]));
    assert_eq!(part.headers["content-range"], "bytes 2-4/10");
    let beyond = get(&envd, "f.txt", &[("Range", "bytes=20-")]);
    assert_eq!(
        (beyond.status, &*beyond.headers["content-range"]),
        (416, "bytes */10")
    );
    let modified = part.headers["last-modified"].clone();
    assert_eq!(
        get(&envd, "f.txt", &[("If-Modified-Since", &modified)]).status,
        304
    );
    let head = envd.ask("HEAD", &target(&envd, "f.txt"), &[], b"");
    assert_eq!((head.status, &*head.headers["content-length"]), (200, "10"));
}

#[test]
fn what_is_not_there_or_no_file_is_refused() {
    let envd = Envd::start();
    std::fs::create_dir(envd.at("dir")).unwrap();
    let fifo = envd.at("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let missing = get(&envd, "missing", &[]);
    let path = envd.at("missing");
    assert_eq!(
        (missing.status, missing.message()),
        (404, format!("path '{}' does not exist", path.display()))
    );
    let dir = get(&envd, "dir", &[("Accept-Encoding", "identity;q=0")]);
    assert_eq!(
        (dir.status, dir.message()),
        (400, format!("path '{}' is a directory", envd.at("dir").display()))
    );
    assert_eq!(get(&envd, "fifo", &[]).status, 400);
    let dir = put(&envd, "dir", &[RAW], b"x");
    assert_eq!(
        (dir.status, dir.message()),
        (400, format!("path is a directory: {}", envd.at("dir").display()))
    );
    assert_eq!(put(&envd, "fifo", &[RAW], b"x").status, 400);
    assert_eq!(
        put(&envd, "x", &[("Content-Type", "text/plain")], b"x").message(),
        "unsupported content type: text/plain"
    );
    let pathless = envd.ask("POST", "/files", &[RAW], b"x");
    assert_eq!(
        pathless.message(),
        "path query parameter is required for raw body upload"
    );
    let nobody = envd.ask("GET", "/files?path=/etc/passwd&username=no-such-user", &[], b"");
    assert_eq!(
        (nobody.status, nobody.message()),
        (401, "invalid username: 'no-such-user'".to_owned())
    );
}

#[test]
fn a_refused_upload_is_heard_out() {
    let envd = Envd::start();
    std::fs::create_dir(envd.at("dir")).unwrap();
    // Far more than any buffer on the way holds.
    assert_eq!(put(&envd, "dir", &[RAW], &vec![0; 20_000_000]).status, 400);
}

/// What a client that does not know the length of its form sends first.
fn begin_in_chunks(envd: &Envd, name: &str, form: &str) -> UnixStream {
    let mut stream = envd.connect();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: envd\r\nTransfer-Encoding: chunked\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n",
        target(envd, name)
    );
    let chunk = format!("{head}{:x}\r\n{form}\r\n", form.len());
    stream.write_all(chunk.as_bytes()).expect("envd takes a chunk");
    stream
}

#[test]
fn a_form_is_answered_when_its_body_has_ended_and_its_connection_goes_on() {
    let envd = Envd::start();
    let form = format!("{}--b--\r\n", part("file", "x", "content"));
    let mut stream = begin_in_chunks(&envd, "x", &form);
    let written = envd.at("x");
    while std::fs::read(&written).ok().as_deref() != Some(b"content") {
        std::thread::yield_now();
    }
    stream.write_all(b"0\r\n\r\n").expect("envd takes the end");
    let answer = read(stream.try_clone().expect("a second handle"), "POST");
    assert_eq!(
        (answer.status, answer.headers.get("connection")),
        (200, None),
        "{answer:?}"
    );
    send(&mut stream, "GET", "/health", &[], b"");
    assert_eq!(read(stream, "GET").status, 204);
}

#[test]
fn an_answer_to_half_a_request_says_that_its_connection_ends() {
    let envd = Envd::start();
    let mut stream = envd.connect();
    let head = "GET /health HTTP/1.1\r\nHost: envd\r\nContent-Length: 5\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("envd takes a head");
    let answer = read(stream, "GET");
    assert_eq!(
        answer.headers.get("connection").map(String::as_str),
        Some("close")
    );
}

#[test]
fn notes_are_kept_beside_a_file_until_the_next_upload() {
    let envd = Envd::start();
    let answer = put(&envd, "f", &[RAW, ("X-Metadata-Author", "me")], b"x");
    assert_eq!(answer.json()[0]["metadata"], json!({ "author": "me" }));
    let stat = || {
        envd.call("filesystem.Filesystem/Stat", &json!({ "path": envd.at("f") }))
            .unwrap()["entry"]
            .clone()
    };
    if stat()["metadata"].is_object() {
        assert_eq!(stat()["metadata"], json!({ "author": "me" }));
    }
    put(&envd, "f", &[RAW], b"x");
    assert!(!stat()["metadata"].is_object());
    assert_eq!(
        put(&envd, "f", &[RAW, ("X-Metadata-A", "\u{fc}")], b"x").status,
        400
    );
}

#[test]
fn pieces_are_put_together() {
    let envd = Envd::start();
    std::fs::write(envd.at("1"), "one").unwrap();
    std::fs::write(envd.at("2"), "two").unwrap();
    let asked = json!({ "source_paths": [envd.at("1"), envd.at("2")], "destination": envd.at("x/whole"), "username": "root" });
    let ask = || envd.ask("POST", "/files/compose", &[], asked.to_string().as_bytes());
    assert_eq!(ask().json()["name"], "whole");
    assert_eq!(std::fs::read_to_string(envd.at("x/whole")).unwrap(), "onetwo");
    assert_eq!(ask().status, 404, "the pieces are gone");
}

#[test]
fn a_file_of_any_year_is_read_and_listed() {
    let envd = Envd::start();
    // A file system that keeps 64 bits of seconds.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "content").unwrap();
    let file = std::fs::File::open(&path).unwrap();
    for seconds in [-1_i64, -1_000_000_000_000, 253_402_300_800, 1_000_000_000_000] {
        let at = rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let times = rustix::fs::Timestamps {
            last_access: at,
            last_modification: at,
        };
        rustix::fs::futimens(&file, &times).unwrap();
        let target = format!("/files?path={}&username=root", path.display());
        let since = [("If-Modified-Since", "Sun, 06 Nov 1994 08:49:37 GMT")];
        assert!(matches!(envd.ask("GET", &target, &since, b"").status, 200 | 304));
        let answer = envd.ask("GET", &target, &[], b"");
        assert_eq!(
            (answer.status, &*answer.body),
            (200, &b"content"[..]),
            "{seconds}"
        );
        assert_eq!(answer.headers.get("last-modified"), None);
        let listed = envd.call("filesystem.Filesystem/ListDir", &json!({ "path": dir.path() }));
        let listed = listed.unwrap();
        assert!(listed["entries"][0]["modifiedTime"].is_string(), "{listed}");
    }
}
