//! Builds of templates: registered, started, watched (contract, section 4).
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use model::{Build, BuildId, MiB, Team, Template};
use ports::TemplateError;
use ports::builds::{BuildLine, LinesQuery};
use ports::logs::Level;
use ports::templates::RegisterBuild;
use wire::rest::{BuildEntry, BuildInfo, BuildLogs, BuildReason, BuildStatus, LogDirection, LogLevel};
use wire::rest::{NewBuild, RegisteredBuild, StartBuild};

use crate::auth::Caller;
use crate::body::{Body, PathTexts, Query};
use crate::convert::time;
use crate::error::ApiError;
use crate::templates::namespaced;
use crate::{Api, logs, recipe};

/// Lines of one answer: clients count on no more, and ask again until there are none.
const LINES_MAX: u32 = 100;
/// Lines that are looked through at a time.
const LINES_AT_ONCE: u32 = 1_000;
/// Names of one build.
const TAGS_MAX: usize = 64;
/// vCPUs of a sandbox.
const CPU_MAX: i64 = 32;
/// MiB of a sandbox's memory, at least.
const MEMORY_MB_MIN: i64 = 128;
/// MiB of a sandbox's memory, and of its disk, at most.
const SIZE_MB_MAX: i64 = 1 << 20;

/// Register a build of a new or existing template.
#[utoipa::path(post, path = "/v3/templates", tag = "templates", request_body = NewBuild,
    responses((status = 202, description = "It can be started.", body = RegisteredBuild)))]
pub(crate) async fn register(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(body): Body<NewBuild>,
) -> Result<(StatusCode, Json<RegisteredBuild>), ApiError> {
    let team = &caller.team;
    let request = request(team, body)?;
    let (template, build) = api.parts.templates_manager.register(team.id, request).await?;
    Ok((
        StatusCode::ACCEPTED,
        Json(RegisteredBuild {
            template_id: template.id.to_string(),
            build_id: build.id.to_string(),
            public: template.public,
            names: namespaced(&template, team),
            tags: build.tags,
            aliases: template.names,
        }),
    ))
}

fn request(team: &Team, body: NewBuild) -> Result<RegisterBuild, ApiError> {
    crate::templates::own_team(team, body.team_id.as_deref())?;
    let text = body
        .name
        .or(body.alias)
        .filter(|name| !name.trim().is_empty())
        .ok_or_else(|| ApiError::invalid("Name is required"))?;
    let name = recipe::name(&text)?;
    own_namespace(team, name.namespace.as_deref())?;
    let given = body.tags.unwrap_or_default();
    if given.len() > TAGS_MAX {
        return Err(ApiError::invalid(format!(
            "'tags' has more than {TAGS_MAX} entries"
        )));
    }
    let mut tags: Vec<String> = Vec::new();
    // The name's own tag is one like the others.
    let of_name = text.split_once(':').map(|(_, tag)| tag);
    for tag in of_name.into_iter().chain(given.iter().map(String::as_str)) {
        let tag = recipe::tag(tag)?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    if tags.is_empty() {
        tags.push(Template::DEFAULT_TAG.to_owned());
    }
    Ok(RegisterBuild {
        name,
        tags,
        cpu: body.cpu_count.map(cpu).transpose()?,
        memory: body.memory_mb.map(memory).transpose()?,
        free_disk: body.min_free_disk_mb.map(free_disk).transpose()?,
    })
}

/// Names are made in the team's own namespace.
pub(crate) fn own_namespace(team: &Team, namespace: Option<&str>) -> Result<(), ApiError> {
    match namespace {
        Some(namespace) if namespace != team.slug => Err(TemplateError::Namespace {
            namespace: namespace.to_owned(),
            team: team.slug.clone(),
        }
        .into()),
        _ => Ok(()),
    }
}

fn cpu(count: i64) -> Result<u32, ApiError> {
    u32::try_from(count)
        .ok()
        .filter(|_| (1..=CPU_MAX).contains(&count) && (count == 1 || count % 2 == 0))
        .ok_or_else(|| ApiError::invalid(format!("'cpuCount' must be 1, or an even number up to {CPU_MAX}")))
}

fn memory(mb: i64) -> Result<MiB, ApiError> {
    let fits = (MEMORY_MB_MIN..=SIZE_MB_MAX).contains(&mb) && mb % 2 == 0;
    u32::try_from(mb).ok().filter(|_| fits).map(MiB).ok_or_else(|| {
        ApiError::invalid(format!(
            "'memoryMB' must be an even number in {MEMORY_MB_MIN}..={SIZE_MB_MAX}"
        ))
    })
}

fn free_disk(mb: i64) -> Result<MiB, ApiError> {
    u32::try_from(mb)
        .ok()
        .filter(|_| (0..=SIZE_MB_MAX).contains(&mb))
        .map(MiB)
        .ok_or_else(|| ApiError::invalid(format!("'minFreeDiskMb' must be a number in 0..={SIZE_MB_MAX}")))
}

/// Start a registered build. Other builds of the template that are under way are cancelled.
#[utoipa::path(post, path = "/v2/templates/{templateID}/builds/{buildID}", tag = "templates", request_body = StartBuild,
    params(("templateID" = String, Path), ("buildID" = String, Path)),
    responses((status = 202, description = "It is under way.")))]
