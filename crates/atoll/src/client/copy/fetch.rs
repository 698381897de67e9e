use std::path::Path;

use anyhow::{Context as _, Result, bail};
use sdk::FileReader;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::local::Dir;
use super::place::{base_name, below, is_plain};
use super::remote::{Remote, Seen, SeenKind};
use super::{Copied, DEPTH_MAX};
use crate::client::words::short;
use crate::out;

/// Copies a file to standard output.
pub(super) async fn to_stdout(remote: &impl Remote, path: &str, copied: &mut Copied) -> Result<()> {
    let mut reader = remote.read(path).await?;
    let mut output = tokio::io::stdout();
    while let Some(piece) = reader.chunk().await? {
        copied.bytes += piece.len() as u64;
        if let Err(error) = output.write_all(&piece).await {
            return out::unwritten(error);
        }
    }
    copied.files = 1;
    output.flush().await.or_else(out::unwritten)
}

/// Copies a file, or a directory with all below it, to this machine.
pub(super) async fn fetch(remote: &impl Remote, path: &str, to: &Path, copied: &mut Copied) -> Result<()> {
    let Some(seen) = remote.stat(path).await? else {
        bail!("nothing lies at {path}");
    };
    let is_dir = to.is_dir();
    match seen.kind {
        SeenKind::File if is_dir || ends_with_slash(to) => {
            let name = base_name(path).with_context(|| format!("{path} names no file"))?;
            file(remote, path, &open(to)?, name, seen.mode, copied).await
        }
        SeenKind::File => {
            let (dir, name) = split(to)?;
            file(remote, path, &open(dir)?, name, seen.mode, copied).await
        }
        SeenKind::Directory => {
            let target = match base_name(path) {
                Some(name) if is_dir => enter(&open(to)?, name, seen.mode)?,
                _ if is_dir => open(to)?,
                _ => {
                    let (dir, name) = split(to)?;
                    enter(&open(dir)?, name, seen.mode)?
                }
            };
            Box::pin(directory(remote, path, &target, 0, copied)).await
        }
        SeenKind::Other => bail!("{path} is neither a file nor a directory"),
    }
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// The directory above a path, and its name there.
fn split(path: &Path) -> Result<(&Path, &str)> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("{} names no file", path.display()))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    Ok((dir.unwrap_or(Path::new(".")), name))
}

fn open(dir: &Path) -> Result<Dir> {
    Dir::open(dir).with_context(|| format!("cannot open the directory {}", dir.display()))
}

fn enter(dir: &Dir, name: &str, mode: u32) -> Result<Dir> {
    dir.enter(name, mode)
        .with_context(|| format!("cannot make the directory {}", dir.path.join(name).display()))
}

async fn directory(
    remote: &impl Remote,
    path: &str,
    to: &Dir,
    depth: usize,
    copied: &mut Copied,
) -> Result<()> {
    if depth > DEPTH_MAX {
        bail!("{} lies deeper than {DEPTH_MAX} directories", short(path));
    }
    for Seen { name, kind, mode } in remote.list(path).await? {
        if !is_plain(&name) {
            bail!(
                "the other side calls an entry of {} '{}', which is no name",
                short(path),
                short(&name)
            );
        }
        let from = below(path, &name);
        match kind {
            SeenKind::File => file(remote, &from, to, &name, mode, copied).await?,
            SeenKind::Directory => {
                let inner = enter(to, &name, mode)?;
                Box::pin(directory(remote, &from, &inner, depth + 1, copied)).await?;
            }
            SeenKind::Other => copied.skip(from),
        }
    }
    Ok(())
}

async fn file(
    remote: &impl Remote,
    path: &str,
    dir: &Dir,
    name: &str,
    mode: u32,
    copied: &mut Copied,
) -> Result<()> {
    let cannot = || format!("cannot write {}", dir.path.join(name).display());
    let reader = remote
        .read(path)
        .await
        .with_context(|| format!("cannot read {}", short(path)))?;
    let mut writing = dir.write(name, mode).with_context(cannot)?;
    copied.bytes += pour(reader, &mut writing.file).await.with_context(cannot)?;
    writing.finish().with_context(cannot)?;
    copied.files += 1;
    Ok(())
}

async fn pour(mut from: FileReader, to: &mut (impl AsyncWrite + Unpin)) -> Result<u64> {
    let mut bytes = 0;
    while let Some(piece) = from.chunk().await? {
        bytes += piece.len() as u64;
        to.write_all(&piece).await?;
    }
    to.flush().await?;
    Ok(bytes)
}
