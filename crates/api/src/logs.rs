//! What sandboxes said.
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use ports::logs::{Level, LogLine, LogQuery};
use wire::rest::{LogDirection, LogEntry, LogLevel, Logs, LogsV2};

use crate::auth::Caller;
use crate::body::{PathSandbox, Query};
use crate::error::ApiError;
use crate::{Api, convert};

const LIMIT_MAX: usize = 1_000;
const SEARCH_CHARS_MAX: usize = 256;

pub(crate) fn millisecond(query: &Query, name: &str) -> Result<Option<std::time::SystemTime>, ApiError> {
    // No further than clients can count.
    let ms: Option<i64> = query.parsed(name, "milliseconds since the epoch")?;
    let at = |ms| {
        u64::try_from(ms)
            .ok()
            .and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)))
            .ok_or_else(|| {
                ApiError::invalid(format!(
                    "query parameter '{name}' must be milliseconds since the epoch"
                ))
            })
    };
    ms.map(at).transpose()
}

/// Whether the oldest lines are asked for.
pub(crate) fn direction(query: &Query) -> Result<Option<bool>, ApiError> {
    match query.get("direction") {
        None => Ok(None),
        Some("backward") => Ok(Some(false)),
        Some("forward") => Ok(Some(true)),
        Some(_) => Err(ApiError::invalid(
            "query parameter 'direction' must be 'forward' or 'backward'",
        )),
    }
}

/// How much the lines matter at least that are asked for.
pub(crate) fn level(query: &Query) -> Result<Option<Level>, ApiError> {
    match query.get("level") {
        None => Ok(None),
        Some("debug") => Ok(Some(Level::Debug)),
        Some("info") => Ok(Some(Level::Info)),
        Some("warn") => Ok(Some(Level::Warn)),
        Some("error") => Ok(Some(Level::Error)),
        Some(_) => Err(ApiError::invalid(
            "query parameter 'level' must be 'debug', 'info', 'warn' or 'error'",
        )),
    }
}

fn limit(query: &Query) -> Result<usize, ApiError> {
    let wrong = || ApiError::invalid("query parameter 'limit' must be a number in 0..=1000");
    let limit = query
        .parsed("limit", "a number in 0..=1000")?
        .unwrap_or(LIMIT_MAX);
    if limit <= LIMIT_MAX {
        Ok(limit)
    } else {
        Err(wrong())
    }
}

/// Logs of a sandbox, oldest first (older clients).
#[utoipa::path(get, path = "/sandboxes/{sandboxID}/logs", tag = "sandboxes",
    params(("sandboxID" = String, Path), ("start" = Option<i64>, Query, minimum = 0, description = "milliseconds since the epoch"), ("limit" = Option<u32>, Query, maximum = 1000)),
    responses((status = 200, description = "Lines.", body = Logs)))]
pub(crate) async fn v1(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    query: Query,
) -> Result<Json<Logs>, ApiError> {
    let wanted = LogQuery {
        from: millisecond(&query, "start")?,
        limit: limit(&query)?,
        forward: true,
        level: None,
        search: None,
    };
    let lines = api.parts.manager.logs(caller.team.id, id, wanted).await?;
    let old = |line: &LogLine| {
        let mut object: serde_json::Map<String, serde_json::Value> = line
            .fields
            .iter()
            .map(|(key, value)| (key.clone(), value.clone().into()))
            .collect();
        object.insert("level".to_owned(), level_name(line.level).into());
        object.insert("logger".to_owned(), line.logger.clone().into());
        object.insert("message".to_owned(), line.message.clone().into());
        wire::rest::LogLine {
            timestamp: convert::time(line.timestamp),
            line: serde_json::Value::Object(object).to_string(),
        }
    };
    Ok(Json(Logs {
        logs: lines.iter().map(old).collect(),
        log_entries: lines.into_iter().map(entry).collect(),
    }))
}

/// Logs of a sandbox.
#[utoipa::path(get, path = "/v2/sandboxes/{sandboxID}/logs", tag = "sandboxes",
    params(("sandboxID" = String, Path), ("cursor" = Option<i64>, Query, minimum = 0, description = "milliseconds since the epoch"), ("limit" = Option<u32>, Query, maximum = 1000),
        ("direction" = Option<LogDirection>, Query), ("level" = Option<LogLevel>, Query, description = "this and above"), ("search" = Option<String>, Query, max_length = 256)),
    responses((status = 200, description = "Lines.", body = LogsV2)))]
pub(crate) async fn v2(
    State(api): State<Arc<Api>>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    query: Query,
) -> Result<Json<LogsV2>, ApiError> {
    let forward = direction(&query)?.unwrap_or(false);
    let level = level(&query)?;
    let search = query.get("search").map(str::to_owned);
    if search
        .as_ref()
        .is_some_and(|text| text.chars().count() > SEARCH_CHARS_MAX)
    {
        return Err(ApiError::invalid(format!(
            "query parameter 'search' is longer than {SEARCH_CHARS_MAX} characters"
        )));
    }
    let wanted = LogQuery {
        from: millisecond(&query, "cursor")?,
        limit: limit(&query)?,
        forward,
        level,
        search,
    };
    let lines = api.parts.manager.logs(caller.team.id, id, wanted).await?;
    Ok(Json(LogsV2 {
        logs: lines.into_iter().map(entry).collect(),
    }))
}

fn entry(line: LogLine) -> LogEntry {
    let mut fields = line.fields;
    fields.insert("logger".to_owned(), line.logger);
    LogEntry {
        timestamp: convert::time(line.timestamp),
        level: shown_level(line.level),
        message: line.message,
        fields,
    }
}

pub(crate) fn shown_level(level: Level) -> LogLevel {
    match level {
        Level::Debug => LogLevel::Debug,
        Level::Info => LogLevel::Info,
        Level::Warn => LogLevel::Warn,
        Level::Error => LogLevel::Error,
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    }
}
