//! A server that answers one request, whatever it is, and tells what it heard.
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// What was asked.
#[derive(Debug)]
pub(crate) struct Heard {
    /// Request line and headers.
    pub(crate) head: String,
    /// How long the body was.
    pub(crate) body_bytes: usize,
}

/// Answers one request.
pub(crate) struct Server {
    address: SocketAddr,
    heard: oneshot::Receiver<Heard>,
}

impl Server {
    /// Reads a request with its body, then answers `status` with a JSON body.
    pub(crate) async fn answer(status: &'static str, body: &'static str) -> Self {
        Self::with_headers(status, "", body).await
    }

    /// The same with more headers, each ended by CRLF.
    pub(crate) async fn with_headers(
        status: &'static str,
        headers: &'static str,
        body: &'static str,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (tell, heard) = oneshot::channel();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut bytes = Vec::new();
            let end = loop {
                if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                    break at;
                }
                if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                    return;
                }
            };
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            let mut body_bytes = bytes.len() - end - 4;
            while body_bytes < length {
                let mut piece = [0; 4096];
                match stream.read(&mut piece).await {
                    Ok(read @ 1..) => body_bytes += read,
                    _ => return,
                }
            }
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = tell.send(Heard { head, body_bytes });
        });
        Self { address, heard }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was asked.
    pub(crate) async fn heard(self) -> Heard {
        self.heard.await.expect("a whole request")
    }
}
