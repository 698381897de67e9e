//! Clients that do at random what clients may do, and note what they were told.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model::{Lifecycle, NetworkPolicy, OnTimeout, PauseMode, SandboxId};
use ports::{CreateSandbox, ManagerError, SandboxManager};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::time::{sleep, timeout};

use super::house::{House, PROCESSES};

/// A client hangs up after so long, and knows nothing.
const PATIENCE: Duration = Duration::from_secs(100);
/// Longer than a run.
const LONG: Duration = Duration::from_secs(3600);

/// What a client may rely on, as nothing was asked of the sandbox since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Running,
    Paused,
    Nothing,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Fact {
    pub(crate) known: Known,
    /// Operations that have begun, and how many of them have not come to their end.
    begun: u64,
    open: u64,
}

#[derive(Default)]
pub(crate) struct Facts {
    pub(crate) of: Mutex<BTreeMap<SandboxId, Fact>>,
    /// Kills that were acknowledged.
    pub(crate) killed: Mutex<BTreeSet<SandboxId>>,
    /// How operations ended.
    pub(crate) counts: Mutex<BTreeMap<String, u64>>,
}

impl Facts {
    fn begin(&self, id: SandboxId) -> u64 {
        let mut facts = self.of.lock().unwrap();
        let fact = facts.get_mut(&id).expect("it is known");
        fact.known = Known::Nothing;
        fact.begun += 1;
        fact.open += 1;
        fact.begun
    }

    /// `known` holds where nobody else was at it meanwhile. A client that hung up never ends: what it asked for may still come.
    fn end(&self, id: SandboxId, number: u64, known: Known) {
        let mut facts = self.of.lock().unwrap();
        let fact = facts.get_mut(&id).expect("it is known");
        fact.open -= 1;
        if fact.begun == number && fact.open == 0 {
            fact.known = known;
        }
    }

    fn born(&self, id: SandboxId, known: Known) {
        let fact = Fact {
            known,
            begun: 0,
            open: 0,
        };
        self.of.lock().unwrap().insert(id, fact);
    }

    /// What runs may be given up, as its node is gone for long. What is paused is not.
    pub(crate) fn may_be_lost(&self, ids: impl IntoIterator<Item = SandboxId>) {
        let mut facts = self.of.lock().unwrap();
        for id in ids {
            if let Some(fact) = facts.get_mut(&id).filter(|fact| fact.known == Known::Running) {
                fact.known = Known::Nothing;
            }
        }
    }

    fn some(&self, dice: &mut SmallRng) -> Option<SandboxId> {
        let killed = self.killed.lock().unwrap();
        let facts = self.of.lock().unwrap();
        // Killed ones are asked for too, now and then.
        let ids: Vec<_> = facts
            .keys()
            .filter(|id| !killed.contains(id) || dice.random_ratio(1, 10))
            .collect();
        // Ids are no order of age; most often it is one of a few, so that several clients are at the same one.
        let few = &ids[..ids.len().min(4)];
        if dice.random_ratio(2, 3) {
            few.choose(dice).map(|id| **id)
        } else {
            ids.choose(dice).map(|id| **id)
        }
    }

    fn count(&self, what: &str, outcome: &str) {
        *self
            .counts
            .lock()
            .unwrap()
            .entry(format!("{what}: {outcome}"))
            .or_default() += 1;
    }
}

/// What a client is told, for those who count.
fn told<T>(outcome: &Result<Result<T, ManagerError>, tokio::time::error::Elapsed>) -> String {
    match outcome {
        Ok(Ok(_)) => "done".to_owned(),
        Ok(Err(error)) => format!("{:?}", error.kind()),
        Err(_) => "no answer".to_owned(),
    }
}

