//! Consul: who is there, who leads, and what is set, in one cluster of perhaps several on one Consul.
//!
//! ```text
//! register ──▶ agent/service/register       name <cluster>-<role>, id <cluster>.<role>.<id>, everything else in its metadata
//!   keeper ──▶ agent/check/update           every third of the TTL; an agent that forgot is told again
//! watch    ──▶ health/service/<name>        blocking, stale where that is good enough
//! settle   ──▶ agent/services?filter=…      compared by ids, then registered and deregistered
//! stand    ──▶ session, kv/atoll/<cluster>/offices/<office>?acquire=…
//! settings ──▶ kv/atoll/<cluster>/config/…  blocking
//! ```
//!
//! What one agent is told lives there: the agent is the machine's own. What is read may come from all agents.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use model::{ClusterName, Secret};
use ports::discovery::{
    Candidacy, Check, DiscoveryError, Elections, Health, Instance, Members, Role, ServiceDiscovery, Settings,
    Settled, Standing, Values, check_id,
};
use reqwest::Method;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::peer::{Answer, Call, Peer, PeerError, check_times, is_name, told};

pub use crate::peer::Tls;

mod election;
mod follow;
mod keep;
mod members;
mod record;
mod settings;

/// Registrations that are told to the agent at a time: a node with two hundred sandboxes is told in a moment, and the agent
/// still answers others.
const AT_A_TIME: usize = 8;

/// Where Consul is, and who we are to it.
#[derive(Debug, Clone)]
pub struct Config {
    /// The agent of this machine: `http://127.0.0.1:8500`.
    pub address: String,
    /// What it is told with every request, where it has access control.
    pub token: Option<Secret<String>>,
    /// How it is known.
    pub tls: Tls,
    /// The datacentre that is read; the agent's own where none is named.
    pub datacenter: Option<String>,
    /// The namespace (Consul Enterprise).
    pub namespace: Option<String>,
    /// The admin partition (Consul Enterprise).
    pub partition: Option<String>,
    /// Which cluster: two with different names do not meet in one Consul.
    pub cluster: ClusterName,
    /// In which time it is to answer what it can answer at once.
    pub within: Duration,
    /// For how long a question may wait for news.
    pub wait: Duration,
    /// After which Consul forgets a service that is critical. A minute at least.
    pub forget_after: Duration,
    /// How long a leader that falls silent is believed to live. Ten seconds at least, which is Consul's bound.
    pub session_ttl: Duration,
    /// For how long nobody is elected after a session ended that was not given back. No less than [`Config::session_ttl`] where a
    /// leader must be told before another can lead even if an operator, or a node that leaves, ends its session.
    pub lock_delay: Duration,
    /// How often it is seen to that the agent still has what was settled.
    pub agree_every: Duration,
}

impl Config {
    /// The agent at an address, for a cluster.
    #[must_use]
    pub fn new(address: impl Into<String>, cluster: ClusterName) -> Self {
        Self {
            address: address.into(),
            token: None,
            tls: Tls::default(),
            datacenter: None,
            namespace: None,
            partition: None,
            cluster,
            within: Duration::from_secs(5),
            wait: Duration::from_secs(30),
            forget_after: Duration::from_secs(600),
            session_ttl: Duration::from_secs(15),
            lock_delay: Duration::from_secs(15),
            agree_every: Duration::from_secs(15),
        }
    }

    fn check(&self) -> Result<(), DiscoveryError> {
        let wrong = |what: String| Err(DiscoveryError::Invalid(what));
        for (what, name) in [
            ("datacenter", &self.datacenter),
            ("namespace", &self.namespace),
            ("partition", &self.partition),
        ] {
            if name.as_deref().is_some_and(|name| !is_name(name)) {
                return wrong(format!("the name of Consul's {what} is none"));
            }
        }
        let times = [
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
            (
                "forget_after",
                self.forget_after,
                Duration::from_secs(60),
                Duration::from_secs(7 * 86_400),
            ),
            (
                "session_ttl",
                self.session_ttl,
                Duration::from_secs(10),
                Duration::from_secs(86_400),
            ),
            (
                "lock_delay",
                self.lock_delay,
                Duration::ZERO,
                Duration::from_secs(60),
            ),
            (
                "agree_every",
                self.agree_every,
                Duration::from_millis(100),
                Duration::from_secs(3600),
            ),
        ];
        check_times("Consul", &times).map_err(DiscoveryError::Invalid)
    }
}

/// Consul, as seen from one process. Dropped, it keeps nothing up any more: what was registered turns critical after its TTL.
pub struct Consul {
    agent: Arc<Agent>,
    /// Ends every task.
    _stop: DropGuard,
}

