//! What a sandbox said and used, as it is kept and asked for.
use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// How much a log line matters; ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For whoever looks closely.
    Debug,
    /// Ordinary events.
    Info,
    /// Something is off.
    Warn,
    /// Something failed.
    Error,
}

/// One line of a sandbox's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was said.
    pub timestamp: SystemTime,
    /// How much it matters.
    pub level: Level,
    /// Which part said it: `envd`, `process`, `atoll`.
    pub logger: String,
    /// What was said.
    pub message: String,
    /// Details.
    pub fields: BTreeMap<String, String>,
}

/// Which lines are asked for (contract 3.5, logs v1 and v2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// Forward: lines at or after this time. Backward: lines before it.
    pub from: Option<SystemTime>,
    /// At most so many lines; 1..=1000.
    pub limit: usize,
    /// Oldest first, or newest first.
    pub forward: bool,
    /// Lines that matter at least this much.
    pub level: Option<Level>,
    /// Lines whose message contains this.
    pub search: Option<String>,
}

/// Use of a sandbox's resources at one instant (contract 3.3, SandboxMetric).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricSample {
    /// When it was taken.
    pub timestamp: SystemTime,
    /// vCPUs of the sandbox.
    pub cpu_count: u32,
    /// CPU used since the sample before, in per cent of one CPU.
    pub cpu_used_pct: f64,
    /// Bytes.
    pub mem_used: u64,
    /// Bytes.
    pub mem_total: u64,
    /// Bytes.
    pub mem_cache: u64,
    /// Bytes.
    pub disk_used: u64,
    /// Bytes.
    pub disk_total: u64,
}
