//! The network of sandboxes: a link for each slot, a firewall on the host's end, and the way in.
//!
//! ```text
//!   sandbox's namespace          host's namespace
//!   eth0 10.111.0.16/32 ──veth── at0-0 ─┐
//!     default via 169.254.53.1          ├─ table inet atoll0 ── masquerade ── eth0, …
//!   eth0 10.111.0.17/32 ──veth── at0-1 ─┘        │
//!                                                └─ 169.254.53.1:53 → the host's name server
//! ```
//!
//! A microVM has a namespace as well, which leads to its guest ([`Net::attach_tap`]).
//!
//! A slot is attached when its skeleton is parked, claimed when a sandbox takes it, and released when that has ended.
//! An attached slot that nobody claimed reaches nothing. Both ends know each other's hardware address from the
//! beginning: neither asks, and no answer can be forged.
//!
//! **Invariants**
//! - What [`NetworkPolicy`] and the node deny is denied for every packet, from the moment in which
//!   [`Net::claim`] or [`Net::set_policy`] returns; in between, either the old or the new rules hold.
//! - The rules live on the host's end. Nothing inside, whatever its privileges there, can change them.
//! - Sandboxes speak IPv4 with the address of their slot. Everything else is dropped before it costs anything.
//! - The host forwards for sandboxes only ([`uplinks`]).
//! - Names of links and of the table carry the instance; nothing with another name is touched.
//! - Dropping a [`Net`] changes nothing: sandboxes keep their network while no daemon runs.
#![forbid(unsafe_code)]
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use linux::netlink::{Batch, Family, Socket};
use linux::netns;
use linux::nft::{self, Element, Transaction};
use linux::rtnl::{self, Setting, Up, Veth};
use linux::sockets;
use model::NetworkPolicy;
use ports::step::{At, Step};
use tokio::net::TcpStream;

mod address;
mod dial;
mod flows;
mod instance;
mod probe;
mod resolvers;
mod rules;
mod table;
mod tap;
mod uplinks;

pub use address::{GATEWAY, INSTANCE_MAX, RESOLVERS_MAX, SLOTS_MAX, link_name};
pub use dial::DIAL_TIME_MAX;
pub use instance::{INSTANCES_MAX, Instance};
pub use probe::{Lack, probe};
pub use resolvers::resolvers_of_host;
pub use table::{FLOWS_BURST_MAX, FLOWS_MAX, FLOWS_PER_SECOND_MAX};
pub use tap::{GUEST, GUEST_GATEWAY, GUEST_MAC, GUEST_PREFIX, Tap};

use address::{Plan, slot_of};
use flows::Flows;
use rules::Rules;
use table::Entry;
use uplinks::Uplinks;

/// Loopback has this number in every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// The link's name inside.
const INSIDE: &str = "eth0";
/// Largest packet where the host has no link that says otherwise, bytes.
const MTU_BYTES: u32 = 1500;
/// Smallest that IPv4 hosts must take ([RFC 791]), bytes.
///
/// [RFC 791]: https://www.rfc-editor.org/rfc/rfc791
const MTU_BYTES_MIN: u32 = 576;

/// What a sandbox is given inside, besides its link.
const SETTINGS_INSIDE: [(&str, &str); 2] = [
    // Every group may send echo requests without a raw socket.
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    // Its ports are its own: port 80 needs no privilege.
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
];

/// The network of one instance.
#[derive(Debug)]
pub struct Net {
    instance: u32,
    plan: Plan,
    resolvers: Vec<Ipv4Addr>,
    mtu_bytes: u32,
    /// The host's namespace.
    home: OwnedFd,
    /// Both locks are held for one exchange with the kernel, never across an await.
    routes: Mutex<Socket>,
    firewall: Mutex<Firewall>,
    flows: Flows,
    uplinks: Uplinks,
}

#[derive(Debug)]
struct Firewall {
    socket: Socket,
    entries: HashMap<u32, Entry>,
    adopted: HashSet<u32>,
    chains_made: u64,
}

