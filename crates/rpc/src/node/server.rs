//! A node behind its listener: each call of [`ports::Node`] as it comes from a peer.
use std::sync::Arc;

use bytes::Bytes;
use connectrpc::{
    ConnectError, ErrorCode, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult,
    ServiceStream,
};
use futures_util::{StreamExt as _, stream};
use ports::Node;
use ports::blobs::ByteStream;
use tokio_util::sync::CancellationToken;
use wire::node as proto;

use crate::call::with_detail;
use crate::convert::{
    Malformed, build_list, from_build_list, from_execution, from_json, from_level, from_pause_mode, memory,
    parsed, pause_outcome, time,
};
use crate::node::failure::to_wire;
use crate::node::ring::{After, Ring};
use crate::node::{building, told};

/// So many changes, or executions, go into one message.
const PART: usize = 256;
/// A message of bytes: large enough that its frame is nothing, small enough that many may be under way.
pub(crate) const CHUNK_BYTES_MAX: usize = 256 * 1024;

/// Serves a node.
pub(crate) struct NodeService {
    node: Arc<dyn Node>,
    ring: Arc<Ring>,
    stop: CancellationToken,
}

impl NodeService {
    /// Hears the node from now on, until `stop`, which also ends its streams of events.
    pub(crate) fn new(node: Arc<dyn Node>, stop: CancellationToken) -> Self {
        let ring = Ring::new();
        tokio::spawn(Arc::clone(&ring).fill(Arc::clone(&node), stop.clone()));
        Self { node, ring, stop }
    }
}

/// A message that cannot be carried out.
pub(crate) fn malformed(malformed: Malformed) -> ConnectError {
    let text = malformed.to_string();
    let refusal = proto::Refusal {
        reason: proto::refusal::Reason::REASON_MESSAGE.into(),
        text: text.clone(),
        ..Default::default()
    };
    with_detail(ErrorCode::InvalidArgument, text, &refusal)
}

/// Bytes in messages of a size that neither side minds.
pub(crate) fn chunks<T: Send + 'static>(
    bytes: ByteStream,
    message: impl Fn(Bytes) -> T + Send + 'static,
) -> impl futures_util::Stream<Item = Result<T, ConnectError>> + Send + 'static {
    bytes
        .flat_map(|piece| {
            let pieces = match piece {
                Ok(mut piece) => {
                    let mut pieces = Vec::with_capacity(1 + piece.len() / CHUNK_BYTES_MAX);
                    while !piece.is_empty() {
                        pieces.push(Ok(piece.split_to(piece.len().min(CHUNK_BYTES_MAX))));
                    }
                    pieces
                }
                Err(error) => vec![Err(broken(&error))],
            };
            stream::iter(pieces)
        })
        .map(move |piece| piece.map(&message))
}

/// Bytes that broke off, told to whoever reads them.
fn broken(error: &std::io::Error) -> ConnectError {
    let failure = proto::BlobFailure {
        reason: proto::BlobReason::BLOB_REASON_SOURCE.into(),
        text: error.to_string(),
        ..Default::default()
    };
    with_detail(ErrorCode::DataLoss, error.to_string(), &failure)
}

fn done() -> ServiceResult<proto::Done> {
    Response::ok(proto::Done::default())
}

#[expect(
    refining_impl_trait,
    reason = "callers are generated, and do not see more than the trait"
)]
impl proto::Node for NodeService {
    async fn start(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::StartRequest>,
    ) -> ServiceResult<proto::Done> {
        let order = from_json(request.order, "order").map_err(malformed)?;
        let started = self.node.start(order).await;
        started.map_err(|error| to_wire("Start", &error))?;
        done()
    }

    async fn pause(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::PauseRequest>,
    ) -> ServiceResult<proto::PauseOutcome> {
        let request = request.to_owned_message();
        let read = || {
            let (sandbox, execution) = from_execution(request.at.as_option())?;
            let into = parsed(&request.into, "build id")?;
            Ok((sandbox, execution, into, from_pause_mode(request.mode)?))
        };
        let (sandbox, execution, into, mode) = read().map_err(malformed)?;
        let outcome = self.node.pause(sandbox, execution, into, mode).await;
        Response::ok(pause_outcome(&outcome.map_err(|error| to_wire("Pause", &error))?))
    }

    async fn checkpoint(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::CheckpointRequest>,
    ) -> ServiceResult<proto::CheckpointResponse> {
        let request = request.to_owned_message();
        let (sandbox, execution) = from_execution(request.at.as_option()).map_err(malformed)?;
        let into = parsed(&request.into, "build id").map_err(malformed)?;
        let copied = self
            .node
            .checkpoint(sandbox, execution, into, request.memory)
            .await;
        Response::ok(proto::CheckpointResponse {
            memory: memory(copied.map_err(|error| to_wire("Checkpoint", &error))?),
            ..Default::default()
        })
    }

