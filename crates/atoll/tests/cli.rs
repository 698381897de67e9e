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

#[test]
fn what_the_daemon_does_fails_in_words_where_none_runs() {
    let data = std::env::temp_dir().join(format!("atoll-cli-control-{}", std::process::id()));
    std::fs::create_dir_all(&data).expect("a directory");
    let path = data.to_str().expect("UTF-8");
    for arguments in [
        &["gc", "--data-dir", path][..],
        &["image", "list", "--data-dir", path],
        &["image", "forget", "a/b:1", "--data-dir", path],
        &["image", "import", path, "--data-dir", path],
        &["template", "import-host", "--data-dir", path],
    ] {
        let ended = atoll(arguments).output().expect("atoll");
        let words = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {words}");
        assert!(ended.stdout.is_empty(), "{arguments:?}");
        assert!(words.contains("no daemon"), "{arguments:?}: {words}");
    }
    let _ = std::fs::remove_dir_all(data);
}

#[test]
fn an_export_goes_nowhere_that_is_taken() {
    let taken = std::env::temp_dir();
    let taken = taken.to_str().expect("UTF-8");
    let ended = atoll(&["sandbox", "export", "i0", "--output", taken])
        .env("E2B_API_URL", "http://127.0.0.1:1")
        .env("E2B_SANDBOX_URL", "http://127.0.0.1:1")
        .env("E2B_API_KEY", "e2b_00")
        .output()
        .expect("atoll");
    let words = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended.stdout.is_empty() && words.contains("is there already"),
        "{words}"
    );
}
