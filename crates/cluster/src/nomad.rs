//! Nomad: blocks of capacity as allocations, and the jobs that deploy Atoll.
//!
//! ```text
//! schedule ──▶ jobs               a parameterised job for each size and zone, told once
//!          └─▶ job/…/dispatch     one block: a job of its own, known again by its idempotency token
//! watch    ──▶ jobs, allocations  blocking, both at once; what is asked for, and where it is
//! stop     ──▶ DELETE job/…
//! block        in the allocation: holds the capacity, and tells the node's daemon of it      (holder, holds)
//! render       deploy/nomad: the jobs of api, edge, orchestrator, node and migrations
//! ```
//!
//! A parameterised job has one size, which a dispatch cannot change: hence one for each size. Nomad takes seconds for a block: it is
//! no part of a create, unless a sandbox asks to be its own allocation.
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use model::{ClusterName, Secret};
use ports::scheduler::{Ask, Block, BlockId, Blocks, Filter, Page, ResourceScheduler, ScheduleError};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::peer::{Answer, Call, Peer, PeerError, check_times, is_name, told};

pub use crate::peer::Tls;
pub use holder::{Holder, hold};
pub use holds::{Hold, Holds, usable};
pub use render::{Configuration, Deployment, File, RenderError, Share, render};

mod follow;
mod holder;
mod holds;
mod job;
mod render;

/// Where a node's daemon listens to its blocks, unless it is told otherwise.
pub const SOCKET: &str = "/run/atoll/blocks.sock";

/// Where Nomad is, and who we are to it.
#[derive(Debug, Clone)]
pub struct Config {
    /// An agent: `http://127.0.0.1:4646`.
    pub address: String,
    /// What it is told with every request, where it has access control. It needs `submit-job`, `dispatch-job`, `list-jobs` and
    /// `read-job`.
    pub token: Option<Secret<String>>,
    /// How it is known.
    pub tls: Tls,
    /// The region; the agent's own where none is named.
    pub region: Option<String>,
    /// The namespace; Nomad's default where none is named.
    pub namespace: Option<String>,
    /// Which cluster: two with different names do not meet in one Nomad.
    pub cluster: ClusterName,
    /// Where blocks may be that are asked for anywhere: Nomad's datacentres, or `*`.
    pub datacenters: Vec<String>,
    /// Nomad's driver: `exec`, or `raw_exec`, by which the block speaks to the node's daemon as root.
    pub driver: String,
    /// The program of Atoll's on the machines.
    pub program: String,
    /// What the program is told, in place of what is usual: for tests, whose machines have no Atoll.
    pub arguments: Option<Vec<String>>,
    /// Where the node's daemon listens to its blocks.
    pub socket: String,
    /// What Nomad counts for one CPU, in MHz.
    pub cpu_mhz: u32,
    /// How long a block that is to stop may take to be emptied. Nomad's clients cut it to their own `max_kill_timeout`.
    pub drain_within: Duration,
    /// After which a machine that Nomad does not hear of is lost, with its blocks.
    pub lost_after: Duration,
    /// In which time Nomad is to answer what it can answer at once.
    pub within: Duration,
    /// For how long a question may wait for news.
    pub wait: Duration,
}

impl Config {
    /// The agent at an address, for a cluster.
    #[must_use]
    pub fn new(address: impl Into<String>, cluster: ClusterName) -> Self {
        Self {
            address: address.into(),
            token: None,
            tls: Tls::default(),
            region: None,
            namespace: None,
            cluster,
            datacenters: vec!["*".to_owned()],
            driver: "raw_exec".to_owned(),
            program: "/usr/local/bin/atoll".to_owned(),
            arguments: None,
            socket: SOCKET.to_owned(),
            cpu_mhz: 1000,
            drain_within: Duration::from_secs(300),
            lost_after: Duration::from_secs(60),
            within: Duration::from_secs(5),
            wait: Duration::from_secs(30),
        }
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`ScheduleError::Invalid`] with the first thing that is wrong.
    pub fn check(&self) -> Result<(), ScheduleError> {
        let wrong = |what: String| Err(ScheduleError::Invalid(what));
        for (what, name) in [("region", &self.region), ("namespace", &self.namespace)] {
            if name.as_deref().is_some_and(|name| !is_name(name)) {
                return wrong(format!("the name of Nomad's {what} is none"));
            }
        }
        if self.datacenters.is_empty() || !self.datacenters.iter().all(|dc| dc == "*" || is_name(dc)) {
            return wrong(format!("{:?} are not the names of datacentres", self.datacenters));
        }
        if !matches!(self.driver.as_str(), "exec" | "raw_exec") {
            return wrong(format!(
                "blocks are run by exec or raw_exec, not by {:?}",
                self.driver
            ));
        }
        if !self.program.starts_with('/') || !self.socket.starts_with('/') {
            return wrong("the program and the socket are absolute paths".to_owned());
        }
        if !(100..=20_000).contains(&self.cpu_mhz) {
            return wrong(format!("a CPU of {} MHz is none", self.cpu_mhz));
        }
        let times = [
            (
                "drain_within",
                self.drain_within,
                Duration::from_secs(1),
                Duration::from_secs(86_400),
            ),
            (
                "lost_after",
                self.lost_after,
                Duration::from_secs(1),
                Duration::from_secs(86_400),
            ),
            (
                "within",
                self.within,
                Duration::from_millis(100),
                Duration::from_secs(60),
            ),
            (
                "wait",
                self.wait,
                Duration::from_secs(1),
                Duration::from_secs(600),
            ),
        ];
        check_times("Nomad", &times).map_err(ScheduleError::Invalid)
    }
}

