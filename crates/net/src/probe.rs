//! What a machine lacks for the network of sandboxes, for `atoll doctor`.
use std::fmt;
use std::io;

use linux::netlink::{Batch, Family, Socket};
use linux::nft::{self, Transaction};
use linux::{netns, rtnl};

use crate::address::Plan;
use crate::rules::Rules;
use crate::{resolvers_of_host, table};

/// Something that is missing, or in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// The firewall cannot be made: no privilege, or a kernel without nf_tables or one of its parts.
    Firewall(String),
    /// Links cannot be made: no privilege, or a kernel without veth.
    Links(String),
    /// `/proc/sys/net` cannot be written, so nothing can be forwarded.
    Settings(String),
    /// No range of addresses is free for sandboxes.
    Addresses,
    /// The host names no IPv4 name server: sandboxes resolve no names.
    Resolver,
    /// Other firewalls drop what they are not told to forward: sandboxes reach nothing outside. By `table/chain`.
    OtherFirewall(Vec<String>),
}

impl Lack {
    /// Whether no sandbox can be started because of it.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Lack::Firewall(_) | Lack::Links(_) | Lack::Settings(_) | Lack::Addresses => true,
            Lack::Resolver | Lack::OtherFirewall(_) => false,
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lack::Firewall(why) => write!(
                f,
                "the firewall cannot be made ({why}): run as root on a kernel with nf_tables, NAT, conntrack and connlimit"
            ),
            Lack::Links(why) => write!(
                f,
                "links cannot be made ({why}): run as root on a kernel with veth"
            ),
            Lack::Settings(why) => write!(f, "/proc/sys/net cannot be written ({why})"),
            Lack::Addresses => write!(
                f,
                "every /16 from 10.64.0.0 to 10.127.0.0 is in use by this host's routes"
            ),
            Lack::Resolver => write!(
                f,
                "/etc/resolv.conf names no IPv4 name server: sandboxes resolve no names"
            ),
            Lack::OtherFirewall(chains) => write!(
                f,
                "another firewall drops forwarded packets ({}): let it accept those from and to links named at*",
                chains.join(", ")
            ),
        }
    }
}

/// Looks, and changes nothing that lasts.
#[must_use]
pub fn probe() -> Vec<Lack> {
    let mut lacks = Vec::new();
    let plan = match Socket::open(Family::Route).and_then(|socket| rtnl::routes(&socket)) {
        Ok(routes) => Plan::choose(0, &routes, |_| false),
        Err(error) => {
            lacks.push(Lack::Links(error.to_string()));
            None
        }
    };
    match plan {
        None => lacks.push(Lack::Addresses),
        Some(plan) => lacks.extend(firewall(&plan).err().map(|e| Lack::Firewall(e.to_string()))),
    }
    lacks.extend(links().err().map(|e| Lack::Links(e.to_string())));
    lacks.extend(settings().err().map(|e| Lack::Settings(e.to_string())));
    if resolvers_of_host().is_empty() {
        lacks.push(Lack::Resolver);
    }
    let dropping = Socket::open(Family::Netfilter).and_then(|socket| nft::dropping_forward_chains(&socket));
    if let Ok(chains) = dropping
        && !chains.is_empty()
    {
        lacks.push(Lack::OtherFirewall(chains));
    }
    lacks
}

/// Offers the kernel the whole table and a slot with lists, and takes the offer back.
fn firewall(plan: &Plan) -> io::Result<()> {
    let socket = Socket::open(Family::Netfilter)?;
    let mut t = Transaction::new("atoll-probe");
    table::build(&mut t, plan, &[std::net::Ipv4Addr::LOCALHOST], &[]);
    let policy = model::NetworkPolicy {
        deny: vec![model::Cidr("203.0.113.0/24".parse().expect("a literal network"))],
        ..model::NetworkPolicy::default()
    };
    table::put(&mut t, plan, 0, None, Rules::of(&policy, &[]), 0);
    Ok(t.dry_run(&socket)?)
}

/// Makes a pair of links in a namespace that goes with its thread.
fn links() -> io::Result<()> {
    let attempt = || {
        netns::unshare()?;
        let netns = netns::current()?;
        let mut batch = Batch::default();
        rtnl::create_veth(
            &mut batch,
            &rtnl::Veth {
                name: "probe0",
                mac: [2, 0, 0, 0, 0, 1],
                peer: "probe1",
                peer_mac: [2, 0, 0, 0, 0, 2],
                peer_netns: std::os::fd::AsFd::as_fd(&netns),
                mtu_bytes: 1500,
            },
        );
        Ok(Socket::open(Family::Route)?.run(&batch)?)
    };
    std::thread::spawn(attempt)
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the attempt ended early")))
}

fn settings() -> io::Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .open("/proc/sys/net/ipv4/conf/default/forwarding")
        .map(drop)
}
