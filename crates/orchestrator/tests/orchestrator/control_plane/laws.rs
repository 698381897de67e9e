//! What must be true at every instant, and what must be true when all is quiet.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model::{PauseMode, Phase, SandboxId};
use ports::node::HeldState;
use ports::{Catalog, SandboxManager, SandboxStore, Shares};
use tokio::time::{Instant, sleep};

use super::clients::{Facts, Known};
use super::house::House;

/// What was found wrong, each once.
#[derive(Default)]
pub(crate) struct Wrongs(Mutex<BTreeSet<(String, String)>>);

impl Wrongs {
    fn note(&self, what: impl Into<String>, about: impl ToString) {
        self.0.lock().unwrap().insert((what.into(), about.to_string()));
    }

    pub(crate) fn all(&self) -> BTreeSet<(String, String)> {
        self.0.lock().unwrap().clone()
    }
}

/// Looks again and again.
pub(crate) async fn watch(house: Arc<House>, facts: Arc<Facts>, wrongs: Arc<Wrongs>) {
    loop {
        look(&house, &facts, &wrongs).await;
        // Once it is calm little happens, for long.
        let calm = house.calm.load(Ordering::SeqCst);
        sleep(Duration::from_millis(if calm { 1000 } else { 37 })).await;
    }
}

async fn look(house: &House, facts: &Facts, wrongs: &Wrongs) {
    let mut owned = BTreeSet::new();
    for machine in &house.machines {
        machine.look(|held| {
            for id in held.keys().filter(|id| !owned.insert(**id)) {
                wrongs.note("two nodes hold it", *id);
            }
        });
    }
    let routes = house.catalog.all().await.unwrap();
    let killed = facts.killed.lock().unwrap();
    for route in routes.iter().filter(|route| killed.contains(&route.sandbox)) {
        let machine = house
            .machines
            .iter()
            .find(|machine| machine.id == route.seat.node);
        let runs = machine.is_some_and(|machine| {
            machine.look(|held| {
                held.get(&route.sandbox).is_some_and(|held| {
                    held.order.execution == route.seat.execution && held.state == HeldState::Running
                })
            })
        });
        if runs {
            wrongs.note("reachable after its kill was acknowledged", route.sandbox);
        }
    }
}

/// In what stores, machines and routes differ, and what is under way.
async fn differences(house: &House) -> (BTreeMap<SandboxId, Phase>, Vec<(String, String)>) {
    let mut found = Vec::new();
    let mut note = |what: String, id: SandboxId| found.push((what, id.to_string()));
    let live = house.store.live().await.unwrap();
    let mut routes: BTreeMap<_, _> = house
        .catalog
        .all()
        .await
        .unwrap()
        .into_iter()
        .map(|route| (route.sandbox, route))
        .collect();
    let mut held: BTreeMap<_, _> = BTreeMap::new();
    for machine in &house.machines {
        for (id, it) in machine.held() {
            if held.insert(id, (machine.id, it)).is_some() {
                note("two nodes hold it, when all is quiet".to_owned(), id);
            }
        }
    }
    let mut phases = BTreeMap::new();
    for sandbox in live {
        let id = sandbox.id;
        phases.insert(id, sandbox.phase);
        let there = held.remove(&id);
        match (sandbox.phase, there) {
            (Phase::Running { at }, Some((node, it))) => {
                if node != at.node || it.order.execution != at.execution || it.state != HeldState::Running {
                    note(format!("stored as running, and its node says {:?}", it.state), id);
                }
                if it.order.deadline != sandbox.end_at {
                    note("its node has another deadline".to_owned(), id);
                }
                match routes.remove(&id) {
                    Some(route) if route.seat == at => {}
                    other => note(
                        format!("it runs, and its route is {:?}", other.map(|it| it.seat)),
                        id,
                    ),
                }
            }
            (Phase::Paused { snapshot, home, .. }, Some((node, it))) => {
                if node != home || !matches!(it.state, HeldState::Paused(kept, _) if kept == snapshot) {
                    note(format!("stored as paused, and its node says {:?}", it.state), id);
                }
            }
            (phase, None) => note(format!("stored as {}, and no node holds it", phase.name()), id),
            (phase, Some(_)) => note(format!("still {}", phase.name()), id),
        }
    }
    for id in held.into_keys() {
        note("held by a node, and not stored".to_owned(), id);
    }
    for id in routes.into_keys() {
        note("routed, and not running".to_owned(), id);
    }
    let running = phases.values().filter(|phase| phase.seat().is_some()).count();
    let counted = house.shares.held(house.team.id).await.sandboxes as usize;
    if counted != running {
        let what = format!("{running} run, and {counted} are counted");
        found.push((what, house.team.id.to_string()));
    }
    (phases, found)
}

/// The longest that anybody waits for somebody else who is dead, and then some passes.
const QUIET: Duration = Duration::from_secs(700);
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Waits until all is quiet, then: stores, machines and routes say the same, what clients were told is so, and everything can be
/// resumed and ended. `patient` waits for the whole time, as somebody may spoil it later.
pub(crate) async fn settle(house: &House, facts: &Facts, wrongs: &Wrongs, patient: bool) {
    let until = Instant::now() + QUIET;
    let mut agreed = 0;
    while Instant::now() < until && (patient || agreed < 2) {
        sleep(LOOK_AGAIN).await;
        let (_, found) = differences(house).await;
        agreed = if found.is_empty() { agreed + 1 } else { 0 };
    }
    let (phases, found) = differences(house).await;
    for (what, id) in found {
        wrongs.note(what, id);
    }
    let known: Vec<_> = {
        let facts = facts.of.lock().unwrap();
        facts.iter().map(|(id, fact)| (*id, fact.known)).collect()
    };
    for (id, known) in known {
        let phase = phases.get(&id);
        match (known, phase) {
            (Known::Nothing, _)
            | (Known::Running, Some(Phase::Running { .. }))
            | (Known::Paused, Some(Phase::Paused { .. })) => {}
            (known, phase) => {
                let phase = phase.map_or("gone", Phase::name);
                wrongs.note(format!("known as {known:?}, and it is {phase}"), id);
            }
        }
    }
    // What was paused can be resumed, and all of it can be ended.
    let process = house.ask(0);
    for (id, phase) in phases {
        if matches!(phase, Phase::Paused { .. }) {
            let mut resumed = Err(());
            // A machine that is asked may fail; three in a row are no chance.
            for _ in 0..3 {
                let hour = Duration::from_secs(3600);
                resumed = process
                    .resume(house.team.id, id, hour, PauseMode::Full, None)
                    .await
                    .map(drop)
                    .map_err(drop);
                if resumed.is_ok() {
                    break;
                }
            }
            if resumed.is_err() {
                wrongs.note("paused, and not to be resumed", id);
            }
        }
        if process.kill(house.team.id, id).await.is_err() {
            wrongs.note("not to be killed", id);
        }
    }
    let left: Vec<_> = house
        .machines
        .iter()
        .flat_map(|machine| machine.held().into_keys())
        .collect();
    for id in left {
        wrongs.note("left after everything was killed", id);
    }
}
