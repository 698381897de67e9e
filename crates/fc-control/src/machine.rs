//! What a Firecracker is told about a machine that runs.
use std::sync::Arc;

use microvm::work::off;
use ports::step::{At, Step};
use uuid::Uuid;

use crate::api::request::{SnapshotCreate, SnapshotType};
use crate::disk;
use crate::house::Vm;
use crate::jail::{Inside, take_back};
use crate::memory::{Place, Written};

/// Has Firecracker write down a machine that stands. Only what differs from what it knows already, where that is on record.
pub(crate) async fn write_state(vm: &Vm, id: Uuid) -> Result<Written, Step> {
    let (jail, place) = (&vm.monitor.jail, Place::of(&vm.house.states, id));
    let base = vm.record().own.base;
    let since = base.filter(|_| vm.house.vmm.config.differences);
    let (lending, lent) = (jail.clone(), place.clone());
    off(move || {
        lending.take_out()?;
        lent.make()?;
        lending.lend_out(&lent.state(), &lent.memory())
    })
    .await?;
    failpoint::reach("fc-control/state-lent");
    let create = SnapshotCreate {
        snapshot_type: match since {
            Some(_) => SnapshotType::Diff,
            None => SnapshotType::Full,
        },
        snapshot_path: Inside::OutState.path(),
        mem_file_path: Inside::OutMemory.path(),
    };
    let written = vm.monitor.api.snapshot(&create).await;
    failpoint::reach("fc-control/state-written");
    let taking = jail.clone();
    let taken = off(move || {
        taking.take_out()?;
        take_back(&place.state())?;
        take_back(&place.memory())
    });
    let taken = taken.await;
    written.at("writing memory down")?;
    taken?;
    Ok(match since {
        Some(base) => Written::Since {
            base: base.id,
            base_pages: base.pages,
        },
        None => Written::Whole,
    })
}

/// Copies the disk of a machine that stands.
pub(crate) async fn copy_disk(vm: &Vm, image: Uuid) -> Result<(), Step> {
    let (house, own) = (Arc::clone(&vm.house), vm.record().disk.image);
    off(move || {
        let copy = house.images.path(image);
        disk::copy(&house.images.path(own), &copy, 0)?;
        take_back(&copy)
    })
    .await
}