fn request(dice: &mut SmallRng) -> (CreateSandbox, bool) {
    let is_long = dice.random_ratio(6, 10);
    let seconds = if is_long {
        LONG.as_secs()
    } else {
        dice.random_range(3..40)
    };
    let on_timeout = match dice.random_range(0..2) {
        0 => OnTimeout::Kill,
        _ => OnTimeout::Pause(PauseMode::Full),
    };
    let request = CreateSandbox {
        template: "base".parse().unwrap(),
        timeout: Duration::from_secs(seconds),
        lifecycle: Lifecycle {
            on_timeout,
            auto_resume: false,
        },
        secure: true,
        network: NetworkPolicy::default(),
        metadata: BTreeMap::new(),
        env: BTreeMap::new(),
        volumes: Vec::new(),
        idempotency: None,
        own_allocation: false,
        starts_per_second: 100_000,
    };
    (request, is_long)
}

/// One client, for so many operations.
pub(crate) async fn client(house: Arc<House>, facts: Arc<Facts>, seed: u64, operations: usize) {
    let mut dice = SmallRng::seed_from_u64(seed);
    for _ in 0..operations {
        sleep(Duration::from_millis(dice.random_range(0..2500))).await;
        let number = dice.random_range(0..PROCESSES);
        let (process, team) = (house.ask(number), house.team.id);
        let chosen = facts.some(&mut dice);
        let what = dice.random_range(0..100);
        let (Some(id), 25..) = (chosen, what) else {
            let (request, is_long) = request(&mut dice);
            let outcome = timeout(PATIENCE, process.create(team, request)).await;
            facts.count("create", &told(&outcome));
            if let Ok(Ok(granted)) = &outcome {
                let id = granted.sandbox.id;
                facts.born(id, if is_long { Known::Running } else { Known::Nothing });
                house.tell(|| format!("{id} created by {number}, long: {is_long}"));
            }
            continue;
        };
        let begun = facts.begin(id);
        let (name, outcome, known) = match what {
            25..50 => {
                house.tell(|| format!("{id} pause by {number}"));
                let outcome = timeout(PATIENCE, process.pause(team, id, PauseMode::Full, false)).await;
                ("pause", outcome, Known::Paused)
            }
            50..75 => {
                house.tell(|| format!("{id} resume by {number}"));
                let resume = process.resume(team, id, LONG, PauseMode::Full, None);
                (
                    "resume",
                    timeout(PATIENCE, resume).await.map(|done| done.map(drop)),
                    Known::Running,
                )
            }
            75..82 => {
                house.tell(|| format!("{id} timeout by {number}"));
                (
                    "timeout",
                    timeout(PATIENCE, process.set_timeout(team, id, LONG)).await,
                    Known::Running,
                )
            }
            82..88 => {
                house.tell(|| format!("{id} fork by {number}"));
                let outcome = timeout(PATIENCE, process.fork(team, id, 2, LONG)).await;
                if let Ok(Ok(copies)) = &outcome {
                    for copy in copies.iter().flatten() {
                        let copy = copy.sandbox.id;
                        facts.born(copy, Known::Running);
                        house.tell(|| format!("{copy} forked of {id} by {number}"));
                    }
                }
                // The source may end at its own time.
                ("fork", outcome.map(|done| done.map(drop)), Known::Nothing)
            }
            88..91 => {
                house.tell(|| format!("{id} restart by {number}"));
                let outcome = timeout(PATIENCE, process.restart(team, id)).await;
                ("restart", outcome.map(|done| done.map(drop)), Known::Nothing)
            }
            _ => {
                house.tell(|| format!("{id} kill by {number}"));
                let outcome = timeout(PATIENCE, process.kill(team, id)).await;
                if matches!(outcome, Ok(Ok(()))) {
                    facts.killed.lock().unwrap().insert(id);
                }
                ("kill", outcome, Known::Nothing)
            }
        };
        facts.count(name, &told(&outcome));
        house.tell(|| format!("{id} {name} by {number}: {}", told(&outcome)));
        match outcome {
            Ok(Ok(())) => facts.end(id, begun, known),
            Ok(Err(_)) => facts.end(id, begun, Known::Nothing),
            Err(_) => {}
        }
    }
}
