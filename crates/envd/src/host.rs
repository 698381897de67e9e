//! What only the node may ask: settings, the log, an orderly end, quiet, and the steps of a build that are not commands.
mod renewal;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crate::request_body::RequestBody;
use http::{HeaderValue, Method, Request, StatusCode};
use rustix::process::{Pid, Signal};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::signal::unix::{SignalKind, signal};
use wire::host_calls::{EnterWorkdir, Evaluate, MakeUser, Quiesce};
use wire::init::{Init, Shutdown};

pub(crate) use self::renewal::begin_generation;
use crate::access::Refusal;
use crate::accounts::Accounts;
use crate::http::{Answer, Envd, json, no_content, small_body};
use crate::lines::Caller;
use crate::{copy, shell, system_file, workdir};

/// Settings hold a whole environment; a megabyte is what the API lets through.
const INIT_BYTES_MAX: usize = 2 << 20;
/// No order to end takes longer.
const GRACE_MAX: Duration = Duration::from_secs(60);
/// Nobody waits longer for quiet.
const QUIET_GRACE_MAX: Duration = Duration::from_secs(10);
/// Steps hold texts that programs are given, which are shorter each, and not many.
const STEP_BYTES_MAX: usize = 16 << 20;

/// What processes have between SIGTERM and SIGKILL when we are told to end by a signal.
const SIGNAL_GRACE: Duration = Duration::from_secs(2);

/// Settings of the contract that nothing here carries out: told, they are refused, not ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Unsupported {
    #[serde(rename = "hyperloopIP")]
    hyperloop_ip: Option<IgnoredAny>,
    ca_bundle: Option<IgnoredAny>,
    volume_mounts: Option<Vec<IgnoredAny>>,
}

impl Unsupported {
    fn refuse(self) -> Result<(), Refusal> {
        let told = [
            ("hyperloopIP", self.hyperloop_ip.is_some()),
            ("caBundle", self.ca_bundle.is_some()),
            (
                "volumeMounts",
                self.volume_mounts.is_some_and(|mounts| !mounts.is_empty()),
            ),
        ];
        match told.into_iter().find(|(_, is_told)| *is_told) {
            Some((field, _)) => Err(Refusal::bad(format!("{field} is not supported"))),
            None => Ok(()),
        }
    }
}

/// A request for the node's ear.
#[derive(Clone, Copy)]
pub(crate) enum ForHost {
    Init,
    Logs,
    Shutdown,
    Quiesce,
    Copy,
    User,
    Workdir,
    Env,
}

/// Which of them a request is, if any.
pub(crate) fn answer(path: &str, method: &Method) -> Option<ForHost> {
    match (method, path) {
        (&Method::POST, "/init") => Some(ForHost::Init),
        (&Method::GET, "/host/logs") => Some(ForHost::Logs),
        (&Method::POST, "/host/shutdown") => Some(ForHost::Shutdown),
        (&Method::POST, "/host/quiesce") => Some(ForHost::Quiesce),
        (&Method::POST, "/host/copy") => Some(ForHost::Copy),
        (&Method::POST, "/host/user") => Some(ForHost::User),
        (&Method::POST, "/host/workdir") => Some(ForHost::Workdir),
        (&Method::POST, "/host/env") => Some(ForHost::Env),
        _ => None,
    }
}

impl ForHost {
    pub(crate) async fn run(
        self,
        envd: &Envd,
        caller: &Caller,
        request: Request<RequestBody>,
    ) -> Result<Answer, Refusal> {
        match self {
            ForHost::Init => init(envd, request).await,
            ForHost::Logs => Ok(logs(envd, &request)),
            ForHost::Shutdown => shutdown(envd, request).await,
            ForHost::Quiesce => quiesce(envd, caller, request).await,
            ForHost::Copy => copy::copy(request).await,
            ForHost::User => {
                let MakeUser { name, sudo } = told(request, "a user").await?;
                let made = blocking(move || Accounts::of_machine().ensure(&name, sudo)).await;
                Ok(json(StatusCode::OK, &made.map_err(|error| error.refusal())?))
            }
            ForHost::Workdir => {
                let step: EnterWorkdir = told(request, "a directory").await?;
                let entered = blocking(move || workdir::enter(&step)).await?;
                Ok(json(StatusCode::OK, &entered))
            }
            ForHost::Env => {
                let step: Evaluate = told(request, "variables").await?;
                Ok(json(StatusCode::OK, &shell::evaluate(envd, step).await?))
            }
        }
    }
}

/// What a request asks for.
async fn told<T: serde::de::DeserializeOwned>(
    request: Request<RequestBody>,
    what: &str,
) -> Result<T, Refusal> {
    let body = small_body(request.into_body(), STEP_BYTES_MAX).await?;
    serde_json::from_slice(&body).map_err(|error| Refusal::bad(format!("the body is not {what}: {error}")))
}

/// Does what blocks where blocking harms nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(broken) => std::panic::resume_unwind(broken.into_panic()),
    }
}

