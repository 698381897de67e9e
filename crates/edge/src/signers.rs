//! Whose signed URL is this?
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use model::SandboxId;
use ports::{Catalog, CatalogError};
use tokio::sync::Semaphore;

use crate::signed::{SignedUrl, Unsigned};

/// Searches at once. A search costs one SHA-256 block for each live sandbox; what more ask at once waits its turn,
/// so that signatures made up by strangers never take more than a core.
const SEARCHES_MAX: usize = 1;
/// Searches that wait for their turn. One takes a fraction of a millisecond with a thousand sandboxes, so that the last
/// in line waits for some tens of them; strangers who ask for more are turned away, and with them whoever comes then.
const WAITING_MAX: usize = 256;
/// Tokens tried between two pauses for the other tasks of the thread: about 50 µs.
const TRIES_IN_A_ROW: usize = 256;
/// Answers remembered: a link is usually followed more than once (ranges, retries, previews).
const REMEMBERED_MAX: usize = 4096;

/// Finds the sandbox of a URL that was signed with its token.
pub(crate) struct Signers {
    catalog: Arc<dyn Catalog>,
    line: Semaphore,
    turns: Semaphore,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    owners: HashMap<[u8; 32], SandboxId>,
    order: VecDeque<[u8; 32]>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SearchError {
    /// No live sandbox signed it.
    #[error(transparent)]
    Nobody(#[from] Unsigned),
    /// Too many ask.
    #[error("too many signatures are looked up")]
    Busy,
    /// The catalog did not say.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

const UNPOISONED: &str = "nothing panics while it holds the known signers";

impl Signers {
    pub(crate) fn new(catalog: Arc<dyn Catalog>) -> Self {
        Self {
            catalog,
            line: Semaphore::new(SEARCHES_MAX + WAITING_MAX),
            turns: Semaphore::new(SEARCHES_MAX),
            known: Mutex::default(),
        }
    }

    /// The sandbox that signed. This is an address, no permission: envd checks the signature again, and its expiry.
    pub(crate) async fn find(&self, url: &SignedUrl) -> Result<SandboxId, SearchError> {
        let known = self
            .known
            .lock()
            .expect(UNPOISONED)
            .owners
            .get(&url.digest)
            .copied();
        if let Some(sandbox) = known {
            return Ok(sandbox);
        }
        let _place = self.line.try_acquire().map_err(|_| SearchError::Busy)?;
        let _turn = self.turns.acquire().await.expect("never closed");
        let check = url.check();
        for routes in self.catalog.all().await?.chunks(TRIES_IN_A_ROW) {
            let signer = routes.iter().find(|route| {
                route
                    .envd_token
                    .as_ref()
                    .is_some_and(|token| check.is_signed_with(token))
            });
            if let Some(route) = signer {
                self.remember(url.digest, route.sandbox);
                return Ok(route.sandbox);
            }
            tokio::task::yield_now().await;
        }
        Err(Unsigned::Invalid.into())
    }

    fn remember(&self, digest: [u8; 32], sandbox: SandboxId) {
        let mut known = self.known.lock().expect(UNPOISONED);
        if known.owners.insert(digest, sandbox).is_none() {
            known.order.push_back(digest);
        }
        if known.order.len() > REMEMBERED_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.owners.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_finds_too_many_before_him_does_not_wait() {
        let signers = Signers::new(Arc::new(ports::catalog::Memory::default()));
        let query = "path=/x&signature=v1_47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";
        let url = SignedUrl::of(&http::Method::GET, "/files", &query.replace('+', "%2B"))
            .expect("a URL to be signed")
            .expect("a signature");
        let places = signers.line.acquire_many(257).await.expect("never closed");
        assert!(matches!(signers.find(&url).await, Err(SearchError::Busy)));
        drop(places);
        assert!(matches!(signers.find(&url).await, Err(SearchError::Nobody(_))));
    }

    #[test]
    fn the_oldest_answer_is_forgotten_first() {
        let signers = Signers::new(Arc::new(ports::catalog::Memory::default()));
        let sandbox = SandboxId::random();
        let digest = |n: usize| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&n.to_le_bytes());
            digest
        };
        for n in 0..=REMEMBERED_MAX {
            signers.remember(digest(n), sandbox);
        }
        let known = signers.known.lock().unwrap();
        assert_eq!(known.owners.len(), REMEMBERED_MAX);
        assert!(!known.owners.contains_key(&digest(0)) && known.owners.contains_key(&digest(1)));
    }
}