/// Nomad, as seen from one process.
pub struct Nomad {
    server: Arc<Server>,
    /// Ends every task.
    _stop: DropGuard,
}

/// The line to Nomad, and what is known of its jobs.
struct Server {
    peer: Peer,
    config: Config,
    stop: CancellationToken,
    /// What a dispatched job was asked to be, which never changes.
    asks: Mutex<HashMap<String, Arc<job::Asked>>>,
    view: Mutex<Option<watch::Sender<Arc<Blocks>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this")
}

#[derive(Deserialize)]
struct Dispatched {
    #[serde(rename = "DispatchedJobID")]
    id: String,
}

impl Nomad {
    /// Nomad at the address of the configuration. It need not be there yet.
    ///
    /// # Errors
    /// The configuration makes no sense, or Nomad is there and refuses the token.
    pub async fn connect(config: Config) -> Result<Arc<Self>, ScheduleError> {
        config.check()?;
        let header = config.token.as_ref().map(|token| ("x-nomad-token", token));
        let peer = Peer::new(&config.address, &config.tls, header).map_err(ScheduleError::Invalid)?;
        let stop = CancellationToken::new();
        let server = Arc::new(Server {
            peer,
            config,
            stop: stop.clone(),
            asks: Mutex::default(),
            view: Mutex::default(),
        });
        match server.jobs(None).await {
            Ok(_) => {}
            Err(error @ ScheduleError::Away { .. }) => {
                tracing::warn!(error = told(&error), "Nomad is not there yet");
            }
            Err(error) => return Err(error),
        }
        Ok(Arc::new(Self {
            server,
            _stop: stop.drop_guard(),
        }))
    }
}

impl Server {
    fn failed(&self, what: &str, error: PeerError) -> ScheduleError {
        let (service, what) = (format!("Nomad at {}", self.peer.address()), what.to_owned());
        match error {
            PeerError::Away(source) => ScheduleError::Away {
                service,
                what,
                source,
            },
            PeerError::Slow(within) => ScheduleError::Away {
                service,
                what,
                source: format!("it did not answer within {within:?}").into(),
            },
            PeerError::Strange(why) => ScheduleError::Strange { service, what, why },
        }
    }

    /// What an answer of no use means.
    fn refused(&self, what: &str, answer: &Answer) -> ScheduleError {
        let (service, what, why) = (
            format!("Nomad at {}", self.peer.address()),
            what.to_owned(),
            answer.said(),
        );
        match answer.status {
            400 | 401 | 403 => ScheduleError::Refused { service, what, why },
            429 | 500..=599 => ScheduleError::Away {
                service,
                what,
                source: why.into(),
            },
            _ => ScheduleError::Strange { service, what, why },
        }
    }

