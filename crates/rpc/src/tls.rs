//! Mutual TLS between the processes of a cluster, by files that may be replaced at any time.
//!
//! Who is not of the cluster is refused in the handshake: signed by nobody who is trusted, ended, not begun, of another cluster,
//! or not the one that was dialled. What a role may do is asked later, of each call: see [`crate::access`].
//!
//! New connections use what the files hold now. Those that are there go on, to the end of the certificate that the peer showed at
//! most: nothing is resumed, so that each connection has seen a whole handshake.
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use model::ClusterName;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
};
use tokio_util::sync::CancellationToken;

use crate::identity::{Certified, Identity, IdentityError, Role};

/// How often files are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);
/// What a certificate file may hold: a chain is some kilobytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// A certificate that has no more than this part of its life left should have been renewed.
const OVERDUE_PART: u32 = 5;

/// Where a process finds its certificate, its key, and whom it trusts. All in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Certificates of the authority.
    pub trust: PathBuf,
    /// The process's own.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Files {
    /// As [`crate::ca::Authority::issue_into`] writes them.
    #[must_use]
    pub fn in_dir(dir: &Path, name: &str) -> Self {
        Self {
            trust: dir.join("ca.pem"),
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}-key.pem")),
        }
    }

    fn all(&self) -> [&Path; 3] {
        [&self.trust, &self.certificate, &self.key]
    }
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file that does not hold what it should.
    #[error("{} holds no {wanted} in PEM", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// Whose the certificate is.
    #[error("the certificate in {} is of nobody", path.display())]
    Identity {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// It is not the same process's any more.
    #[error("the certificate is of {now}, and this is {own}: start again to be another")]
    Another {
        /// Whose it is.
        now: Box<Identity>,
        /// Who this is.
        own: Box<Identity>,
    },
    /// The key is another certificate's.
    #[error("the key in {} is not that of the certificate in {}", key.display(), certificate.display())]
    Apart {
        /// The key's file.
        key: PathBuf,
        /// The certificate's.
        certificate: PathBuf,
    },
    /// It cannot be served with.
    #[error("the certificates cannot be used")]
    Rustls(#[from] rustls::Error),
    /// Whom it trusts.
    #[error("the certificates of the authority cannot be used")]
    Trust(#[source] rustls::server::VerifierBuilderError),
}

/// Why a peer is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefused {
    /// It says of itself what no process of a cluster says.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Of another cluster.
    #[error("{peer} is not of cluster '{own}'")]
    Cluster {
        /// Who.
        peer: Identity,
        /// Which cluster this is.
        own: ClusterName,
    },
    /// Not the one, or not what it should be.
    #[error("{peer} answers where {wanted} was dialled")]
    Another {
        /// Who.
        peer: Identity,
        /// Who should.
        wanted: String,
    },
}

impl From<PeerRefused> for rustls::Error {
    fn from(refused: PeerRefused) -> Self {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused))))
    }
}

/// Whom a client means to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    roles: Vec<Role>,
    name: Option<String>,
}

impl Expected {
    /// One node and no other.
    #[must_use]
    pub fn node(node: model::NodeId) -> Self {
        Self {
            roles: vec![Role::Node],
            name: Some(node.to_string()),
        }
    }

    /// Whoever has one of these roles.
    #[must_use]
    pub fn any_of(roles: &[Role]) -> Self {
        Self {
            roles: roles.to_vec(),
            name: None,
        }
    }

    fn is(&self, peer: &Identity) -> bool {
        self.roles.contains(&peer.role()) && self.name.as_ref().is_none_or(|name| peer.name() == name)
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roles: Vec<&str> = self.roles.iter().map(|role| role.as_str()).collect();
        let name = self.name.as_deref().unwrap_or("*");
        write!(f, "{}/{name}", roles.join("|"))
    }
}

/// What a process shows and whom it trusts, as its files say now.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    files: Files,
    provider: Arc<CryptoProvider>,
    now: RwLock<Arc<Material>>,
}

struct Material {
    key: Arc<CertifiedKey>,
    own: Certified,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    seen: Seen,
}

/// What tells one state of the files from another.
type Seen = [(u64, i64, i64, u64); 3];

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.identity().to_string()).finish()
    }
}

