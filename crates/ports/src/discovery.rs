//! Who is there, and how they are: every role registers itself, and whoever needs it watches.
//!
//! ```text
//! role ──register, report, deregister──▶ ServiceDiscovery ──watch──▶ Members: the whole set, whenever it changes
//! candidate ──stand──▶ Elections ──▶ Standing: Leading with a fencing token, or Waiting
//! operator ──put──▶ Settings ──watch──▶ what is set, without a restart
//! ```
//!
//! [`Memory`] is one process's; [`Fixed`] is a list out of the configuration; `cluster::consul` is Consul.
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::{Kind, MiB};
use tokio::sync::watch;

pub mod contract;
mod election;
mod fixed;
mod memory;
mod sandboxes;
mod settings;

pub use election::{Candidacy, Elections, Standing};
pub use fixed::{Fixed, Probe};
pub use memory::Memory;
pub use sandboxes::{Announce, Announced, RunningSandbox};
pub use settings::{SETTING_BYTES_MAX, Settings, Values, check_setting};

/// Bytes of an instance's id.
pub const ID_BYTES_MAX: usize = 128;
/// Bytes of a zone's or a version's name.
pub const NAME_BYTES_MAX: usize = 64;
/// Pairs of metadata of one instance, beside what every instance says. Consul takes 64 of one service, ours included.
pub const META_MAX: usize = 32;
/// Bytes of a value of metadata: Consul's bound.
pub const META_VALUE_BYTES_MAX: usize = 512;
/// Instances that a view of one role holds. Those beyond are left out and counted in [`Members::refused`].
pub const MEMBERS_MAX: usize = 20_000;

/// What an instance is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The public REST API.
    Api,
    /// Traffic into sandboxes.
    Edge,
    /// The control plane's background work.
    Orchestrator,
    /// A machine that runs sandboxes.
    Node,
    /// A running sandbox, where these are announced.
    Sandbox,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [
        Self::Api,
        Self::Edge,
        Self::Orchestrator,
        Self::Node,
        Self::Sandbox,
    ];

    /// The name: no role's holds a `-`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Edge => "edge",
            Self::Orchestrator => "orchestrator",
            Self::Node => "node",
            Self::Sandbox => "sandbox",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = DiscoveryError;
    fn from_str(text: &str) -> Result<Self, DiscoveryError> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or_else(|| DiscoveryError::Invalid(format!("there is no role {text:?}")))
    }
}

/// What an instance can hold, in sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// CPUs.
    pub cpu: u32,
    /// Memory.
    pub memory: MiB,
    /// Disk.
    pub disk: MiB,
}

/// One process, or one sandbox, that can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Which one: unique among those of its role in its cluster. Letters in lower case, digits, `-`, `_` and `.`.
    pub id: String,
    /// What for.
    pub role: Role,
    /// The host's name or address.
    pub address: String,
    /// The port; not 0.
    pub port: u16,
    /// What fails together is in one zone. May be empty.
    pub zone: String,
    /// The version of the program. May be empty.
    pub version: String,
    /// What it can hold, where that means something.
    pub capacity: Option<Capacity>,
    /// What else it says: keys of letters in lower case, digits and `_`, which do not begin with `atoll_`.
    pub meta: BTreeMap<String, String>,
}

fn is_name(text: &str, bytes_max: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+' | b'~');
    text.len() <= bytes_max && text.bytes().all(plain)
}

impl Instance {
    /// Whether every adapter can carry it.
    ///
    /// # Errors
    /// [`DiscoveryError::Invalid`] with the first thing that is wrong.
    pub fn check(&self) -> Result<(), DiscoveryError> {
        let wrong = |what: String| Err(DiscoveryError::Invalid(what));
        check_id(&self.id)?;
        let host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
        if self.address.is_empty() || self.address.len() > 253 || !self.address.bytes().all(host) {
            return wrong(format!("{:?} is not a host's name or address", self.address));
        }
        if self.port == 0 {
            return wrong(format!("{} of {} has no port", self.id, self.role));
        }
        for (what, name) in [("zone", &self.zone), ("version", &self.version)] {
            if !is_name(name, NAME_BYTES_MAX) {
                return wrong(format!("{name:?} is not the name of a {what}"));
            }
        }
        if self.meta.len() > META_MAX {
            return wrong(format!(
                "{} pairs of metadata, and at most {META_MAX} are carried",
                self.meta.len()
            ));
        }
        for (key, value) in &self.meta {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            if key.is_empty() || key.len() > 64 || !key.bytes().all(plain) || key.starts_with("atoll_") {
                return wrong(format!("{key:?} is not a key of metadata"));
            }
            if value.len() > META_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
                return wrong(format!("the metadata {key:?} is too long, or no text"));
            }
        }
        Ok(())
    }
}

/// Whether a text can be an instance's id.
///
/// # Errors
/// [`DiscoveryError::Invalid`].
pub fn check_id(id: &str) -> Result<(), DiscoveryError> {
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > ID_BYTES_MAX || !id.bytes().all(plain) {
        return Err(DiscoveryError::Invalid(format!(
            "{id:?} is not the id of an instance"
        )));
    }
    Ok(())
}

