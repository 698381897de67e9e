use wire::rest::Template;

use super::Client;
use crate::error::CallError;

impl Client {
    /// Templates that the team may use.
    ///
    /// # Errors
    /// As of every call.
    pub async fn templates(&self) -> Result<Vec<Template>, CallError> {
        self.get("/templates").await?.json()
    }
}
