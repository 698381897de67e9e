//! The network of a node's machines: a slot for each, which is on the machine's record before anything of it is made, and whose
//! number is free again when nothing is left of it.
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, RwLock};

use model::NetworkPolicy;
use net::{GUEST, GUEST_GATEWAY, GUEST_PREFIX, Net};
use ports::RuntimeError;
use ports::step::{At, Step};

const UNPOISONED: &str = "nothing panics while it holds the slots";

/// Slots of machines.
#[derive(Debug)]
pub(crate) struct Network {
    /// Which of this machine's runtimes it is.
    instance: u32,
    /// There from recovery to the end.
    net: RwLock<Option<Arc<Net>>>,
    /// Those of machines that are on record.
    taken: Mutex<BTreeSet<u32>>,
}

impl Network {
    /// That of this number's links and rules; [`Network::open`] comes next.
    pub(crate) fn of(instance: u32) -> Self {
        Self {
            instance,
            net: RwLock::default(),
            taken: Mutex::default(),
        }
    }

    /// Puts the firewall in place, in which these slots go on with these policies, and clears away what others left.
    pub(crate) fn open(&self, adopted: &[(u32, NetworkPolicy)]) -> Result<(), Step> {
        let net = Net::open(self.instance, adopted)?;
        net.sweep()?;
        let slots = adopted.iter().map(|(slot, _)| *slot);
        self.taken.lock().expect(UNPOISONED).extend(slots);
        *self.net.write().expect(UNPOISONED) = Some(Arc::new(net));
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

    fn net(&self) -> Result<Arc<Net>, Step> {
        let net = self.net.read().expect(UNPOISONED).clone();
        net.ok_or_else(|| io::Error::other("the runtime has not recovered, or is closed"))
            .at("using the network")
    }

    /// The lowest slot that is nobody's, and of which nothing is left.
    pub(crate) fn draw(&self) -> Result<u32, RuntimeError> {
        let net = self.net()?;
        let mut taken = self.taken.lock().expect(UNPOISONED);
        for slot in (0..net::SLOTS_MAX).filter(|slot| !taken.contains(slot)) {
            if net.is_free(slot)? {
                taken.insert(slot);
                return Ok(slot);
            }
        }
        Err(RuntimeError::Exhausted("slots"))
    }

    /// Makes a slot's network, with its policy in force; it is there for as long as the file is open.
    pub(crate) fn plug(&self, slot: u32, policy: &NetworkPolicy) -> Result<OwnedFd, Step> {
        let net = self.net()?;
        let (_, tap) = net.attach_tap(slot)?;
        net.claim(slot, policy)?;
        Ok(tap.file)
    }

    /// Replaces a slot's policy.
    pub(crate) fn set_policy(&self, slot: u32, policy: &NetworkPolicy) -> Result<(), Step> {
        self.net()?.set_policy(slot, policy)
    }

    /// Takes a slot's policy away: nothing passes any more.
    pub(crate) fn unplug(&self, slot: u32) -> Result<(), Step> {
        match self.net() {
            Ok(net) => net.release(slot),
            // Before recovery and after the end nothing is in force but what goes on.
            Err(_) => Ok(()),
        }
    }

    /// A slot that is on no record any more is free.
    pub(crate) fn give_back(&self, slot: u32) {
        self.taken.lock().expect(UNPOISONED).remove(&slot);
    }

    /// What a guest is told of its network: the same in every slot.
    pub(crate) fn settings(&self) -> Result<(guest::boot::Network, Vec<std::net::Ipv4Addr>), Step> {
        let network = guest::boot::Network {
            address: GUEST,
            prefix: GUEST_PREFIX,
            gateway: Some(GUEST_GATEWAY),
        };
        Ok((network, self.net()?.nameservers()))
    }

    /// The name of a slot's link on the host.
    pub(crate) fn link(&self, slot: u32) -> String {
        net::link_name(self.instance, slot)
    }

    /// Whether nothing is left of a slot.
    #[cfg(test)]
    pub(crate) fn is_free(&self, slot: u32) -> bool {
        self.net().unwrap().is_free(slot).unwrap()
    }
}
