//! A double of Nomad: the part of its API that the adapter uses, with one machine. It promises what Nomad's documentation does: indices
//! that grow, questions that wait, pages, tokens by which a dispatch is known again, allocations that come and go in their time.
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use model::MiB;
use ports::scheduler::Size;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// The machine's name.
pub(super) const MACHINE: &str = "machine-1";
/// The token that is let in, where one is asked for.
pub(super) const TOKEN: &str = "a-token-of-the-tests";
/// How long the machine takes for anything.
const TAKES: Duration = Duration::from_millis(60);

struct Task {
    id: String,
    parent: String,
    token: String,
    meta: BTreeMap<String, String>,
    stop: bool,
    changed: u64,
}

struct Allocation {
    id: String,
    job: String,
    desired: &'static str,
    why: &'static str,
    client: &'static str,
    created: u64,
    changed: u64,
}

#[derive(Default)]
struct State {
    parents: BTreeMap<String, Value>,
    jobs: BTreeMap<String, Task>,
    allocations: Vec<Allocation>,
    stopped: Vec<String>,
    total: Size,
    page_max: usize,
    meta_in_lists: bool,
    asks_for_token: bool,
    stands_still: bool,
    slow_to_stop: bool,
}

struct Shared {
    state: Mutex<State>,
    /// The newest index; a change wakes whoever waits.
    index: watch::Sender<u64>,
}

