use std::time::Duration;

use bytes::Bytes;
use form_urlencoded::Serializer;
use http::{HeaderValue, Method, Request, header};
use model::Secret;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use wire::rest::{ChangeVolumeEntry, VolumeEntry};

use crate::base::BaseUrl;
use crate::body::{Body, Upload, whole};
use crate::error::CallError;
use crate::files::FileReader;
use crate::transport::{ANSWER_WITHIN, Answer, Transport, header_value};

/// A directory with everything in it may be long to remove.
const REMOVED_WITHIN: Duration = Duration::from_secs(600);

/// The files of one volume (contract, section 6). Paths begin at its root. Clones share connections.
#[derive(Debug, Clone)]
pub struct VolumeClient {
    base: BaseUrl,
    transport: Transport,
    /// `/volumecontent/<id>`.
    root: String,
    token: HeaderValue,
}

impl VolumeClient {
    /// A client for a volume's content. `url` is where it is served, `token` what the API gave with the volume.
    ///
    /// # Errors
    /// [`CallError::Address`], [`CallError::Unsendable`], and [`CallError::Authorities`] where TLS is asked for.
    pub fn new(url: &str, volume_id: &str, token: &Secret<String>) -> Result<Self, CallError> {
        let base = BaseUrl::parse(url)?;
        let transport = Transport::new(base.is_secure())?;
        Self::over(base, transport, volume_id, token)
    }

    pub(crate) fn over(
        base: BaseUrl,
        transport: Transport,
        volume_id: &str,
        token: &Secret<String>,
    ) -> Result<Self, CallError> {
        let mut token = header_value("volume's token", &format!("Bearer {}", token.expose()))?;
        token.set_sensitive(true);
        Ok(Self {
            base,
            transport,
            root: format!(
                "/volumecontent/{}",
                utf8_percent_encode(volume_id, NON_ALPHANUMERIC)
            ),
            token,
        })
    }

    /// What lies at a path; a link is not followed.
    ///
    /// # Errors
    /// [`CallError::Refused`], as of every call: nothing lies there.
    pub async fn stat(&self, path: &str) -> Result<VolumeEntry, CallError> {
        let request = self.request(Method::GET, "path", query(path), whole(Bytes::new()));
        self.call(request).await?.json()
    }

    /// Changes owner and permissions; what is not given stays.
    ///
    /// # Errors
    /// As of every call.
    pub async fn change(&self, path: &str, change: ChangeVolumeEntry) -> Result<VolumeEntry, CallError> {
        let body = serde_json::to_vec(&change).map_err(CallError::garbled)?;
        let mut request = self.request(Method::PATCH, "path", query(path), whole(body.into()));
        request
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.call(request).await?.json()
    }

    /// Removes a file, or a directory with everything in it.
    ///
    /// # Errors
    /// As of every call.
    pub async fn remove(&self, path: &str) -> Result<(), CallError> {
        let request = self.request(Method::DELETE, "path", query(path), whole(Bytes::new()));
        self.transport.call(request, Some(REMOVED_WITHIN)).await.map(drop)
    }

    /// What lies in a directory and, with a depth above 1, below it.
    ///
    /// # Errors
    /// As of every call.
    pub async fn list(&self, path: &str, depth: u32) -> Result<Vec<VolumeEntry>, CallError> {
        let mut query = query(path);
        query.append_pair("depth", &depth.to_string());
        let request = self.request(Method::GET, "dir", query, whole(Bytes::new()));
        self.call(request).await?.json()
    }

    /// Makes a directory and those above it. `force`: one that is there already is no error.
    ///
    /// # Errors
    /// As of every call.
    pub async fn make_dir(
        &self,
        path: &str,
        owned: ChangeVolumeEntry,
        force: bool,
    ) -> Result<VolumeEntry, CallError> {
        let query = owned_query(path, owned, force);
        let request = self.request(Method::POST, "dir", query, whole(Bytes::new()));
        self.call(request).await?.json()
    }

