use bytes::{Bytes, BytesMut};
use form_urlencoded::Serializer;
use http::{HeaderValue, Method, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::error::CallError;
use crate::sandbox::SandboxClient;
use crate::transport::ANSWER_WITHIN;

/// A file that is being read.
#[derive(Debug)]
pub struct FileReader(Incoming);

impl FileReader {
    /// The next piece; `None` at the end. A pause of a minute is an error.
    ///
    /// # Errors
    /// [`CallError::Cut`] where the sandbox ended, [`CallError::Silent`] where nothing comes.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            let frame = tokio::time::timeout(ANSWER_WITHIN, self.0.frame()).await;
            match frame.map_err(|_| CallError::Silent(ANSWER_WITHIN))? {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(bytes) = frame.map_err(CallError::Cut)?.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// All that is left, if it is not more than `bytes_max`.
    ///
    /// # Errors
    /// As of [`FileReader::chunk`]; [`CallError::Garbled`] for more.
    pub async fn bytes(mut self, bytes_max: usize) -> Result<Bytes, CallError> {
        let mut all = BytesMut::new();
        while let Some(bytes) = self.chunk().await? {
            if bytes.len() > bytes_max - all.len() {
                return Err(CallError::garbled(format!(
                    "the file is longer than {bytes_max} bytes"
                )));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }
}

impl SandboxClient {
    /// Opens a file. Relative paths begin at the home of `user`, or of the sandbox's default user.
    ///
    /// # Errors
    /// [`CallError::Refused`] with the reason of envd: it is not there, it is a directory.
    pub async fn read_file(&self, path: &str, user: Option<&str>) -> Result<FileReader, CallError> {
        let mut request = self.request(Method::GET, &files(path, user), None, Bytes::new())?;
        request
            .headers_mut()
            .insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let answer = self.transport().open(request, Some(ANSWER_WITHIN)).await?;
        Ok(FileReader(answer.into_body()))
    }

    /// Writes a file whole; directories on the way to it are made.
    ///
    /// # Errors
    /// [`CallError::Refused`] with the reason of envd: it is a directory, the disk is full.
    pub async fn write_file(&self, path: &str, user: Option<&str>, content: Bytes) -> Result<(), CallError> {
        let mut request = self.request(Method::POST, &files(path, user), None, content)?;
        request.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        self.transport()
            .call(request, Some(ANSWER_WITHIN))
            .await
            .map(drop)
    }
}

fn files(path: &str, user: Option<&str>) -> String {
    let mut query = Serializer::new(String::new());
    query.append_pair("path", path);
    if let Some(user) = user {
        query.append_pair("username", user);
    }
    format!("/files?{}", query.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded() {
        assert_eq!(files("/a b/&+ü", None), "/files?path=%2Fa+b%2F%26%2B%C3%BC");
        assert_eq!(files("x", Some("root")), "/files?path=x&username=root");
    }
}
