//! Firecrackers of earlier daemons.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use microvm::process::Process;
use ports::step::{At, Step};

use super::Monitor;
use crate::api::request::InstanceState;
use crate::house::House;
use crate::jail::Inside;
use crate::process::listen;
use crate::record::Machine;

/// One that is writing memory down answers when it has written it.
const ADOPTED_WITHIN: Duration = Duration::from_secs(60);

/// Asks a Firecracker how it is, and brings what was begun with it to an end.
pub(super) async fn look_at(
    house: &Arc<House>,
    process: &Process,
    machine: &mut Machine,
) -> Result<(Monitor, bool), Step> {
    let jail = house.vmm.jail(machine);
    let api = listen(process, &jail.host(Inside::Api)).await?;
    let step = || "asking Firecracker how it is";
    let instance = api.instance(ADOPTED_WITHIN).await.at(step())?;
    if instance.id != machine.spec.execution.to_string() {
        return Err(io::Error::other("it is another machine's")).at(step());
    }
    let mut frozen = match instance.state {
        InstanceState::Running => false,
        InstanceState::Paused => true,
        InstanceState::NotStarted => return Err(io::Error::other("it has no machine")).at(step()),
    };
    let own = &mut machine.own;
    if std::mem::take(&mut own.stands) && frozen {
        api.resume().await.at("letting a machine go on")?;
        frozen = false;
    }
    if std::mem::take(&mut own.copy).state.is_some() {
        // Whatever was written: what Firecracker takes for written since is not known.
        own.base = None;
        jail.take_out()?;
    }
    Ok((Monitor { api, jail }, frozen))
}
