//! Slots that are prepared ahead: a machine with a blank disk and an envd that listens, waiting for whom it is for.
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model::BuildId;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::house::{Fate, House, Shape};
use crate::slot::Slot;

/// Shapes that are prepared at once; the one that was not asked for longest makes room.
const SHAPES_MAX: usize = 4;
/// After a failure, so that a machine that is out of something is not kept busy with trying.
const REST: Duration = Duration::from_secs(1);
/// Preparing a slot wants the processors and the kernel's locks that whoever has just taken one still needs for its
/// answer: a few milliseconds.
const PEACE: Duration = Duration::from_millis(10);

/// The pool of one node.
#[derive(Debug)]
pub(crate) struct Pool {
    shelves: Mutex<Vec<Shelf>>,
    /// Slots for each shape.
    size: usize,
    wanted: Notify,
    taken_at: Mutex<Instant>,
    pub(crate) closed: CancellationToken,
}

#[derive(Debug)]
struct Shelf {
    shape: Shape,
    slots: VecDeque<Slot>,
}

const UNPOISONED: &str = "nothing panics while it holds the shelves";

impl Pool {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            shelves: Mutex::default(),
            size,
            wanted: Notify::new(),
            taken_at: Mutex::new(Instant::now()),
            closed: CancellationToken::new(),
        }
    }

    /// A slot of this shape, if one is there. Either way there will be.
    pub(crate) fn take(&self, shape: Shape) -> Option<Slot> {
        let mut shelves = self.shelves.lock().expect(UNPOISONED);
        self.want_in(&mut shelves, shape);
        let slot = shelves
            .iter_mut()
            .find(|shelf| shelf.shape == shape)?
            .slots
            .pop_front();
        drop(shelves);
        *self.taken_at.lock().expect(UNPOISONED) = Instant::now();
        self.wanted.notify_one();
        slot
    }

    /// Prepares slots of this shape from now on.
    pub(crate) fn want(&self, shape: Shape) {
        self.want_in(&mut self.shelves.lock().expect(UNPOISONED), shape);
        self.wanted.notify_one();
    }

    fn want_in(&self, shelves: &mut Vec<Shelf>, shape: Shape) {
        if self.size == 0 {
            return;
        }
        // The most recently wanted is last.
        let shelf = match shelves.iter().position(|shelf| shelf.shape == shape) {
            Some(i) => shelves.remove(i),
            None => Shelf {
                shape,
                slots: VecDeque::new(),
            },
        };
        shelves.push(shelf);
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.shelves
            .lock()
            .expect(UNPOISONED)
            .iter()
            .map(|shelf| shelf.slots.len())
            .sum()
    }

    fn missing(&self) -> Option<Shape> {
        let shelves = self.shelves.lock().expect(UNPOISONED);
        shelves
            .iter()
            .rev()
            .find(|shelf| shelf.slots.len() < self.size)
            .map(|shelf| shelf.shape)
    }

    /// Whether so many of this shape are left that filling up can wait for a quieter moment.
    fn has_many(&self, shape: Shape) -> bool {
        let shelves = self.shelves.lock().expect(UNPOISONED);
        let shelf = shelves.iter().find(|shelf| shelf.shape == shape);
        shelf.is_some_and(|shelf| shelf.slots.len() * 2 > self.size)
    }

    /// Lets those who have taken a slot come to their answer, for as long as there are many more.
    async fn rest(&self, shape: Shape) {
        while self.has_many(shape) {
            let until = *self.taken_at.lock().expect(UNPOISONED) + PEACE;
            if until <= Instant::now() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = self.closed.cancelled() => return,
            }
        }
    }

    fn surplus(&self) -> Vec<Slot> {
        let mut shelves = self.shelves.lock().expect(UNPOISONED);
        let over = shelves.len().saturating_sub(SHAPES_MAX);
        shelves.drain(..over).flat_map(|shelf| shelf.slots).collect()
    }

    fn put(&self, slot: Slot) -> Option<Slot> {
        let mut shelves = self.shelves.lock().expect(UNPOISONED);
        match shelves.iter_mut().find(|shelf| shelf.shape == slot.shape) {
            Some(shelf) if !self.closed.is_cancelled() => {
                shelf.slots.push_back(slot);
                None
            }
            _ => Some(slot),
        }
    }

    /// Fills the shelves until the pool is closed. One slot at a time: whoever waits for an answer comes first.
    pub(crate) async fn fill(self: Arc<Self>, house: Arc<House>) {
        let mut refusal = None;
        loop {
            while let Some(shape) = self.missing().filter(|_| !self.closed.is_cancelled()) {
                self.rest(shape).await;
                let (pool, house) = (Arc::clone(&self), Arc::clone(&house));
                let made = tokio::task::spawn_blocking(move || {
                    for slot in pool.surplus() {
                        house.give_back(slot.number, Fate::Discard);
                    }
                    let slot = house.park(shape)?;
                    if let Some(unwanted) = pool.put(slot) {
                        house.give_back(unwanted.number, Fate::Discard);
                    }
                    Ok::<_, ports::RuntimeError>(())
                });
                match made.await {
                    Ok(Ok(())) => refusal = None,
                    Ok(Err(error)) => {
                        // Told once, however long the machine is out of it.
                        let why = error.to_string();
                        if refusal.as_ref() != Some(&why) {
                            tracing::warn!(
                                error = &error as &dyn std::error::Error,
                                "a slot could not be prepared; it is tried again"
                            );
                            refusal = Some(why);
                        }
                        let _ = tokio::time::timeout(REST, self.closed.cancelled()).await;
                    }
                    Err(_) => return,
                }
            }
            tokio::select! {
                () = self.wanted.notified() => {}
                () = self.closed.cancelled() => return,
            }
        }
    }

    /// Takes out the slots of these builds; none are prepared any more.
    pub(crate) fn forget(&self, builds: &[BuildId]) -> Vec<Slot> {
        let mut shelves = self.shelves.lock().expect(UNPOISONED);
        let (gone, kept) = shelves
            .drain(..)
            .partition(|shelf: &Shelf| builds.contains(&shelf.shape.build));
        *shelves = kept;
        let gone: Vec<Shelf> = gone;
        gone.into_iter().flat_map(|shelf| shelf.slots).collect()
    }

    /// Takes everything out, for good.
    pub(crate) fn close(&self) -> Vec<Slot> {
        self.closed.cancel();
        self.shelves
            .lock()
            .expect(UNPOISONED)
            .drain(..)
            .flat_map(|shelf| shelf.slots)
            .collect()
    }
}
