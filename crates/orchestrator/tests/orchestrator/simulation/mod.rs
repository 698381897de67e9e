//! A fleet in virtual time: sandboxes come and go, nodes too, and several placers decide by what they have heard.
//!
//! Nothing here sleeps or reads a clock, but for the stopwatch around each decision, which decides nothing: the same setup
//! comes to the same outcome.
mod percentiles;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use model::{BuildId, MiB, NodeId, Resources, TeamId};
use orchestrator::placement::{Claim, Facts, Needs, Overcommit, Place, Policy, Room, State, View, Wish};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

pub(crate) use percentiles::Percentiles;

/// What is simulated.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) zones: usize,
    /// Sandboxes in all.
    pub(crate) sandboxes: usize,
    /// Processes that place, each with a view of its own.
    pub(crate) placers: usize,
    /// What is asked for, against the memory that there is.
    pub(crate) load: f64,
    /// Half of the sandboxes live longer; see [`SIGMA`].
    pub(crate) life: Duration,
    /// Between two reports of a node.
    pub(crate) report_every: Duration,
    /// The part of the reports that a placer does not get.
    pub(crate) reports_lost: f64,
    /// How often a node is lost, in the whole fleet.
    pub(crate) loss_every: Duration,
    /// For how long it is away.
    pub(crate) away: Duration,
    pub(crate) policy: Policy,
}

impl Setup {
    pub(crate) fn small(seed: u64) -> Self {
        Self {
            seed,
            nodes: 500,
            zones: 3,
            sandboxes: 50_000,
            placers: 3,
            load: 0.75,
            life: Duration::from_secs(60),
            report_every: Duration::from_secs(5),
            reports_lost: 0.05,
            loss_every: Duration::from_secs(20),
            away: Duration::from_secs(90),
            policy: Policy::default(),
        }
    }
}

/// The spread of lives: with 1, one in fifty lives eight times as long as most, as agents' sessions do.
const SIGMA: f64 = 1.0;
/// After so long everybody knows that a node is lost, or back.
const NOTICED_AFTER: Duration = Duration::from_secs(10);
/// Builds that a node keeps.
const BUILDS_EACH: usize = 40;
/// Reports between two lists of builds.
const BUILDS_EVERY: u64 = 6;
const TEAMS: usize = 200;
const BUILDS: usize = 1000;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Outcome {
    pub(crate) placed: usize,
    /// Answers of nodes that had no room, as the view was stale.
    pub(crate) wrong_full: usize,
    /// Nodes that were asked and were gone.
    pub(crate) wrong_lost: usize,
    /// Placements that no node took, of how many there was a node that would have.
    pub(crate) refused: usize,
    pub(crate) refused_with_room: usize,
    /// Those of the biggest size among them: half of a small node.
    pub(crate) refused_biggest: usize,
    /// The most that was free of the fleet's memory when one was refused, per mille.
    pub(crate) free_at_refusal_most: u64,
    /// Sandboxes whose build was on their node.
    pub(crate) local: usize,
    /// Sandboxes that were lost with their node.
    pub(crate) lost: usize,
    /// Promised of what may be, per mille of memory, over nodes, at the middle of the run and later.
    pub(crate) packing: Percentiles,
    /// The zone of a big team with the most sandboxes, against an even share, per mille; over teams and samples.
    pub(crate) zones: Percentiles,
    /// Changes with every decision.
    pub(crate) digest: u64,
    pub(crate) virtual_time: Duration,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = self.placed + self.wrong_full + self.wrong_lost;
        let part = |count: usize| 1000.0 * count as f64 / asked.max(1) as f64;
        writeln!(
            f,
            "placed                {} in {:?} of virtual time",
            self.placed, self.virtual_time
        )?;
        writeln!(
            f,
            "wrong: node was full  {} ({:.2}‰ of all asked)",
            self.wrong_full,
            part(self.wrong_full)
        )?;
        writeln!(
            f,
            "wrong: node was lost  {} ({:.2}‰)",
            self.wrong_lost,
            part(self.wrong_lost)
        )?;
        writeln!(
            f,
            "refused               {}, of them with room {} ({} of the biggest); free then at most {}‰",
            self.refused, self.refused_with_room, self.refused_biggest, self.free_at_refusal_most
        )?;
        writeln!(
            f,
            "build was there       {:.1} %",
            100.0 * self.local as f64 / self.placed.max(1) as f64
        )?;
        writeln!(f, "lost with their node  {}", self.lost)?;
        writeln!(f, "packing (memory)      {}", self.packing)?;
        write!(f, "fullest zone of team  {}", self.zones)
    }
}

