//! A build on its way: the order there, its log, its questions to the shelf, and its end back.
//!
//! ```text
//! client                                          server
//!   order ────────────────────────────────────────▶ node.build
//!   talk.lines ◀───────────────── line ───────────── talk.lines
//!   talk.shelf ◀── ask ── answer ──▶ ─────────────── talk.shelf
//!   talk.cancel ────────────── cancel ─────────────▶ talk.cancel
//!   hangs up ──────────────────────────────────────▶ the build is given up
//! ```
//!
//! Uploads are asked for piece by piece, so that neither side has more of one in memory than a piece.
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use connectrpc::client::CallOptions;
use connectrpc::{ConnectError, InboundStream, Response, ServiceResult, ServiceStream};
use futures_util::{StreamExt as _, stream};
use model::recipe::Key;
use ports::Node;
use ports::blobs::{BlobError, ByteStream};
use ports::builds::{BuildBase, BuildError, BuildLine, BuildOrder, BuildShelf, BuildTalk, Built, CachedStep};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use wire::node as proto;
use wire::node::__buffa::oneof::build_says::Says;
use wire::node::__buffa::oneof::build_tells::Tells;
use wire::node::__buffa::oneof::shelf_answer::Answers;
use wire::node::__buffa::oneof::shelf_ask::Asks;

use crate::call::{ANSWER_BYTES_MAX, Outcome};
use crate::channel::Channel;
use crate::convert::{
    Malformed, Read, from_json, from_level, from_memory, from_optional_json, json, level, memory, nanos,
    optional_json, parsed, time,
};
use crate::node::failure::{UNDERSTANDING, build_from_outcome, build_to_wire};
use crate::node::server::{CHUNK_BYTES_MAX, malformed};

/// Messages that wait for a slow client: the build waits with them.
const TOLD_MAX: usize = 64;
/// Lines that wait to become messages.
const LINES_MAX: usize = 256;
/// Who opens the stream has the order at hand.
const ORDER_WAIT_MAX: Duration = Duration::from_secs(30);
/// Questions and uploads that a build may have open at a time. An honest one has a few.
const ASKED_MAX: usize = 64;

// ---- as messages ----

fn order_to_wire(order: &BuildOrder) -> proto::BuildOrder {
    let base = order.base.as_ref().map(|base| proto::BuildBase {
        build: base.build.to_string(),
        context: json(&base.context),
        start: optional_json(base.start.as_ref()),
        ..Default::default()
    });
    proto::BuildOrder {
        build: order.build.to_string(),
        team: order.team.to_string(),
        template: order.template.to_string(),
        resources: json(&order.resources),
        recipe: json(&order.recipe),
        base: base.into(),
        ..Default::default()
    }
}

fn order_from_wire(order: &proto::BuildOrder) -> Read<BuildOrder> {
    let base = |base: &proto::BuildBase| {
        Ok(BuildBase {
            build: parsed(&base.build, "build id")?,
            context: from_json(&base.context, "context")?,
            start: from_optional_json(&base.start, "start command")?,
        })
    };
    Ok(BuildOrder {
        build: parsed(&order.build, "build id")?,
        team: parsed(&order.team, "team id")?,
        template: parsed(&order.template, "template id")?,
        resources: from_json(&order.resources, "resources")?,
        recipe: from_json(&order.recipe, "recipe")?,
        base: order.base.as_option().map(base).transpose()?,
    })
}

fn line_to_wire(line: BuildLine) -> proto::BuildLine {
    proto::BuildLine {
        at: nanos(line.at),
        level: level(line.level).into(),
        step: optional_json(line.step.as_ref()),
        message: line.message,
        ..Default::default()
    }
}

fn line_from_wire(line: proto::BuildLine) -> BuildLine {
    BuildLine {
        at: time(line.at),
        level: from_level(line.level),
        // A part of a build that is not known here is told without one.
        step: from_optional_json(&line.step, "step").unwrap_or_default(),
        message: line.message,
    }
}

