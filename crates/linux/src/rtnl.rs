//! Links, addresses, neighbours and routes ([rtnetlink(7)]): functions that append a message to a [`Batch`], and
//! questions that a [`Socket`] of the family [`Route`](crate::netlink::Family::Route) answers.
//!
//! [rtnetlink(7)]: https://man7.org/linux/man-pages/man7/rtnetlink.7.html
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::netlink::{Answer, Attributes, Batch, Parsed, Refused, Socket, flag};

/// A hardware address.
pub type Mac = [u8; 6];

/// Group mask: links come, go and change.
pub const NEWS_OF_LINKS: u32 = 1;
/// Group mask: forwarding and its like are switched (`RTNLGRP_IPV4_NETCONF`).
pub const NEWS_OF_IPV4_SETTINGS: u32 = 1 << 23;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTNH_F_ONLINK: u32 = 4;

const NETCONFA_IFINDEX: u16 = 1;
/// `struct netconfmsg`, padded.
const NETCONF_HEADER: usize = 4;
/// Numbers of links are positive `int`s; "all" and "default" are negative ones.
const LINK_INDEX_MAX: u32 = i32::MAX.unsigned_abs();
const LINK_HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;
const INET: u8 = 2;
const INET6: u16 = 10;

/// An IPv4 setting of one link: `/proc/sys/net/ipv4/conf/LINK/…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Setting {
    /// `forwarding`
    Forwarding = 1,
    /// `accept_redirects`
    AcceptRedirects = 4,
    /// `send_redirects`
    SendRedirects = 6,
    /// `rp_filter`
    ReversePathFilter = 8,
    /// `accept_source_route`
    AcceptSourceRoute = 9,
    /// `arp_ignore`
    ArpIgnore = 19,
    /// `route_localnet`
    RouteLocalnet = 26,
}

/// A pair of links, one end here as `name` and up, the other in another namespace and down.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    /// The end in this namespace.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: Mac,
    /// The other end.
    pub peer: &'a str,
    /// Its hardware address.
    pub peer_mac: Mac,
    /// Where it is made.
    pub peer_netns: BorrowedFd<'a>,
    /// Largest packet of both, bytes.
    pub mtu_bytes: u32,
}

/// Makes a pair of links.
pub fn create_veth(batch: &mut Batch, veth: &Veth<'_>) {
    let flags = flag(libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    batch.message(libc::RTM_NEWLINK, flags, &link_header(0, 0, 0), |a| {
        a.text(IFLA_IFNAME, veth.name);
        a.bytes(IFLA_ADDRESS, &veth.mac);
        a.u32(IFLA_MTU, veth.mtu_bytes);
        one_queue(a);
        a.nest(IFLA_LINKINFO, |a| {
            a.text(IFLA_INFO_KIND, "veth");
            a.nest(IFLA_INFO_DATA, |a| {
                a.nest(VETH_INFO_PEER, |a| {
                    a.raw(&link_header(0, 0, 0));
                    a.text(IFLA_IFNAME, veth.peer);
                    a.bytes(IFLA_ADDRESS, &veth.peer_mac);
                    a.u32(IFLA_MTU, veth.mtu_bytes);
                    one_queue(a);
                    let netns = u32::try_from(veth.peer_netns.as_raw_fd())
                        .expect("an open descriptor is not negative");
                    a.u32(IFLA_NET_NS_FD, netns);
                });
            });
        });
    });
}

/// A pair has a queue for each possible processor by default, which takes time and memory.
fn one_queue(a: &mut Attributes<'_>) {
    a.u32(IFLA_NUM_TX_QUEUES, 1);
    a.u32(IFLA_NUM_RX_QUEUES, 1);
}

/// How a link is brought up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Up<'a> {
    /// Whether it neither asks for nor tells hardware addresses.
    pub no_arp: bool,
    /// Whether it gets no IPv6 address of its own making.
    pub no_ipv6: bool,
    /// IPv4 settings to be set first.
    pub settings: &'a [(Setting, u32)],
}