/// A slot with its link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Which.
    pub slot: u32,
    /// Its address inside, a network of its own.
    pub address: Ipv4Addr,
    /// The name of the host's end.
    pub link: String,
}

impl Net {
    /// Puts the firewall in place, with the slots of sandboxes that live on from an earlier run in it: in one
    /// transaction with the removal of what that run left, so that their flows go on. Everything else of that run has
    /// no network from here on. Sandboxes ask [`resolvers_of_host`].
    ///
    /// # Errors
    /// Numbers out of bounds, no free addresses, or what the kernel refused. See [`probe`].
    pub fn open(instance: u32, adopted: &[(u32, NetworkPolicy)]) -> Result<Self, Step> {
        Self::open_with(instance, resolvers_of_host(), adopted)
    }

    fn open_with(
        instance: u32,
        mut resolvers: Vec<Ipv4Addr>,
        adopted: &[(u32, NetworkPolicy)],
    ) -> Result<Self, Step> {
        bounded("instance", instance, INSTANCE_MAX)?;
        resolvers.truncate(RESOLVERS_MAX);
        let home = netns::current().at("opening the host's network namespace")?;
        let routes = Socket::open(Family::Route).at("opening rtnetlink")?;
        let links = rtnl::links(&routes).at("listing links")?;
        let known = rtnl::routes(&routes).at("listing routes")?;
        let ours = |index: u32| {
            links
                .iter()
                .any(|l| l.index == index && slot_of(instance, &l.name).is_some())
        };
        let plan = Plan::choose(instance, &known, ours)
            .ok_or(io::Error::from(io::ErrorKind::AddrNotAvailable))
            .at("finding a /16 between 10.64.0.0 and 10.127.0.0 that no route touches")?;
        let outward = known.iter().find(|r| r.prefix == 0).map_or(0, |r| r.link);
        let mtu_bytes = links
            .iter()
            .find(|l| l.index == outward)
            .map_or(MTU_BYTES, |l| l.mtu_bytes.clamp(MTU_BYTES_MIN, MTU_BYTES));

        let socket = Socket::open(Family::Netfilter).at("opening nfnetlink")?;
        // Without CAP_NET_ADMIN the transaction below fails and says why.
        let _ = socket.allow_large_batches();
        let guarded =
            nft::link_names(&socket, &plan.table(), table::UPLINKS).at("reading the earlier firewall")?;
        let mut t = Transaction::new(&plan.table());
        table::build(&mut t, &plan, &resolvers, &guarded);
        let mut entries = HashMap::new();
        let mut chains_made = 0;
        for (slot, policy) in adopted {
            bounded("slot", *slot, SLOTS_MAX - 1)?;
            chains_made += 1;
            let rules = Rules::of(policy, &resolvers);
            entries
                .entry(*slot)
                .or_insert_with(|| table::put(&mut t, &plan, *slot, None, rules, chains_made));
        }
        t.commit(&socket)
            .at(format!("making the table {}", plan.table()))?;
        let flows = Flows::open().at("opening the table of connections")?;
        let stays: HashSet<Ipv4Addr> = entries.keys().map(|slot| plan.address(*slot)).collect();
        flows
            .forget_all(|source| plan.base().contains(&source) && !stays.contains(&source))
            .at("forgetting the flows of sandboxes that have ended")?;
        let uplinks = Uplinks::start(&plan.table(), guarded).at("switching on forwarding")?;
        Ok(Self {
            instance,
            plan,
            resolvers,
            mtu_bytes,
            home,
            routes: Mutex::new(routes),
            firewall: Mutex::new(Firewall {
                socket,
                adopted: entries.keys().copied().collect(),
                entries,
                chains_made,
            }),
            flows,
            uplinks,
        })
    }

    /// What a sandbox's `resolv.conf` names: an address for each of the host's name servers.
    #[must_use]
    pub fn nameservers(&self) -> Vec<Ipv4Addr> {
        (0..self.resolvers.len()).map(address::resolver_inside).collect()
    }

    /// The first of [`Net::nameservers`].
    #[must_use]
    pub fn nameserver(&self) -> Ipv4Addr {
        GATEWAY
    }

