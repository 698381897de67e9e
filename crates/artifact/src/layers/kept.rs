//! The archive of a layer, written down while the layer is unpacked, so that it can be brought elsewhere later.
//!
//! As it comes where it is compressed; compressed where it is not.
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::layer::Unpacked;
use crate::layer::source::{FIRST_BYTES, Format};

/// Fast, and what is not compressed is rare: an image that was saved into a file.
const LEVEL: i32 = 1;

/// What the archive of a layer is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerArchive {
    /// Of its bytes, which are compressed.
    pub blob: Digest,
    /// How many they are.
    pub bytes: u64,
}

/// What is read is written down too.
pub(super) struct Kept<R> {
    input: R,
    /// The first bytes tell how the others are written.
    first: Vec<u8>,
    form: Form,
    /// That it cannot be written is none of the layer's faults: it is told when the layer is unpacked.
    failed: Option<io::Error>,
}

enum Form {
    Unknown(BufWriter<File>),
    AsItComes(BufWriter<File>),
    Compressed(zstd::stream::write::Encoder<'static, Counted>),
    /// Something failed.
    None,
}

/// What is written of an archive that is compressed here.
struct Counted {
    file: BufWriter<File>,
    hasher: Sha256,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl<R> Kept<R> {
    /// Into an empty file.
    pub(super) fn new(input: R, into: File) -> Self {
        Self {
            input,
            first: Vec::with_capacity(FIRST_BYTES),
            form: Form::Unknown(BufWriter::new(into)),
            failed: None,
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.form {
            Form::Unknown(_) => {
                self.first.extend_from_slice(bytes);
                if self.first.len() < FIRST_BYTES {
                    return Ok(());
                }
                self.decide()
            }
            Form::AsItComes(file) => file.write_all(bytes),
            Form::Compressed(encoder) => encoder.write_all(bytes),
            Form::None => Ok(()),
        }
    }

    /// Writes the first bytes, once.
    fn decide(&mut self) -> io::Result<()> {
        let mut file = match std::mem::replace(&mut self.form, Form::None) {
            Form::Unknown(file) => file,
            decided => {
                self.form = decided;
                return Ok(());
            }
        };
        if Format::of(&self.first) != Format::Plain {
            file.write_all(&self.first)?;
            self.form = Form::AsItComes(file);
            return Ok(());
        }
        let counted = Counted {
            file,
            hasher: Sha256::new(),
            bytes: 0,
        };
        let mut encoder = zstd::stream::write::Encoder::new(counted, LEVEL)?;
        encoder.write_all(&self.first)?;
        self.form = Form::Compressed(encoder);
        Ok(())
    }

    /// What was kept of a layer that was unpacked to its end; it may not be on the disk yet.
    pub(super) fn finish(mut self, unpacked: &Unpacked) -> io::Result<LayerArchive> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.decide()?;
        match self.form {
            Form::AsItComes(mut file) => {
                file.flush()?;
                Ok(LayerArchive {
                    blob: unpacked.blob,
                    bytes: unpacked.blob_bytes,
                })
            }
            Form::Compressed(encoder) => {
                let mut counted = encoder.finish()?;
                counted.flush()?;
                Ok(LayerArchive {
                    blob: Digest::seen(counted.hasher),
                    bytes: counted.bytes,
                })
            }
            Form::Unknown(_) | Form::None => Err(io::Error::other("nothing was written of it")),
        }
    }
}

impl<R: Read> Read for Kept<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        if self.failed.is_none()
            && let Err(error) = self.keep(&into[..read])
        {
            self.form = Form::None;
            self.failed = Some(error);
        }
        Ok(read)
    }
}
