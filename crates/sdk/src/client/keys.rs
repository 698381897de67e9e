use wire::rest::{CreatedKey, Key, NewKey};

use super::{Client, segment};
use crate::error::CallError;

impl Client {
    /// Makes a key of the team. It is shown this once.
    ///
    /// # Errors
    /// As of every call.
    pub async fn create_key(&self, name: &str) -> Result<CreatedKey, CallError> {
        self.post(
            "/api-keys",
            &NewKey {
                name: name.to_owned(),
            },
        )
        .await?
        .json()
    }

    /// Keys of the team.
    ///
    /// # Errors
    /// As of every call.
    pub async fn keys(&self) -> Result<Vec<Key>, CallError> {
        self.get("/api-keys").await?.json()
    }

    /// Makes a key worthless.
    ///
    /// # Errors
    /// As of every call.
    pub async fn delete_key(&self, id: &str) -> Result<(), CallError> {
        self.delete(&format!("/api-keys/{}", segment(id))).await
    }
}