enum Event {
    Arrive,
    /// A start is over.
    Up {
        placer: usize,
        claim: Claim,
        sandbox: Sandbox,
    },
    End(Sandbox),
    /// A placer hears that one has ended.
    Freed {
        placer: usize,
        node: usize,
        resources: Resources,
    },
    /// A node takes its report.
    Report(usize),
    /// A placer gets it.
    Heard {
        placer: usize,
        node: usize,
        taken_at: Duration,
        facts: Rc<Facts>,
        builds: Option<Rc<Vec<BuildId>>>,
    },
    Lose,
    Back(usize),
    Noticed {
        node: usize,
        state: bool,
    },
    Sample,
}

#[derive(Clone, Copy)]
struct Sandbox {
    node: usize,
    /// Which life of the node.
    epoch: u32,
    resources: Resources,
    team: usize,
}

struct Node {
    id: NodeId,
    zone: usize,
    total: Room,
    limit: Room,
    promised: Room,
    teams: BTreeMap<usize, u32>,
    builds: Vec<BuildId>,
    starting: u32,
    up: bool,
    epoch: u32,
    reports: u64,
}

impl Node {
    fn has_room(&self, resources: Resources) -> bool {
        self.up
            && self.promised.cpu + u64::from(resources.cpu) <= self.limit.cpu
            && self.promised.memory + u64::from(resources.memory.0) <= self.limit.memory
            && self.promised.disk + u64::from(resources.disk.0) <= self.limit.disk
    }

    fn take(&mut self, resources: Resources, team: usize) {
        self.promised.cpu += u64::from(resources.cpu);
        self.promised.memory += u64::from(resources.memory.0);
        self.promised.disk += u64::from(resources.disk.0);
        *self.teams.entry(team).or_default() += 1;
        let (promised, limit) = (self.promised, self.limit);
        assert!(
            promised.cpu <= limit.cpu && promised.memory <= limit.memory && promised.disk <= limit.disk,
            "a node holds more than it may: {promised:?} of {limit:?}"
        );
    }

    fn give_back(&mut self, resources: Resources, team: usize) {
        self.promised.cpu -= u64::from(resources.cpu);
        self.promised.memory -= u64::from(resources.memory.0);
        self.promised.disk -= u64::from(resources.disk.0);
        let count = self.teams.get_mut(&team).expect("it is counted");
        *count -= 1;
        if *count == 0 {
            self.teams.remove(&team);
        }
    }

    /// Keeps a build, in place of an old one where there are many.
    fn fetch(&mut self, build: BuildId, dice: &mut SmallRng) -> bool {
        if self.builds.contains(&build) {
            return true;
        }
        if self.builds.len() >= BUILDS_EACH {
            let old = dice.random_range(0..self.builds.len());
            self.builds.swap_remove(old);
        }
        self.builds.push(build);
        false
    }
}

/// An id that is the same in every run.
fn id<T: std::str::FromStr>(kind: u32, number: usize) -> T
where
    T::Err: fmt::Debug,
{
    format!("{kind:08x}-0000-4000-8000-{number:012x}")
        .parse()
        .expect("an id")
}

struct Fleet {
    setup: Setup,
    dice: SmallRng,
    now: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    /// What happens, by its place in the queue.
    events: Vec<Option<Event>>,
    vacant: Vec<usize>,
    serial: u64,
    nodes: Vec<Node>,
    teams: Vec<TeamId>,
    builds: Vec<BuildId>,
    placers: Vec<View>,
    arrived: usize,
    every: f64,
    outcome: Outcome,
    packing: Vec<u64>,
    spread: Vec<u64>,
    took: Vec<Duration>,
}

/// Runs it to its end; also how long each decision took.
pub(crate) fn run(setup: &Setup) -> (Outcome, Vec<Duration>) {
    let mut fleet = Fleet::new(setup.clone());
    while let Some(Reverse((at, _, place))) = fleet.queue.pop() {
        fleet.now = at;
        let event = fleet.events[place].take().expect("what is queued is there");
        fleet.vacant.push(place);
        fleet.happen(event);
        if fleet.arrived == setup.sandboxes {
            break;
        }
    }
    fleet.outcome.virtual_time = fleet.now;
    fleet.outcome.packing = Percentiles::of(fleet.packing);
    fleet.outcome.zones = Percentiles::of(fleet.spread);
    (fleet.outcome, fleet.took)
}

