//! Links whose other end is a file ([tuntap]): what is written to it arrives by the link, what leaves by the link is read.
//!
//! [tuntap]: https://docs.kernel.org/networking/tuntap.html
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

const TUNSETIFF: libc::Ioctl = 0x4004_54CA;
const TUNSETPERSIST: libc::Ioctl = 0x4004_54CB;
const TUNSETOWNER: libc::Ioctl = 0x4004_54CC;
/// Ethernet frames, each with a virtio-net header before it and nothing else.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Makes a link of this name, down, in the calling thread's network namespace, and opens its other end: one queue of
/// Ethernet frames, each behind a `struct virtio_net_hdr`. The link lives as long as the file is open, and the namespace as
/// long as that.
///
/// # Errors
/// `EBUSY` where a link has the name; what the kernel answered.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = name.as_bytes();
    // The last byte stays zero.
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(FLAGS).expect("its highest bit is the 15th");
    // SAFETY: `request` is an ifreq and outlives the call.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(file.into())
    }
}

/// Has a link outlive the file by which it was made, for the user `owner` to open by its name; it goes with its network namespace
/// then. Whoever opens it has it alone, once this file is closed.
///
/// # Errors
/// What the kernel answered.
pub fn keep_for(file: BorrowedFd<'_>, owner: u32) -> io::Result<()> {
    for (request, argument) in [(TUNSETOWNER, owner), (TUNSETPERSIST, 1)] {
        // SAFETY: both requests take a number, and touch no memory of ours.
        let rc = unsafe { libc::ioctl(file.as_raw_fd(), request, libc::c_ulong::from(argument)) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::netlink::{Family, Socket};
    use crate::{netns, rtnl};

    #[test]
    fn a_link_lives_as_long_as_its_file() {
        let attempt = || -> io::Result<()> {
            let (home, inside) = (netns::current()?, netns::fresh()?);
            let make = || netns::within(inside.as_fd(), home.as_fd(), || open("tap0"))?;
            let file = make()?;
            assert_eq!(make().unwrap_err().raw_os_error(), Some(libc::EBUSY));
            let routes = netns::within(inside.as_fd(), home.as_fd(), || Socket::open(Family::Route))??;
            assert!(rtnl::link(&routes, "tap0")?.is_some());
            drop(file);
            assert!(rtnl::link(&routes, "tap0")?.is_none());
            Ok(())
        };
        match attempt() {
            // Not everybody may make namespaces.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            other => other.unwrap(),
        }
        assert!(open("").is_err() && open("sixteen-letters-").is_err());
    }
}
