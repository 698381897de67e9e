use std::collections::BTreeMap;

use form_urlencoded::Serializer;
use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use wire::rest::{
    ConnectSandbox, ListedSandbox, LogDirection, LogEntry, LogLevel, LogsV2, NewSandbox, PauseSandbox,
    RefreshSandbox, Sandbox, SandboxDetail, SandboxMetric, SandboxState, SetTimeout,
};

use super::{Client, Page, page, segment, with_query};
use crate::error::CallError;
use crate::transport::level_name;

/// Which sandboxes are listed.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// What they are at; anything where nothing is said.
    pub states: Vec<SandboxState>,
    /// Labels that they all have.
    pub metadata: BTreeMap<String, String>,
    /// At most so many in a page; 1..=100.
    pub limit: Option<usize>,
    /// [`Page::next`] of the page before.
    pub next: Option<String>,
}

/// Which lines of a log are read.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogsQuery {
    /// Milliseconds since the epoch: forward, lines of then or later; backward, lines before.
    pub cursor_ms: Option<u64>,
    /// At most so many; 1..=1000.
    pub limit: Option<usize>,
    /// Oldest or newest first; the latter where nothing is said.
    pub direction: Option<LogDirection>,
    /// Lines that matter at least this much.
    pub level: Option<LogLevel>,
}

/// A sandbox that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connected {
    /// It was running.
    Running(Sandbox),
    /// It was paused, and runs again.
    Resumed(Sandbox),
}

impl Client {
    /// Creates a sandbox.
    ///
    /// # Errors
    /// [`CallError::Refused`], as of every call: an unknown template, a used up quota.
    pub async fn create(&self, sandbox: &NewSandbox) -> Result<Sandbox, CallError> {
        self.post("/v2/sandboxes", sandbox).await?.json()
    }

    /// Lists sandboxes, youngest first.
    ///
    /// # Errors
    /// As of every call.
    pub async fn sandboxes(&self, query: &ListQuery) -> Result<Page<ListedSandbox>, CallError> {
        page(&self.get(&list_path(query)).await?)
    }

    /// All about a sandbox.
    ///
    /// # Errors
    /// As of every call.
    pub async fn sandbox(&self, id: &str) -> Result<SandboxDetail, CallError> {
        self.get(&format!("/sandboxes/{}", segment(id))).await?.json()
    }

    /// Ends a sandbox, running or paused.
    ///
    /// # Errors
    /// As of every call.
    pub async fn kill(&self, id: &str) -> Result<(), CallError> {
        self.delete(&format!("/sandboxes/{}", segment(id))).await
    }

    /// Makes a sandbox usable: wakes a paused one, and moves the end of a running one's time on.
    ///
    /// # Errors
    /// As of every call.
    pub async fn connect(&self, id: &str, how: ConnectSandbox) -> Result<Connected, CallError> {
        let answer = self
            .post(&format!("/v2/sandboxes/{}/connect", segment(id)), &how)
            .await?;
        let sandbox = answer.json()?;
        Ok(if answer.status == StatusCode::CREATED {
            Connected::Resumed(sandbox)
        } else {
            Connected::Running(sandbox)
        })
    }

    /// Pauses a sandbox; with its memory, or its disk alone.
    ///
    /// # Errors
    /// As of every call.
    pub async fn pause(&self, id: &str, how: PauseSandbox) -> Result<(), CallError> {
        self.post(&format!("/sandboxes/{}/pause", segment(id)), &how)
            .await
            .map(drop)
    }

    /// Reboots a running sandbox from its disk; it keeps its id and tokens.
    ///
    /// # Errors
    /// As of every call.
    pub async fn restart(&self, id: &str) -> Result<Sandbox, CallError> {
        self.post(
            &format!("/sandboxes/{}/restart", segment(id)),
            &serde_json::json!({}),
        )
        .await?
        .json()
    }

    /// Sets the end of a running sandbox's time, in seconds from now.
    ///
    /// # Errors
    /// As of every call.
    pub async fn set_timeout(&self, id: &str, timeout_seconds: i64) -> Result<(), CallError> {
        let body = SetTimeout {
            timeout: timeout_seconds,
        };
        self.post(&format!("/sandboxes/{}/timeout", segment(id)), &body)
            .await
            .map(drop)
    }

