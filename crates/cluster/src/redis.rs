//! What a fleet shares in Redis: routes, limits, shares of quotas, idempotency keys, what happens, and work to be done.
//!
//! ```text
//!   Redis ─┬─ Link         one line for all questions, opened again where it breaks; no question waits longer than ANSWER_WITHIN
//!          ├─ Catalog      routes, with a copy that follows a stream of changes
//!          ├─ Limits       token buckets                    away: each process by itself
//!          ├─ Shares       what teams hold of their quotas  away: each process by itself
//!          ├─ Idempotency  keys and answers                 away: refused
//!          ├─ Bus          what happens, a stream           away: kept for a while, then dropped
//!          └─ Queue        work, streams with a group       away: refused
//! ```
//!
//! Everything here is a cache: what is lost with Redis is made anew from the database and the nodes (`docs/redis.md`). Redis has to
//! be 6.2 or later, and must not evict keys (`maxmemory-policy noeviction`).
//!
//! **Invariants.** All keys begin with `atoll:{<cluster>}:`. What is to be atomic is one script. A question of which the answer did
//! not come may still be carried out later: whatever is asked here may be carried out late, or twice.
mod bus;
mod catalog;
mod idempotency;
mod limits;
mod link;
mod queue;
mod shares;
mod task;
mod tell;

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Client, ErrorKind, IntoConnectionInfo as _, TlsCertificates};
use model::{ClusterName, Secret};

use self::link::Link;

/// How long an answer may take. Redis answers within a millisecond; one that takes longer than this is as good as away.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// How long it may take to open a line.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Where Redis is, and as whom it is spoken to.
#[derive(Debug, Clone)]
pub struct Config {
    /// `redis://[user:password@]host[:port][/db]`, or `rediss://…` for TLS.
    pub url: Secret<String>,
    /// Which cluster: two with different names do not meet in one Redis.
    pub cluster: ClusterName,
    /// Who vouches for Redis, as PEM; without it, whoever the machine trusts.
    pub ca: Option<Vec<u8>>,
    /// Certificate and key of ours, as PEM, where Redis asks for one.
    pub identity: Option<Identity>,
}

/// As whom we come.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate, and those between it and who vouches for it.
    pub certificates: Vec<u8>,
    /// Its key.
    pub key: Secret<Vec<u8>>,
}

/// Why Redis cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL, a certificate or a key is none.
    #[error("{0}")]
    Invalid(
        &'static str,
        #[source] Option<Box<dyn std::error::Error + Send + Sync>>,
    ),
    /// Redis does not let us in.
    #[error("Redis refuses the user or the password: see the URL")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Redis is too old.
    #[error("Redis is version {0}, and has to be 6.2 or later")]
    Old(String),
}

/// Redis, for all that a fleet shares.
#[derive(Clone)]
pub struct Redis {
    catalog: Arc<catalog::Catalog>,
    limits: Arc<limits::Limits>,
    shares: Arc<shares::Shares>,
    idempotency: Arc<idempotency::Idempotency>,
    bus: Arc<bus::Bus>,
    queue: Arc<queue::Queue>,
    link: Link,
}

impl Redis {
    /// Opens it. Where Redis does not answer, that is logged, and it is used as soon as it does: until then all that is asked of it
    /// is answered as while it is away.
    ///
    /// # Errors
    /// What is configured can never work.
    pub async fn connect(config: Config) -> Result<Self, ConnectError> {
        Self::with_terms(
            config,
            ports::idempotency::Terms::default(),
            ports::queue::Terms::default(),
        )
        .await
    }

    /// Opens it with other terms of keys and work than the usual.
    ///
    /// # Errors
    /// What is configured can never work.
    pub async fn with_terms(
        config: Config,
        keys: ports::idempotency::Terms,
        work: ports::queue::Terms,
    ) -> Result<Self, ConnectError> {
        let link = Link::open(client(&config)?, prefix(&config.cluster));
        link.first().await?;
        let catalog = catalog::Catalog::follow(link.clone());
        let bus = bus::Bus::follow(link.clone());
        // Where Redis is away, the copy begins empty, and what it does not know is an error until it is whole.
        let begun = async {
            catalog.first_read().await;
            bus.first_place().await;
        };
        let _ = tokio::time::timeout(CONNECT_WITHIN, begun).await;
        Ok(Self {
            catalog: Arc::new(catalog),
            limits: Arc::new(limits::Limits::new(link.clone())),
            shares: Arc::new(shares::Shares::new(link.clone())),
            idempotency: Arc::new(idempotency::Idempotency::new(link.clone(), keys)),
            bus: Arc::new(bus),
            queue: Arc::new(queue::Queue::new(link.clone(), work)),
            link,
        })
    }

