//! What an account may be called (useradd(8)).

/// As the tools of most distributions have it.
const BYTES_MAX: usize = 32;

/// Whether an account can be made by this name.
pub(super) fn is_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
    let bytes = name.as_bytes();
    let Some((&first, rest)) = bytes.split_first() else {
        return false;
    };
    bytes.len() <= BYTES_MAX
        && is_letter(first)
        && rest.iter().all(|&byte| is_letter(byte) || byte == b'-')
        // A number would be mistaken for an account's, and dots for a directory's.
        && !bytes.iter().all(u8::is_ascii_digit)
        && !matches!(name, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_useradd_takes() {
        for name in ["user", "_x", "a.b-c_1", "Node", "0x", &"a".repeat(32)] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "123",
            "-a",
            "a b",
            "a:b",
            "a/b",
            "a\n",
            "ä",
            "a$",
            "../x",
            &"a".repeat(33),
        ] {
            assert!(!is_name(name), "{name}");
        }
    }
}
