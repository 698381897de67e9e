//! Which sandboxes go where a node has promised more than it has.
use std::cmp::Reverse;
use std::time::{Duration, SystemTime};

use model::{OnTimeout, PauseMode};

use super::Room;
use super::drain::{Doing, Resident, Step};

/// Who may be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eviction {
    /// Those of which nothing was asked for so long, where that is known. Others are not idle.
    pub idle_for: Duration,
    /// Whether those that work may be paused too, if they are paused at their end anyhow.
    pub busy: bool,
    /// Whether those that are killed at their end may be killed before it.
    pub kills: bool,
}

impl Default for Eviction {
    /// Nobody loses anything: what sleeps is paused, and woken when it is asked for.
    fn default() -> Self {
        Self {
            idle_for: Duration::from_secs(60),
            busy: false,
            kills: false,
        }
    }
}

/// What is to be done, and what it brings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evicted {
    /// What is to be done, the cheapest first.
    pub steps: Vec<Step>,
    /// What it frees.
    pub frees: Room,
    /// Whether that is enough.
    pub is_enough: bool,
}

/// What an eviction costs its user: less is better. `None` where it must not be.
fn price(resident: &Resident, policy: &Eviction, now: SystemTime) -> Option<(u8, Step)> {
    if resident.doing != Doing::Running {
        return None;
    }
    let idle_for = resident
        .idle_since
        .and_then(|since| now.duration_since(since).ok());
    let is_idle = idle_for.is_some_and(|idle| idle >= policy.idle_for);
    let id = resident.sandbox;
    match resident.lifecycle.on_timeout {
        OnTimeout::Pause(mode) if is_idle => {
            let wakes = resident.lifecycle.auto_resume;
            Some((u8::from(!wakes), Step::Pause(id, mode)))
        }
        OnTimeout::Pause(mode) if policy.busy => Some((2, Step::Pause(id, mode))),
        OnTimeout::Kill if policy.kills => Some((if is_idle { 3 } else { 4 }, Step::Kill(id))),
        _ => None,
    }
}

/// What a step frees at once.
fn freed(resident: &Resident, step: Step) -> Room {
    let (memory, disk) = match step {
        // The disk stays, and so does memory that has to.
        Step::Pause(_, mode) | Step::Move(_, mode) => {
            let goes = mode == PauseMode::Filesystem || resident.portable == Some(PauseMode::Full);
            (goes, false)
        }
        Step::Kill(_) => (true, true),
        Step::Carry(_) | Step::Resume(_) => (false, false),
    };
    Room {
        cpu: u64::from(resident.resources.cpu),
        memory: u64::from(resident.resources.memory.0) * u64::from(memory),
        disk: u64::from(resident.resources.disk.0) * u64::from(disk),
    }
}

fn helps(need: Room, room: Room) -> bool {
    (need.cpu > 0 && room.cpu > 0) || (need.memory > 0 && room.memory > 0) || (need.disk > 0 && room.disk > 0)
}

fn is_met(need: Room, by: Room) -> bool {
    by.cpu >= need.cpu && by.memory >= need.memory && by.disk >= need.disk
}

fn without(sum: Room, room: Room) -> Room {
    Room {
        cpu: sum.cpu - room.cpu,
        memory: sum.memory - room.memory,
        disk: sum.disk - room.disk,
    }
}

/// Which of the sandboxes go, so that `need` is free beside what is free now.
#[must_use]
pub fn plan(residents: &[Resident], need: Room, policy: &Eviction, now: SystemTime) -> Evicted {
    let mut choice: Vec<_> = residents
        .iter()
        .filter_map(|resident| {
            let (price, step) = price(resident, policy, now)?;
            let room = freed(resident, step);
            helps(need, room).then_some((price, resident, step, room))
        })
        .collect();
    // The longest idle first, then what frees most: fewer are disturbed.
    choice.sort_by_key(|(price, resident, _, room)| {
        let idle_since = resident.idle_since.unwrap_or(now);
        (*price, idle_since, Reverse(room.memory), resident.sandbox)
    });
    let mut sum = Room::default();
    let mut taken = Vec::new();
    for (_, _, step, room) in choice {
        if is_met(need, sum) {
            break;
        }
        sum.cpu += room.cpu;
        sum.memory += room.memory;
        sum.disk += room.disk;
        taken.push((step, room));
    }
    // The last ones may be enough without an earlier, smaller one; the dearest are spared first.
    for at in (0..taken.len()).rev() {
        let spared = without(sum, taken[at].1);
        if is_met(need, spared) {
            sum = spared;
            taken.remove(at);
        }
    }
    Evicted {
        steps: taken.into_iter().map(|(step, _)| step).collect(),
        frees: sum,
        is_enough: is_met(need, sum),
    }
}

#[cfg(test)]
mod tests {
    use model::{Lifecycle, MiB, Resources, SandboxId};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn resident(memory: u32, on_timeout: OnTimeout, idle_since: Option<u64>) -> Resident {
        Resident {
            sandbox: SandboxId::random(),
            resources: Resources {
                memory: MiB(memory),
                ..Resources::default()
            },
            doing: Doing::Running,
            lifecycle: Lifecycle {
                on_timeout,
                auto_resume: true,
            },
            end_at: at(9999),
            portable: Some(PauseMode::Full),
            idle_since: idle_since.map(at),
        }
    }

    const PAUSE: OnTimeout = OnTimeout::Pause(PauseMode::Full);

    fn memory(memory: u64) -> Room {
        Room {
            memory,
            ..Room::default()
        }
    }

    fn check(all: &[Resident], need: u64, policy: Eviction, expected: &[usize], is_enough: bool) {
        let evicted = plan(all, memory(need), &policy, at(1000));
        let ids: Vec<_> = evicted.steps.iter().map(Step::sandbox).collect();
        let expected: Vec<_> = expected.iter().map(|at| all[*at].sandbox).collect();
        assert_eq!((ids, evicted.is_enough), (expected, is_enough));
    }

    #[test]
    fn the_longest_idle_go_first_and_nobody_goes_who_was_not_asked_whether_he_may() {
        let all = [
            resident(512, PAUSE, Some(900)),
            resident(512, PAUSE, Some(100)),
            resident(4096, PAUSE, Some(990)),
            resident(4096, OnTimeout::Kill, Some(0)),
            resident(4096, PAUSE, None),
        ];
        let gentle = Eviction::default();
        check(&all, 0, gentle, &[], true);
        check(&all, 100, gentle, &[1], true);
        check(&all, 600, gentle, &[1, 0], true);
        check(&all, 2000, gentle, &[1, 0], false);
        let firm = Eviction { busy: true, ..gentle };
        check(&all, 2000, firm, &[2], true);
        let hard = Eviction {
            kills: true,
            ..gentle
        };
        check(&all, 5000, hard, &[1, 0, 3], true);
        check(&all, 4000, hard, &[3], true);
    }

    #[test]
    fn memory_that_stays_in_the_machine_frees_nothing() {
        let mut frozen = resident(512, PAUSE, Some(0));
        frozen.portable = None;
        check(&[frozen], 100, Eviction::default(), &[], false);
    }
}
