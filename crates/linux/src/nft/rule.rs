//! One rule: matches, then what becomes of the packet that passes them all.
use std::net::Ipv4Addr;

use super::{Anonymous, LIST_ELEM, VERDICT_GOTO, ifname, verdict};
use crate::netlink::Attributes;

/// Registers: four of 16 bytes each.
const VERDICT: u32 = 0;
const R1: u32 = 1;
const R2: u32 = 2;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;
const PORT_DESTINATION: u32 = 2;
const NFPROTO_IPV4: u32 = 2;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const LOOKUP_NOT: u32 = 1;
const DYNSET_ADD: u32 = 0;
const DYNSET_UPDATE: u32 = 1;
const OVER: u32 = 1;
const REJECT_TCP_RESET: u32 = 1;
const REJECT_ICMPX: u32 = 2;
const ICMPX_ADMIN_PROHIBITED: u8 = 3;
const ACCEPT: i32 = 1;
const DROP: i32 = 0;

/// States of a tracked flow, to be combined with `|`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CtState(u32);

impl CtState {
    /// Seen in both directions.
    pub const ESTABLISHED: Self = Self(2);
    /// An error about such a flow, or a second flow that belongs to it.
    pub const RELATED: Self = Self(4);
    /// The first of its flow.
    pub const NEW: Self = Self(8);
}

