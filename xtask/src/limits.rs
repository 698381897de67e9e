//! `docs/limits.md` against the code: each row names a constant, and tells its value.
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const PAGE: &str = "docs/limits.md";

/// What is wrong with the page.
pub(crate) fn wrong(root: &Path) -> Result<Vec<String>> {
    let page = fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let mut wrong = Vec::new();
    let mut compared = 0;
    for row in page.lines().filter_map(Row::of) {
        compared += 1;
        let file = root.join("crates").join(row.file);
        let code = fs::read_to_string(&file).unwrap_or_default();
        match constant(&code, row.name).and_then(value) {
            Some(found) if found == row.told => {}
            Some(found) => wrong.push(format!(
                "{PAGE} says {:?} of {} in {}, which is {found:?}",
                row.told, row.name, row.file
            )),
            None => wrong.push(format!("{PAGE}: no {} is to be read in {}", row.name, row.file)),
        }
    }
    if compared == 0 {
        wrong.push(format!("{PAGE} names no constant"));
    }
    Ok(wrong)
}

/// A number, or a time in milliseconds.
#[derive(Debug, PartialEq, Eq)]
enum Value {
    Count(u64),
    Ms(u64),
}

/// `| what | 30 s | what happens | `file` `NAME` |`
struct Row<'a> {
    told: Value,
    file: &'a str,
    name: &'a str,
}

impl<'a> Row<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let &[_, told, _, place, ""] = &cells[..] else {
            return None;
        };
        let mut names = place.split('`').filter(|name| !name.trim().is_empty());
        let (file, name) = (names.next()?, names.next()?);
        let (number, unit) = told.split_once(' ').unwrap_or((told, ""));
        let number: u64 = number.parse().ok()?;
        let told = match unit {
            "s" => Value::Ms(number * 1000),
            "ms" => Value::Ms(number),
            _ => Value::Count(number),
        };
        Some(Self { told, file, name })
    }
}

/// The expression of `const NAME: T = …;`.
fn constant<'a>(code: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = code.split_once(&format!("const {name}: "))?;
    let (_, expression) = after.split_once(" = ")?;
    expression.split(';').next()
}

fn value(expression: &str) -> Option<Value> {
    // Shorter where tests wait for it; what a release has is told. Sizes are told in their unit.
    for call in ["failpoint::margin(", "MiB("] {
        if let Some(inner) = expression.strip_prefix(call) {
            return value(inner.strip_suffix(')')?);
        }
    }
    for (call, ms) in [("Duration::from_secs(", 1000), ("Duration::from_millis(", 1)] {
        if let Some(inner) = expression.strip_prefix(call) {
            return Some(Value::Ms(sum(inner.strip_suffix(')')?)? * ms));
        }
    }
    sum(expression).map(Value::Count)
}

/// Sums of products of numbers, of which one may be shifted: no constant here is anything else.
fn sum(expression: &str) -> Option<u64> {
    let number = |text: &str| text.trim().replace('_', "").parse::<u64>().ok();
    let product = |text: &str| text.split('*').map(number).product::<Option<u64>>();
    match expression.split_once("<<") {
        Some((base, by)) => Some(number(base)? << number(by)?),
        None => expression.split('+').map(product).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_read_as_the_compiler_reads_them() {
        let code = "/// x\npub(crate) const A_MAX: usize = 1 << 20;\nconst B: Duration = Duration::from_secs(24 * 3600);\n";
        assert_eq!(
            constant(code, "A_MAX").and_then(value),
            Some(Value::Count(1 << 20))
        );
        assert_eq!(constant(code, "B").and_then(value), Some(Value::Ms(86_400_000)));
        assert_eq!(value("253 + 1 + 5"), Some(Value::Count(259)));
        assert_eq!(value("16_384"), Some(Value::Count(16_384)));
        assert_eq!(
            value("failpoint::margin(Duration::from_secs(60))"),
            Some(Value::Ms(60_000))
        );
        assert_eq!(value("MiB(16 << 20)"), Some(Value::Count(16 << 20)));
        assert_eq!(constant(code, "C"), None);
    }

    #[test]
    fn a_row_names_a_value_and_a_constant() {
        let row = Row::of("| a body | 30 s | 413 | `api/src/body.rs` `A_MAX` |").unwrap();
        assert_eq!(
            (row.told, row.file, row.name),
            (Value::Ms(30_000), "api/src/body.rs", "A_MAX")
        );
        assert!(Row::of("|---|---|---|---|").is_none());
        assert!(Row::of("| Bound | Value | Beyond it | Where |").is_none());
    }

    #[test]
    fn the_page_tells_what_the_code_says() {
        assert_eq!(wrong(&crate::shell::root()).unwrap(), Vec::<String>::new());
    }
}
