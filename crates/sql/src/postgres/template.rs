//! Templates. Losing them loses what users built; the `base` template is made again from the machine.
use std::collections::BTreeSet;
use std::time::SystemTime;

use async_trait::async_trait;
use model::{BuildId, TeamId, Template, TemplateId};
use ports::{StoreError, TemplateStore};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::fault::garbled;
use super::{Postgres, Statement, text};
use crate::micros;

/// Every query of templates selects `spawn_count, last_spawned_us, version, body`: these columns beat the body.
fn template(row: &PgRow) -> Result<Template, StoreError> {
    let spawn_count: i64 = row.try_get(0).map_err(garbled)?;
    let last_spawned_us: Option<i64> = row.try_get(1).map_err(garbled)?;
    let version: i64 = row.try_get(2).map_err(garbled)?;
    let body: &str = row.try_get(3).map_err(garbled)?;
    let mut template: Template = serde_json::from_str(body).map_err(garbled)?;
    template.spawn_count = u64::try_from(spawn_count).map_err(garbled)?;
    template.version = u64::try_from(version).map_err(garbled)?;
    template.last_spawned_at = last_spawned_us.map(micros::to);
    Ok(template)
}

fn body(template: &Template) -> Result<String, StoreError> {
    serde_json::to_string(template).map_err(garbled)
}

/// What its tags name.
fn builds(template: &Template) -> Vec<String> {
    let builds: BTreeSet<BuildId> = template.tags.values().copied().collect();
    builds.iter().map(ToString::to_string).collect()
}

/// Gives it its names, in the order in which everybody gives names, so that no two wait for each other.
fn names(template: &Template) -> Statement {
    let mut names: Vec<String> = template.names.iter().map(|name| text::stored(name)).collect();
    names.sort_unstable();
    Statement::new(
        "INSERT INTO template_names (team, name, template)
         SELECT $1, name, $2 FROM unnest($3::text[]) WITH ORDINALITY AS given (name, place) ORDER BY place",
    )
    .bind(template.team.to_string())
    .bind(template.id.to_string())
    .bind(names)
}

#[async_trait]
impl TemplateStore for Postgres {
    async fn insert(&self, template: &Template) -> Result<(), StoreError> {
        let insert = Statement::new(
            "INSERT INTO templates (id, team, public, created_us, spawn_count, last_spawned_us, version, builds, body)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(template.id.to_string())
        .bind(template.team.to_string())
        .bind(template.public)
        .bind(micros::of(template.created_at))
        .bind(i64::try_from(template.spawn_count).map_err(garbled)?)
        .bind(template.last_spawned_at.map(micros::of))
        .bind(i64::try_from(template.version).map_err(garbled)?)
        .bind(builds(template))
        .bind(body(template)?);
        self.write_all(&[insert, names(template)]).await?;
        Ok(())
    }

    async fn update(&self, template: &Template) -> Result<u64, StoreError> {
        let version = i64::try_from(template.version).map_err(garbled)?;
        let update = Statement::new(
            "UPDATE templates SET team = $1, public = $2, version = $3, builds = $4, body = $5
             WHERE id = $6 AND version = $7",
        )
        .bind(template.team.to_string())
        .bind(template.public)
        .bind(version + 1)
        .bind(builds(template))
        .bind(body(template)?)
        .bind(template.id.to_string())
        .bind(version);
        let unname =
            Statement::new("DELETE FROM template_names WHERE template = $1").bind(template.id.to_string());
        if self.write_all(&[update, unname, names(template)]).await? > 0 {
            return Ok(template.version + 1);
        }
        let select = Statement::new("SELECT 1 FROM templates WHERE id = $1").bind(template.id.to_string());
        Err(self.unchanged(select).await)
    }

    async fn get(&self, id: TemplateId) -> Result<Option<Template>, StoreError> {
        let select =
            Statement::new("SELECT spawn_count, last_spawned_us, version, body FROM templates WHERE id = $1");
        let row = self.read_one(select.bind(id.to_string())).await?;
        row.as_ref().map(template).transpose()
    }

    async fn named(&self, team: TeamId, name: &str) -> Result<Option<Template>, StoreError> {
        let select = Statement::new(
            "SELECT spawn_count, last_spawned_us, version, body
             FROM template_names JOIN templates ON templates.id = template_names.template
             WHERE template_names.team = $1 AND template_names.name = $2",
        );
        let select = select.bind(team.to_string()).bind(text::stored(name));
        self.read_one(select).await?.as_ref().map(template).transpose()
    }

    async fn promoted(&self, name: &str) -> Result<Option<Template>, StoreError> {
        let select = Statement::new(
            "SELECT spawn_count, last_spawned_us, version, body
             FROM template_names JOIN templates ON templates.id = template_names.template
             WHERE template_names.name = $1 AND public
             ORDER BY created_us, templates.id LIMIT 1",
        );
        let row = self.read_one(select.bind(text::stored(name))).await?;
        row.as_ref().map(template).transpose()
    }

    async fn list(&self, team: TeamId) -> Result<Vec<Template>, StoreError> {
        let select = Statement::new(
            "SELECT spawn_count, last_spawned_us, version, body FROM templates WHERE team = $1 ORDER BY created_us, id",
        );
        let rows = self.read_all(select.bind(team.to_string())).await?;
        rows.iter().map(template).collect()
    }

    async fn remove(&self, id: TemplateId) -> Result<(), StoreError> {
        self.write(Statement::new("DELETE FROM templates WHERE id = $1").bind(id.to_string()))
            .await?;
        Ok(())
    }

    /// Every create of one template comes here, and holds its row until the commit is on the disk: unless it does not wait for
    /// the disk, as here. A crash of the server may cost the counts of its last moments.
    async fn spawned(&self, id: TemplateId, at: SystemTime) -> Result<(), StoreError> {
        let count = Statement::new(
            "WITH at_once AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
             UPDATE templates SET spawn_count = spawn_count + 1,
                 last_spawned_us = greatest(last_spawned_us, $1)
             FROM at_once WHERE id = $2",
        );
        match self
            .write(count.bind(micros::of(at)).bind(id.to_string()))
            .await?
        {
            0 => Err(StoreError::Missing),
            _ => Ok(()),
        }
    }

    async fn builds(&self) -> Result<Vec<BuildId>, StoreError> {
        let select = Statement::new("SELECT DISTINCT unnest(builds) FROM templates");
        let rows = self.read_all(select).await?;
        let build = |row: &PgRow| {
            let build: &str = row.try_get(0).map_err(garbled)?;
            build.parse().map_err(garbled)
        };
        rows.iter().map(build).collect()
    }
}
