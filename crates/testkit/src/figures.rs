//! What was measured.
use std::fmt::Write as _;
use std::time::Duration;

/// All figures of a run.
#[derive(Default)]
pub(crate) struct Figures(Vec<Figure>);

struct Figure {
    name: String,
    value: Value,
}

enum Value {
    /// Sorted.
    Times(Vec<Duration>),
    One(f64, &'static str),
}

impl Figures {
    /// Durations of one thing done many times.
    pub(crate) fn times(&mut self, name: impl Into<String>, mut times: Vec<Duration>) {
        times.sort_unstable();
        let name = name.into();
        eprintln!("bench: {name}");
        self.0.push(Figure {
            name,
            value: Value::Times(times),
        });
    }

    /// A single number.
    pub(crate) fn one(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        let name = name.into();
        eprintln!("bench: {name}");
        self.0.push(Figure {
            name,
            value: Value::One(value, unit),
        });
    }

    /// Markdown.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from("| what | p50 | p95 | p99 | n |\n|---|---|---|---|---|\n");
        for Figure { name, value } in &self.0 {
            let _ = match value {
                Value::Times(times) => writeln!(
                    table,
                    "| {name} | {} | {} | {} | {} |",
                    shown(at(times, 0.50)),
                    shown(at(times, 0.95)),
                    shown(at(times, 0.99)),
                    times.len()
                ),
                Value::One(value, unit) => writeln!(table, "| {name} | {value:.1} {unit} | | | |"),
            };
        }
        table
    }

    /// The same for programs; times in microseconds.
    pub(crate) fn json(&self) -> serde_json::Value {
        let micros = |times: &[Duration], share| at(times, share).as_secs_f64() * 1e6;
        let entry = |figure: &Figure| match &figure.value {
            Value::Times(times) => serde_json::json!({
                "name": figure.name, "n": times.len(), "unit": "us",
                "p50": micros(times, 0.50), "p95": micros(times, 0.95), "p99": micros(times, 0.99),
            }),
            Value::One(value, unit) => {
                serde_json::json!({ "name": figure.name, "value": value, "unit": unit })
            }
        };
        self.0.iter().map(entry).collect()
    }
}

/// The time below which this share of all lies (nearest rank).
fn at(sorted: &[Duration], share: f64) -> Duration {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank of a few thousand"
    )]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn shown(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
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
}
