//! What a virtual machine can be given. The rest is refused by name, before anything is made.
use model::NetworkPolicy;
use ports::MachineSpec;

/// Firecracker has no more, and few hosts do; above it are mistakes.
pub const CPUS_MAX: u32 = 32;
/// Below it a kernel and its initramfs do not come up.
const MEMORY_MIN_MIB: u32 = 64;

/// Which numbers of processors there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cpus {
    /// All, up to [`CPUS_MAX`].
    Any,
    /// One, or an even number up to [`CPUS_MAX`].
    OneOrEven,
}

/// What of a spec is not offered.
#[must_use]
pub fn refused(spec: &MachineSpec, cpus: Cpus, network: Offered, has_volumes: bool) -> Option<String> {
    if !spec.volumes.is_empty() && !has_volumes {
        return Some("volumes without root".to_owned());
    }
    if let Err(bad) = volumes::checked(&spec.volumes) {
        return Some(bad.to_string());
    }
    let count = spec.resources.cpu;
    let is_odd = count > 1 && count % 2 == 1;
    if count == 0 || count > CPUS_MAX || (cpus == Cpus::OneOrEven && is_odd) {
        return Some(match cpus {
            Cpus::Any => format!("{count} vCPUs: 1 to {CPUS_MAX}"),
            Cpus::OneOrEven => format!("{count} vCPUs: 1, or an even number up to {CPUS_MAX}"),
        });
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
pub enum Offered {
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
#[must_use]
pub fn refused_network(policy: &NetworkPolicy, offered: Offered) -> Option<String> {
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
        let refused = |cpu, memory, cpus| refused(&spec(cpu, memory), cpus, Offered::Network, true);
        for cpu in [1, 2, 3, 32] {
            assert_eq!(refused(cpu, 512, Cpus::Any), None);
        }
        for cpu in [0, 33] {
            assert!(refused(cpu, 512, Cpus::Any).unwrap().contains("vCPUs"), "{cpu}");
        }
        for cpu in [1, 2, 8, 32] {
            assert_eq!(refused(cpu, 512, Cpus::OneOrEven), None);
        }
        for cpu in [0, 3, 33, 34] {
            assert!(
                refused(cpu, 512, Cpus::OneOrEven).unwrap().contains("vCPUs"),
                "{cpu}"
            );
        }
        assert!(refused(1, 63, Cpus::Any).unwrap().contains("memory"));
    }
}
