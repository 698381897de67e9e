//! The kernel's random generator ([random(4)](https://man7.org/linux/man-pages/man4/random.4.html)).
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd as _;

/// `RNDADDENTROPY`: `_IOW('R', 0x03, int[2])`.
const ADD_ENTROPY: u32 = 0x4008_5203;
/// `RNDRESEEDCRNG`: `_IO('R', 0x07)`.
const RESEED: u32 = 0x5207;
/// What one call takes here; the kernel hashes it all into as much as it keeps.
pub const BYTES_MAX: usize = 512;

/// `struct rand_pool_info` with room for that.
#[repr(C)]
struct Pool {
    entropy_bits: libc::c_int,
    length_bytes: libc::c_int,
    bytes: [u8; BYTES_MAX],
}

/// Gives the generator random bytes and has it start from them anew, at once: whatever it would have said next, it says
/// something else. Takes `CAP_SYS_ADMIN`.
///
/// # Errors
/// `InvalidInput` for more than [`BYTES_MAX`]; what the kernel answered.
pub fn reseed(bytes: &[u8]) -> io::Result<()> {
    let mut pool = Pool {
        entropy_bits: 0,
        length_bytes: 0,
        bytes: [0; BYTES_MAX],
    };
    let room = pool
        .bytes
        .get_mut(..bytes.len())
        .ok_or(io::ErrorKind::InvalidInput)?;
    room.copy_from_slice(bytes);
    pool.length_bytes = libc::c_int::try_from(bytes.len()).map_err(io::Error::other)?;
    pool.entropy_bits = pool.length_bytes * 8;
    let device = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads two numbers and `length_bytes` bytes after them, all within `pool`, which outlives the call.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), request(ADD_ENTROPY), &raw const pool) })?;
    // SAFETY: this request takes no argument.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), request(RESEED)) })
}

/// In the type of this C library.
#[cfg(target_env = "musl")]
fn request(number: u32) -> libc::c_int {
    number.cast_signed()
}

/// In the type of this C library.
#[cfg(not(target_env = "musl"))]
fn request(number: u32) -> libc::c_ulong {
    number.into()
}

fn checked(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_kernel_keeps_is_refused_and_nothing_of_it_is_used() {
        let many = reseed(&[7; BYTES_MAX + 1]).unwrap_err();
        assert_eq!(many.kind(), io::ErrorKind::InvalidInput);
    }
}
