use form_urlencoded::Serializer;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use wire::rest::{BuildInfo, FileUpload, LogLevel, NewBuild, RegisteredBuild, StartBuild};

use super::{Client, segment, with_query};
use crate::body::Upload;
use crate::error::CallError;
use crate::transport::{Transport, header_value, level_name};

/// Which lines of a build's log come with its status.
#[derive(Debug, Clone, Copy, Default)]
pub struct StatusQuery {
    /// How many lines are known already: those of this level and above.
    pub offset: u64,
    /// At most so many; 0..=100, and 100 where nothing is said.
    pub limit: Option<u32>,
    /// Lines that matter at least this much.
    pub level: Option<LogLevel>,
}

impl Client {
    /// Registers a build: of a new template, or a new one of a template that is there.
    ///
    /// # Errors
    /// [`CallError::Refused`], as of every call: a name or a size that cannot be.
    pub async fn register_build(&self, build: &NewBuild) -> Result<RegisteredBuild, CallError> {
        self.post("/v3/templates", build).await?.json()
    }

    /// Where the files of a step are put, and whether they are there already. `hash` names them: 64 hexadecimal digits.
    ///
    /// # Errors
    /// As of every call.
    pub async fn upload_link(&self, template: &str, hash: &str) -> Result<FileUpload, CallError> {
        self.get(&format!(
            "/templates/{}/files/{}",
            segment(template),
            segment(hash)
        ))
        .await?
        .json()
    }

    /// Puts files of a step, a tar of `length` bytes, where a link leads. The key is not sent there.
    ///
    /// # Errors
    /// [`CallError::Address`] where the link leads nowhere, [`CallError::Stalled`] where the server takes no more,
    /// [`CallError::Source`] where the reader fails.
    pub async fn upload_files(
        &self,
        link: &FileUpload,
        tar: impl tokio::io::AsyncRead + Send + 'static,
        length: u64,
    ) -> Result<(), CallError> {
        let refused = || CallError::Address {
            url: link.url.clone(),
        };
        let uri: Uri = link.url.parse().map_err(|_| refused())?;
        let is_secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(refused()),
        };
        // It may be another server, with another certificate.
        let transport = Transport::new(is_secure)?;
        let (body, progress) = Upload::new(tar, Some(length)).into_body();
        let mut request = Request::new(body);
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        for (name, value) in &link.headers {
            let name = HeaderName::try_from(name)
                .map_err(|_| CallError::garbled("a header of the upload has no name"))?;
            headers.insert(name, header_value("header of the upload", value)?);
        }
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        headers
            .entry(CONTENT_TYPE)
            .or_insert(HeaderValue::from_static("application/octet-stream"));
        transport.upload(request, &progress).await.map(drop)
    }

    /// Starts a registered build, whose files are there.
    ///
    /// # Errors
    /// [`CallError::Refused`] where a step is none, or the build was started before.
    pub async fn start_build(
        &self,
        template: &str,
        build: &str,
        recipe: &StartBuild,
    ) -> Result<(), CallError> {
        let path = format!("/v2/templates/{}/builds/{}", segment(template), segment(build));
        self.post(&path, recipe).await.map(drop)
    }

    /// How far a build is, with lines of its log. When it is over, it has said all when there are no more lines.
    ///
    /// # Errors
    /// As of every call.
    pub async fn build_status(
        &self,
        template: &str,
        build: &str,
        query: StatusQuery,
    ) -> Result<BuildInfo, CallError> {
        self.get(&status_path(template, build, query)).await?.json()
    }
}

fn status_path(template: &str, build: &str, query: StatusQuery) -> String {
    let mut pairs = Serializer::new(String::new());
    pairs.append_pair("logsOffset", &query.offset.to_string());
    if let Some(limit) = query.limit {
        pairs.append_pair("limit", &limit.to_string());
    }
    if let Some(level) = query.level {
        pairs.append_pair("level", level_name(level));
    }
    let path = format!(
        "/templates/{}/builds/{}/status",
        segment(template),
        segment(build)
    );
    with_query(&path, &pairs.finish())
}

#[cfg(test)]
mod tests {
    use model::Secret;

    use super::*;
    use crate::testing::{Heard, Server};

    #[test]
    fn a_status_is_asked_for_as_the_contract_says() {
        let query = StatusQuery {
            offset: 7,
            limit: Some(50),
            level: Some(LogLevel::Info),
        };
        assert_eq!(
            status_path("a/b:c", "d", query),
            "/templates/a%2Fb%3Ac/builds/d/status?logsOffset=7&limit=50&level=info"
        );
    }

    fn client(server: &Server) -> Client {
        Client::new(&server.url(), &Secret::new("e2b_00".to_owned())).unwrap()
    }

    fn link(url: String) -> FileUpload {
        FileUpload {
            present: false,
            url,
            headers: [("x-part".to_owned(), "1".to_owned())].into(),
        }
    }

    #[tokio::test]
    async fn an_upload_is_streamed_to_its_link_without_the_key() {
        let server = Server::answer("200 OK", "").await;
        let link = link(format!("{}/uploads/x?signature=ab", server.url()));
        let tar = tokio::io::AsyncReadExt::take(tokio::io::repeat(7), 300_000);
        client(&server).upload_files(&link, tar, 300_000).await.unwrap();
        let Heard { head, body_bytes } = server.heard().await;
        assert!(head.starts_with("PUT /uploads/x?signature=ab HTTP/1.1"), "{head}");
        assert!(
            head.contains("content-length: 300000") && head.contains("x-part: 1"),
            "{head}"
        );
        assert!(
            !head.contains("x-api-key") && !head.contains("transfer-encoding"),
            "{head}"
        );
        assert_eq!(body_bytes, 300_000);
    }

    #[tokio::test]
    async fn a_reader_that_ends_early_is_told_as_such() {
        let server = Server::answer("200 OK", "").await;
        let link = link(format!("{}/uploads/x", server.url()));
        let error = client(&server)
            .upload_files(&link, &b"abc"[..], 10)
            .await
            .unwrap_err();
        assert!(matches!(error, CallError::Source(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_link_that_leads_nowhere_is_refused() {
        let server = Server::answer("200 OK", "").await;
        for url in ["", "/uploads/x", "file:///etc/passwd", "ftp://host/x"] {
            let error = client(&server)
                .upload_files(&link(url.to_owned()), &b"abc"[..], 3)
                .await
                .unwrap_err();
            assert!(matches!(error, CallError::Address { .. }), "{url}: {error:?}");
        }
    }
}
