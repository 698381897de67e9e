//! What tests stand on that are not of one crate alone.
//!
//! ```text
//! services ── postgres, redis, consul, an API   real services, which a test starts on loopback and which end with it
//! ```
//!
//! **Invariants.** What is started here ends with the process that started it, however that ends, and what it wrote goes with
//! it. Whoever needs a program that is not installed is told which package has it.
#![forbid(unsafe_code)]

pub mod services;
