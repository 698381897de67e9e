//! `sudo` for a sandbox: whoever may be root becomes root, without a password (sudo(8) is what it follows).
//!
//! It is installed as `sudo`, owned by root and setuid, in sandboxes whose image brings none: a sandbox is one user's
//! machine, and its walls are elsewhere.
//!
//! ```text
//! arguments     what is asked for; what is not understood is refused by name
//! environment   what the program gets to see
//! sudoers       who else may, as /etc/sudoers and /etc/sudoers.d say
//! users         /etc/passwd and /etc/group, as in envd
//! ```
//!
//! **Invariants.** It decides by the real user, and only that: nothing that the caller brings along — environment,
//! arguments, working directory — decides for it. It becomes the program: its exit code and signals are the program's.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a command line program speaks to its user"
)]

mod arguments;
mod environment;
mod sudoers;
#[path = "../system_file.rs"]
#[cfg_attr(not(test), expect(dead_code, reason = "envd writes such files as well"))]
mod system_file;
#[path = "../users.rs"]
#[expect(dead_code, reason = "envd asks more of it")]
mod users;

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use rustix::process::{Gid, Uid};

use crate::arguments::{Arguments, Asked, Shell};
use crate::users::User;

/// The group whose members may be anybody, as in Debian.
const GROUP: &str = "sudo";
/// The user of a sandbox, who may too.
const USER: &str = "user";
const SHELL: &str = "/bin/sh";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(wrong) => {
            eprintln!("sudo: {wrong}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let arguments = match arguments::parse(std::env::args_os().skip(1))? {
        Asked::Run(arguments) => arguments,
        Asked::Help => {
            println!("{}", arguments::USAGE);
            return Ok(ExitCode::SUCCESS);
        }
        Asked::Version => {
            println!("Atoll sudo {}", env!("CARGO_PKG_VERSION"));
            return Ok(ExitCode::SUCCESS);
        }
        // There is no password, so there is nothing to remember or to forget.
        Asked::Nothing => return allow(&caller()?).map(|()| ExitCode::SUCCESS),
    };
    if !rustix::process::geteuid().is_root() {
        return Err("must be owned by uid 0 and have the setuid bit set".to_owned());
    }
    let caller = caller()?;
    allow(&caller)?;
    let (target, gid) = target(&arguments, &caller)?;
    let mut command = command(&arguments, &target);
    let own = std::env::vars_os();
    command.env_clear().envs(environment::of(
        own,
        &arguments,
        &caller,
        &target,
        &shell_of(&target),
    ));
    if arguments.shell == Some(Shell::Login) {
        command.current_dir(&target.home);
    }
    become_user(&target, gid).map_err(|error| format!("unable to become '{}': {error}", target.name))?;
    let error = command.exec();
    let program = command.get_program().to_string_lossy().into_owned();
    match error.kind() {
        io::ErrorKind::NotFound => Err(format!("{program}: command not found")),
        _ => Err(format!("unable to execute {program}: {error}")),
    }
}

/// Who asks. A number without a name is a caller too: root, at least, needs no entry.
fn caller() -> Result<User, String> {
    let uid = rustix::process::getuid().as_raw();
    let gid = rustix::process::getgid().as_raw();
    let nameless = || User {
        name: uid.to_string(),
        uid,
        gid,
        home: "/".to_owned(),
    };
    match User::of_uid(uid) {
        Some(user) => Ok(user),
        None if uid == 0 => Ok(User {
            name: "root".to_owned(),
            ..nameless()
        }),
        None => Err(format!("you do not exist in the passwd database (uid {uid})")),
    }
}

fn allow(caller: &User) -> Result<(), String> {
    let in_group = || {
        caller
            .identity()
            .groups
            .iter()
            .any(|gid| users::group_name(*gid) == GROUP)
    };
    if caller.uid == 0 || caller.name == USER || in_group() || sudoers::allow(caller) {
        Ok(())
    } else {
        Err(format!(
            "{} is neither '{USER}' nor in the group '{GROUP}', and /etc/sudoers.d does not name it",
            caller.name
        ))
    }
}

/// Whom the program runs as, and with which group.
fn target(arguments: &Arguments, caller: &User) -> Result<(User, u32), String> {
    let user = match (&arguments.user, &arguments.group) {
        (None, Some(_)) => caller.clone(),
        (name, _) => {
            let name = name.as_deref().unwrap_or("root");
            let found = match name.strip_prefix('#') {
                Some(uid) => uid.parse().ok().and_then(User::of_uid),
                None => User::find(name),
            };
            match found {
                Some(user) => user,
                None if name == "root" => User {
                    name: "root".to_owned(),
                    uid: 0,
                    gid: 0,
                    home: "/root".to_owned(),
                },
                None => return Err(format!("unknown user {name}")),
            }
        }
    };
    let gid = match &arguments.group {
        None => user.gid,
        Some(name) => group_of(name).ok_or_else(|| format!("unknown group {name}"))?,
    };
    Ok((user, gid))
}

/// The number of a group, by its name or as `#number`.
fn group_of(name: &str) -> Option<u32> {
    if let Some(gid) = name.strip_prefix('#') {
        return gid.parse().ok();
    }
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// The shell of a user.
fn shell_of(user: &User) -> String {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = accounts
        .lines()
        .find(|line| line.split(':').next() == Some(&user.name));
    let shell = line
        .and_then(|line| line.split(':').nth(6))
        .filter(|shell| !shell.is_empty());
    shell.unwrap_or(SHELL).to_owned()
}

/// The program, without its environment.
fn command(arguments: &Arguments, target: &User) -> Command {
    let (program, args) = match (arguments.shell, arguments.command.split_first()) {
        (None, Some((program, args))) => {
            let mut command = Command::new(program);
            command.args(args);
            return command;
        }
        (Some(Shell::Login) | None, command) => (shell_of(target), command),
        (Some(Shell::Callers), command) => {
            let own = std::env::var("SHELL").ok().filter(|shell| shell.starts_with('/'));
            (own.unwrap_or_else(|| shell_of(target)), command)
        }
    };
    let mut command = Command::new(&program);
    if arguments.shell == Some(Shell::Login) {
        command.arg0(format!("-{}", program.rsplit('/').next().unwrap_or(&program)));
    }
    if args.is_some() {
        command.arg("-c").arg(arguments::for_shell(&arguments.command));
    }
    command
}

/// Takes on an identity for good. This process has one thread, so what a thread takes on, the process does.
fn become_user(user: &User, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(gid));
    let groups: Vec<Gid> = user.identity().groups.into_iter().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}
