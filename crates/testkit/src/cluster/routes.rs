//! How long it takes until a sandbox that a client was told of is reached by every edge.
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use sdk::SandboxClient;
use wire::rest::Sandbox;

use super::fleet::Fleet;
use crate::figures::{Figures, Goal};
use crate::house::inside_by;
use crate::scale::Scale;

/// Between two creates: a pool has time to prepare a slot.
const PAUSE: Duration = Duration::from_millis(30);
/// No route takes so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// From the 201 of the first API to the first answer of envd, asked for by all edges at once, each time on a new connection and
/// again at once where an edge refuses; then the same again, by when every edge has the route.
pub(super) async fn measure(scale: Scale, fleet: &Fleet, figures: &mut Figures) -> Result<()> {
    let (mut first, mut again, mut refused) = (Vec::new(), Vec::new(), 0_u32);
    for _ in 0..scale.runs {
        tokio::time::sleep(PAUSE).await;
        let sandbox = fleet.house.create().await?;
        for times in [&mut first, &mut again] {
            let began = Instant::now();
            let reached = fleet.edges.iter().map(|edge| reached(edge, &sandbox, began));
            for (took, refusals) in try_join_all(reached).await? {
                times.push(took);
                refused += refusals;
            }
        }
        fleet.house.kill(&sandbox).await?;
    }
    let edges = fleet.edges.len();
    figures.times(
        format!("the fleet: 201 → first answer through each of {edges} edges, on a new connection"),
        Goal::p99_ms(50.0),
        first,
    );
    figures.times(
        "the same once more, when every edge has the route",
        Goal::NONE,
        again,
    );
    figures.one(
        "requests that an edge refused meanwhile",
        Goal::at_most(0.0),
        f64::from(refused),
        "requests",
    );
    Ok(())
}

/// When a sandbox answered through an edge, and how often that edge refused before.
async fn reached(edge: &str, sandbox: &Sandbox, began: Instant) -> Result<(Duration, u32)> {
    let mut refused = 0;
    loop {
        let inside: SandboxClient = inside_by(edge, sandbox)?;
        if inside.is_running().await? {
            return Ok((began.elapsed(), refused));
        }
        refused += 1;
        ensure!(
            began.elapsed() < PATIENCE,
            "{} is not reached through {edge}",
            sandbox.sandbox_id
        );
    }
}
