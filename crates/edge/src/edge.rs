//! What all listeners share: where sandboxes are, and the connections into them.
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, request};
use ports::{Catalog, CatalogError, Guest, Presented, Route, Wake, WakeRefused};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::{CancellationToken, DropGuard};
use wire::host::{Asked, HostRefused, SANDBOX_ID_HEADER, SANDBOX_PORT_HEADER, Target};

use crate::executions::Executions;
use crate::meters::Meters;
use crate::refusal::{Refusal, TRAFFIC_TOKEN};
use crate::signed::SignedUrl;
use crate::signers::{SearchError, Signers};

/// The header that carries envd's access token.
const ENVD_TOKEN: &str = "x-access-token";

/// A wake ends within 60 s (`Wake::wake`); this is for the one that does not.
const WAKE_PATIENCE: Duration = Duration::from_secs(70);

/// The news of a pause take a write of the store.
const MOVED_WITHIN: Duration = Duration::from_secs(2);

/// The tokens that a request came with: read once, for one of them stays at the door.
pub(crate) struct Tokens {
    envd: Option<HeaderValue>,
    traffic: Option<HeaderValue>,
}

impl Tokens {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self {
            envd: headers.get(ENVD_TOKEN).cloned(),
            traffic: headers.get(TRAFFIC_TOKEN).cloned(),
        }
    }

    fn presented(&self, port: u16) -> Presented {
        let text = |value: &Option<HeaderValue>| {
            let text = value.as_ref().and_then(|value| value.to_str().ok());
            text.map(str::to_owned)
        };
        Presented {
            port,
            envd_token: text(&self.envd),
            traffic_token: text(&self.traffic),
        }
    }
}

/// What the edge is made of.
pub struct EdgeParts {
    /// Where sandboxes are.
    pub catalog: Arc<dyn Catalog>,
    /// The way into them.
    pub guest: Arc<dyn Guest>,
    /// Resumes those that sleep.
    pub wake: Arc<dyn Wake>,
    /// The domain under which sandboxes have their names: `{port}-{id}.<domain>`, and `api.<domain>` beside them.
    pub domain: String,
}

/// The proxy before all sandboxes. Serves any number of listeners at once.
pub struct Edge {
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) guest: Arc<dyn Guest>,
    pub(crate) executions: Arc<Executions>,
    pub(crate) meters: Arc<Meters>,
    wake: Arc<dyn Wake>,
    signers: Signers,
    api_host: String,
    _following: DropGuard,
}

impl Edge {
    /// An edge that follows the catalog from now on. To be called within a tokio runtime, and after the process's
    /// metrics recorder has been set.
    #[must_use]
    pub fn new(parts: EdgeParts) -> Arc<Self> {
        let meters = Arc::new(Meters::new());
        let executions = Arc::new(Executions::new(Arc::clone(&parts.catalog), Arc::clone(&meters)));
        let stop = CancellationToken::new();
        // Subscribed before anything can be looked up, so that no withdrawal is missed.
        let changes = parts.catalog.changes();
        tokio::spawn({
            let (executions, stop) = (Arc::clone(&executions), stop.clone());
            async move { executions.follow(changes, stop).await }
        });
        Arc::new(Self {
            signers: Signers::new(Arc::clone(&parts.catalog)),
            catalog: parts.catalog,
            guest: parts.guest,
            executions,
            meters,
            wake: parts.wake,
            api_host: format!("api.{}", parts.domain.to_ascii_lowercase()),
            _following: stop.drop_guard(),
        })
    }

    /// Whether a request is for the API's own name.
    pub(crate) fn is_api(&self, host: Option<&HeaderValue>) -> bool {
        let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        name.eq_ignore_ascii_case(&self.api_host)
    }

    /// The sandbox and port that a request is for (contract 1.1, 1.3).
    pub(crate) async fn target(
        &self,
        host: Option<&HeaderValue>,
        request: &http::Request<impl Sized>,
    ) -> Result<Target, Refusal> {
        let header = |name| request.headers().get(name).map(HeaderValue::as_bytes);
        let asked = Asked {
            host: host.map(HeaderValue::as_bytes),
            id: header(SANDBOX_ID_HEADER),
            port: header(SANDBOX_PORT_HEADER),
        };
        let refused = match Target::of(asked) {
            Ok(target) => return Ok(target),
            Err(refused) => refused,
        };
        let unaddressed = asked.id.is_none() && asked.port.is_none();
        if !unaddressed || matches!(refused, HostRefused::Foreign(_)) {
            return Err(refused.into());
        }
        let query = request.uri().query().unwrap_or_default();
        let Some(url) = SignedUrl::of(request.method(), request.uri().path(), query) else {
            return Err(refused.into());
        };
        match self.signers.find(&url?).await {
            Ok(sandbox) => Ok(Target {
                sandbox,
                port: ports::guest::ENVD_PORT,
            }),
            Err(SearchError::Nobody(unsigned)) => Err(unsigned.into()),
            Err(SearchError::Busy) => Err(Refusal::Blind {
                sandbox: String::new(),
            }),
            Err(SearchError::Catalog(error)) => {
                tracing::error!(?error, "a signed URL cannot be resolved");
                Err(Refusal::Blind {
                    sandbox: String::new(),
                })
            }
        }
    }

