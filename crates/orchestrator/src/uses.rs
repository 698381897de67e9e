//! Builds that operations have in hand. Between reading the name of a build and storing who uses it, and between making
//! one and storing its name, nothing in a store keeps it: this does.
//!
//! ```text
//!  operation: begin ── read a name ── take ── store who uses it ── end
//!  collector: list ── not named ── … ── condemn what nobody has taken ── still not named ── remove ── bury
//! ```
//!
//! Whoever takes a build before it is condemned keeps it. Whoever comes later is refused, and reads the store again. What
//! is named by those who held it before is seen by the look at the store that follows the condemnation. And what somebody
//! makes without telling its name is safe as long as whatever was under way when it was first seen.
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::BuildId;
use tokio::time::Instant;

/// No operation carries the name of a build for so long before it takes it.
const BURIED_FOR: Duration = Duration::from_secs(3600);

/// Which operations are under way, and what they have taken.
#[derive(Default)]
pub(crate) struct Uses(Mutex<Hands>);

#[derive(Default)]
struct Hands {
    next: u64,
    /// Operations under way, in the order in which they began.
    under_way: BTreeSet<u64>,
    /// How many have taken a build.
    taken: HashMap<BuildId, usize>,
    /// What nobody can take any more.
    condemned: HashSet<BuildId>,
    /// Those of them that are removed, the oldest first.
    buried: VecDeque<(Instant, BuildId)>,
}

/// An operation under way. What it has taken is not removed while this lives.
pub(crate) struct Use {
    uses: Arc<Uses>,
    number: u64,
    taken: Mutex<Vec<BuildId>>,
}

/// A point in the order of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment(u64);

impl Uses {
    fn hands(&self) -> MutexGuard<'_, Hands> {
        self.0.lock().expect("nothing panics while it holds the hands")
    }

    /// Begins one.
    pub(crate) fn begin(self: &Arc<Self>) -> Use {
        let mut hands = self.hands();
        let number = hands.next;
        hands.next += 1;
        hands.under_way.insert(number);
        drop(hands);
        Use {
            uses: Arc::clone(self),
            number,
            taken: Mutex::default(),
        }
    }

    /// Now.
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.hands().next)
    }

    /// Whether all that began before `moment` have ended.
    pub(crate) fn ended_before(&self, moment: Moment) -> bool {
        self.hands()
            .under_way
            .first()
            .is_none_or(|first| *first >= moment.0)
    }

    /// Lets nobody take these builds any more, but for those that somebody has taken; returns which.
    pub(crate) fn condemn(&self, builds: Vec<BuildId>) -> Vec<BuildId> {
        let mut hands = self.hands();
        let is_free = |build: &BuildId| !hands.taken.contains_key(build);
        let free: Vec<_> = builds.into_iter().filter(is_free).collect();
        hands.condemned.extend(&free);
        free
    }

    /// Builds that were condemned may be taken again.
    pub(crate) fn pardon(&self, builds: &[BuildId]) {
        let mut hands = self.hands();
        for build in builds {
            hands.condemned.remove(build);
        }
    }

    /// Builds that were condemned are removed.
    pub(crate) fn bury(&self, builds: &[BuildId]) {
        let (mut hands, now) = (self.hands(), Instant::now());
        hands.buried.extend(builds.iter().map(|build| (now, *build)));
        while let Some((at, build)) = hands.buried.front().copied()
            && now.duration_since(at) > BURIED_FOR
        {
            hands.buried.pop_front();
            hands.condemned.remove(&build);
        }
    }
}

impl Use {
    /// Takes a build, before it is used: `false` where it is removed, or about to be. Then nothing in a store names it any
    /// more, and whoever read its name there reads again.
    #[must_use]
    pub(crate) fn take(&self, build: BuildId) -> bool {
        let mut hands = self.uses.hands();
        if hands.condemned.contains(&build) {
            return false;
        }
        *hands.taken.entry(build).or_default() += 1;
        drop(hands);
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(build);
        true
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut hands = self.uses.hands();
        hands.under_way.remove(&self.number);
        for build in self.taken.get_mut().unwrap_or_else(PoisonError::into_inner) {
            match hands.taken.get_mut(build) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(hands.taken.remove(build)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_moment_is_over_when_all_that_began_before_it_have_ended() {
        let uses = Arc::new(Uses::default());
        let at_first = uses.moment();
        assert!(uses.ended_before(at_first));
        let (long, short) = (uses.begin(), uses.begin());
        let between = uses.moment();
        let late = uses.begin();
        assert!(uses.ended_before(at_first) && !uses.ended_before(between));
        drop(short);
        assert!(!uses.ended_before(between));
        drop(long);
        assert!(uses.ended_before(between), "what began later is no matter");
        drop(late);
        assert!(uses.ended_before(uses.moment()));
    }

    #[tokio::test]
    async fn what_is_taken_is_not_condemned_and_what_is_condemned_is_not_taken() {
        let uses = Arc::new(Uses::default());
        let (one, two) = (BuildId::random(), BuildId::random());
        let (first, second) = (uses.begin(), uses.begin());
        assert!(first.take(one) && first.take(one) && second.take(one));
        assert_eq!(uses.condemn(vec![one, two]), [two]);
        assert!(!first.take(two));
        drop(first);
        assert!(uses.condemn(vec![one]).is_empty());
        drop(second);
        assert_eq!(uses.condemn(vec![one]), [one]);
        uses.pardon(&[one]);
        assert!(uses.begin().take(one) && !uses.begin().take(two));
        let hands = uses.hands();
        assert!(hands.taken.is_empty() && hands.under_way.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_buried_are_forgotten_when_nobody_can_come_for_them_any_more() {
        let uses = Arc::new(Uses::default());
        let (old, new) = (BuildId::random(), BuildId::random());
        uses.bury(&uses.condemn(vec![old]));
        tokio::time::advance(BURIED_FOR + Duration::from_secs(1)).await;
        assert!(!uses.begin().take(old));
        uses.bury(&uses.condemn(vec![new]));
        assert!(uses.begin().take(old) && !uses.begin().take(new));
        assert_eq!(uses.hands().condemned.len(), 1);
    }
}
