//! nftables by its own netlink messages: a [`Transaction`] changes one table of the family `inet` at once or not at
//! all, a [`Rule`] is written as it is read aloud.
//!
//! Names of attributes are those of `linux/netfilter/nf_tables.h`; what a rule does is in [nft(8)].
//!
//! [nft(8)]: https://www.netfilter.org/projects/nftables/manpage.html
use std::io;
use std::net::Ipv4Addr;

use crate::netlink::{Attributes, Batch, Parsed, Refused, Socket, flag};

mod rule;

pub use rule::{CtState, CtStatus, Rule};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `struct nfgenmsg` of the batch's brackets: no family, for the subsystem nf_tables.
const BRACKET: [u8; 4] = [0, 0, 0, 10];
/// `struct nfgenmsg` of everything else: the family `inet`.
const INET: [u8; 4] = [1, 0, 0, 0];
/// `struct nfgenmsg` of questions about all families.
const ANY: [u8; 4] = [0, 0, 0, 0];

const NEW_TABLE: u16 = SUBSYSTEM;
const DEL_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const DEL_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const DEL_RULE: u16 = SUBSYSTEM | 8;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const DEL_ELEMENTS: u16 = SUBSYSTEM | 14;

const LIST_ELEM: u16 = 1;
const SET_ANONYMOUS: u32 = 1;
const SET_CONSTANT: u32 = 2;
const SET_INTERVAL: u32 = 4;
const SET_MAP: u32 = 8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const ELEMENT_INTERVAL_END: u32 = 1;

const VERDICT_GOTO: i32 = -4;
const VERDICT_TYPE: u32 = 0xffff_ff00;
/// What user space calls the types of keys; the kernel only keeps it.
const TYPE_ADDRESS: u32 = 7;
const TYPE_IFNAME: u32 = 41;
/// Elements to a message, which must stay below 64 KiB.
const ELEMENTS_MAX: usize = 1000;

/// Length of a link's name as nftables keeps it: NULs to the end.
const IFNAME_BYTES: usize = 16;

/// When a base chain sees a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// Which of the five places.
    pub place: Place,
    /// Lower comes first.
    pub priority: i32,
}

/// The places where the kernel asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Place {
    /// Before routing.
    Prerouting = 0,
    /// To this host.
    Input = 1,
    /// Through this host.
    Forward = 2,
    /// On its way out.
    Postrouting = 4,
}

/// What a set's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Links by name.
    Links,
    /// Link and IPv4 address together.
    LinkAddresses,
    /// IPv4 addresses.
    Addresses,
    /// IPv4 networks.
    Networks,
    /// A map from links to chains.
    LinkChains,
    /// Links, added by [`Rule::over_rate`] and forgotten after this many seconds without use.
    Paced {
        /// Seconds.
        timeout_s: u32,
        /// Most elements.
        size: u32,
    },
    /// Links, added by [`Rule::over_flows`] and forgotten with their last flow.
    Counted {
        /// Most elements.
        size: u32,
    },
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    key: Vec<u8>,
    flags: u32,
    chain: Option<String>,
}

impl Element {
    /// A link.
    #[must_use]
    pub fn link(name: &str) -> Self {
        Self::plain(ifname(name).to_vec())
    }
    /// A link with an address.
    #[must_use]
    pub fn link_address(name: &str, address: Ipv4Addr) -> Self {
        Self::plain([&ifname(name)[..], &address.octets()].concat())
    }
    /// An address.
    #[must_use]
    pub fn address(address: Ipv4Addr) -> Self {
        Self::plain(address.octets().to_vec())
    }
    /// A link whose packets go to `chain`.
    #[must_use]
    pub fn link_chain(name: &str, chain: &str) -> Self {
        Self {
            chain: Some(chain.to_owned()),
            ..Self::link(name)
        }
    }
    /// All addresses from `first` to `last`, which must not overlap or touch others of the set.
    #[must_use]
    pub fn range(first: Ipv4Addr, last: Ipv4Addr) -> Vec<Self> {
        let mut elements = vec![Self::address(first)];
        if let Some(beyond) = u32::from(last).checked_add(1) {
            elements.push(Self {
                flags: ELEMENT_INTERVAL_END,
                ..Self::address(beyond.into())
            });
        }
        elements
    }

    fn plain(key: Vec<u8>) -> Self {
        Self {
            key,
            flags: 0,
            chain: None,
        }
    }

    fn write(&self, a: &mut Attributes<'_>) {
        a.nest(LIST_ELEM, |a| {
            a.nest(1, |a| a.bytes(1, &self.key));
            if let Some(chain) = &self.chain {
                a.nest(2, |a| verdict(a, VERDICT_GOTO, Some(chain)));
            }
            if self.flags != 0 {
                a.u32_be(3, self.flags);
            }
        });
    }
}

/// A set without a name, for one rule, which takes it along when it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anonymous(u32);

/// Changes to one table of the family `inet`, made at once.
#[derive(Debug, Clone)]
pub struct Transaction {
    table: String,
    batch: Batch,
    anonymous: u32,
}

