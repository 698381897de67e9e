use proptest::prelude::*;

use super::*;

fn seat() -> Seat {
    Seat {
        node: NodeId::random(),
        execution: ExecutionId::random(),
    }
}

fn running() -> (Seat, Phase) {
    let at = seat();
    (at, Phase::Running { at })
}

#[test]
fn a_start_that_fails_is_killed_with_its_reason() {
    let at = seat();
    let phase = Phase::Starting {
        at,
        from: Origin::Template(BuildId::random()),
    }
    .on(Event::Failed)
    .unwrap();
    assert_eq!(
        phase,
        Phase::Killing {
            at,
            why: KillReason::StartFailed
        }
    );
}

#[test]
fn a_failed_resume_keeps_the_snapshot() {
    let paused = Phase::Paused {
        snapshot: BuildId::random(),
        mode: PauseMode::Full,
        home: NodeId::random(),
    };
    let starting = paused.on(Event::Resume(seat(), PauseMode::Full)).unwrap();
    assert_eq!(starting.on(Event::Failed), Ok(paused));
}

#[test]
fn a_failed_pause_leaves_it_running() {
    let (_, phase) = running();
    let pausing = phase
        .on(Event::Pause(BuildId::random(), PauseMode::Full))
        .unwrap();
    assert_eq!(pausing.state(), Some(State::Paused));
    assert_eq!(pausing.on(Event::Failed), Ok(phase));
}

#[test]
fn a_resume_may_keep_less_than_the_pause_did_and_never_more() {
    let home = NodeId::random();
    let resumed = |kept, wanted| {
        let paused = Phase::Paused {
            snapshot: BuildId::random(),
            mode: kept,
            home,
        };
        match paused.on(Event::Resume(seat(), wanted)).unwrap() {
            Phase::Starting {
                from: Origin::Snapshot { mode, .. },
                ..
            } => mode,
            other => panic!("{other:?}"),
        }
    };
    use PauseMode::{Filesystem, Full};
    assert_eq!(resumed(Full, Full), Full);
    assert_eq!(resumed(Full, Filesystem), Filesystem);
    assert_eq!(resumed(Filesystem, Full), Filesystem);
}

#[test]
fn the_first_kill_reason_is_kept() {
    let (at, phase) = running();
    let killing = phase.on(Event::Kill(KillReason::Timeout)).unwrap();
    assert_eq!(
        killing.on(Event::Kill(KillReason::Requested)),
        Ok(Phase::Killing {
            at,
            why: KillReason::Timeout
        })
    );
    assert_eq!(
        killing.on(Event::Reaped),
        Ok(Phase::Gone {
            why: KillReason::Timeout
        })
    );
}

#[test]
fn a_paused_sandbox_is_not_paused_again() {
    let paused = Phase::Paused {
        snapshot: BuildId::random(),
        mode: PauseMode::Full,
        home: NodeId::random(),
    };
    assert!(
        paused
            .on(Event::Pause(BuildId::random(), PauseMode::Full))
            .is_err()
    );
}

fn any_event() -> impl Strategy<Value = Event> {
    let mode = prop_oneof![Just(PauseMode::Full), Just(PauseMode::Filesystem)];
    let why = prop_oneof![
        Just(KillReason::Requested),
        Just(KillReason::Timeout),
        Just(KillReason::Crashed)
    ];
    prop_oneof![
        Just(Event::Ready),
        Just(Event::Failed),
        mode.clone().prop_map(|m| Event::Pause(BuildId::random(), m)),
        Just(Event::Sealed),
        Just(Event::Snapshot(BuildId::random())),
        Just(Event::Snapshotted),
        mode.prop_map(|m| Event::Resume(seat(), m)),
        Just(Event::Restart(seat())),
        why.prop_map(Event::Kill),
        Just(Event::Reaped),
    ]
}

proptest! {
    /// No sequence of events brings back what is gone, routes to what has no seat, or leaves a phase that a kill
    /// does not end.
    #[test]
    fn any_life_ends_and_stays_ended(events in prop::collection::vec(any_event(), 0..40)) {
        let mut phase = Phase::Starting { at: seat(), from: Origin::Template(BuildId::random()) };
        for event in events {
            let gone = matches!(phase, Phase::Gone { .. });
            match phase.on(event) {
                Ok(next) => phase = next,
                Err(refused) => prop_assert_eq!(refused.phase, phase),
            }
            let still_gone = matches!(phase, Phase::Gone { .. });
            prop_assert!(!gone || still_gone);
            prop_assert!(!phase.is_routable() || phase.seat().is_some());
        }
        let killing = phase.on(Event::Kill(KillReason::Requested)).unwrap();
        let ended = matches!(killing.on(Event::Reaped), Ok(Phase::Gone { .. }));
        prop_assert!(ended);
    }

    /// What is stored is what was meant.
    #[test]
    fn phases_travel_through_json(events in prop::collection::vec(any_event(), 0..10)) {
        let mut phase = Phase::Starting { at: seat(), from: Origin::Template(BuildId::random()) };
        for event in events {
            phase = phase.on(event).unwrap_or(phase);
        }
        let json = serde_json::to_string(&phase).unwrap();
        prop_assert_eq!(serde_json::from_str::<Phase>(&json).unwrap(), phase);
    }
}
