//! What a machine of this runtime can be given. The rest is refused by name, before anything is made.
use model::NetworkPolicy;
use ports::MachineSpec;

/// More than any host has; above it are mistakes.
const CPUS_MAX: u32 = 32;
/// Below it a kernel and its initramfs do not come up.
const MEMORY_MIN_MIB: u32 = 64;

/// What of a spec is not offered.
pub(crate) fn refused(spec: &MachineSpec, network: Offered, has_volumes: bool) -> Option<String> {
    if !spec.volumes.is_empty() && !has_volumes {
        return Some("volumes without root".to_owned());
    }
    if let Err(bad) = volumes::checked(&spec.volumes) {
        return Some(bad.to_string());
    }
    if spec.resources.cpu == 0 || spec.resources.cpu > CPUS_MAX {
        return Some(format!("{} vCPUs: 1 to {CPUS_MAX}", spec.resources.cpu));
    }
    if spec.resources.memory.0 < MEMORY_MIN_MIB {
        return Some(format!(
            "{} of memory: at least {MEMORY_MIN_MIB} MiB",
            spec.resources.memory
        ));
    }
    refused_network(&spec.network, network)
}

/// Which policies are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offered {
    /// All: there is a network, and a firewall before it.
    Network,
    /// Those that deny. Machines have a network card on a wire that leads nowhere.
    Nothing {
        /// Whether the operator agreed that who may reach the internet does not.
        agreed: bool,
    },
}

/// What of a policy is not offered. Without a network what denies is kept and what allows is not; nobody who wants the
/// internet is given a sandbox without it, but where the operator agreed to that.
pub(crate) fn refused_network(policy: &NetworkPolicy, offered: Offered) -> Option<String> {
    let Offered::Nothing { agreed } = offered else {
        return None;
    };
    if !policy.allow.is_empty() {
        return Some("network.allowOut: its sandboxes reach nothing outside".to_owned());
    }
    if !policy.denies_all() && !agreed {
        return Some("internet access: create the sandbox with allow_internet_access=false".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use model::{MiB, Resources};

    use super::*;

    fn check(network: NetworkPolicy, agreed: bool, refused: Option<&str>) {
        assert_eq!(refused_network(&network, Offered::Network), None);
        let told = refused_network(&network, Offered::Nothing { agreed });
        assert_eq!(
            told.as_deref().map(|told| told.split(':').next().unwrap()),
            refused
        );
    }

    #[test]
    fn what_allows_is_refused_by_name_and_what_denies_is_kept() {
        let none = NetworkPolicy {
            internet: Some(false),
            ..NetworkPolicy::default()
        };
        let all = NetworkPolicy {
            deny: vec!["0.0.0.0/0".parse().unwrap()],
            ..NetworkPolicy::default()
        };
        let some = NetworkPolicy {
            allow: vec!["8.8.8.8".parse().unwrap()],
            ..none.clone()
        };
        for agreed in [false, true] {
            check(none.clone(), agreed, None);
            check(all.clone(), agreed, None);
            check(some.clone(), agreed, Some("network.allowOut"));
        }
        check(NetworkPolicy::default(), false, Some("internet access"));
        check(NetworkPolicy::default(), true, None);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let spec = |cpu, memory| MachineSpec {
            sandbox: model::SandboxId::random(),
            execution: model::ExecutionId::random(),
            build: model::BuildId::random(),
            resources: Resources {
                cpu,
                memory: MiB(memory),
                disk: MiB(1),
            },
            network: NetworkPolicy::default(),
            disk: ports::runtime::DiskOrigin::Fresh,
            restore: false,
            volumes: Vec::new(),
        };
        assert_eq!(refused(&spec(2, 512), Offered::Network, true), None);
        assert!(
            refused(&spec(0, 512), Offered::Network, true)
                .unwrap()
                .contains("vCPUs")
        );
        assert!(
            refused(&spec(33, 512), Offered::Network, true)
                .unwrap()
                .contains("vCPUs")
        );
        assert!(
            refused(&spec(1, 63), Offered::Network, true)
                .unwrap()
                .contains("memory")
        );
    }
}
