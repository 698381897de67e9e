//! Memory of a machine that has come up, for a build that has none.
use std::sync::Arc;

use model::{BuildId, BuildStep, Memory, Resources};
use ports::Runtime;
use ports::builds::BuildError;

use super::lab::Lab;
use super::leash::refused;
use crate::envd;

/// Boots a machine of the build `from`, and makes it the build `into`: its sandboxes go on from there, where a machine of
/// their size can, instead of booting.
///
/// # Errors
/// The machine did not come up, or its memory cannot be copied. Then there is no such build.
pub async fn warm(
    runtime: &Arc<dyn Runtime>,
    from: BuildId,
    into: BuildId,
    resources: Resources,
) -> Result<Memory, BuildError> {
    let step = BuildStep::Finalize;
    let lab = Lab::open(runtime, (None, resources), from, step).await?;
    envd::quiesce(lab.machine()).await;
    let copied = lab.machine().checkpoint(into, true).await;
    lab.close().await;
    copied.map_err(refused(step, "copying a machine that has come up"))
}
