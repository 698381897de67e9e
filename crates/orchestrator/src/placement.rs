//! Which nodes are asked to take a sandbox, and in which order.
//!
//! ```text
//!  reports, cordons, failures ──▶ View    what is known of each node, indexed
//!  Wish ─▶ Search ─▶ Placement ─▶  │      filter, then the best of a few by chance (choose, score)
//!            │                     ▼
//!            └──── Reserved ◀── claim     counts on its node until a report that is newer than the start
//!            └──── Refusals               why nothing was found, counted by filter
//!  drain, evict                           what is to be done with the sandboxes of a node that is to be emptied
//! ```
//!
//! **Invariants.**
//! - A decision looks at a few nodes; only where chance finds none does it look at more, at most [`Policy::scan_max`].
//! - The same calls with the same seed choose the same nodes. `View` knows no clock, no lock and no task.
//! - What this process starts counts from the choice on, so that a burst between two reports is spread.
//! - What is chosen may be wrong, as reports are old: the node has the last word.
mod choose;
pub mod drain;
pub mod evict;
mod facts;
mod handle;
mod lanes;
mod policy;
mod refusals;
mod score;
mod view;
mod wish;

pub use facts::{Facts, Place, Room, promised};
pub use handle::{Placement, Reserved, Search};
pub use policy::{Overcommit, Policy, Ratio, STARTING_MANY, WARM_ENOUGH, Weights};
pub use refusals::{Filtered, Reason, Refusals};
pub use view::{Choice, Claim, Known, State, View};
pub use wish::{Needs, Wish};
