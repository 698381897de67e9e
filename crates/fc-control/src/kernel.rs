//! The guest's kernel as Firecracker takes it: before 1.17 it boots no bzImage, but the ELF that is packed in one.
use std::fs;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use ports::step::{At, Step};

/// A distribution's kernel has some ten megabytes, and fifty unpacked.
const PACKED_BYTES_MAX: u64 = 128 << 20;
const UNPACKED_BYTES_MAX: u64 = 512 << 20;
const ELF: &[u8] = b"\x7fELF";

/// Writes the kernel of `from` into the new file `into`, unpacked unless `as_it_is` or it is an ELF already.
pub(crate) fn place(from: &Path, into: &Path, as_it_is: bool) -> Result<(), Step> {
    let step = || format!("reading the kernel {}", from.display());
    let mut image = Vec::new();
    let file = fs::File::open(from).at(step())?;
    file.take(PACKED_BYTES_MAX + 1)
        .read_to_end(&mut image)
        .at(step())?;
    if image.len() as u64 > PACKED_BYTES_MAX {
        return Err(io::Error::other(format!(
            "it has more than {PACKED_BYTES_MAX} bytes"
        )))
        .at(step());
    }
    let kernel = if as_it_is || image.starts_with(ELF) {
        image
    } else {
        unpack(&image).at(step())?
    };
    let step = || format!("writing the kernel {}", into.display());
    let mut file = fs::File::create_new(into).at(step())?;
    file.write_all(&kernel).and_then(|()| file.sync_all()).at(step())
}

/// The ELF in a bzImage, as Documentation/arch/x86/boot.rst says where it is.
fn unpack(image: &[u8]) -> io::Result<Vec<u8>> {
    let none = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "it is neither an ELF nor a bzImage with one",
        )
    };
    let number = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(none());
    }
    let sectors = match image.get(0x1f1) {
        Some(0) => 4,
        Some(sectors) => usize::from(*sectors),
        None => return Err(none()),
    };
    let (Some(offset), Some(length)) = (number(0x248), number(0x24c)) else {
        return Err(none());
    };
    let payload = (sectors + 1)
        .checked_mul(512)
        .and_then(|protected| protected.checked_add(offset))
        .and_then(|from| image.get(from..from.checked_add(length)?));
    let payload = payload.ok_or_else(none)?;
    let kernel = match payload {
        [0x1f, 0x8b, ..] => bounded(flate2::read::GzDecoder::new(payload))?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            // Its length comes after it, which is no frame.
            bounded(zstd::stream::read::Decoder::with_buffer(payload)?.single_frame())?
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => xz(payload)?,
        _ => {
            return Err(io::Error::other(
                "it is packed otherwise than by gzip, xz or zstd: give one that is unpacked, or a Firecracker from 1.17 on",
            ));
        }
    };
    if kernel.starts_with(ELF) {
        Ok(kernel)
    } else {
        Err(none())
    }
}

fn bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut kernel = Vec::new();
    from.take(UNPACKED_BYTES_MAX + 1).read_to_end(&mut kernel)?;
    if kernel.len() as u64 > UNPACKED_BYTES_MAX {
        return Err(io::Error::other(format!(
            "it has more than {UNPACKED_BYTES_MAX} bytes unpacked"
        )));
    }
    Ok(kernel)
}

/// By the program: kernels are packed with a filter for x86 code.
fn xz(payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut command = Command::new("xz");
    let started = command
        // What comes after the stream is its length.
        .args(["--decompress", "--stdout", "--single-stream", "--quiet"])
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut xz = started.map_err(|error| {
        let why = "running xz, which the kernel is packed with, failed (Debian's package is xz-utils)";
        io::Error::new(error.kind(), format!("{why}: {error}"))
    })?;
    let (stdin, stdout) = (xz.stdin.take(), xz.stdout.take());
    let (Some(mut stdin), Some(stdout)) = (stdin, stdout) else {
        return Err(io::Error::other("a pipe was asked for, and is not there"));
    };
    let kernel = std::thread::scope(|scope| {
        scope.spawn(move || {
            // It stops reading after the stream.
            let _ = stdin.write_all(payload);
        });
        bounded(stdout)
    });
    // One that would say more is not waited for.
    let _ = xz.kill();
    xz.wait()?;
    kernel
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * 512];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        let offset = 512_u32;
        image[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend(payload);
        image
    }

    fn with_length(mut packed: Vec<u8>) -> Vec<u8> {
        packed.extend(1_000_000_u32.to_le_bytes());
        packed
    }

    fn elf() -> Vec<u8> {
        let mut elf = ELF.to_vec();
        elf.extend((0..100_000_u32).flat_map(u32::to_le_bytes));
        elf
    }

    #[test]
    fn a_kernel_is_found_in_what_it_is_packed_in() {
        let dir = tempfile::tempdir().unwrap();
        let check = |image: &[u8], as_it_is: bool, expected: &[u8]| {
            let (from, into) = (dir.path().join("from"), dir.path().join("into"));
            fs::write(&from, image).unwrap();
            let _ = fs::remove_file(&into);
            place(&from, &into, as_it_is).unwrap();
            assert_eq!(fs::read(&into).unwrap(), expected);
            assert!(place(&from, &into, as_it_is).is_err(), "it is there already");
        };
        let zstd = bzimage(&with_length(zstd::encode_all(&*elf(), 1).unwrap()));
        check(&zstd, false, &elf());
        check(&zstd, true, &zstd);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&elf()).unwrap();
        check(&bzimage(&with_length(gzip.finish().unwrap())), false, &elf());
        check(&elf(), false, &elf());
        let packed = Command::new("sh")
            .args(["-c", "xz --x86 --lzma2 --check=crc32 --stdout \"$0\""])
            .arg({
                let path = dir.path().join("elf");
                fs::write(&path, elf()).unwrap();
                path
            })
            .output()
            .unwrap();
        if !packed.status.success() {
            crate::tests::not_run("xz is not on PATH");
            return;
        }
        check(&bzimage(&with_length(packed.stdout)), false, &elf());
    }

    #[test]
    fn what_holds_no_kernel_is_told() {
        let told = |image: &[u8]| unpack(image).unwrap_err().to_string();
        assert!(told(b"").contains("neither"));
        assert!(told(&[0; 4096]).contains("neither"));
        assert!(told(&bzimage(b"\x02\x21\x4c\x18")).contains("gzip, xz or zstd"));
        assert!(told(&bzimage(&zstd::encode_all(&b"text"[..], 1).unwrap())).contains("neither"));
        let mut far = bzimage(b"");
        far[0x248..0x250].fill(0xff);
        assert!(told(&far).contains("neither"));
        let cut = zstd::encode_all(&*elf(), 1).unwrap();
        assert!(unpack(&bzimage(&cut[..cut.len() / 2])).is_err());
    }
}
