//! What a program gets to see of the caller's environment.
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use crate::arguments::{Arguments, Shell};
use crate::users::User;

/// Where programs are found, whatever the caller's path says.
const SECURE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What is kept: how to speak and draw.
const KEPT: [&str; 8] = [
    "COLORTERM",
    "COLUMNS",
    "DISPLAY",
    "LANG",
    "LANGUAGE",
    "LINES",
    "TERM",
    "TZ",
];
/// What makes another program of the program, and is not kept even where everything else is.
const DANGEROUS: [&str; 12] = [
    "BASH_ENV",
    "BASHOPTS",
    "CDPATH",
    "ENV",
    "IFS",
    "PERL5LIB",
    "PERL5OPT",
    "PYTHONHOME",
    "PYTHONPATH",
    "RUBYLIB",
    "RUBYOPT",
    "SHELLOPTS",
];

/// The environment of a program that `target` runs for `caller`.
pub(crate) fn of(
    callers: impl Iterator<Item = (OsString, OsString)>,
    arguments: &Arguments,
    caller: &User,
    target: &User,
    shell: &str,
) -> BTreeMap<OsString, OsString> {
    let keeps_all = arguments.keeps_environment && arguments.shell != Some(Shell::Login);
    let mut environment: BTreeMap<OsString, OsString> =
        callers.filter(|(name, _)| is_kept(name, keeps_all)).collect();
    let mut set = |name: &str, value: &str| {
        environment.insert(name.into(), value.into());
    };
    set("PATH", SECURE_PATH);
    for name in ["USER", "LOGNAME"] {
        set(name, &target.name);
    }
    if !keeps_all || arguments.sets_home {
        set("HOME", &target.home);
    }
    if arguments.shell != Some(Shell::Callers) {
        set("SHELL", shell);
    }
    set("SUDO_USER", &caller.name);
    set("SUDO_UID", &caller.uid.to_string());
    set("SUDO_GID", &caller.gid.to_string());
    set(
        "SUDO_COMMAND",
        &arguments.command.join(OsStr::new(" ")).to_string_lossy(),
    );
    environment.extend(arguments.variables.iter().cloned());
    environment
}

fn is_kept(name: &OsStr, keeps_all: bool) -> bool {
    let Some(name) = name.to_str() else { return false };
    if DANGEROUS.contains(&name) || name.starts_with("LD_") || name.starts_with("BASH_FUNC_") {
        return false;
    }
    keeps_all || KEPT.contains(&name) || name.starts_with("LC_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, uid: u32) -> User {
        User {
            name: name.into(),
            uid,
            gid: uid,
            home: format!("/home/{name}"),
        }
    }

    fn made(arguments: &Arguments) -> BTreeMap<OsString, OsString> {
        let callers = [
            ("PATH", "/tmp"),
            ("LD_PRELOAD", "x"),
            ("TERM", "xterm"),
            ("SECRET", "s"),
            ("HOME", "/old"),
        ];
        let callers = callers
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()));
        of(
            callers,
            arguments,
            &user("user", 1000),
            &user("other", 1001),
            "/bin/bash",
        )
    }

    #[test]
    fn little_is_kept_and_the_path_is_ours() {
        let env = made(&Arguments {
            command: vec!["id".into(), "-u".into()],
            ..Arguments::default()
        });
        let get = |name: &str| env.get(OsStr::new(name)).map(|value| value.to_str().unwrap());
        assert_eq!(
            (get("PATH"), get("TERM"), get("SECRET")),
            (Some(SECURE_PATH), Some("xterm"), None)
        );
        assert_eq!(
            (get("HOME"), get("USER"), get("SHELL")),
            (Some("/home/other"), Some("other"), Some("/bin/bash"))
        );
        assert_eq!(
            (get("SUDO_USER"), get("SUDO_UID"), get("SUDO_COMMAND")),
            (Some("user"), Some("1000"), Some("id -u"))
        );
    }

    #[test]
    fn a_kept_environment_is_kept_but_for_what_is_dangerous() {
        let keeping = Arguments {
            keeps_environment: true,
            ..Arguments::default()
        };
        let env = made(&keeping);
        assert_eq!(env[OsStr::new("SECRET")], "s");
        assert_eq!(env[OsStr::new("HOME")], "/old");
        assert_eq!(env[OsStr::new("PATH")], SECURE_PATH);
        assert!(!env.contains_key(OsStr::new("LD_PRELOAD")));
        let env = made(&Arguments {
            sets_home: true,
            ..keeping
        });
        assert_eq!(env[OsStr::new("HOME")], "/home/other");
    }

    #[test]
    fn what_is_set_on_the_command_line_counts() {
        let env = made(&Arguments {
            variables: vec![("TERM".into(), "dumb".into())],
            ..Arguments::default()
        });
        assert_eq!(env[OsStr::new("TERM")], "dumb");
    }
}
