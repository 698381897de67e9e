//! How good a node is for what is to be placed.
use std::time::Duration;

use super::Policy;
use super::policy::{STARTING_MANY, WARM_ENOUGH};
use super::view::{Amounts, Member, Row};

/// A node with less than one part in so many of its memory free is drawn to its builds by less and less: those of many
/// sandboxes would fill it to the brim, where a stale view is wrong soonest.
const EASE: f32 = 3.0;

/// A node with less than one part in so many of anything free is crowded.
const CROWDED_BELOW: f32 = 8.0;

/// What a score depends on beside the node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taste<'a> {
    pub(super) need: Amounts,
    pub(super) build: Option<u64>,
    pub(super) base: Option<u64>,
    pub(super) zone: Option<u8>,
    /// How many the team has in each zone.
    pub(super) spread: &'a [u32],
    /// How many it has where it has the most.
    pub(super) most: u32,
    pub(super) home: Option<usize>,
    pub(super) now: Duration,
}

/// The part of what may be promised that is left after this.
fn left(free: i32, need: i32, limit: i32) -> f32 {
    if limit <= 0 {
        return 0.0;
    }
    (free.saturating_sub(need) as f32 / limit as f32).clamp(0.0, 1.0)
}

/// The part of something that is free by the node's own measure.
fn measured(available: u64, total: u64) -> f32 {
    if total == 0 {
        return 0.0;
    }
    (available as f32 / total as f32).clamp(0.0, 1.0)
}

/// More is better.
pub(super) fn score(policy: &Policy, row: &Row, member: &Member, slot: usize, taste: &Taste<'_>) -> f32 {
    let weights = &policy.weights;
    let holds = |build: Option<u64>| build.is_some_and(|build| member.builds.binary_search(&build).is_ok());
    let local = match (holds(taste.build), holds(taste.base)) {
        (true, _) => 1.0,
        (false, true) => 0.5,
        (false, false) => 0.0,
    };
    let there = taste.spread.get(usize::from(row.zone)).copied().unwrap_or(0);
    let spread = if taste.most == 0 {
        1.0
    } else {
        1.0 - there as f32 / taste.most as f32
    };
    let failures = (member.failures_now(policy.failures_half_life, taste.now) / policy.failures_max).min(1.0);
    let mut starting = member.starting;
    let mut ease = 1.0;
    let mut score = weights.spread * spread
        + weights.zone * f32::from(u8::from(taste.zone == Some(row.zone)))
        + weights.home * f32::from(u8::from(taste.home == Some(slot)))
        - weights.failures * failures;
    // Of a node that has not reported nothing is known that would speak for it.
    if let Some(facts) = &member.facts {
        let free = |at: usize, measured: f32| match member.limit[at] {
            i32::MAX => measured,
            limit => left(row.free[at], taste.need[at], limit),
        };
        starting = starting.max(facts.starting);
        let memory = free(1, measured(facts.memory_available, facts.total.memory));
        ease = (memory * EASE).min(1.0);
        let least = memory.min(free(0, 1.0)).min(free(2, 1.0));
        score -= weights.crowded * (1.0 - least * CROWDED_BELOW).max(0.0);
        let ready = facts.slots_ready.saturating_sub(member.starting).min(WARM_ENOUGH);
        score += weights.cpu * free(0, 1.0)
            + weights.memory * memory
            + weights.disk * free(2, measured(facts.disk_available, facts.total.disk))
            + weights.warm * (ready as f32 / WARM_ENOUGH as f32);
    }
    score + weights.locality * local * ease
        - weights.starting * (starting.min(STARTING_MANY) as f32 / STARTING_MANY as f32)
}
