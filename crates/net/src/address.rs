//! Which names and addresses a slot's link has. All of it follows from the instance and the slot.
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use linux::rtnl::{Mac, Route};

/// What sandboxes see as their router. Nobody has this address: what is sent to it and is no question to a name server
/// is refused like everything link-local.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 53, 1);
/// As many name servers as a resolver library asks ([resolv.conf(5)], `MAXNS`).
///
/// [resolv.conf(5)]: https://man7.org/linux/man-pages/man5/resolv.conf.5.html
pub const RESOLVERS_MAX: usize = 3;
/// Keeps names of links (`at`, instance, `-`, slot) within the kernel's 15 bytes.
pub const INSTANCE_MAX: u32 = 99_999;
/// Slots of one instance: a /16 of addresses, less a few at its ends.
pub const SLOTS_MAX: u32 = 65_000;

/// First of the second octets that a base may have: 10.64.0.0/16 to 10.127.0.0/16.
const OCTET_MIN: u32 = 64;
const OCTETS: u32 = 64;
/// With it, instance 0 begins to look at 10.111.0.0/16.
const OCTET_FIRST: u32 = 47;
/// The first address of a base that a slot has.
const HOST_MIN: u32 = 16;

/// The names and addresses of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    instance: u32,
    base: Ipv4Net,
}

impl Plan {
    pub(crate) fn new(instance: u32, base: Ipv4Net) -> Self {
        Self { instance, base }
    }

    /// The base for a host with these routes: the one that links of this instance are using, or else the first that no
    /// route touches. `None`: all are taken.
    pub(crate) fn choose(instance: u32, routes: &[Route], is_ours: impl Fn(u32) -> bool) -> Option<Self> {
        let used = routes.iter().find(|r| r.prefix == 32 && is_ours(r.link));
        if let Some(route) = used {
            return Some(Self::new(instance, network(route.address, 16)));
        }
        let taken: Vec<Ipv4Net> = routes
            .iter()
            .filter(|r| r.prefix > 0)
            .map(|r| network(r.address, r.prefix))
            .collect();
        let free = |net: &Ipv4Net| !taken.iter().any(|t| t.contains(net) || net.contains(t));
        (0..OCTETS)
            .map(|i| OCTET_MIN + (OCTET_FIRST + instance + i) % OCTETS)
            .map(|octet| network(Ipv4Addr::from(0x0a00_0000 | octet << 16), 16))
            .find(free)
            .map(|base| Self::new(instance, base))
    }

    pub(crate) fn base(&self) -> Ipv4Net {
        self.base
    }
    /// With what the names of all links of this instance begin, and no others.
    pub(crate) fn prefix(&self) -> String {
        prefix(self.instance)
    }
    pub(crate) fn link(&self, slot: u32) -> String {
        link_name(self.instance, slot)
    }
    pub(crate) fn table(&self) -> String {
        table(self.instance)
    }
    pub(crate) fn address(&self, slot: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base.network()) + HOST_MIN + slot)
    }
    /// Hardware addresses of the host's end and of the sandbox's: locally administered, the IPv4 address behind.
    pub(crate) fn macs(&self, slot: u32) -> (Mac, Mac) {
        let [a, b, c, d] = self.address(slot).octets();
        ([0xfe, 0xa7, a, b, c, d], [0x02, 0xa7, a, b, c, d])
    }
}

/// The name of the host's end of a slot's link.
#[must_use]
pub fn link_name(instance: u32, slot: u32) -> String {
    format!("{}{slot}", prefix(instance))
}

/// The slot that a link of this instance belongs to; `None` when it is none of its links.
pub(crate) fn slot_of(instance: u32, link: &str) -> Option<u32> {
    link.strip_prefix(&prefix(instance))?.parse().ok()
}

/// Whether a link belongs to this or another instance of Atoll.
pub(crate) fn is_slot(link: &str) -> bool {
    link.strip_prefix("at")
        .and_then(|rest| rest.split_once('-'))
        .is_some_and(|(instance, slot)| instance.parse::<u32>().is_ok() && slot.parse::<u32>().is_ok())
}

pub(crate) fn table(instance: u32) -> String {
    format!("atoll{instance}")
}

fn prefix(instance: u32) -> String {
    format!("at{instance}-")
}

/// The address that stands for the host's name server number `index` inside.
pub(crate) fn resolver_inside(index: usize) -> Ipv4Addr {
    let index = u32::try_from(index.min(RESOLVERS_MAX - 1)).expect("it is below three");
    Ipv4Addr::from(u32::from(GATEWAY) + index)
}

fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Net {
    Ipv4Net::new(address, prefix.min(32))
        .expect("at most 32 bits")
        .trunc()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(text: &str, link: u32) -> Route {
        let net: Ipv4Net = text.parse().unwrap();
        Route {
            address: net.addr(),
            prefix: net.prefix_len(),
            link,
        }
    }
    fn base(instance: u32, routes: &[Route]) -> String {
        let plan = Plan::choose(instance, routes, |link| link == 9);
        plan.map_or_else(String::new, |p| p.base().to_string())
    }

    #[test]
    fn a_base_is_one_that_no_route_touches() {
        assert_eq!(base(0, &[route("0.0.0.0/0", 2)]), "10.111.0.0/16");
        assert_eq!(base(1, &[]), "10.112.0.0/16");
        assert_eq!(base(0, &[route("10.111.3.0/24", 2)]), "10.112.0.0/16");
        assert_eq!(base(0, &[route("10.96.0.0/12", 2)]), "10.112.0.0/16");
        assert_eq!(base(0, &[route("10.0.0.0/8", 2)]), "");
    }

    #[test]
    fn the_base_of_living_links_is_kept() {
        assert_eq!(
            base(0, &[route("10.0.0.0/8", 2), route("10.70.0.18/32", 9)]),
            "10.70.0.0/16"
        );
    }

    #[test]
    fn names_are_short_and_lead_back_to_the_slot() {
        let plan = Plan::new(INSTANCE_MAX, "10.111.0.0/16".parse().unwrap());
        let link = plan.link(SLOTS_MAX - 1);
        assert!(link.len() <= 15, "{link}");
        assert_eq!(slot_of(INSTANCE_MAX, &link), Some(SLOTS_MAX - 1));
        assert!(plan.base().contains(&plan.address(SLOTS_MAX - 1)));
        assert_eq!(slot_of(7, "at77-1"), None);
        assert!(is_slot("at7-0") && !is_slot("atm0") && !is_slot("at-1") && !is_slot("eth0"));
    }
}
