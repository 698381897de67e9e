//! What lets somebody be anybody without a password (sudoers(5)): read by our own sudo and by others.

/// The line that says so.
pub(super) fn line(name: &str) -> String {
    format!("{name} ALL=(ALL:ALL) NOPASSWD: ALL")
}

/// A file for it in `/etc/sudoers.d`. Of names with dots sudo thinks that they are an editor's.
pub(super) fn file_name(name: &str) -> String {
    format!("atoll-{}", name.replace('.', "=2E"))
}

/// Whether the files of `/etc/sudoers.d` count, as the main file says.
pub(super) fn includes_directory(main: &str) -> bool {
    main.lines().any(|line| {
        let mut words = line.split_whitespace();
        // The second begins like a comment, and is none.
        matches!(words.next(), Some("@includedir" | "#includedir"))
            && words
                .next()
                .is_some_and(|dir| dir.trim_end_matches('/') == "/etc/sudoers.d")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_counts_where_it_is_included() {
        assert!(includes_directory(
            "root ALL=(ALL) ALL\n@includedir /etc/sudoers.d\n"
        ));
        assert!(includes_directory("#includedir /etc/sudoers.d/"));
        assert!(!includes_directory(
            "# includedir /etc/sudoers.d\n#@includedir /etc/sudoers.d\n@includedir /other"
        ));
    }

    #[test]
    fn files_are_named_as_sudo_reads_them() {
        assert_eq!(file_name("a.b"), "atoll-a=2Eb");
        assert_ne!(file_name("a.b"), file_name("a_b"));
    }
}
