//! The kernel's table of connections (`nf_conntrack`), over nfnetlink.
use std::io;
use std::net::Ipv4Addr;

use crate::netlink::{Batch, Parsed, Refused, Socket, flag};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIG: u16 = 1;
const ID: u16 = 12;
const FILTER: u16 = 25;
const FILTER_ORIG_FLAGS: u16 = 1;
/// Of the kernel's filter flags: compare the IPv4 source address.
const BY_SOURCE: u32 = 1;
const TUPLE_IP: u16 = 1;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
/// `struct nfgenmsg`: IPv4, version 0, no resource.
const HEADER: [u8; 4] = [2, 0, 0, 0];

/// A tracked flow, named by its original direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Who began it.
    pub source: Ipv4Addr,
    /// Whom it was addressed to, before any translation.
    pub destination: Ipv4Addr,
    /// The kernel's own naming of it, to be handed back: tuple and id.
    tuple: Vec<u8>,
    id: Vec<u8>,
}

/// Shows the flows that `source` began; of everybody, when there is no `source`. Walks the whole table, some
/// milliseconds for one of the default size.
///
/// # Errors
/// What the kernel answered.
pub fn flows(socket: &Socket, source: Option<Ipv4Addr>, mut each: impl FnMut(Flow)) -> io::Result<()> {
    let mut show = |source: Option<Ipv4Addr>, filter: bool| {
        let mut request = Batch::default();
        request.message(GET, flag(libc::NLM_F_DUMP), &HEADER, |a| {
            if let Some(source) = source.filter(|_| filter) {
                by_source(a, source);
            }
        });
        let wanted = |flow: &Flow| source.is_none_or(|source| flow.source == source);
        socket.stream(&request, |_, payload| {
            if let Some(flow) = parse(payload).filter(wanted) {
                each(flow);
            }
        })
    };
    match show(source, true) {
        // Kernels before 5.8 do not filter.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            show(source, false).map(drop)
        }
        other => other.map(drop),
    }
}

/// Forgets flows: their packets are new ones from now on, and what was translated no longer is. A flow that is gone
/// already is no error.
///
/// # Errors
/// What the kernel answered.
pub fn forget(socket: &Socket, flows: &[Flow]) -> io::Result<()> {
    for some in flows.chunks(512) {
        let mut batch = Batch::default();
        for flow in some {
            batch.message(DELETE, flag(libc::NLM_F_ACK), &HEADER, |a| {
                a.bytes(TUPLE_ORIG, &flow.tuple);
                a.bytes(ID, &flow.id);
            });
        }
        match socket.run(&batch) {
            Err(Refused { error, .. }) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn by_source(a: &mut crate::netlink::Attributes<'_>, source: Ipv4Addr) {
    a.nest(TUPLE_ORIG, |a| {
        a.nest(TUPLE_IP, |a| a.bytes(IP_V4_SRC, &source.octets()));
    });
    a.nest(FILTER, |a| a.u32(FILTER_ORIG_FLAGS, BY_SOURCE));
}

fn parse(payload: &[u8]) -> Option<Flow> {
    let attributes = Parsed::after(payload, HEADER.len());
    let tuple = attributes.find(TUPLE_ORIG)?;
    let ip = Parsed::within(Parsed::within(tuple).find(TUPLE_IP)?);
    let address = |kind| <[u8; 4]>::try_from(ip.find(kind)?).ok().map(Ipv4Addr::from);
    Some(Flow {
        source: address(IP_V4_SRC)?,
        destination: address(IP_V4_DST)?,
        tuple: tuple.to_vec(),
        id: attributes.find(ID)?.to_vec(),
    })
}
