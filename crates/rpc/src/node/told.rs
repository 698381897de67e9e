//! Events, reports, logs and changes as messages, and back.
use model::{BuildId, ExecutionId, KillReason, MiB, NodeId, PauseMode, SandboxId};
use ports::logs::LogQuery;
use ports::node::{Draining, Held, Own, Report};
use ports::root::{Change, ChangeKind};
use ports::runtime::Capabilities;
use ports::scheduler::Size;
use ports::{LogLine, MetricSample, NodeEvent};
use wire::node as proto;
use wire::node::__buffa::oneof::event::News;

use crate::convert::{
    Malformed, Read, execution, file_kind, from_execution, from_file_kind, from_json, from_level,
    from_pause_mode, from_pause_outcome, json, level, nanos, parsed, pause_mode, pause_outcome, text, time,
};
use crate::protocol::PROTOCOL;

pub(crate) fn event(life: u64, number: u64, event: &NodeEvent) -> proto::Event {
    let ending = |sandbox: &SandboxId, at: &ExecutionId, why: &KillReason| proto::Ending {
        at: Some(execution(*sandbox, *at)).into(),
        why: text(why),
        ..Default::default()
    };
    let pausing = |sandbox: &SandboxId, at: &ExecutionId, into: &BuildId, mode| proto::Pausing {
        at: Some(execution(*sandbox, *at)).into(),
        into: into.to_string(),
        mode,
        ..Default::default()
    };
    let news: News = match event {
        NodeEvent::Ending(sandbox, at, why) => News::Ending(ending(sandbox, at, why).into()),
        NodeEvent::Ended(sandbox, at, why) => News::Ended(ending(sandbox, at, why).into()),
        NodeEvent::Pausing(sandbox, at, into, mode) => {
            News::Pausing(pausing(sandbox, at, into, pause_mode(*mode).into()).into())
        }
        NodeEvent::Paused(sandbox, at, into, outcome) => News::Paused(
            proto::Paused {
                at: Some(execution(*sandbox, *at)).into(),
                into: into.to_string(),
                outcome: Some(pause_outcome(outcome)).into(),
                ..Default::default()
            }
            .into(),
        ),
        NodeEvent::PauseFailed(sandbox, at, into) => {
            News::PauseFailed(pausing(sandbox, at, into, pause_mode(PauseMode::Full).into()).into())
        }
    };
    proto::Event {
        life,
        number,
        news: Some(news),
        ..Default::default()
    }
}

/// None for news that a newer node tells, and this version knows nothing of.
pub(crate) fn from_event(event: proto::Event) -> Read<Option<NodeEvent>> {
    let why = |ending: &proto::Ending| from_json::<KillReason>(ending.why.as_bytes(), "reason of an end");
    let Some(news) = event.news else {
        return Ok(None);
    };
    Ok(Some(match news {
        News::Ending(ending) => {
            let (sandbox, at) = from_execution(ending.at.as_option())?;
            NodeEvent::Ending(sandbox, at, why(&ending)?)
        }
        News::Ended(ending) => {
            let (sandbox, at) = from_execution(ending.at.as_option())?;
            NodeEvent::Ended(sandbox, at, why(&ending)?)
        }
        News::Pausing(pausing) => {
            let (sandbox, at) = from_execution(pausing.at.as_option())?;
            let into = parsed(&pausing.into, "build id")?;
            NodeEvent::Pausing(sandbox, at, into, from_pause_mode(pausing.mode)?)
        }
        News::Paused(paused) => {
            let (sandbox, at) = from_execution(paused.at.as_option())?;
            let into = parsed(&paused.into, "build id")?;
            let outcome = paused.outcome.as_option();
            let outcome = from_pause_outcome(outcome.ok_or(Malformed("outcome of a pause"))?)?;
            NodeEvent::Paused(sandbox, at, into, outcome)
        }
        News::PauseFailed(pausing) => {
            let (sandbox, at) = from_execution(pausing.at.as_option())?;
            NodeEvent::PauseFailed(sandbox, at, parsed(&pausing.into, "build id")?)
        }
    }))
}

pub(crate) fn report_head(report: &Report) -> proto::ReportHead {
    let can = report.capabilities;
    let capabilities = proto::Capabilities {
        durable_memory: can.durable_memory,
        freeze: can.freeze,
        own_kernel: can.own_kernel,
        network: can.network,
        volumes: can.volumes,
        roots: can.roots,
        portable_builds: can.portable_builds,
        ..Default::default()
    };
    proto::ReportHead {
        node: report.node.to_string(),
        runtime: report.runtime.clone(),
        capabilities: Some(capabilities).into(),
        started_at: nanos(report.started_at),
        cpu_total: report.cpu_total,
        memory_total_mib: report.memory_total.0,
        memory_available_mib: report.memory_available.0,
        disk_total_mib: report.disk_total.0,
        disk_available_mib: report.disk_available.0,
        slots_ready: report.slots_ready,
        starting: report.starting,
        accepts: report.accepts,
        draining: report.draining.map(draining).into(),
        protocol_major: PROTOCOL.major,
        protocol_minor: PROTOCOL.minor,
        held: report.held.len() as u64,
        own: report.own.iter().map(own).collect(),
        ..Default::default()
    }
}