    fn scope<'a>(&self) -> Vec<(&'a str, String)> {
        let scope = [
            ("region", &self.config.region),
            ("namespace", &self.config.namespace),
        ];
        scope
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?)))
            .collect()
    }

    async fn ask(
        &self,
        what: &str,
        method: Method,
        path: &[&str],
        more: Vec<(&str, String)>,
        body: Option<Value>,
        wait: Duration,
    ) -> Result<Answer, ScheduleError> {
        let mut query = self.scope();
        query.extend(more);
        let call = Call {
            method,
            path,
            query,
            body: body.map(|body| body.to_string().into_bytes()),
            // Nomad, too, adds up to a sixteenth to what it is asked to wait for.
            within: self.config.within + wait + wait / 16,
        };
        self.peer
            .call(call)
            .await
            .map_err(|error| self.failed(what, error))
    }

    /// Whether a job's id is that of a block of ours.
    fn is_block(&self, id: &str) -> bool {
        id.starts_with(&job::prefix(&self.config.cluster)) && id.contains("/dispatch-")
    }

    /// Tells Nomad of the job that blocks of this size are dispatched from.
    async fn tell_parent(&self, ask: &Ask) -> Result<(), ScheduleError> {
        let what = format!("register the job of blocks of {}", ask.size);
        let body = json!({ "Job": job::parent(&self.config, ask) });
        let answer = self
            .ask(
                &what,
                Method::PUT,
                &["v1", "jobs"],
                Vec::new(),
                Some(body),
                Duration::ZERO,
            )
            .await?;
        if answer.status != 200 {
            return Err(self.refused(&what, &answer));
        }
        Ok(())
    }

    async fn dispatch(&self, ask: &Ask) -> Result<Answer, ScheduleError> {
        let what = format!("dispatch a block of {}", ask.size);
        let parent = job::parent_id(&self.config.cluster, ask);
        let body = json!({ "Meta": job::meta(&self.config.cluster, ask) });
        let token = vec![("idempotency_token", ask.token.clone())];
        let path = ["v1", "job", &parent, "dispatch"];
        self.ask(&what, Method::PUT, &path, token, Some(body), Duration::ZERO)
            .await
    }

    async fn blocks(&self) -> Result<BTreeMap<BlockId, Block>, ScheduleError> {
        let (jobs, _) = self.jobs(None).await?;
        let (allocations, _) = self.allocations(None).await?;
        self.joined(&jobs, &allocations).await
    }
}

/// Whether an answer says that there is no such job.
fn is_missing(answer: &Answer) -> bool {
    answer.status == 404 || (matches!(answer.status, 400 | 500) && answer.said().contains("not found"))
}

#[async_trait]
impl ResourceScheduler for Nomad {
    async fn schedule(&self, ask: Ask) -> Result<Block, ScheduleError> {
        ask.check()?;
        let server = &self.server;
        let there = server.blocks().await?;
        if let Some(block) = there.into_values().find(|block| block.token == ask.token) {
            return Ok(block);
        }
        let what = format!("dispatch a block of {}", ask.size);
        let mut answer = server.dispatch(&ask).await?;
        if is_missing(&answer) {
            server.tell_parent(&ask).await?;
            answer = server.dispatch(&ask).await?;
        }
        if answer.status != 200 {
            return Err(server.refused(&what, &answer));
        }
        let dispatched: Dispatched = answer.json().map_err(|error| server.failed(&what, error))?;
        if !server.is_block(&dispatched.id) {
            let why = format!("the dispatched job is called {:?}", dispatched.id);
            return Err(server.failed(&what, PeerError::Strange(why)));
        }
        Ok(job::waiting(dispatched.id, ask))
    }

    async fn get(&self, id: &BlockId) -> Result<Option<Block>, ScheduleError> {
        if !self.server.is_block(&id.0) {
            return Ok(None);
        }
        Ok(self.server.blocks().await?.remove(id))
    }

    async fn stop(&self, id: &BlockId) -> Result<(), ScheduleError> {
        let server = &self.server;
        // Nothing but our own blocks is ever stopped, whatever is asked for.
        if !server.is_block(&id.0) || server.asked(&id.0, None).await?.is_none() {
            return Ok(());
        }
        let what = format!("stop the block {id}");
        let path = ["v1", "job", &id.0];
        let answer = server
            .ask(&what, Method::DELETE, &path, Vec::new(), None, Duration::ZERO)
            .await?;
        if answer.status != 200 && !is_missing(&answer) {
            return Err(server.refused(&what, &answer));
        }
        Ok(())
    }

    async fn list(
        &self,
        filter: &Filter,
        after: Option<&BlockId>,
        limit: usize,
    ) -> Result<Page, ScheduleError> {
        Ok(Page::cut(&self.server.blocks().await?, filter, after, limit))
    }

    fn watch(&self) -> watch::Receiver<Arc<Blocks>> {
        let mut view = lock(&self.server.view);
        let view = view.get_or_insert_with(|| {
            let view = watch::Sender::<Arc<Blocks>>::default();
            tokio::spawn(follow::follow(Arc::downgrade(&self.server), view.clone()));
            view
        });
        view.subscribe()
    }
}

#[cfg(test)]
mod tests;