    /// The address that a slot has.
    #[must_use]
    pub fn address(&self, slot: u32) -> Ipv4Addr {
        self.plan.address(slot)
    }

    /// Gives an empty namespace its link, address and route, and brings loopback up. Nothing passes before
    /// [`Net::claim`]. On failure the link goes with the namespace. `inside` is the namespace, or a pidfd of a process
    /// in it.
    ///
    /// # Errors
    /// `AlreadyExists` while the slot's last namespace is there, or what the kernel refused.
    pub fn attach(&self, slot: u32, inside: BorrowedFd<'_>) -> Result<Attached, Step> {
        bounded("slot", slot, SLOTS_MAX - 1)?;
        let (link, address) = (self.plan.link(slot), self.plan.address(slot));
        let (mac, mac_inside) = self.plan.macs(slot);
        let pair = Veth {
            name: INSIDE,
            mac: mac_inside,
            peer: &link,
            peer_mac: mac,
            peer_netns: self.home.as_fd(),
            mtu_bytes: self.mtu_bytes,
        };
        let within = || format!("making {INSIDE} of slot {slot}");
        let socket = netns::within(inside, self.home.as_fd(), || open_inside(&pair))
            .and_then(|result| result)
            .at(within())?;
        let inner = index(&socket, INSIDE).at(within())?;

        let routes = self.routes();
        let outer = index(&routes, &link).at(format!("finding {link}"))?;
        let stub = u32::from(self.resolvers.iter().any(Ipv4Addr::is_loopback));
        let settings = [
            (Setting::Forwarding, 1),
            (Setting::AcceptRedirects, 0),
            (Setting::SendRedirects, 0),
            (Setting::AcceptSourceRoute, 0),
            // The firewall compares source addresses, exactly.
            (Setting::ReversePathFilter, 0),
            // For questions to a name server on loopback; the firewall lets nothing else there.
            (Setting::RouteLocalnet, stub),
        ];
        let mut batch = Batch::default();
        rtnl::bring_up(&mut batch, outer, &quiet(&settings));
        rtnl::add_route(&mut batch, address, 32, outer, None);
        rtnl::add_neighbour(&mut batch, outer, address, mac_inside);
        routes.run(&batch).at(format!("setting up {link}"))?;

        let mut batch = Batch::default();
        rtnl::bring_up(&mut batch, LOOPBACK_INDEX, &Up::default());
        rtnl::add_address(&mut batch, inner, address);
        rtnl::bring_up(&mut batch, inner, &quiet(&[]));
        rtnl::add_neighbour(&mut batch, inner, GATEWAY, mac);
        rtnl::add_route(&mut batch, Ipv4Addr::UNSPECIFIED, 0, inner, Some(GATEWAY));
        socket
            .run(&batch)
            .at(format!("setting up {INSIDE} of slot {slot}"))?;
        // The end that was up first drops packets until the kernel notices, some time later, that the other one is
        // up too. Being asked it looks at once.
        index(&routes, &link).at(format!("finding {link}"))?;
        Ok(Attached { slot, address, link })
    }

    /// Puts a policy in force for a slot. To be done before its first process runs.
    ///
    /// # Errors
    /// What the kernel refused; the slot is as it was.
    pub fn claim(&self, slot: u32, policy: &NetworkPolicy) -> Result<(), Step> {
        bounded("slot", slot, SLOTS_MAX - 1)?;
        self.flows
            .settle(self.plan.address(slot))
            .at(format!("forgetting the flows of the last sandbox in slot {slot}"))?;
        self.put(slot, Rules::of(policy, &self.resolvers))
    }

