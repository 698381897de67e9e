//! What many values are like.
use std::fmt;

/// Of many values.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Percentiles {
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) most: u64,
}

impl Percentiles {
    pub(super) fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let at = |per_mille: usize| {
            let last = values.len().saturating_sub(1);
            values.get(last * per_mille / 1000).copied().unwrap_or(0)
        };
        Self {
            p50: at(500),
            p90: at(900),
            p99: at(990),
            most: at(1000),
        }
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p90, p99, most } = self;
        write!(f, "p50 {p50}‰  p90 {p90}‰  p99 {p99}‰  most {most}‰")
    }
}
