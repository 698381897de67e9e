//! What machines have by number: each its own user, and, where there is a network, its slot there. A number is on the machine's
//! record before anything of it is made, and free again when nothing is left of it.
use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};

use model::NetworkPolicy;
use net::{GUEST, GUEST_GATEWAY, GUEST_MAC, GUEST_PREFIX, Net, SLOTS_MAX};
use ports::RuntimeError;
use ports::step::{At, Step};

/// What a machine's tap is called, in its own network namespace: in each the same.
pub(crate) const TAP: &str = "tap0";
const UNPOISONED: &str = "nothing panics while it holds the slots";

/// Numbers of machines.
#[derive(Debug)]
pub(crate) struct Slots {
    /// Which of the daemons of this host this is.
    instance: u32,
    /// The user of the first.
    first_uid: u32,
    is_wired: bool,
    /// There from recovery to the end, where there is a network.
    net: RwLock<Option<Arc<Net>>>,
    /// Those of machines that are on record.
    taken: Mutex<BTreeSet<u32>>,
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

impl Slots {
    pub(crate) fn new(instance: u32, first_uid: u32, is_wired: bool) -> Self {
        Self {
            instance,
            first_uid,
            is_wired,
            net: RwLock::default(),
            taken: Mutex::default(),
        }
    }

    /// Puts the firewall in place, in which those that are wired go on with these policies, and clears away what others left. The
    /// numbers of all are taken.
    pub(crate) fn open(&self, adopted: &[u32], wired: &[(u32, NetworkPolicy)]) -> Result<(), Step> {
        self.taken.lock().expect(UNPOISONED).extend(adopted);
        if self.is_wired {
            let net = Net::open(self.instance, wired)?;
            net.sweep()?;
            *self.net.write().expect(UNPOISONED) = Some(Arc::new(net));
        }
        Ok(())
    }

    /// Takes the firewall back, when no machine is left.
    pub(crate) fn close(&self) {
        let net = self.net.write().expect(UNPOISONED).take();
        if let Some(Err(error)) = net.and_then(Arc::into_inner).map(Net::close) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                cause = %error.source,
                "the network could not be taken back"
            );
        }
    }

    fn net(&self) -> Result<Option<Arc<Net>>, Step> {
        if !self.is_wired {
            return Ok(None);
        }
        let net = self.net.read().expect(UNPOISONED).clone();
        net.ok_or_else(|| io::Error::other("the runtime has not recovered, or is closed"))
            .at("using the network")
            .map(Some)
    }

    /// The user of a number.
    pub(crate) fn uid(&self, slot: u32) -> u32 {
        self.first_uid + slot
    }

    /// The lowest number that is nobody's, and of which nothing is left.
    pub(crate) fn draw(&self) -> Result<u32, RuntimeError> {
        let net = self.net()?;
        let mut taken = self.taken.lock().expect(UNPOISONED);
        for slot in (0..SLOTS_MAX).filter(|slot| !taken.contains(slot)) {
            let is_free = match &net {
                Some(net) => net.is_free(slot)?,
                None => true,
            };
            if is_free {
                taken.insert(slot);
                return Ok(slot);
            }
        }
        Err(RuntimeError::Exhausted("slots"))
    }

    /// Makes a machine's network namespace: one that leads nowhere, or has the guest's tap, with its policy in force. It lives for as
    /// long as this is held, or a process is in it.
    pub(crate) fn plug(&self, slot: u32, policy: &NetworkPolicy) -> Result<Namespace, Step> {
        let step = || format!("making the network namespace of slot {slot}");
        let Some(net) = self.net()? else {
            return Ok(Namespace(linux::netns::fresh().at(step())?));
        };
        let (_, tap) = net.attach_tap(slot)?;
        // Firecracker opens it by its name, as its own user.
        linux::tap::keep_for(tap.file.as_fd(), self.uid(slot)).at(step())?;
        net.claim(slot, policy)?;
        Ok(Namespace(tap.namespace))
    }

    /// Replaces a slot's policy.
    pub(crate) fn set_policy(&self, slot: u32, policy: &NetworkPolicy) -> Result<(), Step> {
        match self.net()? {
            Some(net) => net.set_policy(slot, policy),
            None => Ok(()),
        }
    }

    /// Takes a slot's policy away: nothing passes any more.
    pub(crate) fn unplug(&self, slot: u32) -> Result<(), Step> {
        match self.net() {
            Ok(Some(net)) => net.release(slot),
            // Before recovery and after the end nothing is in force but what goes on.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// A number that is on no record any more is free.
    pub(crate) fn give_back(&self, slot: u32) {
        self.taken.lock().expect(UNPOISONED).remove(&slot);
    }

    /// What a guest is told of its network: the same in every slot; `None` where there is none.
    pub(crate) fn settings(&self) -> Result<Option<(guest::boot::Network, Vec<Ipv4Addr>)>, Step> {
        let network = guest::boot::Network {
            address: GUEST,
            prefix: GUEST_PREFIX,
            gateway: Some(GUEST_GATEWAY),
        };
        Ok(self.net()?.map(|net| (network, net.nameservers())))
    }

    /// The name of a slot's link on the host.
    pub(crate) fn link(&self, slot: u32) -> String {
        net::link_name(self.instance, slot)
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
    fn a_number_is_one_machines_until_it_is_given_back() {
        let slots = Slots::new(3, 70_000, false);
        slots.open(&[1], &[]).unwrap();
        assert_eq!([slots.draw().unwrap(), slots.draw().unwrap()], [0, 2]);
        slots.give_back(0);
        assert_eq!(slots.draw().unwrap(), 0);
        assert_eq!((slots.uid(0), slots.uid(2)), (70_000, 70_002));
        assert!(slots.settings().unwrap().is_none());
    }

    #[test]
    fn before_recovery_nobody_is_wired() {
        let slots = Slots::new(3, 70_000, true);
        assert!(matches!(slots.draw(), Err(RuntimeError::Step { .. })));
        assert!(slots.plug(0, &NetworkPolicy::default()).is_err());
    }

    #[test]
    fn the_hardware_address_is_the_same_for_all() {
        assert_eq!(mac(), "06:00:ac:10:00:02");
    }
}
