//! Serving: the host-only socket, the port inside, and which part answers what.
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use connectrpc::ConnectRpcService;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tower::ServiceExt as _;
use wire::envd::filesystem::FilesystemExt as _;
use wire::envd::process::ProcessExt as _;

use crate::access::{self, Refusal};
use crate::arguments::Arguments;
use crate::filesystem::Filesystem;
use crate::lines::{Caller, Line, Lines, Stage};
use crate::logs::Logs;
use crate::process::Processes;
use crate::reaper::Reaper;
use crate::request_body::{self, RequestBody};
use crate::rest::Rest;
use crate::settings::Settings;
use crate::{files, host, metrics};

/// Connections served at once; more wait in the kernel's queue. Far above what the edge pools, far below our memory.
const CONNECTIONS_MAX: usize = 1024;
/// A client that does not begin and finish its headers in this time is not one. It counts for connections that wait
/// for their next request as well, and must be longer than any client keeps those: a request on a connection that we
/// are closing is lost.
const HEADERS_WITHIN: Duration = Duration::from_secs(640);
/// How long a call may take, as its client says.
const TIMEOUT_HEADER: &str = "connect-timeout-ms";
/// One message of a call: a megabyte of input is plenty, four leave room.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// One message of input for a process, with its encoding: a client may send a whole file as one.
pub(crate) const INPUT_BYTES_MAX: usize = 16 << 20;
/// A call whose body is as long as its client types.
const STREAM_INPUT: &str = "/process.Process/StreamInput";
const SEND_INPUT: &str = "/process.Process/SendInput";

/// A body of an answer, whoever makes it.
pub(crate) type Answer = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error>>;

/// Everything that is served.
pub(crate) struct Envd {
    pub(crate) settings: Arc<Mutex<Settings>>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) filesystem: Arc<Filesystem>,
    pub(crate) lines: Lines,
    rpc: ConnectRpcService<connectrpc::Router>,
    rest: Rest,
    accept_local_peers: bool,
}

/// By which door a request came in.
#[derive(Clone)]
enum Door {
    /// The socket that only the node can open.
    Host(Caller),
    /// The port that everything inside can reach.
    Inside,
}

