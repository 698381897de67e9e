//! What is on record of machines under QEMU alone.
use microvm::record::Names;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::{Disk, Layer};
use crate::house::Qemu;
use crate::memory::Memory;
use crate::users::User;

/// A machine.
pub(crate) type Machine = microvm::Machine<Qemu>;
/// A kept sandbox.
pub(crate) type Kept = microvm::Kept<Qemu>;
/// What machines start from.
pub(crate) type Build = microvm::Build<Qemu>;

/// What a machine has beside what all have. Its directory of sockets is named by its execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Own {
    /// Which slot of the network is its, from before anything of it is made on; `None` where there is no network.
    #[serde(default)]
    pub(crate) slot: Option<u32>,
    /// Whom its QEMU runs as; `None`: as whoever the daemon was, as all did before there were users.
    #[serde(default)]
    pub(crate) user: Option<User>,
    /// The image that is being laid on its disk, from before that is made on.
    pub(crate) next: Option<Layer>,
    /// The memory that is being written.
    pub(crate) state: Option<Uuid>,
    /// It stands only because it is being copied: whoever finds it so lets it go on.
    pub(crate) copying: bool,
}

impl Names for Disk {
    fn images(&self) -> Vec<Uuid> {
        self.layers.iter().map(|layer| layer.id).collect()
    }
}

impl Names for Own {
    fn images(&self) -> Vec<Uuid> {
        self.next.iter().map(|next| next.id).collect()
    }
    fn states(&self) -> Vec<Uuid> {
        self.state.into_iter().collect()
    }
}

impl Names for Memory {
    fn states(&self) -> Vec<Uuid> {
        vec![self.state]
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use model::{BuildId, ExecutionId, MiB, NetworkPolicy, Resources, SandboxId};

    use super::*;

    #[test]
    fn a_record_on_disk_is_as_it_always_was() {
        let spec = ports::MachineSpec {
            sandbox: SandboxId::random(),
            execution: ExecutionId::random(),
            build: BuildId::random(),
            resources: Resources {
                cpu: 1,
                memory: MiB(64),
                disk: MiB(32),
            },
            network: NetworkPolicy::default(),
            disk: ports::runtime::DiskOrigin::Fresh,
            restore: false,
            volumes: Vec::new(),
        };
        let machine = Machine {
            spec,
            process: None,
            disk: Disk {
                layers: Vec::new(),
                size_bytes: 9,
            },
            up: true,
            keep: false,
            restored: false,
            started_at: SystemTime::now(),
            own: Own {
                slot: Some(3),
                user: Some(User { uid: 5, gid: 6 }),
                next: None,
                state: Some(Uuid::new_v4()),
                copying: true,
            },
        };
        let mut written = serde_json::to_value(&machine).unwrap();
        assert_eq!(
            serde_json::from_value::<Machine>(written.clone()).unwrap(),
            machine
        );
        let fields = written.as_object_mut().unwrap();
        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
        let all = [
            "copying",
            "disk",
            "keep",
            "next",
            "process",
            "restored",
            "slot",
            "spec",
            "started_at",
            "state",
            "up",
            "user",
        ];
        assert_eq!(names, all);
        // Those of before there were a network and users.
        for name in ["slot", "user"] {
            fields.remove(name).unwrap();
        }
        let of_before = serde_json::from_value::<Machine>(written).unwrap();
        assert_eq!((of_before.own.slot, of_before.own.user), (None, None));
    }
}
