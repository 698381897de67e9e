use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Candidacy, Check, DiscoveryError, Elections, Found, Health, Instance, Known, Members, Role, Settings,
    Settled, Standing, Values, check_id, check_setting,
};

/// Who is there in one process: the embedded mode's adapter, and the reference. Clones share one cluster.
///
/// Nothing is forgotten and nobody falls silent here: the registered live in the process that would tell.
#[derive(Clone, Default)]
pub struct Memory(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    settings: watch::Sender<Arc<Values>>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<(Role, String), Entry>,
    views: HashMap<Role, watch::Sender<Arc<Members>>>,
    offices: HashMap<String, Office>,
}

struct Entry {
    found: Found,
    /// Who settles it. Those without one are their own.
    owner: Option<String>,
    reports: bool,
}

#[derive(Default)]
struct Office {
    /// How often it was given.
    given: u64,
    /// Who holds it, then who waits.
    candidates: VecDeque<Candidate>,
    next: u64,
}

struct Candidate {
    number: u64,
    name: String,
    standing: watch::Sender<Standing>,
}

impl State {
    fn members(&self, role: Role) -> Members {
        let own = self.entries.iter().filter(|((of, _), _)| *of == role);
        Members {
            found: own.map(|(_, entry)| entry.found.clone()).collect(),
            known: Known::Current,
            refused: 0,
        }
    }

    fn tell(&self, role: Role) {
        if let Some(view) = self.views.get(&role) {
            let members = Arc::new(self.members(role));
            view.send_if_modified(|known| {
                let is_news = **known != *members;
                *known = members;
                is_news
            });
        }
    }
}

impl Office {
    /// Gives the office to whoever stands first, and says so to everybody.
    fn tell(&mut self) {
        let Some(first) = self.candidates.front() else {
            return;
        };
        if first.standing.borrow().token().is_none() {
            self.given += 1;
            let _ = first
                .standing
                .send_replace(Standing::Leading { token: self.given });
        }
        let leader = Some(first.name.clone());
        for waiting in self.candidates.iter().skip(1) {
            let _ = waiting.standing.send_replace(Standing::Waiting {
                leader: leader.clone(),
            });
        }
    }
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0
            .state
            .lock()
            .expect("nothing panics while it holds the state")
    }

    fn resign(&self, office: &str, number: u64) {
        let mut state = self.state();
        let Some(of) = state.offices.get_mut(office) else {
            return;
        };
        if let Some(place) = of.candidates.iter().position(|one| one.number == number) {
            let gone = of.candidates.remove(place);
            if let Some(gone) = gone {
                gone.standing.send_replace(Standing::Waiting { leader: None });
            }
        }
        of.tell();
    }
}

fn found(instance: Instance) -> Found {
    Found {
        instance,
        health: Health::Passing,
        notes: String::new(),
    }
}

#[async_trait]
impl super::ServiceDiscovery for Memory {
    async fn register(&self, instance: Instance, check: Check) -> Result<(), DiscoveryError> {
        instance.check()?;
        let mut state = self.state();
        let role = instance.role;
        state.entries.insert(
            (role, instance.id.clone()),
            Entry {
                found: found(instance),
                owner: None,
                reports: matches!(check, Check::Ttl(_)),
            },
        );
        state.tell(role);
        Ok(())
    }

    async fn deregister(&self, role: Role, id: &str) -> Result<(), DiscoveryError> {
        check_id(id)?;
        let mut state = self.state();
        state.entries.remove(&(role, id.to_owned()));
        state.tell(role);
        Ok(())
    }

    async fn report(&self, role: Role, id: &str, health: Health, notes: &str) -> Result<(), DiscoveryError> {
        check_id(id)?;
        let mut state = self.state();
        let entry = state.entries.get_mut(&(role, id.to_owned()));
        let Some(entry) = entry.filter(|entry| entry.reports) else {
            return Err(DiscoveryError::Unknown {
                role,
                id: id.to_owned(),
            });
        };
        entry.found.health = health;
        entry.found.notes = match health {
            Health::Passing => String::new(),
            Health::Warning | Health::Critical => notes.chars().take(512).collect(),
        };
        state.tell(role);
        Ok(())
    }

