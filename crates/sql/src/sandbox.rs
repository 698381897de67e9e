//! Sandboxes. Losing them loses what users made in them: their nodes are told to end what the store does not know.
use std::time::SystemTime;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use model::{Phase, Sandbox, SandboxId, State, TeamId};
use ports::store::SandboxQuery;
use ports::{SandboxStore, StoreError};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row};

use crate::micros;
use crate::sqlite::{Sqlite, away};

const fn code(state: State) -> i64 {
    match state {
        State::Running => 0,
        State::Paused => 1,
    }
}

/// The columns that repeat parts of the body.
struct Columns {
    id: String,
    state: Option<i64>,
    started_us: i64,
    gone_us: Option<i64>,
    version: i64,
    body: String,
}

fn columns(sandbox: &Sandbox, version: u64) -> Result<Columns, StoreError> {
    let gone = matches!(sandbox.phase, Phase::Gone { .. });
    Ok(Columns {
        id: sandbox.id.to_string(),
        state: sandbox.phase.state().map(code),
        started_us: micros::of(sandbox.started_at),
        gone_us: gone.then(|| micros::of(SystemTime::now())),
        version: i64::try_from(version).map_err(away)?,
        body: serde_json::to_string(sandbox).map_err(away)?,
    })
}

/// Every query of sandboxes selects `version, body`.
fn sandbox(row: &SqliteRow) -> Result<Sandbox, StoreError> {
    let version: i64 = row.try_get(0).map_err(away)?;
    let body: &str = row.try_get(1).map_err(away)?;
    let mut sandbox: Sandbox = serde_json::from_str(body).map_err(away)?;
    sandbox.version = u64::try_from(version).map_err(away)?;
    Ok(sandbox)
}

#[async_trait]
impl SandboxStore for Sqlite {
    async fn insert(&self, sandbox: &Sandbox) -> Result<(), StoreError> {
        let new = columns(sandbox, sandbox.version)?;
        let insert = sqlx::query(
            "INSERT INTO sandboxes (id, team, template, version, state, started_us, gone_us, body)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        );
        self.write(
            insert
                .bind(new.id)
                .bind(sandbox.team.to_string())
                .bind(sandbox.template.to_string())
                .bind(new.version)
                .bind(new.state)
                .bind(new.started_us)
                .bind(new.gone_us)
                .bind(new.body),
        )
        .await?;
        Ok(())
    }

    async fn get(&self, id: SandboxId) -> Result<Option<Sandbox>, StoreError> {
        let select = sqlx::query("SELECT version, body FROM sandboxes WHERE id = ?").bind(id.to_string());
        self.read_one(select).await?.as_ref().map(sandbox).transpose()
    }

    async fn update(&self, sandbox: &Sandbox) -> Result<u64, StoreError> {
        let version = sandbox.version + 1;
        let new = columns(sandbox, version)?;
        // SQLite writes the indexes of every column that is set, changed or not: without `gone_us` the update of one that
        // lives is a page shorter (benches/write_cost.rs).
        let update = match new.gone_us {
            None => sqlx::query(
                "UPDATE sandboxes SET version = ?, state = ?, started_us = ?, body = ? WHERE id = ? AND version = ?",
            )
            .bind(new.version)
            .bind(new.state)
            .bind(new.started_us),
            Some(gone_us) => sqlx::query(
                "UPDATE sandboxes SET version = ?, state = ?, started_us = ?, gone_us = coalesce(gone_us, ?), body = ?
                 WHERE id = ? AND version = ?",
            )
            .bind(new.version)
            .bind(new.state)
            .bind(new.started_us)
            .bind(gone_us),
        }
        .bind(new.body)
        .bind(new.id.clone())
        .bind(new.version - 1);
        let changed = self.write(update).await?;
        if changed > 0 {
            return Ok(version);
        }
        let select = sqlx::query("SELECT 1 FROM sandboxes WHERE id = ?").bind(new.id);
        Err(self.unchanged(select).await)
    }

    async fn list(&self, query: &SandboxQuery) -> Result<Vec<Sandbox>, StoreError> {
        let mut select = select(query)?;
        let mut rows = select.build().fetch(self.readers());
        let mut page = Vec::new();
        while page.len() < query.limit {
            let Some(row) = rows.try_next().await.map_err(away)? else {
                break;
            };
            let sandbox = sandbox(&row)?;
            let matches = |(key, value)| sandbox.metadata.get(key) == Some(value);
            if query.metadata.iter().all(matches) {
                page.push(sandbox);
            }
        }
        Ok(page)
    }

    async fn count(&self, team: TeamId, state: State) -> Result<u64, StoreError> {
        let count =
            sqlx::query("SELECT count(*) FROM sandboxes WHERE team = ? AND state IS NOT NULL AND state = ?")
                .bind(team.to_string())
                .bind(code(state));
        let row = self
            .read_one(count)
            .await?
            .ok_or_else(|| away("count(*) returned no row"))?;
        u64::try_from(row.try_get::<i64, _>(0).map_err(away)?).map_err(away)
    }

    async fn live(&self) -> Result<Vec<Sandbox>, StoreError> {
        let select = sqlx::query("SELECT version, body FROM sandboxes WHERE gone_us IS NULL");
        self.read_all(select).await?.iter().map(sandbox).collect()
    }

    async fn forget_gone(&self, before: SystemTime) -> Result<u64, StoreError> {
        self.write(sqlx::query("DELETE FROM sandboxes WHERE gone_us < ?").bind(micros::of(before)))
            .await
    }
}

/// The statement for a page. With a metadata filter it is unlimited and may yield too much, never too little: the caller
/// looks at each row and stops when the page is full.
fn select(query: &SandboxQuery) -> Result<QueryBuilder<sqlx::Sqlite>, StoreError> {
    let mut sql =
        QueryBuilder::new("SELECT version, body FROM sandboxes WHERE state IS NOT NULL AND team = ");
    sql.push_bind(query.team.to_string());
    if let [first, rest @ ..] = query.states.as_slice() {
        sql.push(" AND state IN (").push_bind(code(*first));
        for state in rest {
            sql.push(", ").push_bind(code(*state));
        }
        sql.push(")");
    }
    if let Some(template) = query.template {
        sql.push(" AND template = ").push_bind(template.to_string());
    }
    if let Some(after) = query.started_after {
        sql.push(" AND started_us >= ").push_bind(micros::of(after));
    }
    for pair in &query.metadata {
        // The pair as it stands in the body: compact, keys in order, so the text of a pair is in it literally.
        let key = serde_json::to_string(pair.0).map_err(away)?;
        let value = serde_json::to_string(pair.1).map_err(away)?;
        sql.push(" AND instr(body, ")
            .push_bind(format!("{key}:{value}"))
            .push(") > 0");
    }
    if let Some(cursor) = query.after {
        let at = micros::of(cursor.started_at);
        let (reached, passed, id) = match query.ascending {
            true => (" AND started_us >= ", " AND (started_us > ", " OR id < "),
            false => (" AND started_us <= ", " AND (started_us < ", " OR id > "),
        };
        sql.push(reached).push_bind(at);
        sql.push(passed).push_bind(at);
        sql.push(id).push_bind(cursor.id.to_string()).push(")");
    }
    sql.push(match query.ascending {
        true => " ORDER BY started_us ASC, id DESC",
        false => " ORDER BY started_us DESC, id ASC",
    });
    if query.metadata.is_empty() {
        sql.push(" LIMIT ")
            .push_bind(i64::try_from(query.limit).unwrap_or(i64::MAX));
    }
    Ok(sql)
}
