//! [`ports::VolumeFiles`] over the network: the files in the volumes of one node.
use std::future::ready;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use connectrpc::client::CallOptions;
use connectrpc::{
    ConnectError, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures_util::{StreamExt as _, stream};
use model::{MiB, NodeId, VolumeId};
use ports::VolumeFiles;
use ports::blobs::ByteStream;
use ports::volumes::{FileError, FileStat, Ownership};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wire::node as proto;

use crate::call::{Outcome, Repeat, call, with_detail};
use crate::channel::{CallFailed, Channel};
use crate::convert::{Malformed, Read, file_kind, from_file_kind, nanos, parsed, time};
use crate::node::{CHUNK_BYTES_MAX, REACHING, chunks, config, malformed};
use crate::status::code;
use crate::tls::{Expected, Tls};
use crate::words::word;

/// A word with the node.
const WORD: Duration = Duration::from_secs(30);
/// Removing a directory with everything in it, or a volume.
const REMOVE: Duration = Duration::from_secs(600);
/// Whoever reads or writes does it as fast as he likes.
const MOVE: Duration = Duration::from_secs(6 * 3600);
/// So many files go into one message.
const PART: usize = 256;
/// More files than anybody lists.
const FILES_MAX: usize = 1_000_000;
/// Pieces of a file that wait to be written.
const PIECES_MAX: usize = 4;

// ---- as messages ----

fn to_wire(method: &'static str, error: &FileError) -> ConnectError {
    use proto::FileReason as R;
    let none = String::new;
    let (reason, text, word) = match error {
        FileError::NoVolume => (R::FILE_REASON_NO_VOLUME, none(), none()),
        FileError::InUse(volume) => (R::FILE_REASON_IN_USE, volume.to_string(), none()),
        FileError::NotFound(path) => (R::FILE_REASON_NOT_FOUND, path.clone(), none()),
        FileError::Exists(path) => (R::FILE_REASON_EXISTS, path.clone(), none()),
        FileError::WrongKind { path, wanted } => {
            (R::FILE_REASON_WRONG_KIND, path.clone(), (*wanted).to_owned())
        }
        FileError::Invalid(why) => (R::FILE_REASON_INVALID, why.clone(), none()),
        FileError::Full => (R::FILE_REASON_FULL, none(), none()),
        FileError::Source(error) => (R::FILE_REASON_SOURCE, error.to_string(), none()),
        // Who has them knows neither another node nor whether that is away: these are said by those who ask.
        FileError::Away { .. } | FileError::Lost { .. } | FileError::Crowded => {
            (R::FILE_REASON_FAILED, none(), REACHING.to_owned())
        }
        FileError::Failed { step, .. } => {
            tracing::warn!(
                method,
                error = crate::causes(error),
                "a call for a file of a volume failed"
            );
            (R::FILE_REASON_FAILED, none(), (*step).to_owned())
        }
    };
    let failure = proto::FileFailure {
        reason: reason.into(),
        text,
        word,
        ..Default::default()
    };
    with_detail(code(error.kind()), error.to_string(), &failure)
}

fn from_wire(failure: proto::FileFailure) -> FileError {
    use proto::FileReason as R;
    let there = || io::Error::other("the log of the node tells why");
    match failure.reason.as_known() {
        Some(R::FILE_REASON_NO_VOLUME) => FileError::NoVolume,
        Some(R::FILE_REASON_IN_USE) => match failure.text.parse() {
            Ok(volume) => FileError::InUse(volume),
            Err(_) => failed("understanding the node", Malformed("volume id")),
        },
        Some(R::FILE_REASON_NOT_FOUND) => FileError::NotFound(failure.text),
        Some(R::FILE_REASON_EXISTS) => FileError::Exists(failure.text),
        Some(R::FILE_REASON_WRONG_KIND) => FileError::WrongKind {
            path: failure.text,
            wanted: word(&failure.word),
        },
        Some(R::FILE_REASON_INVALID) => FileError::Invalid(failure.text),
        Some(R::FILE_REASON_FULL) => FileError::Full,
        Some(R::FILE_REASON_SOURCE) => FileError::Source(io::Error::other(failure.text)),
        Some(R::FILE_REASON_FAILED) | None => FileError::Failed {
            step: word(&failure.word),
            source: there(),
        },
    }
}

fn failed(step: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> FileError {
    FileError::Failed {
        step,
        source: io::Error::other(error),
    }
}

/// What a call means that was not answered well, and by whom it was to be.
fn from_outcome(node: NodeId, volume: Option<VolumeId>, outcome: Outcome<proto::FileFailure>) -> FileError {
    let away = |why: String| {
        tracing::debug!(%node, volume = volume.map(tracing::field::display), why, "a node did not answer for its volumes");
        match volume {
            Some(volume) => FileError::Away { volume, node },
            None => FileError::Failed {
                step: REACHING,
                source: io::Error::other(why),
            },
        }
    };
    match outcome {
        Outcome::Told(failure) => from_wire(failure),
        Outcome::Refused(refusal) => match refusal.reason.as_known() {
            Some(proto::refusal::Reason::REASON_CALLS) => FileError::Crowded,
            _ => FileError::Failed {
                step: "being let in by the node",
                source: io::Error::other(refusal.text),
            },
        },
        Outcome::Late => away("it took too long".to_owned()),
        Outcome::Lost(error) => away(crate::causes(&error)),
        Outcome::Undone(error) => match crate::call::failed(&error) {
            Some(CallFailed::Open(..) | CallFailed::Unreached { .. }) => away(crate::causes(&error)),
            // It was reached, and does not know the call, or what it says.
            _ => failed("asking the node", error),
        },
    }
}

fn stat(stat: FileStat) -> proto::FileStat {
    proto::FileStat {
        name: stat.name,
        path: stat.path,
        kind: file_kind(stat.kind).into(),
        size: stat.size,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        atime: nanos(stat.atime),
        mtime: nanos(stat.mtime),
        ctime: nanos(stat.ctime),
        target: stat.target,
        ..Default::default()
    }
}

fn from_stat(stat: proto::FileStat) -> FileStat {
    FileStat {
        name: stat.name,
        path: stat.path,
        kind: from_file_kind(stat.kind),
        size: stat.size,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        atime: time(stat.atime),
        mtime: time(stat.mtime),
        ctime: time(stat.ctime),
        target: stat.target,
    }
}

fn ownership(ownership: Ownership) -> proto::Ownership {
    proto::Ownership {
        uid: ownership.uid,
        gid: ownership.gid,
        mode: ownership.mode,
        ..Default::default()
    }
}

fn from_ownership(ownership: Option<&proto::Ownership>) -> Ownership {
    ownership.map_or_else(Ownership::default, |ownership| Ownership {
        uid: ownership.uid,
        gid: ownership.gid,
        mode: ownership.mode,
    })
}

fn at(volume: VolumeId, path: &str) -> proto::FileRequest {
    proto::FileRequest {
        volume: volume.to_string(),
        path: path.to_owned(),
        ..Default::default()
    }
}

fn from_at(at: Option<&proto::FileRequest>) -> Read<(VolumeId, String)> {
    let at = at.ok_or(Malformed("place of a file"))?;
    Ok((parsed(&at.volume, "volume id")?, at.path.clone()))
}

// ---- the node's side ----

pub(crate) struct VolumesService(pub(crate) Arc<dyn VolumeFiles>);

fn done() -> ServiceResult<proto::Done> {
    Response::ok(proto::Done::default())
}

#[expect(
    refining_impl_trait,
    reason = "callers are generated, and do not see more than the trait"
)]
impl proto::Volumes for VolumesService {
    async fn make(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::MakeVolumeRequest>,
    ) -> ServiceResult<proto::Done> {
        let request = request.to_owned_message();
        let volume = parsed(&request.volume, "volume id").map_err(malformed)?;
        let made = self.0.make(volume, MiB(request.size_mib)).await;
        made.map_err(|error| to_wire("Make", &error))?;
        done()
    }

