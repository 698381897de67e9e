//! [`ports::Wake`] over the network: an edge asks whoever of the control plane is there.
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use connectrpc::{ConnectError, RequestContext, Response, ServiceRequest, ServiceResult};
use model::SandboxId;
use ports::{Presented, Wake, WakeRefused};
use tokio::sync::watch;
use tokio::time::Instant;
use wire::node as proto;

use crate::call::{Outcome, Repeat, call, with_detail};
use crate::channel::Channel;
use crate::convert::parsed;
use crate::identity::Role;
use crate::node::{config, malformed};
use crate::status::code;
use crate::tls::{Expected, Tls};

/// The port says within 60 s; a little more is on the way.
const WAKE_MAX: Duration = Duration::from_secs(62);

pub(crate) struct WakeService(pub(crate) Arc<dyn Wake>);

#[expect(
    refining_impl_trait,
    reason = "callers are generated, and do not see more than the trait"
)]
impl proto::Wake for WakeService {
    async fn wake(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::WakeRequest>,
    ) -> ServiceResult<proto::Done> {
        let request = request.to_owned_message();
        let sandbox = parsed(&request.sandbox, "sandbox id").map_err(malformed)?;
        let presented = Presented {
            port: parsed(&request.port.to_string(), "port").map_err(malformed)?,
            envd_token: request.envd_token,
            traffic_token: request.traffic_token,
        };
        let woken = self.0.wake(sandbox, presented).await;
        woken.map_err(|refused| to_wire(&refused))?;
        Response::ok(proto::Done::default())
    }
}

fn to_wire(refused: &WakeRefused) -> ConnectError {
    use proto::WakeReason as R;
    let (reason, text) = match refused {
        WakeRefused::NotFound => (R::WAKE_REASON_NOT_FOUND, String::new()),
        WakeRefused::Denied => (R::WAKE_REASON_DENIED, String::new()),
        WakeRefused::Transitioning => (R::WAKE_REASON_TRANSITIONING, String::new()),
        WakeRefused::Exhausted(why) => (R::WAKE_REASON_EXHAUSTED, why.clone()),
        WakeRefused::Failed => (R::WAKE_REASON_FAILED, String::new()),
    };
    let failure = proto::WakeFailure {
        reason: reason.into(),
        text,
        ..Default::default()
    };
    with_detail(code(refused.kind()), refused.to_string(), &failure)
}

fn from_wire(failure: proto::WakeFailure) -> WakeRefused {
    use proto::WakeReason as R;
    match failure.reason.as_known() {
        Some(R::WAKE_REASON_NOT_FOUND) => WakeRefused::NotFound,
        Some(R::WAKE_REASON_DENIED) => WakeRefused::Denied,
        Some(R::WAKE_REASON_TRANSITIONING) => WakeRefused::Transitioning,
        Some(R::WAKE_REASON_EXHAUSTED) => WakeRefused::Exhausted(failure.text),
        Some(R::WAKE_REASON_FAILED) | None => WakeRefused::Failed,
    }
}

/// Asks the control plane to wake sandboxes.
pub struct RemoteWake {
    tls: Tls,
    peers: watch::Receiver<Vec<String>>,
    clients: Mutex<HashMap<String, proto::WakeClient<Channel>>>,
    next: AtomicUsize,
}

impl RemoteWake {
    /// Of peers at these addresses (`host:port`), as they change: processes with the role api or orchestrator.
    #[must_use]
    pub fn new(peers: watch::Receiver<Vec<String>>, tls: &Tls) -> Arc<Self> {
        Arc::new(Self {
            tls: tls.clone(),
            peers,
            clients: Mutex::default(),
            next: AtomicUsize::new(0),
        })
    }

    /// All peers, each time another first.
    fn clients(&self) -> Vec<proto::WakeClient<Channel>> {
        let peers = self.peers.borrow();
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|address, _| peers.contains(address));
        let mut all: Vec<_> = peers
            .iter()
            .map(|address| {
                let made = || {
                    let expected = Expected::any_of(&[Role::Api, Role::Orchestrator]);
                    proto::WakeClient::new(Channel::new(address, expected, &self.tls), config())
                };
                clients.entry(address.clone()).or_insert_with(made).clone()
            })
            .collect();
        if !all.is_empty() {
            let first = self.next.fetch_add(1, Ordering::Relaxed) % all.len();
            all.rotate_left(first);
        }
        all
    }
}

#[async_trait]
impl Wake for RemoteWake {
    #[tracing::instrument(level = "debug", name = "rpc.wake", skip_all, fields(%sandbox))]
    async fn wake(&self, sandbox: SandboxId, presented: Presented) -> Result<(), WakeRefused> {
        let request = proto::WakeRequest {
            sandbox: sandbox.to_string(),
            port: presented.port.into(),
            envd_token: presented.envd_token,
            traffic_token: presented.traffic_token,
            ..Default::default()
        };
        let end = Instant::now() + WAKE_MAX;
        // Waking twice is waking once: whoever does not answer is passed over.
        for client in self.clients() {
            let left = end.saturating_duration_since(Instant::now());
            let send = |options| client.wake_with_options(request.clone(), options);
            match call(left, Repeat::Never, send).await {
                Ok(_) => return Ok(()),
                Err(Outcome::<proto::WakeFailure>::Told(failure)) => return Err(from_wire(failure)),
                Err(Outcome::Late) => break,
                Err(Outcome::Refused(refusal)) => {
                    tracing::warn!(%sandbox, error = refusal.text, "a peer does not wake a sandbox");
                }
                Err(Outcome::Undone(error) | Outcome::Lost(error)) => {
                    tracing::warn!(%sandbox, error = crate::causes(&error), "a peer did not wake a sandbox");
                }
            }
        }
        Err(WakeRefused::Failed)
    }
}
