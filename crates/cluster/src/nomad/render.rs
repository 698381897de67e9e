//! The jobs that deploy Atoll itself: rendered, never written by hand.
use std::collections::BTreeSet;

use hcl::{Body, Value};
use model::ClusterName;

use crate::peer::is_name;

mod hcl;

/// A role that is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Api,
    Edge,
    Orchestrator,
    Node,
}

impl Role {
    const ALL: [Self; 4] = [Self::Api, Self::Edge, Self::Orchestrator, Self::Node];

    const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Edge => "edge",
            Self::Orchestrator => "orchestrator",
            Self::Node => "node",
        }
    }
}

/// Where the roles find their configuration, secrets of databases among it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Configuration {
    /// A file on every machine, which root alone may read.
    File(String),
    /// The item `config` of Nomad's variable `nomad/jobs/<job>`, written where the task alone may read it. Jobs are restarted when it
    /// changes.
    Variable,
}

/// What one role takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// How many; nothing for nodes, of which each machine has one.
    pub count: u32,
    /// In MHz, as Nomad counts.
    pub cpu_mhz: u32,
    /// Memory.
    pub memory_mib: u32,
}

/// How Atoll is deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// Which cluster: the jobs begin with its name.
    pub cluster: ClusterName,
    /// The region; the agent's own where none is named.
    pub region: Option<String>,
    /// The namespace.
    pub namespace: Option<String>,
    /// Nomad's datacentres, or `*`.
    pub datacenters: Vec<String>,
    /// The pool of machines that run sandboxes, and that of all others.
    pub node_pools: (String, String),
    /// The program of Atoll's on the machines.
    pub program: String,
    /// Where its configuration is.
    pub configuration: Configuration,
    /// Where nodes keep their data.
    pub data: String,
    /// Where the API listens.
    pub api_port: u16,
    /// Where the edges listen.
    pub edge_port: u16,
    /// Where nodes listen to the other roles, as their configuration has it.
    pub rpc_port: u16,
    /// What the API's replicas take.
    pub api: Share,
    /// What the edges take.
    pub edge: Share,
    /// What the orchestrators take.
    pub orchestrator: Share,
    /// What the daemon of each node takes: not its sandboxes.
    pub node: Share,
    /// Replicas of a new version that are watched before the others follow: 0 to do without.
    pub canaries: u32,
    /// Whether the others follow by themselves.
    pub auto_promote: bool,
}

impl Default for Deployment {
    fn default() -> Self {
        let share = |count, cpu_mhz, memory_mib| Share {
            count,
            cpu_mhz,
            memory_mib,
        };
        Self {
            cluster: "atoll".parse().expect("it is a name"),
            region: None,
            namespace: None,
            datacenters: vec!["*".to_owned()],
            node_pools: ("default".to_owned(), "default".to_owned()),
            program: "/usr/local/bin/atoll".to_owned(),
            configuration: Configuration::File("/etc/atoll/atoll.toml".to_owned()),
            data: "/var/lib/atoll".to_owned(),
            api_port: 3000,
            edge_port: 3002,
            rpc_port: 5008,
            api: share(2, 500, 512),
            edge: share(2, 1000, 512),
            orchestrator: share(2, 500, 512),
            node: share(0, 1000, 1024),
            canaries: 1,
            auto_promote: true,
        }
    }
}

/// A rendered file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its name, without a directory.
    pub name: String,
    /// What it says.
    pub content: String,
}

/// A deployment that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be {value:?}: {rule}")]
pub struct RenderError {
    what: &'static str,
    value: String,
    rule: &'static str,
}

/// Renders the jobs of a deployment: `migrate.nomad.hcl`, which is run first, then one for each role.
///
/// # Errors
/// Something of it cannot be: nothing is rendered that Nomad would refuse, or understand as something else.
pub fn render(deployment: &Deployment) -> Result<Vec<File>, RenderError> {
    deployment.check()?;
    let mut files = vec![File {
        name: "migrate.nomad.hcl".to_owned(),
        content: deployment.migrations(),
    }];
    files.extend(Role::ALL.map(|role| File {
        name: format!("{}.nomad.hcl", role.name()),
        content: deployment.role(role),
    }));
    Ok(files)
}

const HEAD: &str = "# Rendered by `atoll deploy nomad`: changes are lost when it is rendered again.";

