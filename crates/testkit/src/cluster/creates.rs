//! What it adds to a create that the API, the stores and the node are processes of their own.
use std::time::{Duration, Instant};

use anyhow::Result;

use super::fleet::Fleet;
use crate::figures::{Figures, Goal, at};
use crate::house::House;
use crate::scale::Scale;

/// Between two creates: a pool has time to prepare a slot.
const PAUSE: Duration = Duration::from_millis(30);

pub(super) async fn measure(scale: Scale, house: &House, fleet: &Fleet, figures: &mut Figures) -> Result<()> {
    let (mut embedded, mut through) = (Vec::new(), Vec::new());
    // Each node has had one before: what a first one makes, others find.
    for _ in 0..6 {
        once(house).await?;
        once(&fleet.house).await?;
    }
    // By turns, so that whatever else the machine does is the same for both.
    for _ in 0..scale.runs {
        embedded.push(once(house).await?);
        through.push(once(&fleet.house).await?);
    }
    let added = median(&through).as_secs_f64() - median(&embedded).as_secs_f64();
    figures.times(
        "`atoll up`: create → 201, by turns with the next",
        Goal::NONE,
        embedded,
    );
    figures.times("the fleet: create → 201, one after another", Goal::NONE, through);
    figures.one(
        "the fleet adds to the p50 of a create",
        Goal::at_most(2.0),
        added * 1e3,
        "ms",
    );
    Ok(())
}

async fn once(house: &House) -> Result<Duration> {
    tokio::time::sleep(PAUSE).await;
    let begun = Instant::now();
    let sandbox = house.create().await?;
    let took = begun.elapsed();
    house.kill(&sandbox).await?;
    Ok(took)
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    at(&sorted, 0.5)
}
