//! What ends a build before it has ended: whoever ordered it, and its time.
use std::time::Duration;

use model::{BuildFailure, BuildStep};
use ports::RuntimeError;
use ports::builds::BuildError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A build that takes longer has a step that waits for something (contract 4.2: the reference gives each layer as much).
pub(super) const BUILD_WITHIN: Duration = Duration::from_secs(3600);

/// The end of a build, when it comes from outside.
#[derive(Debug)]
pub(super) struct Leash {
    stop: CancellationToken,
    until: Instant,
}

impl Leash {
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self {
            stop,
            until: Instant::now() + BUILD_WITHIN,
        }
    }

    /// Does something that may be given up at any time.
    pub(super) async fn hold<T>(
        &self,
        step: BuildStep,
        work: impl Future<Output = Result<T, BuildError>>,
    ) -> Result<T, BuildError> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(BuildError::Cancelled),
            () = tokio::time::sleep_until(self.until) => Err(too_late(step)),
            done = work => done,
        }
    }

    /// Whether there is still time, before something is done that must not be given up half way.
    pub(super) fn check(&self, step: BuildStep) -> Result<(), BuildError> {
        if self.stop.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        if Instant::now() >= self.until {
            return Err(too_late(step));
        }
        Ok(())
    }
}

fn too_late(step: BuildStep) -> BuildError {
    failure(
        step,
        format!(
            "the build took longer than {} and was ended here; divide it, or build a template from a template",
            humantime::format_duration(BUILD_WITHIN)
        ),
    )
}

/// What the owner of a recipe is told.
pub(super) fn failure(step: BuildStep, message: impl Into<String>) -> BuildError {
    BuildError::Recipe(BuildFailure {
        message: message.into(),
        step: Some(step),
    })
}

/// What only the node's owner can do something about.
pub(crate) fn fault<E: std::error::Error + Send + Sync + 'static>(
    step: &'static str,
) -> impl FnOnce(E) -> BuildError {
    move |source| BuildError::Node {
        step,
        source: Box::new(source),
    }
}

/// What a refusal of the runtime's means: for the recipe's owner, where no runtime of this kind could do it, or this one
/// could if it had room.
pub(super) fn refused(step: BuildStep, at: &'static str) -> impl FnOnce(RuntimeError) -> BuildError {
    move |error| match error {
        error @ RuntimeError::Unsupported { .. } => failure(step, error.to_string()),
        error @ RuntimeError::Exhausted(_) => {
            tracing::error!(error = &error as &dyn std::error::Error, "{at} failed");
            BuildError::Away(BuildFailure {
                message: format!("{at} failed: {error}"),
                step: Some(step),
            })
        }
        error => fault(at)(error),
    }
}
