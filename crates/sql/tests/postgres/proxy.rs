//! A network that can fail between a store and its server.
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of what the server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// It arrives.
    Pass,
    /// The first of it ends the connection, and does not arrive.
    Cut,
    /// It does not arrive, and nobody is told.
    Lose,
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    answers: watch::Sender<Answers>,
}

impl Proxy {
    pub(crate) async fn start(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (answers, seen) = watch::channel(Answers::Pass);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else {
                    continue;
                };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let gone = Arc::new(tokio::sync::Notify::new());
                tokio::spawn(questions(from_client, to_server, Arc::clone(&gone)));
                tokio::spawn(answer(from_server, to_client, seen.clone(), gone));
            }
        });
        Self { port, answers }
    }

    pub(crate) fn set(&self, answers: Answers) {
        self.answers.send_replace(answers);
    }
}

async fn questions(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, gone: Arc<tokio::sync::Notify>) {
    tokio::select! {
        _ = tokio::io::copy(&mut from, &mut to) => {}
        () = gone.notified() => {}
    }
}

async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    seen: watch::Receiver<Answers>,
    gone: Arc<tokio::sync::Notify>,
) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let answers = *seen.borrow();
        match answers {
            Answers::Pass => {
                if to.write_all(&bytes[..read]).await.is_err() {
                    break;
                }
            }
            Answers::Cut => break,
            Answers::Lose => {}
        }
    }
    gone.notify_one();
}
