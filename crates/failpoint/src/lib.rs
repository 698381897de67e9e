//! Places at which a daemon under test dies, as by `kill -9`: between an intent that is on record and its effect, and
//! between an effect and what makes it known.
//!
//! Without the feature `failpoints` a point is nothing, and a release has none. With it, a daemon that was told of a
//! file dies at the point whose name the file holds; whoever tests it writes the name when the stage is set.
//!
//! **Invariant.** A death here runs nothing: no destructor, no handler, no other task's next step.
#![forbid(unsafe_code)]

use std::time::Duration;

#[cfg(feature = "failpoints")]
mod armed;

#[cfg(feature = "failpoints")]
pub use armed::arm;

/// A point, named `<crate>/<what has just been done>`.
#[inline]
pub fn reach(name: &'static str) {
    #[cfg(feature = "failpoints")]
    armed::reach(name);
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}

/// A wait that is only there to be on the safe side: next to nothing where there are points, since whoever waits for one is
/// not to wait for minutes, and what is right is right without it.
#[must_use]
pub const fn margin(usual: Duration) -> Duration {
    if cfg!(feature = "failpoints") {
        Duration::from_secs(1)
    } else {
        usual
    }
}
