//! Whether an archive is one, to its end: for those that are unpacked elsewhere.
use std::io::{self, Read};

use crate::layer::source::Plain;
use crate::tar::{Archive, TarError};

/// A block of a tar. What ends an archive is at least one.
const BLOCK: u64 = 512;

/// Reads a tar, plain or packed by gzip, to its end, and keeps nothing of it. What its names mean is not judged.
///
/// # Errors
/// It is none, is cut short, or its bytes are broken; or `input` failed, as [`TarError::Input`].
pub fn check_archive(input: impl Read) -> Result<(), TarError> {
    let plain = match Plain::new(input).map_err(TarError::Input)? {
        Ok(plain @ (Plain::Tar(_) | Plain::Gzip(_))) => plain,
        Ok(Plain::Zstd(_)) | Err(_) => {
            return Err(TarError::Broken {
                at: 0,
                why: "it is packed, and not by gzip",
            });
        }
    };
    let mut archive = Archive::new(plain);
    let mut waste = [0; 16 << 10];
    loop {
        while archive.read(&mut waste)? > 0 {}
        let before = archive.at();
        if archive.next()?.is_none() {
            // Every writer ends by empty blocks; a file that is cut between two entries has none.
            if archive.at() - before < BLOCK {
                return Err(TarError::Cut("the archive"));
            }
            // What packs it has a sum at its very end.
            archive.drain()?;
            return Ok(());
        }
    }
}

impl TarError {
    /// Whether the bytes could not be had, rather than were wrong. What gzip finds broken counts as wrong.
    #[must_use]
    pub fn is_input(&self) -> bool {
        let wrong = [
            io::ErrorKind::InvalidData,
            io::ErrorKind::InvalidInput,
            io::ErrorKind::UnexpectedEof,
        ];
        matches!(self, TarError::Input(error) if !wrong.contains(&error.kind()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A tar of one file, by hand: ustar.
    fn tar(content: &[u8]) -> Vec<u8> {
        let mut header = [0_u8; 512];
        header[..1].copy_from_slice(b"a");
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut tar = header.to_vec();
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
        tar.extend_from_slice(&[0; 1024]);
        tar
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn a_whole_archive_is_whole_plain_or_packed() {
        for content in [&b""[..], b"hello", &[7; 100_000]] {
            check_archive(&tar(content)[..]).unwrap();
            check_archive(&gzip(&tar(content))[..]).unwrap();
        }
        // What a step without files has: an end alone.
        check_archive(&[0; 1024][..]).unwrap();
    }

    #[test]
    fn what_is_cut_or_broken_or_none_is_not() {
        let (plain, packed) = (tar(&[7; 5_000]), gzip(&tar(&[7; 5_000])));
        let mut flipped = packed.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0xff;
        let mut sum = packed.clone();
        let last = sum.len() - 6;
        sum[last] ^= 0xff;
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        for (broken, what) in [
            (&b""[..], "nothing"),
            (b"hello", "a text"),
            (&b"x".repeat(2_000), "a long text"),
            (&plain[..300], "a part of a header"),
            (&plain[..2_000], "a part of a file"),
            (&plain[..plain.len() - 1024], "no end"),
            (&packed[..packed.len() / 2], "half of what is packed"),
            (
                &packed[..packed.len() - 4],
                "all but the last bytes of what is packed",
            ),
            (&flipped, "a byte that is another"),
            (&sum, "another sum"),
            (&gzip(b"hello"), "a packed text"),
            (&zstd, "packed by something else"),
        ] {
            let error = check_archive(broken).expect_err(what);
            assert!(!error.is_input(), "{what}: {error:?}");
        }
    }

    #[test]
    fn an_input_that_fails_says_nothing_of_the_archive() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionAborted.into())
            }
        }
        let whole = tar(b"hello");
        for input in [&whole[..0], &whole[..100], &whole[..600]] {
            assert!(check_archive(input.chain(Fails)).unwrap_err().is_input());
        }
    }
}
