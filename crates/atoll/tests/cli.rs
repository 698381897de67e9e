//! What every command holds to, whatever it is asked for: no server is needed here.
use std::process::{Command, Output, Stdio};

fn atoll(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
    command.args(arguments);
    command
}

/// As before `| true`: whoever should read has gone.
fn unread(arguments: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let child = atoll(arguments)
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .expect("atoll");
    child.wait_with_output().expect("an end")
}

#[test]
fn a_reader_that_leaves_ends_a_command_quietly() {
    let data = std::env::temp_dir().join(format!("atoll-cli-{}", std::process::id()));
    let data = data.to_str().expect("UTF-8");
    for arguments in [
        &["completions", "bash"][..],
        &["gen-docs"],
        &["doctor", "--data-dir", data],
        &["doctor", "--json", "--data-dir", data],
        &["tls", "--data-dir", data],
    ] {
        let ended = unread(arguments);
        assert_eq!(
            (
                ended.status.code(),
                String::from_utf8_lossy(&ended.stderr).as_ref()
            ),
            (Some(141), ""),
            "{arguments:?}"
        );
    }
    let _ = std::fs::remove_dir_all(data);
}

#[test]
fn json_is_refused_where_what_is_printed_is_not_ours() {
    for arguments in [
        &["--json", "sandbox", "exec", "i0", "--", "true"][..],
        &["sandbox", "shell", "i0", "--json"],
        &["completions", "bash", "--json"],
    ] {
        let ended = atoll(arguments).output().expect("atoll");
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}");
        assert!(ended.stdout.is_empty(), "{arguments:?}");
        assert!(
            String::from_utf8_lossy(&ended.stderr).contains("--json"),
            "{arguments:?}"
        );
    }
}

#[test]
fn commands_beside_the_server_print_one_document() {
    let data = std::env::temp_dir().join(format!("atoll-cli-json-{}", std::process::id()));
    let path = data.to_str().expect("UTF-8");
    for (arguments, key) in [
        (&["tls", "--json", "--data-dir", path][..], "certificate"),
        (&["down", "--json", "--data-dir", path], "ended"),
        (&["status", "--json", "--data-dir", path], "running"),
        (&["doctor", "--json", "--data-dir", path], "checks"),
    ] {
        let ended = atoll(arguments).output().expect("atoll");
        let document: serde_json::Value = serde_json::from_slice(&ended.stdout).expect("one document");
        assert!(document.get(key).is_some(), "{arguments:?}: {document}");
    }
    let _ = std::fs::remove_dir_all(data);
}

#[test]
fn help_tells_the_exit_codes() {
    let help = atoll(&["--help"]).output().expect("atoll");
    let help = String::from_utf8_lossy(&help.stdout);
    for code in ["`0`", "`1`", "`2`", "`130`", "`141`"] {
        assert!(help.contains(code), "{code}");
    }
}
