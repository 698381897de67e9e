//! What machines have by number: each its own user, and, where there is a network, its slot there.
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use microvm::network::Slots;
use model::NetworkPolicy;
use net::GUEST_MAC;
use ports::step::{At, Step};

/// What a machine's tap is called, in its own network namespace: in each the same.
pub(crate) const TAP: &str = "tap0";

/// Numbers of machines.
#[derive(Debug)]
pub(crate) struct Numbers {
    pub(crate) slots: Slots,
    /// The user of the first.
    first_uid: u32,
}

/// A network namespace that a Firecracker is started in.
#[derive(Debug)]
pub(crate) struct Namespace(OwnedFd);

impl Namespace {
    /// By which the jailer opens it, for as long as this is held.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

impl Numbers {
    pub(crate) fn new(slots: Slots, first_uid: u32) -> Self {
        Self { slots, first_uid }
    }

    /// The user of a number.
    pub(crate) fn uid(&self, slot: u32) -> u32 {
        self.first_uid + slot
    }

    /// Makes a machine's network namespace: one that leads nowhere, or has the guest's tap, with its policy in force. It lives for as
    /// long as this is held, or a process is in it.
    pub(crate) fn plug(&self, slot: u32, policy: &NetworkPolicy) -> Result<Namespace, Step> {
        let step = || format!("making the network namespace of slot {slot}");
        let Some(net) = self.slots.net()? else {
            return Ok(Namespace(linux::netns::fresh().at(step())?));
        };
        let (_, tap) = net.attach_tap(slot)?;
        // Firecracker opens it by its name, as its own user.
        linux::tap::keep_for(tap.file.as_fd(), self.uid(slot)).at(step())?;
        net.claim(slot, policy)?;
        Ok(Namespace(tap.namespace))
    }
}

/// The guest's hardware address, as Firecracker is told it.
pub(crate) fn mac() -> String {
    GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_user() {
        let numbers = Numbers::new(Slots::new(3, false), 70_000);
        assert_eq!((numbers.uid(0), numbers.uid(2)), (70_000, 70_002));
    }

    #[test]
    fn before_recovery_nobody_is_wired() {
        let numbers = Numbers::new(Slots::new(3, true), 70_000);
        assert!(numbers.plug(0, &NetworkPolicy::default()).is_err());
    }

    #[test]
    fn the_hardware_address_is_the_same_for_all() {
        assert_eq!(mac(), "06:00:ac:10:00:02");
    }
}