    /// Replaces the policy of a slot at once, and cuts the flows that the new one forbids: each of their packets is
    /// refused from now on, and the kernel forgets how to translate them. Allowed flows go on.
    ///
    /// # Errors
    /// What the kernel refused. The old policy holds when that was the replacement itself.
    pub fn set_policy(&self, slot: u32, policy: &NetworkPolicy) -> Result<(), Step> {
        bounded("slot", slot, SLOTS_MAX - 1)?;
        let rules = Rules::of(policy, &self.resolvers);
        self.put(slot, rules.clone())?;
        if !self.has_flows(&self.firewall(), slot)? {
            return Ok(());
        }
        let inside = self.nameservers();
        let may_stay = |to| {
            if inside.contains(&to) {
                rules.dns
            } else {
                rules.allows(to)
            }
        };
        self.flows
            .forget(self.plan.address(slot), may_stay)
            .at(format!("cutting the flows of slot {slot}"))
    }

    /// Lets sockets be bound to an address that the sandbox had elsewhere, until [`Net::forget`]. `inside` is its namespace,
    /// or a pidfd of a process in it.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn remember(&self, slot: u32, inside: BorrowedFd<'_>, had: Ipv4Addr) -> Result<(), Step> {
        if had == self.plan.address(slot) {
            return Ok(());
        }
        let mut batch = Batch::default();
        rtnl::add_address(&mut batch, LOOPBACK_INDEX, had);
        let within = || format!("remembering the address {had} in slot {slot}");
        netns::within(inside, self.home.as_fd(), || {
            Socket::open(Family::Route)?.run(&batch).map_err(io::Error::from)
        })
        .and_then(|done| done)
        .at(within())
    }

    /// Ends the connections of an address that the sandbox had elsewhere, and takes it away.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn forget(&self, slot: u32, inside: BorrowedFd<'_>, had: Ipv4Addr) -> Result<(), Step> {
        let within = || format!("forgetting the address {had} in slot {slot}");
        let forget = || -> io::Result<()> {
            sockets::end_those_of(&Socket::open(Family::Sockets)?, had)?;
            if had != self.plan.address(slot) {
                let mut batch = Batch::default();
                rtnl::delete_address(&mut batch, LOOPBACK_INDEX, had);
                Socket::open(Family::Route)?.run(&batch)?;
            }
            Ok(())
        };
        netns::within(inside, self.home.as_fd(), forget)
            .and_then(|done| done)
            .at(within())
    }

    /// Takes a slot's policy away: nothing passes any more. Its flows are forgotten soon, and before the slot is claimed
    /// again, so that its next sandbox gets no answers to them. No slot is no error.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn release(&self, slot: u32) -> Result<(), Step> {
        bounded("slot", slot, SLOTS_MAX - 1)?;
        let mut firewall = self.firewall();
        let Some(entry) = firewall.entries.get(&slot) else {
            return Ok(());
        };
        let had_flows = self.has_flows(&firewall, slot)?;
        let mut t = Transaction::new(&self.plan.table());
        table::remove(&mut t, &self.plan, slot, entry);
        t.commit(&firewall.socket).at(format!("releasing slot {slot}"))?;
        firewall.entries.remove(&slot);
        firewall.adopted.remove(&slot);
        if had_flows {
            self.flows.forget_later(self.plan.address(slot));
        }
        Ok(())
    }

    /// Whether a slot's link is gone, so that it can be attached again. The kernel takes some 40 ms for that once the
    /// last process and connection of the namespace are gone.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn is_free(&self, slot: u32) -> Result<bool, Step> {
        let link = self.plan.link(slot);
        let found = rtnl::link(&self.routes(), &link).at(format!("finding {link}"))?;
        Ok(found.is_none())
    }

    /// Connects to a port inside, on 127.0.0.1 or else ::1, as if from there.
    ///
    /// # Errors
    /// `ConnectionRefused`: nobody listens. `TimedOut` after [`DIAL_TIME_MAX`].
    pub async fn dial(&self, netns: BorrowedFd<'_>, port: u16) -> io::Result<TcpStream> {
        dial::dial(netns, self.home.as_fd(), port).await
    }

    /// Slots that have a link and no policy: what an earlier run left and nobody adopted, and what is parked.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn leftovers(&self) -> Result<Vec<u32>, Step> {
        let links = rtnl::links(&self.routes()).at("listing links")?;
        let firewall = self.firewall();
        let slots = links.iter().filter_map(|link| slot_of(self.instance, &link.name));
        Ok(slots
            .filter(|slot| !firewall.entries.contains_key(slot))
            .collect())
    }

    /// Removes the links of the [`Net::leftovers`]; for start-up, before anything is parked. Some 20 ms each.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn sweep(&self) -> Result<usize, Step> {
        let leftovers = self.leftovers()?;
        for slot in &leftovers {
            let name = self.plan.link(*slot);
            let step = || format!("removing {name}");
            let routes = self.routes();
            let Some(link) = rtnl::link(&routes, &name).at(step())? else {
                continue;
            };
            let mut batch = Batch::default();
            rtnl::delete_link(&mut batch, link.index);
            match routes.run(&batch) {
                Err(refused) if refused.error.raw_os_error() == Some(libc::ENODEV) => {}
                other => other.at(step())?,
            }
        }
        Ok(leftovers.len())
    }

    /// Takes everything back: the table, and forwarding where it was switched on. For `atoll down`, when no sandbox is
    /// left.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn close(self) -> Result<(), Step> {
        let table = self.plan.table();
        // It would switch forwarding on again.
        drop((self.uplinks, self.flows));
        let firewall = self.firewall.into_inner().unwrap_or_else(PoisonError::into_inner);
        let guarded = nft::link_names(&firewall.socket, &table, table::UPLINKS)
            .at(format!("reading the table {table}"))?;
        uplinks::restore(&guarded).at("switching off forwarding")?;
        let mut t = Transaction::new(&table);
        t.remove_table();
        t.commit(&firewall.socket)
            .at(format!("removing the table {table}"))
    }

    fn put(&self, slot: u32, rules: Rules) -> Result<(), Step> {
        let mut firewall = self.firewall();
        firewall.chains_made += 1;
        let mut t = Transaction::new(&self.plan.table());
        let had = firewall.entries.get(&slot);
        let entry = table::put(&mut t, &self.plan, slot, had, rules, firewall.chains_made);
        if !t.is_empty() {
            t.commit(&firewall.socket)
                .at(format!("putting the policy of slot {slot} in force"))?;
        }
        firewall.entries.insert(slot, entry);
        Ok(())
    }

    /// Whether a slot may have flows. Those of adopted slots were not counted by this table.
    fn has_flows(&self, firewall: &Firewall, slot: u32) -> Result<bool, Step> {
        let link = self.plan.link(slot);
        if firewall.adopted.contains(&slot) {
            return Ok(true);
        }
        nft::has(
            &firewall.socket,
            &self.plan.table(),
            table::COUNT,
            &Element::link(&link),
        )
        .at(format!("looking for flows of {link}"))
    }

    fn routes(&self) -> MutexGuard<'_, Socket> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn firewall(&self) -> MutexGuard<'_, Firewall> {
        self.firewall.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs inside: makes the pair, and a socket that reaches this namespace from wherever it is used.
fn open_inside(pair: &Veth<'_>) -> io::Result<Socket> {
    let socket = Socket::open(Family::Route)?;
    let mut batch = Batch::default();
    rtnl::create_veth(&mut batch, pair);
    socket.run(&batch)?;
    for (path, value) in SETTINGS_INSIDE {
        std::fs::write(path, value)?;
    }
    Ok(socket)
}

fn index(socket: &Socket, link: &str) -> io::Result<u32> {
    let found = rtnl::link(socket, link)?;
    found.map(|link| link.index).ok_or(io::ErrorKind::NotFound.into())
}

/// Both ends know each other, and speak IPv4 only.
fn quiet<'a>(settings: &'a [(Setting, u32)]) -> Up<'a> {
    Up {
        no_arp: true,
        no_ipv6: has_ipv6(),
        settings,
    }
}

/// Whether the kernel speaks IPv6 at all.
fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

fn bounded(what: &str, number: u32, most: u32) -> Result<(), Step> {
    let outside = || io::Error::from(io::ErrorKind::InvalidInput);
    (number <= most)
        .then_some(())
        .ok_or_else(outside)
        .at(format!("naming a link for {what} {number}, at most {most}"))
}

#[cfg(test)]
mod tests;