fn step_to_wire(step: &CachedStep) -> proto::CachedStep {
    proto::CachedStep {
        build: step.build.to_string(),
        context: json(&step.context),
        ..Default::default()
    }
}

fn step_from_wire(step: &proto::CachedStep) -> Read<CachedStep> {
    Ok(CachedStep {
        build: parsed(&step.build, "build id")?,
        context: from_json(&step.context, "context")?,
    })
}

fn blob_to_wire(error: &BlobError) -> proto::BlobFailure {
    use proto::BlobReason as R;
    let (reason, text) = match error {
        BlobError::Missing(key) => (R::BLOB_REASON_MISSING, key.clone()),
        BlobError::Name(key) => (R::BLOB_REASON_NAME, key.clone()),
        BlobError::Source(key, _) => (R::BLOB_REASON_SOURCE, key.clone()),
        BlobError::Away(_) => (R::BLOB_REASON_AWAY, crate::causes(error)),
    };
    proto::BlobFailure {
        reason: reason.into(),
        text,
        ..Default::default()
    }
}

fn blob_from_wire(failure: proto::BlobFailure) -> BlobError {
    use proto::BlobReason as R;
    match failure.reason.as_known() {
        Some(R::BLOB_REASON_MISSING) => BlobError::Missing(failure.text),
        Some(R::BLOB_REASON_NAME) => BlobError::Name(failure.text),
        Some(R::BLOB_REASON_SOURCE) => {
            BlobError::Source(failure.text, std::io::ErrorKind::UnexpectedEof.into())
        }
        Some(R::BLOB_REASON_AWAY) | None => BlobError::Away(failure.text.into()),
    }
}

fn tells(tells: Tells) -> proto::BuildTells {
    proto::BuildTells {
        tells: Some(tells),
        ..Default::default()
    }
}

fn says(says: Says) -> proto::BuildSays {
    proto::BuildSays {
        says: Some(says),
        ..Default::default()
    }
}

// ---- the node's side ----

