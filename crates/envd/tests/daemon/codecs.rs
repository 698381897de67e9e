use buffa::Message as _;
use serde_json::json;
use wire::envd::{filesystem, process};

use crate::client::{Envd, frame_bytes};

#[test]
fn calls_are_made_in_binary_as_in_json() {
    let envd = Envd::start();
    let asked = filesystem::StatRequest {
        path: "/etc/passwd".into(),
        ..Default::default()
    };
    let headers = [
        ("Content-Type", "application/proto"),
        ("Connect-Protocol-Version", "1"),
    ];
    let answer = envd.ask(
        "POST",
        "/filesystem.Filesystem/Stat",
        &headers,
        &asked.encode_to_vec(),
    );
    assert_eq!(
        (answer.status, &*answer.headers["content-type"]),
        (200, "application/proto")
    );
    let answer = filesystem::StatResponse::decode_from_slice(&answer.body).unwrap();
    let entry = answer.entry.as_option().unwrap();
    assert_eq!((&*entry.name, &*entry.path), ("passwd", "/etc/passwd"));
    assert_eq!(
        entry.size.unsigned_abs(),
        std::fs::metadata("/etc/passwd").unwrap().len()
    );
}

#[test]
fn streams_are_told_in_binary_as_in_json() {
    use process::process_event::Event;
    let envd = Envd::start();
    let asked = process::StartRequest {
        process: Some(process::ProcessConfig {
            cmd: "/bin/sh".into(),
            args: vec!["-c".into(), "echo out; exit 3".into()],
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let mut stream = envd.stream_of(
        "application/connect+proto",
        "process.Process/Start",
        &frame_bytes(&asked.encode_to_vec()),
        &[],
    );
    let mut said = Vec::new();
    let mut end = None;
    while let Ok(message) = stream.next_bytes() {
        let message = process::StartResponse::decode_from_slice(&message).unwrap();
        match message.event.into_option().unwrap().event.unwrap() {
            Event::Start(start) => assert!(start.pid > 0),
            Event::Data(data) => {
                if let Some(process::process_event::data_event::Output::Stdout(bytes)) = data.output {
                    said.extend_from_slice(&bytes);
                }
            }
            Event::End(told) => end = Some(told),
            Event::Keepalive(_) => {}
        }
    }
    assert_eq!(said, b"out\n");
    let end = end.unwrap();
    assert_eq!((end.exit_code, &*end.status), (3, "exit status 3"));
}

#[test]
fn json_is_understood_in_all_its_spellings() {
    let envd = Envd::start();
    let call = |method: &str, request| envd.call(method, &request);
    let tagged = json!({ "process": { "cmd": "/bin/cat" }, "tag": "cat", "unknown": [1] });
    let mut stream = envd.stream("process.Process/Start", &tagged, &[]);
    stream.pid();
    // Of `>>>???`: letters that the alphabet of addresses spells in another way, and no padding.
    let spelled = json!({ "process": { "tag": "cat" }, "input": { "stdin": "Pj4-Pz8_Cg" } });
    call("process.Process/SendInput", spelled).unwrap();
    let text = stream.next().unwrap()["event"]["data"]["stdout"].clone();
    assert_eq!(text, "Pj4+Pz8/Cg==");
    let by_number = json!({ "process": { "tag": "cat" }, "signal": 15 });
    call("process.Process/SendSignal", by_number).unwrap();
    assert_eq!(stream.until_end().2["status"], "signal: terminated");
    // Both spellings of a field.
    let made = call(
        "filesystem.Filesystem/CreateWatcher",
        json!({ "path": envd.dir.path(), "include_entry": true }),
    );
    let watcher = made.unwrap()["watcherId"].clone();
    call(
        "filesystem.Filesystem/RemoveWatcher",
        json!({ "watcher_id": watcher }),
    )
    .unwrap();
}
