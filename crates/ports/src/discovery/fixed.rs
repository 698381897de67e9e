use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{
    Check, DiscoveryError, Found, Health, Instance, Known, Members, Memory, Role, ServiceDiscovery, Settled,
};

/// Finds out how an instance is.
#[async_trait]
pub trait Probe: Send + Sync {
    /// How it is, with what is to be said of it. Returns in bounded time.
    async fn probe(&self, instance: &Instance) -> (Health, String);
}

/// Those whom the configuration lists, and no others.
///
/// Registering and deregistering change nothing: who is listed is there. Where a [`Probe`] is given they are asked how they are;
/// where none is, they are held to be well.
pub struct Fixed {
    listed: Memory,
    all: Arc<Vec<Instance>>,
}

/// For how long a listed instance would be believed, if it told of itself.
const LISTED: Check = Check::Ttl(Duration::from_secs(30));

impl Fixed {
    /// A list without probes.
    ///
    /// # Errors
    /// One of it is not well-formed, or is listed twice.
    pub async fn new(instances: Vec<Instance>) -> Result<Self, DiscoveryError> {
        let listed = Memory::default();
        for (place, instance) in instances.iter().enumerate() {
            let is_same = |other: &&Instance| other.role == instance.role && other.id == instance.id;
            if instances[..place].iter().find(is_same).is_some() {
                let text = format!("{} {} is listed twice", instance.role, instance.id);
                return Err(DiscoveryError::Invalid(text));
            }
            listed.register(instance.clone(), LISTED).await?;
        }
        Ok(Self {
            listed,
            all: Arc::new(instances),
        })
    }

    /// A list whose instances are probed, each `every` so often, until it is dropped. Not yet probed they are warned of.
    ///
    /// # Errors
    /// As [`Fixed::new`].
    pub async fn probed(
        instances: Vec<Instance>,
        probe: Arc<dyn Probe>,
        every: Duration,
    ) -> Result<Self, DiscoveryError> {
        let fixed = Self::new(instances).await?;
        for place in 0..fixed.all.len() {
            let instance = &fixed.all[place];
            let unknown = (Health::Warning, "not probed yet");
            fixed
                .listed
                .report(instance.role, &instance.id, unknown.0, unknown.1)
                .await?;
            let (listed, all) = (fixed.listed.clone(), Arc::downgrade(&fixed.all));
            tokio::spawn(watch_one(listed, all, place, Arc::clone(&probe), every));
        }
        Ok(fixed)
    }

    fn is_listed(&self, role: Role, id: &str) -> Result<(), DiscoveryError> {
        if self.all.iter().any(|one| one.role == role && one.id == id) {
            return Ok(());
        }
        Err(DiscoveryError::Invalid(format!(
            "{role} {id} is not in the list of the configuration, which is fixed: add it to every role's"
        )))
    }
}

async fn watch_one(
    listed: Memory,
    all: Weak<Vec<Instance>>,
    place: usize,
    probe: Arc<dyn Probe>,
    every: Duration,
) {
    loop {
        let Some(instance) = all.upgrade().and_then(|all| all.get(place).cloned()) else {
            return;
        };
        let (health, notes) = probe.probe(&instance).await;
        if all.strong_count() == 0 {
            return;
        }
        let _ = listed.report(instance.role, &instance.id, health, &notes).await;
        tokio::time::sleep(every).await;
    }
}

#[async_trait]
impl ServiceDiscovery for Fixed {
    async fn register(&self, instance: Instance, _check: Check) -> Result<(), DiscoveryError> {
        instance.check()?;
        self.is_listed(instance.role, &instance.id)
    }

    async fn deregister(&self, _role: Role, id: &str) -> Result<(), DiscoveryError> {
        super::check_id(id)
    }

    async fn report(&self, role: Role, id: &str, health: Health, notes: &str) -> Result<(), DiscoveryError> {
        self.listed.report(role, id, health, notes).await
    }

    async fn discover(&self, role: Role) -> Result<Members, DiscoveryError> {
        self.listed.discover(role).await
    }

    fn watch(&self, role: Role) -> watch::Receiver<Arc<Members>> {
        self.listed.watch(role)
    }

    async fn settle(
        &self,
        _owner: &str,
        role: Role,
        instances: Vec<Instance>,
    ) -> Result<Settled, DiscoveryError> {
        for instance in &instances {
            super::memory::is_of(role, instance)?;
        }
        if instances.is_empty() {
            return Ok(Settled::default());
        }
        Err(DiscoveryError::Invalid(format!(
            "a fixed list does not announce {role} instances: turn the announcing off, or use Consul"
        )))
    }
}

impl From<Vec<Found>> for Members {
    fn from(found: Vec<Found>) -> Self {
        Self {
            found,
            known: Known::Current,
            refused: 0,
        }
    }
}
