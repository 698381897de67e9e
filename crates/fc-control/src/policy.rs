//! What a machine of this runtime can be given. The rest is refused by name, before anything is made.
use model::NetworkPolicy;
use ports::MachineSpec;

/// As Firecracker has it.
const CPUS_MAX: u32 = 32;
/// Below it a kernel and its initramfs do not come up.
const MEMORY_MIN_MIB: u32 = 64;

/// What of a spec is not offered. `is_wired`: machines have a network.
pub(crate) fn refused(spec: &MachineSpec, is_wired: bool, is_offline_agreed: bool) -> Option<String> {
    if let Err(bad) = volumes::checked(&spec.volumes) {
        return Some(bad.to_string());
    }
    let cpus = spec.resources.cpu;
    if cpus == 0 || cpus > CPUS_MAX || (cpus > 1 && cpus % 2 == 1) {
        return Some(format!("{cpus} vCPUs: 1, or an even number up to {CPUS_MAX}"));
    }
    if spec.resources.memory.0 < MEMORY_MIN_MIB {
        return Some(format!(
            "{} of memory: at least {MEMORY_MIN_MIB} MiB",
            spec.resources.memory
        ));
    }
    refused_network(&spec.network, is_wired, is_offline_agreed)
}

/// What of a policy is not offered. Machines without a network keep what denies, and not what allows; nobody who wants the
/// internet is given a sandbox without it, but where the operator agreed to that.
pub(crate) fn refused_network(
    policy: &NetworkPolicy,
    is_wired: bool,
    is_offline_agreed: bool,
) -> Option<String> {
    if is_wired {
        return None;
    }
    if !policy.allow.is_empty() {
        return Some("network.allowOut: its sandboxes reach nothing outside".to_owned());
    }
    if !policy.denies_all() && !is_offline_agreed {
        return Some("internet access: create the sandbox with allow_internet_access=false".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use model::{MiB, Resources};

    use super::*;

    fn check(network: &NetworkPolicy, agreed: bool, refused: Option<&str>) {
        let told = refused_network(network, false, agreed);
        assert_eq!(
            told.as_deref().map(|told| told.split(':').next().unwrap()),
            refused
        );
        assert_eq!(refused_network(network, true, agreed), None);
    }

    #[test]
    fn what_allows_is_refused_by_name_where_there_is_no_network() {
        let none = NetworkPolicy {
            internet: Some(false),
            ..NetworkPolicy::default()
        };
        let some = NetworkPolicy {
            allow: vec!["8.8.8.8".parse().unwrap()],
            ..none.clone()
        };
        for agreed in [false, true] {
            check(&none, agreed, None);
            check(&some, agreed, Some("network.allowOut"));
        }
        check(&NetworkPolicy::default(), false, Some("internet access"));
        check(&NetworkPolicy::default(), true, None);
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
        let refused = |cpu, memory| refused(&spec(cpu, memory), true, false);
        for cpu in [1, 2, 8, 32] {
            assert_eq!(refused(cpu, 512), None);
        }
        for cpu in [0, 3, 33, 34] {
            assert!(refused(cpu, 512).unwrap().contains("vCPUs"), "{cpu}");
        }
        assert!(refused(1, 63).unwrap().contains("memory"));
    }
}
