//! What is asked for.
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

pub(crate) const USAGE: &str = "usage: sudo [-nEHS] [-u user] [-g group] [-i | -s] [VAR=value]... [--] [command [arg]...]\n       sudo -h | -V | -v | -k | -K";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Run(Arguments),
    /// To remember or forget a password.
    Nothing,
    Help,
    Version,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Arguments {
    pub(crate) user: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) shell: Option<Shell>,
    /// The caller's environment stays, as far as that is safe.
    pub(crate) keeps_environment: bool,
    pub(crate) sets_home: bool,
    pub(crate) variables: Vec<(OsString, OsString)>,
    pub(crate) command: Vec<OsString>,
}

/// A shell around the program, or instead of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shell {
    /// Of the target user, as if logged in.
    Login,
    /// Whatever shell the caller uses.
    Callers,
}

/// Reads the command line.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Asked, String> {
    let mut asked = Arguments::default();
    let mut without_program = None;
    let mut rest = arguments.peekable();
    while let Some(argument) = rest.peek().cloned() {
        let text = argument.to_string_lossy().into_owned();
        if text == "--" {
            rest.next();
            break;
        }
        let Some(option) = text.strip_prefix('-').filter(|option| !option.is_empty()) else {
            break;
        };
        rest.next();
        let letters = match option.strip_prefix('-') {
            Some(long) => match letter_of(long) {
                Some(letters) => letters,
                None => return Err(format!("unknown option --{long}\n{USAGE}")),
            },
            None => option.to_owned(),
        };
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            match letter {
                'E' => asked.keeps_environment = true,
                'H' => asked.sets_home = true,
                'i' => asked.shell = Some(Shell::Login),
                's' => asked.shell = Some(Shell::Callers),
                // There is no password to ask for, from wherever.
                'n' | 'S' => {}
                'k' | 'K' | 'v' => without_program = Some(Asked::Nothing),
                'h' => return Ok(Asked::Help),
                'V' => return Ok(Asked::Version),
                'u' | 'g' => {
                    let attached: String = letters.by_ref().collect();
                    let value = if attached.is_empty() {
                        let next = rest
                            .next()
                            .ok_or_else(|| format!("option -{letter} needs a value\n{USAGE}"))?;
                        next.into_string()
                            .map_err(|_| format!("the value of -{letter} is not UTF-8"))?
                    } else {
                        attached
                    };
                    let of = if letter == 'u' {
                        &mut asked.user
                    } else {
                        &mut asked.group
                    };
                    *of = Some(value);
                }
                other => return Err(format!("unknown option -{other}\n{USAGE}")),
            }
        }
    }
    while let Some(variable) = rest.peek().and_then(|argument| variable(argument)) {
        asked.variables.push(variable);
        rest.next();
    }
    asked.command = rest.collect();
    match (asked.command.is_empty() && asked.shell.is_none(), without_program) {
        (false, _) => Ok(Asked::Run(asked)),
        (true, Some(nothing)) => Ok(nothing),
        (true, None) => Err(format!("there is no command\n{USAGE}")),
    }
}

/// A long option as letters, with its value attached.
fn letter_of(long: &str) -> Option<String> {
    if let Some((name, value)) = long.split_once('=') {
        let letter = match name {
            "user" => "u",
            "group" => "g",
            _ => return None,
        };
        return Some(format!("{letter}{value}"));
    }
    let letter = match long {
        "user" => "u",
        "group" => "g",
        "preserve-env" => "E",
        "set-home" => "H",
        "login" => "i",
        "shell" => "s",
        "non-interactive" => "n",
        "stdin" => "S",
        "reset-timestamp" => "k",
        "remove-timestamp" => "K",
        "validate" => "v",
        "help" => "h",
        "version" => "V",
        _ => return None,
    };
    Some(letter.to_owned())
}

fn variable(argument: &OsStr) -> Option<(OsString, OsString)> {
    let bytes = argument.as_bytes();
    let equals = bytes.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (&bytes[..equals], &bytes[equals + 1..]);
    let is_name = !name.is_empty()
        && !name[0].is_ascii_digit()
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    is_name.then(|| {
        (
            OsStr::from_bytes(name).to_owned(),
            OsStr::from_bytes(value).to_owned(),
        )
    })
}

/// A command as one line for a shell, every word as it is; only `$` keeps its meaning, as sudo(8) has it.
pub(crate) fn for_shell(command: &[OsString]) -> OsString {
    let mut line = Vec::new();
    for (index, word) in command.iter().enumerate() {
        if index > 0 {
            line.push(b' ');
        }
        for byte in word.as_bytes() {
            if byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"_-$".contains(byte) {
                line.push(b'\\');
            }
            line.push(*byte);
        }
    }
    OsString::from_vec(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Asked, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn run(line: &str) -> Arguments {
        match asked(line) {
            Ok(Asked::Run(arguments)) => arguments,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let arguments = run("-nE -u user A=1 B=x=y id -u -n");
        assert_eq!(arguments.user.as_deref(), Some("user"));
        assert!(arguments.keeps_environment);
        assert_eq!(
            arguments.variables,
            [("A".into(), "1".into()), ("B".into(), "x=y".into())]
        );
        assert_eq!(arguments.command, ["id", "-u", "-n"]);
        assert_eq!(run("-- -x").command, ["-x"]);
        assert_eq!(run("--user=a --group b c").group.as_deref(), Some("b"));
        assert_eq!(run("-ua b").user.as_deref(), Some("a"));
        assert_eq!(run("1=2").command, ["1=2"]);
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        assert!(asked("-x id").unwrap_err().contains("unknown option -x"));
        assert!(
            asked("--edit file")
                .unwrap_err()
                .contains("unknown option --edit")
        );
        assert!(
            asked("--preserve-env=A id")
                .unwrap_err()
                .contains("--preserve-env=A")
        );
        assert!(asked("-u").unwrap_err().contains("needs a value"));
        assert!(asked("").unwrap_err().contains("no command"));
    }

    #[test]
    fn a_shell_needs_no_command_and_a_password_no_program() {
        assert_eq!(run("-i").shell, Some(Shell::Login));
        assert_eq!(run("-s ls").command, ["ls"]);
        assert_eq!(asked("-v"), Ok(Asked::Nothing));
        assert_eq!(asked("-k"), Ok(Asked::Nothing));
        assert_eq!(run("-k id").command, ["id"]);
    }

    #[test]
    fn words_reach_the_shell_as_they_are() {
        let words = ["echo", "a b;c", "$HOME", "ü'x"].map(OsString::from);
        assert_eq!(for_shell(&words), OsString::from(r"echo a\ b\;c $HOME ü\'x"));
    }
}
