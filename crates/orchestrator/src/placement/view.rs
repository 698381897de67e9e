//! What is known of the fleet, kept so that a decision need not read it all.
use std::collections::HashMap;
use std::time::Duration;

use model::{BuildId, NodeId, Resources, TeamId};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::lanes::Lanes;
use super::refusals::Reason;
use super::{Facts, Needs, Policy, Wish};

/// More builds of one node are not remembered: a node that tells of more is only known less well.
const BUILDS_MAX: usize = 4096;
/// More ends between two reports are not remembered: they are free when the next report says so.
const FREED_MAX: usize = 256;
/// More names of zones or of runtimes are one name: whoever makes up names must not fill the memory.
const NAMES_MAX: usize = 254;

/// Whether an operator, or a check, keeps a node from getting new sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// It gets new ones.
    #[default]
    Ready,
    /// It keeps those that it has.
    Cordoned,
    /// It is to be emptied.
    Draining,
    /// Its checks fail.
    Unhealthy {
        /// Since when, by the view's time.
        since: Duration,
    },
}

/// How nodes call the amounts that they are out of.
const AMOUNTS: [&str; 3] = ["cpu", "memory", "disk"];

/// vCPUs, MiB of memory, MiB of disk.
pub(super) type Amounts = [i32; 3];

pub(super) fn amounts(resources: Resources) -> Amounts {
    let whole = |amount| i32::try_from(amount).unwrap_or(i32::MAX);
    [
        whole(resources.cpu),
        whole(resources.memory.0),
        whole(resources.disk.0),
    ]
}

/// Tenths of seconds of the view's time, from 1 on: half as large as a time, and a hundred years long.
pub(super) fn tick(at: Duration) -> u32 {
    u32::try_from(at.as_millis() / 100).map_or(u32::MAX, |ticks| ticks.saturating_add(1))
}

/// What filters read, of one node. All of them together stay in the processor's cache.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// What may still be promised.
    pub(super) free: Amounts,
    /// When its last report was taken; 0 where there was none.
    pub(super) heard: u32,
    /// Until when it rests from failures.
    pub(super) rests_until: u32,
    pub(super) can: Needs,
    pub(super) zone: u8,
    /// 0 where it is not known.
    pub(super) runtime: u8,
    pub(super) barred: Option<Reason>,
    /// Whether there is such a node.
    pub(super) live: bool,
}

/// What else is known of one node.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: NodeId,
    pub(super) facts: Option<Facts>,
    pub(super) state: State,
    /// What may be promised in all.
    pub(super) limit: Amounts,
    /// More is not to be promised than this, as it refused more, until the next report.
    cap: Amounts,
    /// It refused everything, until the next report.
    closed: bool,
    taken_at: Duration,
    claims: Vec<Claimed>,
    /// The sum of the claims.
    claimed: Amounts,
    /// What has ended on it, and when, since its last report was taken.
    freed: Vec<(Amounts, Duration)>,
    /// Claims whose starts are under way.
    pub(super) starting: u32,
    /// Sorted.
    pub(super) builds: Vec<u64>,
    failures: f32,
    failures_at: Duration,
    /// Its place in [`View::open`].
    place: Option<usize>,
}

#[derive(Debug)]
struct Claimed {
    serial: u64,
    need: Amounts,
    team: TeamId,
    /// When its start was over.
    kept_at: Option<Duration>,
}

/// A choice that counts on its node until it is released, or a report includes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    slot: u32,
    serial: u64,
}

/// A node, and the claim on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Which node.
    pub node: NodeId,
    /// To be kept, or released.
    pub claim: Claim,
}

/// What is known of one node, for those who look.
#[derive(Debug, Clone, PartialEq)]
pub struct Known<'a> {
    /// Which node.
    pub node: NodeId,
    /// Whether it gets new ones.
    pub state: State,
    /// Its last report.
    pub facts: Option<&'a Facts>,
    /// vCPUs, MiB of memory and of disk that may still be promised.
    pub free: [i32; 3],
    /// Starts of this process that its last report does not include.
    pub claims: usize,
    /// Failed starts, by their weight when the last one failed.
    pub failures: f32,
}

/// Names as numbers.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<String>);

impl Names {
    /// From 1 on.
    fn number(&mut self, name: &str) -> u8 {
        if let Some(number) = self.find(name) {
            return number;
        }
        if self.0.len() < NAMES_MAX {
            self.0.push(name.to_owned());
        }
        u8::try_from(self.0.len()).expect("there are at most NAMES_MAX")
    }

