//! A node on another machine.
use std::future::ready;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use connectrpc::ConnectError;
use connectrpc::client::{CallOptions, ClientConfig};
use futures_util::{StreamExt as _, stream};
use model::{BuildId, ExecutionId, KillReason, Memory, NetworkPolicy, NodeId, PauseMode, SandboxId};
use ports::blobs::ByteStream;
use ports::builds::{BuildError, BuildOrder, BuildTalk, Built};
use ports::node::{Draining, Order, PauseOutcome, Report};
use ports::root::{CHANGES_MAX, Changes};
use ports::{Level, LogLine, LogQuery, MetricSample, Node, NodeError, NodeEvent};
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};
use wire::node as proto;

use crate::call::{ANSWER_BYTES_MAX, Repeat, call};
use crate::channel::Channel;
use crate::convert::{
    Malformed, build_list, execution, from_build_list, from_memory, from_pause_outcome, json, level, nanos,
    pause_mode, text,
};
use crate::node::failure::{from_outcome, not_understood};
use crate::node::{building, hearing, told};
use crate::tls::{Expected, Tls};

/// Nodes have deadlines of their own for what they do: these are some more, for those that do not answer. Whoever calls may give
/// up earlier, and the node is told.
mod limit {
    use std::time::Duration;

    /// A start takes milliseconds; a cold one with a slow start-up command some seconds. Clients give up after a minute.
    pub(super) const START: Duration = Duration::from_secs(65);
    /// It may write out all of a sandbox's memory.
    pub(super) const PAUSE: Duration = Duration::from_secs(310);
    /// It waits for the kernel to reap what runs.
    pub(super) const KILL: Duration = Duration::from_secs(65);
    /// A word with the node.
    pub(super) const WORD: Duration = Duration::from_secs(15);
    /// It looks at all that a sandbox wrote.
    pub(super) const CHANGES: Duration = Duration::from_secs(600);
    /// It reads or writes gigabytes over the network.
    pub(super) const MOVE: Duration = Duration::from_secs(3600);
    /// It is read by whoever asked, as fast as he likes.
    pub(super) const EXPORT: Duration = Duration::from_secs(6 * 3600);
}

/// So many builds go into one request.
const REMOVED_AT_ONCE: usize = 10_000;
/// Events that wait for a slow listener: one that is slower is told that it has missed some.
pub(crate) const EVENTS_MAX: usize = 256;

/// A node on another machine.
pub struct RemoteNode {
    id: NodeId,
    client: proto::NodeClient<Channel>,
    events: broadcast::Sender<NodeEvent>,
    /// Ends the task that hears it.
    hearing: OnceLock<DropGuard>,
}

/// A client over a kept connection.
pub(crate) fn config() -> ClientConfig {
    // Only the path of it is used: a channel knows where it leads.
    let uri = http::Uri::from_static("https://peer.atoll.internal");
    ClientConfig::new(uri)
}

impl RemoteNode {
    /// The node of this id, at an address (`host:port`). Nothing is connected yet; whoever answers there and is another is refused.
    pub fn connect(node: NodeId, address: &str, tls: &Tls) -> Arc<dyn Node> {
        Self::new(node, address, tls)
    }

    pub(crate) fn new(node: NodeId, address: &str, tls: &Tls) -> Arc<Self> {
        let channel = Channel::new(address, Expected::node(node), tls);
        Arc::new(Self {
            id: node,
            client: proto::NodeClient::new(channel, config()),
            events: broadcast::channel(EVENTS_MAX).0,
            hearing: OnceLock::new(),
        })
    }

    /// A call that may be repeated once, as all calls for an execution may.
    async fn ask<T, F>(
        &self,
        what: &'static str,
        limit: Duration,
        send: impl FnMut(CallOptions) -> F,
    ) -> Result<T, NodeError>
    where
        F: Future<Output = Result<T, ConnectError>>,
    {
        let answer = call(limit, Repeat::Once, send).await;
        answer.map_err(|outcome| from_outcome(what, outcome))
    }
}

#[async_trait]
impl Node for RemoteNode {
    fn id(&self) -> NodeId {
        self.id
    }

