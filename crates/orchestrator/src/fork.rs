//! Copies of a running sandbox that run beside it (contract 3.5).
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use model::{SandboxId, Seat, Settings, Team, TeamId};
use ports::manager::Granted;
use ports::{ManagerError, Node};
use tokio::time::Instant;

use crate::bring_up::Flow;
use crate::checkpoint::Copied;
use crate::create::Design;
use crate::orchestrator::Orchestrator;
use crate::quota::check_life;

/// The most copies that one request may ask for (contract 3.5).
const COUNT_MAX: u32 = 100;
/// Copies that are started at once: enough to keep a small machine busy, few enough for each to come up in time.
const AT_ONCE: usize = 16;

fn check_count(count: u32, team: &Team) -> Result<(), ManagerError> {
    let most = team.quota.sandboxes;
    let wrong = match count {
        0 => "Count must be at least 1".to_owned(),
        _ if count > COUNT_MAX => format!("Count cannot be greater than {COUNT_MAX}"),
        // The source keeps its own place, so they can never all run.
        _ if count >= most => {
            format!("Count must be lower than the maximum number of concurrent sandboxes ({most})")
        }
        _ => return Ok(()),
    };
    Err(ManagerError::Invalid(wrong))
}

/// What each copy is made as: the source in everything but its name, its tokens and its time.
fn design(copied: &Copied, timeout: Duration) -> Design {
    let source = copied.source.clone();
    Design {
        id: None,
        template: source.template,
        build: copied.build,
        alias: source.alias,
        settings: Settings {
            resources: source.resources,
            memory: copied.memory,
            home: copied.home(),
            ..source.settings
        },
        timeout,
        lifecycle: source.lifecycle,
        secure: source.secure,
        network: source.network,
        metadata: source.metadata,
        env: source.env,
        volumes: source.volumes,
    }
}

impl Orchestrator {
    /// Starts copies of a running sandbox, which goes on.
    #[tracing::instrument(name = "sandbox.fork", skip_all, fields(%team, sandbox = %id, count))]
    pub(crate) async fn fork_sandbox(
        &self,
        team: TeamId,
        id: SandboxId,
        count: u32,
        timeout: Duration,
    ) -> Result<Vec<Result<Granted, ManagerError>>, ManagerError> {
        let began = Instant::now();
        let team = self.team(team).await?;
        check_count(count, &team)?;
        check_life(&team.quota, timeout)?;
        let copied = self.copy(team.id, id, true, ManagerError::ForkPaused).await?;
        let design = design(&copied, timeout);
        let home = copied.source.phase.seat().map(|Seat { node, .. }| node);
        let _using = self.go_on(copied).await;
        failpoint::reach("orchestrator/fork-copied");
        // The copy is on the source's node, and nowhere else.
        let node = self.node(home.expect("what is copied has a seat"))?;
        let volumes: Vec<_> = design.volumes.iter().map(|mount| mount.volume).collect();
        let _mounting = self.mounts.take_all(&volumes);
        let copies = (0..count).map(|_| self.fork_one(node.as_ref(), &team, &design).boxed());
        let outcomes = stream::iter(copies).buffered(AT_ONCE).collect().await;
        metrics::histogram!("atoll_sandbox_fork_seconds").record(began.elapsed());
        Ok(outcomes)
    }

    /// Starts one copy, with its own share of the quota.
    async fn fork_one(&self, node: &dyn Node, team: &Team, design: &Design) -> Result<Granted, ManagerError> {
        let start = async {
            let _start = self.begin_start()?;
            self.take_start(team.id, team.quota.creates_per_second).await?;
            let created = self.create_on(Flow::Fork, node, team, design).await;
            let sandbox = created.map_err(|(id, error)| error.public(id))?;
            self.count_spawn(&sandbox);
            Ok(self.tokens().await?.grant(sandbox))
        };
        start.await.inspect_err(crate::failure::logged(team.id, None))
    }
}

#[cfg(test)]
mod tests {
    use model::Quota;
    use ports::store::contract;

    use super::*;

    fn check(count: u32, sandboxes: u32, wrong: Option<&str>) {
        let mut team = contract::team("acme");
        team.quota = Quota {
            sandboxes,
            ..Quota::default()
        };
        let told = check_count(count, &team).err().map(|error| error.to_string());
        assert_eq!(told.as_deref(), wrong);
    }

    #[test]
    fn a_fork_has_at_least_one_copy_and_fewer_than_the_team_may_run() {
        check(0, 10, Some("Count must be at least 1"));
        check(1, 10, None);
        check(9, 10, None);
        check(
            10,
            10,
            Some("Count must be lower than the maximum number of concurrent sandboxes (10)"),
        );
        check(100, 1000, None);
        check(101, 1000, Some("Count cannot be greater than 100"));
    }
}
