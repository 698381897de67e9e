//! A layer's bytes on their way: hashed as they come, uncompressed, hashed again, counted.
use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// As builders of images compress at their slowest: 32 MiB. More would be an archive's way to take memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;
/// What is read from a download at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Bytes that are hashed and counted as they are read.
pub(crate) struct Hashed<R> {
    inner: R,
    hasher: Sha256,
    bytes: u64,
    /// More than this is an error.
    limit: u64,
}

/// More bytes came than are allowed.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("more than {0} bytes")]
pub(crate) struct Beyond(pub(crate) u64);

impl<R: Read> Hashed<R> {
    pub(crate) fn new(inner: R, limit: u64) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            bytes: 0,
            limit,
        }
    }

    /// What was read.
    pub(crate) fn seen(self) -> (Digest, u64) {
        (Digest::seen(self.hasher), self.bytes)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.hasher.update(&into[..read]);
        self.bytes += read as u64;
        if self.bytes > self.limit {
            return Err(io::Error::other(Beyond(self.limit)));
        }
        Ok(read)
    }
}

/// The input, with the bytes that were looked at before the others.
type Whole<R> = BufReader<io::Chain<io::Cursor<Vec<u8>>, R>>;

/// So many bytes tell how a layer is compressed.
pub(crate) const FIRST_BYTES: usize = 6;

/// How a layer is compressed, by its first bytes, because media types lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Plain,
    Gzip,
    Zstd,
    Foreign(&'static str),
}

impl Format {
    pub(crate) fn of(first: &[u8]) -> Self {
        match first {
            [b'B', b'Z', b'h', ..] => Format::Foreign("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Format::Foreign("xz"),
            [0x5d, 0, 0, ..] => Format::Foreign("lzma"),
            [0x1f, 0x8b, ..] => Format::Gzip,
            // A frame of zstd, or one that may be passed over.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Format::Zstd,
            _ => Format::Plain,
        }
    }
}

/// The tar inside, however it is compressed.
pub(crate) enum Plain<R: Read> {
    Tar(Whole<R>),
    Gzip(Box<MultiGzDecoder<Whole<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, Whole<R>>),
}

/// Compressed in a way that layers are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the layer is compressed by {0}: only gzip and zstd are supported")]
pub(crate) struct Foreign(pub(crate) &'static str);

impl<R: Read> Plain<R> {
    /// Looks at the first bytes. The inner error is the input's.
    pub(crate) fn new(mut input: R) -> io::Result<Result<Self, Foreign>> {
        let mut first = Vec::with_capacity(FIRST_BYTES);
        (&mut input).take(FIRST_BYTES as u64).read_to_end(&mut first)?;
        let format = Format::of(&first);
        let input = BufReader::with_capacity(CHUNK_BYTES, io::Cursor::new(first).chain(input));
        Ok(match format {
            Format::Foreign(name) => Err(Foreign(name)),
            Format::Plain => Ok(Plain::Tar(input)),
            Format::Gzip => Ok(Plain::Gzip(Box::new(MultiGzDecoder::new(input)))),
            Format::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Ok(Plain::Zstd(decoder))
            }
        })
    }
}

impl<R: Read> Read for Plain<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Plain::Tar(input) => input.read(into),
            Plain::Gzip(input) => input.read(into),
            Plain::Zstd(input) => input.read(into),
        }
    }
}