    pub(super) fn find(&self, name: &str) -> Option<u8> {
        let place = self.0.iter().position(|known| known == name)?;
        u8::try_from(place + 1).ok()
    }
}

/// How many sandboxes of each team are in each zone.
#[derive(Debug, Default)]
pub(super) struct Spread(HashMap<TeamId, Vec<u32>>);

impl Spread {
    fn add(&mut self, team: TeamId, zone: u8, count: u32) {
        let zones = self.0.entry(team).or_default();
        let zone = usize::from(zone);
        if zones.len() <= zone {
            zones.resize(zone + 1, 0);
        }
        zones[zone] += count;
    }

    fn remove(&mut self, team: TeamId, zone: u8, count: u32) {
        if let Some(zones) = self.0.get_mut(&team) {
            if let Some(there) = zones.get_mut(usize::from(zone)) {
                *there = there.saturating_sub(count);
            }
            if zones.iter().all(|count| *count == 0) {
                self.0.remove(&team);
            }
        }
    }

    pub(super) fn of(&self, team: TeamId) -> &[u32] {
        self.0.get(&team).map_or(&[], Vec::as_slice)
    }
}

pub(super) fn hashed(build: BuildId) -> u64 {
    let (high, low) = build.0.as_u64_pair();
    high ^ low
}

/// The fleet, as one process knows it. Times are durations since a beginning that the owner chooses.
#[derive(Debug)]
pub struct View {
    pub(super) policy: Policy,
    pub(super) dice: SmallRng,
    pub(super) rows: Vec<Row>,
    pub(super) members: Vec<Member>,
    pub(super) lanes: Lanes,
    slots: HashMap<NodeId, u32>,
    vacant: Vec<u32>,
    /// The slots of nodes that are not barred.
    pub(super) open: Vec<u32>,
    /// Which nodes hold a build.
    pub(super) holders: HashMap<u64, Vec<u32>>,
    pub(super) spread: Spread,
    pub(super) zones: Names,
    pub(super) runtimes: Names,
    serial: u64,
}

impl View {
    /// Knows of no node.
    #[must_use]
    pub fn new(policy: Policy, seed: u64) -> Self {
        Self {
            policy,
            dice: SmallRng::seed_from_u64(seed),
            rows: Vec::new(),
            members: Vec::new(),
            lanes: Lanes::default(),
            slots: HashMap::new(),
            vacant: Vec::new(),
            open: Vec::new(),
            holders: HashMap::new(),
            spread: Spread::default(),
            zones: Names::default(),
            runtimes: Names::default(),
            serial: 0,
        }
    }

