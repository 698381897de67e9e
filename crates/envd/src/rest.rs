//! After work, the memory that it took goes back to the machine.
use std::time::Duration;

use tokio::sync::Notify;

/// How long after work: long enough that busy times do not pay for it again and again.
const AFTER: Duration = Duration::from_secs(2);

/// Tells that there was work, and gives back what is left of it.
#[derive(Default)]
pub(crate) struct Rest(Notify);

impl Rest {
    /// There is or was work.
    pub(crate) fn after_work(&self) {
        self.0.notify_one();
    }

    /// Rests for ever.
    pub(crate) async fn run(&self) {
        loop {
            self.0.notified().await;
            tokio::time::sleep(AFTER).await;
            let _ = tokio::task::spawn_blocking(linux::memory::give_back).await;
        }
    }
}
