use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use wire::rest::{ExportedConfig, IMAGE_CONFIG, SandboxChanges};

use super::{Client, segment};
use crate::body::whole;
use crate::error::CallError;
use crate::files::FileReader;

/// The disk is copied, and all of it may be looked at.
const LOOKED_WITHIN: Duration = Duration::from_secs(330);

impl Client {
    /// What a running sandbox changed against its template.
    ///
    /// # Errors
    /// As of every call.
    pub async fn changes(&self, sandbox: &str) -> Result<SandboxChanges, CallError> {
        let path = format!("/sandboxes/{}/changes", segment(sandbox));
        self.call(Method::GET, &path, Bytes::new(), LOOKED_WITHIN)
            .await?
            .json()
    }

    /// The whole root of a running sandbox as a tar, and what its processes run with.
    ///
    /// # Errors
    /// As of every call; [`CallError::Garbled`] where the server does not say what the processes run with.
    pub async fn export(&self, sandbox: &str) -> Result<(ExportedConfig, FileReader), CallError> {
        let mut request = Request::new(whole(Bytes::new()));
        *request.method_mut() = Method::GET;
        *request.uri_mut() = self.base.join(&format!("/sandboxes/{}/export", segment(sandbox)));
        let headers = request.headers_mut();
        let (name, value) = &self.right;
        headers.insert(name, value.clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/x-tar"));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let answer = self.transport.open(request, Some(LOOKED_WITHIN)).await?;
        let told = answer.headers().get(IMAGE_CONFIG);
        let told = told.ok_or_else(|| CallError::garbled("it does not say what the processes run with"))?;
        let config = BASE64_STANDARD
            .decode(told.as_bytes())
            .map_err(CallError::garbled)?;
        let config = serde_json::from_slice(&config).map_err(CallError::garbled)?;
        Ok((config, FileReader::new(answer.into_body())))
    }
}

#[cfg(test)]
mod tests {
    use model::Secret;
    use wire::rest::{SandboxChangeKind, VolumeEntryKind};

    use super::*;
    use crate::testing::Server;

    #[tokio::test]
    async fn changes_are_asked_for_and_told() {
        let body = r#"{"changes":[{"path":"/a","kind":"deleted","type":"directory"}],"truncated":true}"#;
        let server = Server::answer("200 OK", body).await;
        let client = Client::new(&server.url(), &Secret::new("e2b_00".to_owned())).unwrap();
        let told = client.changes("i/1").await.unwrap();
        assert!(told.truncated);
        let change = &told.changes[0];
        assert_eq!(
            (change.path.as_str(), change.kind, change.file),
            ("/a", SandboxChangeKind::Deleted, VolumeEntryKind::Directory)
        );
        let head = server.heard().await.head;
        assert!(
            head.starts_with("GET /sandboxes/i%2F1/changes HTTP/1.1"),
            "{head}"
        );
    }

    #[tokio::test]
    async fn an_export_that_does_not_say_what_it_is_is_refused() {
        let server = Server::answer("200 OK", "").await;
        let client = Client::new(&server.url(), &Secret::new("e2b_00".to_owned())).unwrap();
        assert!(matches!(
            client.export("i1").await,
            Err(CallError::Garbled { .. })
        ));
    }
}
