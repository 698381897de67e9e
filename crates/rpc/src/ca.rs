//! The certificate authority of a cluster: a key, and certificates that are worth a day.
//!
//! ```text
//! <dir>/ca.pem                  what everybody trusts: the certificate that signs, and older ones until they are retired
//! <dir>/ca-key.pem              the key that signs (0600): whoever has it is the cluster
//! <out>/<name>.pem              a process's certificate
//! <out>/<name>-key.pem          its key (0600)
//! ```
//!
//! A process is given `ca.pem` and the last two, and reads them again when they change (see [`crate::tls`]).
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use model::ClusterName;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::identity::{Identity, IdentityError, Parsed};

/// What certificates are worth where nobody says another time.
pub const TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// The shortest time: less would not outlast the clocks' differences.
pub const TTL_MIN: Duration = Duration::from_secs(5 * 60);
/// The longest time: there is no revocation but waiting.
pub const TTL_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Clocks in a cluster may be apart so much.
pub const SKEW: Duration = Duration::from_secs(10 * 60);
/// Ten years: it is replaced by [`Authority::rotate`], not by its end.
const LIFE: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// More than an authority is rotated while its certificates live.
const TRUSTED_MAX: usize = 16;

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca-key.pem";

/// Why the authority did not do it.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A name.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is an authority already.
    #[error("there is an authority in {} already", .0.display())]
    Exists(PathBuf),
    /// It speaks for another cluster.
    #[error("the authority is of cluster '{own}', and cannot speak for '{asked}'")]
    Cluster {
        /// Its own.
        own: ClusterName,
        /// The one that was asked for.
        asked: ClusterName,
    },
    /// A time to live that is too short or too long.
    #[error("a certificate is worth 5 minutes to 30 days, not {} s", .0.as_secs())]
    Ttl(Duration),
    /// The files are not those of an authority.
    #[error("{} is no authority's: {why}", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// A file.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No certificate can be made.
    #[error("no certificate can be made")]
    Certificate(#[from] rcgen::Error),
}

/// A certificate and its key, as they are written into files.
pub struct Issued {
    /// The certificate, and what stands between it and what everybody trusts (nothing, today), in PEM.
    pub chain_pem: String,
    /// Its key, in PEM: nobody else may read it.
    pub key_pem: String,
    /// When it ends.
    pub until: SystemTime,
}

/// The certificate authority of one cluster.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    cluster: ClusterName,
    dir: PathBuf,
    trust: String,
}

impl Authority {
    /// Makes the authority of a cluster in a directory, which is made where it is missing. Blocks on the disk.
    ///
    /// # Errors
    /// [`AuthorityError::Exists`] where there is one: its certificates would be worth nothing any more.
    pub fn create(dir: &Path, cluster: &ClusterName) -> Result<Self, AuthorityError> {
        make_dir(dir)?;
        let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
        for file in [&certificate, &key] {
            if file.try_exists().map_err(failed("look for", file))? {
                return Err(AuthorityError::Exists(dir.to_owned()));
            }
        }
        let (pem, pair) = new_root(cluster)?;
        // The key first: a certificate without its key is of no use to anybody.
        write(&key, &pair.serialize_pem(), 0o600)?;
        write(&certificate, &pem, 0o644)?;
        Self::of(dir, cluster, pem, pair)
    }

