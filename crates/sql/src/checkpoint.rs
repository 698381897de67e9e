//! Copies the write-ahead log into the database beside the writer. SQLite would let every so-many-th commit do it, and
//! that client would wait for the disk: with small logs that is one create in fifty.
use std::time::Duration;

use sqlx::{Connection, SqliteConnection};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Some thousand writes at the most: copying them takes milliseconds.
const PERIOD: Duration = Duration::from_secs(1);

/// Ends with its value.
pub(crate) struct Checkpoints(#[expect(dead_code, reason = "held for its end")] DropGuard);

impl Checkpoints {
    pub(crate) fn start(connection: SqliteConnection) -> Self {
        let stop = CancellationToken::new();
        tokio::spawn(run(connection, stop.clone()));
        Self(stop.drop_guard())
    }
}

async fn run(mut connection: SqliteConnection, stop: CancellationToken) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
        }
        // Passive: waits for nobody, and nobody for it.
        if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
            .execute(&mut connection)
            .await
        {
            tracing::warn!(%error, "the log was not copied into the database; it grows until that works");
        }
    }
    let _ = connection.close().await;
}
