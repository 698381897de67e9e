use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a sandbox may reach, and who may reach it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkConfig {
    /// `false`: ports answer only to the traffic token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// Addresses and CIDRs that may be reached although `denyOut` names them. Domains are not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_out: Option<Vec<String>>,
    /// Addresses and CIDRs that may not be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny_out: Option<Vec<String>>,
    /// The `Host` that services see; `${PORT}` stands for the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_request_host: Option<String>,
    /// Not supported yet: refused where it is not empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<serde_json::Value>,
    /// Not supported yet: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_proxy: Option<serde_json::Value>,
    /// Not supported yet: refused where it is not empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https_ports: Option<Vec<u32>>,
    /// Not supported yet: refused where it is not empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_servers: Option<Vec<String>>,
}

/// Rules that replace those in force; what is left out is cleared.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkUpdate {
    /// See [`NetworkConfig::allow_out`].
    pub allow_out: Option<Vec<String>>,
    /// See [`NetworkConfig::deny_out`].
    pub deny_out: Option<Vec<String>>,
    /// `false` denies everything but `allowOut`; left out, it stays as it is.
    #[serde(rename = "allow_internet_access")]
    pub allow_internet_access: Option<bool>,
    /// Not supported yet: refused where it is not empty.
    pub rules: Option<serde_json::Value>,
    /// Not supported yet: refused.
    pub egress_proxy: Option<serde_json::Value>,
    /// Not supported yet: refused where it is not empty.
    pub dns_servers: Option<Vec<String>>,
}
