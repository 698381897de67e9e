//! The public HTTP API (contract, section 3): authenticate, limit, parse, translate, answer.
//!
//! ```text
//! serve ──▶ observe ──▶ auth ──▶ one file for each resource ──▶ the managers of ports, and the stores
//! body     requests as typed values, or a 400 that names the field
//! incoming requests' bodies as they come: uploads, files of volumes
//! recipe   what a template is built from, out of a client's words
//! error    every way to fail, as its body
//! openapi  the description that is served and checked in
//! ```
//!
//! **Invariants.** It knows no SQL and no node. What it does not support answers 501 with the feature's name. Nothing
//! is changed by a request that does not parse. A foreign object answers as an unknown one.
#![forbid(unsafe_code)]

mod auth;
mod body;
mod builds;
mod content;
mod convert;
mod create;
mod error;
mod fork;
mod form;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod incoming;
mod keys;
mod lifecycle;
mod listing;
mod logs;
mod metrics;
mod network;
mod nodes;
mod observe;
mod openapi;
mod recipe;
mod root;
mod sandboxes;
mod serve;
mod snapshots;
mod tags;
mod templates;
mod unsupported;
mod uploads;
mod volumes;

use std::sync::Arc;

use model::Secret;
use ports::{
    Clock, Limits, SandboxManager, TeamStore, TemplateManager, TemplateStore, VolumeFiles, VolumeManager,
};

pub use nodes::capabilities;
pub use openapi::document;

/// What the API stands on.
pub struct ApiParts {
    /// The life of sandboxes.
    pub manager: Arc<dyn SandboxManager>,
    /// Teams and keys.
    pub teams: Arc<dyn TeamStore>,
    /// Templates.
    pub templates: Arc<dyn TemplateStore>,
    /// What becomes of templates, and of snapshots.
    pub templates_manager: Arc<dyn TemplateManager>,
    /// What becomes of volumes.
    pub volumes: Arc<dyn VolumeManager>,
    /// What is in volumes.
    pub volume_files: Arc<dyn VolumeFiles>,
    /// Rates.
    pub limits: Arc<dyn Limits>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// What clients are told of where sandboxes are reached; `None` leaves them their own configuration.
    pub domain: Option<String>,
    /// Where clients reach the API, as `scheme://host[:port]`, if not where their requests say: behind a proxy that ends
    /// TLS, say. Addresses for uploads begin with it.
    pub public_url: Option<String>,
    /// The host name under which the edge passes on what came over TLS: requests for it are answered with `https`.
    pub tls_host: Option<String>,
    /// What `X-Admin-Token` must be, where operators may act for teams.
    pub admin_token: Option<Secret<String>>,
}

/// The API.
pub struct Api {
    parts: ApiParts,
    known: auth::Known,
    upload_key: uploads::Key,
    transfers: incoming::Transfers,
}

impl Api {
    /// An API over these parts.
    #[must_use]
    pub fn new(parts: ApiParts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            known: auth::Known::default(),
            upload_key: uploads::Key::default(),
            transfers: incoming::Transfers::default(),
        })
    }
}

#[cfg(test)]
mod tests;
