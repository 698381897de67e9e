//! Builds of templates, their logs, and results of their steps. Losing them loses the history of builds and those that are
//! under way, and costs the time to carry out their steps again; what was built stays.
use std::collections::BTreeMap;
use std::time::SystemTime;

use async_trait::async_trait;
use model::recipe::Key;
use model::{Build, BuildId, TeamId, TemplateId};
use ports::builds::{BuildLine, CachedStep, LinesQuery};
use ports::{BuildStore, Level, StoreError};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::micros;
use crate::sqlite::{Sqlite, away};

/// Builds that are told at once of those that are to go: the next question tells more.
const BEYOND_MAX: i64 = 1000;

const fn code(level: Level) -> i64 {
    match level {
        Level::Debug => 0,
        Level::Info => 1,
        Level::Warn => 2,
        Level::Error => 3,
    }
}

/// Every query of builds selects `version, body`: the column beats the body.
fn build(row: &SqliteRow) -> Result<Build, StoreError> {
    let version: i64 = row.try_get(0).map_err(away)?;
    let mut build: Build = serde_json::from_str(row.try_get(1).map_err(away)?).map_err(away)?;
    build.version = u64::try_from(version).map_err(away)?;
    Ok(build)
}

fn body(build: &Build) -> Result<String, StoreError> {
    serde_json::to_string(build).map_err(away)
}

fn line(row: &SqliteRow) -> Result<BuildLine, StoreError> {
    serde_json::from_str(row.try_get(0).map_err(away)?).map_err(away)
}

#[async_trait]
impl BuildStore for Sqlite {
    async fn insert_build(&self, build: &Build) -> Result<(), StoreError> {
        let insert = sqlx::query(
            "INSERT INTO builds (id, template, version, is_over, created_us, body) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(build.id.to_string())
        .bind(build.template.to_string())
        .bind(i64::try_from(build.version).map_err(away)?)
        .bind(build.status.is_over())
        .bind(micros::of(build.created_at))
        .bind(body(build)?);
        self.write(insert).await?;
        Ok(())
    }

    async fn build(&self, id: BuildId) -> Result<Option<Build>, StoreError> {
        let select = sqlx::query("SELECT version, body FROM builds WHERE id = ?").bind(id.to_string());
        self.read_one(select).await?.as_ref().map(build).transpose()
    }

    async fn update_build(&self, build: &Build) -> Result<u64, StoreError> {
        let version = i64::try_from(build.version).map_err(away)?;
        let update = sqlx::query(
            "UPDATE builds SET template = ?, version = ?, is_over = ?, created_us = ?, body = ?
             WHERE id = ? AND version = ?",
        )
        .bind(build.template.to_string())
        .bind(version + 1)
        .bind(build.status.is_over())
        .bind(micros::of(build.created_at))
        .bind(body(build)?)
        .bind(build.id.to_string())
        .bind(version);
        if self.write(update).await? > 0 {
            return Ok(build.version + 1);
        }
        let select = sqlx::query("SELECT 1 FROM builds WHERE id = ?").bind(build.id.to_string());
        Err(self.unchanged(select).await)
    }

    async fn builds_of(&self, template: TemplateId) -> Result<Vec<Build>, StoreError> {
        let select = sqlx::query(
            "SELECT version, body FROM builds WHERE template = ? ORDER BY created_us DESC, id ASC",
        );
        self.read_all(select.bind(template.to_string()))
            .await?
            .iter()
            .map(build)
            .collect()
    }

    async fn unfinished_builds(&self) -> Result<Vec<Build>, StoreError> {
        let select =
            sqlx::query("SELECT version, body FROM builds WHERE NOT is_over ORDER BY created_us, id");
        self.read_all(select).await?.iter().map(build).collect()
    }

    async fn remove_builds_of(&self, template: TemplateId) -> Result<(), StoreError> {
        self.write(sqlx::query("DELETE FROM builds WHERE template = ?").bind(template.to_string()))
            .await?;
        Ok(())
    }

    async fn builds_beyond(&self, newer: u32) -> Result<Vec<BuildId>, StoreError> {
        let select = sqlx::query(
            "SELECT id FROM (
                 SELECT id, created_us,
                        row_number() OVER (PARTITION BY template ORDER BY created_us DESC, id ASC) AS place
                 FROM builds WHERE is_over)
             WHERE place > ? ORDER BY created_us, id LIMIT ?",
        )
        .bind(i64::from(newer))
        .bind(BEYOND_MAX);
        let rows = self.read_all(select).await?;
        let known = |row: &SqliteRow| row.try_get::<&str, _>(0).map_err(away)?.parse().map_err(away);
        rows.iter().map(known).collect()
    }

    async fn remove_build(&self, id: BuildId) -> Result<(), StoreError> {
        self.write(sqlx::query("DELETE FROM builds WHERE id = ? AND is_over").bind(id.to_string()))
            .await?;
        Ok(())
    }