impl Transaction {
    /// Begins one on `table`.
    #[must_use]
    pub fn new(table: &str) -> Self {
        let mut batch = Batch::default();
        batch.message(BATCH_BEGIN, 0, &BRACKET, |_| {});
        Self {
            table: table.to_owned(),
            batch,
            anonymous: 0,
        }
    }

    /// Whether nothing has been asked for yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batch.len() == 1
    }

    /// Makes the table, empty; replaces one that is there.
    pub fn fresh_table(&mut self) {
        self.create(NEW_TABLE, |_| {});
        self.add(DEL_TABLE, 0, |_| {});
        self.create(NEW_TABLE, |_| {});
    }

    /// Removes the table, if it is there, with all that is in it.
    pub fn remove_table(&mut self) {
        self.create(NEW_TABLE, |_| {});
        self.add(DEL_TABLE, 0, |_| {});
    }

    /// Makes a chain that sees packets. What no rule of it decides is accepted.
    pub fn base_chain(&mut self, name: &str, hook: Hook) {
        self.create(NEW_CHAIN, |a| {
            a.text(3, name);
            a.nest(4, |a| {
                a.u32_be(1, hook.place as u32);
                a.bytes(2, &hook.priority.to_be_bytes());
            });
            a.text(7, hook.kind);
        });
    }

    /// Makes a chain that others send packets to.
    pub fn chain(&mut self, name: &str) {
        self.create(NEW_CHAIN, |a| a.text(3, name));
    }

    /// Removes a chain and its rules. Nothing may send packets to it any more.
    pub fn remove_chain(&mut self, name: &str) {
        self.add(DEL_RULE, 0, |a| a.text(2, name));
        self.add(DEL_CHAIN, 0, |a| a.text(3, name));
    }

    /// Appends a rule to a chain.
    pub fn rule(&mut self, chain: &str, rule: &Rule) {
        let flags = flag(libc::NLM_F_CREATE | libc::NLM_F_APPEND);
        self.add(NEW_RULE, flags, |a| {
            a.text(2, chain);
            a.nest(4, |a| a.raw(rule.expressions()));
        });
    }

    /// Makes a set or map.
    pub fn set(&mut self, name: &str, kind: Kind) {
        let (key_type, key_bytes) = kind.key();
        self.anonymous += 1;
        let id = self.anonymous;
        self.create(NEW_SET, |a| {
            a.text(2, name);
            a.u32_be(3, kind.flags());
            a.u32_be(4, key_type);
            a.u32_be(5, key_bytes);
            if kind == Kind::LinkChains {
                a.u32_be(6, VERDICT_TYPE);
                a.u32_be(7, 0);
            }
            if let Kind::Paced { size, .. } | Kind::Counted { size } = kind {
                a.nest(9, |a| a.u32_be(1, size));
            }
            if let Kind::Paced { timeout_s, .. } = kind {
                a.u64_be(11, u64::from(timeout_s) * 1000);
            }
            a.u32_be(10, id);
        });
    }

    /// Makes a set of networks, given as the ranges of [`Element::range`], for the next rule that names it.
    pub fn anonymous_networks(&mut self, elements: &[Element]) -> Anonymous {
        self.anonymous += 1;
        let id = self.anonymous;
        let (key_type, key_bytes) = Kind::Networks.key();
        self.create(NEW_SET, |a| {
            a.text(2, "__set%d");
            a.u32_be(3, SET_ANONYMOUS | SET_CONSTANT | SET_INTERVAL);
            a.u32_be(4, key_type);
            a.u32_be(5, key_bytes);
            a.u32_be(10, id);
        });
        for some in elements.chunks(ELEMENTS_MAX) {
            self.create(NEW_ELEMENTS, |a| {
                a.text(2, "__set%d");
                a.u32_be(4, id);
                a.nest(3, |a| some.iter().for_each(|element| element.write(a)));
            });
        }
        Anonymous(id)
    }

    /// Adds elements to a set. Those that it has already stay.
    pub fn elements(&mut self, set: &str, elements: &[Element]) {
        for some in elements.chunks(ELEMENTS_MAX) {
            self.create(NEW_ELEMENTS, |a| {
                a.text(2, set);
                a.nest(3, |a| some.iter().for_each(|element| element.write(a)));
            });
        }
    }

    /// Takes elements out of a set, which must have them.
    pub fn remove_elements(&mut self, set: &str, elements: &[Element]) {
        for some in elements.chunks(ELEMENTS_MAX) {
            self.add(DEL_ELEMENTS, 0, |a| {
                a.text(2, set);
                a.nest(3, |a| some.iter().for_each(|element| element.write(a)));
            });
        }
    }

    /// Makes the changes.
    ///
    /// # Errors
    /// The first message that was refused; nothing has changed then.
    pub fn commit(mut self, socket: &Socket) -> Result<(), Refused> {
        self.batch.message(BATCH_END, 0, &BRACKET, |_| {});
        socket.run(&self.batch)
    }

    /// Asks the kernel whether it would make the changes, and makes none.
    ///
    /// # Errors
    /// The first message that would be refused.
    pub fn dry_run(self, socket: &Socket) -> Result<(), Refused> {
        socket.run(&self.batch)
    }

    fn create(&mut self, kind: u16, attributes: impl FnOnce(&mut Attributes<'_>)) {
        self.add(kind, flag(libc::NLM_F_CREATE), attributes);
    }

    /// The table's name is the first attribute of every message but none other's.
    fn add(&mut self, kind: u16, flags: u16, attributes: impl FnOnce(&mut Attributes<'_>)) {
        self.batch.message(kind, flags, &INET, |a| {
            a.text(1, &self.table);
            attributes(a);
        });
    }
}

impl Kind {
    fn key(self) -> (u32, u32) {
        match self {
            Kind::Links | Kind::LinkChains | Kind::Paced { .. } | Kind::Counted { .. } => (TYPE_IFNAME, 16),
            Kind::LinkAddresses => (TYPE_IFNAME << 6 | TYPE_ADDRESS, 20),
            Kind::Addresses | Kind::Networks => (TYPE_ADDRESS, 4),
        }
    }
    fn flags(self) -> u32 {
        match self {
            Kind::Links | Kind::LinkAddresses | Kind::Addresses => 0,
            Kind::Networks => SET_INTERVAL,
            Kind::LinkChains => SET_MAP,
            Kind::Paced { .. } => SET_EVAL | SET_TIMEOUT,
            Kind::Counted { .. } => SET_EVAL,
        }
    }
}

/// The keys of a set's elements; `None` when there is no such set.
///
/// # Errors
/// What the kernel answered.
pub fn keys(socket: &Socket, table: &str, set: &str) -> io::Result<Option<Vec<Vec<u8>>>> {
    let mut batch = Batch::default();
    batch.message(GET_ELEMENTS, flag(libc::NLM_F_DUMP), &INET, |a| {
        a.text(1, table);
        a.text(2, set);
    });
    let answers = match socket.dump(&batch) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        other => other?,
    };
    let mut keys = Vec::new();
    for answer in &answers {
        let Some(list) = Parsed::after(&answer.payload, INET.len()).find(3) else {
            continue;
        };
        keys.extend(Parsed::within(list).filter_map(|(_, element)| {
            let key = Parsed::within(element).path(&[1, 1])?;
            Some(key.to_vec())
        }));
    }
    Ok(Some(keys))
}

