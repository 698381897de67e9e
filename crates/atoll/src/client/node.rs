//! `atoll node`.
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use sdk::Client;
use serde_json::json;
use wire::rest::{Node, NodeDrain, NodeStatusChange};

use super::table;
use crate::out;

/// How often it is looked how far a node is.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What can be done with the machines that run sandboxes. For operators: `ATOLL_ADMIN_TOKEN` must be the server's.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Lists the nodes.
    List,
    /// Lets a node take no new sandboxes; it keeps those that it has.
    Cordon {
        /// Its id, or the beginning of it.
        node: String,
    },
    /// Lets a node take new sandboxes again, also where it was to be emptied.
    Uncordon {
        /// Its id, or the beginning of it.
        node: String,
    },
    /// Empties a node: what can be had on another one is moved, the rest is waited for.
    Drain(DrainArgs),
}

/// How a node is emptied.
#[derive(Args)]
pub(crate) struct DrainArgs {
    /// Its id, or the beginning of it.
    node: String,
    /// For how long what cannot be moved as it is is waited for, in seconds. Then it is moved by its disk, and its processes end.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    within: u64,
    /// Kills what is there then and cannot be moved at all; else the node keeps it.
    #[arg(long)]
    kill: bool,
    /// Waits until nothing more is to be done. Fails where something is left.
    #[arg(long)]
    wait: bool,
}

