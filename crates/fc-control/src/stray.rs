//! Processes that nobody knows any more, and how they are found.
use std::fs;

/// Processes that were started with the words `flag` and `value` after one another: those whose record was not finished when
/// their daemon died. Nobody else's have an execution's id there.
pub(crate) fn started_with(flag: &str, value: &str) -> Vec<u32> {
    let wanted = format!("\0{flag}\0{value}\0").into_bytes();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.windows(wanted.len()).any(|part| part == wanted)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_what_it_was_started_with() {
        let id = uuid::Uuid::new_v4().to_string();
        let mut command = std::process::Command::new("/bin/sh");
        let mut child = command
            .args(["-c", "read x", "--id", &id, "more"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // A program has its words a moment after it is that program.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while started_with("--id", &id) != [child.id()] {
            assert!(std::time::Instant::now() < deadline);
        }
        assert!(started_with("--id", &id[..8]).is_empty());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(started_with("--id", &id).is_empty());
    }
}
