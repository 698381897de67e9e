//! The drivers of sandboxes, over a runtime that fails where it is told to and a journal that can be taken away.
mod admission;
mod builds;
mod copies;
mod ends;
mod memory;
mod pauses;
mod recovery;
mod starts;
mod stowage;
mod world;