    /// Opens a file.
    ///
    /// # Errors
    /// As of every call.
    pub async fn read(&self, path: &str) -> Result<FileReader, CallError> {
        let mut request = self.request(Method::GET, "file", query(path), whole(Bytes::new()));
        request
            .headers_mut()
            .insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let answer = self.transport.open(request, Some(ANSWER_WITHIN)).await?;
        Ok(FileReader::new(answer.into_body()))
    }

    /// Writes a file, whole or not at all. `force`: one that is there is replaced, and directories above it are made.
    ///
    /// # Errors
    /// [`CallError::Refused`] where the volume is full; [`CallError::Stalled`], [`CallError::Source`].
    pub async fn write(
        &self,
        path: &str,
        content: Upload,
        owned: ChangeVolumeEntry,
        force: bool,
    ) -> Result<VolumeEntry, CallError> {
        let (body, progress) = content.into_body();
        let mut request = self.request(Method::PUT, "file", owned_query(path, owned, force), body);
        request.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        self.transport.upload(request, &progress).await?.json()
    }

    async fn call(&self, request: Request<Body>) -> Result<Answer, CallError> {
        self.transport.call(request, Some(ANSWER_WITHIN)).await
    }

    fn request(
        &self,
        method: Method,
        what: &str,
        mut query: Serializer<'_, String>,
        body: Body,
    ) -> Request<Body> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = self
            .base
            .join(&format!("{}/{what}?{}", self.root, query.finish()));
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, self.token.clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        request
    }
}

fn query(path: &str) -> Serializer<'static, String> {
    let mut query = Serializer::new(String::new());
    query.append_pair("path", path);
    query
}

fn owned_query(path: &str, owned: ChangeVolumeEntry, force: bool) -> Serializer<'static, String> {
    let mut query = query(path);
    for (name, number) in [("uid", owned.uid), ("gid", owned.gid), ("mode", owned.mode)] {
        if let Some(number) = number {
            query.append_pair(name, &number.to_string());
        }
    }
    query.append_pair("force", if force { "true" } else { "false" });
    query
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Heard, Server};

    const ENTRY: &str = r#"{"name":"a","type":"file","path":"/a","size":3,"mode":33188,"uid":0,"gid":0,"atime":"1970-01-01T00:00:00Z","mtime":"1970-01-01T00:00:00Z","ctime":"1970-01-01T00:00:00Z"}"#;

    fn client(server: &Server) -> VolumeClient {
        VolumeClient::new(&server.url(), "v/1", &Secret::new("tok".to_owned())).unwrap()
    }

    #[tokio::test]
    async fn a_file_is_written_as_the_contract_says() {
        let server = Server::answer("201 Created", ENTRY).await;
        let owned = ChangeVolumeEntry {
            mode: Some(0o755),
            ..ChangeVolumeEntry::default()
        };
        let content = Upload::new(&b"abc"[..], Some(3));
        let written = client(&server).write("/a b", content, owned, true).await.unwrap();
        assert_eq!(written.size, 3);
        let Heard { head, body_bytes } = server.heard().await;
        assert!(
            head.starts_with("PUT /volumecontent/v%2F1/file?path=%2Fa+b&mode=493&force=true HTTP/1.1"),
            "{head}"
        );
        assert!(
            head.contains("authorization: Bearer tok") && !head.contains("x-api-key"),
            "{head}"
        );
        assert_eq!(body_bytes, 3);
    }

    #[tokio::test]
    async fn a_refusal_tells_its_words() {
        let body = r#"{"code":"no_space","message":"no space left on the volume"}"#;
        let server = Server::answer("507 Insufficient Storage", body).await;
        let error = client(&server).stat("/a").await.unwrap_err();
        assert_eq!(error.to_string(), "no space left on the volume");
        assert_eq!(error.kind(), wire::status::of_http(507));
    }

    #[test]
    fn the_token_does_not_print_itself() {
        let client =
            VolumeClient::new("http://127.0.0.1:1", "v", &Secret::new("hunter2".to_owned())).unwrap();
        assert!(!format!("{client:?}").contains("hunter2"));
    }
}