    /// The route to a sandbox, which is woken for it where it sleeps.
    pub(crate) async fn route(&self, target: Target, tokens: &Tokens) -> Result<Arc<Route>, Refusal> {
        if let Some(route) = self.find(target).await? {
            return Ok(route);
        }
        Box::pin(self.wake(target, tokens)).await?;
        self.find(target).await?.ok_or_else(|| Refusal::NotFound {
            sandbox: target.sandbox.to_string(),
        })
    }

    async fn find(&self, target: Target) -> Result<Option<Arc<Route>>, Refusal> {
        let found = self.catalog.find(target.sandbox).await;
        found.map_err(|error| blind(&error, target))
    }

    async fn wake(&self, target: Target, tokens: &Tokens) -> Result<(), Refusal> {
        self.meters.wakes.increment(1);
        let presented = tokens.presented(target.port);
        // A task of its own: a client that loses patience must not leave a sandbox half resumed.
        let waking = tokio::spawn({
            let wake = Arc::clone(&self.wake);
            async move { wake.wake(target.sandbox, presented).await }
        });
        let refused = match tokio::time::timeout(WAKE_PATIENCE, waking).await {
            Ok(Ok(Ok(()))) => return Ok(()),
            Ok(Ok(Err(refused))) => refused,
            Ok(Err(panicked)) => {
                tracing::error!(error = %panicked, sandbox = %target.sandbox, "waking a sandbox failed");
                WakeRefused::Failed
            }
            Err(_) => WakeRefused::Transitioning,
        };
        Err(Refusal::of_wake(refused, target.sandbox.to_string()))
    }

    /// Waits, for a moment, until the catalog names another execution than that of `gone`, or none: a node that pauses or
    /// ends a sandbox of its own accord turns its traffic away at once, and the news are on their way.
    pub(crate) async fn moved(&self, gone: &Route) {
        let mut changes = self.catalog.changes();
        let moved = async {
            while self.is_current(gone).await {
                if let Err(RecvError::Closed) = changes.recv().await {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(MOVED_WITHIN, moved).await;
    }

    /// Whether the catalog still names the execution of `route`.
    pub(crate) async fn is_current(&self, route: &Route) -> bool {
        match self.catalog.find(route.sandbox).await {
            Ok(current) => current.is_some_and(|current| current.seat == route.seat),
            Err(_) => true,
        }
    }
}

/// The answer while the catalog gives none.
pub(crate) fn blind(error: &CatalogError, target: Target) -> Refusal {
    tracing::error!(?error, sandbox = %target.sandbox, "a route cannot be looked up");
    Refusal::Blind {
        sandbox: target.sandbox.to_string(),
    }
}

/// Lets a request in, or not (contract 1.4): private ports want the sandbox's traffic token.
pub(crate) fn admit(route: &Route, port: u16, tokens: &Tokens) -> Result<(), Refusal> {
    let Some(token) = &route.traffic_token else {
        return Ok(());
    };
    if port == ports::guest::ENVD_PORT {
        return Ok(());
    }
    let sandbox = || route.sandbox.to_string();
    match &tokens.traffic {
        None => Err(Refusal::TokenMissing { sandbox: sandbox() }),
        Some(given) if token.matches(given.as_bytes()) => Ok(()),
        Some(_) => Err(Refusal::TokenWrong { sandbox: sandbox() }),
    }
}

/// Makes an admitted request the sandbox's: names the host that its service sees, and keeps the key to its door.
pub(crate) fn address(
    parts: &mut request::Parts,
    route: &Route,
    port: u16,
    host: Option<&HeaderValue>,
    upgrade: Option<HeaderValue>,
) {
    crate::forward::request(parts, upgrade);
    let inside = port != ports::guest::ENVD_PORT;
    let mask = route.mask_host.as_ref().filter(|_| inside);
    let seen = mask.and_then(|mask| HeaderValue::from_str(&mask.for_port(port)).ok());
    crate::forward::name_host(&mut parts.headers, host, seen);
    if inside && route.traffic_token.is_some() {
        parts.headers.remove(TRAFFIC_TOKEN);
    }
}
