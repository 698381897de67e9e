//! Safe wrappers over the kernel objects that Atoll uses; the only crate that says `unsafe`.
//!
//! One file for each object. File descriptors come and go as [`std::os::fd::OwnedFd`]; errors are plain
//! [`std::io::Error`]s, to which callers add what they were about. What `rustix` offers safely is used from there
//! and not wrapped again.
#![deny(unsafe_op_in_unsafe_fn)]

pub mod cgroup;
pub mod clone;
pub mod conntrack;
pub mod ext4;
pub mod file;
pub mod handle;
pub mod loopdev;
pub mod memory;
pub mod mount;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod process;
pub mod program;
pub mod ptrace;
pub mod random;
pub mod rtnl;
pub mod seccomp;
pub mod sockets;
pub mod spawn;
pub mod tap;
pub mod vsock;
