//! The firewall of one instance: an nftables table of its own, `inet atollN`, and what each slot adds to it.
//!
//! ```text
//! guard  (prerouting, raw)     from a slot: IPv4 with the slot's own address, or nothing
//! dns    (prerouting, dstnat)  a question to the gateway goes to the host's name server
//! forward                      from a slot → `from`;  to a slot → `to`;  else see `uplinks`
//! input                        from a slot: the name server, if it is this host; nothing else
//! leave  (postrouting, srcnat) slots take the host's address on their way out
//!
//! from     name server → pass │ slot, denied range → refuse │ in @open → pass │ @lists → chain of the slot │ refuse
//! to       what belongs to a flow that a slot began
//! pass     known flows, and new ones within the bounds
//! refuse   a reset for TCP, ICMP "prohibited" for the rest: programs hear of it at once
//! ```
//!
//! What a slot may do is looked at for each packet, not only for the first of a flow: a new policy holds at once for
//! flows that are there already.
use std::net::Ipv4Addr;

use linux::nft::{CtState, CtStatus, Element, Hook, Kind, Place, Rule, Transaction};

use crate::address::{Plan, resolver_inside};
use crate::rules::{Ranges, Rules, Shape};

/// New flows of one sandbox, per second. A test suite, a package manager or a crawler stays below; a flood does not.
pub const FLOWS_PER_SECOND_MAX: u64 = 500;
/// How many it may begin at once after a rest.
pub const FLOWS_BURST_MAX: u32 = 1_000;
/// Flows of one sandbox at a time. The kernel's table has 262 144 entries by default, for all of the host: 64 hostile
/// sandboxes fill it, one does not.
pub const FLOWS_MAX: u32 = 4_096;
/// How long the pace of a sandbox that begins no flows is remembered, seconds: more than the burst takes to refill.
pub(crate) const PACE_KEPT_S: u32 = 60;

/// Set: links that have forwarding only for our sake.
pub(crate) const UPLINKS: &str = "uplinks";
/// Set: links with the address that they may speak for.
const ADDRESSES: &str = "addresses";
/// Set: links that the host's name servers answer.
const DNS: &str = "dns";
/// Set: links whose policy has no lists.
const OPEN: &str = "open";
/// Map: links whose policy has lists.
const LISTS: &str = "lists";
const DENIED: &str = "denied";
const RESOLVERS: &str = "resolvers";
const PACE: &str = "pace";
/// Set: links that have flows.
pub(crate) const COUNT: &str = "count";
const FROM: &str = "from";
const TO: &str = "to";
const PASS: &str = "pass";
const REFUSE: &str = "refuse";

const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS_PORT: u16 = 53;

/// Makes the whole table, with these uplinks and no slot; replaces one that is there.
pub(crate) fn build(t: &mut Transaction, plan: &Plan, resolvers: &[Ipv4Addr], uplinks: &[String]) {
    let ours = plan.prefix();
    t.fresh_table();
    sets(t, resolvers, uplinks);
    for chain in [FROM, TO, PASS, REFUSE] {
        t.chain(chain);
    }
    guard(t, &ours);
    dns(t, &ours, resolvers);
    forward(t, &ours);
    from(t, &ours);
    t.rule(
        TO,
        &Rule::new()
            .state(CtState::ESTABLISHED | CtState::RELATED)
            .accept(),
    );
    t.rule(TO, &Rule::new().drop());
    pass(t);
    t.rule(REFUSE, &Rule::new().protocol(TCP).reset());
    t.rule(REFUSE, &Rule::new().prohibit());
    input(t, &ours);
    t.base_chain("leave", hook("nat", Place::Postrouting, 99));
    let base = plan.base();
    let leaving = Rule::new()
        .source_within(base.network(), base.netmask())
        .oif_begins_not(&ours);
    t.rule("leave", &leaving.masquerade());
}