/// Brings a link up.
pub fn bring_up(batch: &mut Batch, index: u32, up: &Up<'_>) {
    let mut mask = flag_bits(libc::IFF_UP);
    if up.no_arp {
        mask |= flag_bits(libc::IFF_NOARP);
    }
    let header = link_header(index, mask, mask);
    batch.message(libc::RTM_NEWLINK, flag(libc::NLM_F_ACK), &header, |a| {
        if up.settings.is_empty() && !up.no_ipv6 {
            return;
        }
        a.nest(IFLA_AF_SPEC, |a| {
            if !up.settings.is_empty() {
                a.nest(u16::from(INET), |a| {
                    a.nest(IFLA_INET_CONF, |a| {
                        for (setting, value) in up.settings {
                            a.u32(*setting as u16, *value);
                        }
                    });
                });
            }
            if up.no_ipv6 {
                a.nest(INET6, |a| a.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE));
            }
        });
    });
}

/// Gives a link that is down another hardware address.
pub fn set_mac(batch: &mut Batch, index: u32, mac: Mac) {
    let header = link_header(index, 0, 0);
    batch.message(libc::RTM_NEWLINK, flag(libc::NLM_F_ACK), &header, |a| {
        a.bytes(IFLA_ADDRESS, &mac);
    });
}

/// Removes a link, and the other end of a pair. Waits for RCU: some 20 ms.
pub fn delete_link(batch: &mut Batch, index: u32) {
    batch.message(
        libc::RTM_DELLINK,
        flag(libc::NLM_F_ACK),
        &link_header(index, 0, 0),
        |_| {},
    );
}

/// Gives a link a host address.
pub fn add_address(batch: &mut Batch, index: u32, address: Ipv4Addr) {
    add_address_within(batch, index, address, 32);
}

