use model::{NetworkPolicy, Sandbox, SandboxId, TeamId};
use ports::ManagerError;

use crate::orchestrator::Orchestrator;
use crate::timeout::check_runs;

/// What a replacement leaves as it was (contract 3.5): the settings of ingress and of internet access, where they are not
/// given.
fn replaced(old: &NetworkPolicy, new: NetworkPolicy) -> NetworkPolicy {
    NetworkPolicy {
        internet: new.internet.or(old.internet),
        public_traffic: new.public_traffic.or(old.public_traffic),
        mask_host: new.mask_host.or_else(|| old.mask_host.clone()),
        allow: new.allow,
        deny: new.deny,
    }
}

impl Orchestrator {
    /// Replaces the rules of a running sandbox; [`ManagerError::NotFound`] for a paused one.
    #[tracing::instrument(name = "sandbox.network", skip_all, fields(%team, sandbox = %id))]
    pub(crate) async fn replace_network(
        &self,
        team: TeamId,
        id: SandboxId,
        policy: NetworkPolicy,
    ) -> Result<(), ManagerError> {
        let (_locked, sandbox) = self.settled_now(team, id).await?;
        let edit = |sandbox: &mut Sandbox| {
            check_runs(sandbox)?;
            sandbox.network = replaced(&sandbox.network, policy.clone());
            Ok(())
        };
        let sandbox = self.change(sandbox, edit).await?;
        let Some(at) = sandbox.phase.seat() else {
            return Err(ManagerError::NotFound(id));
        };
        let node = self.node(at.node)?;
        let word = node.set_network(id, at.execution, sandbox.network.clone());
        self.tell_node(id, "setting the network", word).await?;
        self.publish_again(&sandbox).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_replaced_and_settings_stay_where_they_are_not_given() {
        let old = NetworkPolicy {
            allow: vec!["1.1.1.1".parse().unwrap()],
            deny: vec!["8.8.8.8".parse().unwrap()],
            internet: Some(false),
            public_traffic: Some(false),
            mask_host: Some("localhost".parse().unwrap()),
        };
        let cleared = replaced(&old, NetworkPolicy::default());
        assert_eq!(
            cleared,
            NetworkPolicy {
                allow: Vec::new(),
                deny: Vec::new(),
                ..old.clone()
            }
        );
        let opened = replaced(
            &old,
            NetworkPolicy {
                internet: Some(true),
                ..NetworkPolicy::default()
            },
        );
        assert_eq!(
            (opened.internet, opened.public_traffic),
            (Some(true), Some(false))
        );
    }
}