fn sets(t: &mut Transaction, resolvers: &[Ipv4Addr], uplinks: &[String]) {
    for (name, kind) in [
        (UPLINKS, Kind::Links),
        (ADDRESSES, Kind::LinkAddresses),
        (DNS, Kind::Links),
        (OPEN, Kind::Links),
        (LISTS, Kind::LinkChains),
        (DENIED, Kind::Networks),
        (RESOLVERS, Kind::Addresses),
    ] {
        t.set(name, kind);
    }
    let size = crate::address::SLOTS_MAX;
    t.set(
        PACE,
        Kind::Paced {
            timeout_s: PACE_KEPT_S,
            size,
        },
    );
    t.set(COUNT, Kind::Counted { size });
    t.elements(DENIED, &Ranges::denied().elements());
    let mut distinct = resolvers.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    t.elements(
        RESOLVERS,
        &distinct.into_iter().map(Element::address).collect::<Vec<_>>(),
    );
    t.elements(
        UPLINKS,
        &uplinks.iter().map(|name| Element::link(name)).collect::<Vec<_>>(),
    );
}

/// Before connections are tracked, so that forged packets cost no entry.
fn guard(t: &mut Transaction, ours: &str) {
    t.base_chain("guard", hook("filter", Place::Prerouting, -300));
    t.rule("guard", &Rule::new().iif_begins_not(ours).accept());
    t.rule("guard", &Rule::new().not_ipv4().drop());
    t.rule("guard", &Rule::new().iif_source_not_in(ADDRESSES).drop());
}

fn dns(t: &mut Transaction, ours: &str, resolvers: &[Ipv4Addr]) {
    t.base_chain("dns", hook("nat", Place::Prerouting, -101));
    t.base_chain("answer", hook("nat", Place::Input, 99));
    for (index, resolver) in resolvers.iter().enumerate() {
        for protocol in [UDP, TCP] {
            let question = Rule::new()
                .iif_in(DNS)
                .destination(resolver_inside(index))
                .protocol(protocol)
                .port(DNS_PORT);
            t.rule("dns", &question.redirect_to(*resolver));
        }
        if resolver.is_loopback() {
            // A stub on loopback answers loopback only.
            let question = Rule::new().iif_begins(ours).destination(*resolver);
            t.rule("answer", &question.appear_as(Ipv4Addr::LOCALHOST));
        }
    }
}

fn forward(t: &mut Transaction, ours: &str) {
    t.base_chain("forward", hook("filter", Place::Forward, -10));
    t.rule("forward", &Rule::new().iif_begins(ours).goto(FROM));
    t.rule("forward", &Rule::new().oif_begins(ours).goto(TO));
    // Forwarding was switched on for the answers to slots. Whoever made this host a router for others says so by
    // translating addresses, or by `net.ipv4.ip_forward`, which empties the set.
    let stranger = Rule::new()
        .iif_in(UPLINKS)
        .state_not(CtState::ESTABLISHED | CtState::RELATED)
        .status_not(CtStatus::DESTINATION_TRANSLATED);
    t.rule("forward", &stranger.drop());
}

fn from(t: &mut Transaction, ours: &str) {
    for protocol in [UDP, TCP] {
        t.rule(FROM, &question(protocol).goto(PASS));
    }
    t.rule(FROM, &Rule::new().oif_begins(ours).goto(REFUSE));
    t.rule(FROM, &Rule::new().destination_in(DENIED).goto(REFUSE));
    t.rule(FROM, &Rule::new().iif_in(OPEN).goto(PASS));
    t.rule(FROM, &Rule::new().goto_by_iif(LISTS));
    t.rule(FROM, &Rule::new().goto(REFUSE));
}

fn pass(t: &mut Transaction) {
    t.rule(
        PASS,
        &Rule::new()
            .state(CtState::ESTABLISHED | CtState::RELATED)
            .accept(),
    );
    t.rule(
        PASS,
        &Rule::new()
            .over_rate(PACE, FLOWS_PER_SECOND_MAX, FLOWS_BURST_MAX)
            .drop(),
    );
    t.rule(PASS, &Rule::new().over_flows(COUNT, FLOWS_MAX).drop());
    t.rule(PASS, &Rule::new().accept());
}

