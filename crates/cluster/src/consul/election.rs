//! Standing for an office: a session that lives while its holder does, and a key that one session at a time has locked.
//!
//! ```text
//!           session made         key acquired            key another's, or freed
//! (Away) ──────────────▶ Waiting ────────────▶ Leading ───────────────────────▶ Waiting
//!    ▲                                            │
//!    └──── not renewed for five sixths of its TTL ┘   (Consul ends it after a whole one at the soonest)
//! ```
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ports::discovery::{DiscoveryError, Standing};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::follow::PAUSE_MAX;
use super::record::time;
use super::settings::{Pair, key_path};
use super::{Agent, lock};
use crate::peer::{Call, next_index, pause, told};

/// How soon an office is tried again that nobody has and nobody gets: its former holder fell silent, and Consul waits.
const TRIED_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// One that stands.
pub(super) struct Stands {
    pub(super) agent: Arc<Agent>,
    pub(super) office: String,
    pub(super) candidate: String,
    pub(super) standing: watch::Sender<Standing>,
    pub(super) stop: CancellationToken,
}

#[derive(Deserialize)]
struct Session {
    #[serde(rename = "ID")]
    id: String,
}

impl Stands {
    /// Stands until told to stop; then the office is free.
    pub(super) async fn run(self) {
        let mut failures = 0;
        while !self.stop.is_cancelled() {
            let began = Instant::now();
            let session = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                session = self.session() => session,
            };
            let session = match session {
                Ok(session) => session,
                Err(error) => {
                    failures += 1;
                    self.say(Standing::Away(told(&error)));
                    self.rest(pause(failures, PAUSE_MAX)).await;
                    continue;
                }
            };
            failures = 0;
            let ended = tokio::select! {
                biased;
                () = self.stop.cancelled() => None,
                why = self.renew(&session, began) => Some(why),
                () = self.hold(&session) => None,
            };
            // Told before anything else is done: from here on another may lead.
            self.say(ended.map_or(Standing::Waiting { leader: None }, Standing::Away));
            if self.stop.is_cancelled() {
                self.give_back(&session).await;
            }
        }
        self.say(Standing::Waiting { leader: None });
    }

    async fn rest(&self, for_long: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = sleep(for_long) => {}
        }
    }

    fn say(&self, standing: Standing) {
        self.standing.send_if_modified(|said| {
            let is_news = *said != standing;
            *said = standing;
            is_news
        });
    }

    async fn session(&self) -> Result<String, DiscoveryError> {
        let what = "begin a session";
        let config = &self.agent.config;
        let body = json!({
            "Name": format!("{}-{}", config.cluster, self.office),
            "TTL": time(config.session_ttl),
            "LockDelay": time(config.lock_delay),
            "Behavior": "release",
            // Its TTL alone ends it: the health of its agent would end it sooner than its holder notices.
            "Checks": [],
            "NodeChecks": [],
        });
        let path = ["v1", "session", "create"];
        let answer = self
            .agent
            .ask(what, Method::PUT, &path, Vec::new(), Some(body))
            .await?;
        if answer.status != 200 {
            return Err(self.agent.refused(what, &answer));
        }
        let session: Session = answer.json().map_err(|error| self.agent.failed(what, error))?;
        Ok(session.id)
    }

    /// Renews a session until that fails for too long; returns why it did. `began`: before it was made.
    async fn renew(&self, session: &str, began: Instant) -> String {
        let ttl = self.agent.config.session_ttl;
        let renewed = Mutex::new(began);
        loop {
            let last = *lock(&renewed);
            let over = last + ttl.mul_f64(5.0 / 6.0);
            if timeout_at(over, sleep(ttl / 3)).await.is_err() {
                return "the session could not be renewed in time".to_owned();
            }
            let mut why = String::new();
            let again = async {
                loop {
                    let asked = Instant::now();
                    let path = ["v1", "session", "renew", session];
                    match self
                        .agent
                        .ask("renew a session", Method::PUT, &path, Vec::new(), None)
                        .await
                    {
                        Ok(answer) if answer.status == 200 => {
                            *lock(&renewed) = asked;
                            return true;
                        }
                        Ok(answer) if answer.status == 404 => return false,
                        Ok(answer) => why = answer.said(),
                        Err(error) => why = told(&error),
                    }
                    sleep(Duration::from_millis(500)).await;
                }
            };
            match timeout_at(over, again).await {
                Ok(true) => {}
                Ok(false) => return "Consul has ended the session".to_owned(),
                Err(_) => return format!("the session could not be renewed in time: {why}"),
            }
        }
    }

    /// Takes the office whenever it is free, and says who has it. Never returns.
    async fn hold(&self, session: &str) {
        let (mut index, mut failures) = (0, 0);
        loop {
            match self.look(session, index).await {
                Ok((next, standing)) => {
                    failures = 0;
                    index = next_index(index, next);
                    match standing {
                        Some(standing) => self.say(standing),
                        None => match self.take_if_free(session).await {
                            // What became of it is seen at the next look, which does not wait.
                            Ok(true) => index = 0,
                            Ok(false) => {
                                index = 0;
                                sleep(TRIED_AGAIN_AFTER).await;
                            }
                            Err(error) => {
                                tracing::debug!(error = told(&error), "the office could not be taken");
                                sleep(TRIED_AGAIN_AFTER).await;
                                index = 0;
                            }
                        },
                    }
                }
                // Who leads goes on as long as the session is renewed.
                Err(error) => {
                    tracing::debug!(
                        error = told(&error),
                        office = self.office,
                        "who leads could not be read"
                    );
                    (index, failures) = (0, failures + 1);
                    sleep(pause(failures, PAUSE_MAX)).await;
                }
            }
        }
    }

    fn key(&self) -> String {
        format!("atoll/{}/offices/{}", self.agent.config.cluster, self.office)
    }

    /// Who has the office; `None` for nobody.
    async fn look(
        &self,
        session: &str,
        after: u64,
    ) -> Result<(Option<u64>, Option<Standing>), DiscoveryError> {
        let what = "tell who leads";
        let agent = &self.agent;
        let key = self.key();
        let mut query = agent.scope(false);
        let mut within = agent.config.within;
        if after > 0 {
            query.push(("index", after.to_string()));
            query.push(("wait", time(agent.config.wait)));
            within += agent.config.wait + agent.config.wait / 16;
        }
        // Never from one who may not know: who leads must be true.
        query.push(("consistent", String::new()));
        let call = Call {
            method: Method::GET,
            path: &key_path(&key),
            query,
            body: None,
            within,
        };
        let answer = agent
            .peer
            .call(call)
            .await
            .map_err(|error| agent.failed(what, error))?;
        let index = answer.number("x-consul-index");
        let pairs: Vec<Pair> = match answer.status {
            200 => answer.json().map_err(|error| agent.failed(what, error))?,
            404 => Vec::new(),
            _ => return Err(agent.refused(what, &answer)),
        };
        let held = pairs.into_iter().find_map(|pair| {
            let by = pair.session.clone().filter(|by| !by.is_empty())?;
            Some((by, pair))
        });
        Ok((
            index,
            held.map(|(by, pair)| {
                if by == session {
                    // Written when the lock was taken and by nobody since: it grows with every leader.
                    Standing::Leading { token: pair.modified }
                } else {
                    Standing::Waiting { leader: pair.text() }
                }
            }),
        ))
    }

    /// Takes an office that nobody has; whoever had it until now has lost it, and is told first.
    async fn take_if_free(&self, session: &str) -> Result<bool, DiscoveryError> {
        self.say(Standing::Waiting { leader: None });
        self.take(session).await
    }

    async fn take(&self, session: &str) -> Result<bool, DiscoveryError> {
        self.change("take an office", "acquire", session, self.candidate.as_bytes())
            .await
    }

    async fn change(
        &self,
        what: &str,
        how: &str,
        session: &str,
        value: &[u8],
    ) -> Result<bool, DiscoveryError> {
        let agent = &self.agent;
        let key = self.key();
        let mut query = agent.scope(false);
        query.push((how, session.to_owned()));
        let call = Call {
            method: Method::PUT,
            path: &key_path(&key),
            query,
            body: Some(value.to_vec()),
            within: agent.config.within,
        };
        let answer = agent
            .peer
            .call(call)
            .await
            .map_err(|error| agent.failed(what, error))?;
        if answer.status != 200 {
            return Err(agent.refused(what, &answer));
        }
        let done: Value = answer.json().map_err(|error| agent.failed(what, error))?;
        Ok(done == Value::Bool(true))
    }

    /// Frees the office at once: a session that ended by itself would hold it for the lock's delay.
    async fn give_back(&self, session: &str) {
        let freed = async {
            self.change("give an office back", "release", session, b"")
                .await?;
            let path = ["v1", "session", "destroy", session];
            self.agent
                .ask("end a session", Method::PUT, &path, Vec::new(), None)
                .await
        };
        match timeout(self.agent.config.within, freed).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(
                error = told(&error),
                "the office is free once the session is over"
            ),
            Err(_) => tracing::warn!("the office is free once the session is over"),
        }
    }
}
