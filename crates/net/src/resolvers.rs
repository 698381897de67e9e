//! Which name servers the host asks.
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use crate::address::RESOLVERS_MAX;

/// What programs read.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved names the servers behind its loopback stub, which answers nobody but the host.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// The host's IPv4 name servers. Servers behind a stub on loopback are preferred to the stub.
#[must_use]
pub fn resolvers_of_host() -> Vec<Ipv4Addr> {
    let read = |path| parse(&std::fs::read_to_string(Path::new(path)).unwrap_or_default());
    let named = read(RESOLV_CONF);
    if named.iter().all(Ipv4Addr::is_loopback) {
        let behind = read(BEHIND_RESOLVED);
        if behind.iter().any(|r| !r.is_loopback()) {
            return behind;
        }
    }
    named
}

/// The first IPv4 servers of a [resolv.conf(5)]. IPv6 ones are left out: sandboxes speak IPv4.
///
/// [resolv.conf(5)]: https://man7.org/linux/man-pages/man5/resolv.conf.5.html
fn parse(text: &str) -> Vec<Ipv4Addr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok())
        .filter_map(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        })
        .take(RESOLVERS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_the_first_ipv4_ones() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver ::1\n nameserver\t10.0.0.2 # here\nnameserver x\nnameserver 1.1.1.1\n";
        assert_eq!(
            parse(text),
            [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(1, 1, 1, 1)]
        );
        assert_eq!(parse(&"nameserver 1.1.1.1\n".repeat(9)).len(), RESOLVERS_MAX);
    }
}