/// A running, or stopped, double.
pub(super) struct Double {
    shared: Arc<Shared>,
    address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Double {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    fn new(total: Size) -> Arc<Self> {
        let state = State {
            total,
            page_max: 1_000,
            meta_in_lists: true,
            ..State::default()
        };
        Arc::new(Self {
            state: Mutex::new(state),
            index: watch::Sender::new(10),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The index of a change.
    fn next(&self) -> u64 {
        *self.index.borrow() + 1
    }

    fn tell(&self, index: u64) {
        self.index.send_replace(index);
    }
}

impl Double {
    pub(super) async fn start(total: Size) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut double = Self {
            shared: Shared::new(total),
            address: listener.local_addr().unwrap(),
            tasks: Vec::new(),
        };
        double.serve(listener);
        double
    }

    fn serve(&mut self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        let (machine, serving) = (Arc::clone(&shared), shared);
        self.tasks.push(tokio::spawn(async move {
            let mut lines = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                lines.spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
                    let _ = Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        }));
        self.tasks.push(tokio::spawn(async move {
            loop {
                sleep(TAKES).await;
                run(&machine);
            }
        }));
    }

    pub(super) fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) async fn stop(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
    }

    pub(super) async fn start_anew(&mut self) {
        let total = self.shared.state().total;
        self.shared = Shared::new(total);
        let mut bound = TcpListener::bind(self.address).await;
        while bound.is_err() {
            sleep(TAKES).await;
            bound = TcpListener::bind(self.address).await;
        }
        self.serve(bound.unwrap());
    }

    pub(super) fn stand_still(&self, is: bool) {
        self.shared.state().stands_still = is;
        // Whoever waits is woken, and then not answered.
        let index = *self.shared.index.borrow();
        self.shared.tell(index);
    }

    pub(super) fn slow_to_stop(&self, is: bool) {
        self.shared.state().slow_to_stop = is;
    }

    pub(super) fn page_at_most(&self, page_max: usize) {
        self.shared.state().page_max = page_max;
    }

    pub(super) fn tell_meta_in_lists(&self, is: bool) {
        self.shared.state().meta_in_lists = is;
    }

    pub(super) fn ask_for_token(&self) {
        self.shared.state().asks_for_token = true;
    }

    pub(super) fn stopped(&self) -> Vec<String> {
        self.shared.state().stopped.clone()
    }

    /// The machine is drained, as by `nomad node drain`.
    pub(super) fn drain(&self) {
        let index = self.shared.next();
        for allocation in &mut self.shared.state().allocations {
            (allocation.desired, allocation.why) = ("stop", "alloc is being migrated: node drain");
            allocation.changed = index;
        }
        self.shared.tell(index);
    }

    /// What is said of all that runs on the machine.
    pub(super) fn machine_says(&self, client: &'static str) {
        let index = self.shared.next();
        for allocation in &mut self.shared.state().allocations {
            allocation.client = client;
            allocation.changed = index;
        }
        self.shared.tell(index);
    }

    pub(super) fn put_job(&self, id: &str, meta: Value) {
        let index = self.shared.next();
        let job = Task {
            id: id.to_owned(),
            parent: String::new(),
            token: String::new(),
            meta: serde_json::from_value(meta).unwrap(),
            stop: false,
            changed: index,
        };
        self.shared.state().jobs.insert(id.to_owned(), job);
        self.shared.tell(index);
    }
}

/// What the scheduler and the machine do in their time.
fn run(shared: &Shared) {
    let index = shared.next();
    let mut state = shared.state();
    let mut is_news = false;
    let slow = state.slow_to_stop;
    for allocation in &mut state.allocations {
        let client = match (allocation.desired, allocation.client) {
            ("run", "pending") => "running",
            ("stop", "pending" | "running") if !slow => "complete",
            _ => continue,
        };
        (allocation.client, allocation.changed, is_news) = (client, index, true);
    }
    let size = |job: &Task| Size {
        cpu: job.meta["atoll_cpu"].parse().unwrap(),
        memory: MiB(job.meta["atoll_memory_mib"].parse().unwrap()),
    };
    let lives = |allocation: &Allocation| matches!(allocation.client, "pending" | "running");
    let waiting: Vec<String> = state
        .jobs
        .values()
        .filter(|job| !job.stop && !job.parent.is_empty())
        .filter(|job| {
            !state
                .allocations
                .iter()
                .any(|allocation| allocation.job == job.id)
        })
        .map(|job| job.id.clone())
        .collect();
    for id in waiting {
        let held = state.allocations.iter().filter(|allocation| lives(allocation));
        let used = held.fold((0, 0), |(cpu, memory), allocation| {
            let size = size(&state.jobs[&allocation.job]);
            (cpu + size.cpu, memory + size.memory.0)
        });
        let job = &state.jobs[&id];
        let wanted = size(job);
        let here = state.parents[&job.parent]["Datacenters"] == json!(["*"])
            || state.parents[&job.parent]["Datacenters"] == json!(["dc1"]);
        if here && used.0 + wanted.cpu <= state.total.cpu && used.1 + wanted.memory.0 <= state.total.memory.0
        {
            let allocation = Allocation {
                id: model::NodeId::random().to_string(),
                job: id,
                desired: "run",
                why: "",
                client: "pending",
                created: index,
                changed: index,
            };
            state.allocations.push(allocation);
            is_news = true;
        }
    }
    drop(state);
    if is_news {
        shared.tell(index);
    }
}

fn told(status: u16, body: impl Into<Bytes>) -> Response<http_body_util::Full<Bytes>> {
    Response::builder()
        .status(status)
        .body(http_body_util::Full::new(body.into()))
        .unwrap()
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<http_body_util::Full<Bytes>>, Infallible> {
    let url = reqwest::Url::parse(&format!("http://x{}", request.uri())).unwrap();
    let query: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
    let path: Vec<String> = url
        .path_segments()
        .unwrap()
        .map(|part| part.replace("%2F", "/"))
        .collect();
    let method = request.method().as_str().to_owned();
    let token = request.headers().get("x-nomad-token").cloned();
    let mut body = Vec::new();
    let mut incoming = request.into_body();
    while !incoming.is_end_stream() {
        match http_body_util::BodyExt::frame(&mut incoming).await {
            Some(Ok(frame)) => body.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
            _ => break,
        }
    }
    let is_known = token.as_ref().is_some_and(|token| token == TOKEN);
    if shared.state().asks_for_token && !is_known {
        return Ok(told(403, "Permission denied"));
    }
    // A question that waits, waits for a later index.
    let after: u64 = query.get("index").map_or(0, |index| index.parse().unwrap());
    let is_first = !query.contains_key("next_token");
    if after > 0 && is_first {
        let wait = query
            .get("wait")
            .and_then(|wait| wait.strip_suffix("ms"))
            .map_or(5_000, |ms| ms.parse().unwrap());
        let kind = path[1].clone();
        let mut index = shared.index.subscribe();
        let news = async {
            while newest(&shared, &kind) <= after && !shared.state().stands_still {
                if index.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = timeout(Duration::from_millis(wait), news).await;
    }
    while shared.state().stands_still {
        sleep(TAKES).await;
    }
    let parts: Vec<&str> = path.iter().map(String::as_str).collect();
    Ok(carry_out(&shared, &method, &parts, &query, &body))
}

/// The index of a table.
fn newest(shared: &Shared, kind: &str) -> u64 {
    let state = shared.state();
    let jobs = state.jobs.values().map(|job| job.changed);
    let allocations = state.allocations.iter().map(|allocation| allocation.changed);
    let changed = if kind == "jobs" {
        jobs.max()
    } else {
        allocations.max()
    };
    changed.unwrap_or(1)
}

fn carry_out(
    shared: &Shared,
    method: &str,
    path: &[&str],
    query: &BTreeMap<String, String>,
    body: &[u8],
) -> Response<http_body_util::Full<Bytes>> {
    let index = shared.next();
    match (method, path) {
        ("PUT", ["v1", "jobs"]) => {
            let body: Value = serde_json::from_slice(body).unwrap();
            let id = body["Job"]["ID"].as_str().unwrap().to_owned();
            assert_eq!(body["Job"]["Type"], "batch");
            shared.state().parents.insert(id, body["Job"].clone());
            told(200, json!({ "EvalID": "", "JobModifyIndex": index }).to_string())
        }
        ("PUT", ["v1", "job", parent, "dispatch"]) => {
            let mut state = shared.state();
            let Some(of) = state.parents.get(*parent) else {
                return told(404, "parameterized job not found");
            };
            let body: Value = serde_json::from_slice(body).unwrap();
            let meta: BTreeMap<String, String> = serde_json::from_value(body["Meta"].clone()).unwrap();
            let may = |list: &str, key: &str| {
                of["ParameterizedJob"][list]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|k| k == key)
            };
            if let Some(key) = meta
                .keys()
                .find(|key| !may("MetaRequired", key) && !may("MetaOptional", key))
            {
                return told(
                    400,
                    format!("Dispatch request included unpermitted metadata keys: [{key}]"),
                );
            }
            let token = query.get("idempotency_token").cloned().unwrap_or_default();
            let same = state
                .jobs
                .values()
                .find(|job| job.parent == *parent && job.token == token);
            let id = same.map(|job| job.id.clone());
            let id = id.unwrap_or_else(|| {
                let id = format!(
                    "{parent}/dispatch-{index}-{}",
                    &model::SandboxId::random().as_str()[..8]
                );
                let job = Task {
                    id: id.clone(),
                    parent: (*parent).to_owned(),
                    token,
                    meta,
                    stop: false,
                    changed: index,
                };
                state.jobs.insert(id.clone(), job);
                id
            });
            drop(state);
            shared.tell(index);
            told(
                200,
                json!({ "DispatchedJobID": id, "EvalID": "e", "JobCreateIndex": index }).to_string(),
            )
        }
        ("DELETE", ["v1", "job", id]) => {
            let mut state = shared.state();
            let Some(job) = state.jobs.get_mut(*id) else {
                return told(404, "job not found");
            };
            (job.stop, job.changed) = (true, index);
            state.stopped.push((*id).to_owned());
            for allocation in state
                .allocations
                .iter_mut()
                .filter(|allocation| allocation.job == *id)
            {
                if allocation.desired == "run" {
                    (allocation.desired, allocation.why) = ("stop", "alloc not needed due to job update");
                    allocation.changed = index;
                }
            }
            drop(state);
            shared.tell(index);
            told(200, json!({ "EvalID": "e", "JobModifyIndex": index }).to_string())
        }
        ("GET", ["v1", "job", id]) => match shared.state().jobs.get(*id) {
            Some(job) => told(200, written(job, true).to_string()),
            None => told(404, "job not found"),
        },
        ("GET", ["v1", "jobs"]) => {
            let state = shared.state();
            let prefix = &query["prefix"];
            let parents = state
                .parents
                .keys()
                .map(|id| (id.clone(), json!({ "ID": id, "ParameterizedJob": true })));
            let is_told = state.meta_in_lists && query.get("meta").is_some_and(|meta| meta == "true");
            let jobs = state
                .jobs
                .values()
                .map(|job| (job.id.clone(), written(job, is_told)));
            let all: BTreeMap<String, Value> = parents
                .chain(jobs)
                .filter(|(id, _)| id.starts_with(prefix))
                .collect();
            let page_max = state.page_max;
            drop(state);
            paged(shared, "jobs", all, query, page_max)
        }
        ("GET", ["v1", "allocations"]) => {
            let state = shared.state();
            let prefix = query["filter"]
                .strip_prefix("JobID matches \"^")
                .and_then(|rest| rest.strip_suffix('"'));
            let prefix = prefix.expect("a filter that the double understands");
            let told = state
                .allocations
                .iter()
                .filter(|allocation| allocation.job.starts_with(prefix));
            let all = told.map(|allocation| {
                let written = json!({
                    "ID": allocation.id,
                    "JobID": allocation.job,
                    "NodeID": "5a1f0c50-4a77-4b9c-9a1f-0d6f6a3b7e11",
                    "NodeName": MACHINE,
                    "DesiredStatus": allocation.desired,
                    "DesiredDescription": allocation.why,
                    "ClientStatus": allocation.client,
                    "ClientDescription": "",
                    "TaskStates": null,
                    "CreateIndex": allocation.created,
                    "ModifyIndex": allocation.changed,
                });
                (allocation.id.clone(), written)
            });
            let all = all.collect();
            let page_max = state.page_max;
            drop(state);
            paged(shared, "allocations", all, query, page_max)
        }
        _ => told(404, format!("{method} {path:?} is not doubled")),
    }
}

fn written(job: &Task, with_meta: bool) -> Value {
    let mut written = json!({
        "ID": job.id,
        "ParentID": job.parent,
        "Type": "batch",
        "Stop": job.stop,
        "Status": if job.stop { "dead" } else { "running" },
        "StatusDescription": "",
        "ModifyIndex": job.changed,
    });
    if with_meta {
        written["Meta"] = json!(job.meta);
    }
    written
}

fn paged(
    shared: &Shared,
    kind: &str,
    all: BTreeMap<String, Value>,
    query: &BTreeMap<String, String>,
    page_max: usize,
) -> Response<http_body_util::Full<Bytes>> {
    let page: usize = query["per_page"].parse::<usize>().unwrap().min(page_max);
    let from = query.get("next_token").cloned().unwrap_or_default();
    let mut rest = all.into_iter().filter(|(id, _)| *id >= from);
    let told_now: Vec<Value> = rest.by_ref().take(page).map(|(_, value)| value).collect();
    let mut response = told(200, json!(told_now).to_string());
    let headers = response.headers_mut();
    headers.insert("x-nomad-index", newest(shared, kind).into());
    headers.insert("x-nomad-knownleader", "true".parse().unwrap());
    if let Some((next, _)) = rest.next() {
        headers.insert("x-nomad-nexttoken", next.parse().unwrap());
    }
    response
}