/// Whether a set has an element.
///
/// # Errors
/// What the kernel answered. A set that is not there has no elements.
pub fn has(socket: &Socket, table: &str, set: &str, element: &Element) -> io::Result<bool> {
    let mut batch = Batch::default();
    batch.message(GET_ELEMENTS, flag(libc::NLM_F_ACK), &INET, |a| {
        a.text(1, table);
        a.text(2, set);
        a.nest(3, |a| element.write(a));
    });
    match socket.run(&batch) {
        Err(refused) if refused.error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

/// The names of the links that a set of [`Kind::Links`] holds; none when there is no such set.
///
/// # Errors
/// What the kernel answered.
pub fn link_names(socket: &Socket, table: &str, set: &str) -> io::Result<Vec<String>> {
    let name = |key: Vec<u8>| {
        let end = key.iter().position(|b| *b == 0).unwrap_or(key.len());
        String::from_utf8_lossy(&key[..end]).into_owned()
    };
    Ok(keys(socket, table, set)?
        .into_iter()
        .flatten()
        .map(name)
        .collect())
}

/// The chains of all IPv4 and `inet` tables that forwarded packets pass and that drop what no rule accepts, as
/// `table/chain`.
///
/// # Errors
/// What the kernel answered.
pub fn dropping_forward_chains(socket: &Socket) -> io::Result<Vec<String>> {
    const DROP: u32 = 0;
    let mut batch = Batch::default();
    batch.message(GET_CHAIN, flag(libc::NLM_F_DUMP), &ANY, |_| {});
    let name = |payload: &[u8]| {
        let family = *payload.first()?;
        let chain = Parsed::after(payload, ANY.len());
        let hook = Parsed::within(chain.find(4)?).u32_be(1)?;
        let drops = chain.u32_be(5)? == DROP;
        let forward = matches!(family, 1 | 2) && hook == Place::Forward as u32;
        (forward && drops).then(|| Some(format!("{}/{}", chain.text(1)?, chain.text(3)?)))?
    };
    let answers = socket.dump(&batch)?;
    Ok(answers.iter().filter_map(|a| name(&a.payload)).collect())
}

fn ifname(name: &str) -> [u8; IFNAME_BYTES] {
    let mut bytes = [0; IFNAME_BYTES];
    let length = name.len().min(IFNAME_BYTES - 1);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

fn verdict(a: &mut Attributes<'_>, code: i32, chain: Option<&str>) {
    a.nest(2, |a| {
        a.bytes(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            a.text(2, chain);
        }
    });
}
