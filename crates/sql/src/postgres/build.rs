//! Builds of templates, their logs, and results of their steps. Losing them loses the history of builds and those that are
//! under way, and costs the time to carry out their steps again; what was built stays.
use std::collections::BTreeMap;
use std::time::SystemTime;

use async_trait::async_trait;
use model::recipe::Key;
use model::{Build, BuildId, TeamId, TemplateId};
use ports::builds::{BuildLine, CachedStep, LinesQuery};
use ports::{BuildStore, Level, StoreError};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::fault::garbled;
use super::{Postgres, Statement, text};
use crate::micros;

/// Builds that are told at once of those that are to go: the next question tells more.
const BEYOND_MAX: i64 = 1000;

const fn code(level: Level) -> i16 {
    match level {
        Level::Debug => 0,
        Level::Info => 1,
        Level::Warn => 2,
        Level::Error => 3,
    }
}

/// Every query of builds selects `version, body`: the column beats the body.
fn build(row: &PgRow) -> Result<Build, StoreError> {
    let version: i64 = row.try_get(0).map_err(garbled)?;
    let mut build: Build = serde_json::from_str(row.try_get(1).map_err(garbled)?).map_err(garbled)?;
    build.version = u64::try_from(version).map_err(garbled)?;
    Ok(build)
}

fn body(build: &Build) -> Result<String, StoreError> {
    serde_json::to_string(build).map_err(garbled)
}

fn line(row: &PgRow) -> Result<BuildLine, StoreError> {
    serde_json::from_str(row.try_get(0).map_err(garbled)?).map_err(garbled)
}

/// The build that a column names.
fn named(row: &PgRow, column: usize) -> Result<BuildId, StoreError> {
    let build: &str = row.try_get(column).map_err(garbled)?;
    build.parse().map_err(garbled)
}

#[async_trait]
impl BuildStore for Postgres {
    async fn insert_build(&self, build: &Build) -> Result<(), StoreError> {
        let insert = Statement::new(
            "INSERT INTO builds (id, template, version, is_over, created_us, body) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(build.id.to_string())
        .bind(build.template.to_string())
        .bind(i64::try_from(build.version).map_err(garbled)?)
        .bind(build.status.is_over())
        .bind(micros::of(build.created_at))
        .bind(body(build)?);
        self.write(insert).await?;
        Ok(())
    }

    async fn build(&self, id: BuildId) -> Result<Option<Build>, StoreError> {
        let select = Statement::new("SELECT version, body FROM builds WHERE id = $1").bind(id.to_string());
        self.read_one(select).await?.as_ref().map(build).transpose()
    }

    async fn update_build(&self, build: &Build) -> Result<u64, StoreError> {
        let version = i64::try_from(build.version).map_err(garbled)?;
        let update = Statement::new(
            "UPDATE builds SET template = $1, version = $2, is_over = $3, created_us = $4, body = $5
             WHERE id = $6 AND version = $7",
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
        let select = Statement::new("SELECT 1 FROM builds WHERE id = $1").bind(build.id.to_string());
        Err(self.unchanged(select).await)
    }

    async fn builds_of(&self, template: TemplateId) -> Result<Vec<Build>, StoreError> {
        let select = Statement::new(
            "SELECT version, body FROM builds WHERE template = $1 ORDER BY created_us DESC, id ASC",
        );
        let rows = self.read_all(select.bind(template.to_string())).await?;
        rows.iter().map(build).collect()
    }

    async fn unfinished_builds(&self) -> Result<Vec<Build>, StoreError> {
        let select =
            Statement::new("SELECT version, body FROM builds WHERE NOT is_over ORDER BY created_us, id");
        self.read_all(select).await?.iter().map(build).collect()
    }

    async fn remove_builds_of(&self, template: TemplateId) -> Result<(), StoreError> {
        let delete = Statement::new("DELETE FROM builds WHERE template = $1").bind(template.to_string());
        self.write(delete).await?;
        Ok(())
    }

    async fn builds_beyond(&self, newer: u32) -> Result<Vec<BuildId>, StoreError> {
        let select = Statement::new(
            "SELECT id FROM (
                 SELECT id, created_us,
                        row_number() OVER (PARTITION BY template ORDER BY created_us DESC, id ASC) AS place
                 FROM builds WHERE is_over) AS placed
             WHERE place > $1 ORDER BY created_us, id LIMIT $2",
        )
        .bind(i64::from(newer))
        .bind(BEYOND_MAX);
        let rows = self.read_all(select).await?;
        rows.iter().map(|row| named(row, 0)).collect()
    }

    async fn remove_build(&self, id: BuildId) -> Result<(), StoreError> {
        let delete = Statement::new("DELETE FROM builds WHERE id = $1 AND is_over").bind(id.to_string());
        self.write(delete).await?;
        Ok(())
    }

    /// The places of the lines are taken from the build's row, which is locked until they are there: writers wait for each
    /// other, and a build that is gone takes none.
    async fn append_lines(&self, build: BuildId, lines: &[BuildLine]) -> Result<(), StoreError> {
        if lines.is_empty() {
            return Ok(());
        }
        let bodies: Vec<String> = lines
            .iter()
            .map(serde_json::to_string)
            .collect::<Result<_, _>>()
            .map_err(garbled)?;
        let levels: Vec<i16> = lines.iter().map(|line| code(line.level)).collect();
        let insert = Statement::new(
            "WITH taken AS (
                 UPDATE builds SET lines = lines + cardinality($2::text[]) WHERE id = $1
                 RETURNING lines - cardinality($2::text[]) AS first)
             INSERT INTO build_lines (build, seq, level, body)
             SELECT $1, taken.first + new.place - 1, new.level, new.body
             FROM taken, unnest($3::smallint[], $2::text[]) WITH ORDINALITY AS new (level, body, place)",
        )
        .bind(build.to_string())
        .bind(bodies)
        .bind(levels);
        match self.write(insert).await? {
            0 => Err(StoreError::Missing),
            _ => Ok(()),
        }
    }

