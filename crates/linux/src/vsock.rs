//! Sockets between a virtual machine and its host ([vsock(7)](https://man7.org/linux/man-pages/man7/vsock.7.html)).
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// The host, as seen from a guest.
pub const HOST: u32 = libc::VMADDR_CID_HOST;
const ANY: u32 = libc::VMADDR_CID_ANY;
/// More wait while we accept.
const BACKLOG: libc::c_int = 128;
/// Of `struct sockaddr_vm`.
const ADDRESS_BYTES: libc::socklen_t = 16;
const _: () = assert!(size_of::<libc::sockaddr_vm>() == 16);

/// Listens on a port, for whoever connects.
///
/// # Errors
/// What the kernel answered; `EAFNOSUPPORT` without the module `vsock`.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = address(ANY, port);
    // SAFETY: `address` is of the size that is told, and outlives the call.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES) })?;
    // SAFETY: takes numbers alone.
    checked(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// Waits for a connection, takes it as a non-blocking socket, and says from which machine it comes.
///
/// # Errors
/// What the kernel answered.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, u32)> {
    let mut peer = address(ANY, 0);
    let mut size = ADDRESS_BYTES;
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes at most `size` bytes to `peer`; both outlive the call.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), (&raw mut peer).cast(), &raw mut size, flags) };
    checked(fd)?;
    // SAFETY: it is a new descriptor, which is nobody else's.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, peer.svm_cid))
}

/// Connects to a port of a machine, and blocks until that is done: two seconds at most, as the kernel has it.
///
/// # Errors
/// `ECONNRESET` where nobody listens; what the kernel answered.
pub fn connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    let address = address(cid, port);
    // SAFETY: `address` is of the size that is told, and outlives the call.
    checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES) })?;
    Ok(socket)
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: takes numbers alone.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    checked(fd)?;
    // SAFETY: it is a new descriptor, which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeroes are a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).expect("families are small numbers");
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn checked(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