    async fn build(
        &self,
        _: RequestContext,
        requests: InboundStream<proto::BuildSays>,
    ) -> ServiceResult<ServiceStream<proto::BuildTells>> {
        building::serve(Arc::clone(&self.node), requests).await
    }

    async fn builds(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, proto::BuildsRequest>,
    ) -> ServiceResult<proto::BuildList> {
        let builds = self.node.builds().await;
        Response::ok(build_list(&builds.map_err(|error| to_wire("Builds", &error))?))
    }

    async fn remove_builds(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::BuildList>,
    ) -> ServiceResult<proto::Done> {
        let builds = from_build_list(&request.to_owned_message()).map_err(malformed)?;
        let removed = self.node.remove_builds(&builds).await;
        removed.map_err(|error| to_wire("RemoveBuilds", &error))?;
        done()
    }

    async fn kin_of(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::BuildRequest>,
    ) -> ServiceResult<proto::BuildList> {
        let build = parsed(request.build, "build id").map_err(malformed)?;
        let kin = self.node.kin_of(build).await;
        Response::ok(build_list(&kin.map_err(|error| to_wire("KinOf", &error))?))
    }

    async fn stow_build(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::StowRequest>,
    ) -> ServiceResult<proto::Stowed> {
        let request = request.to_owned_message();
        let build = parsed(&request.build, "build id").map_err(malformed)?;
        let digest = self.node.stow_build(build, &request.kin).await;
        Response::ok(proto::Stowed {
            digest: digest.map_err(|error| to_wire("StowBuild", &error))?,
            ..Default::default()
        })
    }

    async fn fetch_build(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::FetchRequest>,
    ) -> ServiceResult<proto::Done> {
        let request = request.to_owned_message();
        let build = parsed(&request.build, "build id").map_err(malformed)?;
        let fetched = self.node.fetch_build(build, &request.digest).await;
        fetched.map_err(|error| to_wire("FetchBuild", &error))?;
        done()
    }

    async fn sweep_stowed(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::SweepRequest>,
    ) -> ServiceResult<proto::Swept> {
        let living = request.to_owned_message().living;
        let removed = self.node.sweep_stowed(&living).await;
        Response::ok(proto::Swept {
            removed: removed.map_err(|error| to_wire("SweepStowed", &error))?,
            ..Default::default()
        })
    }

    async fn changes(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::Execution>,
    ) -> ServiceResult<ServiceStream<proto::ChangesPart>> {
        let at = request.to_owned_message();
        let (sandbox, execution) = from_execution(Some(&at)).map_err(malformed)?;
        let changes = self.node.changes(sandbox, execution).await;
        let changes = changes.map_err(|error| to_wire("Changes", &error))?;
        let last = proto::ChangesPart {
            is_cut: changes.is_cut,
            ..Default::default()
        };
        let parts = stream::iter(changes.entries).map(told::change).chunks(PART);
        let parts = parts.map(|entries| proto::ChangesPart {
            entries,
            ..Default::default()
        });
        Ok(Response::stream(parts.chain(stream::iter([last])).map(Ok)))
    }

    async fn export(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::Execution>,
    ) -> ServiceResult<ServiceStream<proto::Chunk>> {
        let at = request.to_owned_message();
        let (sandbox, execution) = from_execution(Some(&at)).map_err(malformed)?;
        let root = self.node.export(sandbox, execution).await;
        let root = root.map_err(|error| to_wire("Export", &error))?;
        Ok(Response::stream(chunks(root, |data| proto::Chunk {
            data: data.into(),
            ..Default::default()
        })))
    }

    async fn is_healthy(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::Execution>,
    ) -> ServiceResult<proto::Health> {
        let at = request.to_owned_message();
        let (sandbox, execution) = from_execution(Some(&at)).map_err(malformed)?;
        let is_healthy = self.node.is_healthy(sandbox, execution).await;
        Response::ok(proto::Health {
            is_healthy: is_healthy.map_err(|error| to_wire("IsHealthy", &error))?,
            ..Default::default()
        })
    }

    async fn kill(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::KillRequest>,
    ) -> ServiceResult<proto::Done> {
        let sandbox = parsed(request.sandbox, "sandbox id").map_err(malformed)?;
        let why = from_json(request.why.as_bytes(), "reason of an end").map_err(malformed)?;
        let killed = self.node.kill(sandbox, why).await;
        killed.map_err(|error| to_wire("Kill", &error))?;
        done()
    }

    async fn copy_paused(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::CopyPausedRequest>,
    ) -> ServiceResult<proto::Done> {
        let sandbox = parsed(request.sandbox, "sandbox id").map_err(malformed)?;
        let snapshot = parsed(request.snapshot, "build id").map_err(malformed)?;
        let copied = self.node.copy_paused(sandbox, snapshot).await;
        copied.map_err(|error| to_wire("CopyPaused", &error))?;
        done()
    }

