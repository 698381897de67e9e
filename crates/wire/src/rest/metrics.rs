use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Use of resources at one instant; sizes are bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxMetric {
    /// RFC 3339.
    pub timestamp: String,
    /// Seconds since the epoch.
    pub timestamp_unix: i64,
    /// vCPUs.
    pub cpu_count: u32,
    /// Of one CPU, in per cent.
    pub cpu_used_pct: f64,
    /// Memory without cache.
    pub mem_used: u64,
    /// Memory limit.
    pub mem_total: u64,
    /// Page cache.
    pub mem_cache: u64,
    /// Disk in use.
    pub disk_used: u64,
    /// Disk size.
    pub disk_total: u64,
}

/// The newest metric of each of several sandboxes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxesMetrics {
    /// By sandbox id.
    pub sandboxes: BTreeMap<String, SandboxMetric>,
}
