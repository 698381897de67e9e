//! One process's copy of the routes. Pure: it is told what Redis said, and says what that changes.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use model::{SandboxId, Seat};
use ports::{Route, RouteChange};
use tokio::time::Instant;

use super::super::link::Away;
use super::payload::{self, Kept};

/// A route of this size is none of ours: tokens have 64 characters, a mask at most some hundred.
const ROUTE_BYTES_MAX: usize = 4096;

/// A route as it stands in Redis.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    /// The number of the change that put it there.
    pub(super) number: u64,
    pub(super) route: Arc<Route>,
}

impl Standing {
    pub(super) fn parse(sandbox: SandboxId, said: &str) -> Result<Self, Away> {
        let parse = || {
            if said.len() > ROUTE_BYTES_MAX {
                return None;
            }
            let mut parts = said.splitn(4, ' ');
            let mut next = || parts.next();
            let (number, version, seat, kept) = (next()?, next()?, next()?, next()?);
            let kept: Kept = serde_json::from_str(kept).ok()?;
            let bare = Route {
                sandbox,
                seat: payload::parse_seat(seat)?,
                version: version.parse().ok()?,
                envd_token: None,
                traffic_token: None,
                mask_host: None,
            };
            Some(Self {
                number: number.parse().ok()?,
                route: Arc::new(kept.complete(bare)?),
            })
        };
        parse().ok_or(Away::Foreign("a route"))
    }
}

/// All that stands in Redis.
pub(super) struct Whole {
    /// Of which life.
    pub(super) life: String,
    /// The last change that is in it for certain.
    pub(super) number: u64,
    pub(super) routes: Vec<Standing>,
}

/// One entry of the stream.
pub(super) enum Change {
    Published(Standing),
    Withdrawn {
        number: u64,
        sandbox: SandboxId,
        seat: Seat,
    },
}

/// What the copy knows of a sandbox.
pub(super) enum Found {
    Route(Arc<Route>),
    /// It was withdrawn by this process just now.
    Withdrawn,
    Unknown,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    /// `None` for what this process has withdrawn, until the copy has followed so far.
    route: Option<Arc<Route>>,
    /// Redis has lost it: it is served until then, if nobody publishes it again.
    lost_until: Option<Instant>,
}

/// The copy.
#[derive(Default)]
pub(super) struct View {
    routes: HashMap<SandboxId, Entry>,
    life: Option<String>,
    /// All changes up to this one are in it.
    number: u64,
    /// What this process withdrew and could not tell: the seat, and the version that it knew.
    hidden: HashMap<SandboxId, (Seat, u64)>,
    /// What is in `routes` for less than ever.
    passing: HashSet<SandboxId>,
}

impl View {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn life(&self) -> &str {
        self.life.as_deref().unwrap_or_default()
    }

    pub(super) fn find(&self, sandbox: SandboxId) -> Found {
        match self.routes.get(&sandbox) {
            Some(Entry {
                route: Some(route), ..
            }) => Found::Route(Arc::clone(route)),
            Some(Entry { route: None, .. }) => Found::Withdrawn,
            None if self.hidden.contains_key(&sandbox) => Found::Withdrawn,
            None => Found::Unknown,
        }
    }

    /// Only what Redis has.
    pub(super) fn published(&self, sandbox: SandboxId) -> Option<Arc<Route>> {
        let entry = self.routes.get(&sandbox)?;
        let route = entry.route.as_ref()?;
        entry.lost_until.is_none().then(|| Arc::clone(route))
    }

    pub(super) fn all(&self) -> Vec<Arc<Route>> {
        self.routes
            .values()
            .filter_map(|entry| entry.route.clone())
            .collect()
    }

    /// What Redis said of a sandbox, which may be old by now.
    pub(super) fn put(&mut self, sandbox: SandboxId, standing: Standing) -> Vec<RouteChange> {
        let known = self.routes.get(&sandbox);
        if known.is_some_and(|known| known.lost_until.is_some()) {
            return self.put_over_lost(sandbox, standing);
        }
        // What the copy has followed already and does not hold is withdrawn by now.
        let newest = known.map_or(self.number, |known| known.number);
        let mut changes = Vec::new();
        if standing.number > newest {
            self.set(standing, &mut changes);
        }
        changes
    }

