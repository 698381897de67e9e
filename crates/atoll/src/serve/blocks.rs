//! What Nomad gives this machine: the node offers the blocks that are held here, and is emptied of what a block that goes leaves no
//! room for.
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use cluster::nomad::{Hold, Holds, usable};
use model::SandboxId;
use node::{LocalNode, Offer};
use orchestrator::placement::{self, Overcommit, Room};
use ports::Node as _;
use ports::node::{Draining, HeldState, Own};
use ports::scheduler::Size;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::settings::cluster::{ClusterSettings, NomadSettings};

/// How often it is looked what is in the blocks.
const LOOK: Duration = Duration::from_secs(1);
/// A block that went without a word may be back: its process looks for a daemon that starts anew every half second.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// Of the time that Nomad gives, so much is for those who can be moved: the rest is for what has to be ended.
const MOVED_IN_TENTHS: u32 = 8;

/// Offers what is held, until `stop`. Before this returns, nothing is offered.
pub(super) fn listen(
    settings: &NomadSettings,
    cluster: &ClusterSettings,
    node: Arc<LocalNode>,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>> {
    let socket = settings.socket();
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}, for cluster.nomad.socket", directory.display()))?;
    }
    let holds = Holds::listen(&socket)
        .with_context(|| format!("cannot listen on {}, cluster.nomad.socket", socket.display()))?;
    let terms = Terms {
        overcommit: cluster.overcommit()?,
        drain_within: settings.config(&cluster.name)?.drain_within,
    };
    node.offer(Offer::default());
    Ok(async move {
        stop.run_until_cancelled(follow(holds, node, terms)).await;
    })
}

struct Terms {
    overcommit: Overcommit,
    drain_within: Duration,
}

async fn follow(holds: Holds, node: Arc<LocalNode>, terms: Terms) {
    let mut watched = holds.watch();
    let mut short = None;
    loop {
        let now = watched.borrow_and_update().clone();
        match node.report().await {
            Ok(report) => {
                let own: HashSet<_> = now.values().filter_map(|hold| hold.sandbox).collect();
                let promised = placement::promised(&report, |id| own.contains(&id));
                // What is paused is resumed in what others share.
                let runs = report
                    .held
                    .iter()
                    .filter(|held| !matches!(held.state, HeldState::Paused(..)));
                let here: HashSet<_> = runs.map(|held| held.order.sandbox).collect();
                let decided = decide(
                    &now,
                    promised,
                    &here,
                    &terms,
                    &mut short,
                    Instant::now(),
                    SystemTime::now(),
                );
                node.offer(decided.offer);
                for (id, hold) in decided.emptied {
                    holds.emptied(id, &hold.allocation);
                }
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the node does not say what is in its blocks");
            }
        }
        let _ = tokio::time::timeout(LOOK, watched.changed()).await;
    }
}

/// Since when there is too little, and until when it is to be made good.
#[derive(Debug, Clone, Copy)]
struct Short {
    since: Instant,
    deadline: SystemTime,
}

#[derive(Debug)]
struct Decided<'a> {
    offer: Offer,
    emptied: Vec<(&'a str, &'a Hold)>,
}

