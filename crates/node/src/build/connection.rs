//! One request to a lab's envd, and its answer while it comes.
use bytes::Bytes;
use http::Request;
use http_body::Body;
use http_body_util::BodyExt as _;
use hyper::Response;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use ports::Machine;

/// envd could not be asked, or did not answer to the end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("envd cannot be reached")]
    Dial(#[from] ports::DialError),
    #[error("talking to envd failed")]
    Http(#[from] hyper::Error),
    #[error("envd's answer is broken: {0}")]
    Garbled(String),
    #[error("envd has not given a sign of life for {0:?}")]
    Silent(std::time::Duration),
}

/// An answer. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: http::response::Parts,
    body: Incoming,
    _connection: Connection,
}

/// The task that moves a connection's bytes.
#[derive(Debug)]
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request on a connection of its own, and waits for the head of its answer.
pub(super) async fn ask<B>(machine: &dyn Machine, request: Request<B>) -> Result<Answer, ConnectionError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = machine.envd().await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // How it ends is told to whoever reads the answer.
    let connection = Connection(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let (head, body) = sender.send_request(request).await.map(Response::into_parts)?;
    Ok(Answer {
        head,
        body,
        _connection: connection,
    })
}

impl Answer {
    /// The next bytes of it; `None` at its end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, ConnectionError> {
        match self.body.frame().await {
            None => Ok(None),
            // Trailers say nothing here.
            Some(frame) => Ok(Some(frame?.into_data().unwrap_or_default())),
        }
    }

    /// All of it, which must not be long: a guest says it.
    pub(super) async fn whole(&mut self, bytes_max: usize) -> Result<Vec<u8>, ConnectionError> {
        let mut whole = Vec::new();
        while let Some(piece) = self.piece().await? {
            if whole.len() + piece.len() > bytes_max {
                return Err(ConnectionError::Garbled(format!(
                    "it is longer than {bytes_max} bytes"
                )));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }
}
