use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Every error's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Error {
    /// The HTTP status again: some clients look here.
    pub code: u16,
    /// What happened, to what, and what to do.
    pub message: String,
    /// A slug, where a client may want to tell this error from others of its status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
}