pub(crate) async fn start(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathTexts(name, id): PathTexts,
    Body(body): Body<StartBuild>,
) -> Result<StatusCode, ApiError> {
    let id = build_id(&id)?;
    let recipe = recipe::recipe(body)?;
    let template = api.own_template(&caller.team, &name).await?;
    let manager = &api.parts.templates_manager;
    manager.start(caller.team.id, template.id, id, recipe).await?;
    Ok(StatusCode::ACCEPTED)
}

/// How far a build is, and what it said.
#[utoipa::path(get, path = "/templates/{templateID}/builds/{buildID}/status", tag = "templates",
    params(("templateID" = String, Path), ("buildID" = String, Path),
        ("logsOffset" = Option<u64>, Query, maximum = 2147483647, description = "how many lines are known already"), ("limit" = Option<u32>, Query, maximum = 100),
        ("level" = Option<LogLevel>, Query, description = "this and above")),
    responses((status = 200, description = "The build, with at most 100 lines.", body = BuildInfo)))]
pub(crate) async fn status(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathTexts(name, id): PathTexts,
    query: Query,
) -> Result<Json<BuildInfo>, ApiError> {
    let id = build_id(&id)?;
    let wanted = LinesQuery {
        offset: u64::from(offset(&query)?),
        limit: limit(&query)?,
        level: logs::level(&query)?.unwrap_or(Level::Debug),
    };
    let template = api.own_template(&caller.team, &name).await?;
    let found = api
        .parts
        .templates_manager
        .build(caller.team.id, template.id, id)
        .await;
    let build = found.map_err(|error| match error {
        // Whoever watches a build that is none has asked wrongly (contract 4.1).
        TemplateError::NoBuild(_) => ApiError::invalid(error.to_string()),
        error => error.into(),
    })?;
    // After the status, so that the lines of a build that is over are all of them.
    let lines = if wanted.limit == 0 {
        Vec::new()
    } else {
        api.parts.templates_manager.lines(id, wanted).await?
    };
    Ok(Json(BuildInfo {
        template_id: build.template.to_string(),
        build_id: build.id.to_string(),
        status: shown_status(&build.status),
        logs: lines.iter().map(|line| line.message.clone()).collect(),
        log_entries: lines.into_iter().map(entry).collect(),
        reason: reason(&build),
    }))
}

/// What a build said.
#[utoipa::path(get, path = "/templates/{templateID}/builds/{buildID}/logs", tag = "templates",
    params(("templateID" = String, Path), ("buildID" = String, Path),
        ("cursor" = Option<i64>, Query, minimum = 0, description = "milliseconds since the epoch: forward, lines from then on; backward, lines before it"),
        ("limit" = Option<u32>, Query, maximum = 100), ("direction" = Option<LogDirection>, Query, description = "forward by default"),
        ("level" = Option<LogLevel>, Query, description = "this and above"),
        ("source" = Option<String>, Query, pattern = "^(temporary|persistent)$", description = "there is one")),
    responses((status = 200, description = "Lines.", body = BuildLogs)))]
