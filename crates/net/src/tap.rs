//! The network of a microVM: a slot whose inside is not the sandbox itself but a namespace that leads to it.
//!
//! ```text
//!   guest                        the slot's namespace                              host's namespace
//!   eth0 172.16.0.2/30 ──file── tap0 172.16.0.1/30 ── masquerade ── eth0 ──veth── at0-0
//!     default via 172.16.0.1       default via 169.254.53.1
//! ```
//!
//! Addresses of the guest and of its router, names and hardware addresses are the same in every slot, so that memory that was
//! written down in one goes on in another, and does not notice. The policy is on the host's end of the slot's link, as
//! for every sandbox, and speaks of the slot's address. What is here only translates, and keeps what a guest sends from
//! costing the host anything: root inside may write whatever it likes into its end.
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};

use linux::netlink::{Batch, Family, Socket};
use linux::netns;
use linux::nft::{CtState, Hook, Kind, Place, Rule, Transaction};
use linux::rtnl::{self, Mac, Setting, Up};
use ports::step::{At, Step};

use crate::table::{FLOWS_BURST_MAX, FLOWS_MAX, FLOWS_PER_SECOND_MAX, PACE_KEPT_S};
use crate::{Attached, INSIDE, Net, has_ipv6, index};

/// The guest's address. Private: what is sent to it or its router from elsewhere is refused anyway.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
/// What the guest sees as its router.
pub const GUEST_GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
/// How many bits of [`GUEST`] are the network's.
pub const GUEST_PREFIX: u8 = 30;
/// The guest's hardware address.
pub const GUEST_MAC: Mac = [0x06, 0x00, 172, 16, 0, 2];
/// Its router's: a guest that was restored still knows it.
const GATEWAY_MAC: Mac = [0x06, 0x00, 172, 16, 0, 1];

/// The link's name, in its namespace.
const LINK: &str = "tap0";
/// The table's, likewise.
const TABLE: &str = "atoll";
const PACE: &str = "pace";
const COUNT: &str = "count";
const PASS: &str = "pass";
const REFUSE: &str = "refuse";
const TCP: u8 = 6;

/// What the namespace is told before there is a link in it.
const SETTINGS: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/ip_forward", "1"),
    // The larger one of this and a link's own holds.
    ("/proc/sys/net/ipv4/conf/all/rp_filter", "0"),
];

/// A guest's end of its network.
#[derive(Debug)]
pub struct Tap {
    /// Ethernet frames of the guest, each behind a `struct virtio_net_hdr`. The network is there for as long as this is open,
    /// by whomever: nothing else has to be held, and nothing taken away.
    pub file: OwnedFd,
    /// The slot's namespace.
    pub namespace: OwnedFd,
}

impl Net {
    /// Attaches a slot whose inside leads to a guest. Nothing passes before [`Net::claim`].
    ///
    /// # Errors
    /// `AlreadyExists` while the slot's last namespace is there, or what the kernel refused. Nothing is left then.
    pub fn attach_tap(&self, slot: u32) -> Result<(Attached, Tap), Step> {
        let step = || format!("making the namespace of slot {slot}");
        let namespace = netns::fresh().at(step())?;
        let file = netns::within(namespace.as_fd(), self.home.as_fd(), make)
            .and_then(|made| made)
            .at(step())?;
        let attached = self.attach(slot, namespace.as_fd())?;
        Ok((attached, Tap { file, namespace }))
    }
}

/// Runs inside.
fn make() -> io::Result<OwnedFd> {
    for (path, value) in SETTINGS {
        std::fs::write(path, value)?;
    }
    let file = linux::tap::open(LINK)?;
    let routes = Socket::open(Family::Route)?;
    let link = index(&routes, LINK)?;
    let settings = [
        (Setting::AcceptRedirects, 0),
        (Setting::SendRedirects, 0),
        (Setting::AcceptSourceRoute, 0),
        // Its questions for our hardware address are answered, and for nothing else's. Who asks is remembered by the
        // kernel, in one table for the whole host: only the guest's network may.
        (Setting::ReversePathFilter, 1),
        (Setting::ArpIgnore, 2),
    ];
    let mut batch = Batch::default();
    rtnl::set_mac(&mut batch, link, GATEWAY_MAC);
    rtnl::add_address_within(&mut batch, link, GUEST_GATEWAY, GUEST_PREFIX);
    let up = Up {
        no_arp: false,
        no_ipv6: has_ipv6(),
        settings: &settings,
    };
    rtnl::bring_up(&mut batch, link, &up);
    rtnl::add_neighbour(&mut batch, link, GUEST, GUEST_MAC);
    routes.run(&batch)?;
    let mut t = Transaction::new(TABLE);
    build(&mut t);
    t.commit(&Socket::open(Family::Netfilter)?)?;
    Ok(file)
}

/// The table of the namespace.
fn build(t: &mut Transaction) {
    t.fresh_table();
    let paced = Kind::Paced {
        timeout_s: PACE_KEPT_S,
        size: 1,
    };
    t.set(PACE, paced);
    t.set(COUNT, Kind::Counted { size: 1 });
    for chain in [PASS, REFUSE] {
        t.chain(chain);
    }
    // Before connections are tracked, so that forged packets cost no entry.
    t.base_chain("guard", hook("filter", Place::Prerouting, -300));
    let own = Rule::new().iif(LINK).source_within(GUEST, Ipv4Addr::BROADCAST);
    t.rule("guard", &own.accept());
    t.rule("guard", &Rule::new().iif(LINK).drop());

    t.base_chain("input", hook("filter", Place::Input, 0));
    t.rule("input", &Rule::new().iif(LINK).goto(REFUSE));
    t.rule("input", &Rule::new().drop());

    t.base_chain("forward", hook("filter", Place::Forward, 0));
    t.rule("forward", &Rule::new().iif(LINK).oif(INSIDE).goto(PASS));
    let known = CtState::ESTABLISHED | CtState::RELATED;
    t.rule("forward", &Rule::new().oif(LINK).state(known).accept());
    t.rule("forward", &Rule::new().drop());
    // The same bounds as the host's, which counts again: what it drops would be remembered here.
    t.rule(PASS, &Rule::new().state(known).accept());
    let pace = Rule::new().over_rate(PACE, FLOWS_PER_SECOND_MAX, FLOWS_BURST_MAX);
    t.rule(PASS, &pace.drop());
    t.rule(PASS, &Rule::new().over_flows(COUNT, FLOWS_MAX).drop());
    t.rule(PASS, &Rule::new().accept());
    t.rule(REFUSE, &Rule::new().protocol(TCP).reset());
    t.rule(REFUSE, &Rule::new().prohibit());

    t.base_chain("leave", hook("nat", Place::Postrouting, 100));
    t.rule("leave", &Rule::new().oif(INSIDE).masquerade());
}

fn hook(kind: &'static str, place: Place, priority: i32) -> Hook {
    Hook {
        kind,
        place,
        priority,
    }
}
