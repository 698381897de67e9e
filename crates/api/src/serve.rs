//! Routes, and the server that serves them.
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, patch, post, put};
use axum::{Json, Router, middleware};
use bytes::Bytes;
use http::{Method, StatusCode, Uri};
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::shown;
use crate::content::{self, ContentError};
use crate::error::ApiError;
use crate::{
    Api, builds, create, fork, keys, lifecycle, logs, metrics, network, nodes, observe, openapi, root,
    sandboxes, snapshots, tags, templates, unsupported, uploads, volumes,
};

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 8192;
/// A client that does not finish its headers in this time is not one.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// How long a connection is kept on which no request is under way: one that begins neither protocol, an HTTP/2 client
/// that asks for nothing, one that does not read its answer.
const IDLE: Duration = Duration::from_secs(60);
/// What is under way at the end is given this long.
const GRACE: Duration = Duration::from_secs(5);

impl Api {
    /// All routes.
    pub fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/health", get(health))
            .route("/openapi.json", get(description))
            .route("/v2/sandboxes", post(create::create_v2).get(sandboxes::list_v2))
            .route("/sandboxes", post(create::create_v1).get(sandboxes::list_v1))
            .route("/sandboxes/metrics", get(metrics::of_several))
            .route(
                "/sandboxes/{sandboxID}",
                get(sandboxes::get).delete(lifecycle::kill),
            )
            .route("/sandboxes/{sandboxID}/connect", post(lifecycle::connect_v1))
            .route("/v2/sandboxes/{sandboxID}/connect", post(lifecycle::connect_v2))
            .route("/sandboxes/{sandboxID}/resume", post(lifecycle::resume))
            .route("/sandboxes/{sandboxID}/pause", post(lifecycle::pause))
            .route("/sandboxes/{sandboxID}/restart", post(lifecycle::restart))
            .route("/sandboxes/{sandboxID}/timeout", post(lifecycle::set_timeout))
            .route("/sandboxes/{sandboxID}/refreshes", post(lifecycle::refresh))
            .route("/sandboxes/{sandboxID}/network", put(network::update))
            .route("/sandboxes/{sandboxID}/metrics", get(metrics::of_one))
            .route("/sandboxes/{sandboxID}/logs", get(logs::v1))
            .route("/v2/sandboxes/{sandboxID}/logs", get(logs::v2))
            .route("/teams", get(keys::teams))
            .route("/api-keys", get(keys::list).post(keys::create))
            .route("/api-keys/{apiKeyID}", patch(keys::rename).delete(keys::delete))
            .route("/nodes", get(nodes::list))
            .route("/nodes/{nodeID}", get(nodes::get).post(nodes::set_status))
            .route(
                "/templates",
                get(templates::list).post(unsupported::missing(unsupported::OLD_BUILDS)),
            )
            .route(
                "/v2/templates",
                get(templates::list_v2).post(unsupported::missing(unsupported::OLD_BUILDS)),
            )
            .route("/templates/aliases/{alias}", get(templates::alias))
            .route("/templates/{templateID}", templates_by_id())
            .route("/templates/tags", post(tags::assign).delete(tags::delete))
            .route("/templates/{templateID}/tags", get(tags::list))
            .route("/templates/{templateID}/tags/count", get(tags::count))
            .route("/templates/{templateID}/tags/exists", get(tags::exists))
            .route("/templates/{templateID}/tags/groups", get(tags::groups))
            .route(
                "/templates/{templateID}/tags/{tag}/assignments",
                get(tags::assignments),
            )
            .route("/v2/templates/{templateID}", patch(templates::change_v2))
            .route("/v3/templates", post(builds::register))
            .route("/templates/{templateID}/files/{hash}", get(uploads::link))
            .route("/uploads/{teamID}/{hash}", put(uploads::put))
            .route("/v2/templates/{templateID}/builds/{buildID}", post(builds::start))
            .route(
                "/templates/{templateID}/builds/{buildID}/status",
                get(builds::status),
            )
            .route(
                "/templates/{templateID}/builds/{buildID}/logs",
                get(builds::lines),
            )
            .route("/sandboxes/{sandboxID}/snapshots", post(snapshots::create))
            .route("/sandboxes/{sandboxID}/fork", post(fork::fork))
            .route("/sandboxes/{sandboxID}/changes", get(root::changes))
            .route("/sandboxes/{sandboxID}/export", get(root::export))
            .route("/snapshots", get(snapshots::list))
            .route("/volumes", get(volumes::list).post(volumes::create))
            .route("/volumes/{volumeID}", get(volumes::get).delete(volumes::delete))
            .merge(content::routes())
            .merge(unsupported::routes())
            .method_not_allowed_fallback(wrong_method)
            .fallback(unknown_route)
            .layer(middleware::from_fn(observe::observe))
            .with_state(Arc::clone(self))
    }

    /// Serves until it is told to stop; then what is under way has a few seconds.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        let router = self.router();
        let connections = TaskTracker::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let next = async {
                let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                next = next => next,
                () = shutdown.cancelled() => break,
            };
            let Ok((stream, _)) = accepted else {
                // Out of descriptors, most likely: a moment's rest lets something end.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let (router, shutdown) = (router.clone(), shutdown.clone());
            connections.spawn(async move {
                serve_one(stream, router, shutdown).await;
                drop(place);
            });
        }
        connections.close();
        let _ = tokio::time::timeout(GRACE, connections.wait()).await;
    }
}

