//! Who a process of a cluster is, as its certificate says.
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use model::{ClusterName, ClusterNameError, NodeId};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// What a process does in its cluster. A process of several roles has the certificate of one of them for each thing it calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Serves the public API.
    Api,
    /// Takes the traffic of sandboxes.
    Edge,
    /// Reconciles, collects, recovers.
    Orchestrator,
    /// Runs sandboxes on one machine.
    Node,
    /// An operator.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 5] = [Role::Api, Role::Edge, Role::Orchestrator, Role::Node, Role::Admin];

    /// Its word in identities.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Api => "api",
            Role::Edge => "edge",
            Role::Orchestrator => "orchestrator",
            Role::Node => "node",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let found = Role::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| IdentityError::Role(text.chars().take(SHOWN_MAX).collect()))
    }
}

/// Why something is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A cluster's name.
    #[error(transparent)]
    Cluster(#[from] ClusterNameError),
    /// A process's name.
    #[error("'{0}' is no name: 1 to 63 of a-z, 0-9 and -, neither first nor last a -")]
    Name(String),
    /// It names a file already.
    #[error("'{0}' is a name that files of certificates have: neither ca nor ...-key")]
    Reserved(String),
    /// No role is called so.
    #[error("'{0}' is no role: api, edge, orchestrator, node or admin")]
    Role(String),
    /// It is no `spiffe://<cluster>/<role>/<name>`.
    #[error("'{0}' is no spiffe://<cluster>/<role>/<name>")]
    Uri(String),
    /// A node is named by its id.
    #[error("'{0}' is no node id, and nodes are named by theirs")]
    Node(String),
    /// The certificate does not parse.
    #[error("the certificate does not parse")]
    Certificate,
    /// The certificate names nobody, or more than one.
    #[error("the certificate has {0} names of the form spiffe://<cluster>/<role>/<name>, not one")]
    Names(usize),
}

/// How much of what is wrong is told.
const SHOWN_MAX: usize = 80;
/// A label of a DNS name.
const NAME_BYTES_MAX: usize = 63;

fn check_name(name: &str) -> Result<(), IdentityError> {
    let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(is_plain)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if is_name {
        return Ok(());
    }
    Err(IdentityError::Name(name.chars().take(SHOWN_MAX).collect()))
}

/// Who a process is: `spiffe://<cluster>/<role>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    cluster: ClusterName,
    role: Role,
    name: String,
}

impl Identity {
    /// A process of a cluster. A node is named by its id.
    ///
    /// # Errors
    /// What is wrong with the names.
    pub fn new(cluster: &ClusterName, role: Role, name: &str) -> Result<Self, IdentityError> {
        check_name(name)?;
        // Its files lie beside those of the authority, and its key's beside its certificate's.
        if name == "ca" || name.ends_with("-key") {
            return Err(IdentityError::Reserved(name.to_owned()));
        }
        if role == Role::Node && name.parse::<NodeId>().is_err() {
            return Err(IdentityError::Node(name.to_owned()));
        }
        Ok(Self {
            cluster: cluster.clone(),
            role,
            name: name.to_owned(),
        })
    }

    /// A node.
    #[must_use]
    pub fn of_node(cluster: &ClusterName, node: NodeId) -> Self {
        Self {
            cluster: cluster.clone(),
            role: Role::Node,
            name: node.to_string(),
        }
    }

    /// Of which cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// As what.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Which one.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which node, of a node.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        (self.role == Role::Node)
            .then(|| self.name.parse().ok())
            .flatten()
    }

    /// The name by which it may be told from others where host names are wanted.
    #[must_use]
    pub fn dns_name(&self) -> String {
        format!("{}.{}.{}.atoll.internal", self.name, self.role, self.cluster)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}/{}", self.cluster, self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let parts = text.strip_prefix("spiffe://").map(|rest| rest.split('/'));
        let mut parts = parts.into_iter().flatten();
        let (Some(cluster), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(IdentityError::Uri(text.chars().take(SHOWN_MAX).collect()));
        };
        Self::new(&cluster.parse()?, role.parse()?, name)
    }
}

/// Whom a certificate is of, and from when to when it holds. Says nothing of who signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// Who.
    pub identity: Identity,
    /// From when on.
    pub from: SystemTime,
    /// Until when.
    pub until: SystemTime,
}

impl Certified {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(der: &[u8]) -> Result<Self, IdentityError> {
        let parsed = Parsed::of(der)?;
        let [uri] = parsed.uris.as_slice() else {
            return Err(IdentityError::Names(parsed.uris.len()));
        };
        Ok(Self {
            identity: uri.parse()?,
            from: parsed.from,
            until: parsed.until,
        })
    }
}

/// What of a certificate matters here.
pub(crate) struct Parsed {
    pub(crate) uris: Vec<String>,
    pub(crate) from: SystemTime,
    pub(crate) until: SystemTime,
}

impl Parsed {
    pub(crate) fn of(der: &[u8]) -> Result<Self, IdentityError> {
        let (rest, certificate) = parse_x509_certificate(der).map_err(|_| IdentityError::Certificate)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| IdentityError::Certificate)?;
        let names = names.map(|extension| extension.value.general_names.as_slice());
        let uris = names.unwrap_or_default().iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        });
        let at = |time: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        let validity = certificate.validity();
        if !rest.is_empty() {
            return Err(IdentityError::Certificate);
        }
        Ok(Self {
            uris: uris.collect(),
            from: at(validity.not_before),
            until: at(validity.not_after),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_back_from_its_text() {
        let node = Identity::of_node(&"blue".parse().unwrap(), NodeId::random());
        assert_eq!(node.to_string().parse(), Ok(node.clone()));
        assert!(node.node().is_some());
        let api = Identity::new(&"blue".parse().unwrap(), Role::Api, "api-1").unwrap();
        assert_eq!(api.to_string(), "spiffe://blue/api/api-1");
        assert_eq!(api.dns_name(), "api-1.api.blue.atoll.internal");
        assert_eq!(api.node(), None);
    }

    #[test]
    fn what_is_no_identity_is_refused_with_what_is_wrong() {
        let refused = |text: &str| text.parse::<Identity>().unwrap_err();
        assert!(matches!(refused("https://a/api/b"), IdentityError::Uri(_)));
        assert!(matches!(refused("spiffe://a/api"), IdentityError::Uri(_)));
        assert!(matches!(refused("spiffe://a/api/b/c"), IdentityError::Uri(_)));
        assert!(matches!(refused("spiffe://a/king/b"), IdentityError::Role(_)));
        assert!(matches!(refused("spiffe://A/api/b"), IdentityError::Cluster(_)));
        assert!(matches!(refused("spiffe:///api/b"), IdentityError::Cluster(_)));
        assert!(matches!(refused("spiffe://a/api/-b"), IdentityError::Name(_)));
        assert!(matches!(refused("spiffe://a/node/b"), IdentityError::Node(_)));
        let long = format!("spiffe://a/api/{}", "b".repeat(64));
        assert!(matches!(refused(&long), IdentityError::Name(_)));
    }

    #[test]
    fn no_bytes_make_the_reader_of_certificates_panic() {
        for length in 0..64 {
            let bytes: Vec<u8> = (0..length).map(|at| 0x30_u8.wrapping_mul(at + 1)).collect();
            assert!(Certified::of(&bytes).is_err());
        }
    }
}
