//! The host's processor, of which guests that run on it know.
use std::fs;

use sha2::{Digest as _, Sha256};

/// Its kind, and a number that changes with what it can do: two that have the same name may offer different things where a hypervisor
/// below them hides some. Memory goes on only where both are what they were.
#[must_use]
pub fn processor() -> String {
    told(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn told(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(": ")?.1.trim().to_owned())
    };
    let kind = [
        "vendor_id",
        "cpu family",
        "model\t",
        "stepping",
        "model name",
        "microcode",
    ];
    let mut parts: Vec<String> = kind.into_iter().filter_map(field).collect();
    let can = Sha256::digest(field("flags").unwrap_or_default());
    parts.push(can.iter().take(8).map(|byte| format!("{byte:02x}")).collect());
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_can_do_something_else_is_another() {
        let info = |flags: &str| {
            format!("vendor_id\t: V\nmodel\t\t: 1\nmodel name\t: M\nflags\t\t: {flags}\n\nvendor_id\t: W\n")
        };
        let (one, other) = (told(&info("fpu avx2")), told(&info("fpu")));
        assert!(one.starts_with("V/1/M/") && other.starts_with("V/1/M/"), "{one}");
        assert_ne!(one, other);
        assert_eq!(one, told(&info("fpu avx2")));
        assert!(processor().contains('/'));
    }
}
