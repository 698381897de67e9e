//! Sockets of a network namespace, as [sock_diag(7)] shows and ends them.
//!
//! [sock_diag(7)]: https://man7.org/linux/man-pages/man7/sock_diag.7.html
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::{Batch, Refused, Socket, flag};

/// `SOCK_DIAG_BY_FAMILY`.
const SHOW: u16 = 20;
/// `SOCK_DESTROY`.
const END: u16 = 21;
const FAMILIES: [u8; 2] = [2, 10];
/// TCP and UDP.
const PROTOCOLS: [u8; 2] = [6, 17];
/// Where in `struct inet_diag_msg` the socket's name begins, and how long it is (`struct inet_diag_sockid`).
const NAME_AT: usize = 4;
const NAME: usize = 48;
/// All states but that of a socket that listens: it may be bound to an address that comes and goes.
const CONNECTED: u32 = !(1 << 10);

/// Ends every connection whose own end is `address`, in the namespace of `diagnosis`, a socket of
/// [`crate::netlink::Family::Sockets`]. Whoever holds such a socket is told by `ECONNABORTED`. Says how many there were.
///
/// # Errors
/// What the kernel answered; `EOPNOTSUPP` where it was built without `INET_DIAG_DESTROY`.
pub fn end_those_of(diagnosis: &Socket, address: Ipv4Addr) -> io::Result<usize> {
    let mut ended = 0;
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            let mut show = Batch::default();
            show.message(
                SHOW,
                flag(libc::NLM_F_DUMP),
                &request(family, protocol, &[0; NAME]),
                |_| {},
            );
            let names: Vec<Vec<u8>> = diagnosis
                .dump(&show)?
                .into_iter()
                .filter_map(|answer| Some(answer.payload.get(NAME_AT..NAME_AT + NAME)?.to_vec()))
                .filter(|name| source(family, name) == Some(address))
                .collect();
            for name in names {
                let mut end = Batch::default();
                end.message(
                    END,
                    flag(libc::NLM_F_ACK),
                    &request(family, protocol, &name),
                    |_| {},
                );
                match diagnosis.run(&end) {
                    Ok(()) => ended += 1,
                    // It has ended by itself.
                    Err(Refused { error, .. }) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    Err(refused) => return Err(refused.error),
                }
            }
        }
    }
    Ok(ended)
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, protocol: u8, name: &[u8]) -> Vec<u8> {
    let mut request = vec![family, protocol, 0, 0];
    request.extend(CONNECTED.to_ne_bytes());
    request.extend(name);
    request
}

/// The IPv4 address of a socket's own end.
fn source(family: u8, name: &[u8]) -> Option<Ipv4Addr> {
    let address = name.get(4..20)?;
    if family == FAMILIES[0] {
        let address: [u8; 4] = address.get(..4)?.try_into().ok()?;
        return Some(address.into());
    }
    let address: [u8; 16] = address.try_into().ok()?;
    match Ipv6Addr::from(address).to_canonical() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::netlink::Family;

    #[test]
    fn connections_of_one_address_end_and_others_stay() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let diagnosis = Socket::open(Family::Sockets).unwrap();
        let own = Ipv4Addr::new(127, 7, 5, 3);
        let connect = |from: Ipv4Addr| -> io::Result<TcpStream> {
            let socket = rustix::net::socket(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::STREAM,
                None,
            )?;
            rustix::net::bind(&socket, &std::net::SocketAddr::from((from, 0)))?;
            rustix::net::connect(&socket, &server.local_addr()?)?;
            Ok(socket.into())
        };
        let (mut gone, stays) = (connect(own).unwrap(), connect(Ipv4Addr::LOCALHOST).unwrap());
        match end_those_of(&diagnosis, own) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP)) => return,
            ended => assert_eq!(ended.unwrap(), 1),
        }
        let told = gone.read(&mut [0]).unwrap_err();
        assert_eq!(told.kind(), io::ErrorKind::ConnectionAborted);
        assert!(stays.peer_addr().is_ok() && stays.take_error().unwrap().is_none());
        assert_eq!(end_those_of(&diagnosis, own).unwrap(), 0);
    }
}
