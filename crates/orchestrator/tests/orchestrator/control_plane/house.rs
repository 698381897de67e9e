//! Several processes over one set of stores and one set of machines, and what goes wrong with them.
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use model::Team;
use orchestrator::{Config, Orchestrator, Parts};
use ports::store::contract;
use ports::volumes::OneNode;
use ports::{
    Catalog, Clock, Fleet, Node, SandboxStore, TeamStore, TemplateStore, blobs, bus, catalog, limits, store,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::clients::Facts;
use super::line::Line;
use super::machine::Machine;
use super::wire::{Far, Wire};
use crate::world::FakeFiles;

pub(crate) const PROCESSES: usize = 2;
pub(crate) const MACHINES: usize = 3;

/// What is gone is missed after so long.
const NOTICED_AFTER: Duration = Duration::from_secs(10);

/// The time of day goes as the stopped clock does.
pub(crate) struct Virtual(Instant);

impl Clock for Virtual {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + self.0.elapsed()
    }
}

/// The nodes that a process knows.
struct Moving(watch::Sender<Vec<Arc<dyn Node>>>);

impl Moving {
    fn is(&self, lines: &[Arc<dyn Node>], there: &[bool]) {
        let nodes = lines.iter().zip(there).filter(|(_, there)| **there);
        self.0
            .send_replace(nodes.map(|(line, _)| Arc::clone(line)).collect());
    }
}

impl Fleet for Moving {
    fn nodes(&self) -> watch::Receiver<Vec<Arc<dyn Node>>> {
        self.0.subscribe()
    }
}

pub(crate) struct House {
    pub(crate) store: Arc<store::Memory>,
    pub(crate) catalog: Arc<catalog::Memory>,
    pub(crate) machines: Vec<Arc<Machine>>,
    pub(crate) team: Team,
    pub(crate) calm: Arc<AtomicBool>,
    clock: Arc<dyn Clock>,
    files: Arc<FakeFiles>,
    blobs: Arc<blobs::Memory>,
    bus: Arc<bus::Memory>,
    limits: Arc<limits::Memory>,
    pub(crate) shares: Arc<ports::shares::Memory>,
    idempotency: Arc<ports::idempotency::Memory>,
    processes: Mutex<Vec<Process>>,
    began: Instant,
    story: Mutex<Vec<String>>,
    /// Machines that are in the fleet.
    there: Mutex<[bool; MACHINES]>,
}

#[derive(Clone)]
struct Process {
    orchestrator: Arc<Orchestrator>,
    wire: Arc<Wire>,
    lines: Vec<Arc<dyn Node>>,
    fleet: Arc<Moving>,
    /// By machine.
    cuts: Vec<Arc<AtomicBool>>,
    life: u64,
}

impl House {
    pub(crate) async fn new(seed: u64) -> Arc<Self> {
        let clock: Arc<dyn Clock> = Arc::new(Virtual(Instant::now()));
        let store = Arc::new(store::Memory::default());
        let mut team = contract::team("acme");
        team.quota.creates_per_second = 100_000;
        let base = contract::template(team.id, "base");
        store.insert_team(&team).await.unwrap();
        TemplateStore::insert(&*store, &base).await.unwrap();
        let build = base.tags["default"];
        let machines = (0..MACHINES as u64)
            .map(|number| {
                let id = format!("00000001-0000-4000-8000-{number:012x}").parse().unwrap();
                Machine::new(id, seed ^ (number << 40), build, Arc::clone(&clock))
            })
            .collect();
        let house = Arc::new(Self {
            store,
            catalog: Arc::default(),
            machines,
            team,
            calm: Arc::default(),
            clock,
            files: Arc::default(),
            blobs: Arc::default(),
            bus: Arc::default(),
            limits: Arc::default(),
            shares: Arc::default(),
            idempotency: Arc::default(),
            processes: Mutex::default(),
            began: Instant::now(),
            story: Mutex::default(),
            there: Mutex::new([true; MACHINES]),
        });
        for number in 0..PROCESSES {
            let process = house.process(seed ^ number as u64, 0);
            house.processes.lock().unwrap().push(process);
        }
        house
    }

