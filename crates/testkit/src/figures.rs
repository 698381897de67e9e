//! What was measured, and what it is held against.
use std::fmt::Write as _;
use std::time::Duration;

/// All figures of a run.
#[derive(Default)]
pub(crate) struct Figures(Vec<Figure>);

struct Figure {
    name: String,
    value: Value,
    goal: Goal,
}

enum Value {
    /// Sorted.
    Times(Vec<Duration>),
    /// As another program told them.
    Told {
        p50: Duration,
        p99: Duration,
    },
    One(f64, &'static str),
}

/// What a figure is to reach. A benchmark says whether it does, and fails nothing: machines differ.
#[derive(Clone, Copy, Default)]
pub(crate) struct Goal {
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    least: Option<f64>,
    most: Option<f64>,
}

impl Goal {
    /// None: the figure is there to be read beside the others.
    pub(crate) const NONE: Goal = Goal {
        p50_ms: None,
        p99_ms: None,
        least: None,
        most: None,
    };

    pub(crate) fn p50_ms(limit: f64) -> Self {
        Self {
            p50_ms: Some(limit),
            ..Self::NONE
        }
    }

    pub(crate) fn and_p99_ms(self, limit: f64) -> Self {
        Self {
            p99_ms: Some(limit),
            ..self
        }
    }

    pub(crate) fn p99_ms(limit: f64) -> Self {
        Self::NONE.and_p99_ms(limit)
    }

    pub(crate) fn at_least(limit: f64) -> Self {
        Self {
            least: Some(limit),
            ..Self::NONE
        }
    }

    pub(crate) fn at_most(limit: f64) -> Self {
        Self {
            most: Some(limit),
            ..Self::NONE
        }
    }

    /// Each limit in words, and whether the value keeps it.
    fn judge(self, value: &Value) -> Vec<(String, bool)> {
        let times = |p50, p99| {
            [("p50", p50, self.p50_ms), ("p99", p99, self.p99_ms)]
                .into_iter()
                .filter_map(|(name, time, limit)| {
                    let limit = limit?;
                    Some((format!("{name} ≤ {limit} ms"), millis(time) <= limit))
                })
                .collect()
        };
        match value {
            Value::Times(all) => times(at(all, 0.50), at(all, 0.99)),
            Value::Told { p50, p99 } => times(*p50, *p99),
            Value::One(value, unit) => {
                let least = self
                    .least
                    .map(|limit| (format!("≥ {limit:.0} {unit}"), *value >= limit));
                let most = self
                    .most
                    .map(|limit| (format!("≤ {limit:.1} {unit}"), *value <= limit));
                least.into_iter().chain(most).collect()
            }
        }
    }
}

impl Figures {
    /// Durations of one thing done many times.
    pub(crate) fn times(&mut self, name: impl Into<String>, goal: Goal, mut times: Vec<Duration>) {
        times.sort_unstable();
        self.put(name.into(), Value::Times(times), goal);
    }

    /// The same, where another program has timed it.
    pub(crate) fn told(&mut self, name: impl Into<String>, goal: Goal, p50: Duration, p99: Duration) {
        self.put(name.into(), Value::Told { p50, p99 }, goal);
    }

    /// A single number.
    pub(crate) fn one(&mut self, name: impl Into<String>, goal: Goal, value: f64, unit: &'static str) {
        self.put(name.into(), Value::One(value, unit), goal);
    }

    fn put(&mut self, name: String, value: Value, goal: Goal) {
        let figure = Figure { name, value, goal };
        eprintln!("bench: {}", figure.line());
        self.0.push(figure);
    }

    /// Markdown.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from("| what | p50 | p95 | p99 | n | goal |\n|---|---|---|---|---|---|\n");
        for figure in &self.0 {
            let _ = writeln!(table, "{}", figure.line());
        }
        table
    }

    /// The same for programs; times in microseconds.
    pub(crate) fn json(&self) -> serde_json::Value {
        self.0.iter().map(Figure::json).collect()
    }
}

impl Figure {
    fn line(&self) -> String {
        let verdicts: Vec<String> = self
            .goal
            .judge(&self.value)
            .into_iter()
            .map(|(limit, holds)| format!("{limit}: {}", if holds { "holds" } else { "**missed**" }))
            .collect();
        let (name, goal) = (&self.name, verdicts.join("; "));
        match &self.value {
            Value::Times(times) => format!(
                "| {name} | {} | {} | {} | {} | {goal} |",
                shown(at(times, 0.50)),
                shown(at(times, 0.95)),
                shown(at(times, 0.99)),
                times.len()
            ),
            Value::Told { p50, p99 } => {
                format!("| {name} | {} | | {} | | {goal} |", shown(*p50), shown(*p99))
            }
            Value::One(value, unit) => format!("| {name} | {value:.1} {unit} | | | | {goal} |"),
        }
    }

    fn json(&self) -> serde_json::Value {
        let micros = |time| millis(time) * 1e3;
        let holds = self.goal.judge(&self.value);
        let holds = (!holds.is_empty()).then(|| holds.iter().all(|(_, holds)| *holds));
        match &self.value {
            Value::Times(times) => serde_json::json!({
                "name": self.name, "n": times.len(), "unit": "us", "holds": holds,
                "p50": micros(at(times, 0.50)), "p95": micros(at(times, 0.95)), "p99": micros(at(times, 0.99)),
            }),
            Value::Told { p50, p99 } => serde_json::json!({
                "name": self.name, "unit": "us", "holds": holds, "p50": micros(*p50), "p99": micros(*p99),
            }),
            Value::One(value, unit) => {
                serde_json::json!({ "name": self.name, "value": value, "unit": unit, "holds": holds })
            }
        }
    }
}

/// The time below which this share of all lies (nearest rank).
pub(crate) fn at(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank of a few thousand"
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// In microseconds where hundredths of a millisecond say too little.
fn shown(time: Duration) -> String {
    if time < Duration::from_micros(100) {
        format!("{:.1} µs", millis(time) * 1e3)
    } else {
        format!("{:.2} ms", millis(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_the_nearest() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(at(&times, 0.5), Duration::from_millis(50));
        assert_eq!(at(&times, 0.99), Duration::from_millis(99));
        assert_eq!(at(&times[..1], 0.99), Duration::from_millis(1));
        assert_eq!(at(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn what_is_short_is_shown_in_microseconds() {
        assert_eq!(shown(Duration::from_nanos(1_840)), "1.8 µs");
        assert_eq!(shown(Duration::from_micros(1_234)), "1.23 ms");
    }

    #[test]
    fn a_goal_says_which_limit_was_missed() {
        let times = Value::Times(vec![Duration::from_millis(2), Duration::from_millis(20)]);
        let verdicts: Vec<bool> = Goal::p50_ms(3.0)
            .and_p99_ms(15.0)
            .judge(&times)
            .into_iter()
            .map(|(_, holds)| holds)
            .collect();
        assert_eq!(verdicts, [true, false]);
        assert!(Goal::NONE.judge(&times).is_empty());
        let told = Value::Told {
            p50: Duration::from_micros(2),
            p99: Duration::from_micros(51),
        };
        assert!(!Goal::p99_ms(0.05).judge(&told)[0].1 && Goal::p50_ms(0.05).judge(&told)[0].1);
        assert!(!Goal::at_least(200.0).judge(&Value::One(199.9, "/s"))[0].1);
        assert!(Goal::at_most(2.5).judge(&Value::One(2.5, "MiB"))[0].1);
    }
}
