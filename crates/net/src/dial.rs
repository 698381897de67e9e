//! Connections to ports inside, from the sandbox's own loopback.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use linux::netns;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpSocket, TcpStream};

/// Nothing is lost on loopback: who does not answer by then has a full backlog, or is frozen.
pub const DIAL_TIME_MAX: Duration = Duration::from_secs(5);

/// Connects to `port` on 127.0.0.1, else on ::1. The socket is made inside and belongs to it; everything else happens
/// out here, in the caller's runtime.
pub(super) async fn dial(netns: BorrowedFd<'_>, home: BorrowedFd<'_>, port: u16) -> io::Result<TcpStream> {
    let try_one = async |address: IpAddr| {
        let inside = || socket(family(address));
        let socket = netns::within(netns, home, inside)??;
        let stream = TcpSocket::from_std_stream(socket.into())
            .connect(SocketAddr::new(address, port))
            .await?;
        stream.set_nodelay(true)?;
        Ok::<_, io::Error>(stream)
    };
    let both = async {
        match try_one(Ipv4Addr::LOCALHOST.into()).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // Where IPv6 is switched off, that it was refused is the better answer.
                try_one(Ipv6Addr::LOCALHOST.into()).await.map_err(|_| error)
            }
            other => other,
        }
    };
    tokio::time::timeout(DIAL_TIME_MAX, both)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    }
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}
