//! The whole runtime on this machine: real namespaces, disks and envd.
//!
//! The static programs come from the directory that `ATOLL_TEST_BIN_DIR` names; `cargo xtask test` builds them. Without
//! it, or without root, nothing runs and each test says so.
#![expect(clippy::print_stderr, reason = "a test that does not run says so")]
mod assembly;
mod boot;
mod builds;
mod client;
mod copies;
mod deaths;
mod disks;
mod house;
mod images;
mod launcher;
mod life;
mod memory;
mod roots;
mod volumes;