/// Sizes, and of a hundred how many. Few are big, and they hold much.
const SIZES: [(u32, u32, u32); 5] = [
    (1, 512, 60),
    (2, 1024, 25),
    (2, 2048, 10),
    (4, 4096, 4),
    (4, 8192, 1),
];

impl Fleet {
    fn new(setup: Setup) -> Self {
        let mut dice = SmallRng::seed_from_u64(setup.seed);
        let over = setup.policy.overcommit;
        assert_eq!(over, Overcommit::default(), "what nodes here hold is by this");
        let nodes: Vec<_> = (0..setup.nodes)
            .map(|number| {
                let size = if number % 5 == 0 { 2 } else { 1 };
                let total = Room {
                    cpu: 8 * size,
                    memory: 16 * 1024 * size,
                    disk: 1024 * 1024 * size,
                };
                Node {
                    id: id(1, number),
                    zone: number % setup.zones,
                    total,
                    limit: Room {
                        cpu: total.cpu * 4,
                        ..total
                    },
                    promised: Room::default(),
                    teams: BTreeMap::new(),
                    builds: Vec::new(),
                    starting: 0,
                    up: true,
                    epoch: 0,
                    reports: 0,
                }
            })
            .collect();
        let memory: u64 = nodes.iter().map(|node| node.limit.memory).sum();
        let mean: f64 = SIZES
            .iter()
            .map(|(_, memory, of)| f64::from(memory * of) / 100.0)
            .sum();
        let life = setup.life.as_secs_f64() * (SIGMA * SIGMA / 2.0).exp();
        let placers = (0..setup.placers as u64)
            .map(|number| View::new(setup.policy.clone(), setup.seed ^ (number << 32)))
            .collect();
        let mut fleet = Self {
            every: life * mean / (memory as f64 * setup.load),
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            vacant: Vec::new(),
            serial: 0,
            teams: (0..TEAMS).map(|number| id(2, number)).collect(),
            builds: (0..BUILDS).map(|number| id(3, number)).collect(),
            placers,
            arrived: 0,
            outcome: Outcome::default(),
            packing: Vec::new(),
            spread: Vec::new(),
            took: Vec::with_capacity(setup.sandboxes),
            dice: SmallRng::seed_from_u64(dice.random()),
            nodes,
            setup,
        };
        for node in 0..fleet.nodes.len() {
            let id = fleet.nodes[node].id;
            fleet.placers.iter_mut().for_each(|view| view.join(id));
            let first = fleet.setup.report_every.mul_f64(fleet.dice.random());
            fleet.at(first, Event::Report(node));
        }
        // Once everybody has reported.
        fleet.at(fleet.setup.report_every + Duration::from_secs(1), Event::Arrive);
        fleet.at(fleet.setup.loss_every, Event::Lose);
        fleet.at(Duration::from_secs(30), Event::Sample);
        fleet
    }

    fn at(&mut self, wait: Duration, event: Event) {
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.serial += 1;
        self.queue.push(Reverse((self.now + wait, self.serial, place)));
    }

    /// A time after which something happens that happens so often.
    fn poisson(&mut self, every: f64) -> Duration {
        let chance: f64 = self.dice.random_range(f64::MIN_POSITIVE..1.0);
        Duration::from_secs_f64(-chance.ln() * every)
    }

    fn life(&mut self) -> Duration {
        // By Box and Muller.
        let (one, two): (f64, f64) = (self.dice.random_range(f64::MIN_POSITIVE..1.0), self.dice.random());
        let normal = (-2.0 * one.ln()).sqrt() * (2.0 * std::f64::consts::PI * two).cos();
        let life = self.setup.life.as_secs_f64() * (SIGMA * normal).exp();
        Duration::from_secs_f64(life.clamp(0.05, 24.0 * 3600.0))
    }

