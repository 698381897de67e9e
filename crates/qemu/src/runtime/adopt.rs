//! QEMUs of earlier daemons.
use std::sync::Arc;
use std::time::Duration;

use microvm::agent::knock;
use microvm::process::Process;
use microvm::work::in_time;
use ports::step::{At, Step};
use serde_json::json;

use crate::command::{Sockets, node_name};
use crate::house::House;
use crate::machine::top_node;
use crate::process::listen;
use crate::qmp::Qmp;
use crate::record::Machine;

/// A QEMU that lives says so in milliseconds.
const ADOPTED_WITHIN: Duration = Duration::from_secs(10);

/// Asks a QEMU how it is, and brings what was begun with it to an end.
pub(super) async fn look_at(
    house: &Arc<House>,
    process: &Process,
    machine: &mut Machine,
) -> Result<(Qmp, bool), Step> {
    if house.vmm.users.is_some() && machine.own.user.is_none() {
        tracing::warn!(sandbox = %machine.spec.sandbox, "a machine was started before QEMUs had users of their own: it goes on as root until it is paused");
    }
    let sockets = Sockets::within(&house.vmm.sockets_dir(machine.spec.execution));
    let mut found = machine.clone();
    let looked = in_time(ADOPTED_WITHIN, async {
        Ok(ask(process, &sockets, &mut found).await)
    });
    let looked = looked.await.at("asking QEMU how it is")??;
    *machine = found;
    Ok(looked)
}

async fn ask(process: &Process, sockets: &Sockets, machine: &mut Machine) -> Result<(Qmp, bool), Step> {
    let qmp = listen(process, &sockets.qmp, &sockets.serial).await?;
    if let Some(next) = machine.own.next.take() {
        let depth = machine.disk.layers.len();
        let top = top_node(&qmp).await.at("asking QEMU for its disk")?;
        if top == Some(node_name(depth)) {
            machine.disk.layers.push(next);
        } else {
            // It may be there, and not laid on the disk: the next has the same name.
            let _ = qmp
                .run("blockdev-del", json!({ "node-name": node_name(depth) }))
                .await;
        }
    }
    if std::mem::take(&mut machine.own.copying) {
        qmp.run("cont", json!({})).await.at("letting a machine go on")?;
        knock(&sockets.line).await;
    }
    machine.own.state = None;
    let status = qmp
        .run("query-status", json!({}))
        .await
        .at("asking QEMU how it is")?;
    Ok((qmp, status["running"] != true))
}