    async fn append_lines(&self, build: BuildId, lines: &[BuildLine]) -> Result<(), StoreError> {
        if lines.is_empty() {
            return Ok(());
        }
        // Bodies travel as texts within a text, so that SQLite gives them back as they are.
        let bodies = lines
            .iter()
            .map(|line| Ok((code(line.level), serde_json::to_string(line)?)));
        let bodies: Vec<_> = bodies.collect::<Result<_, serde_json::Error>>().map_err(away)?;
        let insert = sqlx::query(
            "INSERT INTO build_lines (build, seq, level, body)
             SELECT ?1, seen.lines + new.key, new.value ->> 0, new.value ->> 1
             FROM (SELECT coalesce(max(seq) + 1, 0) AS lines FROM build_lines WHERE build = ?1) AS seen,
                  json_each(?2) AS new",
        )
        .bind(build.to_string())
        .bind(serde_json::to_string(&bodies).map_err(away)?);
        self.write(insert).await?;
        Ok(())
    }

    async fn lines(&self, build: BuildId, query: LinesQuery) -> Result<Vec<BuildLine>, StoreError> {
        let offset = i64::try_from(query.offset).unwrap_or(i64::MAX);
        // Where every line counts, the offset is a place; else those before it must be looked at.
        let select = if query.level == Level::Debug {
            sqlx::query("SELECT body FROM build_lines WHERE build = ? AND seq >= ? ORDER BY seq LIMIT ?")
                .bind(build.to_string())
                .bind(offset)
                .bind(i64::from(query.limit))
        } else {
            sqlx::query(
                "SELECT body FROM build_lines WHERE build = ? AND level >= ? ORDER BY seq LIMIT ? OFFSET ?",
            )
            .bind(build.to_string())
            .bind(code(query.level))
            .bind(i64::from(query.limit))
            .bind(offset)
        };
        self.read_all(select).await?.iter().map(line).collect()
    }

    async fn cached_step(
        &self,
        team: TeamId,
        key: Key,
        now: SystemTime,
    ) -> Result<Option<CachedStep>, StoreError> {
        let select = sqlx::query("SELECT build, context FROM cached_steps WHERE team = ? AND key = ?")
            .bind(team.to_string())
            .bind(key.to_string());
        let Some(row) = self.read_one(select).await? else {
            return Ok(None);
        };
        let build: &str = row.try_get(0).map_err(away)?;
        let step = CachedStep {
            build: build.parse().map_err(away)?,
            context: serde_json::from_str(row.try_get(1).map_err(away)?).map_err(away)?,
        };
        // Only of what was read: it may have been forgotten or replaced since, and what is told here may be removed then.
        let used = sqlx::query(
            "UPDATE cached_steps SET used_us = max(used_us, ?) WHERE team = ? AND key = ? AND build = ?",
        )
        .bind(micros::of(now))
        .bind(team.to_string())
        .bind(key.to_string())
        .bind(step.build.to_string());
        Ok((self.write(used).await? > 0).then_some(step))
    }

    async fn cache_step(
        &self,
        team: TeamId,
        key: Key,
        step: &CachedStep,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let insert = sqlx::query(
            "INSERT INTO cached_steps (team, key, build, context, used_us) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET build = excluded.build, context = excluded.context, used_us = excluded.used_us",
        )
        .bind(team.to_string())
        .bind(key.to_string())
        .bind(step.build.to_string())
        .bind(serde_json::to_string(&step.context).map_err(away)?)
        .bind(micros::of(now));
        self.write(insert).await?;
        Ok(())
    }

    async fn cached_builds(&self) -> Result<Vec<(BuildId, SystemTime)>, StoreError> {
        let select = sqlx::query(
            "SELECT build, max(used_us) AS last_us FROM cached_steps GROUP BY build ORDER BY last_us, build",
        );
        let rows = self.read_all(select).await?;
        let known = |row: &SqliteRow| {
            let build: &str = row.try_get(0).map_err(away)?;
            Ok((
                build.parse().map_err(away)?,
                micros::to(row.try_get(1).map_err(away)?),
            ))
        };
        rows.iter().map(known).collect()
    }

    async fn forget_cached(&self, build: BuildId) -> Result<(), StoreError> {
        self.write(sqlx::query("DELETE FROM cached_steps WHERE build = ?").bind(build.to_string()))
            .await?;
        Ok(())
    }

    async fn note_stowed(&self, build: BuildId, digest: &str) -> Result<(), StoreError> {
        let insert = sqlx::query(
            "INSERT INTO stowed_builds (build, digest) VALUES (?, ?)
             ON CONFLICT DO UPDATE SET digest = excluded.digest",
        )
        .bind(build.to_string())
        .bind(digest.to_owned());
        self.write(insert).await?;
        Ok(())
    }

    async fn stowed(&self) -> Result<BTreeMap<BuildId, String>, StoreError> {
        let rows = self
            .read_all(sqlx::query("SELECT build, digest FROM stowed_builds"))
            .await?;
        let known = |row: &SqliteRow| {
            let build: &str = row.try_get(0).map_err(away)?;
            Ok((build.parse().map_err(away)?, row.try_get(1).map_err(away)?))
        };
        rows.iter().map(known).collect()
    }

    async fn stowed_as(&self, build: BuildId) -> Result<Option<String>, StoreError> {
        let select = sqlx::query("SELECT digest FROM stowed_builds WHERE build = ?").bind(build.to_string());
        let row = self.read_one(select).await?;
        row.map(|row| row.try_get(0).map_err(away)).transpose()
    }

    async fn forget_stowed(&self, build: BuildId) -> Result<(), StoreError> {
        self.write(sqlx::query("DELETE FROM stowed_builds WHERE build = ?").bind(build.to_string()))
            .await?;
        Ok(())
    }
}
