//! The API, from a terminal.
mod context;
mod conversation;
mod copy;
mod dockerfile;
mod export;
pub(crate) mod key;
mod logs;
pub(crate) mod node;
pub(crate) mod program;
pub(crate) mod sandbox;
mod signals;
pub(crate) mod snapshot;
pub(crate) mod table;
pub(crate) mod template;
mod terminal;
pub(crate) mod volume;
mod words;

use anyhow::Result;
use model::Secret;
use sdk::{Client, SandboxClient};

/// Which server is talked to.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) api_url: String,
    pub(crate) sandbox_url: String,
    pub(crate) api_key: Secret<String>,
}

impl Endpoint {
    pub(crate) fn api(&self) -> Result<Client> {
        Ok(Client::new(&self.api_url, &self.api_key)?)
    }

    /// Into a sandbox, with the token that the API tells its owner.
    pub(crate) async fn inside(&self, id: &str) -> Result<SandboxClient> {
        let token = self.api()?.sandbox(id).await?.envd_access_token.map(Secret::new);
        Ok(SandboxClient::new(&self.sandbox_url, id, token.as_ref())?)
    }
}