/// Carries out one build: ends with its end, or with whoever ordered it.
pub(crate) async fn serve(
    node: Arc<dyn Node>,
    mut requests: InboundStream<proto::BuildSays>,
) -> ServiceResult<ServiceStream<proto::BuildTells>> {
    let first = tokio::time::timeout(ORDER_WAIT_MAX, requests.next()).await;
    let first = first.map_err(|_| ConnectError::deadline_exceeded("no order came"))?;
    let first = first.ok_or_else(|| malformed(Malformed("order")))??;
    let Some(Says::Order(order)) = first.to_owned_message().says else {
        return Err(malformed(Malformed("order: it is to come first")));
    };
    let order = order_from_wire(&order).map_err(malformed)?;
    let (out, told) = mpsc::channel(TOLD_MAX);
    let cancel = CancellationToken::new();
    let shelf = FarShelf {
        out: out.clone(),
        next: Arc::new(AtomicU64::new(1)),
        waiting: Arc::new(Mutex::new(Some(HashMap::new()))),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(listen(requests, shelf.clone(), cancel.clone()));
    tasks.spawn(carry_out(node, order, shelf, out, cancel.clone()));
    // When the client hangs up the stream is dropped, and with it the tasks and what they wait for.
    let state = Some((told, tasks, cancel.drop_guard()));
    let told = stream::unfold(state, |state| async move {
        let (mut told, tasks, guard): (mpsc::Receiver<Told>, JoinSet<()>, DropGuard) = state?;
        let message = told.recv().await?;
        let is_last = match &message {
            Ok(tells) => matches!(tells.tells, Some(Tells::Built(_))),
            Err(_) => true,
        };
        Some((message, (!is_last).then_some((told, tasks, guard))))
    });
    Ok(Response::stream(told))
}

type Told = Result<proto::BuildTells, ConnectError>;

async fn carry_out(
    node: Arc<dyn Node>,
    order: BuildOrder,
    shelf: FarShelf,
    out: mpsc::Sender<Told>,
    cancel: CancellationToken,
) {
    let (lines, mut said) = mpsc::channel(LINES_MAX);
    let talk = BuildTalk {
        lines,
        cancel,
        shelf: Arc::new(shelf),
    };
    let line = |line| Ok(tells(Tells::Line(line_to_wire(line).into())));
    let mut building = node.build(order, talk);
    let built = loop {
        tokio::select! {
            biased;
            Some(said) = said.recv() => {
                // Nobody reads any more: the end of the stream ends the build.
                let _ = out.send(line(said)).await;
            }
            built = &mut building => break built,
        }
    };
    drop(building);
    while let Ok(said) = said.try_recv() {
        let _ = out.send(line(said)).await;
    }
    let end = match built {
        Ok(built) => Ok(tells(Tells::Built(
            proto::Built {
                context: json(&built.context),
                start: optional_json(built.start.as_ref()),
                memory: memory(built.memory),
                ..Default::default()
            }
            .into(),
        ))),
        Err(error) => Err(build_to_wire(&error)),
    };
    let _ = out.send(end).await;
}

/// Hears what the client says while it builds.
async fn listen(mut requests: InboundStream<proto::BuildSays>, shelf: FarShelf, cancel: CancellationToken) {
    while let Some(request) = requests.next().await {
        let Ok(request) = request else { break };
        match request.to_owned_message().says {
            Some(Says::Answer(answer)) => shelf.answered(*answer),
            Some(Says::Cancel(_)) => cancel.cancel(),
            // What a newer client says besides, it says to newer nodes.
            Some(Says::Order(_)) | None => {}
        }
    }
    // It says nothing any more, and will answer nothing.
    shelf.close();
}

/// The shelf of whoever ordered the build.
#[derive(Clone)]
struct FarShelf {
    out: mpsc::Sender<Told>,
    next: Arc<AtomicU64>,
    /// Who waits for an answer; none when there will be no answers any more.
    waiting: Arc<Mutex<Option<Waiting>>>,
}

type Waiting = HashMap<u64, oneshot::Sender<Answers>>;

/// The pieces of an upload, which are asked for one by one.
struct Pieces {
    shelf: FarShelf,
    id: u64,
    is_over: bool,
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if !self.is_over {
            let enough = proto::ShelfAsk {
                id: self.id,
                asks: Some(Asks::Enough(Box::default())),
                ..Default::default()
            };
            // Where it finds no room, the upload is closed with the build.
            let _ = self.shelf.out.try_send(Ok(tells(Tells::Ask(enough.into()))));
        }
    }
}

impl FarShelf {
    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn close(&self) {
        // Those who wait hear that nobody answers.
        *self.waiting() = None;
    }

    fn answered(&self, answer: proto::ShelfAnswer) {
        let waiter = self
            .waiting()
            .as_mut()
            .and_then(|waiting| waiting.remove(&answer.id));
        if let (Some(waiter), Some(answers)) = (waiter, answer.answers) {
            let _ = waiter.send(answers);
        }
    }

    /// None where nobody answers any more.
    async fn ask(&self, id: u64, asks: Asks) -> Option<Answers> {
        let (answer, answered) = oneshot::channel();
        self.waiting().as_mut()?.insert(id, answer);
        let ask = proto::ShelfAsk {
            id,
            asks: Some(asks),
            ..Default::default()
        };
        self.out.send(Ok(tells(Tells::Ask(ask.into())))).await.ok()?;
        answered.await.ok()
    }
}

#[async_trait]
impl BuildShelf for FarShelf {
    async fn cached(&self, key: Key) -> Option<CachedStep> {
        match self.ask(self.id(), Asks::Cached(key.to_string())).await? {
            Answers::Cached(step) => step_from_wire(&step).ok(),
            _ => None,
        }
    }

    async fn cache(&self, key: Key, step: CachedStep) {
        let step = proto::CacheStep {
            key: key.to_string(),
            step: Some(step_to_wire(&step)).into(),
            ..Default::default()
        };
        self.ask(self.id(), Asks::Cache(step.into())).await;
    }

