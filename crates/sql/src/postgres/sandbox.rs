//! Sandboxes. Losing them loses what users made in them: their nodes are told to end what the store does not know.
use std::collections::BTreeMap;
use std::time::SystemTime;

use async_trait::async_trait;
use model::{Phase, Sandbox, SandboxId, State, TeamId};
use ports::store::SandboxQuery;
use ports::{SandboxStore, StoreError};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::fault::garbled;
use super::{Postgres, Statement, text};
use crate::micros;

/// Sandboxes of one page of [`SandboxStore::live`]: some MiB, read in some milliseconds, so that no statement is long and no row
/// is held back from being cleaned up for long.
const LIVE_PAGE: i64 = 1000;
/// Rows that one statement removes.
const FORGET_PAGE: i64 = 1000;

const fn code(state: State) -> i16 {
    match state {
        State::Running => 0,
        State::Paused => 1,
    }
}

/// What the index of labels finds: `{team: metadata}`. As part of another such object it asks for all of these pairs.
fn labels(team: TeamId, metadata: &BTreeMap<String, String>) -> Result<Option<String>, StoreError> {
    if metadata.is_empty() {
        return Ok(None);
    }
    let stored = |(key, value): (&String, &String)| (text::stored(key), text::stored(value));
    let pairs: BTreeMap<_, _> = metadata.iter().map(stored).collect();
    let labels = BTreeMap::from([(team.to_string(), pairs)]);
    serde_json::to_string(&labels).map(Some).map_err(garbled)
}

/// Every query of sandboxes selects `version, body`.
fn sandbox(row: &PgRow) -> Result<Sandbox, StoreError> {
    let version: i64 = row.try_get(0).map_err(garbled)?;
    let body: &str = row.try_get(1).map_err(garbled)?;
    let mut sandbox: Sandbox = serde_json::from_str(body).map_err(garbled)?;
    sandbox.version = u64::try_from(version).map_err(garbled)?;
    Ok(sandbox)
}

/// What both ways of writing bind, in this order: `$1` to `$9`.
fn bound(sql: &'static str, sandbox: &Sandbox, version: u64) -> Result<Statement, StoreError> {
    Ok(Statement::new(sql)
        .bind(sandbox.id.to_string())
        .bind(sandbox.team.to_string())
        .bind(sandbox.template.to_string())
        .bind(i64::try_from(version).map_err(garbled)?)
        .bind(sandbox.phase.state().map(code))
        .bind(micros::of(sandbox.started_at))
        .bind(matches!(sandbox.phase, Phase::Gone { .. }))
        .bind(labels(sandbox.team, &sandbox.metadata)?)
        .bind(serde_json::to_string(sandbox).map_err(garbled)?))
}