impl Envd {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let settings = Arc::new(Mutex::new(Settings::new()));
        let logs = Arc::new(Logs::default());
        let reaper = Arc::new(Reaper::default());
        let processes = Processes::new(Arc::clone(&settings), Arc::clone(&logs), Arc::clone(&reaper));
        let filesystem = Arc::new(Filesystem::new(Arc::clone(&settings)));
        // A streamed request is bounded by its messages, not by its length.
        let limits = |bytes_max| {
            connectrpc::Limits::default()
                .with_max_message_size(bytes_max)
                .with_max_request_body_size(bytes_max)
        };
        let router = Arc::clone(&filesystem)
            .register(Arc::clone(&processes).register(connectrpc::Router::new()))
            .with_route_limits(SEND_INPUT, limits(INPUT_BYTES_MAX))
            .with_route_limits(STREAM_INPUT, limits(INPUT_BYTES_MAX));
        // The deadline of a call bounds what it streams as well.
        let deadlines = connectrpc::DeadlinePolicy::new().with_enforce_on_streams(true);
        let rpc = ConnectRpcService::new(router)
            .with_limits(limits(MESSAGE_BYTES_MAX))
            .with_deadline_policy(deadlines);
        Self {
            settings,
            logs,
            reaper,
            processes,
            filesystem,
            lines: Lines::new(),
            rpc,
            rest: Rest::default(),
            accept_local_peers: arguments.accept_local_peers,
        }
    }

    /// Listens, says so, and serves for ever.
    pub(crate) async fn run(self: Arc<Self>, arguments: Arguments) -> io::Result<()> {
        if arguments.pid1 {
            self.settings().leave_marks();
            host::begin_generation();
        }
        let host = listen_for_host(&arguments.socket)?;
        let inside = match arguments.port {
            Some(port) => Some(listen_inside(port).await?),
            None => None,
        };
        if let Some(fd) = arguments.ready_fd {
            say_ready(fd);
        }
        // Each door has its own places: nothing inside may keep the node out.
        let places = || Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let reaper = Arc::clone(&self.reaper);
        tokio::select! {
            ended = reaper.run() => ended,
            ended = Arc::clone(&self).serve_host(host, places()) => ended,
            ended = Arc::clone(&self).serve_inside(inside, places()) => ended,
            () = self.rest.run() => Ok(()),
            ended = host::obey_signals(&self) => ended,
        }
    }

    /// What is in force.
    pub(crate) fn settings(&self) -> std::sync::MutexGuard<'_, Settings> {
        self.settings
            .lock()
            .expect("nothing panics while it holds the settings")
    }

    async fn serve_host(
        self: Arc<Self>,
        listener: UnixListener,
        connections: Arc<Semaphore>,
    ) -> io::Result<()> {
        loop {
            let permit = Arc::clone(&connections)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            let Some((stream, _)) = survive(listener.accept().await).await? else {
                continue;
            };
            // A peer outside our process namespace has no number in it.
            let outside = stream.peer_cred().is_ok_and(|peer| peer.pid() == Some(0));
            if !outside && !self.accept_local_peers {
                continue;
            }
            let envd = Arc::clone(&self);
            tokio::spawn(async move {
                // It goes after the connection itself.
                let line = envd.lines.enter();
                envd.serve_line(stream, &line).await;
                drop(permit);
            });
        }
    }

    async fn serve_inside(
        self: Arc<Self>,
        listener: Option<TcpListener>,
        connections: Arc<Semaphore>,
    ) -> io::Result<()> {
        let Some(listener) = listener else {
            return std::future::pending().await;
        };
        loop {
            let permit = Arc::clone(&connections)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            let Some((stream, _)) = survive(listener.accept().await).await? else {
                continue;
            };
            let _ = stream.set_nodelay(true);
            let envd = Arc::clone(&self);
            tokio::spawn(async move {
                let service = service_fn(|request| envd.answer_at(request, Door::Inside));
                // A connection that breaks is the peer's business; what it had under way is dropped with it.
                let _ = http1().serve_connection(TokioIo::new(stream), service).await;
                drop(permit);
            });
        }
    }

    /// Serves a connection of the host until it is over, or to be over.
    async fn serve_line(self: &Arc<Self>, stream: UnixStream, line: &Line) {
        let service = service_fn(|request| self.answer_at(request, Door::Host(line.caller())));
        let mut connection = pin!(http1().serve_connection(TokioIo::new(stream), service));
        let mut stage = Stage::Open;
        loop {
            tokio::select! {
                _ = connection.as_mut() => return,
                next = line.after(stage) => stage = next,
            }
            match stage {
                Stage::Open | Stage::Aborting => {}
                Stage::Closing => connection.as_mut().graceful_shutdown(),
                Stage::Cut => return,
            }
        }
    }

    fn answer_at(
        self: &Arc<Self>,
        request: Request<Incoming>,
        door: Door,
    ) -> impl Future<Output = Result<Answer, Infallible>> + use<> {
        let envd = Arc::clone(self);
        async move { Ok(envd.answer(request, door).await) }
    }

    async fn answer(&self, request: Request<Incoming>, door: Door) -> Answer {
        let origin = request.headers().get(header::ORIGIN).cloned();
        if request.method() == Method::OPTIONS && origin.is_some() {
            return access::preflight();
        }
        let (parts, incoming) = request.into_parts();
        let (body, reading) = RequestBody::of(incoming, parts.uri.path() == STREAM_INPUT);
        let mut answer = self
            .route(Request::from_parts(parts, body), door)
            .await
            .unwrap_or_else(Refusal::into_answer);
        if reading.is_given_up() {
            let why = format!(
                "the body did not go on for {} s",
                request_body::IDLE_MAX.as_secs()
            );
            answer = Refusal::new(StatusCode::REQUEST_TIMEOUT, why).into_answer();
        }
        if !reading.is_whole() {
            let close = header::HeaderValue::from_static("close");
            answer.headers_mut().insert(header::CONNECTION, close);
        }
        if origin.is_some() {
            access::allow_any_origin(answer.headers_mut());
        }
        answer
    }

    async fn route(&self, mut request: Request<RequestBody>, door: Door) -> Result<Answer, Refusal> {
        let path = request.uri().path().to_owned();
        if let Door::Host(caller) = door {
            if let Some(answer) = host::answer(&path, request.method()) {
                return answer.run(self, &caller, request).await;
            }
            request.extensions_mut().insert(caller);
        }
        access::check(&self.settings(), &path, request.headers())?;
        self.rest.after_work();
        match (request.method(), path.as_str()) {
            (&Method::GET, "/health") => Ok(no_content(header::HeaderValue::from_static("no-store"))),
            (&Method::GET, "/metrics") => {
                let limits = self.settings().limits;
                let looked = tokio::task::spawn_blocking(move || metrics::now(limits)).await;
                let failed =
                    |_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be read");
                Ok(json(StatusCode::OK, &looked.map_err(failed)?))
            }
            (&Method::GET, "/envs") => Ok(json(StatusCode::OK, &self.settings().env)),
            (&Method::GET | &Method::HEAD, "/files") => files::download(self, request).await,
            (&Method::POST, "/files") => files::upload(self, request).await,
            (&Method::POST, "/files/compose") => files::compose(self, request).await,
            (_, "/health" | "/metrics" | "/envs" | "/files" | "/files/compose") => Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{} is not a method of {path}", request.method()),
            )),
            (_, path)
                if path.starts_with("/process.Process/") || path.starts_with("/filesystem.Filesystem/") =>
            {
                check_timeout(request.headers())?;
                let answer = self
                    .rpc
                    .clone()
                    .oneshot(request)
                    .await
                    .unwrap_or_else(|never| match never {});
                Ok(answer.map(|body| body.map_err(io::Error::other).boxed_unsync()))
            }
            _ => Err(Refusal::new(
                StatusCode::NOT_FOUND,
                format!("there is nothing at {path}"),
            )),
        }
    }
}

