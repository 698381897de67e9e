//! A listener, and what happens to a request that comes through it.
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Request, Response, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use ports::Route;
use ports::guest::ENVD_PORT;
use tokio_util::task::TaskTracker;
use wire::host::Target;

use crate::body::Body;
use crate::cut::Cuts;
use crate::edge::{Edge, Tokens, address, admit, blind};
use crate::exchange::{Call, Lost, Upstream};
use crate::line::Upload;
use crate::lines::Lines;
use crate::refusal::{Asker, Refusal};
use crate::tunnel::{self, Ends, Upgrade};
use crate::{forward, path};

/// Bytes of a refused request that are read before the answer, so that a client which is still sending gets to read
/// it; a connection that is closed on unread bytes is reset.
const DRAINED_BYTES_MAX: usize = 1024 * 1024;
/// How long that may take.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);

/// Times a request may find that its sandbox has moved since it was looked up.
const LOOKUPS_MAX: usize = 2;

/// One listener's share of the edge.
pub(crate) struct Door {
    pub(crate) edge: Arc<Edge>,
    /// The API behind `api.<domain>`, where this listener serves it.
    pub(crate) api: Option<SocketAddr>,
    /// The connections and tunnels of this listener.
    pub(crate) tasks: TaskTracker,
    /// Ends them.
    pub(crate) closing: Arc<Cuts>,
}

impl Door {
    /// Answers one request.
    pub(crate) async fn handle(
        self: Arc<Self>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let begun = Instant::now();
        let asker = Asker::of(request.headers());
        let upgrade =
            forward::upgrade(request.version(), request.method(), request.headers()).map(|protocol| {
                let client = hyper::upgrade::on(&mut request);
                Upgrade { protocol, client }
            });
        let version = request.version();
        let (parts, body) = request.into_parts();
        let (upload, sent) = Upload::of(body);
        let mut call = Call {
            begun,
            request: Some(Request::from_parts(parts, upload)),
            sent,
        };
        let refusal = match self.answer(&mut call, upgrade).await {
            Ok(response) => {
                self.edge.meters.relayed.increment(1);
                return Ok(response);
            }
            Err(refusal) => refusal,
        };
        self.edge.meters.refused(refusal.name());
        if let Some(request) = call.request.take()
            && version != Version::HTTP_2
        {
            drain(request).await;
        }
        Ok(refusal.answer(&asker))
    }

    async fn answer(&self, call: &mut Call, mut upgrade: Option<Upgrade>) -> Result<Response<Body>, Refusal> {
        let edge = &*self.edge;
        let request = call.request.as_ref().expect("not sent yet");
        if request.method() == Method::CONNECT {
            return Err(Refusal::Connect);
        }
        let host = forward::host(request.uri(), request.headers())?;
        if let Some(api) = self.api
            && edge.is_api(host.as_ref())
        {
            return Box::pin(self.ask_api(api, call, host, upgrade)).await;
        }
        let target = edge.target(host.as_ref(), request).await?;
        if target.port == ENVD_PORT {
            // envd speaks HTTP/1.1 alone, and what goes through a tunnel is not looked at.
            upgrade = None;
            if path::is_control(request.uri().path()) {
                let path = request.uri().path().to_owned();
                return Err(Refusal::Control { path });
            }
        }
        let not_found = || Refusal::NotFound {
            sandbox: target.sandbox.to_string(),
        };
        let tokens = Tokens::of(request.headers());
        let mut gone: Option<Arc<Route>> = None;
        for _ in 0..LOOKUPS_MAX {
            if call.request.is_none() {
                break;
            }
            if let Some(gone) = gone.take() {
                edge.moved(&gone).await;
            }
            let (route, lines) = self.way(target, &tokens).await?;
            let Some(lines) = lines else { continue };
            let protocol = upgrade.as_ref().map(|upgrade| upgrade.protocol.clone());
            call.map_head(|parts| address(parts, &route, target.port, host.as_ref(), protocol));
            let upstream = Upstream::Sandbox {
                guest: &*edge.guest,
                route: &route,
                port: target.port,
            };
            let lost = match self.carry(upstream, &lines, call, &mut upgrade).await {
                Ok(response) => return Ok(response),
                Err(lost) => lost,
            };
            if lost == Lost::Full {
                return Err(Refusal::Crowded {
                    sandbox: target.sandbox.to_string(),
                });
            }
            if lost == Lost::Closed && !lines.withdrawn() && edge.is_current(&route).await {
                return Err(Refusal::PortClosed {
                    sandbox: target.sandbox.to_string(),
                    port: target.port,
                });
            }
            // It moved or went away meanwhile: looked up once more, in case it was resumed.
            gone = Some(route);
        }
        Err(not_found())
    }

    /// The route to the target and its lines, for a request that may use them; no lines where the route was
    /// withdrawn this instant.
    async fn way(
        &self,
        target: Target,
        tokens: &Tokens,
    ) -> Result<(Arc<Route>, Option<Arc<Lines>>), Refusal> {
        let route = self.edge.route(target, tokens).await?;
        admit(&route, target.port, tokens)?;
        let lines = self.edge.executions.lines(&route).await;
        let lines = lines.map_err(|error| blind(&error, target))?;
        Ok((route, lines))
    }

    async fn carry(
        &self,
        upstream: Upstream<'_>,
        lines: &Arc<Lines>,
        call: &mut Call,
        upgrade: &mut Option<Upgrade>,
    ) -> Result<Response<Body>, Lost> {
        let meters = &*self.edge.meters;
        if upgrade.is_none() {
            return upstream.exchange(lines, call, meters).await;
        }
        let ends = Ends {
            tasks: &self.tasks,
            closing: &self.closing,
        };
        Box::pin(tunnel::open(upstream, lines, call, upgrade, meters, ends)).await
    }

    async fn ask_api(
        &self,
        api: SocketAddr,
        call: &mut Call,
        host: Option<HeaderValue>,
        mut upgrade: Option<Upgrade>,
    ) -> Result<Response<Body>, Refusal> {
        let protocol = upgrade.as_ref().map(|upgrade| upgrade.protocol.clone());
        call.map_head(|parts| {
            forward::request(parts, protocol);
            forward::name_host(&mut parts.headers, host.as_ref(), None);
        });
        let lines = Arc::default();
        let answered = self.carry(Upstream::Api(api), &lines, call, &mut upgrade).await;
        answered.map_err(|_| Refusal::ApiAway)
    }
}

/// Reads some of a refused request's body. One that waits to be told whether to send it has sent nothing.
async fn drain(request: Request<Upload>) {
    if request.headers().contains_key(http::header::EXPECT) {
        return;
    }
    let mut body = request.into_body();
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, bytes::Bytes::len);
            if bytes > DRAINED_BYTES_MAX {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_PATIENCE, read).await;
}
