//! Images in files of this machine: a layout of OCI, as a directory or a tar, and what `docker save` writes.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;

use crate::digest::Digest;
use crate::layer::source::{Hashed, Plain};
use crate::manifest::{
    Config, DOCUMENT_BYTES_MAX, Descriptor, Document, Manifest, ManifestError, Platform, choose,
};
use crate::reference::Reference;
use crate::tar::{Archive as Tar, What};

/// Files of an archive of images: blobs, and what names them.
const MEMBERS_MAX: usize = 100_000;
/// A name of one.
const NAME_BYTES_MAX: usize = 1024;
/// Links from one name of an archive to another.
const LINKS_MAX: usize = 8;
/// Indexes that lead to indexes.
const INDEXES_MAX: usize = 4;
/// Images of one archive.
const IMAGES_MAX: usize = 1024;

/// What a layout's index says of an image's name: the tag, or by some writers the name in full.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The name in full, as containerd and Docker write it.
const FULL_NAME: &str = "io.containerd.image.name";

/// Files with names, somewhere.
enum Files {
    Dir(OwnedFd),
    Tar(Arc<File>, BTreeMap<String, Member>),
}

enum Member {
    File { at: u64, bytes: u64 },
    Link(String),
}

/// An archive, opened.
pub(crate) struct Archive {
    files: Files,
}

/// An image in an archive.
#[derive(Debug)]
pub(crate) struct Found {
    /// Of its manifest, or where there is none of its configuration.
    pub(crate) digest: Digest,
    /// What it is called there, in full.
    pub(crate) name: Option<String>,
    pub(crate) config: Config,
    /// The lowest first.
    pub(crate) layers: Vec<Layer>,
}

/// A layer in an archive.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Its file.
    file: String,
    /// Of its bytes as they are there, where that is known.
    pub(crate) blob: Option<Digest>,
    /// Of its bytes uncompressed.
    pub(crate) diff: Digest,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// What is wrong with it.
    #[error("{0}")]
    Wrong(String),
    /// It is for other machines, for these.
    #[error("it is for other machines")]
    Platform(Vec<String>),
    /// A file of it is not what its name says.
    #[error("its file {what} has another digest")]
    Digest {
        what: String,
        expected: Digest,
        found: Digest,
    },
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
}

impl From<ManifestError> for ArchiveError {
    fn from(ManifestError(why): ManifestError) -> Self {
        ArchiveError::Wrong(why)
    }
}

type Done<T> = Result<T, ArchiveError>;

