//! Just enough of HTTP and Connect to run a command by a machine's envd.
use base64::Engine as _;
use ports::Machine;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What a shell line printed; it must succeed.
pub(super) async fn run(machine: &dyn Machine, user: &str, line: &str) -> String {
    let (said, status) = attempt(machine, user, line).await;
    assert_eq!(status, 0, "`{line}` said {said}");
    said
}

/// What a shell line printed, on both outputs, and its status.
pub(super) async fn attempt(machine: &dyn Machine, user: &str, line: &str) -> (String, i64) {
    let line = format!("{{ {line}\n}} 2>&1");
    let request =
        json!({ "process": { "cmd": "/bin/bash", "args": ["-lc", line] }, "stdin": false }).to_string();
    let length = u32::try_from(request.len()).expect("a short line").to_be_bytes();
    let body = [&[0][..], &length, request.as_bytes()].concat();
    let who = base64::engine::general_purpose::STANDARD.encode(format!("{user}:"));
    let head = format!(
        "POST /process.Process/Start HTTP/1.1\r\nHost: envd\r\nConnection: close\r\nAuthorization: Basic {who}\r\n\
         Content-Type: application/connect+json\r\nConnect-Protocol-Version: 1\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = machine.envd().await.expect("envd listens");
    stream
        .write_all(head.as_bytes())
        .await
        .expect("envd takes a head");
    stream.write_all(&body).await.expect("envd takes a body");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    outcome(&answer)
}

fn outcome(answer: &[u8]) -> (String, i64) {
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a head");
    let head = String::from_utf8_lossy(&answer[..end]);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let body = unchunked(&answer[end + 4..]);
    let (mut said, mut status, mut rest) = (Vec::new(), None, &body[..]);
    while let [_, a, b, c, d, after @ ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let message: Value = serde_json::from_slice(&after[..length]).expect("JSON");
        let event = &message["event"];
        if let Some(data) = event["data"]["stdout"].as_str() {
            said.extend(
                base64::engine::general_purpose::STANDARD
                    .decode(data)
                    .expect("base64"),
            );
        }
        if event["end"].is_object() {
            status = Some(event["end"]["exitCode"].as_i64().unwrap_or(0));
        }
        rest = &after[length..];
    }
    let said = String::from_utf8_lossy(&said).into_owned();
    let status =
        status.unwrap_or_else(|| panic!("the command did not end: {}", String::from_utf8_lossy(&body)));
    (said, status)
}

/// A body in chunks (RFC 9112, 7.1), whole.
fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest
            .windows(2)
            .position(|window| window == b"\r\n")
            .expect("a chunk's length");
        let length =
            usize::from_str_radix(std::str::from_utf8(&rest[..end]).expect("text"), 16).expect("a number");
        if length == 0 {
            return body;
        }
        body.extend(&rest[end + 2..end + 2 + length]);
        rest = &rest[end + 2 + length + 2..];
    }
}
