use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::build::BuildStatus;

/// A machine that sandboxes are copies of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// Its id.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// The build that is meant when no tag is given; the newest, where there is none yet.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// vCPUs of its sandboxes.
    pub cpu_count: u32,
    /// MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u32,
    /// Whether other teams may use it.
    pub public: bool,
    /// Its names, without the namespace.
    pub aliases: Vec<String>,
    /// Its names, with the namespace.
    pub names: Vec<String>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// Not kept: null.
    pub created_by: Option<serde_json::Value>,
    /// RFC 3339.
    pub last_spawned_at: Option<String>,
    /// Sandboxes that were created from it.
    pub spawn_count: u64,
    /// Builds that it had.
    pub build_count: u64,
    /// What envd in its sandboxes can do.
    pub envd_version: String,
    /// How far that build is.
    pub build_status: BuildStatus,
}

/// A template with its builds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateDetail {
    /// The template.
    #[serde(flatten)]
    pub template: Template,
    /// Its builds.
    pub builds: Vec<TemplateBuild>,
}

/// A build of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateBuild {
    /// Its id.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// How far it is.
    pub status: BuildStatus,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// vCPUs of its sandboxes.
    pub cpu_count: u32,
    /// MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// MiB.
    #[serde(rename = "diskSizeMB", skip_serializing_if = "Option::is_none")]
    pub disk_size_mb: Option<u32>,
    /// What envd in its sandboxes can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envd_version: Option<String>,
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateTag {
    /// The tag.
    pub tag: String,
    /// The build that it names.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// When, RFC 3339.
    pub created_at: String,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Alias {
    /// The template's id.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Whether other teams may use it.
    pub public: bool,
}

/// A change of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ChangeTemplate {
    /// Whether other teams may use it; left out, it stays as it is.
    pub public: Option<bool>,
}

/// A template that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangedTemplate {
    /// Its names, with the namespace.
    pub names: Vec<String>,
}
