//! Slots of machines: each machine has a number, which is on its record before anything of it is made, and free again when nothing is
//! left of it. Where there is a network it is a slot there.
use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, RwLock};

use model::NetworkPolicy;
use net::{GUEST, GUEST_GATEWAY, GUEST_PREFIX, Net, SLOTS_MAX};
use ports::RuntimeError;
use ports::step::{At, Step};

const UNPOISONED: &str = "nothing panics while it holds the slots";

/// Numbers of machines.
#[derive(Debug)]
pub struct Slots {
    /// Which of this host's runtimes it is.
    instance: u32,
    is_wired: bool,
    /// There from recovery to the end, where there is a network.
    net: RwLock<Option<Arc<Net>>>,
    /// Those of machines that are on record.
    taken: Mutex<BTreeSet<u32>>,
}

impl Slots {
    /// Those of this number's links and rules, if there is a network; [`Slots::open`] comes next.
    #[must_use]
    pub fn new(instance: u32, is_wired: bool) -> Self {
        Self {
            instance,
            is_wired,
            net: RwLock::default(),
            taken: Mutex::default(),
        }
    }

    /// Takes the numbers of machines that live, puts the firewall in place, in which those that are wired go on with these policies, and
    /// clears away what others left.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn open(&self, adopted: &[u32], wired: &[(u32, NetworkPolicy)]) -> Result<(), Step> {
        self.taken.lock().expect(UNPOISONED).extend(adopted);
        if self.is_wired {
            let net = Net::open(self.instance, wired)?;
            net.sweep()?;
            *self.net.write().expect(UNPOISONED) = Some(Arc::new(net));
        }
        Ok(())
    }

    /// Takes the firewall back, when no machine is left.
    pub fn close(&self) {
        let net = self.net.write().expect(UNPOISONED).take();
        if let Some(Err(error)) = net.and_then(Arc::into_inner).map(Net::close) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                cause = %error.source,
                "the network could not be taken back"
            );
        }
    }

    /// The network; `None` where there is none.
    ///
    /// # Errors
    /// It is not there yet, or no more.
    pub fn net(&self) -> Result<Option<Arc<Net>>, Step> {
        if !self.is_wired {
            return Ok(None);
        }
        let net = self.net.read().expect(UNPOISONED).clone();
        net.ok_or_else(|| io::Error::other("the runtime has not recovered, or is closed"))
            .at("using the network")
            .map(Some)
    }

    /// The lowest number that is nobody's, and of which nothing is left.
    ///
    /// # Errors
    /// All are somebody's.
    pub fn draw(&self) -> Result<u32, RuntimeError> {
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

    /// A number that is on no record any more is free.
    pub fn give_back(&self, slot: u32) {
        self.taken.lock().expect(UNPOISONED).remove(&slot);
    }

    /// Replaces a slot's policy.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn set_policy(&self, slot: u32, policy: &NetworkPolicy) -> Result<(), Step> {
        match self.net()? {
            Some(net) => net.set_policy(slot, policy),
            None => Ok(()),
        }
    }

    /// Takes a slot's policy away: nothing passes any more.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn unplug(&self, slot: u32) -> Result<(), Step> {
        match self.net() {
            Ok(Some(net)) => net.release(slot),
            // Before recovery and after the end nothing is in force but what goes on.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// What a guest is told of its network: the same in every slot; `None` where there is none.
    ///
    /// # Errors
    /// The network is not there yet, or no more.
    pub fn settings(&self) -> Result<Option<(guest::boot::Network, Vec<Ipv4Addr>)>, Step> {
        let network = guest::boot::Network {
            address: GUEST,
            prefix: GUEST_PREFIX,
            gateway: Some(GUEST_GATEWAY),
        };
        Ok(self.net()?.map(|net| (network, net.nameservers())))
    }

    /// The name of a slot's link on the host.
    #[must_use]
    pub fn link(&self, slot: u32) -> String {
        net::link_name(self.instance, slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_machines_until_it_is_given_back() {
        let slots = Slots::new(3, false);
        slots.open(&[1], &[]).unwrap();
        assert_eq!([slots.draw().unwrap(), slots.draw().unwrap()], [0, 2]);
        slots.give_back(0);
        assert_eq!(slots.draw().unwrap(), 0);
        assert!(slots.settings().unwrap().is_none());
    }

    #[test]
    fn before_recovery_nobody_is_wired() {
        let slots = Slots::new(3, true);
        assert!(matches!(slots.draw(), Err(RuntimeError::Step { .. })));
        assert!(slots.net().is_err() && slots.unplug(0).is_ok());
    }
}
