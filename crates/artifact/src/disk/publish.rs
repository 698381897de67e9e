use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use ports::{BlobError, Blobs};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::manifest::{BLOCK_BYTES, Block, Manifest, PACK_BYTES_MAX};
use super::restore::load;
use super::{DiskError, disk_key, pack_key};
use crate::digest::Digest;

/// Fast, and a third of the bytes of a usual disk.
const LEVEL: i32 = 1;

/// Packs that are looked for at once.
const LOOKED_FOR_MAX: usize = 16;

/// Brings an image to the blobs, which must not change meanwhile. Blocks that `base` holds too are not brought again, as far
/// as its packs are there: `base` must be one that nothing is swept of until this is over. Returns the manifest, which is
/// durable with all that it refers to.
///
/// Without a base it is brought whole, but for what is zeros. For a disk that began blank that is as good: of a blank one of
/// 10 GiB all but 48 blocks are zeros, and these are some 60 KiB when they are compressed.
///
/// # Errors
/// See [`DiskError`]. What was brought by then is swept in time.
pub async fn publish(blobs: &dyn Blobs, image: File, base: Option<&Manifest>) -> Result<Manifest, DiskError> {
    let known = match base {
        Some(base) => base.known(&packs_there(blobs, base).await?),
        None => HashMap::new(),
    };
    // One pack is brought while the next is made: no more than two are in memory.
    let (sender, mut packs) = mpsc::channel(1);
    let read = tokio::task::spawn_blocking(move || Packer::new(known, sender).pack(&image));
    while let Some(pack) = packs.recv().await {
        put(blobs, &pack_key(Digest::of(&pack)), pack).await?;
    }
    let manifest = read.await?.map_err(|error| DiskError::Image("read", error))?;
    let bytes = manifest.encode();
    put(blobs, &disk_key(Digest::of(&bytes)), bytes.into()).await?;
    Ok(manifest)
}

/// Whether a disk is in the blobs with all that it refers to, as far as that can be told without reading it.
///
/// # Errors
/// [`DiskError::Blobs`] where these are away.
pub async fn is_whole(blobs: &dyn Blobs, disk: Digest) -> Result<bool, DiskError> {
    let manifest = match load(blobs, disk).await {
        Ok(manifest) => manifest,
        Err(DiskError::Blobs(BlobError::Away(error))) => return Err(BlobError::Away(error).into()),
        Err(_) => return Ok(false),
    };
    let there = packs_there(blobs, &manifest).await?;
    Ok(manifest.blocks.iter().all(|block| manifest.is_in(block, &there)))
}

/// The packs of a manifest that are there, as far as that can be told without reading them: with their bytes.
async fn packs_there(blobs: &dyn Blobs, base: &Manifest) -> Result<HashMap<Digest, u64>, DiskError> {
    let look = |pack: Digest| async move {
        let found = blobs.find(&pack_key(pack)).await?;
        Ok(found.map(|blob| (pack, blob.bytes)))
    };
    let looking = futures_util::stream::iter(base.packs.clone()).map(look);
    let found = looking.buffer_unordered(LOOKED_FOR_MAX);
    found
        .try_filter_map(|pack| std::future::ready(Ok::<_, DiskError>(pack)))
        .try_collect()
        .await
}

async fn put(blobs: &dyn Blobs, key: &str, bytes: Bytes) -> Result<(), DiskError> {
    // Also where it is there already: it is young again, and so is not swept before what refers to it is stored.
    let whole = futures_util::stream::once(std::future::ready(Ok(bytes))).boxed();
    blobs.put(key, whole).await?;
    Ok(())
}

/// Makes packs and a manifest of an image.
struct Packer {
    known: HashMap<Digest, (Digest, Block)>,
    sender: mpsc::Sender<Bytes>,
    packs: Vec<Digest>,
    places: HashMap<Digest, u32>,
    blocks: Vec<Block>,
    /// The pack that is being filled, and which blocks of the manifest lie in it.
    pack: Vec<u8>,
    waiting: Vec<usize>,
}

impl Packer {
    fn new(known: HashMap<Digest, (Digest, Block)>, sender: mpsc::Sender<Bytes>) -> Self {
        Self {
            known,
            sender,
            packs: Vec::new(),
            places: HashMap::new(),
            blocks: Vec::new(),
            pack: Vec::new(),
            waiting: Vec::new(),
        }
    }

    fn pack(mut self, image: &File) -> io::Result<Manifest> {
        let size = image.metadata()?.len();
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        let mut buffer = vec![0; BLOCK_BYTES];
        let mut at = 0;
        while let Some(data) = next_data(image, at, size)? {
            let start = data - data % BLOCK_BYTES as u64;
            let length = fill(image, &mut buffer, start)?;
            buffer[length..].fill(0);
            if buffer.iter().any(|&byte| byte != 0) {
                let index = u32::try_from(start / BLOCK_BYTES as u64).map_err(io::Error::other)?;
                self.add(index, &buffer, &mut compressor)?;
            }
            at = start + BLOCK_BYTES as u64;
        }
        self.close()?;
        Ok(Manifest {
            size,
            packs: self.packs,
            blocks: self.blocks,
        })
    }

    fn add(
        &mut self,
        index: u32,
        bytes: &[u8],
        compressor: &mut zstd::bulk::Compressor<'_>,
    ) -> io::Result<()> {
        let digest = Digest::of(bytes);
        if let Some(&(pack, block)) = self.known.get(&digest) {
            let pack = self.place(pack);
            self.blocks.push(Block { index, pack, ..block });
            return Ok(());
        }
        let compressed = compressor.compress(bytes)?;
        let stored = if compressed.len() < bytes.len() {
            &compressed
        } else {
            bytes
        };
        if self.pack.len() + stored.len() > PACK_BYTES_MAX {
            self.close()?;
        }
        let number = |n: usize| u32::try_from(n).map_err(io::Error::other);
        self.waiting.push(self.blocks.len());
        self.blocks.push(Block {
            index,
            // Known when it is full.
            pack: u32::MAX,
            offset: number(self.pack.len())?,
            length: number(stored.len())?,
            digest,
        });
        self.pack.extend_from_slice(stored);
        Ok(())
    }

    /// Which of the manifest's packs one is.
    fn place(&mut self, pack: Digest) -> u32 {
        let packs = &mut self.packs;
        *self.places.entry(pack).or_insert_with(|| {
            packs.push(pack);
            u32::try_from(packs.len() - 1).expect("there are fewer packs than blocks")
        })
    }

    fn close(&mut self) -> io::Result<()> {
        if self.pack.is_empty() {
            return Ok(());
        }
        let bytes = Bytes::from(std::mem::take(&mut self.pack));
        let name = Digest::of(&bytes);
        let pack = self.place(name);
        for at in self.waiting.drain(..) {
            let block = &mut self.blocks[at];
            block.pack = pack;
            self.known.insert(block.digest, (name, *block));
        }
        let gone = |_| io::Error::other("nobody takes the packs any more");
        self.sender.blocking_send(bytes).map_err(gone)
    }
}

/// Where the next byte is that is not in a hole.
fn next_data(image: &File, at: u64, size: u64) -> io::Result<Option<u64>> {
    if at >= size {
        return Ok(None);
    }
    match rustix::fs::seek(image, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        // A file system that knows of no holes.
        Err(Errno::INVAL) => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}

fn fill(image: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match image.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