    /// Lets a running sandbox live so many seconds more at least, at most 3600.
    ///
    /// # Errors
    /// As of every call.
    pub async fn refresh(&self, id: &str, duration_seconds: i64) -> Result<(), CallError> {
        let body = RefreshSandbox {
            duration: Some(duration_seconds),
        };
        self.post(&format!("/sandboxes/{}/refreshes", segment(id)), &body)
            .await
            .map(drop)
    }

    /// What a sandbox used, oldest first.
    ///
    /// # Errors
    /// As of every call.
    pub async fn metrics(&self, id: &str) -> Result<Vec<SandboxMetric>, CallError> {
        self.get(&format!("/sandboxes/{}/metrics", segment(id)))
            .await?
            .json()
    }

    /// What was said in and about a sandbox.
    ///
    /// # Errors
    /// As of every call.
    pub async fn logs(&self, id: &str, query: LogsQuery) -> Result<Vec<LogEntry>, CallError> {
        let logs: LogsV2 = self.get(&logs_path(id, query)).await?.json()?;
        Ok(logs.logs)
    }
}

fn list_path(query: &ListQuery) -> String {
    let mut pairs = Serializer::new(String::new());
    if !query.states.is_empty() {
        let states: Vec<&str> = query.states.iter().map(|state| state_name(*state)).collect();
        pairs.append_pair("state", &states.join(","));
    }
    if !query.metadata.is_empty() {
        pairs.append_pair("metadata", &metadata(&query.metadata));
    }
    if let Some(limit) = query.limit {
        pairs.append_pair("limit", &limit.to_string());
    }
    if let Some(next) = &query.next {
        pairs.append_pair("nextToken", next);
    }
    with_query("/v2/sandboxes", &pairs.finish())
}

/// Labels as they are asked for: each name and value encoded, then the pairs as a form (contract 3.6).
fn metadata(labels: &BTreeMap<String, String>) -> String {
    let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let mut form = Serializer::new(String::new());
    form.extend_pairs(labels.iter().map(|(name, value)| (encoded(name), encoded(value))));
    form.finish()
}

fn logs_path(id: &str, query: LogsQuery) -> String {
    let mut pairs = Serializer::new(String::new());
    if let Some(cursor) = query.cursor_ms {
        pairs.append_pair("cursor", &cursor.to_string());
    }
    if let Some(limit) = query.limit {
        pairs.append_pair("limit", &limit.to_string());
    }
    if let Some(direction) = query.direction {
        let name = match direction {
            LogDirection::Forward => "forward",
            LogDirection::Backward => "backward",
        };
        pairs.append_pair("direction", name);
    }
    if let Some(level) = query.level {
        pairs.append_pair("level", level_name(level));
    }
    with_query(&format!("/v2/sandboxes/{}/logs", segment(id)), &pairs.finish())
}

const fn state_name(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Running => "running",
        SandboxState::Paused => "paused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_asked_for_as_the_contract_says() {
        assert_eq!(list_path(&ListQuery::default()), "/v2/sandboxes");
        let query = ListQuery {
            states: vec![SandboxState::Running, SandboxState::Paused],
            metadata: [("a&b".to_owned(), "c d".to_owned())].into(),
            limit: Some(7),
            next: Some("x=".to_owned()),
        };
        let path =
            "/v2/sandboxes?state=running%2Cpaused&metadata=a%252526b%3Dc%252520d&limit=7&nextToken=x%3D";
        assert_eq!(list_path(&query), path);
    }

    #[test]
    fn logs_are_asked_for_as_the_contract_says() {
        assert_eq!(logs_path("i1", LogsQuery::default()), "/v2/sandboxes/i1/logs");
        let query = LogsQuery {
            cursor_ms: Some(5),
            limit: Some(10),
            direction: Some(LogDirection::Forward),
            level: Some(LogLevel::Warn),
        };
        assert_eq!(
            logs_path("i1", query),
            "/v2/sandboxes/i1/logs?cursor=5&limit=10&direction=forward&level=warn"
        );
    }
}
