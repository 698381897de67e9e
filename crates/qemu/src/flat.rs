//! Disks of many images, made flat when there is time.
use std::fs;
use std::sync::{Arc, Mutex};

use microvm::files::remove_dir;
use model::{BuildId, ExecutionId, SandboxId};
use ports::step::{At, Step};

use crate::disk::{DEPTH_MAX, Disk, Disks, Format, flatten};
use crate::house::House;
use crate::record::{Build, Kept};

const UNPOISONED: &str = "nothing panics while it holds the names";

/// Disks that are being made flat.
#[derive(Debug, Default)]
pub(crate) struct Flattening {
    /// Whose, each once.
    under_way: Mutex<Vec<String>>,
    /// Held by whoever makes disks flat: one at a time is enough for the host's disk.
    turn: tokio::sync::Mutex<()>,
}

/// Makes the disk of a kept sandbox flat, if it is too deep; says whether it was.
pub(crate) async fn kept(house: &House, sandbox: SandboxId) -> Result<bool, Step> {
    let read = || Ok(house.book.kept.read(&sandbox)?.map(|kept| kept.disk));
    let write = |was: &Disk, disk: Disk| match house.book.kept.read(&sandbox)? {
        Some(kept) if kept.disk == *was => house.book.kept.write(&sandbox, &Kept { disk, ..kept }),
        _ => Ok(()),
    };
    flat(house, read, write).await
}

/// The same for a build.
pub(crate) async fn build(house: &House, build: BuildId) -> Result<bool, Step> {
    let read = || Ok(house.book.builds.read(&build)?.map(|record| record.disk));
    let write = |was: &Disk, disk: Disk| match house.book.builds.read(&build)? {
        Some(record) if record.disk == *was => house.book.builds.write(&build, &Build { disk, ..record }),
        _ => Ok(()),
    };
    flat(house, read, write).await
}

/// The same, when there is time.
pub(crate) fn kept_soon(house: &Arc<House>, sandbox: SandboxId) {
    let own = Arc::clone(house);
    soon(
        house,
        sandbox.to_string(),
        async move { kept(&own, sandbox).await },
    );
}

/// The same, when there is time.
pub(crate) fn build_soon(house: &Arc<House>, id: BuildId) {
    let own = Arc::clone(house);
    soon(house, id.to_string(), async move { build(&own, id).await });
}

fn soon(
    house: &Arc<House>,
    name: String,
    flatten: impl Future<Output = Result<bool, Step>> + Send + 'static,
) {
    let under_way = |house: &House, name: &String| {
        let mut under_way = house.vmm.flattening.under_way.lock().expect(UNPOISONED);
        let is_new = !under_way.contains(name);
        if is_new {
            under_way.push(name.clone());
        }
        is_new
    };
    if !under_way(house, &name) {
        return;
    }
    let own = Arc::clone(house);
    house.work.spawn(async move {
        let flat = flatten.await;
        let mut under_way = own.vmm.flattening.under_way.lock().expect(UNPOISONED);
        under_way.retain(|other| *other != name);
        drop(under_way);
        match flat {
            Ok(true) => own.sweep_soon(),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(of = name, error = &error as &dyn std::error::Error, cause = %error.source, "a deep disk could not be made flat");
                own.sweep_soon();
            }
        }
    });
}

async fn flat(
    house: &House,
    read: impl Fn() -> Result<Option<Disk>, Step>,
    write: impl FnOnce(&Disk, Disk) -> Result<(), Step>,
) -> Result<bool, Step> {
    let qemu = &house.vmm;
    let _flat = qemu.flattening.turn.lock().await;
    let (disk, _pins) = {
        let _turn = house.turn();
        let Some(disk) = read()?.filter(|disk| disk.layers.len() > DEPTH_MAX) else {
            return Ok(false);
        };
        let layers = disk.layers.iter();
        let pins: Vec<_> = layers.map(|layer| house.images.pin(layer.id)).collect();
        (disk, pins)
    };
    let into = Disks::draw(Format::Qcow2);
    let _pin = house.images.pin(into.id);
    let id = ExecutionId::random();
    let dir = qemu.sockets_dir(id);
    fs::create_dir_all(&dir).at(format!("making {}", dir.display()))?;
    let rights = qemu.rights_without_machine(id);
    let flat = match rights {
        Ok(rights) => flatten::flatten(&qemu.config.qemu, &qemu.disks, &disk, into, &dir, rights).await,
        Err(error) => Err(error),
    };
    let _ = remove_dir(&dir);
    let _ = qemu.leave(&id.to_string());
    let flat = flat?;
    house.images.sync_names()?;
    let _turn = house.turn();
    write(&disk, flat)?;
    Ok(true)
}