    async fn upload(&self, files: &str) -> Result<ByteStream, BlobError> {
        let id = self.id();
        match self.ask(id, Asks::Upload(files.to_owned())).await {
            Some(Answers::Done(_)) => {}
            Some(Answers::Failed(failure)) => return Err(blob_from_wire(*failure)),
            _ => {
                return Err(BlobError::Away(
                    "whoever ordered the build does not answer".into(),
                ));
            }
        }
        let pieces = Pieces {
            shelf: self.clone(),
            id,
            is_over: false,
        };
        let pieces = stream::unfold(pieces, |mut pieces| async move {
            if pieces.is_over {
                return None;
            }
            let piece = match pieces.shelf.ask(pieces.id, Asks::More(Box::default())).await {
                Some(Answers::Bytes(bytes)) => return Some((Ok(Bytes::from(bytes)), pieces)),
                Some(Answers::Done(_)) => None,
                Some(Answers::Failed(failure)) => Some(std::io::Error::other(failure.text.clone())),
                _ => Some(std::io::Error::new(
                    std::io::ErrorKind::ConnectionAborted,
                    "whoever ordered the build does not answer",
                )),
            };
            pieces.is_over = true;
            piece.map(|error| (Err(error), pieces))
        });
        Ok(pieces.boxed())
    }

    async fn discard_upload(&self, files: &str) {
        self.ask(self.id(), Asks::DiscardUpload(files.to_owned())).await;
    }
}

// ---- the side of whoever ordered it ----

/// What became of a question to the shelf.
struct Handled {
    answer: Option<proto::ShelfAnswer>,
    /// An upload that goes on, with bytes of it that were too many for one piece.
    open: Option<(u64, ByteStream, Bytes)>,
}

/// Has a node carry out a build. Whoever gives up waiting ends it.
pub(crate) async fn order(
    client: &proto::NodeClient<Channel>,
    order: BuildOrder,
    talk: BuildTalk,
) -> Result<Built, BuildError> {
    let lost = |error| build_from_outcome(Outcome::of(error));
    // It may take hours: whoever ordered it knows how many.
    let options = CallOptions::default()
        .with_max_message_size(ANSWER_BYTES_MAX)
        .with_element_memory_limit(ANSWER_BYTES_MAX);
    let stream = client.build_with_options(options).await.map_err(lost)?;
    let (mut send, mut receive) = stream.into_split();
    let sent = send.send(says(Says::Order(order_to_wire(&order).into()))).await;
    // Where the order was not taken, the answer says why.
    let is_sent = sent.is_ok();
    // What was begun to be read is read to its end, whatever else happens meanwhile.
    let (heard, mut hear) = mpsc::channel(1);
    let mut reader = JoinSet::new();
    reader.spawn(async move {
        loop {
            let message = receive.message::<proto::BuildTells>().await;
            let is_last = !matches!(message, Ok(Some(_)));
            let message = message.map(|message| message.map(|message| message.to_owned_message()));
            if heard.send(message).await.is_err() || is_last {
                return;
            }
        }
    });
    let mut handling: JoinSet<Handled> = JoinSet::new();
    let mut uploads: HashMap<u64, (ByteStream, Bytes)> = HashMap::new();
    let mut is_cancelled = false;
    loop {
        let message = tokio::select! {
            message = hear.recv() => message,
            () = talk.cancel.cancelled(), if !is_cancelled && is_sent => {
                is_cancelled = true;
                let _ = send.send(says(Says::Cancel(Box::default()))).await;
                continue;
            }
            Some(handled) = handling.join_next() => {
                // A shelf that panics answers nothing, and the build ends by its own time.
                if let Ok(Handled { answer, open }) = handled {
                    if let Some((id, bytes, rest)) = open {
                        uploads.insert(id, (bytes, rest));
                    }
                    if let Some(answer) = answer {
                        let _ = send.send(says(Says::Answer(answer.into()))).await;
                    }
                }
                continue;
            }
        };
        let tells = match message {
            Some(Ok(Some(message))) => message.tells,
            Some(Ok(None)) | None => return Err(not_understood(Malformed("end of a build"))),
            Some(Err(error)) => return Err(lost(error)),
        };
        match tells {
            Some(Tells::Line(line)) => {
                let sending = talk.lines.send(line_from_wire(*line));
                tokio::select! {
                    _ = sending => {}
                    // Nobody reads the log of a build that is cancelled.
                    () = talk.cancel.cancelled(), if !is_cancelled => {
                        is_cancelled = true;
                        let _ = send.send(says(Says::Cancel(Box::default()))).await;
                    }
                }
            }
            Some(Tells::Ask(ask)) => {
                let id = ask.id;
                let upload = match ask.asks {
                    Some(Asks::More(_) | Asks::Enough(_)) => uploads.remove(&id),
                    _ => None,
                };
                if handling.len() + uploads.len() >= ASKED_MAX {
                    return Err(not_understood(Malformed("number of questions to the shelf")));
                }
                if let Some(asks) = ask.asks {
                    handling.spawn(handle(Arc::clone(&talk.shelf), id, asks, upload));
                }
            }
            Some(Tells::Built(built)) => {
                let read = || {
                    Ok(Built {
                        context: from_json(&built.context, "context")?,
                        start: from_optional_json(&built.start, "start command")?,
                        memory: from_memory(&built.memory),
                    })
                };
                return read().map_err(not_understood);
            }
            // What a newer node tells besides.
            None => {}
        }
    }
}