    async fn discard(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::VolumeRequest>,
    ) -> ServiceResult<proto::Done> {
        let volume = parsed(request.volume, "volume id").map_err(malformed)?;
        let discarded = self.0.discard(volume).await;
        discarded.map_err(|error| to_wire("Discard", &error))?;
        done()
    }

    async fn held(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, proto::HeldVolumesRequest>,
    ) -> ServiceResult<proto::HeldVolumes> {
        let held = self.0.held().await;
        let held = held.map_err(|error| to_wire("Held", &error))?;
        Response::ok(proto::HeldVolumes {
            volumes: held.iter().map(VolumeId::to_string).collect(),
            ..Default::default()
        })
    }

    async fn stat(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::FileRequest>,
    ) -> ServiceResult<proto::FileStat> {
        let (volume, path) = from_at(Some(&request.to_owned_message())).map_err(malformed)?;
        let found = self.0.stat(volume, &path).await;
        Response::ok(stat(found.map_err(|error| to_wire("Stat", &error))?))
    }

    async fn change(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::ChangeFileRequest>,
    ) -> ServiceResult<proto::FileStat> {
        let request = request.to_owned_message();
        let (volume, path) = from_at(request.at.as_option()).map_err(malformed)?;
        let owner = from_ownership(request.ownership.as_option());
        let changed = self.0.change(volume, &path, owner).await;
        Response::ok(stat(changed.map_err(|error| to_wire("Change", &error))?))
    }

