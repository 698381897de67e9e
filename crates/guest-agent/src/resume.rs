//! What is renewed after memory was restored: the clock, randomness, and what tells one copy from another.
use std::os::fd::AsFd as _;

use guest::boot::{is_hostname, is_machine_id};
use guest::line::{Nothing, Resume};
use rustix::thread::LinkNameSpaceType;
use rustix::time::{ClockId, Timespec};

use crate::boot::renew_boot_id;
use crate::file;
use crate::machine::Machine;

/// Carries it out, or says which part failed. All of it is looked at before any of it is done.
pub(crate) fn resume(machine: &Machine, order: &Resume) -> Result<Nothing, String> {
    let entropy = order.entropy()?;
    if order.hostname.as_deref().is_some_and(|name| !is_hostname(name)) {
        return Err("that is no host name".to_owned());
    }
    if order.machine_id.as_deref().is_some_and(|id| !is_machine_id(id)) {
        return Err("that is no machine id".to_owned());
    }
    // First: what is drawn from now on is no other copy's.
    linux::random::reseed(&entropy).map_err(|error| format!("reseeding: {error}"))?;
    let time = order.unix_time();
    let time = Timespec {
        tv_sec: i64::try_from(time.as_secs()).map_err(|error| error.to_string())?,
        tv_nsec: time.subsec_nanos().into(),
    };
    rustix::time::clock_settime(ClockId::Realtime, time)
        .map_err(|error| format!("setting the clock: {error}"))?;
    if order.hostname.is_none() && order.machine_id.is_none() {
        // It is who it was, and this boot goes on.
        return Ok(Nothing {});
    }
    renew_boot_id().map_err(|failed| format!("{failed}: {}", failed.source))?;
    let etc = file::directory(&machine.root, "etc").map_err(|error| format!("opening /etc: {error}"))?;
    if let Some(name) = &order.hostname {
        rename(machine, name)?;
        file::put(&etc, "hostname", &format!("{name}\n"))
            .map_err(|error| format!("writing /etc/hostname: {error}"))?;
    }
    if let Some(id) = &order.machine_id {
        file::put(&etc, "machine-id", &format!("{id}\n"))
            .map_err(|error| format!("writing /etc/machine-id: {error}"))?;
    }
    Ok(Nothing {})
}

/// Names the machine in its own namespace of names, by a thread that stays there and ends.
fn rename(machine: &Machine, name: &str) -> Result<(), String> {
    let names = machine
        .host_name
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| format!("taking the machine's names: {error}"))?;
    let name = name.to_owned();
    let renaming = std::thread::Builder::new().spawn(move || {
        let kind = Some(LinkNameSpaceType::HostNameAndNISDomainName);
        rustix::thread::move_into_link_name_space(names.as_fd(), kind)?;
        rustix::system::sethostname(name.as_bytes())
    });
    let renamed = renaming
        .map_err(|error| format!("starting a thread: {error}"))?
        .join();
    match renamed {
        Ok(renamed) => renamed.map_err(|error| format!("renaming: {error}")),
        Err(_) => Err("renaming broke".to_owned()),
    }
}
