//! What of a machine is its own and no copy's: its name, its id, and what programs made of random numbers.
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use wire::init::{GENERATION, Init};

use super::is_machine;
use crate::access::Refusal;
use crate::http::Envd;
use crate::settings::instant;
use crate::{random, system_file};

/// By which a machine tells itself from others (machine-id(5)), and the other place of the same.
const MACHINE_ID: &str = "/etc/machine-id";
const DBUS_MACHINE_ID: &str = "/var/lib/dbus/machine-id";
/// The clock of a restored machine is its host's; what is off by more than this was set by somebody.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(2);

/// Whether it can be carried out.
pub(super) fn check(init: &Init) -> Result<(), Refusal> {
    let is_id = |id: &String| id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match &init.machine_id {
        Some(id) if !is_id(id) => Err(Refusal::bad("machineID is not 32 lower-case hexadecimal digits")),
        _ => Ok(()),
    }
}

/// After the settings of a machine that was restored, or is a copy, have been taken.
pub(super) fn renew(envd: &Envd, init: &Init) {
    if init.renew {
        envd.logs.forget();
        envd.filesystem.forget_clients();
    }
    if is_machine() {
        name_by_id(init);
        if init.renew {
            begin_generation();
        }
    }
    if init.restored || init.renew {
        let what = if init.renew {
            "this is a copy now"
        } else {
            "memory was restored"
        };
        envd.logs.say("info", "envd", what, BTreeMap::new());
        check_clock(envd, init);
    }
}

/// A new id where one is told; a copy without one makes its own, if its source had any.
fn name_by_id(init: &Init) {
    let id = match &init.machine_id {
        Some(id) => Some(id.clone()),
        None if init.renew && Path::new(MACHINE_ID).exists() => random::hex().ok(),
        None => None,
    };
    let Some(id) = id else { return };
    let text = format!("{id}\n");
    let mut places = vec![MACHINE_ID];
    // Where it is a link, it leads to the other one.
    places.extend(Some(DBUS_MACHINE_ID).filter(|place| Path::new(place).exists()));
    for place in places {
        if system_file::read(place).as_ref() != Some(&text) {
            let _ = system_file::write(place, &text);
        }
    }
}

/// Tells programs that they are another machine's than before.
pub(crate) fn begin_generation() {
    if let Ok(id) = random::hex() {
        let _ = system_file::write(GENERATION, &id);
    }
}

fn check_clock(envd: &Envd, init: &Init) {
    let Some(told) = init.timestamp.as_deref().and_then(instant) else {
        return;
    };
    let now = SystemTime::now();
    let off = now
        .duration_since(told)
        .or_else(|_| told.duration_since(now))
        .unwrap_or_default();
    if off > CLOCK_OFF_MAX {
        let fields = BTreeMap::from([("off_ms".to_owned(), off.as_millis().to_string())]);
        envd.logs
            .say("warn", "envd", "the clock is not the node's", fields);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_what_machines_have() {
        let checked = |id: &str| {
            check(&Init {
                machine_id: Some(id.to_owned()),
                ..Init::default()
            })
        };
        assert!(checked("0123456789abcdef0123456789abcdef").is_ok());
        for id in [
            "",
            "0123456789ABCDEF0123456789abcdef",
            "0123",
            "../../../../etc/passwd/../../etc/",
        ] {
            assert!(checked(id).is_err(), "{id}");
        }
        assert!(check(&Init::default()).is_ok());
    }
}