/// Serves one connection until its client leaves, nothing has been under way for long, or `shutdown`.
async fn serve_one(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN);
    builder.http2().timer(TokioTimer::new());
    // Moves with every request that begins or ends; its value is how many are under way.
    let (under_way, mut watched) = watch::channel(0_usize);
    let under_way = Arc::new(under_way);
    let routes = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        let (begun, answer) = (UnderWay::new(&under_way), routes.call(request));
        let under_way = Arc::clone(&under_way);
        async move {
            let answer = answer.await;
            drop(begun);
            answer.map(|answer| answer.map(|body| Answering { body, under_way }))
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let idle = async {
        loop {
            let nothing = *watched.borrow_and_update() == 0;
            let changed = watched.changed();
            if !nothing {
                let _ = changed.await;
            } else if tokio::time::timeout(IDLE, changed).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = &mut connection => return,
        () = shutdown.cancelled() => {}
        () = idle => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(GRACE, connection).await;
}

/// A request that is being answered.
struct UnderWay(Arc<watch::Sender<usize>>);

impl UnderWay {
    fn new(counter: &Arc<watch::Sender<usize>>) -> Self {
        counter.send_modify(|count| *count += 1);
        Self(Arc::clone(counter))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// The body of an answer. Each piece that its client takes is news of the connection, so that a long answer is not cut
/// off as idle, and one that nobody reads is.
struct Answering {
    body: Body,
    under_way: Arc<watch::Sender<usize>>,
}

impl hyper::body::Body for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if frame.is_ready() {
            this.under_way.send_modify(|_| {});
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

fn templates_by_id() -> axum::routing::MethodRouter<Arc<Api>> {
    get(templates::get)
        .delete(templates::delete)
        .patch(templates::change_v1)
        .post(unsupported::missing(unsupported::OLD_BUILDS))
}

/// Whether the API answers.
#[utoipa::path(get, path = "/health", tag = "server", security(()), responses((status = 204, description = "It does.")))]
pub(crate) async fn health() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "server", security(()), responses((status = 200, description = "OpenAPI 3.1.", body = serde_json::Value)))]
pub(crate) async fn description() -> Json<utoipa::openapi::OpenApi> {
    Json(openapi::document())
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let (method, path) = (shown(method.as_str()), shown(uri.path()));
    let error = ApiError::http(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} is not a method of {path}"),
    );
    refusal(&uri, error)
}

async fn unknown_route(uri: Uri) -> Response {
    let error = ApiError::not_found(format!("there is nothing at {}", shown(uri.path())));
    refusal(&uri, error)
}

fn refusal(uri: &Uri, error: ApiError) -> Response {
    if content::is_content(uri.path()) {
        ContentError::from(error).into_response()
    } else {
        error.into_response()
    }
}
