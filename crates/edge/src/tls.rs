//! The certificate authority of one installation, for names below its domain.
//!
//! Made on first use and kept with the data: whoever trusts `ca.pem` trusts no more than names below the domain, and
//! this machine. The certificate that is served is made in memory, and made again before it ends.
use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use ports::Clock;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::crypto::ring;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Ten years: trusting it once is meant to be enough.
const AUTHORITY_LIFE: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// Well below the 398 days that clients put up with.
const LEAF_LIFE: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// A certificate is replaced when this much of its life is left.
const RENEWED_BEFORE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The domain is no host name.
    #[error("'{0}' is not a domain")]
    Domain(String),
    /// A file of the authority.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its key does not parse, or signs nothing.
    #[error("no certificate can be made")]
    Certificate(#[from] rcgen::Error),
    /// The certificate does not serve.
    #[error("the certificate cannot be served")]
    Serve(#[from] rustls::Error),
}

/// A local certificate authority that may speak for one domain alone.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_path: PathBuf,
    domain: String,
}

impl Authority {
    /// Opens the authority of `domain` in `dir`, which is made, with the authority, where it is missing. The key
    /// is readable by its owner alone. Blocks on the disk.
    pub fn open(dir: &Path, domain: &str) -> Result<Self, TlsError> {
        let domain = domain.to_ascii_lowercase();
        // It becomes the name of files as well.
        if !is_domain(&domain) {
            return Err(TlsError::Domain(domain));
        }
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::File { what, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("make", dir))?;
        let key_path = dir.join(format!("{domain}.ca.key"));
        let ca_path = dir.join(format!("{domain}.ca.pem"));
        let key = match fs::read_to_string(&key_path) {
            Ok(pem) => KeyPair::from_pem(&pem)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                write(&key_path, &key.serialize_pem(), 0o600).map_err(failed("write", &key_path))?;
                key
            }
            Err(error) => return Err(failed("read", &key_path)(error)),
        };
        let params = authority_params(&domain)?;
        // Signed after its key was written: what a crash leaves behind is a key, and a key is enough.
        if !ca_path.try_exists().map_err(failed("read", &ca_path))? {
            let certificate = params.self_signed(&key)?;
            write(&ca_path, &certificate.pem(), 0o644).map_err(failed("write", &ca_path))?;
        }
        Ok(Self {
            issuer: Issuer::new(params, key),
            ca_path,
            domain,
        })
    }

    /// The certificate that clients are to trust, in PEM.
    #[must_use]
    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// What a TLS listener serves with: a certificate for the domain, all names one label below it, and this
    /// machine; HTTP/2 before HTTP/1.1.
    pub fn server_config(self, clock: Arc<dyn Clock>) -> Result<Arc<rustls::ServerConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let leaf = RwLock::new(self.leaf(clock.now())?);
        let renewing = Renewing {
            authority: self,
            clock,
            leaf,
        };
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(renewing));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn leaf(&self, now: SystemTime) -> Result<Leaf, TlsError> {
        let until = now + LEAF_LIFE;
        let mut params = CertificateParams::new([
            self.domain.clone(),
            format!("*.{}", self.domain),
            "localhost".to_owned(),
        ])?;
        params
            .subject_alt_names
            .push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        params.distinguished_name = name(&self.domain);
        params.not_before = (now - DAY).into();
        params.not_after = until.into();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let signing = ring::sign::any_ecdsa_type(&PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
        Ok(Leaf {
            key: Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signing)),
            until,
        })
    }
}

/// The certificate served now.
struct Leaf {
    key: Arc<CertifiedKey>,
    until: SystemTime,
}

/// Serves a certificate, and replaces it before it ends.
struct Renewing {
    authority: Authority,
    clock: Arc<dyn Clock>,
    leaf: RwLock<Leaf>,
}

const UNPOISONED: &str = "nothing panics while it holds the certificate";

impl ResolvesServerCert for Renewing {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let now = self.clock.now();
        let (key, until) = {
            let leaf = self.leaf.read().expect(UNPOISONED);
            (Arc::clone(&leaf.key), leaf.until)
        };
        if now + RENEWED_BEFORE < until {
            return Some(key);
        }
        // Two at once make two; the last one stays, and both are good.
        match self.authority.leaf(now) {
            Ok(leaf) => {
                let key = Arc::clone(&leaf.key);
                *self.leaf.write().expect(UNPOISONED) = leaf;
                Some(key)
            }
            Err(error) => {
                tracing::error!(?error, "the certificate cannot be renewed");
                Some(key)
            }
        }
    }
}

impl std::fmt::Debug for Renewing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewing")
            .field("domain", &self.authority.domain)
            .finish_non_exhaustive()
    }
}

/// What the authority says of itself. The same for each opening but for its dates, which no leaf depends on.
fn authority_params(domain: &str) -> Result<CertificateParams, rcgen::Error> {
    let now = SystemTime::now();
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = name(&format!("Atoll local authority for {domain}"));
    params.not_before = (now - DAY).into();
    params.not_after = (now + AUTHORITY_LIFE).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName(domain.to_owned()),
            GeneralSubtree::DnsName("localhost".to_owned()),
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([127, 0, 0, 0], 8)),
        ],
        excluded_subtrees: Vec::new(),
    });
    Ok(params)
}

/// Labels of letters, digits and inner dashes (RFC 1123, section 2.1).
fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Atoll");
    name.push(DnType::CommonName, common);
    name
}

/// Writes a file so that it is there whole or not at all.
fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let part = path.with_extension("part");
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&part, path)
}
