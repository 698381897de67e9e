//! What only the node may ask: settings, the log, an orderly end.
use std::collections::BTreeMap;
use std::time::Duration;

use crate::request_body::RequestBody;
use http::{HeaderValue, Method, Request, StatusCode};
use rustix::process::Signal;
use wire::init::{Init, Shutdown};

use crate::access::Refusal;
use crate::http::{Answer, Envd, json, no_content, small_body};

/// Settings hold a whole environment; a megabyte is what the API lets through.
const INIT_BYTES_MAX: usize = 2 << 20;
/// No order to end takes longer.
const GRACE_MAX: Duration = Duration::from_secs(60);

/// A request for the node's ear.
#[derive(Clone, Copy)]
pub(crate) enum ForHost {
    Init,
    Logs,
    Shutdown,
}

/// Which of them a request is, if any.
pub(crate) fn answer(_: &Envd, path: &str, method: Method) -> Option<ForHost> {
    match (method, path) {
        (Method::POST, "/init") => Some(ForHost::Init),
        (Method::GET, "/host/logs") => Some(ForHost::Logs),
        (Method::POST, "/host/shutdown") => Some(ForHost::Shutdown),
        _ => None,
    }
}

impl ForHost {
    pub(crate) async fn run(self, envd: &Envd, request: Request<RequestBody>) -> Result<Answer, Refusal> {
        match self {
            ForHost::Init => init(envd, request).await,
            ForHost::Logs => Ok(logs(envd, &request)),
            ForHost::Shutdown => shutdown(envd, request).await,
        }
    }
}

async fn init(envd: &Envd, request: Request<RequestBody>) -> Result<Answer, Refusal> {
    let trace = request
        .headers()
        .get("traceparent")
        .and_then(trace_id)
        .map(str::to_owned);
    let body = small_body(request.into_body(), INIT_BYTES_MAX).await?;
    let init: Init = if body.is_empty() {
        Init::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| Refusal::bad(format!("the body is not settings: {error}")))?
    };
    let taken = {
        let mut settings = envd.settings();
        let taken = settings.take(&init);
        if taken && is_machine() {
            settings.leave_marks();
        }
        taken
    };
    if let Some(trace) = trace {
        let fields = BTreeMap::from([("trace_id".to_owned(), trace)]);
        envd.logs
            .say("debug", "envd", "the node told the settings", fields);
    }
    if taken {
        if let Some(name) = init
            .hostname
            .as_deref()
            .filter(|name| !name.is_empty() && is_machine())
        {
            name_machine(name);
        }
        if let Some(start) = init.start_command {
            envd.processes.start_template_command(start);
        }
    }
    let mut answer = no_content(HeaderValue::from_static("no-store"));
    answer
        .headers_mut()
        .insert("x-envd-version", HeaderValue::from_static(wire::ENVD_VERSION));
    Ok(answer)
}

/// The trace that a W3C `traceparent` names: `00-<trace, 32 hex digits>-<span, 16>-<flags, 2>`.
fn trace_id(header: &HeaderValue) -> Option<&str> {
    let header = header.to_str().ok()?;
    let mut parts = header.split('-').skip(1);
    parts
        .next()
        .filter(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether the machine around us is ours: not where we are tried out.
fn is_machine() -> bool {
    std::process::id() == 1
}

/// Names the machine for those who ask the kernel and for those who ask the files.
fn name_machine(name: &str) {
    if rustix::system::sethostname(name.as_bytes()).is_err() {
        return;
    }
    let _ = std::fs::write("/etc/hostname", format!("{name}\n"));
    let hosts =
        format!("127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let _ = std::fs::write("/etc/hosts", hosts);
}

fn logs(envd: &Envd, request: &Request<RequestBody>) -> Answer {
    let query = request.uri().query().unwrap_or_default();
    let after = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("after="))
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    json(StatusCode::OK, &envd.logs.since(after))
}

/// Ends every process: politely, then surely. Answers when they are gone and everything is on the disk.
async fn shutdown(envd: &Envd, request: Request<RequestBody>) -> Result<Answer, Refusal> {
    let body = small_body(request.into_body(), INIT_BYTES_MAX).await?;
    let Shutdown { grace_ms } = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad(format!("the body is not a shutdown: {error}")))?;
    let grace = Duration::from_millis(grace_ms).min(GRACE_MAX);
    if is_machine() {
        signal_everybody(Signal::TERM);
        let _ = tokio::time::timeout(grace, envd.processes.all_ended()).await;
        signal_everybody(Signal::KILL);
    } else {
        envd.processes.signal_all(Signal::KILL);
    }
    let _ = tokio::time::timeout(grace, envd.processes.all_ended()).await;
    let _ = tokio::task::spawn_blocking(rustix::fs::sync).await;
    Ok(no_content(HeaderValue::from_static("no-store")))
}

/// Signals every process of our process namespace but ourselves.
fn signal_everybody(signal: Signal) {
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid.filter(|pid| pid.as_raw_nonzero().get() > 1) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}
