//! The public HTTP API (contract, section 3): authenticate, limit, parse, translate, answer.
//!
//! ```text
//! serve ──▶ observe ──▶ auth ──▶ one file for each resource ──▶ ports::SandboxManager and the stores
//! body     requests as typed values, or a 400 that names the field
//! error    every way to fail, as its body
//! openapi  the description that is served and checked in
//! ```
//!
//! **Invariants.** It knows no SQL and no node. What it does not support answers 501 with the feature's name. Nothing
//! is changed by a request that does not parse. A foreign object answers as an unknown one.
#![forbid(unsafe_code)]

mod auth;
mod body;
mod convert;
mod create;
mod error;
mod form;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod keys;
mod lifecycle;
mod listing;
mod logs;
mod metrics;
mod network;
mod nodes;
mod observe;
mod openapi;
mod sandboxes;
mod serve;
mod templates;
mod unsupported;

use std::sync::Arc;

use model::Secret;
use ports::{Clock, Limits, SandboxManager, TeamStore, TemplateStore};

pub use openapi::document;

/// What the API stands on.
pub struct ApiParts {
    /// The life of sandboxes.
    pub manager: Arc<dyn SandboxManager>,
    /// Teams and keys.
    pub teams: Arc<dyn TeamStore>,
    /// Templates.
    pub templates: Arc<dyn TemplateStore>,
    /// Rates.
    pub limits: Arc<dyn Limits>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// What clients are told of where sandboxes are reached; `None` leaves them their own configuration.
    pub domain: Option<String>,
    /// What `X-Admin-Token` must be, where operators may act for teams.
    pub admin_token: Option<Secret<String>>,
}

/// The API.
pub struct Api {
    parts: ApiParts,
    known: auth::Known,
}

impl Api {
    /// An API over these parts.
    #[must_use]
    pub fn new(parts: ApiParts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            known: auth::Known::default(),
        })
    }
}

#[cfg(test)]
mod tests;
