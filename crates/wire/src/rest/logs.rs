use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// For whoever looks closely.
    Debug,
    /// Ordinary events.
    Info,
    /// Something is off.
    Warn,
    /// Something failed.
    Error,
}

/// In which direction of time lines are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogDirection {
    /// Oldest first.
    Forward,
    /// Newest first.
    Backward,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// RFC 3339.
    pub timestamp: String,
    /// How much it matters.
    pub level: LogLevel,
    /// What was said.
    pub message: String,
    /// Details.
    pub fields: BTreeMap<String, String>,
}

/// One line as older clients read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// RFC 3339.
    pub timestamp: String,
    /// A JSON object with `level`, `logger`, `message`, and the details.
    pub line: String,
}

/// Logs, version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Logs {
    /// Oldest first.
    pub logs: Vec<LogLine>,
    /// The same.
    pub log_entries: Vec<LogEntry>,
}

/// Logs, version 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogsV2 {
    /// In the asked order.
    pub logs: Vec<LogEntry>,
}
