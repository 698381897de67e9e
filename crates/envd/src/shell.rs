//! Texts evaluated by root's login shell, as within double quotes, with nothing in them run (ENV, contract 4.2).
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use http::StatusCode;
use linux::spawn::{Manner, spawn};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::unix::pipe;
use wire::host_calls::{Evaluate, Evaluated};

use crate::access::Refusal;
use crate::http::Envd;
use crate::random;
use crate::users::User;

/// A login reads some files; one that takes longer waits for something that does not come.
const WITHIN: Duration = Duration::from_secs(30);
/// What a value may come to.
const VALUE_BYTES_MAX: usize = 1 << 20;
/// What is told of a shell's complaint.
const COMPLAINT_BYTES_MAX: usize = 4096;
/// Values of one step.
const VALUES_MAX: usize = 1000;
/// User code is ended before envd when memory is short.
const OOM_SCORE_ADJ: i16 = 100;

/// Evaluates one value after the other, each by a shell of its own, so that none changes another.
pub(crate) async fn evaluate(envd: &Envd, step: Evaluate) -> Result<Evaluated, Refusal> {
    if step.values.len() > VALUES_MAX {
        return Err(Refusal::bad(format!(
            "a step sets at most {VALUES_MAX} variables"
        )));
    }
    let root = User::find("root").unwrap_or_else(|| User {
        name: "root".to_owned(),
        uid: 0,
        gid: 0,
        home: "/root".to_owned(),
    });
    let mut env = envd.settings().bare_env_of(&root);
    env.extend(step.known);
    if let Some(odd) = env
        .iter()
        .find(|(name, value)| !is_name(name) || value.contains('\0'))
    {
        return Err(Refusal::bad(format!("'{}' is no variable", odd.0)));
    }
    let mut values = Vec::with_capacity(step.values.len());
    for (name, text) in step.values {
        if !is_name(&name) || text.contains('\0') {
            return Err(Refusal::bad(format!(
                "'{name}' is no name of a variable, or its value holds a NUL byte"
            )));
        }
        let value = if needs_shell(&text) {
            let value = expand(envd, &root, &env, &text);
            let value = tokio::time::timeout(WITHIN, value).await;
            let late = |_| {
                Err(format!(
                    "root's login shell did not end within {} s",
                    WITHIN.as_secs()
                ))
            };
            value.unwrap_or_else(late).map_err(|why| {
                Refusal::new(
                    StatusCode::BAD_REQUEST,
                    format!("the value of {name} cannot be evaluated: {why}"),
                )
            })?
        } else {
            text
        };
        values.push((name, value));
    }
    Ok(Evaluated { values })
}

/// Whether anything in a text could become something else.
fn needs_shell(text: &str) -> bool {
    text.contains('$')
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// A script that says a text after a mark. What a login says by itself comes before it.
fn script(mark: &str, text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 16);
    let mut rest = text.chars().peekable();
    while let Some(letter) = rest.next() {
        // Everything but a variable stands for itself.
        if matches!(letter, '\\' | '"' | '`') || (letter == '$' && rest.peek() == Some(&'(')) {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    format!("printf '%s' {mark} \"{escaped}\"")
}

async fn expand(
    envd: &Envd,
    root: &User,
    env: &BTreeMap<String, String>,
    text: &str,
) -> Result<String, String> {
    let mark = random::hex().map_err(|error| error.to_string())?;
    let failed = |error: std::io::Error| format!("/bin/bash does not start: {error}");
    let pair = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(std::io::Error::from);
    let ((out, their_out), (complaint, their_complaint)) = (pair().map_err(failed)?, pair().map_err(failed)?);
    let mut command = Command::new("/bin/bash");
    command
        .args(["-l", "-c", &script(&mark, text)])
        .env_clear()
        .envs(env)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(their_out)
        .stderr(their_complaint);
    let manner = Manner {
        terminal: false,
        oom_score_adj: OOM_SCORE_ADJ,
    };
    let child = spawn(command, &root.identity(), manner).map_err(failed)?;
    let session = Session(child.id());
    let mut ended = envd.reaper.watch(child.id());
    let receive = |fd| pipe::Receiver::from_owned_fd(fd).map_err(failed);
    let (said, complained) = tokio::join!(
        // What a login says by itself, and the mark, need some room as well.
        read(receive(out)?, 2 * VALUE_BYTES_MAX),
        read(receive(complaint)?, COMPLAINT_BYTES_MAX),
    );
    let status = ended
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|status| *status);
    session.end();
    if status.and_then(|status| status.exit_status()) != Some(0) {
        let complaint = String::from_utf8_lossy(&complained).trim().to_owned();
        return Err(format!("root's login shell says: {complaint}"));
    }
    let said = String::from_utf8_lossy(&said);
    match said.rfind(&mark).map(|at| &said[at + mark.len()..]) {
        Some(value) if value.len() <= VALUE_BYTES_MAX => Ok(value.to_owned()),
        _ => Err(format!("it comes to more than {VALUE_BYTES_MAX} bytes")),
    }
}

/// Reads to the end, and keeps the beginning.
async fn read(mut from: impl AsyncRead + Unpin, bytes_max: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut piece).await {
        let room = bytes_max.saturating_sub(kept.len()).min(read);
        kept.extend_from_slice(&piece[..room]);
    }
    kept
}

/// A shell and what it has started, which end with us.
struct Session(u32);

impl Session {
    /// Its number is another's from now on.
    fn end(mut self) {
        self.0 = 0;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.0).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a shell sees it that knows two variables.
    fn check(text: &str, value: &str) {
        let out = Command::new("/bin/bash")
            .args(["-c", &script("MARK", text)])
            .env_clear()
            .envs([("HOME", "/root"), ("X", "a b")])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(out.stdout).unwrap(),
            format!("MARK{value}"),
            "{text}"
        );
    }

    #[test]
    fn variables_are_expanded_and_everything_else_stays() {
        check("$HOME/bin", "/root/bin");
        check("${X}-$X", "a b-a b");
        check("${NONE:-other} $NONE.", "other .");
        check("${#X} ${X/a/c}", "3 c b");
        check("$(id) `id` $((1+1)) ${NONE:-$(id)}", "$(id) `id` $((1+1)) $(id)");
        check(
            "\\$HOME \\n \"quoted\" 'single' \\",
            "\\/root \\n \"quoted\" 'single' \\",
        );
        check("a\nb\n\n", "a\nb\n\n");
        check("100% $ ; | & > * ? ~ !x", "100% $ ; | & > * ? ~ !x");
    }

    #[test]
    fn only_what_may_change_is_given_to_a_shell() {
        assert!(!needs_shell("plain \\ ` \" text"));
        assert!(needs_shell("$X"));
    }
}
