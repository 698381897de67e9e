//! What the kernel of a machine asks of a file system, and what it is answered, as it lies on `/dev/fuse`
//! ([`linux/fuse.h`](https://github.com/torvalds/linux/blob/master/include/uapi/linux/fuse.h), protocol 7.31). The bytes come
//! from a guest: they are read by checked lengths, and what is not understood is said to be so.
mod reply;
mod request;

pub(crate) use self::reply::{Attributes, Entries, Reply, Space};
pub use self::request::Malformed;
#[cfg(test)]
pub(crate) use self::request::tests;
pub(crate) use self::request::{Asked, Change, Head, Request, Time};

/// Major number of the protocol: kernels of all years have it.
pub(crate) const MAJOR: u32 = 7;
/// The minor number whose structures are read and written here.
pub(crate) const MINOR: u32 = 31;
/// What is read or written by one request. A kernel keeps to what it was told when the volume was mounted, also after it was
/// written down and brought back by a later Atoll: it may grow, and never shrink.
pub(crate) const PIECE_BYTES_MAX: u32 = 128 << 10;
/// Of which a kernel asks for whole ones.
const PAGE_BYTES: u32 = 4096;
/// Before what is asked, and what that is about; a path is no longer.
const BESIDE_BYTES_MAX: usize = 2 * PAGE_BYTES as usize;
/// A request is longer than this only if it is none.
pub const REQUEST_BYTES_MAX: usize = PIECE_BYTES_MAX as usize + BESIDE_BYTES_MAX;
/// So is a reply.
pub const REPLY_BYTES_MAX: usize = PIECE_BYTES_MAX as usize + BESIDE_BYTES_MAX;
