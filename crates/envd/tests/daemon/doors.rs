use serde_json::json;

use crate::client::{Envd, shell};

#[test]
fn inside_there_is_no_init() {
    let envd = Envd::start();
    assert_eq!(envd.ask_inside("GET", "/health").status, 204);
    for target in ["/init", "/host/shutdown", "/host/logs"] {
        assert_eq!(envd.ask_inside("POST", target).status, 404, "{target}");
    }
}

#[test]
fn a_token_closes_everything_but_what_checks_for_itself() {
    let envd = Envd::start();
    envd.init(&json!({ "accessToken": "secret", "defaultUser": "root" }));
    assert_eq!(envd.ask("GET", "/health", &[], b"").status, 204);
    let closed = envd.ask("GET", "/envs", &[], b"");
    assert_eq!(closed.status, 401);
    assert!(
        closed.message().starts_with("unauthorized access"),
        "{}",
        closed.message()
    );
    assert_eq!(
        envd.ask(
            "POST",
            "/process.Process/List",
            &[("Content-Type", "application/json")],
            b"{}"
        )
        .status,
        401
    );
    assert_eq!(
        envd.ask("GET", "/envs", &[("X-Access-Token", "secret")], b"")
            .status,
        200
    );
    let file = |headers: &[(&str, &str)]| envd.ask("GET", "/files?path=/etc/hostname", headers, b"");
    assert_eq!(file(&[]).message(), "missing signature query parameter");
    assert_eq!(
        file(&[("X-Access-Token", "wrong")]).message(),
        "access token present in header but does not match"
    );
    assert_eq!(file(&[("X-Access-Token", "secret")]).status, 200);
    envd.init(&json!({}));
    assert_eq!(
        envd.ask("GET", "/envs", &[], b"").status,
        200,
        "an absent token opens again"
    );
}

#[test]
fn pages_of_any_origin_may_ask() {
    let envd = Envd::start();
    let preflight = envd.ask("OPTIONS", "/files", &[("Origin", "https://example.com")], b"");
    assert_eq!(
        (
            preflight.status,
            &*preflight.headers["access-control-allow-origin"]
        ),
        (204, "*")
    );
    let answer = envd.ask("GET", "/health", &[("Origin", "https://example.com")], b"");
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
}

#[test]
fn the_log_tells_what_ran_and_goes_on_where_the_reader_was() {
    let envd = Envd::start();
    envd.run("true");
    let logs = |after: u64| {
        envd.ask("GET", &format!("/host/logs?after={after}"), &[], b"")
            .json()
    };
    let first = logs(0);
    assert!(
        first["entries"][0]["message"]
            .as_str()
            .unwrap()
            .starts_with("started: /bin/sh -c true")
    );
    let next = first["next"].as_u64().unwrap();
    assert_eq!(logs(next)["entries"], json!([]));
}

#[test]
fn a_shutdown_ends_every_process() {
    let envd = Envd::start();
    let mut stream = envd.stream("process.Process/Start", &shell("sleep 600"), &[]);
    stream.pid();
    assert_eq!(
        envd.ask("POST", "/host/shutdown", &[], br#"{"graceMs":1000}"#)
            .status,
        204
    );
    assert_eq!(stream.until_end().2["status"], "signal: terminated");
}

#[test]
fn a_signal_to_end_is_passed_on_and_obeyed() {
    let mut envd = Envd::start();
    let polite = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done";
    let mut polite = envd.stream("process.Process/Start", &shell(polite), &[]);
    let mut deaf = envd.stream(
        "process.Process/Start",
        &shell("trap '' TERM; echo ready; while :; do sleep 0.01; done"),
        &[],
    );
    for stream in [&mut polite, &mut deaf] {
        stream.pid();
        assert!(stream.next().unwrap()["event"]["data"].is_object());
    }
    envd.signal(rustix::process::Signal::TERM);
    let (said, _, end) = polite.until_end();
    assert_eq!((said.as_str(), end["exitCode"].as_i64()), ("bye\n", Some(7)));
    assert_eq!(deaf.until_end().2["status"], "signal: killed");
    assert!(envd.wait().success());
}

#[test]
fn settings_that_cannot_be_taken_are_refused_and_change_nothing() {
    let envd = Envd::start();
    envd.init(&json!({ "envVars": { "KEPT": "1" }, "timestamp": "2026-01-01T02:00:00+02:00" }));
    let refused = |settings: serde_json::Value| {
        let answer = envd.ask("POST", "/init", &[], settings.to_string().as_bytes());
        assert_eq!(answer.status, 400, "{answer:?}");
        answer.message()
    };
    assert_eq!(
        refused(json!({ "hyperloopIP": "10.0.0.1", "envVars": {} })),
        "hyperloopIP is not supported"
    );
    assert_eq!(refused(json!({ "caBundle": "x" })), "caBundle is not supported");
    assert_eq!(
        refused(json!({ "volumeMounts": [{ "path": "/x" }] })),
        "volumeMounts is not supported"
    );
    assert!(refused(json!({ "timestamp": "noon", "envVars": {} })).starts_with("timestamp"));
    envd.init(&json!({ "envVars": {}, "timestamp": "2026-01-01T00:59:59+01:00" }));
    let kept = envd.ask("GET", "/envs", &[], b"").json();
    assert_eq!(
        kept,
        json!({ "KEPT": "1" }),
        "what is older changes nothing either"
    );
    envd.init(&json!({ "volumeMounts": [], "caBundle": null }));
}

#[test]
fn metrics_are_of_the_machine_that_the_node_told() {
    let envd = Envd::start();
    envd.init(&json!({ "cpuCount": 2, "memoryBytes": 1 << 30 }));
    let metrics = envd.ask("GET", "/metrics", &[], b"").json();
    assert_eq!(
        (
            &metrics["cpu_count"],
            &metrics["mem_total"],
            &metrics["mem_total_mib"]
        ),
        (&json!(2), &json!(1 << 30), &json!(1024))
    );
    let used = metrics["mem_used"].as_u64().unwrap();
    assert!(0 < used && used <= 1 << 30);
    assert_eq!(metrics["mem_used_mib"], used >> 20);
}

#[test]
fn watchers_without_a_connection_keep_what_happened() {
    let envd = Envd::start();
    let call = |method: &str, request| envd.call(&format!("filesystem.Filesystem/{method}"), &request);
    let made = call(
        "CreateWatcher",
        json!({ "path": envd.dir.path(), "recursive": true }),
    )
    .unwrap();
    let watcher = json!({ "watcherId": made["watcherId"] });
    std::fs::write(envd.at("file"), "x").unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let events = call("GetWatcherEvents", watcher.clone()).unwrap();
        for event in events["events"].as_array().into_iter().flatten() {
            seen.push((
                event["name"].as_str().unwrap().to_owned(),
                event["type"].as_str().unwrap().to_owned(),
            ));
        }
    }
    let event = |kind: &str| ("file".to_owned(), format!("EVENT_TYPE_{kind}"));
    assert_eq!(seen, [event("CREATE"), event("WRITE")]);
    call("RemoveWatcher", watcher.clone()).unwrap();
    assert_eq!(call("GetWatcherEvents", watcher).unwrap_err().0, "not_found");
}
