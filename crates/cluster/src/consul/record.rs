//! How an instance is written into Consul, and read from it.
use std::collections::BTreeMap;
use std::time::Duration;

use model::{ClusterName, MiB};
use ports::discovery::{Capacity, Check, Found, Health, Instance, Role};
use serde::Deserialize;
use serde_json::{Value, json};

/// Bytes of what checks say that are passed on.
const NOTES_BYTES_MAX: usize = 512;

/// A time as Consul reads it.
pub(super) fn time(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// The id of a service at its agent: neither clusters nor roles have a dot in their names, so no two are the same.
pub(super) fn service_id(cluster: &ClusterName, role: Role, id: &str) -> String {
    format!("{cluster}.{role}.{id}")
}

/// What the agent is told of an instance.
pub(super) fn registration(
    cluster: &ClusterName,
    instance: &Instance,
    check: Option<(&Check, Health, &str)>,
    owner: Option<&str>,
    forget_after: Duration,
) -> Value {
    let mut meta: BTreeMap<&str, String> = BTreeMap::new();
    for (key, value) in &instance.meta {
        meta.insert(key, value.clone());
    }
    meta.insert("atoll_cluster", cluster.to_string());
    meta.insert("atoll_role", instance.role.to_string());
    meta.insert("atoll_zone", instance.zone.clone());
    meta.insert("atoll_version", instance.version.clone());
    if let Some(capacity) = instance.capacity {
        meta.insert("atoll_cpu", capacity.cpu.to_string());
        meta.insert("atoll_memory_mib", capacity.memory.0.to_string());
        meta.insert("atoll_disk_mib", capacity.disk.0.to_string());
    }
    if let Some(owner) = owner {
        meta.insert("atoll_owner", owner.to_owned());
    }
    let mut tags = vec![format!("cluster-{cluster}")];
    if !instance.zone.is_empty() {
        tags.push(format!("zone-{}", instance.zone));
    }
    let mut body = json!({
        "ID": service_id(cluster, instance.role, &instance.id),
        "Name": format!("{cluster}-{}", instance.role),
        "Tags": tags,
        "Address": instance.address,
        "Port": instance.port,
        "Meta": meta,
    });
    if let Some((check, health, notes)) = check {
        let mut written = json!({ "DeregisterCriticalServiceAfter": time(forget_after) });
        match check {
            Check::Ttl(ttl) => {
                written["TTL"] = time(*ttl).into();
                written["Status"] = status(health).into();
                written["Notes"] = notes.into();
            }
            Check::Http { url, every, within } => {
                written["HTTP"] = url.clone().into();
                written["Interval"] = time(*every).into();
                written["Timeout"] = time(*within).into();
            }
        }
        body["Check"] = written;
    }
    body
}

/// Health as Consul calls it.
pub(super) const fn status(health: Health) -> &'static str {
    match health {
        Health::Passing => "passing",
        Health::Warning => "warning",
        Health::Critical => "critical",
    }
}

fn health(status: &str) -> Health {
    match status {
        "passing" => Health::Passing,
        "warning" => Health::Warning,
        // What is not known is not used.
        _ => Health::Critical,
    }
}

/// A service, as the health of services and the agent tell of it.
#[derive(Debug, Deserialize)]
pub(super) struct Service {
    #[serde(rename = "ID")]
    pub(super) id: String,
    #[serde(rename = "Address", default)]
    address: String,
    #[serde(rename = "Port", default)]
    port: u16,
    #[serde(rename = "Meta", default)]
    pub(super) meta: Option<BTreeMap<String, String>>,
    #[serde(rename = "ModifyIndex", default)]
    pub(super) modified: u64,
}

#[derive(Debug, Deserialize)]
struct Node {
    #[serde(rename = "Address", default)]
    address: String,
}

#[derive(Debug, Deserialize)]
struct Checked {
    #[serde(rename = "CheckID", default)]
    id: String,
    #[serde(rename = "Status", default)]
    status: String,
    #[serde(rename = "Output", default)]
    output: String,
    #[serde(rename = "Notes", default)]
    notes: String,
}

/// An entry of the health of a service.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    #[serde(rename = "Node")]
    node: Node,
    #[serde(rename = "Service")]
    pub(super) service: Service,
    #[serde(rename = "Checks", default)]
    checks: Option<Vec<Checked>>,
}

/// The instance that an entry tells of, and how it is. Whoever may write to Consul wrote it: nothing is believed that an instance could
/// not have said.
///
/// # Errors
/// Why it is left out.
pub(super) fn found(cluster: &ClusterName, role: Role, entry: Entry) -> Result<Found, String> {
    let mut meta = entry.service.meta.unwrap_or_default();
    let own = meta.remove("atoll_cluster").unwrap_or_default();
    if own != cluster.as_str() {
        return Err(format!("it is of the cluster {own:?}"));
    }
    if meta.remove("atoll_role").as_deref() != Some(role.as_str()) {
        return Err("it is of another role".to_owned());
    }
    let prefix = service_id(cluster, role, "");
    let id = entry.service.id.strip_prefix(&prefix);
    let id = id.ok_or("its id is not of our making")?.to_owned();
    let mut number = |key: &str| {
        let text = meta.remove(key);
        text.map(|text| text.parse::<u32>().map_err(|_| format!("{key} is no number")))
            .transpose()
    };
    let (cpu, memory, disk) = (
        number("atoll_cpu")?,
        number("atoll_memory_mib")?,
        number("atoll_disk_mib")?,
    );
    let capacity = cpu.map(|cpu| Capacity {
        cpu,
        memory: MiB(memory.unwrap_or(0)),
        disk: MiB(disk.unwrap_or(0)),
    });
    let zone = meta.remove("atoll_zone").unwrap_or_default();
    let version = meta.remove("atoll_version").unwrap_or_default();
    meta.retain(|key, _| !key.starts_with("atoll_"));
    let address = if entry.service.address.is_empty() {
        entry.node.address
    } else {
        entry.service.address
    };
    let instance = Instance {
        id,
        role,
        address,
        port: entry.service.port,
        zone,
        version,
        capacity,
        meta,
    };
    instance.check().map_err(|error| error.to_string())?;
    let (mut worst, mut notes) = (Health::Passing, String::new());
    for check in entry.checks.unwrap_or_default() {
        // Who is in maintenance is not used, whatever else is said.
        let is_away = check.id == "_node_maintenance" || check.id.starts_with("_service_maintenance");
        let health = if is_away {
            Health::Critical
        } else {
            health(&check.status)
        };
        worst = worst.max(health);
        if health != Health::Passing && notes.len() < NOTES_BYTES_MAX {
            // An output that changes alone is told by Consul within five minutes; what was registered with is there at once.
            let said = if check.output.is_empty() {
                &check.notes
            } else {
                &check.output
            };
            let plain = said.chars().filter(|c| !c.is_control());
            notes.extend(plain.take(NOTES_BYTES_MAX));
            notes.push(' ');
        }
    }
    let notes = notes.trim().chars().take(NOTES_BYTES_MAX).collect();
    Ok(Found {
        instance,
        health: worst,
        notes,
    })
}