impl Command {
    pub(crate) async fn run(self, api: &Client, json: bool) -> Result<ExitCode> {
        let (node, status) = match self {
            Command::List => {
                list(&api.nodes().await?, json)?;
                return Ok(ExitCode::SUCCESS);
            }
            Command::Drain(drain) => return drain.run(api, json).await,
            Command::Cordon { node } => (node, "cordoned"),
            Command::Uncordon { node } => (node, "ready"),
        };
        let id = find(&api.nodes().await?, &node)?;
        let change = NodeStatusChange {
            status: status.to_owned(),
            ..NodeStatusChange::default()
        };
        api.change_node(&id, &change).await?;
        out::say(match status {
            "ready" => format!("{id} takes new sandboxes"),
            _ => format!("{id} takes no new sandboxes, and keeps those that it has"),
        });
        if json {
            out::json(&json!({ "nodeID": id, "status": status }))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl DrainArgs {
    async fn run(self, api: &Client, json: bool) -> Result<ExitCode> {
        let id = find(&api.nodes().await?, &self.node)?;
        let change = NodeStatusChange {
            status: "draining".to_owned(),
            within_seconds: Some(self.within),
            kill: Some(self.kill),
        };
        api.change_node(&id, &change).await?;
        out::say(format_args!(
            "{id} takes no new sandboxes, and is being emptied; `atoll node uncordon {id}` takes that back"
        ));
        let drain = match self.wait {
            true => Some(until_over(api, &id).await?),
            false => api.node(&id).await?.drain,
        };
        if json {
            out::json(&json!({ "nodeID": id, "status": "draining", "drain": drain }))?;
        }
        let Some(drain) = drain.filter(|_| self.wait) else {
            return Ok(ExitCode::SUCCESS);
        };
        if drain.left > 0 {
            bail!(
                "{} sandboxes are left on {id}, which cannot be moved: wait for them, kill them, or drain it with --kill",
                drain.left
            );
        }
        out::say(format_args!("{id} can be taken away: {}", words(&drain)));
        Ok(ExitCode::SUCCESS)
    }
}

/// Looks until nothing more is done, and says what changes.
async fn until_over(api: &Client, id: &str) -> Result<NodeDrain> {
    let mut said = String::new();
    loop {
        let Some(drain) = api.node(id).await?.drain else {
            bail!("{id} is not to be emptied any more: somebody thought better of it");
        };
        if drain.is_over {
            return Ok(drain);
        }
        let words = words(&drain);
        if words != said {
            out::say(&words);
            said = words;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How far it is.
fn words(drain: &NodeDrain) -> String {
    let counts = [
        (drain.moving, "being moved"),
        (drain.waiting, "waited for"),
        (drain.left, "left"),
        (drain.carried, "paused, and had elsewhere by their disks"),
    ];
    let there: Vec<_> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let mut words = if there.is_empty() {
        "nothing is there".to_owned()
    } else {
        there.join(", ")
    };
    if drain.waiting > 0 {
        let at: Option<SystemTime> = humantime::parse_rfc3339(&drain.deadline).ok();
        match at.map(|at| at.duration_since(SystemTime::now())) {
            Some(Ok(_)) => words.push_str(&format!(", until {}", drain.deadline)),
            _ => words.push_str(", past the deadline"),
        }
    }
    words
}

/// The one node whose id begins so.
fn find(nodes: &[Node], named: &str) -> Result<String> {
    let found: Vec<_> = nodes
        .iter()
        .filter(|node| !named.is_empty() && node.node_id.starts_with(named))
        .collect();
    match &found[..] {
        [one] => Ok(one.node_id.clone()),
        [] => {
            bail!("no node of the fleet has an id that begins with '{named}'; `atoll node list` shows them")
        }
        _ => bail!(
            "the ids of {} nodes begin with '{named}': give more of it",
            found.len()
        ),
    }
}

fn list(nodes: &[Node], json: bool) -> Result<()> {
    if json {
        return out::json(&nodes);
    }
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            [
                node.node_id.clone(),
                node.status.clone(),
                node.runtime.clone(),
                node.sandbox_count.to_string(),
                node.paused_count.to_string(),
                node.cpu_count.to_string(),
                format!("{}/{}", node.memory_available_mb, node.memory_total_mb),
                format!("{}/{}", node.disk_available_mb, node.disk_total_mb),
            ]
        })
        .collect();
    let headings = [
        "ID",
        "STATUS",
        "RUNTIME",
        "RUNNING",
        "PAUSED",
        "CPUS",
        "MEMORY FREE MIB",
        "DISK FREE MIB",
    ];
    table::print(headings, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> Node {
        let text = json!({
            "nodeID": id, "status": "ready", "runtime": "container", "sandboxCount": 0, "pausedCount": 0,
            "sandboxStartingCount": 0, "slotsReady": 0, "cpuCount": 1, "memoryTotalMB": 1, "memoryAvailableMB": 1,
            "diskTotalMB": 1, "diskAvailableMB": 1, "startedAt": "1970-01-01T00:00:00Z",
            "capabilities": {
                "durableMemory": true, "freeze": true, "ownKernel": false, "network": true, "volumes": true, "roots": true,
                "portableBuilds": true,
            },
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_node_is_named_by_as_much_of_its_id_as_tells_it_from_others() {
        let nodes = [node("aa11"), node("aa22"), node("bb33")];
        assert_eq!(find(&nodes, "b").unwrap(), "bb33");
        assert_eq!(find(&nodes, "aa22").unwrap(), "aa22");
        for (named, why) in [
            ("aa", "2 nodes"),
            ("c", "no node"),
            ("", "no node"),
            ("aa111", "no node"),
        ] {
            let refused = find(&nodes, named).unwrap_err().to_string();
            assert!(refused.contains(why), "{named}: {refused}");
        }
    }

    #[test]
    fn it_is_said_what_is_waited_for_and_until_when() {
        let mut drain = NodeDrain {
            deadline: "2999-01-01T00:00:00Z".to_owned(),
            kill: false,
            moving: 1,
            waiting: 2,
            left: 0,
            carried: 3,
            is_over: false,
        };
        let expected = "1 being moved, 2 waited for, 3 paused, and had elsewhere by their disks, until 2999-01-01T00:00:00Z";
        assert_eq!(words(&drain), expected);
        drain.deadline = "1999-01-01T00:00:00Z".to_owned();
        assert!(words(&drain).ends_with("past the deadline"));
        (drain.moving, drain.waiting, drain.carried) = (0, 0, 0);
        assert_eq!(words(&drain), "nothing is there");
    }
}