/// A report of a node that holds nothing yet.
pub(crate) fn from_report_head(head: &proto::ReportHead, expected: NodeId) -> Read<Report> {
    let node: NodeId = parsed(&head.node, "node id")?;
    if node != expected {
        return Err(Malformed("node id: it is another's"));
    }
    let can = head.capabilities.as_option().cloned().unwrap_or_default();
    Ok(Report {
        node,
        runtime: head.runtime.clone(),
        capabilities: Capabilities {
            durable_memory: can.durable_memory,
            freeze: can.freeze,
            own_kernel: can.own_kernel,
            network: can.network,
            volumes: can.volumes,
            roots: can.roots,
            portable_builds: can.portable_builds,
        },
        started_at: time(head.started_at),
        held: Vec::new(),
        cpu_total: head.cpu_total,
        memory_total: MiB(head.memory_total_mib),
        memory_available: MiB(head.memory_available_mib),
        disk_total: MiB(head.disk_total_mib),
        disk_available: MiB(head.disk_available_mib),
        slots_ready: head.slots_ready,
        starting: head.starting,
        accepts: head.accepts,
        draining: head.draining.as_option().map(from_draining),
        own: head.own.iter().map(from_own).collect::<Read<_>>()?,
    })
}

fn own(own: &Own) -> proto::Own {
    proto::Own {
        sandbox: own.sandbox.to_string(),
        cpu: own.size.cpu,
        memory_mib: own.size.memory.0,
        ..Default::default()
    }
}

fn from_own(own: &proto::Own) -> Read<Own> {
    Ok(Own {
        sandbox: parsed(&own.sandbox, "sandbox id")?,
        size: Size {
            cpu: own.cpu,
            memory: MiB(own.memory_mib),
        },
    })
}

pub(crate) fn draining(how: Draining) -> proto::Draining {
    proto::Draining {
        deadline: nanos(how.deadline),
        kills: how.kills,
        ..Default::default()
    }
}

pub(crate) fn from_draining(how: &proto::Draining) -> Draining {
    Draining {
        deadline: time(how.deadline),
        kills: how.kills,
    }
}

pub(crate) fn held(held: &Held) -> proto::Held {
    proto::Held {
        order: json(&held.order),
        state: text(&held.state),
        pause: held.pause.as_ref().map(pause_outcome).into(),
        ..Default::default()
    }
}

pub(crate) fn from_held(held: &proto::Held) -> Read<Held> {
    Ok(Held {
        order: from_json(&held.order, "order")?,
        state: from_json(held.state.as_bytes(), "state")?,
        pause: held.pause.as_option().map(from_pause_outcome).transpose()?,
    })
}

pub(crate) fn sample(sample: &MetricSample) -> proto::MetricSample {
    proto::MetricSample {
        at: nanos(sample.timestamp),
        cpu_count: sample.cpu_count,
        cpu_used_pct: sample.cpu_used_pct,
        mem_used: sample.mem_used,
        mem_total: sample.mem_total,
        mem_cache: sample.mem_cache,
        disk_used: sample.disk_used,
        disk_total: sample.disk_total,
        ..Default::default()
    }
}

pub(crate) fn from_sample(sample: &proto::MetricSample) -> MetricSample {
    MetricSample {
        timestamp: time(sample.at),
        cpu_count: sample.cpu_count,
        cpu_used_pct: sample.cpu_used_pct,
        mem_used: sample.mem_used,
        mem_total: sample.mem_total,
        mem_cache: sample.mem_cache,
        disk_used: sample.disk_used,
        disk_total: sample.disk_total,
    }
}

pub(crate) fn query(sandbox: SandboxId, query: &LogQuery) -> proto::LogsRequest {
    proto::LogsRequest {
        sandbox: sandbox.to_string(),
        from: query.from.map(nanos),
        limit: u32::try_from(query.limit).unwrap_or(u32::MAX),
        forward: query.forward,
        level: query.level.map(|at_least| level(at_least).into()),
        search: query.search.clone(),
        ..Default::default()
    }
}

pub(crate) fn from_query(query: proto::LogsRequest) -> LogQuery {
    LogQuery {
        from: query.from.map(time),
        limit: usize::try_from(query.limit).unwrap_or(usize::MAX),
        forward: query.forward,
        level: query.level.map(from_level),
        search: query.search,
    }
}

pub(crate) fn line(line: LogLine) -> proto::LogLine {
    proto::LogLine {
        at: nanos(line.timestamp),
        level: level(line.level).into(),
        logger: line.logger,
        message: line.message,
        fields: line.fields.into_iter().collect(),
        ..Default::default()
    }
}