fn wrong<T>(why: impl Into<String>) -> Done<T> {
    Err(ArchiveError::Wrong(why.into()))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Archive {
    /// Opens a directory or a tar; one that is compressed is uncompressed into a file without a name in `scratch`, of at most so
    /// many bytes. Blocks.
    pub(crate) fn open(path: &Path, scratch: &Path, bytes_max: u64) -> Done<Self> {
        // What is neither a file nor a directory is not waited for.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?;
        let file = File::from(opened);
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Ok(Self {
                files: Files::Dir(file.into()),
            });
        }
        if !kind.is_file() {
            return wrong("it is neither a file nor a directory");
        }
        let mut first = [0; 6];
        let read = file.read_at(&mut first, 0)?;
        let is_tar = !matches!(
            &first[..read],
            [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', ..]
        );
        let file = if is_tar {
            file
        } else {
            match Plain::new(file)? {
                Err(_) => return wrong("it is compressed by something else than gzip and zstd"),
                Ok(plain) => {
                    let mut whole = tempfile::tempfile_in(scratch)?;
                    io::copy(&mut Hashed::new(plain, bytes_max), &mut whole)?;
                    whole.seek(SeekFrom::Start(0))?;
                    whole
                }
            }
        };
        let members = members(&file)?;
        Ok(Self {
            files: Files::Tar(Arc::new(file), members),
        })
    }

    /// Bytes of a layer.
    pub(crate) fn layer(&self, layer: &Layer) -> Done<Box<dyn Read + Send>> {
        Ok(self.file(&layer.file)?.0)
    }

    /// A file by its name, and how long it is.
    fn file(&self, name: &str) -> Done<(Box<dyn Read + Send>, u64)> {
        match self.find(name)? {
            Some(found) => Ok(found),
            None => wrong(format!("it has no file {:?}", short(name))),
        }
    }

    fn find(&self, name: &str) -> Done<Option<(Box<dyn Read + Send>, u64)>> {
        match &self.files {
            Files::Dir(dir) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                match rustix::fs::openat2(dir, name, flags, Mode::empty(), within) {
                    Err(rustix::io::Errno::NOENT) => Ok(None),
                    Err(rustix::io::Errno::XDEV) => {
                        wrong(format!("its file {:?} leads out of it", short(name)))
                    }
                    Err(errno) => Err(io::Error::from(errno).into()),
                    Ok(file) => {
                        let file = File::from(file);
                        let meta = file.metadata()?;
                        if !meta.is_file() {
                            return wrong(format!("its {:?} is no file", short(name)));
                        }
                        Ok(Some((Box::new(file), meta.len())))
                    }
                }
            }
            Files::Tar(file, members) => {
                let mut name = normal(name);
                for _ in 0..=LINKS_MAX {
                    match members.get(&name) {
                        None => return Ok(None),
                        Some(Member::Link(to)) => name.clone_from(to),
                        Some(Member::File { at, bytes }) => {
                            let part = Part {
                                file: Arc::clone(file),
                                at: *at,
                                left: *bytes,
                            };
                            return Ok(Some((Box::new(part), *bytes)));
                        }
                    }
                }
                wrong("a name in it leads to another without end")
            }
        }
    }

    fn document(&self, name: &str) -> Done<Option<Vec<u8>>> {
        let Some((input, bytes)) = self.find(name)? else {
            return Ok(None);
        };
        if bytes > DOCUMENT_BYTES_MAX {
            return wrong(format!(
                "its {:?} is longer than {DOCUMENT_BYTES_MAX} bytes",
                short(name)
            ));
        }
        let mut whole = Vec::new();
        input.take(DOCUMENT_BYTES_MAX).read_to_end(&mut whole)?;
        Ok(Some(whole))
    }

    /// A document that is named by its digest.
    fn blob(&self, digest: Digest) -> Done<Vec<u8>> {
        let name = blob_name(digest);
        let Some(bytes) = self.document(&name)? else {
            return wrong(format!("it has no file {name}"));
        };
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(ArchiveError::Digest {
                what: name,
                expected: digest,
                found,
            });
        }
        Ok(bytes)
    }

    /// The image that is meant: the one of this name, tag or digest, or the only one.
    pub(crate) fn image(&self, wanted: Option<&str>, default_registry: &str) -> Done<Found> {
        if let Some(index) = self.document("index.json")? {
            return self.of_layout(&index, wanted, default_registry);
        }
        match self.document("manifest.json")? {
            Some(manifest) => self.of_docker(&manifest, wanted, default_registry),
            None => wrong("it has neither an index.json of OCI nor a manifest.json of Docker"),
        }
    }

    fn of_layout(&self, index: &[u8], wanted: Option<&str>, default: &str) -> Done<Found> {
        let Document::Index(entries) = Document::parse(index)? else {
            return wrong("its index.json is no index");
        };
        let full = |entry: &Descriptor| {
            let named = [FULL_NAME, REF_NAME]
                .iter()
                .filter_map(|key| entry.annotations.get(*key));
            // A bare tag names nothing by itself.
            named
                .filter(|name| name.contains(['/', ':']))
                .find_map(|name| Reference::parse(name, default).ok())
                .map(|name| name.to_string())
        };
        let chosen: Vec<&Descriptor> = match wanted {
            None => {
                let mut names: Vec<Option<String>> = entries.iter().map(full).collect();
                names.sort_unstable();
                names.dedup();
                if names.len() > 1 {
                    return wrong(several(names.into_iter().flatten()));
                }
                entries.iter().collect()
            }
            Some(wanted) => {
                let asked = Reference::parse(wanted, default)
                    .ok()
                    .map(|name| name.to_string());
                let is_it = |entry: &&Descriptor| {
                    entry.digest.to_string() == wanted
                        || entry.annotations.get(REF_NAME).is_some_and(|name| name == wanted)
                        || (asked.is_some() && full(entry) == asked)
                };
                entries.iter().filter(is_it).collect()
            }
        };
        let Some(first) = chosen.first() else {
            return wrong(match wanted {
                Some(wanted) => format!("it has no image {:?}", short(wanted)),
                None => "it has no images".to_owned(),
            });
        };
        let name = full(first);
        let chosen: Vec<Descriptor> = chosen.into_iter().cloned().collect();
        let (digest, manifest) = self.follow(chosen)?;
        let config = Config::parse(&self.blob(manifest.config.digest)?)?;
        if manifest.layers.len() != config.diffs.len() {
            return wrong("its manifest has another number of layers than its configuration");
        }
        let layers = manifest.layers.iter().zip(&config.diffs);
        let layers = layers
            .map(|(layer, diff)| Layer {
                file: blob_name(layer.digest),
                blob: Some(layer.digest),
                diff: *diff,
            })
            .collect();
        Ok(Found {
            digest,
            name,
            config,
            layers,
        })
    }

    /// From what an index names to the manifest for this machine.
    fn follow(&self, mut entries: Vec<Descriptor>) -> Done<(Digest, Manifest)> {
        for _ in 0..INDEXES_MAX {
            // What a single entry leads to says itself for which machine it is.
            let chosen = match entries.as_slice() {
                [only] => only,
                several => choose(several).map_err(ArchiveError::Platform)?,
            };
            let digest = chosen.digest;
            match Document::parse(&self.blob(digest)?)? {
                Document::Manifest(manifest) => return Ok((digest, manifest)),
                Document::Index(more) => {
                    let own = choose(&more).map_err(ArchiveError::Platform)?.clone();
                    entries = vec![own];
                }
            }
        }
        wrong("its index leads to an index, and so on")
    }

    fn of_docker(&self, manifest: &[u8], wanted: Option<&str>, default: &str) -> Done<Found> {
        let saved: Vec<Saved> = serde_json::from_slice(manifest)
            .map_err(|error| ArchiveError::Wrong(format!("its manifest.json: {error}")))?;
        if saved.len() > IMAGES_MAX {
            return wrong(format!("it has more than {IMAGES_MAX} images"));
        }
        let names = |saved: &Saved| -> Vec<String> {
            let tags = saved.repo_tags.iter().flatten();
            tags.filter_map(|tag| Reference::parse(tag, default).ok())
                .map(|name| name.to_string())
                .collect()
        };
        let asked = wanted
            .and_then(|wanted| Reference::parse(wanted, default).ok())
            .map(|name| name.to_string());
        let image = match (wanted, saved.as_slice()) {
            (None, [only]) => only,
            (None, []) => return wrong("it has no images"),
            (None, all) => return wrong(several(all.iter().flat_map(names))),
            (Some(wanted), all) => {
                let is_it = |saved: &&Saved| asked.as_ref().is_some_and(|asked| names(saved).contains(asked));
                match all.iter().find(is_it) {
                    Some(found) => found,
                    None => return wrong(format!("it has no image {:?}", short(wanted))),
                }
            }
        };
        let Some(bytes) = self.document(&image.config)? else {
            return wrong("it has no configuration for its image");
        };
        let config = Config::parse(&bytes)?;
        if image.layers.len() != config.diffs.len() {
            return wrong("its manifest has another number of layers than its configuration");
        }
        let layers = image.layers.iter().zip(&config.diffs);
        let layers = layers
            .map(|(file, diff)| Layer {
                file: file.clone(),
                blob: None,
                diff: *diff,
            })
            .collect();
        let own = names(image);
        let name = own
            .iter()
            .find(|name| Some(*name) == asked.as_ref())
            .or(own.first());
        Ok(Found {
            digest: Digest::of(&bytes),
            name: name.cloned(),
            config,
            layers,
        })
    }
}

