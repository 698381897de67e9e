//! Why nothing was found.
use std::collections::BTreeMap;

use ports::ManagerError;

/// Why a node was not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// It was asked before, or must not be.
    Excluded,
    /// It takes nothing new, by an operator's word.
    Cordoned,
    /// It is being emptied.
    Draining,
    /// Its checks fail.
    Unhealthy,
    /// It has not reported for too long.
    Stale,
    /// It says that it takes nothing new.
    Closed,
    /// It speaks a version of the node protocol that this process does not.
    Protocol,
    /// It has another runtime.
    Runtime,
    /// Its runtime cannot do what is needed.
    Capability,
    /// Too little of its vCPUs is left.
    Cpu,
    /// Too little of its memory is left.
    Memory,
    /// Too little of its disk is left.
    Disk,
    /// Too many starts failed on it lately.
    Failing,
}

impl Reason {
    const ALL: [Self; 13] = [
        Self::Excluded,
        Self::Cordoned,
        Self::Draining,
        Self::Unhealthy,
        Self::Stale,
        Self::Closed,
        Self::Protocol,
        Self::Runtime,
        Self::Capability,
        Self::Cpu,
        Self::Memory,
        Self::Disk,
        Self::Failing,
    ];

    /// What an operator is told, and the label in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Excluded => "excluded",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Unhealthy => "unhealthy",
            Self::Stale => "no report for too long",
            Self::Closed => "takes nothing new",
            Self::Protocol => "another node protocol",
            Self::Runtime => "another runtime",
            Self::Capability => "runtime cannot do it",
            Self::Cpu => "too little CPU",
            Self::Memory => "too little memory",
            Self::Disk => "too little disk",
            Self::Failing => "starts failed on it",
        }
    }
}

/// The nodes that were not asked, by the first reason of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filtered([u32; Reason::ALL.len()]);

impl Filtered {
    pub(super) fn count(&mut self, reason: Reason) {
        self.add(reason, 1);
    }

    pub(super) fn add(&mut self, reason: Reason, count: u32) {
        self.0[reason as usize] += count;
    }

    /// How many for this reason.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u32 {
        self.0[reason as usize]
    }

    /// How many in all.
    #[must_use]
    pub fn sum(&self) -> u32 {
        self.0.iter().sum()
    }

    /// What an operator is told; `None` where there was no node.
    fn told(&self) -> Option<String> {
        let mut counts: Vec<_> = Reason::ALL
            .into_iter()
            .map(|reason| (self.of(reason), reason))
            .filter(|(count, _)| *count > 0)
            .collect();
        // What most nodes lack comes first.
        counts.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let counts: Vec<_> = counts
            .into_iter()
            .map(|(count, reason)| format!("{}: {count}", reason.as_str()))
            .collect();
        (!counts.is_empty()).then(|| format!("of {} nodes: {}", self.sum(), counts.join(", ")))
    }
}

/// The nodes that refused, by reason, and those that were not asked, by reason.
#[derive(Debug, Clone, Default)]
pub struct Refusals {
    asked: BTreeMap<&'static str, usize>,
    filtered: Filtered,
}

impl Refusals {
    /// A node is out of `what`.
    pub fn count(&mut self, what: &'static str) {
        *self.asked.entry(what).or_default() += 1;
    }

    /// No other node was to be asked.
    pub fn filtered(&mut self, filtered: Filtered) {
        self.filtered = filtered;
    }

    /// The first reason for which a node was not asked.
    pub(super) fn first(&self) -> Option<Reason> {
        Reason::ALL
            .into_iter()
            .find(|reason| self.filtered.of(*reason) > 0)
    }

    /// What the client is told.
    #[must_use]
    pub fn no_capacity(&self) -> ManagerError {
        let asked: usize = self.asked.values().sum();
        let reason = |(what, count): (&&str, &usize)| format!("{count} of {asked} asked are out of {what}");
        let reasons: Vec<_> = self.asked.iter().map(reason).collect();
        let reasons = (!reasons.is_empty()).then(|| reasons.join(", "));
        let all: Vec<_> = reasons.into_iter().chain(self.filtered.told()).collect();
        ManagerError::NoCapacity(if all.is_empty() {
            "there are no nodes".to_owned()
        } else {
            all.join("; ")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(asked: &[&'static str], filtered: &[(Reason, u32)], expected: &str) {
        let mut refusals = Refusals::default();
        for what in asked {
            refusals.count(what);
        }
        let mut counts = Filtered::default();
        for (reason, times) in filtered {
            (0..*times).for_each(|_| counts.count(*reason));
        }
        refusals.filtered(counts);
        let text = refusals.no_capacity().to_string();
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        check(&[], &[], "there are no nodes");
        check(
            &["memory", "slots", "memory"],
            &[],
            "2 of 3 asked are out of memory, 1 of 3 asked are out of slots",
        );
        check(
            &[],
            &[(Reason::Cordoned, 2), (Reason::Memory, 3)],
            "of 5 nodes: too little memory: 3, cordoned: 2",
        );
        check(
            &["slots"],
            &[(Reason::Excluded, 1)],
            "1 of 1 asked are out of slots; of 1 nodes: excluded: 1",
        );
    }

    #[test]
    fn every_reason_has_a_place_of_its_own() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
        }
    }
}
