//! Templates. Losing them loses what users built; the `base` template is made again from the machine.
use std::time::SystemTime;

use async_trait::async_trait;
use model::{BuildId, TeamId, Template, TemplateId};
use ports::{StoreError, TemplateStore};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::micros;
use crate::sqlite::{Sqlite, away};
use crate::writer::Statement;

/// Every query of templates selects `spawn_count, last_spawned_us, version, body`: these columns beat the body.
fn template(row: &SqliteRow) -> Result<Template, StoreError> {
    let spawn_count: i64 = row.try_get(0).map_err(away)?;
    let last_spawned_us: Option<i64> = row.try_get(1).map_err(away)?;
    let version: i64 = row.try_get(2).map_err(away)?;
    let body: &str = row.try_get(3).map_err(away)?;
    let mut template: Template = serde_json::from_str(body).map_err(away)?;
    template.spawn_count = u64::try_from(spawn_count).map_err(away)?;
    template.version = u64::try_from(version).map_err(away)?;
    template.last_spawned_at = last_spawned_us.map(micros::to);
    Ok(template)
}

fn body(template: &Template) -> Result<String, StoreError> {
    serde_json::to_string(template).map_err(away)
}

fn name(template: &Template, name: &str) -> Statement {
    sqlx::query("INSERT INTO template_names (team, name, template) VALUES (?, ?, ?)")
        .bind(template.team.to_string())
        .bind(name.to_owned())
        .bind(template.id.to_string())
}

#[async_trait]
impl TemplateStore for Sqlite {
    async fn insert(&self, template: &Template) -> Result<(), StoreError> {
        let insert = sqlx::query(
            "INSERT INTO templates (id, team, public, created_us, spawn_count, last_spawned_us, version, body)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(template.id.to_string())
        .bind(template.team.to_string())
        .bind(template.public)
        .bind(micros::of(template.created_at))
        .bind(i64::try_from(template.spawn_count).map_err(away)?)
        .bind(template.last_spawned_at.map(micros::of))
        .bind(i64::try_from(template.version).map_err(away)?)
        .bind(body(template)?);
        let mut statements = vec![insert];
        statements.extend(template.names.iter().map(|text| name(template, text)));
        self.write_all(statements).await?;
        Ok(())
    }

    async fn update(&self, template: &Template) -> Result<u64, StoreError> {
        let version = i64::try_from(template.version).map_err(away)?;
        let update = sqlx::query(
            "UPDATE templates SET team = ?, public = ?, version = ?, body = ? WHERE id = ? AND version = ?",
        )
        .bind(template.team.to_string())
        .bind(template.public)
        .bind(version + 1)
        .bind(body(template)?)
        .bind(template.id.to_string())
        .bind(version);
        let unname =
            sqlx::query("DELETE FROM template_names WHERE template = ?").bind(template.id.to_string());
        let mut statements = vec![update, unname];
        statements.extend(template.names.iter().map(|text| name(template, text)));
        if self.write_all(statements).await? > 0 {
            return Ok(template.version + 1);
        }
        let select = sqlx::query("SELECT 1 FROM templates WHERE id = ?").bind(template.id.to_string());
        Err(self.unchanged(select).await)
    }

    async fn get(&self, id: TemplateId) -> Result<Option<Template>, StoreError> {
        let select =
            sqlx::query("SELECT spawn_count, last_spawned_us, version, body FROM templates WHERE id = ?");
        self.read_one(select.bind(id.to_string()))
            .await?
            .as_ref()
            .map(template)
            .transpose()
    }

    async fn named(&self, team: TeamId, name: &str) -> Result<Option<Template>, StoreError> {
        let select = sqlx::query(
            "SELECT spawn_count, last_spawned_us, version, body
             FROM template_names JOIN templates ON templates.id = template_names.template
             WHERE template_names.team = ? AND template_names.name = ?",
        );
        let select = select.bind(team.to_string()).bind(name.to_owned());
        self.read_one(select).await?.as_ref().map(template).transpose()
    }

    async fn promoted(&self, name: &str) -> Result<Option<Template>, StoreError> {
        let select = sqlx::query(
            "SELECT spawn_count, last_spawned_us, version, body
             FROM template_names JOIN templates ON templates.id = template_names.template
             WHERE template_names.name = ? AND public
             ORDER BY created_us, templates.id LIMIT 1",
        );
        self.read_one(select.bind(name.to_owned()))
            .await?
            .as_ref()
            .map(template)
            .transpose()
    }

    async fn list(&self, team: TeamId) -> Result<Vec<Template>, StoreError> {
        let select = sqlx::query(
            "SELECT spawn_count, last_spawned_us, version, body FROM templates WHERE team = ? ORDER BY created_us, id",
        );
        self.read_all(select.bind(team.to_string()))
            .await?
            .iter()
            .map(template)
            .collect()
    }

    async fn remove(&self, id: TemplateId) -> Result<(), StoreError> {
        self.write(sqlx::query("DELETE FROM templates WHERE id = ?").bind(id.to_string()))
            .await?;
        Ok(())
    }

    async fn spawned(&self, id: TemplateId, at: SystemTime) -> Result<(), StoreError> {
        let count = sqlx::query(
            "UPDATE templates SET spawn_count = spawn_count + 1,
                 last_spawned_us = max(coalesce(last_spawned_us, 0), ?)
             WHERE id = ?",
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
        let select = sqlx::query(
            "SELECT DISTINCT tags.value FROM templates, json_each(templates.body, '$.tags') AS tags",
        );
        let rows = self.read_all(select).await?;
        let build = |row: &SqliteRow| row.try_get::<&str, _>(0).map_err(away)?.parse().map_err(away);
        rows.iter().map(build).collect()
    }
}