    async fn list(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::ListFilesRequest>,
    ) -> ServiceResult<ServiceStream<proto::FileList>> {
        let request = request.to_owned_message();
        let (volume, path) = from_at(request.at.as_option()).map_err(malformed)?;
        let files = self.0.list(volume, &path, request.depth).await;
        let files = files.map_err(|error| to_wire("List", &error))?;
        let parts = stream::iter(files).map(stat).chunks(PART);
        Ok(Response::stream(parts.map(|files| {
            Ok(proto::FileList {
                files,
                ..Default::default()
            })
        })))
    }

    async fn make_dir(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::MakeDirRequest>,
    ) -> ServiceResult<proto::FileStat> {
        let request = request.to_owned_message();
        let (volume, path) = from_at(request.at.as_option()).map_err(malformed)?;
        let owner = from_ownership(request.ownership.as_option());
        let made = self.0.make_dir(volume, &path, owner, request.force).await;
        Response::ok(stat(made.map_err(|error| to_wire("MakeDir", &error))?))
    }

    async fn remove(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::FileRequest>,
    ) -> ServiceResult<proto::Done> {
        let (volume, path) = from_at(Some(&request.to_owned_message())).map_err(malformed)?;
        let removed = self.0.remove(volume, &path).await;
        removed.map_err(|error| to_wire("Remove", &error))?;
        done()
    }

    async fn read(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::FileRequest>,
    ) -> ServiceResult<ServiceStream<proto::FilePart>> {
        let (volume, path) = from_at(Some(&request.to_owned_message())).map_err(malformed)?;
        let read = self.0.read(volume, &path).await;
        let (size, bytes) = read.map_err(|error| to_wire("Read", &error))?;
        let head = proto::FilePart {
            size: Some(size),
            ..Default::default()
        };
        let parts = chunks(bytes, |data| proto::FilePart {
            data: data.into(),
            ..Default::default()
        });
        Ok(Response::stream(stream::once(ready(Ok(head))).chain(parts)))
    }

    async fn write(
        &self,
        _: RequestContext,
        mut requests: InboundStream<proto::WriteFilePart>,
    ) -> ServiceResult<proto::FileStat> {
        let first = requests.next().await;
        let first = first.ok_or_else(|| malformed(Malformed("place of a file")))??;
        let first = first.to_owned_message();
        let (volume, path) = from_at(first.at.as_option()).map_err(malformed)?;
        let owner = from_ownership(first.ownership.as_option());
        // What ends without its last part has broken off, and is not written.
        let pieces = stream::unfold(Some(requests), |requests| async move {
            let mut requests = requests?;
            let broken = |text: String| Some((Err(io::Error::new(io::ErrorKind::UnexpectedEof, text)), None));
            match requests.next().await {
                Some(Ok(part)) => {
                    let part = part.to_owned_message();
                    if part.last {
                        return None;
                    }
                    Some((Ok(Bytes::from(part.data)), Some(requests)))
                }
                Some(Err(error)) => broken(error.to_string()),
                None => broken("the bytes ended before their end".to_owned()),
            }
        });
        let written = self
            .0
            .write(volume, &path, pieces.boxed(), owner, first.force)
            .await;
        Response::ok(stat(written.map_err(|error| to_wire("Write", &error))?))
    }
}

