//! A great many creates at once: each is answered by a sandbox that can be used, or by the limit that stands in its way.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use model::Kind;
use sdk::{CallError, ListQuery};
use wire::rest::Sandbox;

use super::fleet::Fleet;
use crate::figures::{Figures, Goal};
use crate::house::House;
use crate::scale::Scale;

/// What the API calls a fleet without room (docs/limits.md).
const NO_CAPACITY: &str = "sandbox_capacity_unavailable";
/// Sandboxes that are looked at, or ended, at a time.
const AT_A_TIME: usize = 16;
/// Between two looks whether anything is left.
const PAUSE: Duration = Duration::from_millis(500);
/// Looks at what is left: what a lost answer was about is ended, and gone within so many.
const LOOKS_MAX: usize = 60;

/// What became of one create.
enum Outcome {
    Made(Sandbox, Duration),
    /// A limit that is written down: 429, or 503 for want of room.
    Limited(String, Duration),
    Other(String),
}

pub(super) async fn measure(scale: Scale, fleet: &Fleet, figures: &mut Figures) -> Result<()> {
    let (house, count) = (&fleet.house, scale.at_once);
    raise_descriptor_limit();
    let began = Instant::now();
    // Every one of them is under way before the first is answered: a client with so many connections.
    let outcomes = join_all((0..count).map(|_| async {
        match house.try_create("base").await {
            Ok(sandbox) => Outcome::Made(sandbox, began.elapsed()),
            Err(error) if is_limit(&error) => Outcome::Limited(error.to_string(), began.elapsed()),
            Err(error) => Outcome::Other(format!("{:#}", anyhow::Error::new(error))),
        }
    }))
    .await;
    let whole = began.elapsed();
    let (mut made, mut answered, mut words) = (Vec::new(), Vec::new(), BTreeMap::<String, usize>::new());
    let (mut limited, mut other) = (0, 0);
    for outcome in outcomes {
        match outcome {
            Outcome::Made(sandbox, took) => {
                made.push(sandbox);
                answered.push(took);
            }
            Outcome::Limited(why, took) => {
                answered.push(took);
                limited += 1;
                *words.entry(without_numbers(&why)).or_default() += 1;
            }
            Outcome::Other(why) => {
                other += 1;
                *words.entry(why).or_default() += 1;
            }
        }
    }
    for (why, times) in &words {
        eprintln!("bench: {times} × {why}");
    }
    let dumb = stream::iter(&made)
        .map(|sandbox| async {
            house
                .inside(sandbox)?
                .is_running()
                .await
                .map_err(anyhow::Error::new)
        })
        .buffer_unordered(AT_A_TIME)
        .filter(|answers| std::future::ready(!matches!(answers, Ok(true))))
        .count()
        .await;
    end_all(
        house,
        made.iter().map(|sandbox| sandbox.sandbox_id.clone()).collect(),
    )
    .await?;
    nothing_is_left(house).await?;
    let name = format!("the fleet: {count} creates at once");
    #[expect(clippy::cast_precision_loss, reason = "there are a thousand")]
    let mut tell = |what: &str, goal, number: usize| {
        figures.one(format!("{name}: {what}"), goal, number as f64, "answers");
    };
    tell("201, and it can be used", Goal::NONE, made.len() - dumb);
    tell("a stated limit, 429 or 503 with its reason", Goal::NONE, limited);
    tell("anything else", Goal::at_most(0.0), other + dumb);
    figures.times(format!("{name}: answered after"), Goal::NONE, answered);
    figures.one(
        format!("{name}: all were answered after"),
        Goal::NONE,
        whole.as_secs_f64(),
        "s",
    );
    Ok(())
}

/// Each create that is under way has a connection.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// Whether an answer names a limit that docs/limits.md or docs/placement.md states.
fn is_limit(error: &CallError) -> bool {
    match error {
        CallError::Refused {
            kind: Kind::Exhausted,
            message,
            ..
        } => message.contains("limit") || message.contains("rate"),
        CallError::Refused {
            kind: Kind::Unavailable,
            error_code,
            ..
        } => error_code.as_deref() == Some(NO_CAPACITY),
        _ => false,
    }
}

/// The same words for whatever numbers they are about.
fn without_numbers(words: &str) -> String {
    let mut told = String::new();
    for char in words.chars() {
        match char {
            '0'..='9' if told.ends_with('…') => {}
            '0'..='9' => told.push('…'),
            other => told.push(other),
        }
    }
    told
}

async fn end_all(house: &House, ids: Vec<String>) -> Result<()> {
    let ended: Vec<_> = stream::iter(ids)
        .map(|id| async move {
            let ended = house.api.kill(&id).await;
            // Its end came before ours.
            ended.or_else(|error| match error.kind() {
                Kind::NotFound => Ok(()),
                _ => Err(anyhow::Error::new(error).context(format!("{id} is not ended"))),
            })
        })
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await;
    ended.into_iter().collect()
}

/// Ends what was made and not told of, and sees that the fleet is empty.
async fn nothing_is_left(house: &House) -> Result<()> {
    for _ in 0..LOOKS_MAX {
        let listed = house.api.sandboxes(&ListQuery::default()).await?.items;
        if listed.is_empty() {
            return Ok(());
        }
        end_all(
            house,
            listed.into_iter().map(|sandbox| sandbox.sandbox_id).collect(),
        )
        .await?;
        tokio::time::sleep(PAUSE).await;
    }
    let left = house
        .api
        .sandboxes(&ListQuery::default())
        .await
        .context("the fleet answers")?;
    ensure!(
        left.items.is_empty(),
        "{} sandboxes and more are left",
        left.items.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: Kind, message: &str, code: Option<&str>, limit: bool) {
        let error = CallError::Refused {
            kind,
            message: message.to_owned(),
            error_code: code.map(str::to_owned),
        };
        assert_eq!(is_limit(&error), limit, "{message}");
    }

    #[test]
    fn a_limit_says_which_it_is() {
        check(
            Kind::Exhausted,
            "The team has reached its limit of 9 sandboxes: kill or pause one first",
            None,
            true,
        );
        check(
            Kind::Exhausted,
            "the team's rate of requests is used up",
            None,
            true,
        );
        check(
            Kind::Unavailable,
            "No node can take the sandbox: of 3 nodes: too little CPU: 3",
            Some(NO_CAPACITY),
            true,
        );
        check(Kind::Exhausted, "the server answered 429", None, false);
        check(Kind::Unavailable, "the store is away; try again", None, false);
        check(Kind::Internal, "storing the sandbox failed", None, false);
    }

    #[test]
    fn reasons_are_counted_whatever_their_numbers() {
        assert_eq!(without_numbers("of 13 nodes: 2 full"), "of … nodes: … full");
    }
}
