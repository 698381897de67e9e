//! The container runtime.
#![forbid(unsafe_code)]

mod boot;
pub mod launcher;
mod step;
mod syscalls;