impl std::ops::BitOr for CtState {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What has been done to a tracked flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CtStatus(u32);

impl CtStatus {
    /// It goes elsewhere than it was addressed to.
    pub const DESTINATION_TRANSLATED: Self = Self(0x20);
}

/// A rule in the making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Rule(Vec<u8>);

impl Rule {
    /// Matches every packet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The link it came in by has a name that begins so.
    pub fn iif_begins(self, prefix: &str) -> Self {
        self.meta(META_IIFNAME, R1).compare(R1, EQUAL, prefix.as_bytes())
    }
    /// … does not begin so.
    pub fn iif_begins_not(self, prefix: &str) -> Self {
        self.meta(META_IIFNAME, R1)
            .compare(R1, NOT_EQUAL, prefix.as_bytes())
    }
    /// The link it goes out by has a name that begins so.
    pub fn oif_begins(self, prefix: &str) -> Self {
        self.meta(META_OIFNAME, R1).compare(R1, EQUAL, prefix.as_bytes())
    }
    /// … does not begin so.
    pub fn oif_begins_not(self, prefix: &str) -> Self {
        self.meta(META_OIFNAME, R1)
            .compare(R1, NOT_EQUAL, prefix.as_bytes())
    }
    /// The link it came in by has this name.
    pub fn iif(self, name: &str) -> Self {
        self.meta(META_IIFNAME, R1).compare(R1, EQUAL, &ifname(name))
    }
    /// The link it goes out by has this name.
    pub fn oif(self, name: &str) -> Self {
        self.meta(META_OIFNAME, R1).compare(R1, EQUAL, &ifname(name))
    }
    /// The link it came in by is in the set.
    pub fn iif_in(self, set: &str) -> Self {
        self.meta(META_IIFNAME, R1).lookup(R1, set, false)
    }
    /// Link and source address are not together in the set. Only after [`Rule::ipv4`].
    pub fn iif_source_not_in(self, set: &str) -> Self {
        self.meta(META_IIFNAME, R1)
            .payload(NETWORK, IPV4_SOURCE, 4, R2)
            .lookup(R1, set, true)
    }
    /// It is an IPv4 packet.
    pub fn ipv4(self) -> Self {
        self.meta(META_NFPROTO, R1)
            .compare(R1, EQUAL, &nfproto(NFPROTO_IPV4))
    }
    /// It is none.
    pub fn not_ipv4(self) -> Self {
        self.meta(META_NFPROTO, R1)
            .compare(R1, NOT_EQUAL, &nfproto(NFPROTO_IPV4))
    }
    /// Its IPv4 source is in this network.
    pub fn source_within(self, network: Ipv4Addr, mask: Ipv4Addr) -> Self {
        self.ipv4()
            .payload(NETWORK, IPV4_SOURCE, 4, R1)
            .masked(R1, &mask.octets())
            .compare(R1, EQUAL, &network.octets())
    }
    /// Its IPv4 destination is this.
    pub fn destination(self, address: Ipv4Addr) -> Self {
        self.ipv4()
            .payload(NETWORK, IPV4_DESTINATION, 4, R1)
            .compare(R1, EQUAL, &address.octets())
    }
    /// Its IPv4 destination is in the set.
    pub fn destination_in(self, set: &str) -> Self {
        self.ipv4()
            .payload(NETWORK, IPV4_DESTINATION, 4, R1)
            .lookup(R1, set, false)
    }
    /// Its IPv4 destination is in this set.
    pub fn destination_in_anonymous(self, set: Anonymous) -> Self {
        self.ipv4()
            .payload(NETWORK, IPV4_DESTINATION, 4, R1)
            .expression("lookup", |a| {
                a.text(1, "__set%d");
                a.u32_be(2, R1);
                a.u32_be(4, set.0);
            })
    }
    /// Its transport protocol is this.
    pub fn protocol(self, number: u8) -> Self {
        self.meta(META_L4PROTO, R1).compare(R1, EQUAL, &[number])
    }
    /// It goes to this port of TCP or UDP. Only after [`Rule::protocol`].
    pub fn port(self, port: u16) -> Self {
        self.payload(TRANSPORT, PORT_DESTINATION, 2, R1)
            .compare(R1, EQUAL, &port.to_be_bytes())
    }
    /// Its flow is in one of these states.
    pub fn state(self, states: CtState) -> Self {
        self.tracked(CT_STATE, states.0, NOT_EQUAL)
    }
    /// Its flow is in none of these states.
    pub fn state_not(self, states: CtState) -> Self {
        self.tracked(CT_STATE, states.0, EQUAL)
    }
    /// This was done to its flow.
    pub fn status(self, status: CtStatus) -> Self {
        self.tracked(CT_STATUS, status.0, NOT_EQUAL)
    }
    /// This was not.
    pub fn status_not(self, status: CtStatus) -> Self {
        self.tracked(CT_STATUS, status.0, EQUAL)
    }
    /// Its link sends more such packets than this, which `set` counts.
    pub fn over_rate(self, set: &str, per_second: u64, burst: u32) -> Self {
        self.seen(set, DYNSET_UPDATE, "limit", |a| {
            a.u64_be(1, per_second);
            a.u64_be(2, 1);
            a.u32_be(3, burst);
            a.u32_be(4, 0);
            a.u32_be(5, OVER);
        })
    }
    /// Its link has more flows than this, which `set` counts.
    pub fn over_flows(self, set: &str, most: u32) -> Self {
        self.seen(set, DYNSET_ADD, "connlimit", |a| {
            a.u32_be(1, most);
            a.u32_be(2, OVER);
        })
    }

    /// Lets it pass.
    pub fn accept(self) -> Self {
        self.decide(ACCEPT, None)
    }
    /// Throws it away.
    pub fn drop(self) -> Self {
        self.decide(DROP, None)
    }
    /// Sends it to a chain, for good.
    pub fn goto(self, chain: &str) -> Self {
        self.decide(VERDICT_GOTO, Some(chain))
    }
    /// Sends it to the chain that a map has for its link; goes on when it has none.
    pub fn goto_by_iif(self, map: &str) -> Self {
        self.meta(META_IIFNAME, R1).expression("lookup", |a| {
            a.text(1, map);
            a.u32_be(2, R1);
            a.u32_be(3, VERDICT);
        })
    }
    /// Sends its flow to another address, same port.
    pub fn redirect_to(self, address: Ipv4Addr) -> Self {
        self.translate(1, address)
    }
    /// Makes its flow come from another address.
    pub fn appear_as(self, address: Ipv4Addr) -> Self {
        self.translate(0, address)
    }
    /// Makes its flow come from the address of the link it goes out by.
    pub fn masquerade(self) -> Self {
        self.expression("masq", |_| {})
    }
    /// Answers it with a TCP reset. Only after [`Rule::protocol`].
    pub fn reset(self) -> Self {
        self.expression("reject", |a| a.u32_be(1, REJECT_TCP_RESET))
    }
    /// Answers it with ICMP "administratively prohibited".
    pub fn prohibit(self) -> Self {
        self.expression("reject", |a| {
            a.u32_be(1, REJECT_ICMPX);
            a.u8(2, ICMPX_ADMIN_PROHIBITED);
        })
    }

