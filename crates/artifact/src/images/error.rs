//! Why an image is not there, and what to do.
use std::io;
use std::net::IpAddr;

use model::Kind;

use crate::digest::Digest;
use crate::layer::LayerError;
use crate::layers::MakeError;
use crate::manifest::ManifestError;
use crate::reference::ReferenceError;

/// Why an image was not pulled or imported. Nothing of it is left but layers that are whole.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The text names no image.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The configuration denies the registry.
    #[error(
        "images from {registry} are not allowed here; ask who runs this node to allow it in [images.registries]"
    )]
    Denied {
        /// Which.
        registry: String,
    },
    /// The registry, or where it sends, is not on the internet, and the configuration does not name it.
    #[error(
        "{host} has an address that is not public; a registry in a private network must be named in [images.registries]"
    )]
    Private {
        /// `host[:port]`.
        host: String,
        /// Its address: for the log. Whoever may name any host is not told what this machine's resolver knows of it.
        address: IpAddr,
    },
    /// The credentials are none.
    #[error("the registry's credentials cannot be used: {0}")]
    Credentials(String),
    /// The registry does not let who asks have it.
    #[error(
        "{registry} does not give out {repository}{}: {}",
        if .says.is_empty() { String::new() } else { format!(" ({})", .says) },
        if *.has_credentials {
            "check the name, and that the credentials may read it"
        } else {
            "check the name; if the image is private, give credentials for the registry"
        }
    )]
    Unauthorized {
        /// Who refuses.
        registry: String,
        /// What.
        repository: String,
        /// Whether there were credentials.
        has_credentials: bool,
        /// What it says of it.
        says: String,
    },
    /// There is no such image, or no such version of it.
    #[error("{registry} has no {what} of {repository}; check the name and the tag")]
    NotFound {
        /// Who was asked.
        registry: String,
        /// For what image.
        repository: String,
        /// The tag or digest.
        what: String,
    },
    /// The image is for other machines.
    #[error("{reference} is not for {wanted}, only for {}", if .offers.is_empty() { "machines that it does not name".to_owned() } else { .offers.join(", ") })]
    Architecture {
        /// Which image.
        reference: String,
        /// This machine.
        wanted: String,
        /// For what it is there.
        offers: Vec<String>,
    },
    /// What describes it is wrong, or describes something else.
    #[error("{reference} is no image that can be used: {why}")]
    Manifest {
        /// Which.
        reference: String,
        /// Why not.
        why: String,
    },
    /// The bytes are not those that were promised.
    #[error(
        "{what} has the digest {found} in the place of {expected}; somebody has changed it, or a mirror is broken"
    )]
    Digest {
        /// What.
        what: String,
        /// What was promised.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// It is larger than allowed.
    #[error("{what} is larger than the {limit} bytes that are allowed")]
    TooLarge {
        /// What.
        what: String,
        /// How much is allowed.
        limit: u64,
    },
    /// A layer is wrong.
    #[error("layer {digest} cannot be used: {source}")]
    Layer {
        /// Which.
        digest: Digest,
        /// Why not.
        source: LayerError,
    },
    /// The registry limits how often it is asked.
    #[error("{why}; wait, or give credentials, or have a mirror named in [images.registries]")]
    Limited {
        /// Which.
        registry: String,
        /// What it said.
        why: String,
    },
    /// The registry cannot be reached, also not by another try.
    #[error("{registry} cannot be reached: {why}")]
    Away {
        /// Which.
        registry: String,
        /// What was seen.
        why: String,
    },
    /// The registry does what no registry should.
    #[error("{registry} does not behave as a registry: {why}")]
    Odd {
        /// Which.
        registry: String,
        /// What it does.
        why: String,
    },
    /// What is to be imported is no image.
    #[error("{path} holds no image that can be imported: {why}")]
    Archive {
        /// Where it is.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The disk refused, or is full.
    #[error("{step} failed")]
    Disk {
        /// At what.
        step: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl PullError {
    /// The way it failed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            PullError::Reference(_)
            | PullError::Credentials(_)
            | PullError::Architecture { .. }
            | PullError::Manifest { .. }
            | PullError::Digest { .. }
            | PullError::TooLarge { .. }
            | PullError::Odd { .. }
            | PullError::Archive { .. } => Kind::Invalid,
            PullError::Denied { .. } | PullError::Private { .. } | PullError::Unauthorized { .. } => {
                Kind::Forbidden
            }
            PullError::NotFound { .. } => Kind::NotFound,
            PullError::Limited { .. } => Kind::Exhausted,
            PullError::Away { .. } => Kind::Unavailable,
            PullError::Layer {
                source: LayerError::Disk { source, .. },
                ..
            }
            | PullError::Disk { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::Unavailable,
                _ => Kind::Internal,
            },
            PullError::Layer { .. } => Kind::Invalid,
        }
    }

    /// What its user is told: with its causes, on one line.
    #[must_use]
    pub fn public(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let says = error.to_string();
            if !text.contains(&says) {
                text = format!("{text}: {says}");
            }
            cause = error.source();
        }
        text.chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(1000)
            .collect()
    }

    pub(crate) fn disk(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| PullError::Disk { step, source }
    }

    pub(crate) fn manifest(reference: &impl ToString) -> impl FnOnce(ManifestError) -> Self {
        let reference = reference.to_string();
        move |ManifestError(why)| PullError::Manifest { reference, why }
    }

    /// What a layer's failure means.
    pub(crate) fn layer(digest: Digest, error: MakeError) -> Self {
        match error {
            MakeError::Layer(source) => PullError::Layer { digest, source },
            MakeError::Digest {
                what,
                expected,
                found,
            } => PullError::Digest {
                what: format!("layer {digest}, {what},"),
                expected,
                found,
            },
            MakeError::Disk(step, source) => PullError::Disk {
                step: format!("{step} ({digest})"),
                source,
            },
        }
    }
}
