use wire::rest::{Node, NodeDetail};

use super::{Client, segment};
use crate::error::CallError;

impl Client {
    /// Machines that run sandboxes.
    ///
    /// # Errors
    /// As of every call.
    pub async fn nodes(&self) -> Result<Vec<Node>, CallError> {
        self.get("/nodes").await?.json()
    }

    /// A machine, with the team's sandboxes on it.
    ///
    /// # Errors
    /// As of every call.
    pub async fn node(&self, id: &str) -> Result<NodeDetail, CallError> {
        self.get(&format!("/nodes/{}", segment(id))).await?.json()
    }
}
