use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// More tags for a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AssignTags {
    /// `[namespace/]name[:tag]`: the build that is meant.
    pub target: String,
    /// What is to name it too.
    pub tags: Vec<String>,
}

/// Tags that name a build now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AssignedTags {
    /// The build.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// Those that were asked for.
    pub tags: Vec<String>,
}

/// Tags that are to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeleteTags {
    /// `[namespace/]name` of the template.
    pub name: String,
    /// Which; not `default`.
    pub tags: Vec<String>,
}

/// How many tags a template has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TagsCount {
    /// So many.
    pub total: usize,
}

/// Whether a template has a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagExists {
    /// It has.
    pub exists: bool,
    /// The tag, as it is stored.
    pub normalized_tag: String,
}

/// A build that a tag names, or has named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagAssignment {
    /// Names this build at this tag.
    pub assignment_id: String,
    /// The build.
    pub build_id: String,
    /// Since when, RFC 3339.
    pub assigned_at: String,
    /// RFC 3339.
    pub build_created_at: String,
    /// RFC 3339.
    pub build_finished_at: Option<String>,
}

/// Builds that a tag names or has named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagAssignments {
    /// Newest first.
    pub data: Vec<TagAssignment>,
    /// The `cursor` of the next page, if there is one.
    pub next_cursor: Option<String>,
}

/// A tag with the builds that it names or has named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagGroup {
    /// The tag.
    pub tag: String,
    /// Newest first.
    pub assignments: Vec<TagAssignment>,
    /// Whether there are more.
    pub has_more: bool,
}

/// Tags with their builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagGroups {
    /// In the asked order.
    pub tags: Vec<TagGroup>,
    /// The `tagsCursor` of the next page, if there is one.
    pub next_cursor: Option<String>,
}
