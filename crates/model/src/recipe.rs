//! What a template is built from, and the plan that a node carries out.
//!
//! ```text
//! Recipe ──plan──▶ Planned step, Planned step, …   each with the user, directory and environment that it runs with,
//!                                                  and the key under which its result is kept
//! ```
use serde::{Deserialize, Serialize};

use crate::{Secret, TemplateRef};

mod plan;

pub use plan::{Context, Key, Planned, RecipeError, plan};

/// A template, as its user describes it (contract 4.2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// What it starts from.
    pub from: Base,
    /// What is done to it, in this order.
    pub steps: Vec<Step>,
    /// Run by `/bin/bash -l -c` when everything is there, and alive in every sandbox.
    pub start: Option<String>,
    /// Says, by its exit code 0, that the start command has come up.
    pub ready: Option<String>,
    /// Nothing is taken from the cache.
    pub force: bool,
}

/// What a build starts from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// An image in a registry.
    Image {
        /// `[registry/]name[:tag][@digest]`.
        reference: String,
        /// For a private registry.
        credentials: Option<RegistryCredentials>,
    },
    /// Another template.
    Template(TemplateRef),
}

/// Who asks a registry (contract 4.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistryCredentials {
    /// A name and a password.
    Basic {
        /// The name.
        username: String,
        /// The password or token.
        password: Secret<String>,
    },
    /// Amazon ECR.
    Aws {
        /// Access key.
        access_key_id: String,
        /// Its secret.
        secret_access_key: Secret<String>,
        /// Where the registry is.
        region: String,
    },
    /// Google Artifact Registry.
    Gcp {
        /// A service account's key file, JSON.
        service_account: Secret<String>,
    },
}

/// One thing that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What.
    pub action: Action,
    /// Neither this step nor any after it is taken from the cache.
    pub force: bool,
}

/// What a step does (contract 4.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Puts uploaded files into it.
    Copy {
        /// A glob, relative to the context.
        source: String,
        /// Where.
        destination: String,
        /// `user[:group]`; the current user where it is not given.
        owner: Option<String>,
        /// Permissions, where they are given.
        mode: Option<u32>,
        /// The upload, by the hash that the client gave it: 64 lower-case hex digits.
        files: String,
    },
    /// Runs `/bin/bash -l -c`.
    Run {
        /// The command.
        command: String,
        /// As whom; the current user where it is not given.
        user: Option<String>,
    },
    /// Sets variables, in this order.
    Env(Vec<(String, String)>),
    /// Changes the directory, which is made where it is not there.
    Workdir(String),
    /// Changes the user, who is made where it is not there.
    User {
        /// The name.
        name: String,
        /// Whether it may use sudo without a password.
        sudo: bool,
    },
}