impl Deployment {
    fn check(&self) -> Result<(), RenderError> {
        let wrong = |what, value: &str, rule| {
            let value = value.to_owned();
            Err(RenderError { what, value, rule })
        };
        let named = [
            ("the region", self.region.as_ref()),
            ("the namespace", self.namespace.as_ref()),
            ("the pool of machines for sandboxes", Some(&self.node_pools.0)),
            ("the pool of other machines", Some(&self.node_pools.1)),
        ];
        for (what, name) in named {
            if let Some(name) = name.filter(|name| !is_name(name)) {
                return wrong(what, name, "letters in lower case, digits and -, not too many");
            }
        }
        if self.datacenters.is_empty() || self.datacenters.len() > 64 {
            return wrong(
                "the list of datacentres",
                &self.datacenters.join(","),
                "1 to 64 of them",
            );
        }
        if let Some(name) = self.datacenters.iter().find(|dc| *dc != "*" && !is_name(dc)) {
            return wrong(
                "a datacentre",
                name,
                "letters in lower case, digits and -, or * alone",
            );
        }
        let mut paths = vec![("the program", &self.program), ("the nodes' data", &self.data)];
        if let Configuration::File(path) = &self.configuration {
            paths.push(("the configuration", path));
        }
        for (what, path) in paths {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.');
            let is_path = path.starts_with('/')
                && path.len() <= 255
                && path.bytes().all(plain)
                && !path.split('/').any(|part| part == "..");
            if !is_path {
                return wrong(what, path, "an absolute path of letters, digits, - _ . and /");
            }
        }
        let ports = [self.api_port, self.edge_port, self.rpc_port];
        if ports.contains(&0) || BTreeSet::from(ports).len() < ports.len() {
            return wrong(
                "the list of ports",
                &format!("{ports:?}"),
                "three that differ, and none of them 0",
            );
        }
        for role in Role::ALL {
            let share = self.share(role);
            let counts = if role == Role::Node { 0..=0 } else { 1..=1000 };
            if !counts.contains(&share.count) {
                return wrong(
                    "a count",
                    &format!("{} of {}", share.count, role.name()),
                    "1 to 1000; 0 for nodes",
                );
            }
            if !(50..=1_000_000).contains(&share.cpu_mhz) || !(64..=1 << 22).contains(&share.memory_mib) {
                let value = format!(
                    "{} MHz and {} MiB of {}",
                    share.cpu_mhz,
                    share.memory_mib,
                    role.name()
                );
                return wrong("a share", &value, "50 to 1000000 MHz and 64 to 4194304 MiB");
            }
            if role != Role::Node && self.canaries > share.count {
                return wrong(
                    "the number of canaries",
                    &self.canaries.to_string(),
                    "no more than of any role",
                );
            }
        }
        Ok(())
    }

    const fn share(&self, role: Role) -> Share {
        match role {
            Role::Api => self.api,
            Role::Edge => self.edge,
            Role::Orchestrator => self.orchestrator,
            Role::Node => self.node,
        }
    }

    /// The beginning of every job.
    fn job(&self, name: &str, kind: &str, pool: &str, fill: impl FnOnce(&mut Body)) -> String {
        let mut file = Body::default();
        file.block("job", Some(&format!("{}-{name}", self.cluster)), |job| {
            if let Some(region) = &self.region {
                job.set("region", region.as_str());
            }
            if let Some(namespace) = &self.namespace {
                job.set("namespace", namespace.as_str());
            }
            job.set("type", kind)
                .set("datacenters", self.datacenters.as_slice())
                .set("node_pool", pool);
            fill(job);
        });
        format!("{HEAD}\n{}", file.done())
    }

    /// Where a task finds its configuration, and what brings it there.
    fn configured(&self, task: &mut Body, job: &str) -> Value {
        match &self.configuration {
            Configuration::File(path) => Value::Text(path.clone()),
            Configuration::Variable => {
                let lines =
                    format!("{{{{ with nomadVar \"nomad/jobs/{job}\" }}}}{{{{ .config }}}}{{{{ end }}}}");
                task.block("template", None, |template| {
                    template
                        .set("data", Value::Lines(lines))
                        .set(
                            "destination",
                            Value::Filled("${NOMAD_SECRETS_DIR}/atoll.toml".to_owned()),
                        )
                        .set("perms", "0600")
                        .set("change_mode", "restart")
                        .set("error_on_missing_key", true);
                });
                Value::Filled("${NOMAD_SECRETS_DIR}/atoll.toml".to_owned())
            }
        }
    }

    fn migrations(&self) -> String {
        let job_name = format!("{}-migrate", self.cluster);
        self.job("migrate", "batch", &self.node_pools.1, |job| {
            job.block("group", Some("migrate"), |group| {
                // One that failed tells so, and is run again by whoever has read why.
                group.block("restart", None, |restart| {
                    restart.set("attempts", 0).set("mode", "fail");
                });
                group.block("reschedule", None, |reschedule| {
                    reschedule.set("attempts", 0).set("unlimited", false);
                });
                group.block("task", Some("migrate"), |task| {
                    task.set("driver", "raw_exec");
                    let configuration = self.configured(task, &job_name);
                    let arguments = vec!["migrate".into(), "--config".into(), configuration];
                    task.block("config", None, |config| {
                        config
                            .set("command", self.program.as_str())
                            .set("args", Value::List(arguments));
                    });
                    task.block("resources", None, |resources| {
                        resources.set("cpu", 500).set("memory", 256);
                    });
                });
            });
        })
    }