/// How it is found out whether an instance is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// It is told by itself: who is silent for this long is not well. The adapter tells it while the process lives; what
    /// [`ServiceDiscovery::report`] said last is what is told. At least a second.
    Ttl(Duration),
    /// It is asked: any answer of 2xx is well.
    Http {
        /// What is asked for: an address that the discovery service itself can reach.
        url: String,
        /// How often.
        every: Duration,
        /// For how long.
        within: Duration,
    },
}

/// How an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// To be used.
    Passing,
    /// To be used where there is no better.
    Warning,
    /// Not to be used.
    Critical,
}

/// An instance, and how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub instance: Instance,
    /// The worst of its checks.
    pub health: Health,
    /// What the checks that are not passing say. Bounded by the adapter.
    pub notes: String,
}

/// How much a view is worth.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Known {
    /// Nothing was heard yet: that nobody is in it means nothing.
    #[default]
    NotYet,
    /// As good as the discovery service knows.
    Current,
    /// What was heard last: the discovery service is away since, for this reason.
    Stale(String),
}

/// All instances of one role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members {
    /// They, by their ids, the unwell ones too.
    pub found: Vec<Found>,
    /// How much this is worth.
    pub known: Known,
    /// Entries that were left out: of another cluster, or not understood, or beyond [`MEMBERS_MAX`].
    pub refused: usize,
}

impl Members {
    /// Those that may be used: the passing ones, or, where there are none, those with a warning.
    #[must_use]
    pub fn usable(&self) -> Vec<&Found> {
        let with = |health| -> Vec<&Found> { self.found.iter().filter(|one| one.health == health).collect() };
        let passing = with(Health::Passing);
        if passing.is_empty() {
            with(Health::Warning)
        } else {
            passing
        }
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Found> {
        self.found.iter().find(|one| one.instance.id == id)
    }
}

/// What [`ServiceDiscovery::settle`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settled {
    /// Registered by it.
    pub added: usize,
    /// Deregistered by it.
    pub removed: usize,
    /// There before and after.
    pub kept: usize,
}

/// Who is there could not be told or asked.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// It makes no sense, whoever is asked.
    #[error("{0}")]
    Invalid(String),
    /// The discovery service does not know such an instance.
    #[error("{role} {id} is not registered")]
    Unknown {
        /// The role.
        role: Role,
        /// The id.
        id: String,
    },
    /// The discovery service refuses: a token that is wrong or may not do this.
    #[error("{service} refuses to {what}: {why}; check the token and its policy")]
    Refused {
        /// Which service, and where.
        service: String,
        /// What was asked of it.
        what: String,
        /// What it said.
        why: String,
    },
    /// The discovery service did not answer, or could not.
    #[error("{service} is away, asked to {what}")]
    Away {
        /// Which service, and where.
        service: String,
        /// What was asked of it.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It did not answer in time.
    #[error("{service} did not {what} within {within:?}")]
    Slow {
        /// Which service, and where.
        service: String,
        /// What was asked of it.
        what: String,
        /// For how long it was waited.
        within: Duration,
    },
    /// Its answer is not understood, or longer than is read.
    #[error("{service} answers strangely, asked to {what}: {why}")]
    Strange {
        /// Which service, and where.
        service: String,
        /// What was asked of it.
        what: String,
        /// What is strange.
        why: String,
    },
}

impl DiscoveryError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Invalid(_) => Kind::Invalid,
            Self::Unknown { .. } => Kind::NotFound,
            Self::Refused { .. } => Kind::Forbidden,
            Self::Away { .. } => Kind::Unavailable,
            Self::Slow { .. } => Kind::Timeout,
            Self::Strange { .. } => Kind::Internal,
        }
    }
}

/// Who is there, and how they are, in one cluster. Another cluster's instances are never told, though they share the service.
#[async_trait]
pub trait ServiceDiscovery: Send + Sync {
    /// Says that an instance is there, and keeps saying so until it is deregistered: also to a service that forgot. One that
    /// is registered already is replaced. Where the service is away that is the error, and it is told as soon as it is back.
    async fn register(&self, instance: Instance, check: Check) -> Result<(), DiscoveryError>;
    /// Says that it is gone. One that is not there is no error.
    async fn deregister(&self, role: Role, id: &str) -> Result<(), DiscoveryError>;
    /// What an instance that was registered here, with [`Check::Ttl`], says of itself from now on.
    ///
    /// # Errors
    /// [`DiscoveryError::Unknown`] for one that was not.
    async fn report(&self, role: Role, id: &str, health: Health, notes: &str) -> Result<(), DiscoveryError>;
    /// All instances of a role, now.
    async fn discover(&self, role: Role) -> Result<Members, DiscoveryError>;
    /// How one instance is; `None` for one that is not there.
    async fn health(&self, role: Role, id: &str) -> Result<Option<Health>, DiscoveryError> {
        Ok(self.discover(role).await?.get(id).map(|found| found.health))
    }
    /// All instances of a role, as a watched value: the whole set, whenever it changes. While the service is away the last
    /// set stays, marked as stale.
    fn watch(&self, role: Role) -> watch::Receiver<Arc<Members>>;
    /// Makes the instances of an owner exactly these, which have no checks: they live as long as the service that was told of
    /// them. What an owner that died left behind goes when it settles again. None of them may be of two roles.
    async fn settle(
        &self,
        owner: &str,
        role: Role,
        instances: Vec<Instance>,
    ) -> Result<Settled, DiscoveryError>;
}

#[cfg(test)]
mod tests;
