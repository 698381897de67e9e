use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io, pin, task};

use anyhow::{Context as _, Result, bail};
use sdk::Upload;
use tokio::io::{AsyncRead, ReadBuf};

use super::place::{base_name, below};
use super::remote::{Remote, SeenKind};
use super::{Copied, DEPTH_MAX};

/// Copies standard input to a file.
pub(super) async fn stdin(remote: &mut impl Remote, path: &str, copied: &mut Copied) -> Result<()> {
    let is_dir = path.ends_with('/')
        || remote
            .stat(path)
            .await?
            .is_some_and(|seen| seen.kind == SeenKind::Directory);
    if is_dir {
        bail!("{path} is a directory: name the file");
    }
    let bytes = Arc::new(AtomicU64::new(0));
    let counted = Counted {
        reader: tokio::io::stdin(),
        bytes: Arc::clone(&bytes),
    };
    remote.write(path, Upload::new(counted, None), None).await?;
    copied.files = 1;
    copied.bytes = bytes.load(Ordering::Relaxed);
    Ok(())
}

/// Counts what is read.
struct Counted {
    reader: tokio::io::Stdin,
    bytes: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: pin::Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> task::Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = pin::Pin::new(&mut self.reader).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        polled
    }
}

/// Copies a file, or a directory with all below it, from this machine.
pub(super) async fn send(remote: &mut impl Remote, from: &Path, to: &str, copied: &mut Copied) -> Result<()> {
    let metadata = fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?;
    let there = remote.stat(to).await?.map(|seen| seen.kind);
    let name = from.to_str().and_then(base_name);
    let is_dir = there == Some(SeenKind::Directory);
    if metadata.is_file() {
        let target = if is_dir || to.ends_with('/') {
            let name = name.with_context(|| format!("{} names no file", from.display()))?;
            below(to, name)
        } else {
            to.to_owned()
        };
        return file(remote, from, &target, copied).await;
    }
    if !metadata.is_dir() {
        bail!("{} is neither a file nor a directory", from.display());
    }
    if there.is_some() && !is_dir {
        bail!("{to} is no directory");
    }
    let target = match name {
        Some(name) if is_dir => below(to, name),
        _ => to.to_owned(),
    };
    Box::pin(directory(remote, from, &target, 0, copied)).await
}

async fn directory(
    remote: &mut impl Remote,
    from: &Path,
    to: &str,
    depth: usize,
    copied: &mut Copied,
) -> Result<()> {
    if depth > DEPTH_MAX {
        bail!("{} lies deeper than {DEPTH_MAX} directories", from.display());
    }
    let unreadable = || format!("cannot read {}", from.display());
    let mode = fs::metadata(from).with_context(unreadable)?.permissions().mode() & 0o777;
    remote.make_dir(to, mode).await?;
    let mut entries: Vec<_> = fs::read_dir(from)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .with_context(unreadable)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let place = entry.path();
        let kind = entry.file_type().with_context(unreadable)?;
        let name = entry.file_name();
        let name = name
            .to_str()
            .with_context(|| format!("the name of {} is not UTF-8, and cannot be sent", place.display()))?;
        let target = below(to, name);
        // A link to a file is sent as the file; one to a directory may lead round.
        if kind.is_file() || kind.is_symlink() && place.is_file() {
            file(remote, &place, &target, copied).await?;
        } else if kind.is_dir() {
            Box::pin(directory(remote, &place, &target, depth + 1, copied)).await?;
        } else {
            copied.skip(place.display().to_string());
        }
    }
    Ok(())
}

async fn file(remote: &mut impl Remote, from: &Path, to: &str, copied: &mut Copied) -> Result<()> {
    let cannot = || format!("cannot read {}", from.display());
    let file = fs::File::open(from).with_context(cannot)?;
    let metadata = file.metadata().with_context(cannot)?;
    let (bytes, mode) = (metadata.len(), metadata.permissions().mode() & 0o777);
    let content = Upload::new(tokio::fs::File::from_std(file), Some(bytes));
    remote
        .write(to, content, Some(mode))
        .await
        .with_context(|| format!("cannot copy {}", from.display()))?;
    copied.files += 1;
    copied.bytes += bytes;
    Ok(())
}