    /// Opens the authority in a directory. Blocks on the disk.
    ///
    /// # Errors
    /// [`AuthorityError::File`] where there is none.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
        let trust = fs::read_to_string(&certificate).map_err(failed("read", &certificate))?;
        let pair = KeyPair::from_pem(&fs::read_to_string(&key).map_err(failed("read", &key))?)?;
        let foreign = |why| AuthorityError::Foreign {
            path: certificate.clone(),
            why,
        };
        let mut uris = None;
        for der in CertificateDer::pem_slice_iter(trust.as_bytes()) {
            let der = der.map_err(|_| foreign("it is no PEM of certificates"))?;
            if is_of(&der, &pair) {
                uris = Some(Parsed::of(&der)?.uris);
            }
        }
        let uris = uris.ok_or_else(|| foreign("it has no certificate of the key beside it"))?;
        let cluster = match uris.as_slice() {
            [uri] => uri.strip_prefix("spiffe://"),
            _ => None,
        };
        let cluster = cluster.and_then(|name| name.parse().ok());
        let cluster = cluster.ok_or_else(|| foreign("its certificate names no cluster"))?;
        Self::of(dir, &cluster, trust, pair)
    }

    fn of(dir: &Path, cluster: &ClusterName, trust: String, pair: KeyPair) -> Result<Self, AuthorityError> {
        Ok(Self {
            issuer: Issuer::new(root_params(cluster)?, pair),
            cluster: cluster.clone(),
            dir: dir.to_owned(),
            trust,
        })
    }

    /// Whose.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// What everybody in the cluster trusts, in PEM.
    #[must_use]
    pub fn trust_pem(&self) -> &str {
        &self.trust
    }

    /// Has a new key and certificate sign from now on. What was trusted stays trusted, until [`Authority::retire`]: first
    /// `ca.pem` goes to everybody, then new certificates are issued. Blocks on the disk.
    ///
    /// # Errors
    /// What became of the files. A crash in between leaves the authority as it was, with one more certificate trusted.
    pub fn rotate(&mut self) -> Result<(), AuthorityError> {
        let (pem, pair) = new_root(&self.cluster)?;
        let (certificate, key) = (self.dir.join(CERTIFICATE), self.dir.join(KEY));
        let trusted = pem_blocks(&self.trust);
        if trusted.len() >= TRUSTED_MAX {
            return Err(AuthorityError::Foreign {
                path: certificate,
                why: "it has sixteen certificates: retire the old ones",
            });
        }
        // Trusted before it signs: cut short in between, the old one signs on.
        let trust = format!("{}{pem}", self.trust);
        write(&certificate, &trust, 0o644)?;
        self.trust = trust;
        write(&key, &pair.serialize_pem(), 0o600)?;
        self.issuer = Issuer::new(root_params(&self.cluster)?, pair);
        Ok(())
    }

    /// Has nobody trust but the certificate that signs. What others signed is worth nothing from then on: wait until it has
    /// ended. Blocks on the disk.
    ///
    /// # Errors
    /// What became of the file.
    pub fn retire(&mut self) -> Result<(), AuthorityError> {
        let is_own = |block: &String| {
            let der = CertificateDer::from_pem_slice(block.as_bytes());
            der.is_ok_and(|der| is_of(&der, self.issuer.key()))
        };
        let own: String = pem_blocks(&self.trust).into_iter().filter(is_own).collect();
        write(&self.dir.join(CERTIFICATE), &own, 0o644)?;
        self.trust = own;
        Ok(())
    }

    /// A certificate for a process of this cluster.
    ///
    /// # Errors
    /// [`AuthorityError::Cluster`] and [`AuthorityError::Ttl`] for what it does not do.
    pub fn issue(&self, identity: &Identity, ttl: Duration) -> Result<Issued, AuthorityError> {
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            return Err(AuthorityError::Ttl(ttl));
        }
        let now = SystemTime::now();
        self.issue_between(identity, now - SKEW, now + ttl)
    }

    /// A certificate between two times, whatever they are: for those that test what becomes of one that has ended.
    ///
    /// # Errors
    /// [`AuthorityError::Cluster`] for another cluster.
    #[doc(hidden)]
    pub fn issue_between(
        &self,
        identity: &Identity,
        from: SystemTime,
        until: SystemTime,
    ) -> Result<Issued, AuthorityError> {
        if *identity.cluster() != self.cluster {
            return Err(AuthorityError::Cluster {
                own: self.cluster.clone(),
                asked: identity.cluster().clone(),
            });
        }
        let mut params = CertificateParams::new([identity.dns_name()])?;
        params
            .subject_alt_names
            .push(SanType::URI(identity.to_string().try_into()?));
        params.distinguished_name = name(identity.name());
        params.not_before = from.into();
        params.not_after = until.into();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            until,
        })
    }

    /// Issues a certificate, and writes it with its key and what everybody trusts into a directory, which is made where it is
    /// missing: what a process is given. Each file is whole at any time; the key is replaced before its certificate, and who reads
    /// in between sees that they do not fit and reads again. Blocks on the disk.
    ///
    /// # Errors
    /// As [`Authority::issue`], and what became of the files.
    pub fn issue_into(
        &self,
        dir: &Path,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<crate::tls::Files, AuthorityError> {
        let issued = self.issue(identity, ttl)?;
        let files = crate::tls::Files::in_dir(dir, identity.name());
        make_dir(dir)?;
        if dir != self.dir {
            write(&files.trust, &self.trust, 0o644)?;
        }
        write(&files.key, &issued.key_pem, 0o600)?;
        write(&files.certificate, &issued.chain_pem, 0o644)?;
        Ok(files)
    }
}

/// Whether a certificate is of this key.
fn is_of(der: &[u8], pair: &KeyPair) -> bool {
    x509_parser::parse_x509_certificate(der).is_ok_and(|(_, parsed)| {
        parsed.public_key().subject_public_key.data.as_ref() == pair.public_key_raw()
    })
}

fn new_root(cluster: &ClusterName) -> Result<(String, KeyPair), AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = root_params(cluster)?;
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + LIFE).into();
    Ok((params.self_signed(&key)?.pem(), key))
}

/// The same for every certificate of a cluster's authority, but for times and key: what is signed by one names them all.
fn root_params(cluster: &ClusterName) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&format!("Atoll cluster {cluster}"));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{cluster}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

fn name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn pem_blocks(pem: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let blocks = pem.split_inclusive(END).filter(|block| block.contains(END));
    blocks.map(|block| format!("{}\n", block.trim_start())).collect()
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuthorityError {
    let path = path.to_owned();
    move |source| AuthorityError::File { what, path, source }
}

fn make_dir(dir: &Path) -> Result<(), AuthorityError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed("make", dir))
}

/// Replaces a file as a whole, durably.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}.new", uuid::Uuid::new_v4().simple()));
    let fresh = PathBuf::from(fresh);
    let written = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        fs::File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written.map_err(failed("write", path))
}

#[cfg(test)]
mod tests;