    /// Redis has a route again where it had lost one: of the two the newer stands.
    fn put_over_lost(&mut self, sandbox: SandboxId, standing: Standing) -> Vec<RouteChange> {
        let mut changes = Vec::new();
        let known = self.routes.get(&sandbox).and_then(|entry| entry.route.as_ref());
        if known.is_none_or(|known| known.version <= standing.route.version) {
            self.set(standing, &mut changes);
        }
        changes
    }

    /// Redis took this seat's route away under this number.
    pub(super) fn take(&mut self, sandbox: SandboxId, seat: Seat, number: u64) -> Vec<RouteChange> {
        let mut changes = Vec::new();
        let is_newer = |entry: &Entry| entry.number > number && entry.lost_until.is_none();
        if number <= self.number || self.routes.get(&sandbox).is_some_and(is_newer) {
            return changes;
        }
        self.remove(sandbox, &mut changes);
        if changes.is_empty() {
            changes.push(RouteChange::Withdrawn(sandbox, seat));
        }
        let entry = Entry {
            number,
            route: None,
            lost_until: None,
        };
        self.routes.insert(sandbox, entry);
        self.passing.insert(sandbox);
        changes
    }

    /// Redis has nothing of a sandbox of which this seat was to go.
    pub(super) fn nothing_stands(&mut self, sandbox: SandboxId, seat: Seat) -> Vec<RouteChange> {
        let mut changes = Vec::new();
        let is_its = |route: &Arc<Route>| route.seat == seat;
        let known = self.routes.get(&sandbox);
        if known.is_some_and(|entry| entry.route.as_ref().is_some_and(is_its)) {
            self.remove(sandbox, &mut changes);
        }
        changes
    }

    /// Takes a route away that could not be withdrawn, and shows it no more until it is; the version that was known.
    pub(super) fn hide(&mut self, sandbox: SandboxId, seat: Seat) -> (Option<u64>, Vec<RouteChange>) {
        let mut changes = Vec::new();
        let route = self.routes.get(&sandbox).and_then(|entry| entry.route.as_ref());
        let Some(version) = route
            .filter(|route| route.seat == seat)
            .map(|route| route.version)
        else {
            return (None, changes);
        };
        self.remove(sandbox, &mut changes);
        self.hidden.insert(sandbox, (seat, version));
        (Some(version), changes)
    }

    pub(super) fn unhide(&mut self, sandbox: SandboxId, seat: Seat) {
        if self
            .hidden
            .get(&sandbox)
            .is_some_and(|(hidden, _)| *hidden == seat)
        {
            self.hidden.remove(&sandbox);
        }
    }

    /// Whether this process has withdrawn it, and could not tell yet.
    pub(super) fn is_hidden(&self, route: &Route) -> bool {
        let is_it = |(seat, version): &(Seat, u64)| *seat == route.seat && route.version <= *version;
        self.hidden.get(&route.sandbox).is_some_and(is_it)
    }

    /// The next change of the stream; `false` where it is not the next one.
    pub(super) fn follow(&mut self, change: Change, changes: &mut Vec<RouteChange>) -> bool {
        let number = match &change {
            Change::Published(standing) => standing.number,
            Change::Withdrawn { number, .. } => *number,
        };
        // The first number of a life is told by nobody.
        if self.number != 0 && number != self.number + 1 {
            return false;
        }
        self.number = number;
        match change {
            Change::Published(standing) => {
                let sandbox = standing.route.sandbox;
                let known = self.routes.get(&sandbox);
                if known.is_some_and(|entry| entry.lost_until.is_some()) {
                    changes.extend(self.put_over_lost(sandbox, standing));
                } else if known.is_none_or(|entry| number > entry.number) {
                    self.set(standing, changes);
                }
            }
            Change::Withdrawn { sandbox, seat, .. } => {
                let known = self.routes.get(&sandbox);
                match known {
                    // What this process did itself.
                    Some(Entry {
                        number: known,
                        route: None,
                        ..
                    }) if *known <= number => {
                        self.routes.remove(&sandbox);
                        self.passing.remove(&sandbox);
                    }
                    Some(entry) if entry.number < number || entry.lost_until.is_some() => {
                        self.remove(sandbox, changes);
                    }
                    Some(_) => {}
                    // It was known to somebody here all the same, perhaps: who asks Redis in between finds what is not in the copy.
                    None => changes.push(RouteChange::Withdrawn(sandbox, seat)),
                }
            }
        }
        true
    }