    fn role(&self, role: Role) -> String {
        let (kind, pool) = match role {
            Role::Node => ("system", &self.node_pools.0),
            _ => ("service", &self.node_pools.1),
        };
        self.job(role.name(), kind, pool, |job| {
            job.block("update", None, |update| {
                update
                    .set("max_parallel", 1)
                    .set("health_check", "checks")
                    .set("min_healthy_time", "10s")
                    .set("healthy_deadline", "5m");
                if role != Role::Node {
                    update
                        .set("progress_deadline", "10m")
                        .set("auto_revert", true)
                        .set("auto_promote", self.auto_promote && self.canaries > 0)
                        .set("canary", self.canaries);
                }
            });
            job.block("group", Some(role.name()), |group| self.group(group, role));
        })
    }

    fn group(&self, group: &mut Body, role: Role) {
        let share = self.share(role);
        if role != Role::Node {
            group.set("count", share.count);
            // Their ports are fixed, and what fails together should not be all of a role.
            group.block("constraint", None, |constraint| {
                constraint.set("operator", "distinct_hosts").set("value", "true");
            });
        }
        group.block("network", None, |network| {
            network.block("port", Some("admin"), |_| {});
            if role == Role::Node {
                network.block("port", Some("rpc"), |port| {
                    port.set("static", u32::from(self.rpc_port));
                });
            }
            let listens = match role {
                Role::Api => Some(self.api_port),
                Role::Edge => Some(self.edge_port),
                Role::Orchestrator | Role::Node => None,
            };
            if let Some(listens) = listens {
                network.block("port", Some("http"), |port| {
                    port.set("static", u32::from(listens));
                });
            }
        });
        // The health of the daemon is told on loopback alone, where the machine's own Consul asks for it. What others reach it by, the
        // daemon registers itself.
        let health = format!("{}-{}-health", self.cluster, role.name());
        group.block("service", None, |service| {
            service
                .set("name", health.as_str())
                .set("provider", "consul")
                .set("port", "admin")
                .set("address", "127.0.0.1");
            service.block("check", None, |check| {
                check
                    .set("type", "http")
                    .set("path", "/health/ready")
                    .set("interval", "5s")
                    .set("timeout", "2s");
            });
        });
        group.block("restart", None, |restart| {
            restart
                .set("attempts", 10)
                .set("interval", "10m")
                .set("delay", "5s")
                .set("mode", "delay");
        });
        group.block("task", Some(role.name()), |task| self.task(task, role));
    }

    fn task(&self, task: &mut Body, role: Role) {
        task.set("driver", "raw_exec")
            .set("kill_signal", "SIGTERM")
            .set("kill_timeout", "30s");
        let configuration = self.configured(task, &format!("{}-{}", self.cluster, role.name()));
        let data = match role {
            Role::Node => Value::Text(self.data.clone()),
            // Nothing of theirs outlives them.
            _ => Value::Filled("${NOMAD_TASK_DIR}/data".to_owned()),
        };
        let filled = |text: &str| Value::Filled(text.to_owned());
        let mut arguments = vec![
            "serve".into(),
            role.name().into(),
            "--config".into(),
            configuration,
            "--data-dir".into(),
            data,
            "--admin-listen".into(),
            filled("127.0.0.1:${NOMAD_PORT_admin}"),
        ];
        // Behind it stands what ends TLS, unless the configuration names certificates.
        match role {
            Role::Api => arguments.extend([
                "--api-listen".into(),
                filled("${NOMAD_IP_http}:${NOMAD_PORT_http}"),
            ]),
            Role::Edge => {
                arguments.extend([
                    "--edge-listen".into(),
                    filled("${NOMAD_IP_http}:${NOMAD_PORT_http}"),
                ]);
            }
            Role::Orchestrator | Role::Node => {}
        }
        task.block("config", None, |config| {
            config
                .set("command", self.program.as_str())
                .set("args", Value::List(arguments));
        });
        task.block("env", None, |env| {
            env.set("ATOLL_LOG_JSON", "true");
        });
        let share = self.share(role);
        task.block("resources", None, |resources| {
            resources
                .set("cpu", share.cpu_mhz)
                .set("memory", share.memory_mib);
        });
    }
}

#[cfg(test)]
mod tests;
