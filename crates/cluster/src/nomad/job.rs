//! A block as Nomad has it: a job, and the allocation that is its newest.
use std::collections::{BTreeMap, HashMap};

use model::{ClusterName, MiB};
use ports::scheduler::{Ask, Block, BlockId, BlockState, Place, Purpose, Size};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Config;

/// What a dispatched job was asked to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    token: String,
    size: Size,
    zone: Option<String>,
    purpose: Purpose,
}

/// What the ids of all our blocks' jobs begin with.
pub(super) fn prefix(cluster: &ClusterName) -> String {
    format!("{cluster}-block-")
}

/// The job that blocks of a size and a zone are dispatched from.
pub(super) fn parent_id(cluster: &ClusterName, ask: &Ask) -> String {
    let zone = ask
        .zone
        .as_ref()
        .map(|zone| format!("-{zone}"))
        .unwrap_or_default();
    format!(
        "{}{}c-{}m{zone}",
        prefix(cluster),
        ask.size.cpu,
        ask.size.memory.0
    )
}

/// What one block is told that others of its size are not.
pub(super) fn meta(cluster: &ClusterName, ask: &Ask) -> Value {
    let mut meta = json!({
        "atoll_cluster": cluster,
        "atoll_token": ask.token,
        "atoll_cpu": ask.size.cpu.to_string(),
        "atoll_memory_mib": ask.size.memory.0.to_string(),
    });
    if let Some(zone) = &ask.zone {
        meta["atoll_zone"] = zone.clone().into();
    }
    if let Purpose::Sandbox(sandbox) = ask.purpose {
        meta["atoll_sandbox"] = sandbox.to_string().into();
    }
    meta
}

/// The parameterised job of a size and a zone, as Nomad's API takes it.
pub(super) fn parent(config: &Config, ask: &Ask) -> Value {
    let id = parent_id(&config.cluster, ask);
    let datacenters = ask
        .zone
        .as_ref()
        .map_or_else(|| config.datacenters.clone(), |zone| vec![zone.clone()]);
    let nanoseconds = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let usual = || {
        [
            "block",
            "--socket",
            &config.socket,
            "--id",
            "${NOMAD_JOB_ID}",
            "--allocation",
            "${NOMAD_ALLOC_ID}",
            "--cpu",
            "${NOMAD_META_atoll_cpu}",
            "--memory-mib",
            "${NOMAD_META_atoll_memory_mib}",
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let arguments = config.arguments.clone().unwrap_or_else(usual);
    json!({
        "ID": id,
        "Name": id,
        "Type": "batch",
        "Region": config.region,
        "Namespace": config.namespace,
        "Datacenters": datacenters,
        "ParameterizedJob": {
            "Payload": "forbidden",
            "MetaRequired": ["atoll_cluster", "atoll_token", "atoll_cpu", "atoll_memory_mib"],
            "MetaOptional": ["atoll_zone", "atoll_sandbox"],
        },
        "TaskGroups": [{
            "Name": "block",
            "Count": 1,
            // A block that ended has lost what was in it: whoever needs another asks for another.
            "RestartPolicy": { "Attempts": 0, "Mode": "fail" },
            "ReschedulePolicy": { "Attempts": 0, "Unlimited": false },
            "Disconnect": { "LostAfter": nanoseconds(config.lost_after), "Replace": false },
            "EphemeralDisk": { "SizeMB": 10 },
            "Tasks": [{
                "Name": "block",
                "Driver": config.driver,
                "Config": { "command": config.program, "args": arguments },
                "KillTimeout": nanoseconds(config.drain_within),
                "LogConfig": { "MaxFiles": 1, "MaxFileSizeMB": 1 },
                "Resources": {
                    "CPU": u64::from(ask.size.cpu) * u64::from(config.cpu_mhz),
                    "MemoryMB": ask.size.memory.0,
                },
            }],
        }],
    })
}

/// A block that was dispatched this instant.
pub(super) fn waiting(id: String, ask: Ask) -> Block {
    Block {
        id: BlockId(id),
        token: ask.token,
        size: ask.size,
        zone: ask.zone,
        purpose: ask.purpose,
        state: BlockState::Waiting,
        place: None,
        reason: String::new(),
    }
}

/// A job, as lists of jobs tell of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Job {
    #[serde(rename = "ID")]
    pub(super) id: String,
    #[serde(rename = "Status", default)]
    status: String,
    #[serde(rename = "StatusDescription", default)]
    description: String,
    #[serde(rename = "Stop", default)]
    stop: bool,
    #[serde(rename = "Meta", default)]
    pub(super) meta: Option<BTreeMap<String, String>>,
}

/// An allocation, as lists of allocations tell of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Allocation {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "JobID")]
    pub(super) job: String,
    #[serde(rename = "NodeID", default)]
    node: String,
    #[serde(rename = "NodeName", default)]
    node_name: String,
    #[serde(rename = "DesiredStatus", default)]
    desired: String,
    #[serde(rename = "DesiredDescription", default)]
    desired_description: String,
    #[serde(rename = "ClientStatus", default)]
    client: String,
    #[serde(rename = "ClientDescription", default)]
    client_description: String,
    #[serde(rename = "CreateIndex", default)]
    pub(super) created: u64,
}

