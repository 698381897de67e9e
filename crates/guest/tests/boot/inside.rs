//! What is asked of a machine's envd, by HTTP on streams of the line.
use guest::Line;
use ports::guest::Stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The answer to a request without a body.
pub(crate) async fn http(mut stream: Box<dyn Stream>, request: &str) -> String {
    let request = format!("{request} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A file's content.
pub(crate) async fn file(line: &Line, path: &str) -> String {
    let request = format!("GET /files?path={path}&username=root");
    let answer = http(line.envd().await.unwrap(), &request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return body.split("\r\n").skip(1).step_by(2).collect();
    }
    body.to_owned()
}

/// What a command of bash writes.
pub(crate) async fn command(line: &Line, script: &str) -> String {
    let escaped = script.replace('\\', "\\\\").replace('"', "\\\"");
    let message = format!(r#"{{"process":{{"cmd":"/bin/bash","args":["-c","{escaped}"]}}}}"#);
    let mut stream = line.envd().await.unwrap();
    let head = format!(
        "POST /process.Process/Start HTTP/1.1\r\nhost: test\r\nconnection: close\r\nauthorization: Basic cm9vdDo=\r\n\
         content-type: application/connect+json\r\nconnect-protocol-version: 1\r\ncontent-length: {}\r\n\r\n",
        message.len() + 5
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&[0]).await.unwrap();
    let length = u32::try_from(message.len()).unwrap();
    stream.write_all(&length.to_be_bytes()).await.unwrap();
    stream.write_all(message.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("\"end\""), "{answer}");
    use base64::Engine as _;
    let parts = answer.split("\"stdout\":\"").skip(1).map(|part| {
        let text = part.split('"').next().unwrap_or_default();
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    });
    String::from_utf8(parts.flatten().collect()).unwrap()
}

/// Writes and reads back files, all at once.
pub(crate) async fn bulk(line: &Line) {
    let each = |number: u8| async move {
        let content: Vec<u8> = (0..2 << 20_u32)
            .map(|at: u32| at.to_le_bytes()[0] ^ number)
            .collect();
        let path = format!("/tmp/bulk-{number}");
        let mut stream = line.envd().await.unwrap();
        let head = format!(
            "POST /files?path={path}&username=root HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
             content-type: application/octet-stream\r\ncontent-length: {}\r\n\r\n",
            content.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&content).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let length = command(
            line,
            &format!("LC_ALL=C; mapfile -d '' all < {path}; echo ${{#all[@]}}"),
        )
        .await;
        let zeroes = content.iter().filter(|byte| **byte == 0).count();
        assert!(length.trim().parse::<usize>().unwrap() >= zeroes, "{length}");
    };
    futures_util::future::join_all((1..9).map(each)).await;
}
