use std::time::Duration;

use model::{NodeId, Seat, TeamId};
use ports::node::{Order, OrderOrigin};
use ports::store::contract;

use super::*;

const FULL: PauseMode = PauseMode::Full;

struct Scene {
    at: Seat,
    build: BuildId,
}

fn scene() -> Scene {
    Scene {
        at: Seat {
            node: NodeId::random(),
            execution: ExecutionId::random(),
        },
        build: BuildId::random(),
    }
}

impl Scene {
    fn starting(&self) -> Phase {
        Phase::Starting {
            at: self.at,
            from: Origin::Template(self.build),
        }
    }
    fn resuming(&self) -> Phase {
        Phase::Starting {
            at: self.at,
            from: Origin::Snapshot {
                build: self.build,
                mode: FULL,
                home: self.at.node,
            },
        }
    }
    fn running(&self) -> Phase {
        Phase::Running { at: self.at }
    }
    fn pausing(&self) -> Phase {
        Phase::Pausing {
            at: self.at,
            into: self.build,
            mode: FULL,
        }
    }
    fn paused(&self) -> Phase {
        Phase::Paused {
            snapshot: self.build,
            mode: FULL,
            home: self.at.node,
        }
    }
    fn check(&self, phase: Phase, held: Option<(ExecutionId, HeldState)>, expected: Verdict) {
        self.check_at(phase, held, Duration::ZERO, expected);
    }
    fn check_at(
        &self,
        phase: Phase,
        held: Option<(ExecutionId, HeldState)>,
        late: Duration,
        expected: Verdict,
    ) {
        let sandbox = Sandbox {
            phase,
            ..contract::sandbox(TeamId::random())
        };
        let held = held.map(|(execution, state)| Held {
            order: order(&sandbox, execution),
            state,
            pause: None,
        });
        let now = sandbox.end_at - Duration::from_secs(1) + late;
        assert_eq!(
            verdict(&sandbox, held.as_ref(), now),
            expected,
            "{phase:?} against {:?}",
            held.map(|h| h.state)
        );
    }
}

fn order(sandbox: &Sandbox, execution: ExecutionId) -> Order {
    Order {
        sandbox: sandbox.id,
        execution,
        team: sandbox.team,
        template: sandbox.template,
        build: sandbox.build,
        resources: sandbox.resources,
        network: sandbox.network.clone(),
        env: sandbox.env.clone(),
        user: "user".to_owned(),
        workdir: None,
        start: None,
        envd_token: None,
        deadline: sandbox.end_at,
        lifecycle: sandbox.lifecycle,
        origin: OrderOrigin::Fresh,
        volumes: Vec::new(),
    }
}

#[test]
fn a_start_is_finished_where_its_node_carried_it_out_and_undone_where_not() {
    let s = scene();
    let own = s.at.execution;
    s.check(
        s.starting(),
        Some((own, HeldState::Running)),
        Verdict::Runs(Event::Ready),
    );
    s.check(s.starting(), Some((own, HeldState::Starting)), Verdict::Wait);
    s.check(s.starting(), None, Verdict::NotStarted);
    s.check(
        s.starting(),
        Some((ExecutionId::random(), HeldState::Running)),
        Verdict::NotStarted,
    );
    s.check(
        s.resuming(),
        Some((own, HeldState::Running)),
        Verdict::Runs(Event::Ready),
    );
    s.check(
        s.resuming(),
        Some((ExecutionId::random(), HeldState::Paused(s.build, FULL))),
        Verdict::NotStarted,
    );
    s.check(s.resuming(), None, Verdict::NotStarted);
}

#[test]
fn a_restart_that_was_stored_and_not_begun_is_begun() {
    let s = scene();
    let old = ExecutionId::random();
    let restarting = s.running().on(Event::Restart(s.at)).unwrap();
    s.check(restarting, Some((old, HeldState::Running)), Verdict::Reboot(old));
    s.check(
        restarting,
        Some((s.at.execution, HeldState::Running)),
        Verdict::Runs(Event::Ready),
    );
    s.check(s.resuming(), Some((old, HeldState::Running)), Verdict::NotStarted);
}

