use base64::Engine as _;
use serde_json::json;

use crate::client::{Envd, shell};

#[test]
fn a_command_tells_its_output_and_then_its_end() {
    let envd = Envd::start();
    let (stdout, stderr, end) = envd.run("echo out; echo err >&2; exit 3");
    assert_eq!((stdout.as_str(), stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(
        end,
        json!({ "exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3" })
    );
    let (stdout, ..) = envd.run("head -c 1000000 /dev/zero | tr '\\0' x");
    assert_eq!(stdout.len(), 1_000_000);
}

#[test]
fn a_missing_program_is_the_commands_failure() {
    let envd = Envd::start();
    let request = json!({ "process": { "cmd": "/no/such/program", "args": [] } });
    let (_, stderr, end) = envd.stream("process.Process/Start", &request, &[]).until_end();
    assert!(stderr.contains("not found"), "{stderr}");
    assert_eq!(end["exitCode"], 127);
}

#[test]
fn what_cannot_start_says_why() {
    let envd = Envd::start();
    let refused = |request: &serde_json::Value, headers: &[(&str, &str)]| {
        let error = envd
            .stream("process.Process/Start", request, headers)
            .next()
            .unwrap_err();
        (
            error["error"]["code"].as_str().unwrap().to_owned(),
            error["error"]["message"].as_str().unwrap().to_owned(),
        )
    };
    let nowhere = json!({ "process": { "cmd": "/bin/true", "cwd": "/no/where" } });
    assert_eq!(
        refused(&nowhere, &[]),
        ("invalid_argument".into(), "cwd '/no/where' does not exist".into())
    );
    let nobody = base64::engine::general_purpose::STANDARD.encode("no-such-user:");
    let headers = [("Authorization", &*format!("Basic {nobody}"))];
    assert_eq!(
        refused(&shell("true"), &headers),
        (
            "unauthenticated".into(),
            "invalid username: 'no-such-user'".into()
        )
    );
}

#[test]
fn a_process_outlives_its_client_and_others_can_join() {
    let envd = Envd::start();
    let fifo = envd.at("fifo");
    let mut first = envd.stream(
        "process.Process/Start",
        &shell(&format!("mkfifo {0}; cat {0}", fifo.display())),
        &[],
    );
    let pid = first.pid();
    drop(first);
    let selector = json!({ "process": { "pid": pid } });
    let mut second = envd.stream("process.Process/Connect", &selector, &[]);
    assert_eq!(second.pid(), pid);
    while !fifo.exists() {
        std::thread::yield_now();
    }
    std::fs::write(&fifo, "later").unwrap();
    let (stdout, _, end) = second.until_end();
    assert_eq!(
        (stdout.as_str(), end["exitCode"].as_i64()),
        ("later", None),
        "an exit code of zero is left out"
    );
    assert_eq!(end["exited"], true);
    // Who comes late still learns how it ended.
    let mut late = envd.stream("process.Process/Connect", &selector, &[]);
    assert_eq!(late.pid(), pid);
    assert_eq!(late.until_end().2["status"], "exit status 0");
}

#[test]
fn a_kill_ends_a_command_whose_output_others_hold() {
    let envd = Envd::start();
    let mut stream = envd.stream(
        "process.Process/Start",
        &shell("sleep 600 & echo ready; wait"),
        &[],
    );
    let pid = stream.pid();
    assert!(stream.next().unwrap()["event"]["data"].is_object());
    let listed = envd.call("process.Process/List", &json!({})).unwrap();
    assert_eq!(listed["processes"][0]["pid"], pid);
    let kill = json!({ "process": { "pid": pid }, "signal": "SIGNAL_SIGKILL" });
    envd.call("process.Process/SendSignal", &kill).unwrap();
    let (.., end) = stream.until_end();
    assert_eq!(
        end,
        json!({ "exitCode": -1, "status": "signal: killed", "error": "signal: killed" })
    );
    let (code, message) = envd.call("process.Process/SendSignal", &kill).unwrap_err();
    assert_eq!(
        (code.as_str(), message),
        ("not_found", format!("process with pid {pid} not found"))
    );
}

#[test]
fn input_is_written_in_order_and_ends_when_closed() {
    let envd = Envd::start();
    let request = json!({ "process": { "cmd": "/bin/cat" }, "tag": "cat" });
    let mut stream = envd.stream("process.Process/Start", &request, &[]);
    let pid = stream.pid();
    let selector = json!({ "tag": "cat" });
    for text in ["one ", "two"] {
        let data = base64::engine::general_purpose::STANDARD.encode(text);
        envd.call(
            "process.Process/SendInput",
            &json!({ "process": selector, "input": { "stdin": data } }),
        )
        .unwrap();
    }
    for _ in 0..2 {
        envd.call(
            "process.Process/CloseStdin",
            &json!({ "process": { "pid": pid } }),
        )
        .unwrap();
    }
    assert_eq!(stream.until_end().0, "one two");
    let mut deaf = envd.stream("process.Process/Start", &shell("sleep 600"), &[]);
    let input = json!({ "process": { "pid": deaf.pid() }, "input": { "stdin": "eA==" } });
    let (code, message) = envd.call("process.Process/SendInput", &input).unwrap_err();
    assert_eq!(
        (&*code, &*message),
        ("internal", "error writing to stdin: stdin not enabled or closed")
    );
}

#[test]
fn the_deadline_of_a_call_is_its_processs_too() {
    let envd = Envd::start();
    let mut stream = envd.stream(
        "process.Process/Start",
        &shell("sleep 600"),
        &[("Connect-Timeout-Ms", "200")],
    );
    let pid = stream.pid();
    let mut joined = envd.stream(
        "process.Process/Connect",
        &json!({ "process": { "pid": pid } }),
        &[],
    );
    assert_eq!(joined.pid(), pid);
    assert_eq!(joined.until_end().2["status"], "signal: killed");
    let mut last = stream.next();
    while last.is_ok() {
        last = stream.next();
    }
    assert_eq!(last.unwrap_err()["error"]["code"], "deadline_exceeded");
}

#[test]
fn the_deadline_of_a_joining_call_is_its_own_alone() {
    let envd = Envd::start();
    let request = json!({ "process": { "cmd": "/bin/cat" } });
    let mut stream = envd.stream("process.Process/Start", &request, &[]);
    let process = json!({ "process": { "pid": stream.pid() } });
    let within = [("Connect-Timeout-Ms", "100")];
    for (method, asked) in [
        ("process.Process/Connect", process.clone()),
        (
            "filesystem.Filesystem/WatchDir",
            json!({ "path": envd.dir.path() }),
        ),
    ] {
        let mut joined = envd.stream(method, &asked, &within);
        joined.next().expect("it begins");
        let over = joined.next().unwrap_err();
        assert_eq!(over["error"]["code"], "deadline_exceeded", "{method}");
    }
    envd.call("process.Process/CloseStdin", &process).unwrap();
    assert_eq!(stream.until_end().2["status"], "exit status 0");
}

#[test]
fn a_quiet_stream_shows_signs_of_life_as_often_as_asked() {
    let envd = Envd::start();
    let often = [("Keepalive-Ping-Interval", "1")];
    let request = json!({ "process": { "cmd": "/bin/cat" } });
    let mut stream = envd.stream("process.Process/Start", &request, &often);
    let pid = stream.pid();
    let alive = json!({ "event": { "keepalive": {} } });
    assert_eq!(stream.next().unwrap(), alive);
    let mut watch = envd.stream(
        "filesystem.Filesystem/WatchDir",
        &json!({ "path": envd.dir.path() }),
        &often,
    );
    assert_eq!(watch.next().unwrap(), json!({ "start": {} }));
    assert_eq!(watch.next().unwrap(), json!({ "keepalive": {} }));
    // What no clock can hold is as good as never.
    let never = [("Keepalive-Ping-Interval", "18446744073709551615")];
    let process = json!({ "process": { "pid": pid } });
    let mut joined = envd.stream("process.Process/Connect", &process, &never);
    assert_eq!(joined.pid(), pid);
    envd.call("process.Process/CloseStdin", &process).unwrap();
    assert_eq!(joined.until_end().2["status"], "exit status 0");
}

#[test]
fn who_does_not_listen_keeps_nobody_from_hearing_of_a_killed_programs_end() {
    let envd = Envd::start();
    let mut deaf = envd.stream("process.Process/Start", &shell("exec yes"), &[]);
    let pid = deaf.pid();
    let process = json!({ "process": { "pid": pid } });
    let mut listener = envd.stream("process.Process/Connect", &process, &[]);
    assert_eq!(listener.pid(), pid);
    let kill = json!({ "process": { "pid": pid }, "signal": "SIGNAL_SIGKILL" });
    envd.call("process.Process/SendSignal", &kill).unwrap();
    assert_eq!(listener.until_end().2["status"], "signal: killed");
    let listed = envd.call("process.Process/List", &json!({})).unwrap();
    assert_eq!(listed, json!({}));
    // And learns of it when it listens again.
    assert_eq!(deaf.until_end().2["status"], "signal: killed");
}

#[test]
fn signals_have_the_names_that_clients_know() {
    let envd = Envd::start();
    for (signal, name) in [
        ("USR1", "user defined signal 1"),
        ("XCPU", "CPU time limit exceeded"),
    ] {
        let (.., end) = envd.run(&format!("ulimit -c 0; kill -s {signal} $$"));
        assert_eq!(end["status"], format!("signal: {name}"));
    }
}

#[test]
fn a_script_without_an_interpreter_is_the_shells() {
    use std::os::unix::fs::PermissionsExt as _;
    let envd = Envd::start();
    std::fs::write(envd.at("script"), "echo \"ran $1\"; exit 5\n").unwrap();
    std::fs::set_permissions(envd.at("script"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let request = json!({ "process": { "cmd": envd.at("script"), "args": ["it"] } });
    let (stdout, _, end) = envd.stream("process.Process/Start", &request, &[]).until_end();
    assert_eq!((stdout.as_str(), end["exitCode"].as_i64()), ("ran it\n", Some(5)));
}

#[test]
fn input_may_be_larger_than_other_messages_up_to_its_own_bound() {
    let envd = Envd::start();
    let request = json!({ "process": { "cmd": "/bin/sh", "args": ["-c", "wc -c"] }, "tag": "count" });
    let mut stream = envd.stream("process.Process/Start", &request, &[]);
    stream.pid();
    let process = json!({ "tag": "count" });
    let send = |bytes: usize| {
        let data = base64::engine::general_purpose::STANDARD.encode(vec![b'x'; bytes]);
        let input = json!({ "process": process, "input": { "stdin": data } });
        envd.call("process.Process/SendInput", &input)
    };
    send(8 << 20).unwrap();
    // As many bytes in base64 as a message may have, and those around them.
    assert_eq!(send(12 << 20).unwrap_err().0, "resource_exhausted");
    envd.call("process.Process/CloseStdin", &json!({ "process": process }))
        .unwrap();
    assert_eq!(stream.until_end().0.trim(), (8 << 20).to_string());
}

#[test]
fn a_terminal_has_a_size_that_can_change() {
    let envd = Envd::start();
    let script = "stty size; read line; stty size";
    let request = json!({
        "process": { "cmd": "/bin/sh", "args": ["-c", script] },
        "pty": { "size": { "cols": 81, "rows": 25 } },
    });
    let mut stream = envd.stream("process.Process/Start", &request, &[]);
    let process = json!({ "pid": stream.pid() });
    let mut seen = String::new();
    let mut resized = false;
    while let Ok(message) = stream.next() {
        let data = message["event"]["data"]["pty"].as_str().unwrap_or_default();
        let bytes = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
        seen += &String::from_utf8_lossy(&bytes);
        if seen.contains("25 81") && !std::mem::replace(&mut resized, true) {
            let size = json!({ "process": process, "pty": { "size": { "cols": 100, "rows": 30 } } });
            envd.call("process.Process/Update", &size).unwrap();
            let input = json!({ "process": process, "input": { "pty": "Cg==" } });
            envd.call("process.Process/SendInput", &input).unwrap();
        }
    }
    assert!(seen.contains("30 100"), "{seen}");
}

#[test]
fn an_environment_is_what_was_asked_for_and_nothing_else() {
    let envd = Envd::start();
    envd.init(&json!({ "envVars": { "FROM_INIT": "1", "BOTH": "init" } }));
    let request =
        json!({ "process": { "cmd": "/usr/bin/env", "envs": { "OWN": "2", "BOTH": "own" }, "cwd": "/" } });
    let (stdout, ..) = envd.stream("process.Process/Start", &request, &[]).until_end();
    let mut names: Vec<&str> = stdout
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "BOTH",
            "E2B_SANDBOX",
            "FROM_INIT",
            "HOME",
            "LOGNAME",
            "OWN",
            "PATH",
            "USER"
        ]
    );
    assert!(stdout.contains("BOTH=own"));
}