    /// One of so many, the first ones much more often.
    fn skewed(&mut self, count: usize) -> usize {
        let chance: f64 = self.dice.random();
        let place = (count as f64).powf(chance) - 1.0;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from 0 to the count"
        )]
        let place = place as usize;
        place.min(count - 1)
    }

    fn size(&mut self) -> Resources {
        let mut chance = self.dice.random_range(0..100);
        for (cpu, memory, of) in SIZES {
            if chance < of {
                return Resources {
                    cpu,
                    memory: MiB(memory),
                    disk: MiB(10_240),
                };
            }
            chance -= of;
        }
        unreachable!("the sizes are of a hundred")
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive => {
                self.arrived += 1;
                let next = self.poisson(self.every);
                self.at(next, Event::Arrive);
                self.arrive();
            }
            Event::Up {
                placer,
                claim,
                sandbox,
            } => self.up(placer, claim, sandbox),
            Event::End(sandbox) => self.end(sandbox),
            Event::Freed {
                placer,
                node,
                resources,
            } => {
                let id = self.nodes[node].id;
                self.placers[placer].freed(id, resources, self.now);
            }
            Event::Report(node) => self.report(node),
            Event::Heard {
                placer,
                node,
                taken_at,
                facts,
                builds,
            } => {
                let (view, id) = (&mut self.placers[placer], self.nodes[node].id);
                view.report(id, Facts::clone(&facts), taken_at);
                if let Some(builds) = builds {
                    view.holds(id, builds.iter().copied());
                }
            }
            Event::Lose => self.lose(),
            Event::Back(node) => {
                self.nodes[node].up = true;
                self.at(NOTICED_AFTER, Event::Noticed { node, state: true });
            }
            Event::Noticed { node, state } => {
                let state = if state {
                    State::Ready
                } else {
                    State::Unhealthy { since: self.now }
                };
                let id = self.nodes[node].id;
                for view in &mut self.placers {
                    view.set_state(id, state);
                }
            }
            Event::Sample => {
                if self.arrived * 2 > self.setup.sandboxes {
                    self.sample();
                }
                self.at(Duration::from_secs(30), Event::Sample);
            }
        }
    }

    fn arrive(&mut self) {
        let (resources, team, build) = (self.size(), self.skewed(TEAMS), self.skewed(BUILDS));
        let build = self.builds[build];
        let placer = self.dice.random_range(0..self.placers.len());
        let mut wish = Wish::new(self.teams[team], resources);
        wish.build = Some(build);
        let mut tried = Vec::new();
        for _ in 0..self.setup.policy.tries {
            let view = &mut self.placers[placer];
            let began = Instant::now();
            let chosen = view.choose(&wish, &tried, self.now);
            self.took.push(began.elapsed());
            let Ok(choice) = chosen else {
                break;
            };
            let number = view_number(choice.node);
            self.outcome.digest = (self.outcome.digest ^ number as u64).wrapping_mul(0x0100_0000_01b3);
            let node = &mut self.nodes[number];
            if !node.up {
                self.outcome.wrong_lost += 1;
                view.release(choice.claim);
                view.failed(choice.node, self.now);
            } else if !node.has_room(resources) {
                self.outcome.wrong_full += 1;
                view.full(choice.claim, "memory");
            } else {
                node.take(resources, team);
                node.starting += 1;
                self.outcome.placed += 1;
                self.outcome.local += usize::from(node.fetch(build, &mut self.dice));
                view.fetched(choice.node, build);
                let sandbox = Sandbox {
                    node: number,
                    epoch: node.epoch,
                    resources,
                    team,
                };
                let start = Duration::from_millis(self.dice.random_range(20..300));
                return self.at(
                    start,
                    Event::Up {
                        placer,
                        claim: choice.claim,
                        sandbox,
                    },
                );
            }
            tried.push(choice.node);
        }
        self.outcome.refused += 1;
        let with_room = self.nodes.iter().any(|node| node.has_room(resources));
        self.outcome.refused_with_room += usize::from(with_room);
        let biggest = SIZES[SIZES.len() - 1].1 == resources.memory.0;
        self.outcome.refused_biggest += usize::from(with_room && biggest);
        let sum = |of: fn(&Node) -> u64| -> u64 { self.nodes.iter().filter(|node| node.up).map(of).sum() };
        let (promised, limit) = (sum(|node| node.promised.memory), sum(|node| node.limit.memory));
        let free = 1000 * (limit - promised) / limit.max(1);
        self.outcome.free_at_refusal_most = self.outcome.free_at_refusal_most.max(free);
    }

    fn up(&mut self, placer: usize, claim: Claim, sandbox: Sandbox) {
        let node = &mut self.nodes[sandbox.node];
        if node.epoch != sandbox.epoch {
            self.placers[placer].release(claim);
            self.placers[placer].failed(node.id, self.now);
            return;
        }
        node.starting -= 1;
        self.placers[placer].keep(claim, self.now);
        let life = self.life();
        self.at(life, Event::End(sandbox));
    }

    fn end(&mut self, sandbox: Sandbox) {
        let node = &mut self.nodes[sandbox.node];
        if node.epoch != sandbox.epoch {
            return;
        }
        node.give_back(sandbox.resources, sandbox.team);
        // Nodes tell of ends, and some of these words are lost.
        for placer in 0..self.placers.len() {
            if !self.dice.random_bool(self.setup.reports_lost) {
                let way = Duration::from_millis(self.dice.random_range(1..50));
                let (node, resources) = (sandbox.node, sandbox.resources);
                self.at(
                    way,
                    Event::Freed {
                        placer,
                        node,
                        resources,
                    },
                );
            }
        }
    }

    fn report(&mut self, number: usize) {
        let jitter = self.dice.random_range(0.8..1.2);
        self.at(self.setup.report_every.mul_f64(jitter), Event::Report(number));
        let node = &mut self.nodes[number];
        if !node.up {
            return;
        }
        node.reports += 1;
        let free = node.limit.memory - node.promised.memory;
        let facts = Rc::new(Facts {
            place: Place {
                zone: format!("zone-{}", node.zone),
                protocol: 1,
            },
            runtime: "container".to_owned(),
            can: Needs::NETWORK,
            accepts: true,
            total: node.total,
            promised: node.promised,
            // Sandboxes use half of what they may.
            memory_available: free + node.promised.memory / 2,
            disk_available: node.total.disk / 2,
            slots_ready: 8_u32.saturating_sub(node.starting),
            starting: node.starting,
            own: Vec::new(),
            teams: node
                .teams
                .iter()
                .map(|(team, count)| (self.teams[*team], *count))
                .collect(),
        });
        let builds = (node.reports % BUILDS_EVERY == 1).then(|| Rc::new(node.builds.clone()));
        for placer in 0..self.placers.len() {
            if self.dice.random_bool(self.setup.reports_lost) {
                continue;
            }
            let way = Duration::from_millis(self.dice.random_range(1..200));
            let (facts, builds) = (Rc::clone(&facts), builds.clone());
            self.at(
                way,
                Event::Heard {
                    placer,
                    node: number,
                    taken_at: self.now,
                    facts,
                    builds,
                },
            );
        }
    }

    fn lose(&mut self) {
        let next = self.poisson(self.setup.loss_every.as_secs_f64());
        self.at(next, Event::Lose);
        let number = self.dice.random_range(0..self.nodes.len());
        let node = &mut self.nodes[number];
        if !node.up {
            return;
        }
        self.outcome.lost += node.teams.values().map(|count| *count as usize).sum::<usize>();
        node.up = false;
        node.epoch += 1;
        node.promised = Room::default();
        node.teams.clear();
        node.starting = 0;
        self.at(self.setup.away, Event::Back(number));
        self.at(
            NOTICED_AFTER,
            Event::Noticed {
                node: number,
                state: false,
            },
        );
    }

    fn sample(&mut self) {
        let zones = self.setup.zones;
        let mut teams: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for node in self.nodes.iter().filter(|node| node.up) {
            self.packing.push(1000 * node.promised.memory / node.limit.memory);
            for (team, count) in &node.teams {
                teams.entry(*team).or_insert_with(|| vec![0; zones])[node.zone] += u64::from(*count);
            }
        }
        // Ten in each zone: of fewer, one more is much.
        let big = teams
            .into_values()
            .filter(|counts| counts.iter().sum::<u64>() >= 10 * zones as u64);
        let fullest = |counts: Vec<u64>| {
            1000 * zones as u64 * counts.iter().max().expect("there is a zone") / counts.iter().sum::<u64>()
        };
        self.spread.extend(big.map(fullest));
    }
}

/// The number that an id of a node was made of.
fn view_number(node: NodeId) -> usize {
    let text = node.as_str();
    usize::from_str_radix(&text[text.len() - 12..], 16).expect("made by `id`")
}