    pub(super) fn expressions(&self) -> &[u8] {
        &self.0
    }

    fn translate(self, kind: u32, address: Ipv4Addr) -> Self {
        self.expression("immediate", |a| {
            a.u32_be(1, R1);
            a.nest(2, |a| a.bytes(1, &address.octets()));
        })
        .expression("nat", |a| {
            a.u32_be(1, kind);
            a.u32_be(2, NFPROTO_IPV4);
            a.u32_be(3, R1);
        })
    }

    fn seen(self, set: &str, op: u32, expression: &str, data: impl FnOnce(&mut Attributes<'_>)) -> Self {
        self.meta(META_IIFNAME, R1).expression("dynset", |a| {
            a.text(1, set);
            a.u32_be(3, op);
            a.u32_be(4, R1);
            a.nest(7, |a| {
                a.text(1, expression);
                a.nest(2, data);
            });
        })
    }

    fn tracked(self, key: u32, mask: u32, op: u32) -> Self {
        self.expression("ct", |a| {
            a.u32_be(1, R1);
            a.u32_be(2, key);
        })
        .masked(R1, &mask.to_ne_bytes())
        .compare(R1, op, &0_u32.to_ne_bytes())
    }

    fn meta(self, key: u32, register: u32) -> Self {
        self.expression("meta", |a| {
            a.u32_be(1, register);
            a.u32_be(2, key);
        })
    }

    fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Self {
        self.expression("payload", |a| {
            a.u32_be(1, register);
            a.u32_be(2, base);
            a.u32_be(3, offset);
            a.u32_be(4, length);
        })
    }

    fn masked(self, register: u32, mask: &[u8; 4]) -> Self {
        self.expression("bitwise", |a| {
            a.u32_be(1, register);
            a.u32_be(2, register);
            a.u32_be(3, 4);
            a.nest(4, |a| a.bytes(1, mask));
            a.nest(5, |a| a.bytes(1, &[0; 4]));
        })
    }

    fn compare(self, register: u32, op: u32, value: &[u8]) -> Self {
        self.expression("cmp", |a| {
            a.u32_be(1, register);
            a.u32_be(2, op);
            a.nest(3, |a| a.bytes(1, value));
        })
    }

    fn lookup(self, register: u32, set: &str, not: bool) -> Self {
        self.expression("lookup", |a| {
            a.text(1, set);
            a.u32_be(2, register);
            if not {
                a.u32_be(5, LOOKUP_NOT);
            }
        })
    }

    fn decide(self, code: i32, chain: Option<&str>) -> Self {
        self.expression("immediate", |a| {
            a.u32_be(1, VERDICT);
            a.nest(2, |a| verdict(a, code, chain));
        })
    }

    fn expression(mut self, name: &str, data: impl FnOnce(&mut Attributes<'_>)) -> Self {
        Attributes::into_buffer(&mut self.0).nest(LIST_ELEM, |a| {
            a.text(1, name);
            a.nest(2, data);
        });
        self
    }
}

fn nfproto(family: u32) -> [u8; 1] {
    [u8::try_from(family).expect("families are small")]
}