    fn process(&self, seed: u64, life: u64) -> Process {
        let wire = Wire::new(seed.wrapping_add(life << 20), &self.calm);
        let cuts: Vec<Arc<AtomicBool>> = (0..MACHINES).map(|_| Arc::default()).collect();
        let lines = self.machines.iter().zip(&cuts).map(|(machine, cut)| {
            let line = Line {
                machine: Arc::clone(machine),
                wire: Arc::clone(&wire),
                cut: Arc::clone(cut),
            };
            Arc::new(line) as Arc<dyn Node>
        });
        let lines: Vec<_> = lines.collect();
        let fleet = Arc::new(Moving(watch::channel(Vec::new()).0));
        fleet.is(&lines, &*self.there.lock().unwrap());
        let orchestrator = Orchestrator::new(Parts {
            sandboxes: Arc::new(Far {
                there: Arc::clone(&self.store) as Arc<dyn SandboxStore>,
                wire: Arc::clone(&wire),
            }),
            templates: self.store.clone(),
            builds: self.store.clone(),
            volumes: self.store.clone(),
            volume_nodes: Arc::new(OneNode::new(self.machines[0].id, self.files.clone())),
            blobs: self.blobs.clone(),
            teams: self.store.clone(),
            catalog: Arc::new(Far {
                there: Arc::clone(&self.catalog) as Arc<dyn Catalog>,
                wire: Arc::clone(&wire),
            }),
            limits: self.limits.clone(),
            shares: self.shares.clone(),
            idempotency: self.idempotency.clone(),
            bus: self.bus.clone(),
            fleet: fleet.clone(),
            scheduler: None,
            clock: Arc::clone(&self.clock),
            config: Config {
                shared: true,
                ..Config::default()
            },
        });
        let running = Arc::clone(&orchestrator);
        tokio::spawn(async move {
            // As a daemon does, which tries again.
            while running.settle_now().await.is_err() {
                sleep(Duration::from_secs(1)).await;
            }
            running.run(CancellationToken::new()).await;
        });
        Process {
            orchestrator,
            wire,
            lines,
            fleet,
            cuts,
            life,
        }
    }

    /// A process to ask.
    pub(crate) fn ask(&self, number: usize) -> Arc<Orchestrator> {
        Arc::clone(&self.processes.lock().unwrap()[number].orchestrator)
    }

    pub(crate) fn tell(&self, what: impl FnOnce() -> String) {
        let at = self.began.elapsed();
        self.story.lock().unwrap().push(format!("{at:>12.3?} {}", what()));
    }

    /// What happened to something.
    pub(crate) fn story_of(&self, about: &str) -> String {
        let story = self.story.lock().unwrap();
        let lines = story
            .iter()
            .filter(|line| line.contains(about) || line.contains("chaos"));
        lines.cloned().collect::<Vec<_>>().join("\n")
    }

    /// A machine is away for so long that it is gone from the fleet, and comes back after all.
    async fn outage(&self, facts: &Facts, machine: usize, lasts: Duration) {
        self.tell(|| format!("chaos: machine {machine} is gone for {lasts:?}"));
        let there = Arc::clone(&self.machines[machine]);
        there.die();
        facts.may_be_lost(there.look(|held| held.keys().copied().collect::<Vec<_>>()));
        sleep(NOTICED_AFTER).await;
        self.enlist(machine, false);
        sleep(lasts).await;
        // Who was told in the last moment that something runs there was told so before it was gone.
        facts.may_be_lost(there.look(|held| held.keys().copied().collect::<Vec<_>>()));
        there.come_back();
        sleep(NOTICED_AFTER / 5).await;
        self.enlist(machine, true);
        self.tell(|| format!("chaos: machine {machine} is in the fleet again"));
    }

    fn enlist(&self, machine: usize, is_there: bool) {
        let mut there = self.there.lock().unwrap();
        there[machine] = is_there;
        for process in self.processes.lock().unwrap().iter() {
            process.fleet.is(&process.lines, &*there);
        }
    }

    /// Processes die and are started again, machines' daemons too, and lines are cut, until it is calm.
    pub(crate) async fn chaos(self: Arc<Self>, facts: Arc<Facts>, seed: u64) {
        let mut dice = SmallRng::seed_from_u64(seed ^ 0xC4A05);
        loop {
            sleep(Duration::from_millis(dice.random_range(1_000..20_000))).await;
            if self.calm.load(Ordering::SeqCst) {
                return;
            }
            let (process, machine) = (dice.random_range(0..PROCESSES), dice.random_range(0..MACHINES));
            let lasts = Duration::from_millis(dice.random_range(200..15_000));
            match dice.random_range(0..10) {
                0..3 => {
                    self.tell(|| format!("chaos: process {process} dies"));
                    let old = self.processes.lock().unwrap()[process].clone();
                    old.wire.die();
                    sleep(lasts.min(Duration::from_secs(3))).await;
                    let new = self.process(seed ^ process as u64, old.life + 1);
                    self.processes.lock().unwrap()[process] = new;
                    self.tell(|| format!("chaos: process {process} is there again"));
                }
                3..6 => {
                    self.tell(|| format!("chaos: machine {machine} dies"));
                    self.machines[machine].die();
                    sleep(lasts).await;
                    self.machines[machine].come_back();
                    self.tell(|| format!("chaos: machine {machine} is there again"));
                }
                6 => self.outage(&facts, machine, lasts * 10).await,
                _ => {
                    self.tell(|| format!("chaos: process {process} does not reach machine {machine}"));
                    let cut = Arc::clone(&self.processes.lock().unwrap()[process].cuts[machine]);
                    cut.store(true, Ordering::SeqCst);
                    sleep(lasts).await;
                    cut.store(false, Ordering::SeqCst);
                    self.tell(|| format!("chaos: process {process} reaches machine {machine}"));
                }
            }
        }
    }
}