// ---- the side of whoever asks ----

/// The files in the volumes of a node on another machine.
pub struct RemoteVolumes {
    node: NodeId,
    client: proto::VolumesClient<Channel>,
}

impl RemoteVolumes {
    /// Of the node of this id, at an address (`host:port`). Nothing is connected yet.
    pub fn connect(node: NodeId, address: &str, tls: &Tls) -> Arc<dyn VolumeFiles> {
        let channel = Channel::new(address, Expected::node(node), tls);
        Arc::new(Self {
            node,
            client: proto::VolumesClient::new(channel, config()),
        })
    }

    /// Asks about a volume.
    async fn ask<T, F>(
        &self,
        volume: VolumeId,
        limit: Duration,
        repeat: Repeat,
        send: impl FnMut(CallOptions) -> F,
    ) -> Result<T, FileError>
    where
        F: Future<Output = Result<T, ConnectError>>,
    {
        let answer = call(limit, repeat, send).await;
        answer.map_err(|outcome| from_outcome(self.node, Some(volume), outcome))
    }
}

#[async_trait]
impl VolumeFiles for RemoteVolumes {
    async fn make(&self, id: VolumeId, size: MiB) -> Result<(), FileError> {
        let request = proto::MakeVolumeRequest {
            volume: id.to_string(),
            size_mib: size.0,
            ..Default::default()
        };
        let send = |options| self.client.make_with_options(request.clone(), options);
        self.ask(id, WORD, Repeat::Never, send).await.map(drop)
    }

    async fn discard(&self, id: VolumeId) -> Result<(), FileError> {
        let request = proto::VolumeRequest {
            volume: id.to_string(),
            ..Default::default()
        };
        let send = |options| self.client.discard_with_options(request.clone(), options);
        self.ask(id, REMOVE, Repeat::Once, send).await.map(drop)
    }

    async fn held(&self) -> Result<Vec<VolumeId>, FileError> {
        let request = proto::HeldVolumesRequest::default();
        let send = |options| self.client.held_with_options(request.clone(), options);
        let held = call(WORD, Repeat::Once, send).await;
        let held = held.map_err(|outcome| from_outcome(self.node, None, outcome))?;
        let held = held.into_owned().volumes;
        let ids = held.iter().map(|volume| parsed(volume, "volume id"));
        ids.collect::<Read<_>>()
            .map_err(|malformed| failed("understanding the node", malformed))
    }

    async fn stat(&self, id: VolumeId, path: &str) -> Result<FileStat, FileError> {
        let request = at(id, path);
        let send = |options| self.client.stat_with_options(request.clone(), options);
        let found = self.ask(id, WORD, Repeat::Once, send).await?;
        Ok(from_stat(found.into_owned()))
    }

    async fn change(&self, id: VolumeId, path: &str, owner: Ownership) -> Result<FileStat, FileError> {
        let request = proto::ChangeFileRequest {
            at: Some(at(id, path)).into(),
            ownership: Some(ownership(owner)).into(),
            ..Default::default()
        };
        let send = |options| self.client.change_with_options(request.clone(), options);
        let changed = self.ask(id, WORD, Repeat::Once, send).await?;
        Ok(from_stat(changed.into_owned()))
    }

    async fn list(&self, id: VolumeId, path: &str, depth: u32) -> Result<Vec<FileStat>, FileError> {
        let request = proto::ListFilesRequest {
            at: Some(at(id, path)).into(),
            depth,
            ..Default::default()
        };
        self.ask(id, WORD, Repeat::Once, |options| {
            let request = request.clone();
            async move {
                let mut parts = self.client.list_with_options(request, options).await?;
                let mut files = Vec::new();
                while let Some(part) = parts.message::<proto::FileList>().await? {
                    files.extend(part.to_owned_message().files.into_iter().map(from_stat));
                    if files.len() > FILES_MAX {
                        return Err(ConnectError::invalid_argument(
                            "more files are there than can be listed",
                        ));
                    }
                }
                Ok(files)
            }
        })
        .await
    }