    async fn say(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::SayRequest>,
    ) -> ServiceResult<proto::Done> {
        let request = request.to_owned_message();
        let (sandbox, execution) = from_execution(request.at.as_option()).map_err(malformed)?;
        let said = self
            .node
            .say(sandbox, execution, from_level(request.level), &request.line)
            .await;
        said.map_err(|error| to_wire("Say", &error))?;
        done()
    }

    async fn set_accepts(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::SetAcceptsRequest>,
    ) -> ServiceResult<proto::Done> {
        let request = request.to_owned_message();
        let set = match request.draining.as_option() {
            Some(how) => self.node.drain(told::from_draining(how)).await,
            None => self.node.set_accepts(request.accepts).await,
        };
        set.map_err(|error| to_wire("SetAccepts", &error))?;
        done()
    }

    async fn set_deadline(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::SetDeadlineRequest>,
    ) -> ServiceResult<proto::Done> {
        let request = request.to_owned_message();
        let (sandbox, execution) = from_execution(request.at.as_option()).map_err(malformed)?;
        let set = self
            .node
            .set_deadline(sandbox, execution, time(request.deadline))
            .await;
        set.map_err(|error| to_wire("SetDeadline", &error))?;
        done()
    }

    async fn set_network(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::SetNetworkRequest>,
    ) -> ServiceResult<proto::Done> {
        let request = request.to_owned_message();
        let (sandbox, execution) = from_execution(request.at.as_option()).map_err(malformed)?;
        let policy = from_json(&request.policy, "network policy").map_err(malformed)?;
        let set = self.node.set_network(sandbox, execution, policy).await;
        set.map_err(|error| to_wire("SetNetwork", &error))?;
        done()
    }

    async fn metrics(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::MetricsRequest>,
    ) -> ServiceResult<proto::MetricsResponse> {
        let request = request.to_owned_message();
        let sandbox = parsed(&request.sandbox, "sandbox id").map_err(malformed)?;
        let (from, to) = (request.from.map(time), request.to.map(time));
        let samples = self.node.metrics(sandbox, from, to).await;
        let samples = samples.map_err(|error| to_wire("Metrics", &error))?;
        Response::ok(proto::MetricsResponse {
            samples: samples.iter().map(told::sample).collect(),
            ..Default::default()
        })
    }

    async fn logs(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::LogsRequest>,
    ) -> ServiceResult<proto::LogsResponse> {
        let request = request.to_owned_message();
        let sandbox = parsed(&request.sandbox, "sandbox id").map_err(malformed)?;
        let lines = self.node.logs(sandbox, told::from_query(request)).await;
        let lines = lines.map_err(|error| to_wire("Logs", &error))?;
        Response::ok(proto::LogsResponse {
            lines: lines.into_iter().map(told::line).collect(),
            ..Default::default()
        })
    }

    async fn report(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, proto::ReportRequest>,
    ) -> ServiceResult<ServiceStream<proto::ReportPart>> {
        let report = self.node.report().await;
        let report = report.map_err(|error| to_wire("Report", &error))?;
        let head = proto::ReportPart {
            head: Some(told::report_head(&report)).into(),
            ..Default::default()
        };
        let held = stream::iter(report.held)
            .map(|held| told::held(&held))
            .chunks(PART)
            .map(|held| proto::ReportPart {
                held,
                ..Default::default()
            });
        Ok(Response::stream(stream::iter([head]).chain(held).map(Ok)))
    }

    async fn events(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, proto::EventsRequest>,
    ) -> ServiceResult<ServiceStream<proto::Event>> {
        let request = request.to_owned_message();
        let ring = Arc::clone(&self.ring);
        let newest = ring.newest();
        let known = request.after.filter(|_| request.life == ring.life);
        // Who heard something of another life has missed what came after it there.
        let is_gap = match (known, request.after) {
            (Some(after), _) => matches!(ring.after(after), After::Gap(_)),
            (None, heard) => heard.is_some(),
        };
        let from = known.filter(|_| !is_gap).unwrap_or(newest);
        let first = proto::Event {
            life: ring.life,
            number: from,
            gap: is_gap,
            ..Default::default()
        };
        let state = (ring.watch(), ring, from, self.stop.clone());
        let events = stream::unfold(state, |(mut watch, ring, at, stop)| async move {
            loop {
                match ring.after(at) {
                    After::Event(number, event) => {
                        let event = told::event(ring.life, number, &event);
                        return Some((event, (watch, ring, number, stop)));
                    }
                    After::Gap(newest) => {
                        let gap = proto::Event {
                            life: ring.life,
                            number: newest,
                            gap: true,
                            ..Default::default()
                        };
                        return Some((gap, (watch, ring, newest, stop)));
                    }
                    After::Nothing => tokio::select! {
                        () = stop.cancelled() => return None,
                        changed = watch.changed() => changed.ok()?,
                    },
                }
            }
        });
        Ok(Response::stream(stream::iter([first]).chain(events).map(Ok)))
    }
}
