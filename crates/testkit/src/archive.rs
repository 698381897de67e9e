//! Layers of images, made up: as compressible as is asked for, and the same in every run.
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

/// What an image needs so that sandboxes of it boot.
const PROGRAMS: [&str; 5] = ["bash", "id", "ls", "mkdir", "true"];
const DIRECTORIES: [&str; 10] = [
    "bin", "etc", "lib", "lib64", "opt", "root", "tmp", "usr", "usr/bin", "var",
];

/// A layer as registries keep it: a tar, gzipped.
pub(crate) struct Layer {
    /// The gzipped bytes.
    pub(crate) blob: Bytes,
    /// The digest of the tar.
    pub(crate) diff: String,
}

/// `sha256:` and the digits.
pub(crate) fn digest(bytes: &[u8]) -> String {
    named(Sha256::new_with_prefix(bytes))
}

fn named(hash: Sha256) -> String {
    format!("sha256:{}", hex::encode(hash.finalize()))
}

/// Compresses what is written, and hashes it before that.
struct Sealing {
    hash: Sha256,
    gzip: GzEncoder<Vec<u8>>,
}

impl Write for Sealing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.gzip.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.gzip.flush()
    }
}

fn layer(fill: impl FnOnce(&mut tar::Builder<Sealing>) -> Result<()>) -> Result<Layer> {
    let mut tar = tar::Builder::new(Sealing {
        hash: Sha256::new(),
        gzip: GzEncoder::new(Vec::new(), Compression::fast()),
    });
    fill(&mut tar)?;
    let sealing = tar.into_inner()?;
    Ok(Layer {
        blob: sealing.gzip.finish()?.into(),
        diff: named(sealing.hash),
    })
}

/// So many MiB in files of 4 to 96 KiB, as of a distribution, of which every second block is random.
pub(crate) fn of_files(seed: u64, mib: u32) -> Result<Layer> {
    filled(seed, mib, 2, |random| 4096 * (1 + random % 24))
}

/// So many MiB in files of 16 MiB, of which every eighth block is random.
pub(crate) fn of_large_files(seed: u64, mib: u32) -> Result<Layer> {
    filled(seed, mib, 8, |_| 16 << 20)
}

fn filled(seed: u64, mib: u32, random_each: u64, size: impl Fn(u64) -> u64) -> Result<Layer> {
    layer(|tar| {
        let mut random = Random(seed | 1);
        let (mut left, mut number) = (u64::from(mib) << 20, 0);
        while left > 0 {
            let bytes = size(random.next()).min(left);
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes);
            header.set_mode(0o644);
            let path = format!("opt/{seed}/{}/{number}", number / 100);
            tar.append_data(
                &mut header,
                path,
                Blocks {
                    random: &mut random,
                    random_each,
                    left: bytes,
                    block: Vec::new(),
                    at: 0,
                },
            )?;
            left -= bytes;
            number += 1;
        }
        Ok(())
    })
}

/// A root with a shell of this machine's, and the libraries that it wants.
pub(crate) fn small_root() -> Result<Layer> {
    layer(|tar| {
        for directory in DIRECTORIES {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            tar.append_data(&mut header, directory, io::empty())?;
        }
        let mut libraries = BTreeSet::new();
        for program in PROGRAMS {
            let path = Path::new("/usr/bin").join(program);
            let told = Command::new("ldd").arg(&path).output()?;
            let told = String::from_utf8_lossy(&told.stdout).into_owned();
            let words = told.split_whitespace().filter(|word| word.starts_with('/'));
            libraries.extend(words.map(str::to_owned));
            tar.append_path_with_name(&path, format!("bin/{program}"))
                .with_context(|| format!("taking {}", path.display()))?;
        }
        for library in libraries {
            tar.append_path_with_name(&library, library.trim_start_matches('/'))
                .with_context(|| format!("taking {library}"))?;
        }
        Ok(())
    })
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Content of a file, in blocks of 512 bytes: one of so many is random, the others are text.
struct Blocks<'a> {
    random: &'a mut Random,
    random_each: u64,
    left: u64,
    block: Vec<u8>,
    at: usize,
}

impl io::Read for Blocks<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() {
            self.refill();
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let count = into.len().min(self.block.len() - self.at).min(most);
        into[..count].copy_from_slice(&self.block[self.at..self.at + count]);
        self.at += count;
        self.left -= count as u64;
        Ok(count)
    }
}

impl Blocks<'_> {
    fn refill(&mut self) {
        self.block.clear();
        self.at = 0;
        let is_random = self.random.next().is_multiple_of(self.random_each);
        while self.block.len() < 512 {
            let next = self.random.next();
            if is_random {
                self.block.extend(next.to_le_bytes());
            } else {
                let words: [&[u8]; 4] = [b"libexec ", b"section\n", b"0000000 ", b"version="];
                self.block.extend(words[usize::from(next.to_le_bytes()[0] & 3)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_layer_holds_what_was_asked_for_and_is_the_same_again() {
        let made = of_files(3, 2).unwrap();
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&made.blob[..])
            .read_to_end(&mut tar)
            .unwrap();
        assert_eq!(digest(&tar), made.diff);
        let mut bytes = 0;
        for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
            bytes += entry.unwrap().size();
        }
        assert_eq!(bytes, 2 << 20);
        assert_eq!(of_files(3, 2).unwrap().blob, made.blob);
        assert_ne!(of_files(4, 2).unwrap().diff, made.diff);
    }
}