    #[tracing::instrument(level = "debug", name = "rpc.node.start", skip_all, fields(node = %self.id, sandbox = %order.sandbox, execution = %order.execution))]
    async fn start(&self, order: Order) -> Result<(), NodeError> {
        let request = proto::StartRequest {
            order: json(&order),
            ..Default::default()
        };
        let send = |options| self.client.start_with_options(request.clone(), options);
        self.ask("starting", limit::START, send).await.map(drop)
    }

    #[tracing::instrument(level = "debug", name = "rpc.node.pause", skip_all, fields(node = %self.id, %sandbox, execution = %at))]
    async fn pause(
        &self,
        sandbox: SandboxId,
        at: ExecutionId,
        into: BuildId,
        mode: PauseMode,
    ) -> Result<PauseOutcome, NodeError> {
        let request = proto::PauseRequest {
            at: Some(execution(sandbox, at)).into(),
            into: into.to_string(),
            mode: pause_mode(mode).into(),
            ..Default::default()
        };
        let send = |options| self.client.pause_with_options(request.clone(), options);
        let outcome = self.ask("pausing", limit::PAUSE, send).await?.into_owned();
        from_pause_outcome(&outcome).map_err(not_understood)
    }

    #[tracing::instrument(level = "debug", name = "rpc.node.checkpoint", skip_all, fields(node = %self.id, %sandbox, execution = %at, %into))]
    async fn checkpoint(
        &self,
        sandbox: SandboxId,
        at: ExecutionId,
        into: BuildId,
        memory: bool,
    ) -> Result<Memory, NodeError> {
        let request = proto::CheckpointRequest {
            at: Some(execution(sandbox, at)).into(),
            into: into.to_string(),
            memory,
            ..Default::default()
        };
        let send = |options| self.client.checkpoint_with_options(request.clone(), options);
        let copied = self.ask("copying", limit::PAUSE, send).await?.into_owned();
        Ok(from_memory(&copied.memory))
    }

    #[tracing::instrument(level = "debug", name = "rpc.node.build", skip_all, fields(node = %self.id, build = %order.build, template = %order.template))]
    async fn build(&self, order: BuildOrder, talk: BuildTalk) -> Result<Built, BuildError> {
        building::order(&self.client, order, talk).await
    }

    async fn builds(&self) -> Result<Vec<BuildId>, NodeError> {
        let send = |options| {
            self.client
                .builds_with_options(proto::BuildsRequest::default(), options)
        };
        let builds = self.ask("listing builds", limit::WORD, send).await?.into_owned();
        from_build_list(&builds).map_err(not_understood)
    }

    async fn remove_builds(&self, builds: &[BuildId]) -> Result<(), NodeError> {
        for builds in builds.chunks(REMOVED_AT_ONCE) {
            let request = build_list(builds);
            let send = |options| self.client.remove_builds_with_options(request.clone(), options);
            self.ask("removing builds", limit::MOVE, send).await?;
        }
        Ok(())
    }

    async fn kin_of(&self, build: BuildId) -> Result<Vec<BuildId>, NodeError> {
        let request = proto::BuildRequest {
            build: build.to_string(),
            ..Default::default()
        };
        let send = |options| self.client.kin_of_with_options(request.clone(), options);
        let kin = self.ask("looking for kin", limit::WORD, send).await?.into_owned();
        from_build_list(&kin).map_err(not_understood)
    }

    async fn stow_build(&self, build: BuildId, kin: &[String]) -> Result<String, NodeError> {
        let request = proto::StowRequest {
            build: build.to_string(),
            kin: kin.to_vec(),
            ..Default::default()
        };
        let send = |options| self.client.stow_build_with_options(request.clone(), options);
        let stowed = self
            .ask("bringing a build to the blobs", limit::MOVE, send)
            .await?;
        Ok(stowed.into_owned().digest)
    }

    async fn fetch_build(&self, build: BuildId, digest: &str) -> Result<(), NodeError> {
        let request = proto::FetchRequest {
            build: build.to_string(),
            digest: digest.to_owned(),
            ..Default::default()
        };
        let send = |options| self.client.fetch_build_with_options(request.clone(), options);
        let fetched = self
            .ask("bringing a build from the blobs", limit::MOVE, send)
            .await;
        fetched.map(drop)
    }

    async fn sweep_stowed(&self, living: &[String]) -> Result<u64, NodeError> {
        let request = proto::SweepRequest {
            living: living.to_vec(),
            ..Default::default()
        };
        let send = |options| self.client.sweep_stowed_with_options(request.clone(), options);
        let swept = self.ask("sweeping the blobs", limit::MOVE, send).await?;
        Ok(swept.into_owned().removed)
    }

