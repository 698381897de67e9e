//! What is on record of machines under Firecracker alone.
use microvm::record::Names;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::house::Firecracker;
use crate::memory::{Memory, Pages, Sealed};

/// A machine.
pub(crate) type Machine = microvm::Machine<Firecracker>;
/// A kept sandbox.
pub(crate) type Kept = microvm::Kept<Firecracker>;
/// What machines start from.
pub(crate) type Build = microvm::Build<Firecracker>;

/// An image, and how much can be written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub(crate) image: Uuid,
    pub(crate) size_bytes: u64,
}

/// What a machine has beside what all have. Its jail and its cgroup are named by its execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// Which user and, where there is a network, which of its slots are its.
    pub(crate) slot: u32,
    /// Whether it has a network.
    pub(crate) wired: bool,
    /// What its memory differs from as Firecracker knows it: what it was restored from, or what was last written down.
    pub(crate) base: Option<Base>,
    /// What is being written, from before that is made on.
    pub(crate) copy: Copying,
    /// It stands only because it is being copied: whoever finds it so lets it go on.
    pub(crate) stands: bool,
}

/// Memory that a difference can be written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Base {
    pub(crate) id: Uuid,
    pub(crate) pages: Sealed,
}

impl Base {
    /// `None` where memory is a difference itself.
    pub(crate) fn of(memory: &Memory) -> Option<Self> {
        match &memory.pages {
            Pages::Whole(pages) => Some(Self {
                id: memory.id,
                pages: pages.clone(),
            }),
            Pages::Diff { .. } => None,
        }
    }
}

/// What is being written of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Copying {
    pub(crate) image: Option<Uuid>,
    pub(crate) state: Option<Uuid>,
}

impl Names for Disk {
    fn images(&self) -> Vec<Uuid> {
        vec![self.image]
    }
}

impl Names for Own {
    fn images(&self) -> Vec<Uuid> {
        self.copy.image.into_iter().collect()
    }
    fn states(&self) -> Vec<Uuid> {
        let base = self.base.as_ref().map(|base| base.id);
        [base, self.copy.state].into_iter().flatten().collect()
    }
}

impl Names for Memory {
    fn states(&self) -> Vec<Uuid> {
        match &self.pages {
            Pages::Whole(_) => vec![self.id],
            Pages::Diff { base, .. } => vec![self.id, *base],
        }
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
                image: Uuid::new_v4(),
                size_bytes: 9,
            },
            up: true,
            keep: false,
            restored: false,
            started_at: SystemTime::now(),
            own: Own {
                slot: 3,
                wired: true,
                base: Some(Base {
                    id: Uuid::new_v4(),
                    pages: Sealed {
                        length_bytes: 1,
                        digest: "d".to_owned(),
                    },
                }),
                copy: Copying::default(),
                stands: true,
            },
        };
        let written = serde_json::to_value(&machine).unwrap();
        assert_eq!(
            serde_json::from_value::<Machine>(written.clone()).unwrap(),
            machine
        );
        let names: Vec<&str> = written.as_object().unwrap().keys().map(String::as_str).collect();
        let all = [
            "base",
            "copy",
            "disk",
            "keep",
            "process",
            "restored",
            "slot",
            "spec",
            "stands",
            "started_at",
            "up",
            "wired",
        ];
        assert_eq!(names, all);
    }
}
