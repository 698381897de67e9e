use std::fs::File;
use std::io::{self, Read, Seek as _, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use super::{ContextError, Entry, Found, Kind, place, unreadable};

/// What a hash is of: other formats are another's.
const FORMAT: &[u8] = b"atoll context 1\0";
/// Read at a time.
const PIECE_BYTES: usize = 128 * 1024;

/// The archive of a source: a tar, gzipped, in a file without a name.
#[derive(Debug)]
pub(in crate::client) struct Archive {
    /// At its beginning.
    pub(in crate::client) file: File,
    /// How long it is.
    pub(in crate::client) bytes: u64,
}

impl Found {
    /// What names these files: SHA-256 over paths, kinds, permissions and contents, 64 hexadecimal digits.
    pub(in crate::client) fn hash(&self) -> Result<String, ContextError> {
        let mut hash = Sha256::new_with_prefix(FORMAT);
        for entry in &self.entries {
            entry.hash(&mut hash);
            if let Kind::File { bytes } = entry.kind {
                copy(
                    &mut self.open(entry, bytes)?,
                    &mut hash,
                    &place(&self.root, &entry.path),
                )?;
            }
        }
        Ok(hex(hash))
    }

    /// Packs them; [`ContextError::Changed`] where they are not what `hash` names any more.
    pub(in crate::client) fn pack(&self, hash: &str) -> Result<Archive, ContextError> {
        let file = tempfile::tempfile().map_err(ContextError::Archive)?;
        let mut tar = tar::Builder::new(GzEncoder::new(io::BufWriter::new(file), Compression::fast()));
        let mut packed = Sha256::new_with_prefix(FORMAT);
        for entry in &self.entries {
            entry.hash(&mut packed);
            self.append(entry, &mut tar, &mut packed)?;
        }
        let file = tar
            .into_inner()
            .and_then(GzEncoder::finish)
            .and_then(|buffer| buffer.into_inner().map_err(io::IntoInnerError::into_error));
        let mut file = file.map_err(ContextError::Archive)?;
        if hex(packed) != hash {
            return Err(ContextError::Changed(self.root.clone()));
        }
        let bytes = file.stream_position().map_err(ContextError::Archive)?;
        file.rewind().map_err(ContextError::Archive)?;
        Ok(Archive { file, bytes })
    }

    fn append<W: Write>(
        &self,
        entry: &Entry,
        tar: &mut tar::Builder<W>,
        hash: &mut Sha256,
    ) -> Result<(), ContextError> {
        // The context itself is a directory that is there.
        if entry.path.is_empty() {
            return Ok(());
        }
        let place = place(&self.root, &entry.path);
        let name = place.strip_prefix(&self.root).unwrap_or(&place);
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(entry.modified);
        header.set_size(0);
        match &entry.kind {
            Kind::File { bytes } => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(*bytes);
                let mut failed = None;
                let reader = Hashing {
                    reader: self.open(entry, *bytes)?,
                    hash,
                    failed: &mut failed,
                };
                let appended = tar.append_data(&mut header, name, reader);
                match (failed, appended) {
                    (Some(error), _) => return Err(unread(&place, error)),
                    (None, appended) => appended.map_err(ContextError::Archive)?,
                }
            }
            Kind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, name, io::empty())
                    .map_err(ContextError::Archive)?;
            }
            Kind::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                let target = super::place(Path::new(""), target);
                tar.append_link(&mut header, name, target)
                    .map_err(ContextError::Archive)?;
            }
        }
        Ok(())
    }

    /// Opens a file, which is as long as it was; no link, nor anything that a read waits for.
    fn open(&self, entry: &Entry, bytes: u64) -> Result<Exactly<File>, ContextError> {
        let place = place(&self.root, &entry.path);
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = File::options()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(&place)
            .map_err(unreadable(&place))?;
        let metadata = file.metadata().map_err(unreadable(&place))?;
        if !metadata.is_file() || metadata.size() != bytes {
            return Err(ContextError::Changed(place));
        }
        Ok(Exactly {
            reader: file,
            left: bytes,
        })
    }
}

impl Entry {
    /// All of it but the content of a file. Each part has a length that the parts before it say.
    fn hash(&self, hash: &mut Sha256) {
        let part = |hash: &mut Sha256, bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(hash, &self.path);
        hash.update(self.mode.to_le_bytes());
        match &self.kind {
            Kind::File { bytes } => {
                hash.update(b"f");
                hash.update(bytes.to_le_bytes());
            }
            Kind::Directory => hash.update(b"d"),
            Kind::Link(target) => {
                hash.update(b"l");
                part(hash, target);
            }
        }
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unread(path: &Path, error: io::Error) -> ContextError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return ContextError::Changed(path.to_owned());
    }
    unreadable(path)(error)
}

fn copy(reader: &mut Exactly<File>, hash: &mut Sha256, path: &Path) -> Result<(), ContextError> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => hash.update(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unread(path, error)),
        }
    }
}

/// As many bytes as were said, or an error.
struct Exactly<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.reader.read(&mut buffer[..room])?;
        if read == 0 && room > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Hashes what is read on its way, and keeps why it could not be.
struct Hashing<'a> {
    reader: Exactly<File>,
    hash: &'a mut Sha256,
    failed: &'a mut Option<io::Error>,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer) {
            Ok(read) => {
                self.hash.update(&buffer[..read]);
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                *self.failed = Some(error);
                Err(kind.into())
            }
        }
    }
}
