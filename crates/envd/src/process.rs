//! Processes: started, watched, fed and ended (contract 5.3).
//!
//! ```text
//! service   the calls, as clients make them
//! launch    from a request to a running program
//! running   one program: its input, its output to whoever listens, its end
//! table     which programs there are, and for a while which there were
//! ```
mod launch;
mod running;
mod service;
mod table;

pub(crate) use table::Processes;