    async fn lines(&self, build: BuildId, query: LinesQuery) -> Result<Vec<BuildLine>, StoreError> {
        let offset = i64::try_from(query.offset).unwrap_or(i64::MAX);
        // Where every line counts, the offset is a place; else those before it must be looked at.
        let select = if query.level == Level::Debug {
            Statement::new(
                "SELECT body FROM build_lines WHERE build = $1 AND seq >= $2 ORDER BY seq LIMIT $3",
            )
            .bind(build.to_string())
            .bind(offset)
            .bind(i64::from(query.limit))
        } else {
            Statement::new(
                "SELECT body FROM build_lines WHERE build = $1 AND level >= $2 ORDER BY seq LIMIT $3 OFFSET $4",
            )
            .bind(build.to_string())
            .bind(code(query.level))
            .bind(i64::from(query.limit))
            .bind(offset)
        };
        self.read_all(select).await?.iter().map(line).collect()
    }

    /// Finds and notes in one statement: what is told was there when it was noted.
    async fn cached_step(
        &self,
        team: TeamId,
        key: Key,
        now: SystemTime,
    ) -> Result<Option<CachedStep>, StoreError> {
        let used = Statement::new(
            "UPDATE cached_steps SET used_us = greatest(used_us, $1) WHERE team = $2 AND key = $3
             RETURNING build, context",
        )
        .bind(micros::of(now))
        .bind(team.to_string())
        .bind(key.to_string());
        let Some(row) = self.write_and_read(used).await? else {
            return Ok(None);
        };
        Ok(Some(CachedStep {
            build: named(&row, 0)?,
            context: serde_json::from_str(row.try_get(1).map_err(garbled)?).map_err(garbled)?,
        }))
    }

    async fn cache_step(
        &self,
        team: TeamId,
        key: Key,
        step: &CachedStep,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let insert = Statement::new(
            "INSERT INTO cached_steps (team, key, build, context, used_us) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (team, key) DO UPDATE
             SET build = excluded.build, context = excluded.context, used_us = excluded.used_us",
        )
        .bind(team.to_string())
        .bind(key.to_string())
        .bind(step.build.to_string())
        .bind(serde_json::to_string(&step.context).map_err(garbled)?)
        .bind(micros::of(now));
        self.write(insert).await?;
        Ok(())
    }

    async fn cached_builds(&self) -> Result<Vec<(BuildId, SystemTime)>, StoreError> {
        let select = Statement::new(
            "SELECT build, max(used_us) AS last_us FROM cached_steps GROUP BY build ORDER BY last_us, build",
        );
        let rows = self.read_all(select).await?;
        let known = |row: &PgRow| Ok((named(row, 0)?, micros::to(row.try_get(1).map_err(garbled)?)));
        rows.iter().map(known).collect()
    }

    async fn forget_cached(&self, build: BuildId) -> Result<(), StoreError> {
        let delete = Statement::new("DELETE FROM cached_steps WHERE build = $1").bind(build.to_string());
        self.write(delete).await?;
        Ok(())
    }

    async fn note_stowed(&self, build: BuildId, digest: &str) -> Result<(), StoreError> {
        let insert = Statement::new(
            "INSERT INTO stowed_builds (build, digest) VALUES ($1, $2)
             ON CONFLICT (build) DO UPDATE SET digest = excluded.digest",
        )
        .bind(build.to_string())
        .bind(text::stored(digest));
        self.write(insert).await?;
        Ok(())
    }

    async fn stowed(&self) -> Result<BTreeMap<BuildId, String>, StoreError> {
        let rows = self
            .read_all(Statement::new("SELECT build, digest FROM stowed_builds"))
            .await?;
        let known = |row: &PgRow| Ok((named(row, 0)?, text::meant(row.try_get(1).map_err(garbled)?)));
        rows.iter().map(known).collect()
    }

    async fn stowed_as(&self, build: BuildId) -> Result<Option<String>, StoreError> {
        let select =
            Statement::new("SELECT digest FROM stowed_builds WHERE build = $1").bind(build.to_string());
        let row = self.read_one(select).await?;
        row.map(|row| Ok(text::meant(row.try_get(0).map_err(garbled)?)))
            .transpose()
    }

    async fn forget_stowed(&self, build: BuildId) -> Result<(), StoreError> {
        let delete = Statement::new("DELETE FROM stowed_builds WHERE build = $1").bind(build.to_string());
        self.write(delete).await?;
        Ok(())
    }
}