/// One page of a team, in one of two orders. Filters that are not asked for are NULL, and planned away: such a statement is
/// planned for its arguments each time.
macro_rules! page {
    ($behind:literal, $order:literal) => {
        concat!(
            "SELECT version, body FROM sandboxes
             WHERE team = $1 AND state IS NOT NULL
               AND ($2::smallint IS NULL OR state = $2)
               AND ($3::text IS NULL OR template = $3)
               AND ($4::bigint IS NULL OR (-started_us) <= -$4)
               AND ($5::text IS NULL OR labels @> $5::jsonb)
               AND ($6::bigint IS NULL OR ((-started_us), id) ",
            $behind,
            " (-$6, $7::text)) ORDER BY ",
            $order,
            " LIMIT $8"
        )
    };
}
const NEWEST_FIRST: &str = page!(">", "(-started_us), id");
const OLDEST_FIRST: &str = page!("<", "(-started_us) DESC, id DESC");

#[async_trait]
impl SandboxStore for Postgres {
    async fn insert(&self, sandbox: &Sandbox) -> Result<(), StoreError> {
        let insert = bound(
            "INSERT INTO sandboxes (id, team, template, version, state, started_us, gone_us, labels, body)
             VALUES ($1, $2, $3, $4, $5, $6,
                     CASE WHEN $7 THEN (extract(epoch FROM clock_timestamp()) * 1000000)::bigint END, $8::text::jsonb, $9)",
            sandbox,
            sandbox.version,
        )?;
        self.write(insert).await?;
        Ok(())
    }

    async fn get(&self, id: SandboxId) -> Result<Option<Sandbox>, StoreError> {
        let select = Statement::new("SELECT version, body FROM sandboxes WHERE id = $1").bind(id.to_string());
        self.read_one(select).await?.as_ref().map(sandbox).transpose()
    }

    async fn update(&self, sandbox: &Sandbox) -> Result<u64, StoreError> {
        let version = sandbox.version + 1;
        let update = bound(
            "UPDATE sandboxes SET team = $2, template = $3, version = $4, state = $5, started_us = $6, labels = $8::text::jsonb,
                 gone_us = CASE WHEN $7
                     THEN coalesce(gone_us, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) ELSE gone_us END,
                 body = $9
             WHERE id = $1 AND version = $4 - 1",
            sandbox,
            version,
        )?;
        if self.write(update).await? > 0 {
            return Ok(version);
        }
        let select = Statement::new("SELECT 1 FROM sandboxes WHERE id = $1").bind(sandbox.id.to_string());
        Err(self.unchanged(select).await)
    }

    async fn list(&self, query: &SandboxQuery) -> Result<Vec<Sandbox>, StoreError> {
        // All states are no filter.
        let mut states = query.states.iter().map(|state| code(*state));
        let state = states.next().filter(|first| states.all(|other| other == *first));
        let select = Statement::new(match query.ascending {
            true => OLDEST_FIRST,
            false => NEWEST_FIRST,
        })
        .planned_each_time()
        .bind(query.team.to_string())
        .bind(state)
        .bind(query.template.map(|template| template.to_string()))
        .bind(query.started_after.map(micros::of))
        .bind(labels(query.team, &query.metadata)?)
        .bind(query.after.map(|cursor| micros::of(cursor.started_at)))
        .bind(query.after.map(|cursor| cursor.id.to_string()))
        .bind(i64::try_from(query.limit).unwrap_or(i64::MAX));
        self.read_all(select).await?.iter().map(sandbox).collect()
    }

    async fn count(&self, team: TeamId, state: State) -> Result<u64, StoreError> {
        let count = Statement::new(
            "SELECT coalesce(sum(count), 0)::bigint FROM sandbox_counts WHERE team = $1 AND state = $2",
        )
        .bind(team.to_string())
        .bind(code(state));
        let row = self.read_one(count).await?;
        let row = row.ok_or_else(|| garbled("a sum returned no row"))?;
        u64::try_from(row.try_get::<i64, _>(0).map_err(garbled)?).map_err(garbled)
    }

    /// In pages: it tells each that is there from its beginning to its end, and of those that come or go meanwhile some.
    async fn live(&self) -> Result<Vec<Sandbox>, StoreError> {
        let mut live: Vec<Sandbox> = Vec::new();
        loop {
            let last = live.last().map_or_else(String::new, |last| last.id.to_string());
            let page = Statement::new(
                "SELECT version, body FROM sandboxes WHERE gone_us IS NULL AND id > $1 ORDER BY id LIMIT $2",
            )
            .bind(last)
            .bind(LIVE_PAGE);
            let page = self.read_all(page).await?;
            for row in &page {
                live.push(sandbox(row)?);
            }
            if i64::try_from(page.len()).map_err(garbled)? < LIVE_PAGE {
                return Ok(live);
            }
            // So that a fleet of a hundred thousand does not keep a thread from everybody else.
            tokio::task::yield_now().await;
        }
    }

    /// A page at a time, each of rows that nobody else is removing.
    async fn forget_gone(&self, before: SystemTime) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        loop {
            let delete = Statement::new(
                "DELETE FROM sandboxes WHERE id IN (
                     SELECT id FROM sandboxes WHERE gone_us < $1 ORDER BY gone_us LIMIT $2 FOR UPDATE SKIP LOCKED)",
            )
            .bind(micros::of(before))
            .bind(FORGET_PAGE);
            let page = self.write(delete).await?;
            forgotten += page;
            if i64::try_from(page).map_err(garbled)? < FORGET_PAGE {
                return Ok(forgotten);
            }
        }
    }
}
