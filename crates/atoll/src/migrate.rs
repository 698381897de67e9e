//! `atoll migrate` and `atoll bootstrap`: what a fleet's database needs before its first process.
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use orchestrator::bootstrap;
use sql::{Database, Stores};

use crate::out;
use crate::settings::Resolved;

/// The database of these settings: the fleet's, or this machine's own.
pub(crate) fn database(settings: &Resolved) -> Result<Database> {
    match &settings.cluster {
        Some(cluster) => cluster.database(),
        None => Ok(Database::Sqlite(settings.data_dir.join("atoll.db"))),
    }
}

/// Brings the database to this program's schema.
pub(crate) fn run(settings: &Resolved, json: bool) -> Result<ExitCode> {
    let database = database(settings)?;
    let migrated = runtime()?.block_on(sql::migrate(&database))?;
    if json {
        let applied: Vec<_> = migrated.applied.iter().map(|one| &one.name).collect();
        out::json(&serde_json::json!({ "generation": migrated.generation, "applied": applied }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for one in &migrated.applied {
        out::line(format_args!("applied {}: {}", one.generation, one.name))?;
    }
    out::say(format_args!(
        "the database is of generation {}",
        migrated.generation
    ));
    Ok(ExitCode::SUCCESS)
}

/// Makes the default team where there is none, and a key of it.
pub(crate) fn bootstrap(settings: &Resolved, name: &str, json: bool) -> Result<ExitCode> {
    let database = database(settings)?;
    let (team, key) = runtime()?.block_on(async {
        let stores = Stores::open(&database).await?;
        let team = bootstrap::default_team(&*stores.teams, settings.quota)
            .await
            .context("the default team cannot be made")?;
        let (_, key) = bootstrap::mint_key(&*stores.teams, team.id, name)
            .await
            .context("a key cannot be made")?;
        anyhow::Ok((team, key))
    })?;
    if json {
        out::json(&serde_json::json!({ "team": team.slug, "key": key.expose() }))?;
    } else {
        out::line(key.expose())?;
        out::say(format_args!(
            "a key of the team {}; it is not shown again",
            team.slug
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}
