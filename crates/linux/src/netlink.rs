//! Netlink: messages of nested attributes, sent many at once, and what the kernel answers ([netlink(7)]).
//!
//! The kernel works through a request before `sendto` returns, so the answers to a [`Batch`] are all there to be read
//! when it has been sent; only dumps are produced while they are read.
//!
//! [netlink(7)]: https://man7.org/linux/man-pages/man7/netlink.7.html
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// More than one datagram of a dump, which the kernel keeps within 32 KiB.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Room for a transaction with the longest lists; the default of 208 KiB is short of them.
const SEND_BYTES_MAX: usize = 8 << 20;
/// How often a dump is begun again because what it shows changed meanwhile.
const DUMPS_MAX: u32 = 8;
/// `NLM_F_DUMP_INTR`: the table changed under the dump.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// Everything of an attribute's type but its flags.
const TYPE_MASK: u16 = 0x3fff;

/// The kernel said no to one message.
#[derive(Debug, thiserror::Error)]
#[error("message {message} of the batch was refused")]
pub struct Refused {
    /// Which of the batch, from 0.
    pub message: usize,
    /// Why.
    #[source]
    pub error: io::Error,
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self { message: 0, error }
    }
}
impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

/// Messages that travel in one `sendto`.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    count: u32,
}

impl Batch {
    /// Appends one message: its type, its flags (`NLM_F_*`; a request is always one), the fixed header of its family
    /// and its attributes.
    pub fn message(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.count += 1;
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | flag(libc::NLM_F_REQUEST)).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        self.bytes.extend_from_slice(fixed);
        pad(&mut self.bytes);
        attributes(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).expect("a message is far below 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// How many messages it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes the attributes of a message, or of an attribute that holds others.
#[derive(Debug)]
pub struct Attributes<'a>(&'a mut Vec<u8>);

impl<'a> Attributes<'a> {
    /// Writes attributes into a buffer of one's own, to be put into a message with [`Attributes::raw`].
    pub fn into_buffer(buffer: &'a mut Vec<u8>) -> Self {
        Self(buffer)
    }
    /// Attributes that were written before.
    pub fn raw(&mut self, attributes: &[u8]) {
        self.0.extend_from_slice(attributes);
    }
    /// One attribute.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("an attribute is below 64 KiB");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        pad(self.0);
    }
    /// A byte.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }
    /// A number in the machine's order, as rtnetlink has them.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }
    /// A number in network order, as nfnetlink has them.
    pub fn u32_be(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }
    /// A long number in network order.
    pub fn u64_be(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }
    /// A string with its NUL.
    pub fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes);
    }
    /// An attribute of attributes.
    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        inner(&mut Attributes(self.0));
        let length = u16::try_from(self.0.len() - start).expect("an attribute is below 64 KiB");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A flag of `libc`, which has them as `c_int`, in the width of the header.
pub(crate) fn flag(flag: libc::c_int) -> u16 {
    u16::try_from(flag).expect("netlink flags have 16 bits")
}

/// Reads attributes; stops at the first that does not fit.
#[derive(Debug, Clone)]
pub struct Parsed<'a>(&'a [u8]);

impl<'a> Parsed<'a> {
    /// Over the attributes of a message's payload, after a fixed header of `fixed` bytes.
    #[must_use]
    pub fn after(payload: &'a [u8], fixed: usize) -> Self {
        Self(payload.get(fixed.next_multiple_of(4)..).unwrap_or_default())
    }
    /// Over the attributes within an attribute.
    #[must_use]
    pub fn within(attribute: &'a [u8]) -> Self {
        Self(attribute)
    }
    /// The first of this type.
    #[must_use]
    pub fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(k, value)| (k == kind).then_some(value))
    }
    /// Descends through nested attributes.
    #[must_use]
    pub fn path(&self, kinds: &[u16]) -> Option<&'a [u8]> {
        let (last, way) = kinds.split_last()?;
        way.iter()
            .try_fold(self.clone(), |at, kind| at.find(*kind).map(Parsed::within))?
            .find(*last)
    }
    /// A number in the machine's order.
    #[must_use]
    pub fn u32(&self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.find(kind)?.try_into().ok()?))
    }
    /// A number in network order.
    #[must_use]
    pub fn u32_be(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }
    /// A string, without its NUL.
    #[must_use]
    pub fn text(&self, kind: u16) -> Option<&'a str> {
        let bytes = self.find(kind)?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).ok()
    }
}

