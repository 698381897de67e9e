//! What a QEMU is told about its machine.
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use ports::step::{At, Step};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::command::{DISK_DEVICE, node_name, overlay, set_path};
use crate::disk::Image;
use crate::house::Vm;
use crate::qmp::{Qmp, QmpError};

/// Memory is written as fast as the host's disk takes it.
const MIGRATED_WITHIN: Duration = Duration::from_secs(600);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(10);

/// Has it do something.
pub(crate) async fn command(vm: &Vm, command: &'static str, arguments: Value) -> Result<Value, Step> {
    let done = vm.monitor.run(command, arguments).await;
    done.at(format!("having QEMU {command}"))
}

/// Writes the state of a machine that stands into a file.
pub(crate) async fn write_state(vm: &Vm, state: Uuid) -> Result<(), Step> {
    let (qmp, path) = (&vm.monitor, vm.house.states.path(state));
    let mut options = fs::File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(&path);
    let file = file.at(format!("making {}", path.display()))?;
    let step = || format!("writing memory to {}", path.display());
    qmp.hand_over("state", file.as_fd()).await.at(step())?;
    let started = async {
        // By itself it keeps a wire free for others.
        qmp.run("migrate-set-parameters", json!({ "max-bandwidth": 1_u64 << 40 }))
            .await?;
        qmp.run("migrate", json!({ "uri": "fd:state" })).await
    };
    if let Err(error) = started.await {
        let _ = qmp.run("closefd", json!({ "fdname": "state" })).await;
        return Err(error).at(step());
    }
    let migrated = migrated(qmp).await;
    if migrated.is_err() {
        let _ = qmp.run("migrate_cancel", json!({})).await;
    }
    migrated.at(step())
}

/// Brings the state of another into a machine that waits for it.
pub(crate) async fn bring_in(qmp: &Qmp, state: fs::File) -> Result<(), Step> {
    let step = || "bringing memory in".to_owned();
    qmp.hand_over("state", state.as_fd()).await.at(step())?;
    qmp.run("migrate-incoming", json!({ "uri": "fd:state" }))
        .await
        .at(step())?;
    migrated(qmp).await.at(step())
}

/// Lays an empty image on its disk; what it wrote until now is written to no more.
pub(crate) async fn seal_disk(vm: &Vm) -> Result<(), Step> {
    let (qmp, record) = (&vm.monitor, vm.record());
    let depth = record.disk.layers.len();
    let next = record
        .own
        .next
        .ok_or_else(|| io::Error::other("none is on record"));
    let next = next.at("laying an image on a disk")?;
    let step = || "handing QEMU an image".to_owned();
    let opened = vm.house.vmm.disks.open_image(next, true)?;
    let (read, write) = (&opened.read, opened.write.as_ref().expect("it was asked for"));
    let set = qmp.add(write.as_fd(), None).await.at(step())?;
    // When the next one is laid on it, it is read alone.
    qmp.add(read.as_fd(), Some(set)).await.at(step())?;
    let image = Image {
        path: set_path(set),
        format: next.format,
    };
    let added = command(vm, "blockdev-add", overlay(&image, depth)).await;
    if let Err(refused) = added {
        let _ = qmp.run("remove-fd", json!({ "fdset-id": set })).await;
        return Err(refused);
    }
    let order = json!({ "node": node_name(depth.saturating_sub(1)), "overlay": node_name(depth) });
    let laid = command(vm, "blockdev-snapshot", order).await;
    if laid.is_err() {
        let _ = qmp
            .run("blockdev-del", json!({ "node-name": node_name(depth) }))
            .await;
        let _ = qmp.run("remove-fd", json!({ "fdset-id": set })).await;
    }
    laid.map(drop)
}

/// Waits until memory has been written, or brought in.
async fn migrated(qmp: &Qmp) -> Result<(), QmpError> {
    let deadline = Instant::now() + MIGRATED_WITHIN;
    loop {
        let now = qmp.run("query-migrate", json!({})).await?;
        match now["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                return Err(QmpError::Refused {
                    command: "migrate",
                    class: "migration".to_owned(),
                    desc: now["error-desc"].as_str().unwrap_or("unsaid").to_owned(),
                });
            }
            _ if Instant::now() >= deadline => {
                return Err(QmpError::Late {
                    command: "migrate",
                    within: MIGRATED_WITHIN,
                });
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// The node on which the disk's device is.
pub(crate) async fn top_node(qmp: &Qmp) -> Result<Option<String>, QmpError> {
    let devices = qmp.run("query-block", json!({})).await?;
    let devices = devices.as_array().map(Vec::as_slice).unwrap_or_default();
    let path = format!("/machine/peripheral/{DISK_DEVICE}/");
    let disk = devices.iter().find(|device| {
        device["qdev"]
            .as_str()
            .is_some_and(|qdev| qdev == DISK_DEVICE || qdev.starts_with(&path))
    });
    Ok(disk.and_then(|disk| Some(disk["inserted"]["node-name"].as_str()?.to_owned())))
}
