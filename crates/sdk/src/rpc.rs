//! Calls of the Connect protocol with JSON: one answer, or a stream of messages (contract 5.2).
use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use wire::envelope::{Envelope, Envelopes, wrap};

use crate::error::CallError;
use crate::sandbox::SandboxClient;
use crate::transport::ANSWER_WITHIN;

const VERSION: (&str, HeaderValue) = ("connect-protocol-version", HeaderValue::from_static("1"));
/// How often envd says that it is there while a program is quiet, in seconds (contract 2.5).
const KEEPALIVE: (&str, HeaderValue) = ("keepalive-ping-interval", HeaderValue::from_static("50"));
/// envd sends at most 32 KiB of output in a message, which JSON makes 44; a hundred times that is a broken server.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Three of those.
const SILENCE_MAX: Duration = Duration::from_secs(150);

/// One question, one answer. Without `within`, it takes as long as the other side likes.
pub(crate) async fn unary<Q: Serialize, A: DeserializeOwned>(
    sandbox: &SandboxClient,
    method: &str,
    user: Option<&str>,
    question: &Q,
    within: Option<Duration>,
) -> Result<A, CallError> {
    let body = serde_json::to_vec(question).map_err(CallError::garbled)?;
    let mut request = sandbox.request(Method::POST, method, user, body.into())?;
    request
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request.headers_mut().insert(VERSION.0, VERSION.1);
    sandbox.transport().call(request, within).await?.json()
}

/// One question, many answers.
pub(crate) async fn stream<Q: Serialize, A: DeserializeOwned>(
    sandbox: &SandboxClient,
    method: &str,
    user: Option<&str>,
    question: &Q,
) -> Result<Messages<A>, CallError> {
    let body = serde_json::to_vec(question).map_err(CallError::garbled)?;
    let mut request = sandbox.request(Method::POST, method, user, wrap(&body))?;
    request.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/connect+json"),
    );
    request.headers_mut().insert(VERSION.0, VERSION.1);
    request.headers_mut().insert(KEEPALIVE.0, KEEPALIVE.1);
    let answer = sandbox.transport().open(request, Some(ANSWER_WITHIN)).await?;
    let streams = answer
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/connect+json"));
    if !streams {
        return Err(CallError::garbled("it is not a stream of messages"));
    }
    Ok(Messages {
        body: answer.into_body(),
        envelopes: Envelopes::new(MESSAGE_BYTES_MAX),
        quiet_since: None,
        of: PhantomData,
    })
}

/// The messages of a stream.
#[derive(Debug)]
pub(crate) struct Messages<A> {
    body: Incoming,
    envelopes: Envelopes,
    /// Since when the caller has waited for the next bytes.
    quiet_since: Option<Instant>,
    of: PhantomData<fn() -> A>,
}

impl<A: DeserializeOwned> Messages<A> {
    /// The next message; `None` after the last. It may be dropped while it waits, and called again.
    pub(crate) async fn next(&mut self) -> Result<Option<A>, CallError> {
        loop {
            match self.envelopes.take().map_err(CallError::garbled)? {
                Some(Envelope::Message(message)) => {
                    return serde_json::from_slice(&message)
                        .map(Some)
                        .map_err(CallError::garbled);
                }
                Some(Envelope::End(end)) => return ended(&end).map(|()| None),
                None => {}
            }
            match self.chunk().await? {
                Some(bytes) => self.envelopes.push(&bytes),
                None if self.envelopes.is_empty() => return Err(CallError::Unended),
                None => return Err(CallError::garbled("the stream ended within a message")),
            }
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, CallError> {
        let since = *self.quiet_since.get_or_insert_with(Instant::now);
        let heard = tokio::time::timeout_at(since + SILENCE_MAX, self.body.frame()).await;
        self.quiet_since = None;
        match heard {
            Err(_) => Err(CallError::Silent(SILENCE_MAX)),
            Ok(None) => Ok(None),
            Ok(Some(Err(cut))) => Err(CallError::Cut(cut)),
            // Trailers say nothing here.
            Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
        }
    }
}

/// Reads the end of a stream: `{}`, or `{"error": {code, message}}`.
fn ended(end: &[u8]) -> Result<(), CallError> {
    #[derive(serde::Deserialize)]
    struct End {
        error: Option<serde_json::Value>,
    }
    let end: End = serde_json::from_slice(end).map_err(CallError::garbled)?;
    end.error.map_or(Ok(()), |error| {
        Err(CallError::refused(500, error.to_string().as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use model::Kind;

    use super::*;

    #[test]
    fn the_end_of_a_stream_says_how_it_went() {
        assert!(ended(b"{}").is_ok());
        let error = ended(br#"{"error":{"code":"not_found","message":"process with pid 7 not found"}}"#)
            .expect_err("an error");
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (Kind::NotFound, "process with pid 7 not found")
        );
        assert!(matches!(ended(b"nonsense"), Err(CallError::Garbled { .. })));
    }
}