impl Tls {
    /// Reads the files. Blocks on the disk.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn open(files: Files) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let now = RwLock::new(Arc::new(read(&files, &provider)?));
        Ok(Self(Arc::new(Shared { files, provider, now })))
    }

    /// Who this process is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.0.now().own.identity.clone()
    }

    /// When what it shows now ends.
    #[must_use]
    pub fn until(&self) -> SystemTime {
        self.0.now().own.until
    }

    /// Reads the files again where they have changed; says whether they had. What cannot be used changes nothing. Blocks on the
    /// disk.
    ///
    /// # Errors
    /// Why they cannot be used.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let before = self.0.now();
        if seen(&self.0.files)? == before.seen {
            return Ok(false);
        }
        let fresh = read(&self.0.files, &self.0.provider)?;
        if fresh.own.identity != before.own.identity {
            return Err(TlsError::Another {
                now: Box::new(fresh.own.identity),
                own: Box::new(before.own.identity.clone()),
            });
        }
        *self.0.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        Ok(true)
    }

    /// Follows the files until `stop`: looks at them every [`LOOK_EVERY`], and says where they cannot be used or are overdue. One
    /// task of each process.
    pub async fn follow(self, stop: CancellationToken) {
        let mut told = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let tls = self.clone();
            let outcome = match tokio::task::spawn_blocking(move || tls.reload()).await {
                Ok(outcome) => outcome,
                Err(_) => continue,
            };
            let say = match outcome {
                Ok(true) => {
                    tracing::info!(identity = %self.identity(), "this process has another certificate, or trusts others");
                    None
                }
                Ok(false) => None,
                Err(error) => Some(crate::causes(&error)),
            };
            // What is said every two seconds is not heard.
            if say.is_some() && say != told {
                tracing::error!(
                    error = say,
                    "the files of certificates cannot be used: those of before are"
                );
            }
            told = say;
            self.tell_rest();
        }
    }

    fn tell_rest(&self) {
        let own = &self.0.now().own;
        let left = own.until.duration_since(SystemTime::now()).unwrap_or_default();
        metrics::gauge!("atoll_rpc_certificate_seconds_left").set(left.as_secs_f64());
        let life = own.until.duration_since(own.from).unwrap_or_default();
        if left < life / OVERDUE_PART {
            metrics::gauge!("atoll_rpc_certificate_overdue").set(1.0);
        } else {
            metrics::gauge!("atoll_rpc_certificate_overdue").set(0.0);
        }
    }

    /// What a listener is to be served with: anybody of the cluster gets in, by these protocols.
    #[must_use]
    pub fn server(&self, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.0.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has what TLS 1.3 needs")
            .with_client_cert_verifier(Arc::new(Clients(Arc::clone(&self.0))))
            .with_cert_resolver(Arc::new(Own(Arc::clone(&self.0))));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        // A resumed session would not show its certificate again.
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// What a client is to dial with, who means to reach `expected`.
    #[must_use]
    pub fn client(&self, expected: Expected, alpn: &[u8]) -> Arc<ClientConfig> {
        let verifier = Server {
            shared: Arc::clone(&self.0),
            expected,
        };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.0.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has what TLS 1.3 needs")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(Own(Arc::clone(&self.0))));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }
}

impl Shared {
    fn now(&self) -> Arc<Material> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whom a certificate is of that was found to be signed by who is trusted, if he is of this cluster.
    fn of_cluster(&self, der: &CertificateDer<'_>) -> Result<Certified, PeerRefused> {
        let certified = Certified::of(der)?;
        let now = self.now();
        let own = now.own.identity.cluster();
        if certified.identity.cluster() == own {
            return Ok(certified);
        }
        Err(PeerRefused::Cluster {
            peer: certified.identity,
            own: own.to_owned(),
        })
    }
}

/// The certificate that a process shows, to whoever asks.
struct Own(Arc<Shared>);

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Own")
    }
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.now().key))
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.now().key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A server's judgement of its clients.
struct Clients(Arc<Shared>);

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clients")
    }
}

impl ClientCertVerifier for Clients {
    // Everybody has one certificate, and shows it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .0
            .now()
            .clients
            .verify_client_cert(end_entity, intermediates, now)?;
        self.0.of_cluster(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(
            rustls::PeerIncompatible::Tls12NotOffered,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0
            .provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A client's judgement of the server that it dialled.
struct Server {
    shared: Arc<Shared>,
    expected: Expected,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.expected).finish()
    }
}

impl ServerCertVerifier for Server {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.shared.now().roots,
            intermediates,
            now,
            self.shared.provider.signature_verification_algorithms.all,
        )?;
        let peer = self.shared.of_cluster(end_entity)?.identity;
        if self.expected.is(&peer) {
            return Ok(ServerCertVerified::assertion());
        }
        let wanted = self.expected.to_string();
        Err(PeerRefused::Another { peer, wanted }.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(
            rustls::PeerIncompatible::Tls12NotOffered,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.shared.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.shared
            .provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn seen(files: &Files) -> Result<Seen, TlsError> {
    let mut seen = Seen::default();
    for (file, seen) in files.all().into_iter().zip(&mut seen) {
        let facts = fs::metadata(file).map_err(|source| TlsError::File {
            path: file.to_owned(),
            source,
        })?;
        *seen = (facts.ino(), facts.mtime(), facts.mtime_nsec(), facts.len());
    }
    Ok(seen)
}

fn read(files: &Files, provider: &Arc<CryptoProvider>) -> Result<Material, TlsError> {
    // Before they are read: what changes meanwhile is read again.
    let seen = seen(files)?;
    let text = |path: &Path| {
        use io::Read as _;
        let mut text = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut text))
            .map_err(|source| TlsError::File {
                path: path.to_owned(),
                source,
            })?;
        Ok::<_, TlsError>(text)
    };
    let pem = |path: &Path, wanted| TlsError::Pem {
        path: path.to_owned(),
        wanted,
    };
    let certificates = |path: &Path| {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text(path)?).collect();
        let found = found.ok().filter(|found| !found.is_empty());
        found.ok_or_else(|| pem(path, "certificate"))
    };
    let mut roots = RootCertStore::empty();
    for root in certificates(&files.trust)? {
        roots.add(root)?;
    }
    let roots = Arc::new(roots);
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&text(&files.key)?).map_err(|_| pem(&files.key, "key"))?;
    let own = Certified::of(&chain[0]).map_err(|source| TlsError::Identity {
        path: files.certificate.clone(),
        source,
    })?;
    let key = CertifiedKey::new(chain, provider.key_provider.load_private_key(key)?);
    key.keys_match().map_err(|_| TlsError::Apart {
        key: files.key.clone(),
        certificate: files.certificate.clone(),
    })?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
        .build()
        .map_err(TlsError::Trust)?;
    Ok(Material {
        key: Arc::new(key),
        own,
        roots,
        clients,
        seen,
    })
}