    /// Takes the whole in place of what was known. Of another life, what is missing is served until `lost_until`.
    pub(super) fn replace(&mut self, whole: Whole, lost_until: Instant) -> Vec<RouteChange> {
        let mut changes = Vec::new();
        let is_other = self.life.as_ref().is_some_and(|life| *life != whole.life);
        let stands: HashMap<SandboxId, &Standing> = whole
            .routes
            .iter()
            .map(|standing| (standing.route.sandbox, standing))
            .collect();
        let known: Vec<SandboxId> = self.routes.keys().copied().collect();
        for sandbox in known {
            let Some(entry) = self.routes.get_mut(&sandbox) else {
                continue;
            };
            if stands.contains_key(&sandbox) {
                continue;
            }
            if entry.route.is_none() {
                // Of this life and not yet followed, it is still of use.
                if is_other || entry.number <= whole.number {
                    self.routes.remove(&sandbox);
                    self.passing.remove(&sandbox);
                }
            } else if is_other {
                // What was lost before is not lost anew.
                entry.lost_until.get_or_insert(lost_until);
                self.passing.insert(sandbox);
            } else if entry.lost_until.is_none() && entry.number <= whole.number {
                self.remove(sandbox, &mut changes);
            }
        }
        self.life = Some(whole.life);
        self.number = whole.number;
        for standing in whole.routes {
            let sandbox = standing.route.sandbox;
            match self.routes.get_mut(&sandbox) {
                Some(entry) if is_other => {
                    let newer = |route: &Arc<Route>| route.version > standing.route.version;
                    if entry.route.as_ref().is_some_and(newer) {
                        entry.lost_until.get_or_insert(lost_until);
                        self.passing.insert(sandbox);
                    } else {
                        self.set(standing, &mut changes);
                    }
                }
                Some(entry) if entry.lost_until.is_some() => {
                    changes.extend(self.put_over_lost(sandbox, standing));
                }
                Some(entry) if entry.number >= standing.number => {}
                _ => self.set(standing, &mut changes),
            }
        }
        changes
    }

    /// Lets go what was lost and not published again in time.
    pub(super) fn let_go(&mut self, now: Instant, changes: &mut Vec<RouteChange>) {
        if self.passing.is_empty() {
            return;
        }
        let number = self.number;
        let is_over = |entry: &Entry| match entry.lost_until {
            Some(until) => until <= now,
            None => entry.route.is_none() && entry.number <= number,
        };
        let over: Vec<SandboxId> = self
            .passing
            .iter()
            .filter(|sandbox| self.routes.get(sandbox).is_none_or(is_over))
            .copied()
            .collect();
        for sandbox in over {
            self.remove(sandbox, changes);
        }
    }

    fn set(&mut self, standing: Standing, changes: &mut Vec<RouteChange>) {
        let Standing { number, route } = standing;
        if self.is_hidden(&route) {
            return;
        }
        self.hidden.remove(&route.sandbox);
        self.passing.remove(&route.sandbox);
        let entry = Entry {
            number,
            route: Some(Arc::clone(&route)),
            lost_until: None,
        };
        let old = self.routes.insert(route.sandbox, entry).and_then(|old| old.route);
        match old {
            Some(old) if *old == *route => return,
            Some(old) if old.seat != route.seat => {
                changes.push(RouteChange::Withdrawn(old.sandbox, old.seat));
            }
            _ => {}
        }
        changes.push(RouteChange::Published(route));
    }

    fn remove(&mut self, sandbox: SandboxId, changes: &mut Vec<RouteChange>) {
        self.passing.remove(&sandbox);
        if let Some(route) = self.routes.remove(&sandbox).and_then(|entry| entry.route) {
            changes.push(RouteChange::Withdrawn(sandbox, route.seat));
        }
    }
}

#[cfg(test)]
mod tests;