/// Whether an image runs here.
pub(crate) fn check_platform(found: &Found) -> Done<()> {
    if found.config.platform.is_own() {
        return Ok(());
    }
    Err(ArchiveError::Platform(vec![found.config.platform.to_string()]))
}

/// What this machine runs.
pub(crate) fn own_platform() -> String {
    Platform::own().to_string()
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn several(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.take(20).collect();
    format!("it has several images ({}); say which", names.join(", "))
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Where the files of a tar lie.
fn members(file: &File) -> Done<BTreeMap<String, Member>> {
    let mut input = BufReader::new(file);
    input.seek(SeekFrom::Start(0))?;
    let mut tar = Tar::new(input);
    let mut members = BTreeMap::new();
    while let Some(entry) = tar
        .next()
        .map_err(|error| ArchiveError::Wrong(error.to_string()))?
    {
        if members.len() >= MEMBERS_MAX {
            return wrong(format!("it has more than {MEMBERS_MAX} files"));
        }
        let name = match std::str::from_utf8(&entry.path) {
            Ok(name) if name.len() <= NAME_BYTES_MAX => normal(name),
            _ => return wrong("a name in it is no text, or too long"),
        };
        let target = |to: &[u8]| {
            std::str::from_utf8(to)
                .ok()
                .filter(|to| to.len() <= NAME_BYTES_MAX)
                .map(str::to_owned)
        };
        match &entry.what {
            What::File if entry.pieces.is_some() => {
                return wrong(format!("its file {:?} has holes", short(&name)));
            }
            What::File => {
                members.insert(
                    name,
                    Member::File {
                        at: tar.at(),
                        bytes: entry.size,
                    },
                );
            }
            What::Link(to) => {
                if let Some(to) = target(to) {
                    members.insert(name, Member::Link(normal(&to)));
                }
            }
            // Older Dockers have one layer of several images once, and links to it.
            What::Symlink(to) => {
                if let Some(to) = target(to) {
                    let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                    let to = normal(&format!("{dir}/{to}"));
                    members.insert(name, Member::Link(to));
                }
            }
            _ => {}
        }
        tar.seek_over()
            .map_err(|error| ArchiveError::Wrong(error.to_string()))?;
    }
    Ok(members)
}

/// A name within an archive: nothing is above its root.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A part of a file.
struct Part {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let read = self.file.read_at(&mut into[..most], self.at)?;
        if read == 0 && most > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends early",
            ));
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
