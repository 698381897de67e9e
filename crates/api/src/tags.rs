//! Tags of templates: what they name, and what they have named (contract 4.3).
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use model::{Build, BuildId, BuildStatus, Template};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use wire::rest::{AssignTags, AssignedTags, DeleteTags, TagAssignment, TagAssignments, TagExists};
use wire::rest::{TagGroup, TagGroups, TagsCount, TemplateTag};

use crate::auth::Caller;
use crate::body::{Body, PathText, PathTexts, Query};
use crate::convert::time;
use crate::error::ApiError;
use crate::{Api, listing, recipe, templates};

/// Tags of one request.
const TAGS_MAX: usize = 64;
/// Tags of one page, where nothing is said.
const GROUPS_DEFAULT: usize = 25;
/// Builds of each of them, where nothing is said.
const GROUPED_DEFAULT: usize = 6;
/// Builds of one page, where nothing is said.
const ASSIGNMENTS_DEFAULT: usize = 50;
/// Tags, and builds, of one page.
const PAGE_MAX: usize = 100;
const SEARCH_CHARS_MAX: usize = 256;

/// Let more tags name a build.
#[utoipa::path(post, path = "/templates/tags", tag = "tags", request_body = AssignTags,
    responses((status = 201, description = "They name it.", body = AssignedTags)))]
pub(crate) async fn assign(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(body): Body<AssignTags>,
) -> Result<(StatusCode, Json<AssignedTags>), ApiError> {
    let tags = tags(&body.tags)?;
    let target = templates::parse(&body.target)?;
    let manager = &api.parts.templates_manager;
    let build = manager.tag(caller.team.id, &target, tags.clone()).await?;
    Ok((
        StatusCode::CREATED,
        Json(AssignedTags {
            build_id: build.to_string(),
            tags,
        }),
    ))
}

/// Take tags away.
#[utoipa::path(delete, path = "/templates/tags", tag = "tags", request_body = DeleteTags,
    responses((status = 204, description = "They name nothing any more.")))]
pub(crate) async fn delete(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(body): Body<DeleteTags>,
) -> Result<StatusCode, ApiError> {
    let tags = tags(&body.tags)?;
    if body.name.contains(':') {
        return Err(ApiError::invalid("'name' must be without a tag"));
    }
    if tags.iter().any(|tag| tag == Template::DEFAULT_TAG) {
        return Err(ApiError::invalid("the tag 'default' cannot be deleted"));
    }
    let name = templates::parse(&body.name)?;
    api.parts
        .templates_manager
        .untag(caller.team.id, &name, tags)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn tags(given: &[String]) -> Result<Vec<String>, ApiError> {
    if given.is_empty() || given.len() > TAGS_MAX {
        return Err(ApiError::invalid(format!(
            "'tags' must have 1..={TAGS_MAX} entries"
        )));
    }
    let mut tags = Vec::with_capacity(given.len());
    for tag in given {
        let tag = recipe::tag(tag)?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

/// Tags of a template.
#[utoipa::path(get, path = "/templates/{templateID}/tags", tag = "tags", params(("templateID" = String, Path)),
    responses((status = 200, description = "All tags.", body = Vec<TemplateTag>)))]
pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(name): PathText,
) -> Result<Json<Vec<TemplateTag>>, ApiError> {
    let template = api.seen_template(&caller.team, &name).await?;
    let tag = |(tag, build): (&String, &BuildId)| TemplateTag {
        tag: tag.clone(),
        build_id: build.to_string(),
        created_at: time(made(&template, *build)),
    };
    Ok(Json(template.tags.iter().map(tag).collect()))
}

/// When a build that a tag names was made.
fn made(template: &Template, build: BuildId) -> SystemTime {
    let settings = template.builds.get(&build);
    settings.map_or(template.updated_at, |settings| settings.created_at)
}

/// How many tags a template has.
#[utoipa::path(get, path = "/templates/{templateID}/tags/count", tag = "tags", params(("templateID" = String, Path)),
    responses((status = 200, description = "So many.", body = TagsCount)))]
pub(crate) async fn count(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(name): PathText,
) -> Result<Json<TagsCount>, ApiError> {
    let template = own(&api, &caller, &name).await?;
    Ok(Json(TagsCount {
        total: template.tags.len(),
    }))
}

/// Whether a template has a tag.
#[utoipa::path(get, path = "/templates/{templateID}/tags/exists", tag = "tags",
    params(("templateID" = String, Path), ("tag" = String, Query)),
    responses((status = 200, description = "Whether it has.", body = TagExists)))]
pub(crate) async fn exists(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(name): PathText,
    query: Query,
) -> Result<Json<TagExists>, ApiError> {
    let tag = query
        .get("tag")
        .ok_or_else(|| ApiError::invalid("query parameter 'tag' is missing"))?;
    let tag = recipe::tag(tag)?;
    let template = own(&api, &caller, &name).await?;
    Ok(Json(TagExists {
        exists: template.tags.contains_key(&tag),
        normalized_tag: tag,
    }))
}

