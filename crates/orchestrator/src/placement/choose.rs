//! One decision: filter, and then the best of a few.
use std::time::Duration;

use model::{BuildId, NodeId};
use rand::Rng;

use super::lanes::{Lanes, TOGETHER};
use super::refusals::{Filtered, Reason};
use super::score::{Taste, score};
use super::view::{Amounts, Member, Row, amounts, hashed, tick};
use super::{Choice, Needs, Policy, View, Wish};

/// Chance is tried so many times for each node that is to be compared.
const DRAWS_EACH: usize = 4;
/// The number of a runtime that no node has.
const NO_RUNTIME: u8 = u8::MAX;

/// What filters ask.
struct Demand<'a> {
    need: Amounts,
    /// 0 for any.
    runtime: u8,
    needs: Needs,
    excluded: [&'a [NodeId]; 2],
    /// Whether those lists say anything.
    excludes: bool,
    /// Reports that were taken before are stale.
    heard_from: u32,
    now: u32,
}

impl Demand<'_> {
    fn check(&self, row: &Row, member: impl FnOnce() -> NodeId) -> Result<(), Reason> {
        if let Some(barred) = row.barred {
            return Err(barred);
        }
        // The same order as of [`Lanes::are_full`]; what is short most often comes first.
        for (at, reason) in [(1, Reason::Memory), (0, Reason::Cpu), (2, Reason::Disk)] {
            if row.free[at] < self.need[at] {
                return Err(reason);
            }
        }
        // Rarely anything is excluded, and then little.
        if self.excludes {
            let node = member();
            if self.excluded.iter().any(|list| list.contains(&node)) {
                return Err(Reason::Excluded);
            }
        }
        if row.heard != 0 && row.heard < self.heard_from {
            return Err(Reason::Stale);
        }
        if self.runtime != 0 && row.runtime != 0 && row.runtime != self.runtime {
            return Err(Reason::Runtime);
        }
        if !self.needs.are_met_by(row.can) {
            return Err(Reason::Capability);
        }
        if row.rests_until > self.now {
            return Err(Reason::Failing);
        }
        Ok(())
    }
}

/// The best of what was looked at.
struct Best<'a> {
    policy: &'a Policy,
    rows: &'a [Row],
    members: &'a [Member],
    lanes: &'a Lanes,
    demand: Demand<'a>,
    taste: Taste<'a>,
    best: Option<(f32, usize)>,
    /// Nodes that passed.
    passed: usize,
}

impl Best<'_> {
    fn look_at(&mut self, slot: usize) -> Result<(), Reason> {
        self.demand.check(&self.rows[slot], || self.members[slot].id)?;
        self.passed += 1;
        self.rate(slot);
        Ok(())
    }

    fn rate(&mut self, slot: usize) {
        let score = score(
            self.policy,
            &self.rows[slot],
            &self.members[slot],
            slot,
            &self.taste,
        );
        if self.best.is_none_or(|(best, _)| score > best) {
            self.best = Some((score, slot));
        }
    }

    /// Looks at nodes one by one from `first` on, until enough have passed.
    fn scan(&mut self, first: usize) -> Filtered {
        let mut filtered = Filtered::default();
        let mut resting = None;
        let most = self.rows.len().min(self.policy.scan_max);
        let behind = (first + most).saturating_sub(self.rows.len());
        'all: for run in [first..first + most - behind, 0..behind] {
            for from in run.clone().step_by(TOGETHER) {
                let some = from..run.end.min(from + TOGETHER);
                if self.lanes.are_full(some.clone(), self.demand.need, &mut filtered) {
                    continue;
                }
                for slot in some {
                    let row = &self.rows[slot];
                    if !row.live {
                        continue;
                    }
                    let Err(reason) = self.demand.check(row, || self.members[slot].id) else {
                        self.passed += 1;
                        self.rate(slot);
                        if self.passed >= self.policy.choices {
                            break 'all;
                        }
                        continue;
                    };
                    filtered.count(reason);
                    if reason == Reason::Failing {
                        resting.get_or_insert(slot);
                    }
                }
            }
        }
        // Where all that could are resting, one of them is better than none.
        if self.best.is_none()
            && let Some(slot) = resting
        {
            self.rate(slot);
        }
        filtered
    }
}

impl View {
    /// Chooses a node for what is wished, and claims a place on it. `tried` are nodes that refused it.
    ///
    /// # Errors
    /// Where no node that was looked at takes it: how many of them do not, by reason.
    pub fn choose(&mut self, wish: &Wish<'_>, tried: &[NodeId], now: Duration) -> Result<Choice, Filtered> {
        let need = amounts(wish.resources);
        let runtime = wish
            .runtime
            .map_or(0, |name| self.runtimes.find(name).unwrap_or(NO_RUNTIME));
        // What is refused once goes where most room is, whatever else would speak for a node: the next may be the last try.
        let is_first = tried.is_empty();
        let spread = if is_first { self.spread.of(wish.team) } else { &[] };
        let held = |build: Option<BuildId>| build.filter(|_| is_first).map(hashed);
        let (build, base) = (held(wish.build), held(wish.base));
        let home = wish.home.and_then(|node| self.slot(node));
        let mut best = Best {
            policy: &self.policy,
            rows: &self.rows,
            members: &self.members,
            lanes: &self.lanes,
            demand: Demand {
                need,
                runtime,
                needs: wish.needs,
                excluded: [wish.excluded, tried],
                excludes: !wish.excluded.is_empty() || !tried.is_empty(),
                heard_from: tick(now.saturating_sub(self.policy.stale_after)),
                now: tick(now),
            },
            taste: Taste {
                need,
                build,
                base,
                zone: wish.zone.and_then(|zone| self.zones.find(zone)),
                spread,
                most: spread.iter().copied().max().unwrap_or(0),
                home,
                now,
            },
            best: None,
            passed: 0,
        };
        if let Some(only) = wish.only {
            let mut filtered = Filtered::default();
            let Some(slot) = self.slot(only) else {
                return Err(filtered);
            };
            match best.look_at(slot) {
                // There is none to be asked in the place of one that rests.
                Ok(()) | Err(Reason::Failing) => return Ok(self.claim(slot, need, wish.team, now)),
                Err(reason) => filtered.count(reason),
            }
            return Err(filtered);
        }
        let choices = self.policy.choices.max(1) * (1 + tried.len());
        if let Some(home) = home {
            let _ = best.look_at(home);
        }
        // Who holds the build is rarely met by chance, unless it is everywhere.
        let holders = [build, base].into_iter().flatten();
        let holders = holders.filter_map(|build| self.holders.get(&build)).next();
        if let Some(holders) = holders.filter(|holders| holders.len() < self.open.len() / 2) {
            for _ in 0..choices.div_ceil(2) {
                let place = self.dice.random_range(0..holders.len());
                let _ = best.look_at(holders[place] as usize);
            }
        }
        if self.open.len() <= choices {
            for slot in &self.open {
                let _ = best.look_at(*slot as usize);
            }
        } else {
            let enough = best.passed + choices;
            for _ in 0..choices * DRAWS_EACH {
                let place = self.dice.random_range(0..self.open.len());
                let _ = best.look_at(self.open[place] as usize);
                if best.passed >= enough {
                    break;
                }
            }
        }
        if best.best.is_none() && !self.rows.is_empty() {
            let first = self.dice.random_range(0..self.rows.len());
            let filtered = best.scan(first);
            if best.best.is_none() {
                return Err(filtered);
            }
        }
        let (_, slot) = best.best.ok_or_else(Filtered::default)?;
        Ok(self.claim(slot, need, wish.team, now))
    }
}
