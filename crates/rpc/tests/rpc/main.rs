//! The cluster's calls, from one process to another: over real connections on loopback, with certificates of an authority made for it.
mod guest;
mod node;
mod security;
mod services;
#[expect(clippy::print_stderr, reason = "figures are for whoever asked for them")]
mod speed;
mod world;
