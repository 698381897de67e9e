//! What is to be done with the sandboxes of a node that is to be emptied.
//!
//! The plan is made anew at every look, out of what is true then: whoever carries it out may die at any step, and another one
//! goes on. What is under way counts against what may be done at once.
use std::time::{Duration, SystemTime};

use model::{Lifecycle, OnTimeout, PauseMode, Resources, SandboxId};

/// What is nearly over is waited for: to move it takes longer.
const NEARLY_OVER: Duration = Duration::from_secs(15);

/// What a sandbox on the node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It runs.
    Running,
    /// Something is under way with it: a start, a pause, a copy, its end.
    Changing,
    /// It is paused, and this node alone has what was kept.
    Paused,
    /// It is paused, and can be resumed without this node.
    Carried,
    /// It was paused to be moved, and can be resumed without this node.
    Moving,
}

/// A sandbox of the node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resident {
    /// Which.
    pub sandbox: SandboxId,
    /// Its size.
    pub resources: Resources,
    /// What it is doing.
    pub doing: Doing,
    /// What becomes of it when its time is over.
    pub lifecycle: Lifecycle,
    /// When that is.
    pub end_at: SystemTime,
    /// The most of it that can be had on another node after a pause here; `None` where nothing can.
    pub portable: Option<PauseMode>,
    /// Since when nothing was asked of it, where that is known.
    pub idle_since: Option<SystemTime>,
}

/// How a node is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// What could not be moved by then is not waited for any longer.
    pub deadline: SystemTime,
    /// Whether what is still there at the deadline, and cannot be moved, is killed; else the node keeps it.
    pub kills: bool,
    /// Sandboxes that are moved at a time: each takes a share of the node's disk and network.
    pub at_once: usize,
}

/// Something to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Pause it, and resume it on another node. What is not kept of it is lost.
    Move(SandboxId, PauseMode),
    /// Pause it. It is resumed when somebody asks for it.
    Pause(SandboxId, PauseMode),
    /// Bring what its pause kept to where other nodes have it.
    Carry(SandboxId),
    /// Resume it on another node: it ran until it was paused for that.
    Resume(SandboxId),
    /// End it.
    Kill(SandboxId),
}

impl Step {
    /// Which sandbox it is about.
    #[must_use]
    pub const fn sandbox(&self) -> SandboxId {
        match self {
            Self::Move(id, _) | Self::Pause(id, _) | Self::Carry(id) | Self::Resume(id) | Self::Kill(id) => {
                *id
            }
        }
    }

    /// What it is, in a word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Move(..) => "move",
            Self::Pause(..) => "pause",
            Self::Carry(_) => "carry",
            Self::Resume(_) => "resume",
            Self::Kill(_) => "kill",
        }
    }
}

/// What is to be done, as of one look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What is to be begun now.
    pub steps: Vec<Step>,
    /// Sandboxes whose turn comes when others are done.
    pub queued: usize,
    /// Sandboxes that something is under way with.
    pub under_way: usize,
    /// Sandboxes that are waited for.
    pub waiting: usize,
    /// Sandboxes that the node keeps, past the deadline.
    pub left: usize,
    /// When to look again at the latest, where something is waited for.
    pub look_at: Option<SystemTime>,
}

impl Plan {
    /// Whether the node is empty, or has nothing but what it keeps.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.steps.is_empty() && self.queued + self.under_way + self.waiting == 0
    }
}

enum Turn {
    Now(Step),
    Wait(SystemTime),
    UnderWay,
    Done,
    Left,
}

fn turn(resident: &Resident, drain: &Drain, now: SystemTime) -> Turn {
    let id = resident.sandbox;
    let late = now >= drain.deadline;
    let at_last = || match drain.kills {
        true => Turn::Now(Step::Kill(id)),
        false => Turn::Left,
    };
    match (resident.doing, resident.portable) {
        (Doing::Carried, _) => Turn::Done,
        (Doing::Moving, _) => Turn::Now(Step::Resume(id)),
        (Doing::Changing, _) => Turn::UnderWay,
        (Doing::Paused, Some(_)) => Turn::Now(Step::Carry(id)),
        (Doing::Paused, None) if late => at_last(),
        // Somebody may resume and end it; until then it stays.
        (Doing::Paused, None) => Turn::Wait(drain.deadline),
        (Doing::Running, _) if !late && resident.end_at <= now + NEARLY_OVER => Turn::Wait(resident.end_at),
        (Doing::Running, Some(PauseMode::Full)) => Turn::Now(Step::Move(id, PauseMode::Full)),
        (Doing::Running, Some(PauseMode::Filesystem)) => {
            // Its processes would end: it agreed to that, or it is still better than losing its disk too.
            let agrees = resident.lifecycle.on_timeout == OnTimeout::Pause(PauseMode::Filesystem);
            if agrees || late {
                Turn::Now(Step::Move(id, PauseMode::Filesystem))
            } else {
                Turn::Wait(resident.end_at.min(drain.deadline))
            }
        }
        (Doing::Running, None) if late => at_last(),
        (Doing::Running, None) => Turn::Wait(resident.end_at.min(drain.deadline)),
    }
}

