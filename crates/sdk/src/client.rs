//! The public API (contract, section 3): one file for each noun.
mod builds;
mod keys;
mod nodes;
mod root;
mod sandboxes;
mod snapshots;
mod tags;
mod templates;
mod volumes;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, header};
use model::Secret;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use crate::base::BaseUrl;
use crate::body::whole;
use crate::error::CallError;
use crate::transport::{ANSWER_WITHIN, Answer, Transport, header_value};

pub use builds::StatusQuery;
pub use sandboxes::{Connected, ListQuery, LogsQuery};
pub use snapshots::SnapshotsQuery;

/// The API, with the rights of a key, or of an operator. Clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    base: BaseUrl,
    transport: Transport,
    /// How it is shown who asks, and by what.
    right: (HeaderName, HeaderValue),
}

/// A part of a long list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// What is in it.
    pub items: Vec<T>,
    /// What to ask for next, where more is to be had.
    pub next: Option<String>,
}

impl Client {
    /// A client for the API at `api_url`.
    ///
    /// # Errors
    /// [`CallError::Address`], [`CallError::Unsendable`], and [`CallError::Authorities`] where TLS is asked for.
    pub fn new(api_url: &str, api_key: &Secret<String>) -> Result<Self, CallError> {
        Self::by("x-api-key", header_value("API key", api_key.expose())?, api_url)
    }

    /// A client for the nodes behind the API at `api_url`, with the rights of an operator. What belongs to a team it does not
    /// reach.
    ///
    /// # Errors
    /// As of [`Client::new`].
    pub fn of_operator(api_url: &str, admin_token: &Secret<String>) -> Result<Self, CallError> {
        let token = header_value("admin token", admin_token.expose())?;
        Self::by("x-admin-token", token, api_url)
    }

    fn by(name: &'static str, mut value: HeaderValue, api_url: &str) -> Result<Self, CallError> {
        let base = BaseUrl::parse(api_url)?;
        let transport = Transport::new(base.is_secure())?;
        value.set_sensitive(true);
        Ok(Self {
            base,
            transport,
            right: (HeaderName::from_static(name), value),
        })
    }

    async fn get(&self, path: &str) -> Result<Answer, CallError> {
        self.call(Method::GET, path, Bytes::new(), ANSWER_WITHIN).await
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Result<Answer, CallError> {
        self.send(Method::POST, path, body, ANSWER_WITHIN).await
    }

    async fn delete(&self, path: &str) -> Result<(), CallError> {
        self.call(Method::DELETE, path, Bytes::new(), ANSWER_WITHIN)
            .await
            .map(drop)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<Answer, CallError> {
        let body = serde_json::to_vec(body).map_err(CallError::garbled)?;
        self.call(method, path, body.into(), within).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        within: Duration,
    ) -> Result<Answer, CallError> {
        let has_body = !body.is_empty();
        let mut request = Request::new(whole(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.base.join(path);
        let headers = request.headers_mut();
        let (name, value) = &self.right;
        headers.insert(name, value.clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        if has_body {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        self.transport.call(request, Some(within)).await
    }
}

/// Says where the next page begins (contract 3.1).
const NEXT_TOKEN: &str = "x-next-token";

/// A part of a list, out of an answer.
fn page<T: serde::de::DeserializeOwned>(answer: &Answer) -> Result<Page<T>, CallError> {
    Ok(Page {
        items: answer.json()?,
        next: next(answer),
    })
}

/// Where the next part begins, if there is one.
fn next(answer: &Answer) -> Option<String> {
    let token = answer.headers.get(NEXT_TOKEN)?.to_str().ok()?;
    (!token.is_empty()).then(|| token.to_owned())
}

fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{query}")
    }
}

/// A piece of a path, whatever somebody wrote as an id.
fn segment(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_leave_their_place_in_a_path() {
        assert_eq!(segment("../keys?x#y").to_string(), "%2E%2E%2Fkeys%3Fx%23y");
        assert_eq!(segment("i0abc").to_string(), "i0abc");
    }

    #[test]
    fn the_key_does_not_print_itself() {
        let client =
            Client::new("http://127.0.0.1:1", &Secret::new("e2b_00ff".to_owned())).expect("a client");
        assert!(!format!("{client:?}").contains("00ff"));
    }
}
