//! Creating, using and ending sandboxes, over plain HTTP.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;

use crate::figures::{Figures, Goal};
use crate::house::{House, command};
use crate::scale::Scale;

/// Between two creates one after another: a pool has time to prepare a slot.
const PAUSE: Duration = Duration::from_millis(30);
const AT_ONCE: usize = 50;
/// Between two bursts.
const BREATH: Duration = Duration::from_secs(2);
const WORKERS: usize = 4;

pub(crate) async fn measure(scale: Scale, house: &House, cold: &House, figures: &mut Figures) -> Result<()> {
    let (created, killed) = one_after_another(scale, house).await?;
    figures.times(
        "create → 201, prepared slots, one after another",
        Goal::p50_ms(3.0).and_p99_ms(15.0),
        created,
    );
    figures.times("kill → 204", Goal::NONE, killed);
    let (created, _) = one_after_another(scale, cold).await?;
    figures.times(
        "create → 201, empty pool, one after another",
        Goal::p50_ms(8.0),
        created,
    );

    let mut first_commands = Vec::new();
    for _ in 0..scale.runs {
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        let sandbox = house.create().await?;
        command(&house.inside(&sandbox)?, &["/bin/true"]).await?;
        first_commands.push(begun.elapsed());
        house.kill(&sandbox).await?;
    }
    figures.times(
        "create → first command finished, one after another",
        Goal::p50_ms(6.0),
        first_commands,
    );

    let (mut created, mut first_commands) = (Vec::new(), Vec::new());
    for _ in 0..scale.bursts {
        let burst = burst(house).await?;
        created.extend(burst.iter().map(|(created, _)| *created));
        first_commands.extend(burst.iter().map(|(_, done)| *done));
    }
    figures.times("create → 201, 50 at once", Goal::p99_ms(150.0), created);
    figures.times(
        "create → first command finished, 50 at once",
        Goal::NONE,
        first_commands,
    );

    figures.one(
        "create + kill, 4 at a time, sustained",
        Goal::NONE,
        sustained(scale, house, false).await?,
        "/s",
    );
    figures.one(
        "create + command + kill, 4 at a time, sustained",
        Goal::at_least(200.0),
        sustained(scale, house, true).await?,
        "/s",
    );

    let sandbox = house.create().await?;
    let inside = house.inside(&sandbox)?;
    let mut trips = Vec::new();
    for _ in 0..scale.runs * 2 {
        let begun = Instant::now();
        command(&inside, &["/bin/true"]).await?;
        trips.push(begun.elapsed());
    }
    figures.times(
        "command `true` on a live sandbox, through the edge",
        Goal::p50_ms(2.5),
        trips,
    );
    house.kill(&sandbox).await
}

/// How long creates and kills take.
async fn one_after_another(scale: Scale, house: &House) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut created, mut killed) = (Vec::new(), Vec::new());
    for _ in 0..scale.runs {
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        let sandbox = house.create().await?;
        created.push(begun.elapsed());
        let begun = Instant::now();
        house.kill(&sandbox).await?;
        killed.push(begun.elapsed());
    }
    Ok((created, killed))
}

/// When each of many that begin together was answered, and when its first command was done.
async fn burst(house: &House) -> Result<Vec<(Duration, Duration)>> {
    tokio::time::sleep(BREATH).await;
    let begun = Instant::now();
    let all = (0..AT_ONCE).map(|_| async {
        let sandbox = house.create().await?;
        let created = begun.elapsed();
        command(&house.inside(&sandbox)?, &["/bin/true"]).await?;
        anyhow::Ok((created, begun.elapsed(), sandbox))
    });
    let all = try_join_all(all).await.context("one of 50 at once failed")?;
    try_join_all(all.iter().map(|(.., sandbox)| house.kill(sandbox))).await?;
    Ok(all
        .into_iter()
        .map(|(created, done, _)| (created, done))
        .collect())
}

async fn sustained(scale: Scale, house: &House, with_command: bool) -> Result<f64> {
    tokio::time::sleep(BREATH).await;
    let done = Arc::new(AtomicUsize::new(0));
    let until = Instant::now() + scale.sustained;
    let workers = (0..WORKERS).map(|_| {
        let (house, done) = (house.clone(), Arc::clone(&done));
        async move {
            while Instant::now() < until {
                let sandbox = house.create().await?;
                if with_command {
                    command(&house.inside(&sandbox)?, &["/bin/true"]).await?;
                }
                house.kill(&sandbox).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        }
    });
    let begun = Instant::now();
    try_join_all(workers).await?;
    let done = u32::try_from(done.load(Ordering::Relaxed))?;
    Ok(f64::from(done) / begun.elapsed().as_secs_f64())
}