/// How connections are served, at either door.
fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN);
    builder
}

/// That a call's deadline is one: what is not understood must not mean that there is none.
fn check_timeout(headers: &header::HeaderMap) -> Result<(), Refusal> {
    /// Of the Connect protocol: ten digits of milliseconds are four months.
    const DIGITS_MAX: usize = 10;
    let Some(told) = headers.get(TIMEOUT_HEADER).map(header::HeaderValue::as_bytes) else {
        return Ok(());
    };
    if told.len() <= DIGITS_MAX && told.iter().all(u8::is_ascii_digit) {
        return Ok(());
    }
    Err(Refusal::bad(format!(
        "{TIMEOUT_HEADER} must be milliseconds in at most {DIGITS_MAX} digits"
    )))
}

/// Errors of accept(2) that concern one connection, or pass: they must not end the daemon.
async fn survive<T>(accepted: io::Result<T>) -> io::Result<Option<T>> {
    match accepted {
        Ok(connection) => Ok(Some(connection)),
        Err(_) => {
            // Out of descriptors or memory, most likely: a moment's rest lets something end.
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(None)
        }
    }
}

/// Listens for both families, as far as there are both: `localhost` may mean either.
async fn listen_inside(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

fn listen_for_host(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        std::fs::create_dir_all(dir)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    }
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path)
}

/// One byte says that we listen; the descriptor is closed with it.
fn say_ready(fd: std::os::fd::RawFd) {
    if let Ok(ready) = linux::spawn::inherited(fd) {
        let _ = rustix::io::write(&ready, b"!");
    }
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, body: &impl serde::Serialize) -> Answer {
    let text = serde_json::to_vec(body).unwrap_or_default();
    let mut answer = Response::new(full(text.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json; charset=utf-8"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        header::HeaderValue::from_static("nosniff"),
    );
    answer
}

/// 204 with a caching rule.
pub(crate) fn no_content(cache: header::HeaderValue) -> Answer {
    let mut answer = Response::new(full(Bytes::new()));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer.headers_mut().insert(header::CACHE_CONTROL, cache);
    answer
}

/// A body that is there already.
pub(crate) fn full(bytes: Bytes) -> http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error> {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Reads a small body whole, or says that it is too large.
pub(crate) async fn small_body(body: RequestBody, bytes_max: usize) -> Result<Bytes, Refusal> {
    let read = http_body_util::Limited::new(body, bytes_max).collect().await;
    read.map(http_body_util::Collected::to_bytes)
        .map_err(|_| Refusal::bad(format!("the body is broken or longer than {bytes_max} bytes")))
}