/// Builds that a tag names or has named.
#[utoipa::path(get, path = "/templates/{templateID}/tags/{tag}/assignments", tag = "tags",
    params(("templateID" = String, Path), ("tag" = String, Path), ("limit" = Option<u32>, Query, minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "nextCursor of the page before")),
    responses((status = 200, description = "A page, newest first.", body = TagAssignments)))]
pub(crate) async fn assignments(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathTexts(name, tag): PathTexts,
    query: Query,
) -> Result<Json<TagAssignments>, ApiError> {
    let tag = recipe::tag(&tag)?;
    let limit = limit(&query, "limit", ASSIGNMENTS_DEFAULT)?;
    let after: Option<(SystemTime, BuildId)> = query
        .get("cursor")
        .map(|cursor| listing::place(cursor, false))
        .transpose()?;
    let template = own(&api, &caller, &name).await?;
    let mut page = History::of(&template, &api.builds_of(&template).await?).of_tag(&tag);
    if let Some((at, id)) = after {
        let after = (time(at), id);
        page.retain(|assigned| assigned.place() < after);
    }
    let more = page.len() > limit;
    page.truncate(limit);
    let last = page.last().filter(|_| more);
    Ok(Json(TagAssignments {
        next_cursor: last.map(|last| listing::place_token(last.at, &last.build, false)),
        data: page.iter().map(|assigned| assigned.shown(&tag)).collect(),
    }))
}

/// Tags, each with the builds that it names or has named.
#[utoipa::path(get, path = "/templates/{templateID}/tags/groups", tag = "tags",
    params(("templateID" = String, Path), ("assignmentLimit" = Option<u32>, Query, minimum = 1, maximum = 100),
        ("tagsLimit" = Option<u32>, Query, minimum = 1, maximum = 100), ("tagsCursor" = Option<String>, Query, description = "nextCursor of the page before"),
        ("search" = Option<String>, Query, max_length = 256, description = "a part of the tag"),
        ("sort" = Option<String>, Query, pattern = "^(latest|name)_(asc|desc)$")),
    responses((status = 200, description = "A page.", body = TagGroups)))]
pub(crate) async fn groups(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathText(name): PathText,
    query: Query,
) -> Result<Json<TagGroups>, ApiError> {
    let (tags_max, assignments_max) = (
        limit(&query, "tagsLimit", GROUPS_DEFAULT)?,
        limit(&query, "assignmentLimit", GROUPED_DEFAULT)?,
    );
    let sort = Sort::of(query.get("sort"))?;
    let after = query
        .get("tagsCursor")
        .map(|cursor| Place::of_cursor(cursor, sort))
        .transpose()?;
    let search = query.get("search").unwrap_or_default().to_ascii_lowercase();
    if search.chars().count() > SEARCH_CHARS_MAX {
        return Err(ApiError::invalid(format!(
            "query parameter 'search' is longer than {SEARCH_CHARS_MAX} characters"
        )));
    }
    let template = own(&api, &caller, &name).await?;
    let builds = api.builds_of(&template).await?;
    let history = History::of(&template, &builds);
    let found = template.tags.keys().filter(|tag| tag.contains(&search));
    let mut page: Vec<(Place, Vec<Assigned>)> = found
        .map(|tag| {
            let assigned = history.of_tag(tag);
            let latest = assigned
                .first()
                .map_or(SystemTime::UNIX_EPOCH, |assigned| assigned.at);
            let place = Place {
                sort,
                latest: time(latest),
                tag: tag.clone(),
            };
            (place, assigned)
        })
        .collect();
    page.sort_by(|(one, _), (other, _)| one.cmp(other));
    page.retain(|(place, _)| after.as_ref().is_none_or(|after| place > after));
    let more = page.len() > tags_max;
    page.truncate(tags_max);
    let last = page.last().filter(|_| more);
    Ok(Json(TagGroups {
        next_cursor: last.map(|(place, _)| place.cursor()),
        tags: page
            .iter()
            .map(|(place, assigned)| group(&place.tag, assigned, assignments_max))
            .collect(),
    }))
}

fn group(tag: &str, assigned: &[Assigned], max: usize) -> TagGroup {
    TagGroup {
        tag: tag.to_owned(),
        assignments: assigned
            .iter()
            .take(max)
            .map(|assigned| assigned.shown(tag))
            .collect(),
        has_more: assigned.len() > max,
    }
}

/// The template, if it is the caller's own; what others publish is none here.
async fn own(api: &Api, caller: &Caller, name: &str) -> Result<Template, ApiError> {
    let template = api.seen_template(&caller.team, name).await?;
    if template.team == caller.team.id {
        Ok(template)
    } else {
        Err(templates::unknown(name))
    }
}