    /// How many nodes it knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether it knows of no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// All the nodes that it knows, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.slots.keys().copied()
    }

    /// The policy by which it chooses.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What is known of a node.
    #[must_use]
    pub fn get(&self, node: NodeId) -> Option<Known<'_>> {
        let slot = self.slot(node)?;
        let member = &self.members[slot];
        Some(Known {
            node,
            state: member.state,
            facts: member.facts.as_ref(),
            free: self.rows[slot].free,
            claims: member.claims.len(),
            failures: member.failures,
        })
    }

    pub(super) fn slot(&self, node: NodeId) -> Option<usize> {
        self.slots.get(&node).map(|slot| *slot as usize)
    }

    /// Learns of a node that has not reported yet. Until it does, it is asked where no other is better.
    pub fn join(&mut self, node: NodeId) {
        self.joined(node);
    }

    fn joined(&mut self, node: NodeId) -> usize {
        if let Some(slot) = self.slot(node) {
            return slot;
        }
        let row = Row {
            free: [i32::MAX; 3],
            heard: 0,
            rests_until: 0,
            can: Needs::ALL,
            zone: 0,
            runtime: 0,
            barred: None,
            live: true,
        };
        let member = Member {
            id: node,
            facts: None,
            state: State::Ready,
            limit: [i32::MAX; 3],
            cap: [i32::MAX; 3],
            closed: false,
            taken_at: Duration::ZERO,
            claims: Vec::new(),
            claimed: [0; 3],
            freed: Vec::new(),
            starting: 0,
            builds: Vec::new(),
            failures: 0.0,
            failures_at: Duration::ZERO,
            place: None,
        };
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.rows[slot as usize] = row;
                self.members[slot as usize] = member;
                slot
            }
            None => {
                self.rows.push(row);
                self.members.push(member);
                u32::try_from(self.rows.len() - 1).expect("a fleet has fewer nodes than 2^32")
            }
        };
        self.slots.insert(node, slot);
        self.refresh(slot as usize);
        slot as usize
    }

    /// Forgets a node.
    pub fn forget(&mut self, node: NodeId) {
        let Some(slot) = self.slots.remove(&node) else {
            return;
        };
        self.vacant.push(slot);
        let slot = slot as usize;
        self.hold(slot, Vec::new());
        let zone = self.rows[slot].zone;
        let member = &mut self.members[slot];
        for claim in std::mem::take(&mut member.claims) {
            self.spread.remove(claim.team, zone, 1);
        }
        for (team, count) in member.facts.take().into_iter().flat_map(|facts| facts.teams) {
            self.spread.remove(team, zone, count);
        }
        self.rows[slot].live = false;
        self.refresh(slot);
    }

    /// Sets whether a node gets new ones; `false` where it is not known.
    pub fn set_state(&mut self, node: NodeId, state: State) -> bool {
        let Some(slot) = self.slot(node) else {
            return false;
        };
        self.members[slot].state = state;
        self.refresh(slot);
        true
    }

    /// Learns what a node reports. `taken_at` is when it was asked for its report, or earlier: what was started until then
    /// is in the report. An older report than the last one is of no effect, and `false`.
    pub fn report(&mut self, node: NodeId, facts: Facts, taken_at: Duration) -> bool {
        let slot = self.joined(node);
        let (row, member) = (&mut self.rows[slot], &mut self.members[slot]);
        if member.facts.is_some() && taken_at < member.taken_at {
            return false;
        }
        let (old, new) = (row.zone, self.zones.number(&facts.place.zone));
        let told = member.facts.take().map(|facts| facts.teams).unwrap_or_default();
        // Most reports say of most teams what the last one said.
        if old != new || told != facts.teams {
            for (team, count) in told {
                self.spread.remove(team, old, count);
            }
            for (team, count) in &facts.teams {
                self.spread.add(*team, new, *count);
            }
        }
        for claim in &member.claims {
            self.spread.remove(claim.team, old, 1);
        }
        // What was over before the report was taken is in it.
        member
            .claims
            .retain(|claim| claim.kept_at.is_none_or(|kept_at| kept_at > taken_at));
        for claim in &member.claims {
            self.spread.add(claim.team, new, 1);
        }
        member.freed.retain(|(_, at)| *at > taken_at);
        row.zone = new;
        row.runtime = self.runtimes.number(&facts.runtime);
        row.can = facts.can;
        row.heard = tick(taken_at);
        let over = self.policy.overcommit;
        member.limit = [
            over.cpu.of(facts.total.cpu),
            over.memory.of(facts.total.memory),
            over.disk.of(facts.total.disk),
        ];
        member.cap = [i32::MAX; 3];
        member.closed = false;
        member.taken_at = taken_at;
        member.facts = Some(facts);
        self.count_claims(slot);
        self.refresh(slot);
        true
    }

    /// Learns all the builds that a node holds.
    pub fn holds(&mut self, node: NodeId, builds: impl IntoIterator<Item = BuildId>) {
        let slot = self.joined(node);
        let mut builds: Vec<_> = builds.into_iter().take(BUILDS_MAX).map(hashed).collect();
        builds.sort_unstable();
        builds.dedup();
        self.hold(slot, builds);
    }

    /// Learns that a node holds one build more.
    pub fn fetched(&mut self, node: NodeId, build: BuildId) {
        let Some(slot) = self.slot(node) else {
            return;
        };
        let (builds, build) = (&mut self.members[slot].builds, hashed(build));
        if let Err(place) = builds.binary_search(&build)
            && builds.len() < BUILDS_MAX
        {
            builds.insert(place, build);
            self.holders.entry(build).or_default().push(number(slot));
        }
    }

    fn hold(&mut self, slot: usize, builds: Vec<u64>) {
        let old = std::mem::take(&mut self.members[slot].builds);
        let me = number(slot);
        for build in old.iter().filter(|build| builds.binary_search(build).is_err()) {
            if let Some(holders) = self.holders.get_mut(build) {
                if let Some(place) = holders.iter().position(|holder| *holder == me) {
                    holders.swap_remove(place);
                }
                if holders.is_empty() {
                    self.holders.remove(build);
                }
            }
        }
        for build in builds.iter().filter(|build| old.binary_search(build).is_err()) {
            self.holders.entry(*build).or_default().push(me);
        }
        self.members[slot].builds = builds;
    }

    /// A start failed on a node, by the node's fault.
    pub fn failed(&mut self, node: NodeId, now: Duration) {
        let Some(slot) = self.slot(node) else {
            return;
        };
        let (policy, member) = (&self.policy, &mut self.members[slot]);
        let (half, most) = (policy.failures_half_life, policy.failures_max);
        let old = member.failures_now(half, now);
        // Beyond four times as many a node is not known to be any worse, and would rest for longer than it takes to heal.
        member.failures = (old + 1.0).min(most * 4.0);
        member.failures_at = now;
        if member.failures >= most {
            let rest = half.mul_f32((member.failures / most).log2()) + Duration::from_secs(1);
            self.rows[slot].rests_until = tick(now + rest);
        }
    }

    /// A node refused what was chosen for it: until it reports again it is asked for less only.
    pub fn full(&mut self, claim: Claim, what: &str) {
        let slot = claim.slot as usize;
        let member = &mut self.members[slot];
        let Some(claimed) = member.claims.iter().find(|it| it.serial == claim.serial) else {
            return;
        };
        // Nobody would lift the cap of a node that does not report; and where nothing is promised nothing can be wrong.
        if member.facts.is_some() && member.limit[1] != i32::MAX {
            match AMOUNTS.iter().position(|name| *name == what) {
                Some(at) => member.cap[at] = member.cap[at].min(claimed.need[at].saturating_sub(1)),
                // What has no amount here, as slots, is asked for by everything.
                None => member.closed = true,
            }
        }
        self.release(claim);
        self.refresh(slot);
    }

    /// Claims a place on a node for what is to be started there.
    pub(super) fn claim(&mut self, slot: usize, need: Amounts, team: TeamId, now: Duration) -> Choice {
        self.expire(slot, now);
        self.serial += 1;
        let member = &mut self.members[slot];
        member.claims.push(Claimed {
            serial: self.serial,
            need,
            team,
            kept_at: None,
        });
        member.starting += 1;
        for (sum, need) in member.claimed.iter_mut().zip(need) {
            *sum = sum.saturating_add(need);
        }
        self.spread.add(team, self.rows[slot].zone, 1);
        self.refresh_free(slot);
        Choice {
            node: self.members[slot].id,
            claim: Claim {
                slot: number(slot),
                serial: self.serial,
            },
        }
    }

    /// Claims a place on a node that was chosen by other means, as for a copy that must be where its source is. `None` where
    /// the node is not known.
    pub fn claim_on(&mut self, node: NodeId, wish: &Wish<'_>, now: Duration) -> Option<Choice> {
        let slot = self.slot(node)?;
        Some(self.claim(slot, amounts(wish.resources), wish.team, now))
    }

    /// What was claimed runs: it counts until a report includes it.
    pub fn keep(&mut self, claim: Claim, now: Duration) {
        let slot = claim.slot as usize;
        let member = &mut self.members[slot];
        let Some(claimed) = member.claims.iter_mut().find(|it| it.serial == claim.serial) else {
            return;
        };
        if member.facts.is_none() {
            // Nothing is known that it would have to be added to.
            return self.release(claim);
        }
        if claimed.kept_at.replace(now).is_none() {
            member.starting -= 1;
        }
    }

    /// What was claimed does not run.
    pub fn release(&mut self, claim: Claim) {
        let slot = claim.slot as usize;
        let member = &mut self.members[slot];
        let Some(place) = member.claims.iter().position(|it| it.serial == claim.serial) else {
            return;
        };
        let claimed = member.claims.swap_remove(place);
        self.spread.remove(claimed.team, self.rows[slot].zone, 1);
        self.count_claims(slot);
        self.refresh_free(slot);
    }

    /// Something has ended on a node: what it had is free, though the last report says otherwise.
    pub fn freed(&mut self, node: NodeId, resources: Resources, now: Duration) {
        let Some(slot) = self.slot(node) else {
            return;
        };
        let member = &mut self.members[slot];
        if member.facts.is_some() && member.freed.len() < FREED_MAX {
            member.freed.push((amounts(resources), now));
            self.refresh_free(slot);
        }
    }

    /// Forgets what was kept for so long that the node must have reported it, or is silent.
    fn expire(&mut self, slot: usize, now: Duration) {
        let member = &mut self.members[slot];
        // They are roughly in the order of their age.
        let oldest = member.claims.first().and_then(|claim| claim.kept_at);
        let limit = self.policy.claims_for;
        if oldest.is_none_or(|kept_at| now.saturating_sub(kept_at) <= limit) {
            return;
        }
        let zone = self.rows[slot].zone;
        member.claims.retain(|claim| {
            let lives = claim
                .kept_at
                .is_none_or(|kept_at| now.saturating_sub(kept_at) <= limit);
            if !lives {
                self.spread.remove(claim.team, zone, 1);
            }
            lives
        });
        self.count_claims(slot);
    }

    fn count_claims(&mut self, slot: usize) {
        let member = &mut self.members[slot];
        member.claimed = [0; 3];
        member.starting = 0;
        for claim in &member.claims {
            member.starting += u32::from(claim.kept_at.is_none());
            for (sum, need) in member.claimed.iter_mut().zip(claim.need) {
                *sum = sum.saturating_add(need);
            }
        }
    }

    fn refresh_free(&mut self, slot: usize) {
        let member = &self.members[slot];
        let promised = member
            .facts
            .as_ref()
            .map(|facts| facts.promised)
            .unwrap_or_default();
        let promised = [promised.cpu, promised.memory, promised.disk];
        for (at, free) in self.rows[slot].free.iter_mut().enumerate() {
            let limit = member.limit[at];
            if limit != i32::MAX {
                let promised = i32::try_from(promised[at]).unwrap_or(i32::MAX);
                let left = limit.saturating_sub(promised).saturating_sub(member.claimed[at]);
                let freed: i32 = member
                    .freed
                    .iter()
                    .map(|(freed, _)| freed[at])
                    .fold(0, i32::saturating_add);
                *free = left.saturating_add(freed).min(limit).min(member.cap[at]);
            } else {
                *free = i32::MAX;
            }
        }
        let row = &self.rows[slot];
        let counts = row.live && row.barred.is_none();
        self.lanes.set(slot, counts.then_some(row.free));
    }

    /// Sets what follows from what is known of a node.
    fn refresh(&mut self, slot: usize) {
        let barred = self.members[slot].barred(&self.policy);
        self.rows[slot].barred = barred;
        self.refresh_free(slot);
        let live = self.rows[slot].live;
        let member = &mut self.members[slot];
        let is_open = live && barred.is_none();
        match (is_open, member.place) {
            (true, None) => {
                member.place = Some(self.open.len());
                self.open.push(number(slot));
            }
            (false, Some(place)) => {
                member.place = None;
                self.open.swap_remove(place);
                if let Some(moved) = self.open.get(place) {
                    self.members[*moved as usize].place = Some(place);
                }
            }
            _ => {}
        }
    }
}

fn number(slot: usize) -> u32 {
    u32::try_from(slot).expect("a fleet has fewer nodes than 2^32")
}

impl Member {
    fn barred(&self, policy: &Policy) -> Option<Reason> {
        match self.state {
            State::Cordoned => return Some(Reason::Cordoned),
            State::Draining => return Some(Reason::Draining),
            State::Unhealthy { .. } => return Some(Reason::Unhealthy),
            State::Ready => {}
        }
        let facts = self.facts.as_ref()?;
        if !facts.accepts || self.closed {
            Some(Reason::Closed)
        } else if !policy.protocols.contains(&facts.place.protocol) {
            Some(Reason::Protocol)
        } else if facts.memory_available < policy.memory_reserve {
            Some(Reason::Memory)
        } else if facts.disk_available < policy.disk_reserve {
            Some(Reason::Disk)
        } else {
            None
        }
    }

    /// Failed starts, by their weight now.
    pub(super) fn failures_now(&self, half_life: Duration, now: Duration) -> f32 {
        if self.failures == 0.0 {
            return 0.0;
        }
        let age = now.saturating_sub(self.failures_at).as_secs_f32();
        self.failures * (-age / half_life.as_secs_f32()).exp2()
    }
}

#[cfg(test)]
mod tests;
