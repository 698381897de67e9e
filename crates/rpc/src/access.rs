//! Who may call what: the one table. What is not in it nobody may.
use crate::identity::Role;

/// Who orders sandboxes about.
const CONTROL: &[Role] = &[Role::Api, Role::Orchestrator];
/// And who may look.
const LOOK: &[Role] = &[Role::Api, Role::Orchestrator, Role::Admin];
/// Who serves the files in volumes.
const FILES: &[Role] = &[Role::Api];
/// Who carries traffic.
const TRAFFIC: &[Role] = &[Role::Edge];

/// Streams into sandboxes, which are no calls: see [`crate::guest`].
pub const DIAL: &str = "atoll.rpc.v1.Guest/Dial";

/// Every method, by its path, with the roles that may call it. A node calls nobody.
pub const TABLE: &[(&str, &[Role])] = &[
    ("atoll.rpc.v1.Node/Start", CONTROL),
    ("atoll.rpc.v1.Node/Pause", CONTROL),
    ("atoll.rpc.v1.Node/Checkpoint", CONTROL),
    ("atoll.rpc.v1.Node/Build", CONTROL),
    ("atoll.rpc.v1.Node/Builds", CONTROL),
    ("atoll.rpc.v1.Node/RemoveBuilds", CONTROL),
    ("atoll.rpc.v1.Node/KinOf", CONTROL),
    ("atoll.rpc.v1.Node/StowBuild", CONTROL),
    ("atoll.rpc.v1.Node/FetchBuild", CONTROL),
    ("atoll.rpc.v1.Node/SweepStowed", CONTROL),
    ("atoll.rpc.v1.Node/Changes", CONTROL),
    ("atoll.rpc.v1.Node/Export", CONTROL),
    ("atoll.rpc.v1.Node/IsHealthy", CONTROL),
    ("atoll.rpc.v1.Node/Kill", CONTROL),
    ("atoll.rpc.v1.Node/CopyPaused", CONTROL),
    ("atoll.rpc.v1.Node/Say", CONTROL),
    ("atoll.rpc.v1.Node/SetAccepts", CONTROL),
    ("atoll.rpc.v1.Node/SetDeadline", CONTROL),
    ("atoll.rpc.v1.Node/SetNetwork", CONTROL),
    ("atoll.rpc.v1.Node/Metrics", CONTROL),
    ("atoll.rpc.v1.Node/Logs", CONTROL),
    ("atoll.rpc.v1.Node/Report", LOOK),
    ("atoll.rpc.v1.Node/Events", CONTROL),
    ("atoll.rpc.v1.Wake/Wake", TRAFFIC),
    ("atoll.rpc.v1.Volumes/Make", CONTROL),
    ("atoll.rpc.v1.Volumes/Discard", CONTROL),
    ("atoll.rpc.v1.Volumes/Held", CONTROL),
    ("atoll.rpc.v1.Volumes/Stat", FILES),
    ("atoll.rpc.v1.Volumes/Change", FILES),
    ("atoll.rpc.v1.Volumes/List", FILES),
    ("atoll.rpc.v1.Volumes/MakeDir", FILES),
    ("atoll.rpc.v1.Volumes/Remove", FILES),
    ("atoll.rpc.v1.Volumes/Read", FILES),
    ("atoll.rpc.v1.Volumes/Write", FILES),
    (DIAL, TRAFFIC),
];

/// Whether a role may call a method, by its path without the `/` before it.
#[must_use]
pub fn may(role: Role, method: &str) -> bool {
    let found = TABLE.iter().find(|(name, _)| *name == method);
    found.is_some_and(|(_, roles)| roles.contains(&role))
}

/// Whether there is such a method. One of a newer peer's may not be.
#[must_use]
pub(crate) fn is_known(method: &str) -> bool {
    TABLE.iter().any(|(name, _)| *name == method)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each role may, in other words than the table's.
    fn expected(role: Role, service: &str, method: &str) -> bool {
        match role {
            Role::Api => matches!(service, "Node" | "Volumes"),
            Role::Orchestrator => {
                service == "Node" || service == "Volumes" && matches!(method, "Make" | "Discard" | "Held")
            }
            Role::Edge => matches!((service, method), ("Guest", "Dial") | ("Wake", "Wake")),
            Role::Admin => (service, method) == ("Node", "Report"),
            Role::Node => false,
        }
    }

    #[test]
    fn each_role_may_call_what_it_needs_and_no_more() {
        for (path, _) in TABLE {
            let (service, method) = path
                .strip_prefix("atoll.rpc.v1.")
                .unwrap()
                .split_once('/')
                .unwrap();
            for role in Role::ALL {
                assert_eq!(may(role, path), expected(role, service, method), "{role} {path}");
            }
        }
    }

    #[test]
    fn every_method_that_is_served_is_in_the_table_once() {
        let proto = include_str!("../../wire/proto/node.proto");
        let mut served = Vec::new();
        let mut service = "";
        for line in proto.lines() {
            if let Some(name) = line.strip_prefix("service ") {
                service = name.trim_end_matches(" {");
            } else if let Some(rest) = line.strip_prefix("  rpc ") {
                served.push(format!(
                    "atoll.rpc.v1.{service}/{}",
                    rest.split('(').next().unwrap()
                ));
            }
        }
        assert!(served.len() > 20);
        served.push(DIAL.to_owned());
        served.sort();
        let mut table: Vec<_> = TABLE.iter().map(|(path, _)| (*path).to_owned()).collect();
        table.sort();
        assert_eq!(table, served);
    }

    #[test]
    fn what_is_not_in_the_table_nobody_may() {
        for role in Role::ALL {
            for path in [
                "",
                "/",
                "atoll.rpc.v1.Node/",
                "atoll.rpc.v1.Node/Format",
                "atoll.rpc.v2.Node/Start",
            ] {
                assert!(!may(role, path));
            }
        }
    }
}
