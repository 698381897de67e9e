//! Real services for tests.
pub mod api;
pub mod consul;
pub mod nomad;
pub mod postgres;
mod program;
pub mod redis;