/// What is to be done now with the sandboxes of a node.
#[must_use]
pub fn plan(residents: &[Resident], drain: &Drain, now: SystemTime) -> Plan {
    let mut plan = Plan::default();
    let mut steps = Vec::new();
    for resident in residents {
        match turn(resident, drain, now) {
            Turn::Now(step) => steps.push((resident, step)),
            Turn::Wait(until) => {
                plan.waiting += 1;
                plan.look_at = Some(plan.look_at.map_or(until, |at| at.min(until)));
            }
            Turn::UnderWay => plan.under_way += 1,
            Turn::Left => plan.left += 1,
            Turn::Done => {}
        }
    }
    // What has the longest life before it gains most; ids decide between equals, so that two who look see one plan.
    steps.sort_by_key(|(resident, _)| (std::cmp::Reverse(resident.end_at), resident.sandbox));
    let free = drain.at_once.saturating_sub(plan.under_way);
    plan.queued = steps.len().saturating_sub(free);
    plan.steps = steps.into_iter().take(free).map(|(_, step)| step).collect();
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(seconds: u64) -> SystemTime {
        NOW + Duration::from_secs(seconds)
    }

    fn resident(doing: Doing, portable: Option<PauseMode>, ends: u64) -> Resident {
        Resident {
            sandbox: SandboxId::random(),
            resources: Resources::default(),
            doing,
            lifecycle: Lifecycle::default(),
            end_at: at(ends),
            portable,
            idle_since: None,
        }
    }

    const DRAIN: Drain = Drain {
        deadline: SystemTime::UNIX_EPOCH,
        kills: true,
        at_once: 2,
    };

    fn until(deadline: u64) -> Drain {
        Drain {
            deadline: at(deadline),
            ..DRAIN
        }
    }

    fn check(resident: Resident, drain: Drain, expected: Plan) {
        assert_eq!(plan(&[resident], &drain, at(10)), expected, "{resident:?}");
    }

    fn step(step: Step) -> Plan {
        Plan {
            steps: vec![step],
            ..Plan::default()
        }
    }

    fn wait(until: u64) -> Plan {
        Plan {
            waiting: 1,
            look_at: Some(at(until)),
            ..Plan::default()
        }
    }

    #[test]
    fn what_can_go_on_elsewhere_is_moved_and_the_rest_is_waited_for_until_the_deadline() {
        use Doing::{Carried, Changing, Moving, Paused, Running};
        use PauseMode::{Filesystem, Full};
        let whole = resident(Running, Some(Full), 500);
        check(whole, until(100), step(Step::Move(whole.sandbox, Full)));
        let disk = resident(Running, Some(Filesystem), 500);
        check(disk, until(100), wait(100));
        check(disk, until(10), step(Step::Move(disk.sandbox, Filesystem)));
        let mut agrees = disk;
        agrees.lifecycle.on_timeout = OnTimeout::Pause(Filesystem);
        check(agrees, until(100), step(Step::Move(disk.sandbox, Filesystem)));
        let bound = resident(Running, None, 50);
        check(bound, until(100), wait(50));
        check(bound, until(40), wait(40));
        check(bound, until(10), step(Step::Kill(bound.sandbox)));
        let mut keeps = until(10);
        keeps.kills = false;
        check(
            bound,
            keeps,
            Plan {
                left: 1,
                ..Plan::default()
            },
        );
        check(resident(Running, Some(Full), 20), until(100), wait(20));
        let paused = resident(Paused, Some(Full), 500);
        check(paused, until(100), step(Step::Carry(paused.sandbox)));
        check(resident(Paused, None, 5), until(100), wait(100));
        check(resident(Carried, None, 5), until(100), Plan::default());
        let moving = resident(Moving, None, 5);
        for deadline in [10, 100] {
            check(moving, until(deadline), step(Step::Resume(moving.sandbox)));
        }
        check(
            resident(Changing, None, 5),
            until(10),
            Plan {
                under_way: 1,
                ..Plan::default()
            },
        );
    }

    #[test]
    fn no_more_is_begun_at_once_than_is_allowed_and_what_lives_longest_goes_first() {
        let all: Vec<_> = (0..5)
            .map(|number| resident(Doing::Running, Some(PauseMode::Full), 100 + number))
            .collect();
        let first = plan(&all, &until(50), at(10));
        let moved = |at: usize| Step::Move(all[at].sandbox, PauseMode::Full);
        assert_eq!(first.steps, [moved(4), moved(3)]);
        assert_eq!((first.queued, first.is_over()), (3, false));
        let mut busy = all.clone();
        busy[4].doing = Doing::Changing;
        let next = plan(&busy, &until(50), at(10));
        assert_eq!((next.steps, next.under_way, next.queued), (vec![moved(3)], 1, 3));
    }

    #[test]
    fn a_drain_that_is_carried_out_comes_to_its_end() {
        for seed in 0_u64..200 {
            let doing =
                |n: u64| [Doing::Running, Doing::Paused, Doing::Changing, Doing::Carried][(n % 4) as usize];
            let portable =
                |n: u64| [None, Some(PauseMode::Full), Some(PauseMode::Filesystem)][(n % 3) as usize];
            let mix = |n: u64| (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_mul(n + 7) >> 17;
            let mut there: Vec<_> = (0..12)
                .map(|n| resident(doing(mix(n)), portable(mix(n + 50)), mix(n + 99) % 300))
                .collect();
            let drain = Drain {
                kills: seed.is_multiple_of(2),
                ..until(120)
            };
            let mut looks = 0;
            for second in 0.. {
                let now = at(second);
                there.retain(|it| it.doing != Doing::Running || it.end_at > now);
                let plan = plan(&there, &drain, now);
                assert!(plan.steps.len() + plan.under_way <= drain.at_once.max(plan.under_way));
                if plan.is_over() {
                    assert!(plan.left == 0 || !drain.kills);
                    break;
                }
                // What was under way is over at the next look; what is begun now is under way.
                for it in &mut there {
                    if it.doing == Doing::Changing {
                        it.doing = Doing::Carried;
                    }
                }
                for step in plan.steps {
                    let id = step.sandbox();
                    there
                        .iter_mut()
                        .filter(|it| it.sandbox == id)
                        .for_each(|it| it.doing = Doing::Changing);
                }
                looks += 1;
                assert!(looks < 400, "seed {seed} does not end");
            }
        }
    }
}
