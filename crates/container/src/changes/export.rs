//! A whole root as a tar, a piece at a time.
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use ports::blobs::ByteStream;
use ports::root::EXPORT_BYTES_MAX;
use rustix::fs::{Dir, FileType, OFlags, Stat};
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

use super::{Laid, Place, Seen, View, next_name};
use crate::house::House;
use crate::pool::Pool;
use crate::step::{At as _, Step};

/// What is written before it is passed on.
const PIECE_BYTES: usize = 128 << 10;
/// Pieces that wait to be read.
const PIECES_MAX: usize = 4;
/// Hard links that are remembered; of more, each is a file of its own.
const LINKS_MAX: usize = 200_000;
/// Names and values of extended attributes of one file.
const XATTRS_BYTES_MAX: usize = 256 << 10;

/// The tar of what is laid, made on a thread of its own as it is read.
pub(super) fn stream(house: &Arc<House>, pool: &Arc<Pool>, laid: Laid) -> ByteStream {
    let (pieces, read) = mpsc::channel(PIECES_MAX);
    let (owner, pool) = (Arc::clone(house), Arc::clone(pool));
    house.work.spawn_blocking(move || {
        let mut out = Pieces {
            to: pieces.clone(),
            piece: BytesMut::new(),
        };
        let written = write(&laid.places, &mut out);
        laid.close(&owner, &pool);
        if let Err(Step { step, source }) = written {
            // Whoever reads no more is no failure.
            if !pieces.is_closed() {
                tracing::warn!(step, error = %source, "a root was not exported to its end");
            }
            let _ = pieces.blocking_send(Err(io::Error::new(source.kind(), format!("{step}: {source}"))));
        }
    });
    futures_util::stream::unfold(read, async |mut read| Some((read.recv().await?, read))).boxed()
}

/// Where the bytes go.
struct Pieces {
    to: mpsc::Sender<io::Result<Bytes>>,
    piece: BytesMut,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = self.piece.split().freeze();
        self.to
            .blocking_send(Ok(piece))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn write(places: &[Place], out: &mut Pieces) -> Result<(), Step> {
    let mut tar = Tar {
        places,
        out: Builder::new(out),
        links: HashMap::new(),
        bytes: 0,
    };
    tar.walk()?;
    let out = tar.out.into_inner().at("ending a tar")?;
    out.flush().at("writing a tar")
}

/// The tar of a few small files, at once.
#[cfg(test)]
pub(super) fn whole(places: &[Place]) -> Vec<u8> {
    let (to, mut read) = mpsc::channel(1024);
    let piece = BytesMut::new();
    write(places, &mut Pieces { to, piece }).expect("nothing goes wrong");
    let mut all = Vec::new();
    while let Ok(piece) = read.try_recv() {
        all.extend_from_slice(&piece.expect("nothing goes wrong"));
    }
    all
}

struct Tar<'a> {
    places: &'a [Place],
    out: Builder<&'a mut Pieces>,
    /// Files with several names, by device and number, and the first name of each.
    links: HashMap<(u64, u64), PathBuf>,
    bytes: u64,
}

