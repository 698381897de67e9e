//! SQLite keeps the laws of the stores, and what its module says beyond them.
mod contract;
mod durable;
mod upgrade;
