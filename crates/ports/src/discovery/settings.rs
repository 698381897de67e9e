use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{DiscoveryError, Known};

/// Bytes of one setting: Consul's bound.
pub const SETTING_BYTES_MAX: usize = 512 * 1024;

/// What is set, by its keys, and how much that is worth.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Values {
    /// What is set.
    pub values: BTreeMap<String, String>,
    /// How much that is worth.
    pub known: Known,
}

/// Settings of a cluster that take effect without a restart.
#[async_trait]
pub trait Settings: Send + Sync {
    /// All of them, as a watched value: the whole set, whenever it changes. While the service is away the last set stays, marked as
    /// stale.
    fn watch_settings(&self) -> watch::Receiver<Arc<Values>>;
    /// Sets one.
    async fn put_setting(&self, key: &str, value: &str) -> Result<(), DiscoveryError>;
    /// Removes one. One that is not there is no error.
    async fn remove_setting(&self, key: &str) -> Result<(), DiscoveryError>;
}

/// Whether a text can be a setting's key: parts of letters, digits, `-`, `_` and `.`, with `/` between them.
///
/// # Errors
/// [`DiscoveryError::Invalid`].
pub fn check_setting(key: &str) -> Result<(), DiscoveryError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain);
    if key.len() > 200 || !key.split('/').all(part) {
        return Err(DiscoveryError::Invalid(format!("{key:?} is not a setting's key")));
    }
    Ok(())
}