/// The line to the agent, and what it is to be told again.
struct Agent {
    peer: Peer,
    config: Config,
    stop: CancellationToken,
    kept: Mutex<HashMap<(Role, String), Arc<keep::Kept>>>,
    settled: Mutex<HashMap<(String, Role), Vec<Instance>>>,
    /// One settles at a time.
    settling: tokio::sync::Mutex<()>,
    views: Mutex<HashMap<Role, watch::Sender<Arc<Members>>>>,
    settings: Mutex<Option<watch::Sender<Arc<Values>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this")
}

impl Consul {
    /// Consul at the address of the configuration. It need not be there yet: whoever is to run must not wait for it.
    ///
    /// # Errors
    /// The configuration makes no sense, or Consul is there and refuses the token.
    pub async fn connect(config: Config) -> Result<Arc<Self>, DiscoveryError> {
        config.check()?;
        let header = config.token.as_ref().map(|token| ("x-consul-token", token));
        let peer = Peer::new(&config.address, &config.tls, header).map_err(DiscoveryError::Invalid)?;
        let stop = CancellationToken::new();
        let agent = Arc::new(Agent {
            peer,
            config,
            stop: stop.clone(),
            kept: Mutex::default(),
            settled: Mutex::default(),
            settling: tokio::sync::Mutex::default(),
            views: Mutex::default(),
            settings: Mutex::default(),
        });
        match agent.members(Role::Orchestrator, None).await {
            Ok(_) => {}
            Err(error @ (DiscoveryError::Away { .. } | DiscoveryError::Slow { .. })) => {
                tracing::warn!(error = told(&error), "Consul is not there yet");
            }
            Err(error) => return Err(error),
        }
        let own = Arc::downgrade(&agent);
        tokio::spawn(keep::agree(own, stop.clone()));
        Ok(Arc::new(Self {
            agent,
            _stop: stop.drop_guard(),
        }))
    }

    /// Deregisters all that was registered here: before the process ends. What was settled stays, for sandboxes outlive the daemon
    /// that started them.
    ///
    /// # Errors
    /// The first of Consul's; the others are tried all the same.
    pub async fn leave(&self) -> Result<(), DiscoveryError> {
        let all: Vec<(Role, String)> = lock(&self.agent.kept).keys().cloned().collect();
        let left = all
            .into_iter()
            .map(|(role, id)| async move { self.agent.deregister(role, &id).await });
        let left: Vec<Result<(), DiscoveryError>> =
            stream::iter(left).buffer_unordered(AT_A_TIME).collect().await;
        left.into_iter().collect()
    }
}

impl Agent {
    fn name(&self, role: Role) -> String {
        format!("{}-{role}", self.config.cluster)
    }

    fn service_id(&self, role: Role, id: &str) -> String {
        record::service_id(&self.config.cluster, role, id)
    }

    fn service(&self) -> String {
        format!("Consul at {}", self.peer.address())
    }

    fn failed(&self, what: &str, error: PeerError) -> DiscoveryError {
        let (service, what) = (self.service(), what.to_owned());
        match error {
            PeerError::Away(source) => DiscoveryError::Away {
                service,
                what,
                source,
            },
            PeerError::Slow(within) => DiscoveryError::Slow {
                service,
                what,
                within,
            },
            PeerError::Strange(why) => DiscoveryError::Strange { service, what, why },
        }
    }

    /// What an answer of no use means.
    fn refused(&self, what: &str, answer: &Answer) -> DiscoveryError {
        let (service, what, why) = (self.service(), what.to_owned(), answer.said());
        match answer.status {
            401 | 403 => DiscoveryError::Refused { service, what, why },
            429 | 500..=599 => DiscoveryError::Away {
                service,
                what,
                source: why.into(),
            },
            _ => DiscoveryError::Strange { service, what, why },
        }
    }

