//! Sandboxes of a template with much in it, and builds of which one step is new.
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use wire::rest::{StartBuild, TemplateStep};

use crate::builds::{self, run};
use crate::figures::{Figures, Goal, at};
use crate::house::House;
use crate::scale::Scale;

/// Between two creates: a pool has time to prepare a slot.
const PAUSE: Duration = Duration::from_millis(60);
/// Creates before the first that counts: slots of the template are prepared from then on.
const WARM: usize = 3;
/// The pool has all slots when there are no more after so long.
const FILLED: Duration = Duration::from_secs(2);
/// Two rows of one thing differ by so much.
const NOISE: f64 = 1.05;
const LARGE: &str = "bench-large";
const AGAIN: &str = "bench-again";
/// How long the step takes that is new in every build.
const STEP: Duration = Duration::from_secs(1);

pub(crate) async fn measure(scale: Scale, house: &House, figures: &mut Figures) -> Result<()> {
    let much = much(scale);
    builds::build(house, LARGE, &recipe(vec![much.clone()])).await?;
    creates(scale, house, figures).await?;
    let mut beyond = Vec::new();
    // Also in a house in which this was measured before.
    let unique = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    for round in 0..scale.rounds {
        let last = run(format!("sleep {}; echo {unique} {round} > last", STEP.as_secs()));
        let build = builds::build(house, AGAIN, &recipe(vec![much.clone(), last])).await?;
        let cached = build
            .lines
            .iter()
            .filter(|line| line.starts_with("CACHED "))
            .count();
        ensure!(
            cached == 2,
            "its base and first step were to be there already:\n{}",
            build.lines.join("\n")
        );
        beyond.push(build.took.saturating_sub(STEP));
    }
    figures.times(
        format!(
            "build of which the last step is new, over one of {} MiB: beyond that step",
            scale.template_mib
        ),
        Goal::p50_ms(2000.0),
        beyond,
    );
    builds::remove(house, AGAIN).await?;
    builds::remove(house, LARGE).await
}

/// A step that writes many files.
fn much(scale: Scale) -> TemplateStep {
    run(format!(
        "mkdir much && for i in $(seq {}); do head -c 1048576 /dev/urandom > much/$i; done",
        scale.template_mib
    ))
}

fn recipe(steps: Vec<TemplateStep>) -> StartBuild {
    StartBuild {
        from_template: Some("base".to_owned()),
        steps: Some(steps),
        ..StartBuild::default()
    }
}

/// Lets the pool prepare all that it will.
async fn fill(house: &House) -> Result<()> {
    let mut before = u32::MAX;
    loop {
        let ready = house.api.nodes().await?.iter().map(|node| node.slots_ready).sum();
        if ready == before {
            return Ok(());
        }
        before = ready;
        tokio::time::sleep(FILLED).await;
    }
}

/// Creates of both kinds, by turns.
async fn creates(scale: Scale, house: &House, figures: &mut Figures) -> Result<()> {
    let (mut base, mut large) = (Vec::new(), Vec::new());
    for run in 0..scale.runs + WARM {
        if run == WARM {
            fill(house).await?;
        }
        for (template, times) in [("base", &mut base), (LARGE, &mut large)] {
            tokio::time::sleep(PAUSE).await;
            let begun = Instant::now();
            let sandbox = house.create_from(template).await?;
            let took = begun.elapsed();
            house.kill(&sandbox).await?;
            if run >= WARM {
                times.push(took);
            }
        }
    }
    base.sort_unstable();
    let goal = Goal::p50_ms((at(&base, 0.5).as_secs_f64() * 1e5 * NOISE).round() / 100.0);
    figures.times(
        "create → 201 from `base`, by turns with the next",
        Goal::NONE,
        base,
    );
    figures.times(
        format!(
            "create → 201 from a template with {} MiB of its own",
            scale.template_mib
        ),
        goal,
        large,
    );
    Ok(())
}
