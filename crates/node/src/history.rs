//! What a sandbox used, over time.
use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use ports::MetricSample;
use ports::runtime::Usage;

/// How often every running sandbox is looked at.
pub(crate) const EVERY: Duration = Duration::from_secs(10);
/// An hour of that, at 72 bytes each.
const SAMPLES_MAX: usize = 360;

/// Samples, oldest first.
#[derive(Debug, Default)]
pub(crate) struct History {
    samples: VecDeque<MetricSample>,
    /// CPU time at the newest sample.
    cpu_time: Duration,
}

impl History {
    /// Adds what was measured now.
    pub(crate) fn add(&mut self, now: SystemTime, cpu_count: u32, usage: &Usage) {
        let since = self
            .samples
            .back()
            .and_then(|last| now.duration_since(last.timestamp).ok());
        let used = usage.cpu_time.saturating_sub(self.cpu_time);
        let cpu_used_pct = match since {
            Some(since) if !since.is_zero() => used.as_secs_f64() / since.as_secs_f64() * 100.0,
            _ => 0.0,
        };
        self.cpu_time = usage.cpu_time;
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(MetricSample {
            timestamp: now,
            cpu_count,
            cpu_used_pct: (cpu_used_pct * 100.0).round() / 100.0,
            mem_used: usage.memory_used_bytes,
            mem_total: usage.memory_total_bytes,
            mem_cache: usage.memory_cache_bytes,
            disk_used: usage.disk_used_bytes,
            disk_total: usage.disk_total_bytes,
        });
    }

    /// Whether the newest sample is younger than this.
    pub(crate) fn is_fresh(&self, now: SystemTime, age: Duration) -> bool {
        self.samples
            .back()
            .and_then(|last| now.duration_since(last.timestamp).ok())
            .is_some_and(|past| past < age)
    }

    /// Samples between two times, both included.
    pub(crate) fn between(&self, from: Option<SystemTime>, to: Option<SystemTime>) -> Vec<MetricSample> {
        let within = |sample: &&MetricSample| {
            from.is_none_or(|from| sample.timestamp >= from) && to.is_none_or(|to| sample.timestamp <= to)
        };
        self.samples.iter().filter(within).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_of_cpu_is_what_was_used_since_the_sample_before() {
        let mut history = History::default();
        let start = SystemTime::UNIX_EPOCH;
        let usage = |ms| Usage {
            cpu_time: Duration::from_millis(ms),
            ..Usage::default()
        };
        history.add(start, 2, &usage(5_000));
        history.add(start + Duration::from_secs(10), 2, &usage(10_000));
        let all = history.between(None, None);
        assert_eq!((all[0].cpu_used_pct, all[1].cpu_used_pct), (0.0, 50.0));
        assert_eq!(
            history.between(Some(start + Duration::from_secs(1)), None).len(),
            1
        );
        assert!(history.is_fresh(start + Duration::from_secs(11), Duration::from_secs(5)));
    }

    #[test]
    fn the_oldest_samples_go() {
        let mut history = History::default();
        for i in 0..1_000 {
            history.add(
                SystemTime::UNIX_EPOCH + Duration::from_secs(i),
                1,
                &Usage::default(),
            );
        }
        assert_eq!(history.between(None, None).len(), SAMPLES_MAX);
    }
}
