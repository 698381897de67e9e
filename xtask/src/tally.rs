//! Counting what test runners say they ran.
use std::fmt;
use std::ops::AddAssign;

/// Tests that passed, failed and were skipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// Reads the closing lines of cargo's test harness: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
pub(crate) fn of_cargo(output: &str) -> Tally {
    let mut tally = Tally::default();
    for line in output.lines().filter(|line| line.starts_with("test result:")) {
        tally += Tally {
            passed: number_before(line, " passed"),
            failed: number_before(line, " failed"),
            skipped: number_before(line, " ignored"),
        };
    }
    tally
}

/// Reads pytest's closing line: `3 passed, 1 skipped in 0.1s`; an error in a fixture counts as a failure.
pub(crate) fn of_pytest(output: &str) -> Tally {
    let line = output
        .lines()
        .rev()
        .find(|line| line.contains(" in ") && line.contains('s'))
        .unwrap_or_default();
    Tally {
        passed: number_before(line, " passed"),
        failed: number_before(line, " failed") + number_before(line, " error"),
        skipped: number_before(line, " skipped"),
    }
}

/// Reads the closing lines of Node's test runner in TAP form: `# pass 3`.
pub(crate) fn of_node(output: &str) -> Tally {
    let count = |what: &str| {
        let line = output.lines().rev().find_map(|line| line.strip_prefix(what));
        line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    };
    Tally {
        passed: count("# pass "),
        failed: count("# fail ") + count("# cancelled "),
        skipped: count("# skipped ") + count("# todo "),
    }
}

fn number_before(line: &str, word: &str) -> usize {
    let digits = line.split(word).next().filter(|head| head.len() < line.len());
    digits
        .and_then(|head| head.rsplit(|c: char| !c.is_ascii_digit()).next())
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: usize, failed: usize, skipped: usize) -> Tally {
        Tally {
            passed,
            failed,
            skipped,
        }
    }

    #[test]
    fn closing_lines_are_read() {
        let cargo = "test result: ok. 16 passed; 0 failed; 2 ignored; 0 measured\nx\ntest result: FAILED. 1 passed; 3 failed; 0 ignored";
        assert_eq!(of_cargo(cargo), tally(17, 3, 2));
        assert_eq!(
            of_pytest("...\n==== 2 failed, 30 passed, 1 skipped, 1 error in 4.20s ===="),
            tally(30, 3, 1)
        );
        assert_eq!(of_pytest("30 passed in 4.20s"), tally(30, 0, 0));
        assert_eq!(
            of_node("# tests 5\n# pass 3\n# fail 1\n# cancelled 0\n# skipped 1\n# todo 0"),
            tally(3, 1, 1)
        );
        assert_eq!(of_node(""), tally(0, 0, 0));
    }
}
