use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::DiscoveryError;

/// Where a candidate stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Somebody else leads, or nobody does yet.
    Waiting {
        /// Who, as it named itself.
        leader: Option<String>,
    },
    /// It leads: nobody else does.
    Leading {
        /// Greater than that of everybody who led before: what is done in this office carries it, and whoever carries it out
        /// refuses a smaller one than it has seen.
        token: u64,
    },
    /// The service that counts the votes is away, and this one does not lead.
    Away(String),
}

impl Standing {
    /// The fencing token of one that leads.
    #[must_use]
    pub const fn token(&self) -> Option<u64> {
        match self {
            Self::Leading { token } => Some(*token),
            Self::Waiting { .. } | Self::Away(_) => None,
        }
    }
}

/// A candidate's standing for an office, until it is dropped: then the office is free for the next.
#[derive(Debug)]
pub struct Candidacy {
    standing: watch::Receiver<Standing>,
    stop: CancellationToken,
}

impl Candidacy {
    /// For adapters: `standing` is written by a task that gives the office back once `stop` is cancelled, and then lets go of the
    /// sender.
    #[must_use]
    pub const fn new(standing: watch::Receiver<Standing>, stop: CancellationToken) -> Self {
        Self { standing, stop }
    }

    /// Where it stands, now and as that changes. That it leads no more is told before anybody else can lead.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Waits until it leads; returns the fencing token. `None`: it never will, for the adapter has ended.
    pub async fn leads(&mut self) -> Option<u64> {
        let led = self
            .standing
            .wait_for(|standing| standing.token().is_some())
            .await;
        led.ok().and_then(|standing| standing.token())
    }

    /// Gives the office back, and waits until that is done.
    pub async fn resign(self) {
        self.stop.cancel();
        let mut standing = self.standing.clone();
        while standing.changed().await.is_ok() {}
    }
}

impl Drop for Candidacy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Offices of which one candidate at a time has each.
pub trait Elections: Send + Sync {
    /// Stands for an office until the candidacy is dropped. Loss of the office does not end it: it stands again.
    ///
    /// # Errors
    /// A name that is none: as [`super::check_id`] has it.
    fn stand(&self, office: &str, candidate: &str) -> Result<Candidacy, DiscoveryError>;
}
