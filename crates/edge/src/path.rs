//! Which of envd's paths are not for the world (contract 1.4).
use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// First segments of envd's control paths. `/host/` is how the node talks to envd, over the same socket through
/// which the edge reaches it: what follows must never come from a client.
const CONTROL: [&str; 8] = [
    "collapse", "freeze", "fsfreeze", "fsthaw", "host", "init", "unfreeze", "upgrade",
];

/// Rounds of percent-decoding: envd decodes once; the others are for whoever else decodes on the way.
const DECODINGS_MAX: usize = 4;

/// Whether a path on envd's port is to be answered as if it did not exist. Looks at the path as any server might
/// read it: decoded, with `//`, `.` and `..` resolved, in any case, with `\` for `/` and `;…` cut off.
pub(crate) fn is_control(path: &str) -> bool {
    let path = decoded(path);
    let (mut first, mut depth) = ("", 0usize);
    for segment in path.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." => depth = depth.saturating_sub(1),
            name => {
                if depth == 0 {
                    first = name;
                }
                depth += 1;
            }
        }
    }
    let name = first.split(';').next().unwrap_or_default().trim();
    depth > 0 && CONTROL.iter().any(|control| control.eq_ignore_ascii_case(name))
}

fn decoded(path: &str) -> Cow<'_, str> {
    let mut path = Cow::Borrowed(path);
    for _ in 0..DECODINGS_MAX {
        if !path.contains('%') {
            break;
        }
        let next = percent_decode_str(&path).decode_utf8_lossy().into_owned();
        path = Cow::Owned(next);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_paths_are_found_however_they_are_written() {
        for path in [
            "/init",
            "/init/",
            "//init",
            "/./init",
            "/x/../init",
            "/x/y/../../init",
            "/../init",
            "/%69nit",
            "/%2569nit",
            "/%2finit",
            "/x/%2e%2e/init",
            "/INIT",
            "/init;v=1",
            "/init%20",
            "/\\init",
            "/init/x",
            "/freeze",
            "/fsfreeze",
            "/fsthaw",
            "/unfreeze",
            "/upgrade",
            "/collapse",
            "/host",
            "/host/logs",
            "/host//x",
            "/x/..//host/logs",
            "/%68ost/logs",
        ] {
            assert!(is_control(path), "{path}");
        }
    }

    #[test]
    fn other_paths_are_let_through() {
        for path in [
            "/",
            "",
            "*",
            "/health",
            "/files",
            "/initialise",
            "/x/init",
            "/init/..",
            "/init/../health",
            "/process.Process/Start",
            "/%zz",
            "/files/%ff",
        ] {
            assert!(!is_control(path), "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_path_makes_it_panic(path in ".{0,200}") {
            let _ = is_control(&path);
        }
        #[test]
        fn detours_do_not_hide_a_control_path(detour in "(/|/\\.|/[a-z]{1,5}/\\.\\.|/\\.\\.){0,8}") {
            let path = format!("{detour}/host/x");
            proptest::prop_assert!(is_control(&path), "{}", path);
        }
    }
}
