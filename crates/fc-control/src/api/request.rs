//! What Firecracker is asked, as its API has it: exactly the fields that this runtime says.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `PUT /machine-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct MachineConfig {
    /// 1, or an even number up to 32.
    pub(crate) vcpu_count: u32,
    pub(crate) mem_size_mib: u32,
    pub(crate) track_dirty_pages: bool,
}

/// `PUT /boot-source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct BootSource {
    pub(crate) kernel_image_path: PathBuf,
    pub(crate) initrd_path: PathBuf,
    pub(crate) boot_args: String,
}

/// `PUT /drives/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Drive {
    pub(crate) drive_id: &'static str,
    pub(crate) path_on_host: PathBuf,
    pub(crate) is_root_device: bool,
    pub(crate) is_read_only: bool,
    pub(crate) cache_type: CacheType,
    pub(crate) io_engine: IoEngine,
}

/// Whether a guest's flush is a flush of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum CacheType {
    /// It is none: what a loss of power loses is the sandbox's, which is not durable until it is kept.
    Unsafe,
}

/// How files are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum IoEngine {
    /// One request after the other, without io_uring.
    Sync,
}

/// `PATCH /drives/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct DriveChange {
    pub(crate) drive_id: &'static str,
    pub(crate) path_on_host: PathBuf,
}

/// `PUT /network-interfaces/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct NetworkInterface {
    pub(crate) iface_id: &'static str,
    pub(crate) guest_mac: String,
    pub(crate) host_dev_name: String,
}

/// `PUT /mmds/config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct MmdsConfig {
    pub(crate) version: MmdsVersion,
    pub(crate) network_interfaces: Vec<&'static str>,
}

/// How metadata is asked for inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum MmdsVersion {
    /// With a token that is fetched first: a program inside that follows a redirect does not get it.
    V2,
}

/// `PUT /vsock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Vsock {
    /// From 3 on.
    pub(crate) guest_cid: u32,
    pub(crate) uds_path: PathBuf,
}

/// `PUT /entropy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Entropy {}

/// `PUT /actions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Action {
    pub(crate) action_type: ActionType,
}

/// What is done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum ActionType {
    /// The kernel boots.
    InstanceStart,
}

/// `PATCH /vm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct VmChange {
    pub(crate) state: VmState,
}

/// What a machine does from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum VmState {
    Paused,
    Resumed,
}

/// `PUT /snapshot/create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct SnapshotCreate {
    pub(crate) snapshot_type: SnapshotType,
    pub(crate) snapshot_path: PathBuf,
    pub(crate) mem_file_path: PathBuf,
}

/// How much of the memory is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum SnapshotType {
    /// All of it.
    Full,
    /// What was written to since the memory was loaded, into a file that is sparse elsewhere.
    Diff,
}

/// `PUT /snapshot/load`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct SnapshotLoad {
    pub(crate) snapshot_path: PathBuf,
    pub(crate) mem_backend: MemBackend,
    pub(crate) resume_vm: bool,
    pub(crate) clock_realtime: bool,
    pub(crate) track_dirty_pages: bool,
}

/// Where memory comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct MemBackend {
    pub(crate) backend_type: BackendType,
    pub(crate) backend_path: PathBuf,
}

/// Who serves pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum BackendType {
    /// The host's kernel, out of a file that is mapped privately.
    File,
}

/// `GET /`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct InstanceInfo {
    pub(crate) id: String,
    pub(crate) state: InstanceState,
    pub(crate) vmm_version: String,
}

/// How a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum InstanceState {
    #[serde(rename = "Not started")]
    NotStarted,
    Running,
    Paused,
}

/// `GET /version`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct VersionInfo {
    pub(crate) firecracker_version: String,
}
