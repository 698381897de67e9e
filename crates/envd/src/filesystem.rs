//! Entries of the file system: looked at, made, moved, removed and watched (contract 5.4).
//!
//! ```text
//! service    the calls, as clients make them
//! tree       what the calls do to directories and entries
//! entry      what a client is told of an entry
//! watch      what happens below a directory
//! watchers   watches of clients that come back to ask
//! ```
//!
//! Everything is done as root; a user says what `~` and relative paths mean, and owns what is made.
mod entry;
mod service;
mod tree;
mod watch;
mod watchers;

pub(crate) use self::service::Filesystem;
