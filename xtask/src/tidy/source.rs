//! A Rust file by itself.

/// Longer files have grown a second noun. Tests of any length sit in files of their own.
const LINES_MAX: usize = 700;

/// Who may read the environment, besides those who wire and test: a `sudo` hands on what it was started with.
const READS_ENVIRONMENT: &[&str] = &[
    "crates/atoll/",
    "crates/testkit/",
    "crates/envd/src/sudo/",
    "xtask/",
];

/// What is wrong with a file; `is_root` for those of libraries and programs.
pub(super) fn wrong(name: &str, text: &str, is_root: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let is_test = name.contains("/tests/") || name.ends_with("tests.rs") || name.contains("/benches/");
    let is_generated = text.starts_with("// @generated");
    let lines = text.lines().count();
    if lines > LINES_MAX && !is_test && !is_generated {
        wrong.push(format!(
            "{name} has {lines} lines: split it by its nouns (at most {LINES_MAX})"
        ));
    }
    if is_root && !name.starts_with("crates/linux/") && !text.contains("#![forbid(unsafe_code)]") {
        wrong.push(format!("{name} does not open with #![forbid(unsafe_code)]"));
    }
    let first = text.lines().next().unwrap_or_default();
    if is_root && !first.starts_with("//!") {
        wrong.push(format!("{name} does not say in its first line what it is"));
    }
    // Tests read what their caller tells them.
    let ships = text.split("#[cfg(test)]").next().unwrap_or_default();
    let is_free = is_test || READS_ENVIRONMENT.iter().any(|free| name.starts_with(free));
    if name.contains("/src/") && !is_free && ships.contains("env::var") {
        wrong.push(format!(
            "{name} reads the environment: let atoll do it and hand it on"
        ));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_without_the_ban_on_unsafe_is_found() {
        let good = "//! x\n#![forbid(unsafe_code)]\n";
        assert_eq!(wrong("crates/api/src/lib.rs", good, true), Vec::<String>::new());
        assert_eq!(wrong("crates/api/src/lib.rs", "//! x\n", true).len(), 1);
        assert_eq!(
            wrong("crates/container/src/bin_launcher.rs", "//! x\n", true).len(),
            1
        );
        assert_eq!(wrong("crates/api/src/create.rs", "//! x\n", false).len(), 0);
        assert_eq!(wrong("crates/linux/src/lib.rs", "//! x\n", true).len(), 0);
    }

    #[test]
    fn a_file_that_grew_too_long_is_found() {
        let long = "x\n".repeat(LINES_MAX + 1);
        assert_eq!(wrong("crates/api/src/thing.rs", &long, false).len(), 1);
        assert_eq!(wrong("crates/api/tests/thing.rs", &long, false).len(), 0);
    }

    #[test]
    fn whoever_reads_the_environment_unasked_is_found() {
        let reads = "fn home() { std::env::var(\"HOME\"); }\n";
        assert_eq!(wrong("crates/node/src/node.rs", reads, false).len(), 1);
        assert_eq!(wrong("crates/atoll/src/settings.rs", reads, false).len(), 0);
        let tests = format!("#[cfg(test)]\nmod tests {{ {reads} }}\n");
        assert_eq!(wrong("crates/node/src/node.rs", &tests, false).len(), 0);
    }
}