    async fn changes(&self, sandbox: SandboxId, at: ExecutionId) -> Result<Changes, NodeError> {
        let request = execution(sandbox, at);
        self.ask("looking for changes", limit::CHANGES, |options| {
            let request = request.clone();
            async move {
                let mut parts = self.client.changes_with_options(request, options).await?;
                let mut changes = Changes::default();
                while let Some(part) = parts.message::<proto::ChangesPart>().await? {
                    let part = part.to_owned_message();
                    let room = CHANGES_MAX - changes.entries.len();
                    changes.is_cut |= part.is_cut || part.entries.len() > room;
                    let entries = part.entries.into_iter().take(room);
                    changes.entries.extend(entries.map(told::from_change));
                }
                Ok(changes)
            }
        })
        .await
    }

    async fn export(&self, sandbox: SandboxId, at: ExecutionId) -> Result<ByteStream, NodeError> {
        let request = execution(sandbox, at);
        // What is wrong is told in the place of the first bytes.
        let (first, chunks) = self
            .ask("exporting a root", limit::EXPORT, |options| {
                let request = request.clone();
                async move {
                    let mut chunks = self.client.export_with_options(request, options).await?;
                    let first = chunks.message::<proto::Chunk>().await?;
                    Ok((first.map(|first| first.to_owned_message()), chunks))
                }
            })
            .await?;
        let Some(first) = first else {
            return Ok(stream::empty().boxed());
        };
        let rest = stream::unfold(Some(chunks), |chunks| async move {
            let mut chunks = chunks?;
            match chunks.message::<proto::Chunk>().await {
                Ok(Some(chunk)) => Some((Ok(Bytes::from(chunk.to_owned_message().data)), Some(chunks))),
                Ok(None) => None,
                Err(error) => Some((Err(std::io::Error::other(error)), None)),
            }
        });
        let first = stream::once(ready(Ok(Bytes::from(first.data))));
        Ok(first.chain(rest).boxed())
    }

    async fn is_healthy(&self, sandbox: SandboxId, at: ExecutionId) -> Result<bool, NodeError> {
        let request = execution(sandbox, at);
        let send = |options| self.client.is_healthy_with_options(request.clone(), options);
        let health = self.ask("probing", limit::WORD, send).await?;
        Ok(health.into_owned().is_healthy)
    }

    #[tracing::instrument(level = "debug", name = "rpc.node.kill", skip_all, fields(node = %self.id, %sandbox))]
    async fn kill(&self, sandbox: SandboxId, why: KillReason) -> Result<(), NodeError> {
        let request = proto::KillRequest {
            sandbox: sandbox.to_string(),
            why: text(&why),
            ..Default::default()
        };
        let send = |options| self.client.kill_with_options(request.clone(), options);
        self.ask("killing", limit::KILL, send).await.map(drop)
    }

    async fn copy_paused(&self, sandbox: SandboxId, snapshot: BuildId) -> Result<(), NodeError> {
        let request = proto::CopyPausedRequest {
            sandbox: sandbox.to_string(),
            snapshot: snapshot.to_string(),
            ..Default::default()
        };
        let send = |options| self.client.copy_paused_with_options(request.clone(), options);
        self.ask("copying the disk of a paused sandbox", limit::PAUSE, send)
            .await
            .map(drop)
    }

    async fn say(
        &self,
        sandbox: SandboxId,
        at: ExecutionId,
        urgency: Level,
        line: &str,
    ) -> Result<(), NodeError> {
        let request = proto::SayRequest {
            at: Some(execution(sandbox, at)).into(),
            level: level(urgency).into(),
            line: line.to_owned(),
            ..Default::default()
        };
        let send = |options| self.client.say_with_options(request.clone(), options);
        self.ask("saying something in a log", limit::WORD, send)
            .await
            .map(drop)
    }

    async fn set_accepts(&self, accepts: bool) -> Result<(), NodeError> {
        let request = proto::SetAcceptsRequest {
            accepts,
            ..Default::default()
        };
        let send = |options| self.client.set_accepts_with_options(request.clone(), options);
        self.ask("setting whether it takes new sandboxes", limit::WORD, send)
            .await
            .map(drop)
    }