/// Gives a link an address in a network, of which `prefix` bits count: the kernel adds the route to that network.
pub fn add_address_within(batch: &mut Batch, index: u32, address: Ipv4Addr, prefix: u8) {
    let flags = flag(libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    let mut header = [INET, prefix, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    batch.message(libc::RTM_NEWADDR, flags, &header, |a| {
        a.bytes(IFA_LOCAL, &address.octets());
        a.bytes(IFA_ADDRESS, &address.octets());
    });
}

/// Takes a host address away from a link.
pub fn delete_address(batch: &mut Batch, index: u32, address: Ipv4Addr) {
    let mut header = [INET, 32, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    batch.message(libc::RTM_DELADDR, flag(libc::NLM_F_ACK), &header, |a| {
        a.bytes(IFA_LOCAL, &address.octets());
    });
}

/// Says once and for all which hardware address a neighbour has. Such entries are not counted against `gc_thresh3`.
pub fn add_neighbour(batch: &mut Batch, index: u32, address: Ipv4Addr, mac: Mac) {
    let flags = flag(libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
    let mut header = [0_u8; 12];
    header[0] = INET;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    batch.message(libc::RTM_NEWNEIGH, flags, &header, |a| {
        a.bytes(NDA_DST, &address.octets());
        a.bytes(NDA_LLADDR, &mac);
    });
}

/// Adds a route: to `address/prefix` over a link, by way of a gateway that is taken to be on that link.
pub fn add_route(batch: &mut Batch, address: Ipv4Addr, prefix: u8, index: u32, gateway: Option<Ipv4Addr>) {
    let flags = flag(libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE);
    let scope = if gateway.is_some() {
        libc::RT_SCOPE_UNIVERSE
    } else {
        libc::RT_SCOPE_LINK
    };
    let onlink = if gateway.is_some() { RTNH_F_ONLINK } else { 0 };
    let mut header = [
        INET,
        prefix,
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_STATIC,
        scope,
        libc::RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    header[8..].copy_from_slice(&onlink.to_ne_bytes());
    batch.message(libc::RTM_NEWROUTE, flags, &header, |a| {
        if prefix > 0 {
            a.bytes(RTA_DST, &address.octets());
        }
        a.u32(RTA_OIF, index);
        if let Some(gateway) = gateway {
            a.bytes(RTA_GATEWAY, &gateway.octets());
        }
    });
}

/// A link as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is administratively up.
    pub is_up: bool,
    /// Whether it is the loopback link.
    pub is_loopback: bool,
    /// Largest packet, bytes.
    pub mtu_bytes: u32,
    /// Whether IPv4 packets that arrive on it may be forwarded. `None`: it speaks no IPv4.
    pub forwarding: Option<bool>,
}

/// The link of this name; `None` when there is none.
///
/// # Errors
/// What the kernel answered.
pub fn link(socket: &Socket, name: &str) -> io::Result<Option<Link>> {
    let mut batch = Batch::default();
    batch.message(libc::RTM_GETLINK, 0, &link_header(0, 0, 0), |a| {
        a.text(IFLA_IFNAME, name);
        a.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    });
    match socket.ask(&batch) {
        Ok(answers) => Ok(answers.first().and_then(|a| parse_link(&a.payload))),
        Err(Refused { error, .. }) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(refused) => Err(refused.error),
    }
}

/// All links of the socket's namespace.
///
/// # Errors
/// What the kernel answered.
pub fn links(socket: &Socket) -> io::Result<Vec<Link>> {
    let mut batch = Batch::default();
    batch.message(
        libc::RTM_GETLINK,
        flag(libc::NLM_F_DUMP),
        &link_header(0, 0, 0),
        |a| {
            a.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        },
    );
    let answers = socket.dump(&batch)?;
    Ok(answers.iter().filter_map(|a| parse_link(&a.payload)).collect())
}

/// A route as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub address: Ipv4Addr,
    /// How many bits of it count.
    pub prefix: u8,
    /// Over which link; 0 when over several, or none.
    pub link: u32,
}

/// All IPv4 routes of all tables, local addresses among them.
///
/// # Errors
/// What the kernel answered.
pub fn routes(socket: &Socket) -> io::Result<Vec<Route>> {
    let mut batch = Batch::default();
    let mut header = [0_u8; ROUTE_HEADER];
    header[0] = INET;
    batch.message(libc::RTM_GETROUTE, flag(libc::NLM_F_DUMP), &header, |_| {});
    let answers = socket.dump(&batch)?;
    let parse = |payload: &[u8]| {
        let attributes = Parsed::after(payload, ROUTE_HEADER);
        let address = attributes
            .find(RTA_DST)
            .and_then(|b| <[u8; 4]>::try_from(b).ok())
            .unwrap_or_default();
        Some(Route {
            address: address.into(),
            prefix: *payload.get(1)?,
            link: attributes.u32(RTA_OIF).unwrap_or(0),
        })
    };
    Ok(answers.iter().filter_map(|a| parse(&a.payload)).collect())
}

/// What changed, as a subscriber is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The link of this name came, changed or went.
    Link(String),
    /// IPv4 settings of the link with this number were switched; `None`: those of all links.
    Settings(Option<u32>),
}

/// Reads one message of [`NEWS_OF_LINKS`] or [`NEWS_OF_IPV4_SETTINGS`].
#[must_use]
pub fn news(message: &Answer) -> Option<News> {
    match message.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            let attributes = Parsed::after(&message.payload, LINK_HEADER);
            Some(News::Link(attributes.text(IFLA_IFNAME)?.to_owned()))
        }
        libc::RTM_NEWNETCONF => {
            let attributes = Parsed::after(&message.payload, NETCONF_HEADER);
            let index = attributes.u32(NETCONFA_IFINDEX)?;
            Some(News::Settings((index <= LINK_INDEX_MAX).then_some(index)))
        }
        _ => None,
    }
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let attributes = Parsed::after(payload, LINK_HEADER);
    let index = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
    let flags = u32::from_ne_bytes(payload.get(8..12)?.try_into().ok()?);
    let settings = attributes.path(&[IFLA_AF_SPEC, u16::from(INET), IFLA_INET_CONF]);
    let at = (Setting::Forwarding as usize - 1) * 4;
    Some(Link {
        index,
        name: attributes.text(IFLA_IFNAME)?.to_owned(),
        is_up: flags & flag_bits(libc::IFF_UP) != 0,
        is_loopback: flags & flag_bits(libc::IFF_LOOPBACK) != 0,
        mtu_bytes: attributes.u32(IFLA_MTU)?,
        forwarding: settings
            .and_then(|s| s.get(at..at + 4))
            .map(|value| value.iter().any(|b| *b != 0)),
    })
}

fn link_header(index: u32, flags: u32, mask: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&mask.to_ne_bytes());
    header
}

fn flag_bits(flags: libc::c_int) -> u32 {
    u32::try_from(flags).expect("link flags are not negative")
}