fn limit(query: &Query, name: &str, default: usize) -> Result<usize, ApiError> {
    const WHAT: &str = "a number in 1..=100";
    let limit = query.parsed(name, WHAT)?.unwrap_or(default);
    if (1..=PAGE_MAX).contains(&limit) {
        Ok(limit)
    } else {
        Err(ApiError::invalid(format!(
            "query parameter '{name}' must be {WHAT}"
        )))
    }
}

/// What the tags of a template name, and what the builds that are remembered say that they have named.
struct History<'a> {
    template: &'a Template,
    builds: &'a [Build],
}

/// A build that a tag names, or has named.
#[derive(Debug)]
struct Assigned {
    build: BuildId,
    at: SystemTime,
    created_at: SystemTime,
    finished_at: Option<SystemTime>,
}

impl<'a> History<'a> {
    fn of(template: &'a Template, builds: &'a [Build]) -> Self {
        Self { template, builds }
    }

    /// Newest first.
    fn of_tag(&self, tag: &str) -> Vec<Assigned> {
        let named = self.template.tags.get(tag).copied();
        let was_named = |build: &&Build| {
            build.status == BuildStatus::Ready
                && Some(build.id) != named
                && build.tags.iter().any(|own| own == tag)
        };
        let mut found: Vec<Assigned> = self
            .builds
            .iter()
            .filter(was_named)
            .map(|build| Assigned {
                build: build.id,
                at: build.finished_at.unwrap_or(build.updated_at),
                created_at: build.created_at,
                finished_at: build.finished_at,
            })
            .collect();
        if let Some(named) = named {
            let (made, record) = (
                made(self.template, named),
                self.builds.iter().find(|build| build.id == named),
            );
            let finished = record.map_or(Some(made), |record| record.finished_at);
            let own = finished.unwrap_or(made);
            let newest = found.iter().map(|assigned| assigned.at).max();
            found.push(Assigned {
                build: named,
                // Where a later build had the tag in between, it was given back to this one by hand: no earlier than then.
                at: newest.map_or(own, |newest| {
                    if newest < own {
                        own
                    } else {
                        newest.max(self.template.updated_at)
                    }
                }),
                created_at: record.map_or(made, |record| record.created_at),
                finished_at: finished,
            });
        }
        found.sort_by_key(|assigned| std::cmp::Reverse(assigned.place()));
        found
    }
}

impl Assigned {
    fn place(&self) -> (String, BuildId) {
        (time(self.at), self.build)
    }

    fn shown(&self, tag: &str) -> TagAssignment {
        TagAssignment {
            assignment_id: self.id(tag),
            build_id: self.build.to_string(),
            assigned_at: time(self.at),
            build_created_at: time(self.created_at),
            build_finished_at: self.finished_at.map(time),
        }
    }

    /// The same for the same tag and build, and no other: a UUID of version 8 (RFC 9562), as clients expect one.
    fn id(&self, tag: &str) -> String {
        let digest = Sha256::new()
            .chain_update(self.build.0.as_bytes())
            .chain_update(tag)
            .finalize();
        let hex = hex::encode(&digest[..16]);
        format!(
            "{}-{}-8{}-8{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[13..16],
            &hex[17..20],
            &hex[20..]
        )
    }
}

/// In which order tags are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Sort {
    LatestDesc,
    LatestAsc,
    NameAsc,
    NameDesc,
}

impl Sort {
    fn of(text: Option<&str>) -> Result<Self, ApiError> {
        match text {
            None | Some("latest_desc") => Ok(Sort::LatestDesc),
            Some("latest_asc") => Ok(Sort::LatestAsc),
            Some("name_asc") => Ok(Sort::NameAsc),
            Some("name_desc") => Ok(Sort::NameDesc),
            Some(_) => Err(ApiError::invalid(
                "query parameter 'sort' must be 'latest_desc', 'latest_asc', 'name_asc' or 'name_desc'",
            )),
        }
    }
}

/// A place in a list of tags.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    sort: Sort,
    latest: String,
    tag: String,
}

impl Place {
    fn of_cursor(cursor: &str, sort: Sort) -> Result<Self, ApiError> {
        let place = URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|json| serde_json::from_slice::<Self>(&json).ok())
            .filter(|place| place.sort == sort);
        place.ok_or_else(|| ApiError::invalid("Invalid next token"))
    }

    fn cursor(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }
}

impl Ord for Place {
    /// In the order in which they are listed.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let by_name = self.tag.cmp(&other.tag);
        match self.sort {
            Sort::LatestDesc => other.latest.cmp(&self.latest).then(by_name),
            Sort::LatestAsc => self.latest.cmp(&other.latest).then(by_name),
            Sort::NameAsc => by_name,
            Sort::NameDesc => by_name.reverse(),
        }
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