    async fn drain(&self, how: Draining) -> Result<(), NodeError> {
        let request = proto::SetAcceptsRequest {
            accepts: false,
            draining: Some(told::draining(how)).into(),
            ..Default::default()
        };
        let send = |options| self.client.set_accepts_with_options(request.clone(), options);
        self.ask("telling it to be emptied", limit::WORD, send)
            .await
            .map(drop)
    }

    async fn set_deadline(
        &self,
        sandbox: SandboxId,
        at: ExecutionId,
        deadline: SystemTime,
    ) -> Result<(), NodeError> {
        let request = proto::SetDeadlineRequest {
            at: Some(execution(sandbox, at)).into(),
            deadline: nanos(deadline),
            ..Default::default()
        };
        let send = |options| self.client.set_deadline_with_options(request.clone(), options);
        self.ask("setting a deadline", limit::WORD, send).await.map(drop)
    }

    async fn set_network(
        &self,
        sandbox: SandboxId,
        at: ExecutionId,
        policy: NetworkPolicy,
    ) -> Result<(), NodeError> {
        let request = proto::SetNetworkRequest {
            at: Some(execution(sandbox, at)).into(),
            policy: json(&policy),
            ..Default::default()
        };
        let send = |options| self.client.set_network_with_options(request.clone(), options);
        self.ask("setting a network policy", limit::WORD, send)
            .await
            .map(drop)
    }

    async fn metrics(
        &self,
        sandbox: SandboxId,
        from: Option<SystemTime>,
        to: Option<SystemTime>,
    ) -> Result<Vec<MetricSample>, NodeError> {
        let request = proto::MetricsRequest {
            sandbox: sandbox.to_string(),
            from: from.map(nanos),
            to: to.map(nanos),
            ..Default::default()
        };
        let send = |options| self.client.metrics_with_options(request.clone(), options);
        let samples = self.ask("reading metrics", limit::WORD, send).await?.into_owned();
        Ok(samples.samples.iter().map(told::from_sample).collect())
    }

    async fn logs(&self, sandbox: SandboxId, query: LogQuery) -> Result<Vec<LogLine>, NodeError> {
        let request = told::query(sandbox, &query);
        let send = |options| self.client.logs_with_options(request.clone(), options);
        let lines = self.ask("reading logs", limit::WORD, send).await?.into_owned();
        Ok(lines.lines.into_iter().map(told::from_line).collect())
    }

    async fn report(&self) -> Result<Report, NodeError> {
        let read = self.ask("reporting", limit::WORD, |options| async move {
            let request = proto::ReportRequest::default();
            let mut parts = self.client.report_with_options(request, options).await?;
            let mut report: Option<(Report, u64)> = None;
            let mut bytes = 0;
            while let Some(part) = parts.message::<proto::ReportPart>().await? {
                bytes += part.bytes().len();
                // A report is large, not endless.
                if bytes > 4 * ANSWER_BYTES_MAX {
                    return Ok(Err(Malformed("length of a report")));
                }
                let part = part.to_owned_message();
                match (&mut report, part.head.as_option()) {
                    (None, Some(head)) => match told::from_report_head(head, self.id) {
                        Ok(read) => report = Some((read, head.held)),
                        Err(malformed) => return Ok(Err(malformed)),
                    },
                    (None, None) => return Ok(Err(Malformed("head of a report"))),
                    (Some(_), _) => {}
                }
                if let Some((report, _)) = &mut report {
                    for held in &part.held {
                        match told::from_held(held) {
                            Ok(held) => report.held.push(held),
                            Err(malformed) => return Ok(Err(malformed)),
                        }
                    }
                }
            }
            // What is not in a report is taken for gone: half a one is none.
            Ok(match report {
                Some((report, held)) if report.held.len() as u64 == held => Ok(report),
                _ => Err(Malformed("end of a report")),
            })
        });
        read.await?.map_err(not_understood)
    }

    fn events(&self) -> broadcast::Receiver<NodeEvent> {
        let receiver = self.events.subscribe();
        self.hearing.get_or_init(|| {
            let stop = CancellationToken::new();
            let hearing = hearing::hear(self.id, self.client.clone(), self.events.clone());
            let stopped = stop.clone();
            tokio::spawn(async move { stopped.run_until_cancelled_owned(hearing).await });
            stop.drop_guard()
        });
        receiver
    }
}