fn input(t: &mut Transaction, ours: &str) {
    t.base_chain("input", hook("filter", Place::Input, -10));
    t.rule("input", &Rule::new().iif_begins_not(ours).accept());
    for protocol in [UDP, TCP] {
        t.rule("input", &question(protocol).goto(PASS));
    }
    t.rule("input", &Rule::new().goto(REFUSE));
}

/// A question to a name server that the chain `dns` has redirected.
fn question(protocol: u8) -> Rule {
    Rule::new()
        .iif_in(DNS)
        .status(CtStatus::DESTINATION_TRANSLATED)
        .destination_in(RESOLVERS)
        .protocol(protocol)
        .port(DNS_PORT)
}

fn hook(kind: &'static str, place: Place, priority: i32) -> Hook {
    Hook {
        kind,
        place,
        priority,
    }
}

/// What a slot has in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) rules: Rules,
    /// Its own chain, when its policy has lists.
    chain: Option<String>,
}

/// Puts `rules` in force for a slot in place of what it `had`. `fresh` is a number never used before for this slot's
/// chain.
pub(crate) fn put(
    t: &mut Transaction,
    plan: &Plan,
    slot: u32,
    had: Option<&Entry>,
    rules: Rules,
    fresh: u64,
) -> Entry {
    let link = plan.link(slot);
    if had.is_none() {
        t.elements(ADDRESSES, &[Element::link_address(&link, plan.address(slot))]);
    }
    member(t, DNS, &link, had.is_some_and(|h| h.rules.dns), rules.dns);
    let was_open = had.is_some_and(|h| h.rules.shape == Shape::Open);
    member(t, OPEN, &link, was_open, rules.shape == Shape::Open);
    let old = had.and_then(|h| h.chain.as_deref());
    if let Some(old) = old {
        t.remove_elements(LISTS, &[Element::link_chain(&link, old)]);
    }
    let chain = lists(t, slot, &rules.shape, fresh);
    if let Some(chain) = &chain {
        t.elements(LISTS, &[Element::link_chain(&link, chain)]);
    }
    if let Some(old) = old {
        t.remove_chain(old);
    }
    Entry { rules, chain }
}

/// Takes a slot out: nothing passes from it or to it.
pub(crate) fn remove(t: &mut Transaction, plan: &Plan, slot: u32, had: &Entry) {
    let link = plan.link(slot);
    t.remove_elements(ADDRESSES, &[Element::link_address(&link, plan.address(slot))]);
    member(t, DNS, &link, had.rules.dns, false);
    member(t, OPEN, &link, had.rules.shape == Shape::Open, false);
    if let Some(chain) = &had.chain {
        t.remove_elements(LISTS, &[Element::link_chain(&link, chain)]);
        t.remove_chain(chain);
    }
}

fn lists(t: &mut Transaction, slot: u32, shape: &Shape, fresh: u64) -> Option<String> {
    let Shape::Lists { allow, deny, others } = shape else {
        return None;
    };
    let chain = format!("slot{slot}-{fresh}");
    t.chain(&chain);
    for (ranges, verdict) in [(allow, PASS), (deny, REFUSE)] {
        if !ranges.is_empty() {
            let set = t.anonymous_networks(&ranges.elements());
            t.rule(&chain, &Rule::new().destination_in_anonymous(set).goto(verdict));
        }
    }
    t.rule(&chain, &Rule::new().goto(if *others { PASS } else { REFUSE }));
    Some(chain)
}

fn member(t: &mut Transaction, set: &str, link: &str, was: bool, is: bool) {
    match (was, is) {
        (false, true) => t.elements(set, &[Element::link(link)]),
        (true, false) => t.remove_elements(set, &[Element::link(link)]),
        _ => {}
    }
}

/// Adds links to or takes them out of [`UPLINKS`].
pub(crate) fn uplinks(t: &mut Transaction, add: &[String], remove: &[String]) {
    let elements = |names: &[String]| names.iter().map(|name| Element::link(name)).collect::<Vec<_>>();
    t.remove_elements(UPLINKS, &elements(remove));
    t.elements(UPLINKS, &elements(add));
}