impl<'a> Iterator for Parsed<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// One message of a dump.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its type.
    pub kind: u16,
    /// What follows its header.
    pub payload: Vec<u8>,
}

/// The kernel's side that a socket talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nftables and conntrack.
    Netfilter,
    /// Other sockets.
    Sockets,
}

/// A netlink socket. It belongs to the network namespace that its opening thread was in, for good.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Opens one.
    ///
    /// # Errors
    /// What `socket(2)`, `setsockopt(2)` or `bind(2)` answered; `EPROTONOSUPPORT` where the kernel lacks the family.
    pub fn open(family: Family) -> io::Result<Self> {
        Self::subscribed(family, 0)
    }

    /// Opens one that also hears what the groups of this mask (`RTMGRP_*`) tell.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub fn subscribed(family: Family, groups: u32) -> io::Result<Self> {
        let protocol = match family {
            // NETLINK_ROUTE is number 0.
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
            Family::Sockets => Some(netlink::SOCK_DIAG),
        };
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        // Refusals need not repeat the message that they refuse.
        option(&socket, libc::NETLINK_CAP_ACK)?;
        Ok(Self(socket))
    }

    /// Allows batches of up to 8 MiB; needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// What `setsockopt(2)` answered.
    pub fn allow_large_batches(&self) -> io::Result<()> {
        Ok(sockopt::set_socket_send_buffer_size_force(
            &self.0,
            SEND_BYTES_MAX,
        )?)
    }

    /// Sends a batch and looks at the answers.
    ///
    /// # Errors
    /// The first message that was refused. With rtnetlink the others were carried out nevertheless.
    pub fn run(&self, batch: &Batch) -> Result<(), Refused> {
        self.ask(batch).map(drop)
    }

    /// Sends a batch; gives back what the kernel answered besides acknowledgements.
    ///
    /// # Errors
    /// As [`Socket::run`].
    pub fn ask(&self, batch: &Batch) -> Result<Vec<Answer>, Refused> {
        self.send(batch)?;
        let mut refused = None;
        let mut answers = Vec::new();
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        loop {
            match rustix::net::recv(&self.0, &mut buffer, RecvFlags::DONTWAIT) {
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
                Ok((length, _)) => messages(&buffer[..length], |header, payload| {
                    match errno(header.kind, payload) {
                        None => answers.push(Answer {
                            kind: header.kind,
                            payload: payload.to_vec(),
                        }),
                        Some(0) => {}
                        Some(code) => {
                            refused.get_or_insert(Refused {
                                message: (header.sequence as usize).saturating_sub(1),
                                error: io::Error::from_raw_os_error(code),
                            });
                        }
                    }
                }),
            }
        }
        refused.map_or(Ok(answers), Err)
    }

    /// Sends one request with `NLM_F_DUMP` and reads all of what it asks for.
    ///
    /// # Errors
    /// What the kernel answered; `EINTR` when the table never held still.
    pub fn dump(&self, request: &Batch) -> io::Result<Vec<Answer>> {
        for _ in 0..DUMPS_MAX {
            let mut answers = Vec::new();
            let whole = self.stream(request, |kind, payload| {
                answers.push(Answer {
                    kind,
                    payload: payload.to_vec(),
                });
            })?;
            if whole {
                return Ok(answers);
            }
        }
        Err(io::Error::from_raw_os_error(libc::EINTR))
    }

    /// The same, for tables that are too large to be kept: shows each message's type and payload once. `false`: the
    /// table changed meanwhile, and some of it may have been left out.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn stream(&self, request: &Batch, mut each: impl FnMut(u16, &[u8])) -> io::Result<bool> {
        self.send(request)?;
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        let (mut done, mut torn, mut refused) = (false, false, None);
        while !done {
            let length = match rustix::net::recv(&self.0, &mut buffer, RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?.0,
            };
            messages(&buffer[..length], |header, payload| {
                torn |= header.flags & DUMP_INTERRUPTED != 0;
                if header.kind == flag(libc::NLMSG_DONE) {
                    done = true;
                } else if let Some(code) = errno(header.kind, payload) {
                    done = true;
                    refused = (code != 0).then(|| io::Error::from_raw_os_error(code));
                } else {
                    each(header.kind, payload);
                }
            });
        }
        refused.map_or(Ok(!torn), Err)
    }

    /// Reads what was told to a subscriber, so that `poll(2)` waits for more. `None`: some of it was lost.
    ///
    /// # Errors
    /// What `recv(2)` answered.
    pub fn news(&self) -> io::Result<Option<Vec<Answer>>> {
        let (mut answers, mut lost) = (Vec::new(), false);
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        loop {
            match rustix::net::recv(&self.0, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((length, _)) => messages(&buffer[..length], |header, payload| {
                    answers.push(Answer {
                        kind: header.kind,
                        payload: payload.to_vec(),
                    });
                }),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::NOBUFS) => lost = true,
                Err(rustix::io::Errno::AGAIN) => return Ok((!lost).then_some(answers)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn send(&self, batch: &Batch) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        let sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendto(&self.0, &batch.bytes, SendFlags::empty(), &kernel)
        })?;
        if sent == batch.bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

fn messages(mut bytes: &[u8], mut each: impl FnMut(Header, &[u8])) {
    let u16_at = |b: &[u8], at: usize| u16::from_ne_bytes([b[at], b[at + 1]]);
    let u32_at = |b: &[u8], at: usize| u32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    while bytes.len() >= HEADER {
        let length = u32_at(bytes, 0) as usize;
        let Some(payload) = bytes.get(HEADER..length) else {
            return;
        };
        let header = Header {
            kind: u16_at(bytes, 4),
            flags: u16_at(bytes, 6),
            sequence: u32_at(bytes, 8),
        };
        each(header, payload);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// The code of an `NLMSG_ERROR`: 0 acknowledges.
fn errno(kind: u16, payload: &[u8]) -> Option<i32> {
    (kind == flag(libc::NLMSG_ERROR)).then(|| {
        let code = payload.get(..4).and_then(|b| b.try_into().ok());
        code.map_or(libc::EPROTO, |b| i32::from_ne_bytes(b).saturating_neg())
    })
}

fn option(socket: &OwnedFd, name: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).expect("an int is small");
    // SAFETY: `on` lives through the call and `length` is its size.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            name,
            (&raw const on).cast(),
            length,
        )
    };
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
    fn what_is_written_is_read_back() {
        let mut batch = Batch::default();
        batch.message(7, 0, &[1, 2], |a| {
            a.text(1, "eth0");
            a.nest(2, |a| {
                a.u32(3, 5);
                a.nest(4, |a| a.u32_be(6, 9));
            });
        });
        let mut seen = 0;
        messages(&batch.bytes, |header, payload| {
            seen += 1;
            let parsed = Parsed::after(payload, 2);
            assert_eq!((header.kind, header.sequence), (7, 1));
            assert_eq!(parsed.text(1), Some("eth0"));
            assert_eq!(parsed.path(&[2, 3]), Some(&5_u32.to_ne_bytes()[..]));
            assert_eq!(parsed.path(&[2, 4, 6]), Some(&9_u32.to_be_bytes()[..]));
        });
        assert_eq!(seen, 1);
    }

    #[test]
    fn garbage_ends_the_reading() {
        for bytes in [&[][..], &[3], &[0, 0, 1, 0], &[200, 0, 1, 0, 1], &[3, 0, 1, 0]] {
            assert_eq!(Parsed::within(bytes).count(), 0, "{bytes:?}");
        }
        messages(&[255; 40], |_, _| panic!("there is no message"));
    }
}
