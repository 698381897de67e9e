use bytes::{Bytes, BytesMut};
use form_urlencoded::Serializer;
use http::{HeaderValue, Method, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use model::Kind;
use wire::envd::filesystem as proto;

use crate::body::Upload;
use crate::error::CallError;
use crate::rpc;
use crate::sandbox::SandboxClient;
use crate::transport::ANSWER_WITHIN;

/// A file that is being read.
#[derive(Debug)]
pub struct FileReader(Incoming);

impl FileReader {
    pub(crate) const fn new(body: Incoming) -> Self {
        Self(body)
    }

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

impl SandboxClient {
    /// Writes a file out of a stream; directories on the way to it are made. One that breaks off leaves a part.
    ///
    /// # Errors
    /// [`CallError::Refused`] with the reason of envd; [`CallError::Stalled`], [`CallError::Source`].
    pub async fn upload_file(
        &self,
        path: &str,
        user: Option<&str>,
        content: Upload,
    ) -> Result<(), CallError> {
        let (body, progress) = content.into_body();
        let mut request = self
            .request(Method::POST, &files(path, user), None, Bytes::new())?
            .map(|_| body);
        request.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        self.transport().upload(request, &progress).await.map(drop)
    }

    /// What lies at a path.
    ///
    /// # Errors
    /// [`CallError::Refused`], as of every call: nothing lies there.
    pub async fn stat(&self, path: &str, user: Option<&str>) -> Result<Entry, CallError> {
        let question = proto::StatRequest {
            path: path.to_owned(),
            ..Default::default()
        };
        let answer: proto::StatResponse = self.ask("/filesystem.Filesystem/Stat", user, &question).await?;
        answer
            .entry
            .into_option()
            .map(Entry::from)
            .ok_or_else(|| CallError::garbled("it tells of no entry"))
    }

    /// What lies in a directory, and nothing below that.
    ///
    /// # Errors
    /// As of every call.
    pub async fn list_dir(&self, path: &str, user: Option<&str>) -> Result<Vec<Entry>, CallError> {
        let question = proto::ListDirRequest {
            path: path.to_owned(),
            depth: 1,
            ..Default::default()
        };
        let answer: proto::ListDirResponse = self
            .ask("/filesystem.Filesystem/ListDir", user, &question)
            .await?;
        Ok(answer.entries.into_iter().map(Entry::from).collect())
    }

    /// Makes a directory and those above it; whether it was not there before.
    ///
    /// # Errors
    /// As of every call.
    pub async fn make_dir(&self, path: &str, user: Option<&str>) -> Result<bool, CallError> {
        let question = proto::MakeDirRequest {
            path: path.to_owned(),
            ..Default::default()
        };
        let made: Result<proto::MakeDirResponse, _> =
            self.ask("/filesystem.Filesystem/MakeDir", user, &question).await;
        match made {
            Ok(_) => Ok(true),
            Err(CallError::Refused {
                kind: Kind::Conflict, ..
            }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        user: Option<&str>,
        question: &Q,
    ) -> Result<A, CallError> {
        rpc::unary(self, method, user, question, Some(ANSWER_WITHIN)).await
    }
}

/// What lies at a path of a sandbox, as the sandbox tells it: not even the name can be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path's last part.
    pub name: String,
    /// What it is, or what a link leads to.
    pub kind: EntryKind,
    /// Whether it is a symbolic link.
    pub is_link: bool,
    /// Permission bits.
    pub mode: u32,
    /// Bytes; of a link, its own.
    pub size: u64,
}

/// What kind of thing lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// None of them, or a link that leads nowhere.
    Other,
}

impl From<proto::EntryInfo> for Entry {
    fn from(entry: proto::EntryInfo) -> Self {
        let kind = match entry.r#type.as_known() {
            Some(proto::FileType::FILE_TYPE_FILE) => EntryKind::File,
            Some(proto::FileType::FILE_TYPE_DIRECTORY) => EntryKind::Directory,
            _ => EntryKind::Other,
        };
        Self {
            name: entry.name,
            kind,
            is_link: entry.is_symlink || entry.symlink_target.is_some(),
            mode: entry.mode & 0o7777,
            size: u64::try_from(entry.size).unwrap_or(0),
        }
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
