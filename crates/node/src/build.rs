//! Builds of templates: each in a sandbox of its own, which nobody else knows of and which a restart ends.
//!
//! ```text
//! executor ──▶ images      what it starts from, unpacked and imported once per digest
//!    │   ├───▶ lab         the build's sandbox: an ordinary machine, gone whatever becomes of the build
//!    │   ├───▶ step        one step, carried out by the lab's envd ──▶ program, host_call; upload where a COPY is refused
//!    │   └───▶ finalize    start command, ready command, the result
//!    ├─▶ talk              the build's log, bounded
//!    ├─▶ leash             what ends it from outside: whoever ordered it, its time
//!    └─▶ in_use            what must not be removed meanwhile
//! ```
//!
//! **Invariants.** What a build says of itself is a guest's word: bounded, and never believed about other builds. Of a build
//! that fails nothing is left but results of steps that the shelf was told of.
mod connection;
mod executor;
mod finalize;
mod host_call;
mod images;
mod in_use;
mod lab;
mod leash;
mod program;
mod pulled;
mod step;
mod talk;
mod upload;
mod warm;

use std::sync::Arc;
use std::time::Instant;

use ports::builds::{BuildError, BuildOrder, BuildTalk, Built};
use tracing::Instrument as _;

use crate::node::LocalNode;

pub use images::{HeldLayers, Image, ImageError, ImageSource, Resolved, Says};
pub(crate) use in_use::InUse;
pub(crate) use leash::fault;
pub use warm::warm;

impl LocalNode {
    /// Builds a template to its end. Whoever gives up waiting for it ends it.
    pub(crate) async fn order_build(
        self: &Arc<Self>,
        order: BuildOrder,
        talk: BuildTalk,
    ) -> Result<Built, BuildError> {
        let (node, stop) = (Arc::clone(self), talk.cancel.child_token());
        let _given_up = stop.clone().drop_guard();
        let begun = Instant::now();
        let work = async move { executor::carry_out(&node, &order, talk, stop).await };
        let done = tokio::spawn(work.in_current_span()).await;
        let built = done.unwrap_or_else(|panic| Err(fault("carrying out a build")(panic)));
        let outcome = match &built {
            Ok(_) => "ready",
            Err(BuildError::Recipe(_)) => "failed",
            Err(BuildError::Cancelled) => "cancelled",
            Err(BuildError::Away(_)) => "away",
            Err(BuildError::Node { .. }) => "fault",
        };
        metrics::histogram!("atoll_node_build_seconds", "outcome" => outcome).record(begun.elapsed());
        built
    }
}