/// Ends the connections of the host, and with the answer the one that it came on.
async fn quiesce(envd: &Envd, caller: &Caller, request: Request<RequestBody>) -> Result<Answer, Refusal> {
    let Quiesce { grace_ms } = told(request, "a call for quiet").await?;
    let grace = Duration::from_millis(grace_ms).min(QUIET_GRACE_MAX);
    let quiet = envd.lines.quiesce(caller, grace).await;
    let mut answer = json(StatusCode::OK, &quiet);
    answer
        .headers_mut()
        .insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    Ok(answer)
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
        let broken = |error| Refusal::bad(format!("the body is not settings: {error}"));
        serde_json::from_slice::<Unsupported>(&body)
            .map_err(broken)?
            .refuse()?;
        serde_json::from_slice(&body).map_err(broken)?
    };
    renewal::check(&init)?;
    let taken = {
        let mut settings = envd.settings();
        let taken = settings.take(&init).map_err(Refusal::bad)?;
        if taken && is_machine() {
            settings.leave_marks();
        }
        taken
    };
    if taken {
        renewal::renew(envd, &init);
    }
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
            name_machine(name, init.renew);
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

/// Names the machine for those who ask the kernel and for those who ask the files: the files of a copy even where the
/// kernel does not do it, as what they say is another's name.
fn name_machine(name: &str, is_copy: bool) {
    // Whoever made the machine may have named it already, and have taken from us the right to.
    let is_named = rustix::system::uname().nodename().to_bytes() == name.as_bytes();
    if !is_named && rustix::system::sethostname(name.as_bytes()).is_err() && !is_copy {
        return;
    }
    let file = format!("{name}\n");
    if system_file::read("/etc/hostname").as_ref() != Some(&file) {
        let _ = system_file::write("/etc/hostname", &file);
    }
    match system_file::read("/etc/hosts") {
        Some(before) => {
            // What we could not give back as it is, we leave alone.
            let is_text = !before.contains(char::REPLACEMENT_CHARACTER);
            if let Some(hosts) = hosts_naming(&before, name).filter(|_| is_text) {
                let _ = system_file::write("/etc/hosts", &hosts);
            }
        }
        None if !std::path::Path::new("/etc/hosts").exists() => {
            let few = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
            let hosts = hosts_naming(few, name).unwrap_or_default();
            let _ = system_file::write("/etc/hosts", &hosts);
        }
        // Something else that its user put there.
        None => {}
    }
}

/// The same hosts, with this name for the machine itself, and everything else as it is; `None`, where that is so.
fn hosts_naming(hosts: &str, name: &str) -> Option<String> {
    /// By which a machine without an address of its own finds itself (Debian reference, 5.1.1).
    const SELF: &str = "127.0.1.1";
    let own = format!("{SELF}\t{name}\n");
    let is_own = |line: &str| line.split_whitespace().next() == Some(SELF);
    let mut named = String::with_capacity(hosts.len() + own.len());
    let mut is_told = false;
    for line in hosts.split_inclusive('\n') {
        if is_told || !is_own(line) {
            named += line;
        } else if line.split_whitespace().skip(1).any(|word| word == name) {
            return None;
        } else {
            named += &own;
            is_told = true;
        }
    }
    if !is_told {
        if !named.is_empty() && !named.ends_with('\n') {
            named.push('\n');
        }
        named += &own;
    }
    Some(named)
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

/// Ends everything, and answers when that is done.
async fn shutdown(envd: &Envd, request: Request<RequestBody>) -> Result<Answer, Refusal> {
    let body = small_body(request.into_body(), INIT_BYTES_MAX).await?;
    let Shutdown { grace_ms } = serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad(format!("the body is not a shutdown: {error}")))?;
    end_all(envd, Duration::from_millis(grace_ms).min(GRACE_MAX)).await;
    Ok(no_content(HeaderValue::from_static("no-store")))
}

/// An order to end that came as a signal: everybody is told, and what they wrote is on the disk when we go.
pub(crate) async fn obey_signals(envd: &Envd) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    end_all(envd, SIGNAL_GRACE).await;
    Ok(())
}

/// Ends every process: politely, then surely. They are gone and everything is on the disk when it is done.
async fn end_all(envd: &Envd, grace: Duration) {
    let tell = |signal| {
        if is_machine() {
            // Everybody but ourselves, and with them whoever forks meanwhile: it is one call for all.
            let _ = rustix::process::kill_process_group(Pid::INIT, signal);
        } else {
            envd.processes.signal_all(signal);
        }
    };
    tell(Signal::TERM);
    let _ = tokio::time::timeout(grace, envd.processes.all_ended()).await;
    tell(Signal::KILL);
    let _ = tokio::time::timeout(grace, envd.processes.all_ended()).await;
    let _ = tokio::task::spawn_blocking(rustix::fs::sync).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_and_other_hosts_stay() {
        let check = |before: &str, after: Option<&str>| {
            assert_eq!(hosts_naming(before, "new").as_deref(), after, "{before}");
        };
        check("", Some("127.0.1.1\tnew\n"));
        check(
            "127.0.0.1 localhost\n10.0.0.1 db",
            Some("127.0.0.1 localhost\n10.0.0.1 db\n127.0.1.1\tnew\n"),
        );
        check(
            "#127.0.1.1 old\n127.0.1.1 old\n10.0.0.1 db # old\n",
            Some("#127.0.1.1 old\n127.0.1.1\tnew\n10.0.0.1 db # old\n"),
        );
        check("127.0.1.1\tnew\n", None);
        check("127.0.1.1 alias new # mine\n", None);
    }
}