    /// The scope of a request: where it is, and, for what is read from all, in which datacentre.
    fn scope<'a>(&self, is_read: bool) -> Vec<(&'a str, String)> {
        let mut query = Vec::new();
        let config = &self.config;
        for (name, value) in [("ns", &config.namespace), ("partition", &config.partition)] {
            query.extend(value.clone().map(|value| (name, value)));
        }
        query.extend(config.datacenter.clone().filter(|_| is_read).map(|dc| ("dc", dc)));
        query
    }

    /// Tells the agent of this machine, or asks it.
    async fn ask(
        &self,
        what: &str,
        method: Method,
        path: &[&str],
        more: Vec<(&str, String)>,
        body: Option<Value>,
    ) -> Result<Answer, DiscoveryError> {
        let mut query = self.scope(false);
        query.extend(more);
        let call = Call {
            method,
            path,
            query,
            body: body.map(|body| body.to_string().into_bytes()),
            within: self.config.within,
        };
        self.peer
            .call(call)
            .await
            .map_err(|error| self.failed(what, error))
    }

    /// Reads what all agents know: at once, or, with an index, when it has changed.
    async fn read(
        &self,
        what: &str,
        path: &[&str],
        more: Vec<(&str, String)>,
        after: Option<u64>,
    ) -> Result<Answer, DiscoveryError> {
        let is_good = |answer: &Answer| {
            answer.word("x-consul-knownleader") != Some("false")
                && answer
                    .number("x-consul-lastcontact")
                    .is_none_or(|ago| ago <= STALE_MS_MAX)
        };
        let asked = |stale: bool| {
            let mut query = self.scope(true);
            query.extend(more.clone());
            let mut within = self.config.within;
            if let Some(index) = after.filter(|index| *index > 0) {
                query.push(("index", index.to_string()));
                query.push(("wait", format!("{}ms", self.config.wait.as_millis())));
                // Consul adds up to a sixteenth, so that not all ask at one instant.
                within += self.config.wait + self.config.wait / 16;
            }
            if stale {
                query.push(("stale", String::new()));
            }
            self.peer.call(Call {
                method: Method::GET,
                path,
                query,
                body: None,
                within,
            })
        };
        let fail = |error| self.failed(what, error);
        // Whoever asks once wants what is true; whoever watches is told soon, by whichever server it happens to ask.
        let mut answer = asked(after.is_some()).await.map_err(fail)?;
        if after.is_some() && answer.status < 400 && !is_good(&answer) {
            answer = asked(false).await.map_err(fail)?;
        }
        Ok(answer)
    }
}

/// How old, in milliseconds, a server's knowledge may be that has lost its leader.
const STALE_MS_MAX: u64 = 10_000;

#[async_trait]
impl ServiceDiscovery for Consul {
    async fn register(&self, instance: Instance, check: Check) -> Result<(), DiscoveryError> {
        instance.check()?;
        Agent::keep(&self.agent, instance, check).await
    }

    async fn deregister(&self, role: Role, id: &str) -> Result<(), DiscoveryError> {
        check_id(id)?;
        self.agent.deregister(role, id).await
    }

    async fn report(&self, role: Role, id: &str, health: Health, notes: &str) -> Result<(), DiscoveryError> {
        check_id(id)?;
        self.agent.report(role, id, health, notes).await
    }

    async fn discover(&self, role: Role) -> Result<Members, DiscoveryError> {
        Ok(self.agent.members(role, None).await?.0)
    }

    fn watch(&self, role: Role) -> watch::Receiver<Arc<Members>> {
        let mut views = lock(&self.agent.views);
        let view = views.entry(role).or_insert_with(|| {
            let view = watch::Sender::<Arc<Members>>::default();
            tokio::spawn(follow::follow(Arc::downgrade(&self.agent), role, view.clone()));
            view
        });
        view.subscribe()
    }

    async fn settle(
        &self,
        owner: &str,
        role: Role,
        instances: Vec<Instance>,
    ) -> Result<Settled, DiscoveryError> {
        check_id(owner)?;
        for instance in &instances {
            instance.check()?;
            if instance.role != role {
                let text = format!("{} is of the role {}, not {role}", instance.id, instance.role);
                return Err(DiscoveryError::Invalid(text));
            }
        }
        let _one = self.agent.settling.lock().await;
        // The intent first: what fails now is made up for.
        lock(&self.agent.settled).insert((owner.to_owned(), role), instances.clone());
        self.agent.settle(owner, role, &instances).await
    }
}

impl Elections for Consul {
    fn stand(&self, office: &str, candidate: &str) -> Result<Candidacy, DiscoveryError> {
        check_id(office)?;
        check_id(candidate)?;
        let (standing, receiver) = watch::channel(Standing::Waiting { leader: None });
        let stop = self.agent.stop.child_token();
        let stands = election::Stands {
            agent: Arc::clone(&self.agent),
            office: office.to_owned(),
            candidate: candidate.to_owned(),
            standing,
            stop: stop.clone(),
        };
        tokio::spawn(stands.run());
        Ok(Candidacy::new(receiver, stop))
    }
}

#[async_trait]
impl Settings for Consul {
    fn watch_settings(&self) -> watch::Receiver<Arc<Values>> {
        let mut settings = lock(&self.agent.settings);
        let view = settings.get_or_insert_with(|| {
            let view = watch::Sender::<Arc<Values>>::default();
            tokio::spawn(follow::follow(
                Arc::downgrade(&self.agent),
                settings::OfCluster,
                view.clone(),
            ));
            view
        });
        view.subscribe()
    }

    async fn put_setting(&self, key: &str, value: &str) -> Result<(), DiscoveryError> {
        self.agent.put_setting(key, value).await
    }

    async fn remove_setting(&self, key: &str) -> Result<(), DiscoveryError> {
        self.agent.remove_setting(key).await
    }
}

#[cfg(test)]
mod tests;
