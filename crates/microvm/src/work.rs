//! Work that blocks, and work that has its time.
use std::io;
use std::time::Duration;

use ports::RuntimeError;
use ports::step::{At, Step};

/// Work that blocks, off the runtime.
///
/// # Errors
/// The work's, or it panicked.
pub async fn off<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Step> + Send + 'static,
) -> Result<T, Step> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other).at("a task of the runtime")?
}

/// The same, for whoever tells it the node.
///
/// # Errors
/// The work's, or it panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Step> + Send + 'static,
) -> Result<T, RuntimeError> {
    Ok(off(work).await?)
}

pub(crate) fn panicked(error: tokio::task::JoinError) -> RuntimeError {
    RuntimeError::Step {
        step: "a task of the runtime".to_owned(),
        source: io::Error::other(error),
    }
}

/// Work that is given up when its time is over.
///
/// # Errors
/// The work's, or `TimedOut`.
pub async fn in_time<T>(within: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {within:?}"));
    tokio::time::timeout(within, work).await.map_err(|_| late())?
}

/// An error with what lies below it, for whoever is told one line.
#[must_use]
pub fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
