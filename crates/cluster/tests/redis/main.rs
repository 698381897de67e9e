//! What a fleet shares in Redis, against real servers that each test starts for itself.
#![forbid(unsafe_code)]
#![cfg(feature = "redis")]

mod bus;
mod catalog;
mod contract;
mod idempotency;
mod limits;
mod line;
mod queue;
mod server;
mod shares;