pub(crate) async fn lines(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathTexts(name, id): PathTexts,
    query: Query,
) -> Result<Json<BuildLogs>, ApiError> {
    let id = build_id(&id)?;
    if !matches!(query.get("source"), None | Some("temporary" | "persistent")) {
        return Err(ApiError::invalid(
            "query parameter 'source' must be 'temporary' or 'persistent'",
        ));
    }
    let wanted = Wanted {
        from: logs::millisecond(&query, "cursor")?,
        limit: limit(&query)? as usize,
        forward: logs::direction(&query)?.unwrap_or(true),
        level: logs::level(&query)?.unwrap_or(Level::Debug),
    };
    api.build(&caller, &name, id).await?;
    let lines = api.lines_from(id, &wanted).await?;
    Ok(Json(BuildLogs {
        logs: lines.into_iter().map(entry).collect(),
    }))
}

/// Lines of a build by their time.
struct Wanted {
    from: Option<SystemTime>,
    limit: usize,
    forward: bool,
    level: Level,
}

impl Api {
    /// A build of one of the team's own templates.
    async fn build(&self, caller: &Caller, name: &str, id: BuildId) -> Result<Build, ApiError> {
        let template = self.own_template(&caller.team, name).await?;
        let manager = &self.parts.templates_manager;
        Ok(manager.build(caller.team.id, template.id, id).await?)
    }

    /// The log is kept by numbers, not by times: it is looked through from its beginning.
    async fn lines_from(&self, id: BuildId, wanted: &Wanted) -> Result<Vec<BuildLine>, ApiError> {
        let mut found = VecDeque::new();
        let mut offset = 0;
        if wanted.limit == 0 {
            return Ok(Vec::new());
        }
        loop {
            let query = LinesQuery {
                offset,
                limit: LINES_AT_ONCE,
                level: wanted.level,
            };
            let lines = self.parts.templates_manager.lines(id, query).await?;
            let count = lines.len();
            offset += count as u64;
            let (from, forward) = (wanted.from, wanted.forward);
            found.extend(
                lines
                    .into_iter()
                    .filter(|line| from.is_none_or(|from| (line.at >= from) == forward)),
            );
            if forward {
                found.truncate(wanted.limit);
            } else {
                found.drain(..found.len().saturating_sub(wanted.limit));
            }
            if count == 0 || forward && found.len() == wanted.limit {
                break;
            }
        }
        if !wanted.forward {
            found.make_contiguous().reverse();
        }
        Ok(found.into())
    }
}

fn build_id(text: &str) -> Result<BuildId, ApiError> {
    text.parse()
        .map_err(|_| ApiError::invalid("Invalid build ID: it must be a UUID"))
}

fn offset(query: &Query) -> Result<u32, ApiError> {
    const WHAT: &str = "a number in 0..=2147483647";
    let offset: u32 = query.parsed("logsOffset", WHAT)?.unwrap_or(0);
    if offset <= i32::MAX.unsigned_abs() {
        Ok(offset)
    } else {
        Err(ApiError::invalid(format!(
            "query parameter 'logsOffset' must be {WHAT}"
        )))
    }
}

fn limit(query: &Query) -> Result<u32, ApiError> {
    const WHAT: &str = "a number in 0..=100";
    let limit = query.parsed("limit", WHAT)?.unwrap_or(LINES_MAX);
    if limit <= LINES_MAX {
        Ok(limit)
    } else {
        Err(ApiError::invalid(format!(
            "query parameter 'limit' must be {WHAT}"
        )))
    }
}

pub(crate) fn shown_status(status: &model::BuildStatus) -> BuildStatus {
    match status {
        model::BuildStatus::Waiting => BuildStatus::Waiting,
        model::BuildStatus::Building => BuildStatus::Building,
        model::BuildStatus::Ready => BuildStatus::Ready,
        model::BuildStatus::Failed(_) => BuildStatus::Error,
    }
}

fn entry(line: BuildLine) -> BuildEntry {
    BuildEntry {
        timestamp: time(line.at),
        level: logs::shown_level(line.level),
        message: line.message,
        step: line.step.map(|step| step.to_string()),
    }
}

fn reason(build: &Build) -> Option<BuildReason> {
    let model::BuildStatus::Failed(failure) = &build.status else {
        return None;
    };
    let step = failure.step.map(|step| step.to_string());
    let last = BuildEntry {
        timestamp: time(build.finished_at.unwrap_or(build.updated_at)),
        level: LogLevel::Error,
        message: failure.message.clone(),
        step: step.clone(),
    };
    Some(BuildReason {
        message: failure.message.clone(),
        step,
        log_entries: vec![last],
    })
}