#[test]
fn a_restart_that_met_a_pause_of_its_node_follows_the_pause() {
    let s = scene();
    let (old, into) = (ExecutionId::random(), BuildId::random());
    let restarting = s.running().on(Event::Restart(s.at)).unwrap();
    s.check(
        restarting,
        Some((old, HeldState::Pausing(into, FULL))),
        Verdict::Wait,
    );
    s.check(
        restarting,
        Some((old, HeldState::Paused(into, FULL))),
        Verdict::Paused(into, FULL),
    );
    // What a failed reboot leaves bears the name that is stored.
    let left = BuildId(s.at.execution.0);
    s.check(
        restarting,
        Some((s.at.execution, HeldState::Paused(left, PauseMode::Filesystem))),
        Verdict::NotStarted,
    );
}

#[test]
fn a_running_sandbox_follows_its_node() {
    let s = scene();
    let (own, into) = (s.at.execution, BuildId::random());
    s.check(s.running(), Some((own, HeldState::Running)), Verdict::Agreed);
    s.check(
        s.running(),
        Some((own, HeldState::Pausing(into, FULL))),
        Verdict::Pausing(into, FULL),
    );
    s.check(
        s.running(),
        Some((own, HeldState::Paused(into, FULL))),
        Verdict::Paused(into, FULL),
    );
    s.check(s.running(), Some((own, HeldState::Stopping)), Verdict::Wait);
    // A node tries to end it once.
    s.check_at(
        s.running(),
        Some((own, HeldState::Stopping)),
        Duration::from_secs(2),
        Verdict::Lost(KillReason::Timeout),
    );
    s.check(
        s.running(),
        Some((ExecutionId::random(), HeldState::Running)),
        Verdict::Lost(KillReason::NodeLost),
    );
    s.check(s.running(), None, Verdict::Lost(KillReason::NodeLost));
    s.check_at(
        s.running(),
        None,
        Duration::from_secs(2),
        Verdict::Lost(KillReason::Timeout),
    );
}

#[test]
fn a_pause_is_finished_where_its_node_carried_it_out_and_undone_where_not() {
    let s = scene();
    let (own, other) = (s.at.execution, BuildId::random());
    s.check(
        s.pausing(),
        Some((own, HeldState::Running)),
        Verdict::Runs(Event::Failed),
    );
    s.check(
        s.pausing(),
        Some((own, HeldState::Pausing(s.build, FULL))),
        Verdict::Wait,
    );
    s.check(
        s.pausing(),
        Some((own, HeldState::Paused(s.build, FULL))),
        Verdict::Paused(s.build, FULL),
    );
    s.check(
        s.pausing(),
        Some((own, HeldState::Paused(other, FULL))),
        Verdict::Paused(other, FULL),
    );
    s.check(s.pausing(), None, Verdict::Lost(KillReason::NodeLost));
}

#[test]
fn a_paused_sandbox_is_kept_as_long_as_its_node_has_anything_of_it() {
    let s = scene();
    let late = ExecutionId::random();
    s.check(
        s.paused(),
        Some((s.at.execution, HeldState::Paused(s.build, FULL))),
        Verdict::Agreed,
    );
    // Its memory is lost: its disk is there.
    let disk = HeldState::Paused(s.build, PauseMode::Filesystem);
    s.check(s.paused(), Some((s.at.execution, disk)), Verdict::Agreed);
    s.check(s.paused(), Some((late, HeldState::Running)), Verdict::Adopt(late));
    let other = BuildId::random();
    s.check(
        s.paused(),
        Some((late, HeldState::Paused(other, FULL))),
        Verdict::Paused(other, FULL),
    );
    s.check(
        s.paused(),
        Some((late, HeldState::Pausing(other, FULL))),
        Verdict::Wait,
    );
    s.check(s.paused(), Some((late, HeldState::Starting)), Verdict::Wait);
    s.check(s.paused(), None, Verdict::Lost(KillReason::NodeLost));
}

#[test]
fn a_kill_is_finished_whatever_is_held() {
    let s = scene();
    let killing = Phase::Killing {
        at: s.at,
        why: KillReason::Requested,
    };
    s.check(killing, None, Verdict::Reap);
    s.check(killing, Some((s.at.execution, HeldState::Running)), Verdict::Reap);
}
