//! Several processes, their stores, the lines between them, and clients.
pub(crate) mod clients;
#[path = "../world/fake_files.rs"]
#[allow(dead_code, reason = "volumes are of other tests")]
pub(crate) mod fake_files;
pub(crate) mod house;
pub(crate) mod laws;
pub(crate) mod line;
pub(crate) mod machine;
pub(crate) mod wire;