pub(crate) fn from_line(line: proto::LogLine) -> LogLine {
    LogLine {
        timestamp: time(line.at),
        level: from_level(line.level),
        logger: line.logger,
        message: line.message,
        fields: line.fields.into_iter().collect(),
    }
}

pub(crate) fn change(change: Change) -> proto::Change {
    let kind = match change.kind {
        ChangeKind::Added => proto::ChangeKind::CHANGE_KIND_ADDED,
        ChangeKind::Modified => proto::ChangeKind::CHANGE_KIND_MODIFIED,
        ChangeKind::Deleted => proto::ChangeKind::CHANGE_KIND_DELETED,
    };
    proto::Change {
        path: change.path,
        kind: kind.into(),
        file: file_kind(change.file).into(),
        ..Default::default()
    }
}

pub(crate) fn from_change(change: proto::Change) -> Change {
    Change {
        path: change.path,
        kind: match change.kind.as_known() {
            Some(proto::ChangeKind::CHANGE_KIND_ADDED) => ChangeKind::Added,
            Some(proto::ChangeKind::CHANGE_KIND_DELETED) => ChangeKind::Deleted,
            _ => ChangeKind::Modified,
        },
        file: from_file_kind(change.file),
    }
}

#[cfg(test)]
mod tests {
    use buffa::Message as _;
    use ports::node::PauseOutcome;

    use super::*;

    const SANDBOX: &str = "i0123456789abcdefghij";
    const ID: &str = "11111111-2222-4333-8444-555555555555";

    /// An event as protocol 1.0 says it, byte by byte: `Ended` by its time, the seventh of a life.
    fn old_event() -> Vec<u8> {
        let head: &[u8] = &[
            0x09, 42, 0, 0, 0, 0, 0, 0, 0, 0x10, 7, 0x2a, 74, 0x0a, 61, 0x0a, 21,
        ];
        [
            head,
            SANDBOX.as_bytes(),
            &[0x12, 36],
            ID.as_bytes(),
            &[0x12, 9],
            b"\"timeout\"",
        ]
        .concat()
    }

    #[test]
    fn what_protocol_1_0_says_is_understood() {
        let event = proto::Event::decode_from_slice(&old_event()).unwrap();
        assert_eq!((event.life, event.number, event.gap), (42, 7, false));
        let told = from_event(event).unwrap().unwrap();
        let expected = NodeEvent::Ended(SANDBOX.parse().unwrap(), ID.parse().unwrap(), KillReason::Timeout);
        assert_eq!(told, expected);
        // And is said today as it was then.
        assert_eq!(super::event(42, 7, &expected).encode_to_vec(), old_event());

        let outcome = b"\x08\x01\x12\x09\"durable\"\x18\x01";
        let outcome = proto::PauseOutcome::decode_from_slice(outcome).unwrap();
        let expected = PauseOutcome {
            mode: PauseMode::Full,
            memory: model::Memory::Durable,
            envd_unresponsive: true,
        };
        assert_eq!(from_pause_outcome(&outcome), Ok(expected));
    }

    #[test]
    fn a_report_that_says_less_is_understood_as_it_was_meant() {
        let old = [
            &[0x0a, 36][..],
            ID.as_bytes(),
            &[0x12, 9],
            b"container",
            &[0x28, 8],
        ]
        .concat();
        let head = proto::ReportHead::decode_from_slice(&old).unwrap();
        let report = from_report_head(&head, ID.parse().unwrap()).unwrap();
        assert_eq!((report.runtime.as_str(), report.cpu_total), ("container", 8));
        assert!(!report.accepts && !report.capabilities.volumes && report.draining.is_none());
    }

    #[test]
    fn what_a_newer_peer_says_besides_is_passed_over() {
        // Field 99, which nobody has yet.
        let newer = [old_event(), vec![0x98, 0x06, 5]].concat();
        let event = proto::Event::decode_from_slice(&newer).unwrap();
        assert!(matches!(from_event(event), Ok(Some(NodeEvent::Ended(..)))));
        // News of a kind that is not known: field 50.
        let unknown = [&[0x10, 8][..], &[0x92, 0x03, 2, 0x08, 1]].concat();
        let event = proto::Event::decode_from_slice(&unknown).unwrap();
        assert_eq!(event.number, 8);
        assert_eq!(from_event(event), Ok(None));
    }

    #[test]
    fn events_that_cannot_be_are_refused() {
        for (from, to) in [(SANDBOX, "x0123456789abcdefghij"), ("timeout", "fortune")] {
            let text = old_event();
            let at = text
                .windows(from.len())
                .position(|part| part == from.as_bytes())
                .unwrap();
            let mut bytes = text;
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            let event = proto::Event::decode_from_slice(&bytes).unwrap();
            assert!(from_event(event).is_err());
        }
    }
}