impl Tar<'_> {
    /// The view that has a path, and how it is called there.
    fn place<'p>(&self, path: &'p Path) -> Result<(&View, &'p Path), Step> {
        let within = |place: &Place| path.strip_prefix(place.target.trim_start_matches('/')).ok();
        self.places
            .iter()
            .filter_map(|place| Some((place.target.len(), &place.view, within(place)?)))
            .max_by_key(|(length, ..)| *length)
            .map(|(_, view, rest)| (view, rest))
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .at("finding the root")
    }

    fn list(&self, path: &Path) -> Result<Option<Dir>, Step> {
        let (view, rest) = self.place(path)?;
        view.list(rest)
    }

    fn walk(&mut self) -> Result<(), Step> {
        // As many are open as a path has parts.
        let mut open = vec![(PathBuf::new(), self.list(Path::new(""))?)];
        while let Some((above, dir)) = open.last_mut() {
            let Some(name) = dir.as_mut().and_then(next_name) else {
                open.pop();
                continue;
            };
            let path = above.join(name?);
            let (view, rest) = self.place(&path)?;
            let about = match view.look(rest)? {
                Seen::Something(about) => about,
                Seen::Nothing => continue,
                Seen::TooLong => {
                    return Err(io::Error::from(io::ErrorKind::InvalidFilename))
                        .at("naming what lies deeper than paths reach");
                }
            };
            self.add(&path, &about)?;
            if FileType::from_raw_mode(about.st_mode) == FileType::Directory {
                let dir = self.list(&path)?;
                open.push((path, dir));
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, about: &Stat) -> Result<(), Step> {
        let (view, rest) = self.place(path)?;
        let kind = FileType::from_raw_mode(about.st_mode);
        match kind {
            FileType::Directory => {
                let dir = view.open(rest, OFlags::RDONLY | OFlags::DIRECTORY);
                let xattrs = xattrs(&File::from(dir.at(format!("opening /{}", path.display()))?));
                let mut name = path.as_os_str().as_bytes().to_vec();
                name.push(b'/');
                self.put(&name, about, EntryType::Directory, None, xattrs, None)
            }
            FileType::Symlink => {
                let target = view.link(rest)?;
                let name = path.as_os_str().as_bytes();
                self.put(name, about, EntryType::Symlink, Some(&target), Vec::new(), None)
            }
            FileType::Fifo => {
                let name = path.as_os_str().as_bytes();
                self.put(name, about, EntryType::Fifo, None, Vec::new(), None)
            }
            FileType::RegularFile => self.add_file(path, about),
            // Devices and sockets mean nothing where they are not made.
            _ => Ok(()),
        }
    }

    fn add_file(&mut self, path: &Path, about: &Stat) -> Result<(), Step> {
        let name = path.as_os_str().as_bytes();
        let number = (about.st_dev, about.st_ino);
        if about.st_nlink > 1 {
            if let Some(first) = self.links.get(&number).cloned() {
                let first = first.as_os_str().as_bytes();
                return self.put(name, about, EntryType::Link, Some(first), Vec::new(), None);
            }
            if self.links.len() < LINKS_MAX {
                self.links.insert(number, path.to_owned());
            }
        }
        self.bytes = self
            .bytes
            .saturating_add(u64::try_from(about.st_size).unwrap_or(u64::MAX));
        if self.bytes > EXPORT_BYTES_MAX {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge)).at(format!(
                "exporting more than {} GiB of files",
                EXPORT_BYTES_MAX >> 30
            ));
        }
        let (view, rest) = self.place(path)?;
        let file = view.file(rest)?;
        let xattrs = xattrs(&file);
        self.put(name, about, EntryType::Regular, None, xattrs, Some(file))
    }

    fn put(
        &mut self,
        name: &[u8],
        about: &Stat,
        kind: EntryType,
        link: Option<&[u8]>,
        xattrs: Vec<(String, Vec<u8>)>,
        content: Option<File>,
    ) -> Result<(), Step> {
        let step = || format!("writing /{} into a tar", String::from_utf8_lossy(name));
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(about.st_mode & 0o7777);
        header.set_uid(about.st_uid.into());
        header.set_gid(about.st_gid.into());
        header.set_mtime(u64::try_from(about.st_mtime).unwrap_or(0));
        let size = match &content {
            Some(_) => u64::try_from(about.st_size).unwrap_or(0),
            None => 0,
        };
        header.set_size(size);
        let mut extensions = xattrs;
        {
            let old = header.as_old_mut();
            let mut fill = |field: &mut [u8; 100], text: &[u8], key: &str| {
                let short = text.len().min(field.len());
                field[..short].copy_from_slice(&text[..short]);
                if text.len() > field.len() {
                    extensions.push((key.to_owned(), text.to_vec()));
                }
            };
            fill(&mut old.name, name, "path");
            if let Some(link) = link {
                fill(&mut old.linkname, link, "linkpath");
            }
        }
        header.set_cksum();
        if !extensions.is_empty() {
            let pairs = extensions
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_slice()));
            self.out.append_pax_extensions(pairs).at(step())?;
        }
        match content {
            None => self.out.append(&header, io::empty()).at(step()),
            Some(file) => {
                let mut content = file.take(size);
                self.out.append(&header, &mut content).at(step())?;
                // The header has promised as much.
                if content.limit() > 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof)).at(step());
                }
                Ok(())
            }
        }
    }
}

/// Extended attributes of users, as archives name them. What cannot be read, or is too much, is left out.
fn xattrs(file: &File) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 64 << 10];
    let Ok(length) = rustix::fs::flistxattr(file, &mut names[..]) else {
        return Vec::new();
    };
    let mut left = XATTRS_BYTES_MAX;
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        let Some(name) = std::str::from_utf8(name)
            .ok()
            .filter(|name| name.starts_with("user."))
        else {
            continue;
        };
        let mut value = vec![0; 64 << 10];
        let Ok(length) = rustix::fs::fgetxattr(file, name, &mut value[..]) else {
            continue;
        };
        value.truncate(length);
        let Some(rest) = left.checked_sub(name.len() + length) else {
            break;
        };
        left = rest;
        found.push((format!("SCHILY.xattr.{name}"), value));
    }
    found
}