/// What a job was asked to be, by its metadata; `None` where that is not of this cluster's making.
pub(super) fn asked(cluster: &ClusterName, meta: &BTreeMap<String, String>) -> Option<Asked> {
    if meta.get("atoll_cluster").is_none_or(|of| of != cluster.as_str()) {
        return None;
    }
    let number = |key: &str| meta.get(key)?.parse::<u32>().ok();
    let ask = Ask {
        token: meta.get("atoll_token")?.clone(),
        size: Size {
            cpu: number("atoll_cpu")?,
            memory: MiB(number("atoll_memory_mib")?),
        },
        zone: meta.get("atoll_zone").filter(|zone| !zone.is_empty()).cloned(),
        purpose: match meta.get("atoll_sandbox").filter(|sandbox| !sandbox.is_empty()) {
            Some(sandbox) => Purpose::Sandbox(sandbox.parse().ok()?),
            None => Purpose::Shared,
        },
    };
    ask.check().ok()?;
    Some(Asked {
        token: ask.token,
        size: ask.size,
        zone: ask.zone,
        purpose: ask.purpose,
    })
}

/// What is true of an allocation, by what Nomad wants of it and what its machine says of it.
fn state(desired: &str, client: &str) -> BlockState {
    match (desired, client) {
        (_, "lost") => BlockState::Lost,
        (_, "unknown") => BlockState::Unreachable,
        ("run", "pending") => BlockState::Starting,
        ("run", "running") => BlockState::Running,
        (_, "failed") => BlockState::Failed,
        (_, "complete") => BlockState::Stopped,
        // It is wanted back, and is not over yet. What is not known is not placed into.
        _ => BlockState::Draining,
    }
}

/// The block that a job is, with the newest of its allocations.
pub(super) fn block(job: &Job, asked: &Asked, newest: Option<&Allocation>) -> Block {
    let (state, place, reason) = match newest {
        Some(allocation) => {
            let mut state = state(&allocation.desired, &allocation.client);
            // The job is stopped and Nomad has not yet said so to the allocation.
            if job.stop && matches!(state, BlockState::Starting | BlockState::Running) {
                state = BlockState::Draining;
            }
            let machine = if allocation.node_name.is_empty() {
                &allocation.node
            } else {
                &allocation.node_name
            };
            let place = Place {
                allocation: allocation.id.clone(),
                machine: machine.clone(),
            };
            let reason = match state {
                BlockState::Draining => &allocation.desired_description,
                _ => &allocation.client_description,
            };
            (state, Some(place), reason.clone())
        }
        None if job.stop || job.status == "dead" => (BlockState::Stopped, None, job.description.clone()),
        None => (BlockState::Waiting, None, job.description.clone()),
    };
    Block {
        id: BlockId(job.id.clone()),
        token: asked.token.clone(),
        size: asked.size,
        zone: asked.zone.clone(),
        purpose: asked.purpose,
        state,
        place,
        reason: reason.chars().filter(|c| !c.is_control()).take(300).collect(),
    }
}

/// The newest allocation of each job.
pub(super) fn newest(allocations: &[Allocation]) -> HashMap<&str, &Allocation> {
    let mut newest: HashMap<&str, &Allocation> = HashMap::new();
    for allocation in allocations {
        let known = newest.entry(&allocation.job).or_insert(allocation);
        if known.created < allocation.created {
            *known = allocation;
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nomad_says_of_an_allocation_is_a_state_of_its_block() {
        use BlockState::{Draining, Failed, Lost, Running, Starting, Stopped, Unreachable};
        for (desired, client, expected) in [
            ("run", "pending", Starting),
            ("run", "running", Running),
            ("run", "failed", Failed),
            ("run", "complete", Stopped),
            ("run", "lost", Lost),
            ("run", "unknown", Unreachable),
            ("stop", "pending", Draining),
            ("stop", "running", Draining),
            ("evict", "running", Draining),
            ("stop", "complete", Stopped),
            ("stop", "failed", Failed),
            ("stop", "lost", Lost),
            ("run", "something new", Draining),
        ] {
            assert_eq!(state(desired, client), expected, "{desired} {client}");
        }
    }

    #[test]
    fn metadata_that_is_not_of_our_making_is_no_ask() {
        let ask = Ask {
            token: "t-1".to_owned(),
            size: Size {
                cpu: 2,
                memory: MiB(512),
            },
            zone: Some("dc1".to_owned()),
            purpose: Purpose::Sandbox(model::SandboxId::random()),
        };
        let cluster: ClusterName = "c".parse().unwrap();
        let meta: BTreeMap<String, String> = serde_json::from_value(meta(&cluster, &ask)).unwrap();
        let read = asked(&cluster, &meta).unwrap();
        assert_eq!(
            (read.token, read.size, read.zone, read.purpose),
            (ask.token, ask.size, ask.zone, ask.purpose)
        );
        for (key, value) in [
            ("atoll_cluster", "d"),
            ("atoll_token", "no token"),
            ("atoll_cpu", "0"),
            ("atoll_cpu", "-1"),
            ("atoll_memory_mib", "99999999999"),
            ("atoll_sandbox", "../x"),
            ("atoll_zone", "a b"),
        ] {
            let mut wrong = meta.clone();
            wrong.insert(key.to_owned(), value.to_owned());
            assert_eq!(asked(&cluster, &wrong), None, "{key}={value}");
        }
        assert_eq!(asked(&cluster, &BTreeMap::new()), None);
    }
}
