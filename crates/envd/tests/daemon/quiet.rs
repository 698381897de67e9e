//! Quiet for a checkpoint, and what a copy makes of itself.
use std::io::Read as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Envd, read, send, shell};

#[test]
fn every_connection_of_the_host_ends_and_what_runs_goes_on() {
    let envd = Envd::start();
    let mut idle = envd.connect();
    send(&mut idle, "GET", "/health", &[], b"");
    assert_eq!(read(idle.try_clone().unwrap(), "GET").status, 204);
    let mut command = envd.stream("process.Process/Start", &shell("echo begun; sleep 600"), &[]);
    let pid = command.pid();
    command.next().unwrap();
    let watched = json!({ "path": envd.dir.path() });
    let mut watch = envd.stream("filesystem.Filesystem/WatchDir", &watched, &[]);
    watch.next().unwrap();
    let mut asking = envd.connect();
    let begun = Instant::now();
    send(&mut asking, "POST", "/host/quiesce", &[], br#"{"graceMs":100}"#);
    let answer = read(asking.try_clone().unwrap(), "POST");
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({ "closed": 3, "left": 0 })),
        "{answer:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(answer.headers["connection"], "close");
    assert_eq!(asking.read(&mut [0]).unwrap(), 0, "and its own ends as well");
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    for stream in [&mut command, &mut watch] {
        assert_eq!(stream.next().unwrap_err()["error"]["code"], "aborted");
    }
    let list = envd.call("process.Process/List", &json!({})).unwrap();
    assert_eq!(
        list["processes"][0]["pid"], pid,
        "new connections are served, and the command lives"
    );
    let mut again = envd.stream(
        "process.Process/Connect",
        &json!({ "process": { "pid": pid } }),
        &[],
    );
    assert_eq!(again.pid(), pid);
}

#[test]
fn a_request_under_way_has_its_grace_and_no_more() {
    let envd = Envd::start();
    let mut slow = envd.connect();
    let head = format!(
        "POST /files?path={} HTTP/1.1\r\nHost: envd\r\nContent-Length: 10\r\nContent-Type: application/octet-stream\r\n\r\n",
        envd.at("slow").display()
    );
    std::io::Write::write_all(&mut slow, head.as_bytes()).unwrap();
    std::io::Write::write_all(&mut slow, b"12345").unwrap();
    while !envd.at("slow").exists() {
        std::thread::yield_now();
    }
    let begun = Instant::now();
    let answer = envd.ask("POST", "/host/quiesce", &[], br#"{"graceMs":300}"#);
    assert_eq!(answer.json(), json!({ "closed": 1, "left": 0 }));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    // It was cut: end or reset.
    assert!(matches!(slow.read(&mut [0]), Ok(0) | Err(_)));
    while envd.at("slow").exists() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "a broken upload leaves nothing"
        );
        std::thread::yield_now();
    }
}

#[test]
fn who_is_inside_is_not_in_the_way() {
    let envd = Envd::start();
    let mut inside = TcpStream::connect(("127.0.0.1", envd.port)).unwrap();
    send(&mut inside, "GET", "/health", &[], b"");
    assert_eq!(read(inside.try_clone().unwrap(), "GET").status, 204);
    let answer = envd.ask("POST", "/host/quiesce", &[], b"{}");
    assert_eq!(answer.json(), json!({ "closed": 0, "left": 0 }));
    send(&mut inside, "GET", "/health", &[], b"");
    assert_eq!(read(inside.try_clone().unwrap(), "GET").status, 204);
    assert_eq!(envd.ask_inside("POST", "/host/quiesce").status, 404);
}

#[test]
fn a_copy_forgets_whose_copy_it_is() {
    let envd = Envd::start();
    let token = [("X-Access-Token", "source")];
    envd.init(&json!({
        "accessToken": "source", "envVars": { "A": "1" }, "timestamp": "2026-01-02T00:00:00Z", "sandboxID": "source",
    }));
    let watched = json!({ "path": envd.dir.path() }).to_string();
    let headers = [token[0], ("Content-Type", "application/json")];
    let made = envd
        .ask(
            "POST",
            "/filesystem.Filesystem/CreateWatcher",
            &headers,
            watched.as_bytes(),
        )
        .json();
    envd.init(&json!({
        "renew": true, "restored": true, "timestamp": "2026-01-01T00:00:00Z", "accessToken": "copy",
        "envVars": { "B": "2" }, "sandboxID": "copy", "machineID": "0123456789abcdef0123456789abcdef",
    }));
    assert_eq!(
        envd.ask("GET", "/envs", &token, b"").status,
        401,
        "the source's token is none any more"
    );
    let own = [("X-Access-Token", "copy"), ("Content-Type", "application/json")];
    assert_eq!(envd.ask("GET", "/envs", &own, b"").json(), json!({ "B": "2" }));
    let asked = json!({ "watcherId": made["watcherId"] }).to_string();
    let asked = envd.ask(
        "POST",
        "/filesystem.Filesystem/GetWatcherEvents",
        &own,
        asked.as_bytes(),
    );
    assert_eq!(asked.json()["code"], "not_found");
    let log = envd.ask("GET", "/host/logs?after=0", &[], b"").json();
    let said: Vec<&str> = log["entries"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|e| e["message"].as_str())
        .collect();
    assert_eq!(said, ["this is a copy now", "the clock is not the node's"]);
    let odd = envd.ask("POST", "/init", &[], br#"{"machineID":"x"}"#);
    assert_eq!(odd.status, 400);
}