fn not_understood(malformed: Malformed) -> BuildError {
    BuildError::Node {
        step: UNDERSTANDING,
        source: Box::new(malformed),
    }
}

async fn handle(
    shelf: Arc<dyn BuildShelf>,
    id: u64,
    asks: Asks,
    upload: Option<(ByteStream, Bytes)>,
) -> Handled {
    let done = || Answers::Done(Box::default());
    let mut open = None;
    let answers = match asks {
        Asks::Cached(key) => match parsed::<Key>(&key, "key") {
            Ok(key) => {
                let step = shelf.cached(key).await;
                step.map_or_else(done, |step| Answers::Cached(step_to_wire(&step).into()))
            }
            Err(_) => done(),
        },
        Asks::Cache(cache) => {
            let step = cache.step.as_option().map(step_from_wire);
            if let (Ok(key), Some(Ok(step))) = (parsed::<Key>(&cache.key, "key"), step) {
                shelf.cache(key, step).await;
            }
            done()
        }
        Asks::Upload(files) => match shelf.upload(&files).await {
            Ok(bytes) => {
                open = Some((id, bytes, Bytes::new()));
                done()
            }
            Err(error) => Answers::Failed(blob_to_wire(&error).into()),
        },
        Asks::More(_) => match upload {
            Some((mut bytes, mut rest)) => {
                while rest.is_empty() {
                    match bytes.next().await {
                        Some(Ok(piece)) => rest = piece,
                        Some(Err(error)) => {
                            let failure = proto::BlobFailure {
                                reason: proto::BlobReason::BLOB_REASON_SOURCE.into(),
                                text: error.to_string(),
                                ..Default::default()
                            };
                            return answer(id, Answers::Failed(failure.into()), None);
                        }
                        None => return answer(id, done(), None),
                    }
                }
                let piece = rest.split_to(rest.len().min(CHUNK_BYTES_MAX));
                open = Some((id, bytes, rest));
                Answers::Bytes(piece.into())
            }
            None => done(),
        },
        Asks::Enough(_) => return Handled { answer: None, open },
        Asks::DiscardUpload(files) => {
            shelf.discard_upload(&files).await;
            done()
        }
    };
    answer(id, answers, open)
}

fn answer(id: u64, answers: Answers, open: Option<(u64, ByteStream, Bytes)>) -> Handled {
    let answer = proto::ShelfAnswer {
        id,
        answers: Some(answers),
        ..Default::default()
    };
    Handled {
        answer: Some(answer),
        open,
    }
}
