//! The time of day, so that tests can say what it is.
use std::time::SystemTime;

/// Tells the time. Durations and deadlines use tokio's clock, which tests pause.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Clock for System {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}