    // Doing these twice is not the same as doing them once: what was there before is another's.
    async fn make_dir(
        &self,
        id: VolumeId,
        path: &str,
        owner: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError> {
        let request = proto::MakeDirRequest {
            at: Some(at(id, path)).into(),
            ownership: Some(ownership(owner)).into(),
            force,
            ..Default::default()
        };
        let send = |options| self.client.make_dir_with_options(request.clone(), options);
        let made = self.ask(id, WORD, Repeat::Never, send).await?;
        Ok(from_stat(made.into_owned()))
    }

    async fn remove(&self, id: VolumeId, path: &str) -> Result<(), FileError> {
        let request = at(id, path);
        let send = |options| self.client.remove_with_options(request.clone(), options);
        self.ask(id, REMOVE, Repeat::Never, send).await.map(drop)
    }

    async fn read(&self, id: VolumeId, path: &str) -> Result<(u64, ByteStream), FileError> {
        let request = at(id, path);
        let (first, parts) = self
            .ask(id, MOVE, Repeat::Once, |options| {
                let request = request.clone();
                async move {
                    let mut parts = self.client.read_with_options(request, options).await?;
                    let first = parts.message::<proto::FilePart>().await?;
                    Ok((first.map(|first| first.to_owned_message()), parts))
                }
            })
            .await?;
        let size = first.and_then(|first| first.size);
        let size = size.ok_or_else(|| failed("understanding the node", Malformed("size of a file")))?;
        let bytes = stream::unfold(Some(parts), |parts| async move {
            let mut parts = parts?;
            match parts.message::<proto::FilePart>().await {
                Ok(Some(part)) => Some((Ok(Bytes::from(part.to_owned_message().data)), Some(parts))),
                Ok(None) => None,
                Err(error) => Some((Err(io::Error::other(error)), None)),
            }
        });
        Ok((size, bytes.boxed()))
    }

    async fn write(
        &self,
        id: VolumeId,
        path: &str,
        bytes: ByteStream,
        owner: Ownership,
        force: bool,
    ) -> Result<FileStat, FileError> {
        let head = proto::WriteFilePart {
            at: Some(at(id, path)).into(),
            ownership: Some(ownership(owner)).into(),
            force,
            ..Default::default()
        };
        let (parts, sent) = mpsc::channel(PIECES_MAX);
        let gone = CancellationToken::new();
        let feeding = feed(head, bytes, parts, gone.clone());
        let requests = stream::unfold(sent, |mut sent| async move {
            let part = sent.recv().await?;
            Some((part, sent))
        });
        let mut requests = Some(requests);
        let writing = async {
            let written = self.ask(id, MOVE, Repeat::Never, |options| {
                let requests = requests.take();
                async move {
                    let requests = requests.ok_or_else(|| ConnectError::internal("bytes are read once"))?;
                    self.client.write_with_options(requests, options).await
                }
            });
            let written = written.await;
            gone.cancel();
            written
        };
        let (written, fed) = tokio::join!(writing, feeding);
        // Why the bytes broke off is known here; the node knows that they did.
        fed.map_err(FileError::Source)?;
        Ok(from_stat(written?.into_owned()))
    }
}

/// Sends a file in pieces, and that it is whole, where it is. `gone`: nobody wants it any more.
async fn feed(
    head: proto::WriteFilePart,
    mut bytes: ByteStream,
    parts: mpsc::Sender<proto::WriteFilePart>,
    gone: CancellationToken,
) -> io::Result<()> {
    let feeding = async {
        if parts.send(head).await.is_err() {
            return Ok::<_, io::Error>(());
        }
        while let Some(piece) = bytes.next().await {
            let mut piece = piece?;
            while !piece.is_empty() {
                let part = proto::WriteFilePart {
                    data: piece.split_to(piece.len().min(CHUNK_BYTES_MAX)).into(),
                    ..Default::default()
                };
                if parts.send(part).await.is_err() {
                    return Ok(());
                }
            }
        }
        let last = proto::WriteFilePart {
            last: true,
            ..Default::default()
        };
        let _ = parts.send(last).await;
        Ok(())
    };
    // Dropping it ends the stream, with or without its last part.
    gone.run_until_cancelled(feeding).await.unwrap_or(Ok(()))
}
