use wire::rest::{Node, NodeDetail, NodeStatusChange};

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

    /// Opens a machine for new sandboxes, closes it, or has it emptied: for operators, see [`Client::of_operator`].
    ///
    /// # Errors
    /// As of every call.
    pub async fn change_node(&self, id: &str, change: &NodeStatusChange) -> Result<(), CallError> {
        let path = format!("/nodes/{}", segment(id));
        self.post(&path, change).await.map(drop)
    }
}
