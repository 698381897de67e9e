//! What a policy means for one packet: pure, and the same that the firewall does.
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use linux::nft::Element;
use model::NetworkPolicy;

/// What the node denies to every sandbox, whatever its policy allows: where the host, its neighbours and the machinery
/// of clouds are (IANA's special-purpose registry, and the metadata services outside of it).
pub(crate) const DENIED: [(Ipv4Addr, u8); 13] = [
    // This host on this network.
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    // Private networks, among them every sandbox.
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    // Carriers' private networks; one cloud has its metadata at 100.100.100.200.
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    // Link-local: metadata at 169.254.169.254 and neighbours.
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    // The host agent of a cloud that answers on a public address.
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    // Protocol assignments; one cloud has its metadata at 192.0.0.192.
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    // Benchmarks between networks, in practice a private network.
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    // Multicast; reserved and broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 5),
    (Ipv4Addr::new(248, 0, 0, 0), 5),
];

/// Addresses from the first to the last.
type Range = (u32, u32);

/// A set of addresses: ranges in order, none of which touches the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ranges(Vec<Range>);

impl Ranges {
    pub(crate) fn of(networks: impl IntoIterator<Item = Ipv4Net>) -> Self {
        let mut all: Vec<Range> = networks
            .into_iter()
            .map(|n| (n.network().into(), n.broadcast().into()))
            .collect();
        all.sort_unstable();
        let mut merged: Vec<Range> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }
    /// [`DENIED`].
    pub(crate) fn denied() -> Self {
        Self::of(DENIED.map(|(address, prefix)| Ipv4Net::new(address, prefix).expect("at most 32 bits")))
    }
    pub(crate) fn contains(&self, address: Ipv4Addr) -> bool {
        let address = u32::from(address);
        self.0
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&address))
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub(crate) fn elements(&self) -> Vec<Element> {
        self.0
            .iter()
            .flat_map(|(first, last)| Element::range((*first).into(), (*last).into()))
            .collect()
    }
}

/// The rules of one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) shape: Shape,
    /// Whether the host's name servers answer.
    pub(crate) dns: bool,
}

/// How much there is to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Everything that the node does not deny.
    Open,
    /// Nothing.
    Closed,
    /// By list.
    Lists {
        allow: Ranges,
        deny: Ranges,
        /// What neither names.
        others: bool,
    },
}

impl Rules {
    /// IPv6 networks of a policy name nothing: no sandbox has IPv6. Name servers do not answer a sandbox that denies
    /// everything, for questions carry data out, unless it allows one of their addresses by name.
    pub(crate) fn of(policy: &NetworkPolicy, resolvers: &[Ipv4Addr]) -> Self {
        let v4 = |list: &[model::Cidr]| {
            Ranges::of(list.iter().filter_map(|cidr| match cidr.0 {
                IpNet::V4(net) => Some(net),
                IpNet::V6(_) => None,
            }))
        };
        let (allow, deny) = (v4(&policy.allow), v4(&policy.deny));
        let others = !(policy.internet == Some(false) || deny.0.contains(&(0, u32::MAX)));
        let dns = others || resolvers.iter().any(|r| allow.contains(*r));
        let shape = match (others, allow.is_empty(), deny.is_empty()) {
            (true, _, true) => Shape::Open,
            (false, true, _) => Shape::Closed,
            _ => Shape::Lists { allow, deny, others },
        };
        Self { shape, dns }
    }

    /// Whether a packet to this address, which is no question to a name server, may leave.
    pub(crate) fn allows(&self, to: Ipv4Addr) -> bool {
        !Ranges::denied().contains(to)
            && match &self.shape {
                Shape::Open => true,
                Shape::Closed => false,
                Shape::Lists { allow, deny, others } => allow.contains(to) || (*others && !deny.contains(to)),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str], deny: &[&str], internet: Option<bool>) -> NetworkPolicy {
        let list = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect();
        NetworkPolicy {
            allow: list(allow),
            deny: list(deny),
            internet,
            ..NetworkPolicy::default()
        }
    }
    fn check(policy: &NetworkPolicy, allowed: &[&str], refused: &[&str]) {
        let rules = Rules::of(policy, &[Ipv4Addr::new(8, 8, 8, 8)]);
        for (addresses, expected) in [(allowed, true), (refused, false)] {
            for address in addresses {
                assert_eq!(
                    rules.allows(address.parse().unwrap()),
                    expected,
                    "{address} by {rules:?}"
                );
            }
        }
    }

    #[test]
    fn by_default_the_internet_is_open_and_what_is_near_is_not() {
        check(
            &policy(&[], &[], None),
            &[
                "1.1.1.1",
                "203.0.113.77",
                "198.51.100.1",
                "192.0.2.9",
                "172.32.0.1",
                "100.128.0.1",
            ],
            &[
                "10.1.2.3",
                "172.31.255.255",
                "192.168.1.1",
                "100.64.0.1",
                "100.100.100.200",
                "169.254.169.254",
                "168.63.129.16",
                "127.0.0.1",
                "0.0.0.0",
                "224.0.0.1",
                "255.255.255.255",
                "192.0.0.192",
            ],
        );
    }

    #[test]
    fn allow_beats_deny_and_opens_nothing_that_the_node_denies() {
        let all_but = policy(&["203.0.113.77", "10.0.0.0/8"], &["0.0.0.0/0"], None);
        check(&all_but, &["203.0.113.77"], &["203.0.113.78", "10.1.1.1"]);
        let some = policy(&["203.0.113.77"], &["203.0.113.0/24"], Some(true));
        check(&some, &["203.0.113.77", "1.1.1.1"], &["203.0.113.78"]);
    }

    #[test]
    fn no_internet_leaves_what_is_allowed_by_name() {
        check(&policy(&[], &[], Some(false)), &[], &["1.1.1.1"]);
        check(
            &policy(&["1.1.1.1"], &[], Some(false)),
            &["1.1.1.1"],
            &["1.0.0.1"],
        );
        assert_eq!(
            Rules::of(&policy(&[], &["0.0.0.0/0"], None), &[]).shape,
            Shape::Closed
        );
        // Two halves are the whole.
        assert_eq!(
            Rules::of(&policy(&[], &["0.0.0.0/1", "128.0.0.0/1"], None), &[]).shape,
            Shape::Closed
        );
    }

    #[test]
    fn names_are_resolved_unless_everything_is_denied() {
        let dns = |policy| Rules::of(&policy, &[Ipv4Addr::new(8, 8, 8, 8)]).dns;
        assert!(dns(policy(&[], &["1.1.1.1"], None)));
        assert!(!dns(policy(&["1.1.1.1"], &["0.0.0.0/0"], None)));
        assert!(dns(policy(&["8.8.8.8"], &["0.0.0.0/0"], None)));
    }

    #[test]
    fn ranges_are_merged() {
        let nets = ["10.0.1.0/24", "10.0.0.0/24", "10.0.0.7/32", "10.0.3.0/24"];
        let ranges = Ranges::of(nets.map(|n| n.parse().unwrap()));
        assert_eq!(ranges.0.len(), 2);
        assert!(
            ranges.contains(Ipv4Addr::new(10, 0, 1, 255)) && !ranges.contains(Ipv4Addr::new(10, 0, 2, 0))
        );
        assert_eq!(Ranges::of(["0.0.0.0/0".parse().unwrap()]).elements().len(), 1);
    }
}