/// What is offered, and which blocks are empty: blocks are no places, so one that goes is empty when what runs fits into the others.
/// One that is a sandbox's own is empty when that is over, which orchestrators see to; room is not looked for.
fn decide<'a>(
    holds: &'a BTreeMap<String, Hold>,
    promised: Room,
    here: &HashSet<SandboxId>,
    terms: &Terms,
    short: &mut Option<Short>,
    now: Instant,
    day: SystemTime,
) -> Decided<'a> {
    let size = usable(holds);
    let own = holds.values().filter(|hold| !hold.draining);
    let own: Vec<_> = own
        .filter_map(|hold| {
            Some(Own {
                sandbox: hold.sandbox?,
                size: hold.size,
            })
        })
        .collect();
    let is_here = |hold: &Hold| hold.sandbox.is_some_and(|sandbox| here.contains(&sandbox));
    let going = holds.iter().filter(|(_, hold)| hold.draining && !is_here(hold));
    let going: Vec<_> = going.map(|(id, hold)| (id.as_str(), hold)).collect();
    let for_one = |part: fn(&Own) -> u32| own.iter().map(part).fold(0, u32::saturating_add);
    let total = Room {
        cpu: u64::from(size.cpu.saturating_sub(for_one(|own| own.size.cpu))),
        memory: u64::from(size.memory.0.saturating_sub(for_one(|own| own.size.memory.0))),
        disk: 0,
    };
    if terms.overcommit.fits(promised, total) {
        *short = None;
        return Decided {
            offer: Offer {
                size,
                own,
                draining: None,
            },
            emptied: going,
        };
    }
    let short = *short.get_or_insert_with(|| Short {
        since: now,
        deadline: day + terms.drain_within * MOVED_IN_TENTHS / 10,
    });
    let is_meant = going.iter().any(|(_, hold)| hold.sandbox.is_none())
        || now.duration_since(short.since) >= BACK_WITHIN;
    let draining = is_meant.then_some(Draining {
        deadline: short.deadline,
        // Where some capacity is left, nobody says whose end would make room: what cannot be moved is waited for.
        kills: size == Size::default(),
    });
    Decided {
        offer: Offer { size, own, draining },
        // One of a sandbox alone makes no room for others.
        emptied: going
            .into_iter()
            .filter(|(_, hold)| hold.sandbox.is_some())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use model::MiB;

    use super::*;

    const TERMS: Terms = Terms {
        overcommit: Overcommit {
            cpu: orchestrator::placement::Ratio::ONE,
            memory: orchestrator::placement::Ratio::ONE,
            disk: orchestrator::placement::Ratio::UNBOUNDED,
        },
        drain_within: Duration::from_secs(300),
    };

    fn holds(of: &[(&str, bool)]) -> BTreeMap<String, Hold> {
        let hold = |(id, draining): &(&str, bool)| {
            let hold = Hold {
                allocation: format!("of-{id}"),
                size: Size {
                    cpu: 4,
                    memory: MiB(1000),
                },
                sandbox: None,
                draining: *draining,
            };
            ((*id).to_owned(), hold)
        };
        of.iter().map(hold).collect()
    }

    fn promised(cpu: u64) -> Room {
        Room {
            cpu,
            memory: 100,
            disk: 0,
        }
    }

    #[test]
    fn what_is_held_and_stays_is_offered_and_a_block_goes_when_the_rest_suffices() {
        let (mut short, now, day) = (None, Instant::now(), SystemTime::UNIX_EPOCH);
        let both = holds(&[("a", false), ("b", false)]);
        let decided = decide(&both, promised(6), &HashSet::new(), &TERMS, &mut short, now, day);
        assert_eq!((decided.offer.size.cpu, decided.offer.draining), (8, None));
        assert!(decided.emptied.is_empty() && short.is_none());

        let one = holds(&[("a", false), ("b", true)]);
        let decided = decide(&one, promised(6), &HashSet::new(), &TERMS, &mut short, now, day);
        let draining = decided.offer.draining.unwrap();
        assert_eq!(draining.deadline, day + Duration::from_secs(240));
        assert!(!draining.kills, "some of it may stay");
        assert!(decided.emptied.is_empty());

        // Time passes, and the deadline stays what it was.
        let later = day + Duration::from_secs(100);
        let decided = decide(&one, promised(5), &HashSet::new(), &TERMS, &mut short, now, later);
        assert_eq!(
            decided.offer.draining.unwrap().deadline,
            day + Duration::from_secs(240)
        );
        let decided = decide(&one, promised(4), &HashSet::new(), &TERMS, &mut short, now, later);
        assert_eq!((decided.offer.size.cpu, decided.offer.draining), (4, None));
        assert_eq!(
            decided.emptied.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            ["b"]
        );
        assert!(short.is_none());
    }

    #[test]
    fn a_block_of_one_sandbox_is_nobody_elses_and_goes_with_it() {
        let (mut short, now, day) = (None, Instant::now(), SystemTime::UNIX_EPOCH);
        let sandbox = SandboxId::random();
        let mut held = holds(&[("a", false), ("b", false)]);
        held.get_mut("b").unwrap().sandbox = Some(sandbox);
        let here = HashSet::from([sandbox]);
        let decided = decide(&held, promised(4), &here, &TERMS, &mut short, now, day);
        assert_eq!(
            (
                decided.offer.size.cpu,
                decided.offer.own.len(),
                decided.offer.draining
            ),
            (8, 1, None)
        );
        let decided = decide(
            &held,
            promised(5),
            &here,
            &TERMS,
            &mut short,
            now + BACK_WITHIN,
            day,
        );
        assert!(decided.offer.draining.is_none(), "it is waited for");
        short = None;

        held.get_mut("b").unwrap().draining = true;
        let decided = decide(&held, promised(4), &here, &TERMS, &mut short, now, day);
        assert_eq!((decided.offer.size.cpu, decided.offer.own.len()), (4, 0));
        assert!(
            decided.offer.draining.is_none() && decided.emptied.is_empty(),
            "orchestrators end it"
        );
        // Whatever else is short: it makes no room.
        for cpu in [4, 5] {
            let decided = decide(
                &held,
                promised(cpu),
                &HashSet::new(),
                &TERMS,
                &mut short,
                now,
                day,
            );
            assert_eq!(decided.emptied.len(), 1);
            assert!(decided.offer.draining.is_none());
        }
    }

    #[test]
    fn of_the_last_block_everything_goes() {
        let (mut short, now, day) = (None, Instant::now(), SystemTime::UNIX_EPOCH);
        let last = holds(&[("a", true)]);
        let decided = decide(&last, promised(1), &HashSet::new(), &TERMS, &mut short, now, day);
        assert_eq!(decided.offer.size, Size::default());
        assert!(decided.offer.draining.unwrap().kills);
        let decided = decide(
            &last,
            Room::default(),
            &HashSet::new(),
            &TERMS,
            &mut short,
            now,
            day,
        );
        assert_eq!(decided.emptied.len(), 1);
    }

    #[test]
    fn a_block_that_went_without_a_word_is_waited_for() {
        let (mut short, now, day) = (None, Instant::now(), SystemTime::UNIX_EPOCH);
        let none = holds(&[]);
        let decided = decide(&none, promised(1), &HashSet::new(), &TERMS, &mut short, now, day);
        assert_eq!(decided.offer, Offer::default(), "nothing new is taken meanwhile");
        let decided = decide(
            &none,
            promised(1),
            &HashSet::new(),
            &TERMS,
            &mut short,
            now + BACK_WITHIN,
            day,
        );
        assert!(decided.offer.draining.is_some());
        let back = holds(&[("a", false)]);
        let decided = decide(
            &back,
            promised(1),
            &HashSet::new(),
            &TERMS,
            &mut short,
            now + BACK_WITHIN,
            day,
        );
        assert_eq!((decided.offer.size.cpu, decided.offer.draining), (4, None));
    }
}
