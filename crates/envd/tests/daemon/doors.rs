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
    assert_eq!(stream.until_end().2["status"], "signal: killed");
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