    async fn discover(&self, role: Role) -> Result<Members, DiscoveryError> {
        Ok(self.state().members(role))
    }

    fn watch(&self, role: Role) -> watch::Receiver<Arc<Members>> {
        let mut state = self.state();
        let now = state.members(role);
        let view = state.views.entry(role);
        view.or_insert_with(|| watch::channel(Arc::new(now)).0)
            .subscribe()
    }

    async fn settle(
        &self,
        owner: &str,
        role: Role,
        instances: Vec<Instance>,
    ) -> Result<Settled, DiscoveryError> {
        check_id(owner)?;
        for instance in &instances {
            super::memory::is_of(role, instance)?;
        }
        let mut state = self.state();
        let mut settled = Settled::default();
        let is_own = |of: Role, entry: &Entry| of == role && entry.owner.as_deref() == Some(owner);
        let before = state.entries.len();
        state.entries.retain(|(of, id), entry| {
            !is_own(*of, entry) || instances.iter().any(|instance| instance.id == *id)
        });
        settled.removed = before - state.entries.len();
        for instance in instances {
            let entry = Entry {
                found: found(instance.clone()),
                owner: Some(owner.to_owned()),
                reports: false,
            };
            match state.entries.insert((role, instance.id), entry) {
                Some(_) => settled.kept += 1,
                None => settled.added += 1,
            }
        }
        state.tell(role);
        Ok(settled)
    }
}

/// Whether an instance is well-formed, and of this role.
pub(super) fn is_of(role: Role, instance: &Instance) -> Result<(), DiscoveryError> {
    instance.check()?;
    if instance.role != role {
        let text = format!("{} is of the role {}, not {role}", instance.id, instance.role);
        return Err(DiscoveryError::Invalid(text));
    }
    Ok(())
}

impl Elections for Memory {
    fn stand(&self, office: &str, candidate: &str) -> Result<Candidacy, DiscoveryError> {
        check_id(office)?;
        check_id(candidate)?;
        let (sender, receiver) = watch::channel(Standing::Waiting { leader: None });
        let stop = CancellationToken::new();
        let number = {
            let mut state = self.state();
            let of = state.offices.entry(office.to_owned()).or_default();
            let number = of.next;
            of.next += 1;
            of.candidates.push_back(Candidate {
                number,
                name: candidate.to_owned(),
                standing: sender,
            });
            of.tell();
            number
        };
        let (own, office, stopped) = (self.clone(), office.to_owned(), stop.clone());
        tokio::spawn(async move {
            stopped.cancelled().await;
            own.resign(&office, number);
        });
        Ok(Candidacy::new(receiver, stop))
    }
}

#[async_trait]
impl Settings for Memory {
    fn watch_settings(&self) -> watch::Receiver<Arc<Values>> {
        self.0.settings.send_if_modified(|values| {
            let is_news = values.known != Known::Current;
            Arc::make_mut(values).known = Known::Current;
            is_news
        });
        self.0.settings.subscribe()
    }

    async fn put_setting(&self, key: &str, value: &str) -> Result<(), DiscoveryError> {
        check_setting(key)?;
        if value.len() > super::SETTING_BYTES_MAX {
            return Err(DiscoveryError::Invalid(format!("the setting {key} is too long")));
        }
        self.0.settings.send_modify(|values| {
            let values = Arc::make_mut(values);
            values.known = Known::Current;
            values.values.insert(key.to_owned(), value.to_owned());
        });
        Ok(())
    }

    async fn remove_setting(&self, key: &str) -> Result<(), DiscoveryError> {
        check_setting(key)?;
        self.0.settings.send_modify(|values| {
            Arc::make_mut(values).values.remove(key);
        });
        Ok(())
    }
}