    /// Routes.
    #[must_use]
    pub fn catalog(&self) -> Arc<dyn ports::Catalog> {
        Arc::clone(&self.catalog) as _
    }

    /// Rates of teams.
    #[must_use]
    pub fn limits(&self) -> Arc<dyn ports::Limits> {
        Arc::clone(&self.limits) as _
    }

    /// Shares of quotas.
    #[must_use]
    pub fn shares(&self) -> Arc<dyn ports::Shares> {
        Arc::clone(&self.shares) as _
    }

    /// Idempotency keys.
    #[must_use]
    pub fn idempotency(&self) -> Arc<dyn ports::Idempotency> {
        Arc::clone(&self.idempotency) as _
    }

    /// What happens.
    #[must_use]
    pub fn bus(&self) -> Arc<dyn ports::Bus> {
        Arc::clone(&self.bus) as _
    }

    /// Work to be done.
    #[must_use]
    pub fn queue(&self) -> Arc<dyn ports::Queue> {
        Arc::clone(&self.queue) as _
    }

    /// Whether Redis answers at present, and if not, what keeps it: for readiness and the admin page.
    ///
    /// # Errors
    /// In words.
    pub async fn ready(&self) -> Result<(), String> {
        let pong: Result<String, _> = self.link.query(&::redis::cmd("PING")).await;
        pong.map(|_| ()).map_err(|away| away.to_string())
    }
}

/// What all keys of a cluster begin with. The braces keep them in one slot of a Redis Cluster: scripts see several of them.
fn prefix(cluster: &ClusterName) -> String {
    format!("atoll:{{{cluster}}}:")
}

fn client(config: &Config) -> Result<Client, ConnectError> {
    // One provider of cryptography for the whole program. A second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = config.url.expose();
    let invalid = |what| move |error: ::redis::RedisError| ConnectError::Invalid(what, Some(error.into()));
    // An error of the library may show what it read, and with it the password.
    let hidden = |_| ConnectError::Invalid("the URL is none: redis://host[:port][/db], or rediss://…", None);
    let is_tls = url.starts_with("rediss://");
    if !is_tls && !url.starts_with("redis://") {
        let what = "the URL of Redis has to begin with redis:// or rediss://";
        return Err(ConnectError::Invalid(what, None));
    }
    if url.contains('#') {
        let what = "the URL of Redis has a fragment: certificates are always looked at";
        return Err(ConnectError::Invalid(what, None));
    }
    let info = url.as_str().into_connection_info().map_err(hidden)?;
    if !is_tls {
        if config.ca.is_some() || config.identity.is_some() {
            let what = "certificates are configured for Redis, and its URL is without TLS: say rediss://";
            return Err(ConnectError::Invalid(what, None));
        }
        return Client::open(info).map_err(hidden);
    }
    let certificates = TlsCertificates {
        client_tls: config.identity.as_ref().map(|identity| ::redis::ClientTlsConfig {
            client_cert: identity.certificates.clone(),
            client_key: identity.key.expose().clone(),
        }),
        root_cert: config.ca.clone(),
    };
    let what = "a certificate or the key for Redis is none: they have to be PEM";
    Client::build_with_tls(info, certificates).map_err(invalid(what))
}

/// Whether Redis will never let us in as we are.
fn is_refusal(error: &::redis::RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Config {
        Config {
            url: Secret::new(url.to_owned()),
            cluster: "blue".parse().unwrap(),
            ca: None,
            identity: None,
        }
    }

    fn check(url: &str, complaint: &str) {
        let error = client(&config(url)).expect_err(url);
        assert!(error.to_string().contains(complaint), "{error}");
        assert!(!format!("{error:?}").contains("hidden"), "{error:?}");
    }

    #[test]
    fn a_url_that_is_none_is_refused_and_shows_no_password() {
        check("", "redis:// or rediss://");
        check("http://:hidden@host", "redis:// or rediss://");
        check("redis+unix:///run/redis.sock", "redis:// or rediss://");
        check("redis://:hidden@host:port", "the URL is none");
        check("redis://:hidden@host/first", "the URL is none");
        check("rediss://:hidden@host/#insecure", "fragment");
    }

    #[test]
    fn certificates_without_tls_are_a_mistake() {
        let with_ca = Config {
            ca: Some(Vec::new()),
            ..config("redis://host")
        };
        assert!(client(&with_ca).is_err());
        assert!(client(&config("redis://user:hidden@host:6380/3")).is_ok());
        assert!(client(&config("rediss://user:hidden@host:6380/3")).is_ok());
    }

    #[test]
    fn keys_of_a_cluster_are_in_one_slot() {
        assert_eq!(prefix(&"blue-2".parse().unwrap()), "atoll:{blue-2}:");
    }
}
